//! What is measured on memvisor's guest and on a stock Linux: one static program as the first process of both, on the same machine of QEMU's software
//! CPU.

pub mod cpio;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::process;

const QEMU: &str = "qemu-system-x86_64";
/// Linux has a message a second less to print, and ends where it would wait.
const LINUX: &str = "console=ttyS0 quiet loglevel=3 panic=-1";

/// A kernel and how it is started.
pub struct System {
    /// Name of its column.
    pub name: &'static str,
    kernel: PathBuf,
    append: String,
}

/// memvisor's guest, Linux as it comes, and Linux with `mitigations=off`.
///
/// # Errors
/// What is not installed, and which verb of make brings it.
pub fn systems(guest: &Path, linux: &Path, verb: &str) -> anyhow::Result<[System; 3]> {
    are_there(&[guest, linux], verb)?;
    let of_linux =
        |name, more: &str| System { name, kernel: linux.to_path_buf(), append: format!("{LINUX}{more}") };
    Ok([
        System { name: "memvisor", kernel: guest.to_path_buf(), append: String::from("quiet") },
        of_linux("Linux", ""),
        of_linux("mitigations=off", " mitigations=off"),
    ])
}

/// memvisor's guest with each of its LRU policies, and with each of its slab allocators.
///
/// # Errors
/// What is not installed, and which verb of make brings it.
pub fn policies(guest: &Path, verb: &str) -> anyhow::Result<[System; 4]> {
    are_there(&[guest], verb)?;
    let of = |name, more: &str| System { name, kernel: guest.to_path_buf(), append: format!("quiet{more}") };
    Ok([
        of("classic, SLUB", ""),
        of("generations", " lru=gen"),
        of("SLAB", " slab=slab"),
        of("SLOB", " slab=slob"),
    ])
}

fn are_there(files: &[&Path], verb: &str) -> anyhow::Result<()> {
    anyhow::ensure!(process::find(QEMU).is_some(), "{QEMU} is not installed");
    for file in files {
        anyhow::ensure!(file.is_file(), "{} is not there: `make {verb}` makes it", file.display());
    }
    Ok(())
}

/// How a program is run.
pub struct Run<'a> {
    /// The machine: words for QEMU.
    pub machine: &'a [String],
    /// The archive that it is the first process of.
    pub archive: &'a Path,
    /// Seconds that it may take.
    pub limit: u32,
    /// What it says at its end.
    pub last_words: &'a str,
}

impl Run<'_> {
    /// QEMU's command line, as a reader may repeat it.
    pub fn describe(&self) -> String {
        let name = self.archive.file_name().unwrap_or_default().display();
        format!("{QEMU} {} -kernel KERNEL -initrd {name} -append \"...\"", self.machine.join(" "))
    }

    /// Runs it once on `system`, and returns the console. `before` is called each time. A machine that does not come to its end is started a
    /// second time: QEMU 7.2 with a thread for each CPU can lose a stock Linux at its start (docs/beds.md).
    ///
    /// # Errors
    /// The console of a machine that does not come to its end.
    pub fn boot(
        &self,
        system: &System,
        mut before: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<String> {
        let mut console = String::new();
        for _ in 0..2 {
            before()?;
            let output = Command::new("timeout")
                .args([&self.limit.to_string(), QEMU])
                .args(self.machine)
                .args(["-append", &system.append])
                .arg("-kernel")
                .arg(&system.kernel)
                .arg("-initrd")
                .arg(self.archive)
                .stdin(Stdio::null())
                .stderr(Stdio::inherit())
                .output()
                .context(QEMU)?;
            console = String::from_utf8_lossy(&output.stdout).into_owned();
            if console.contains(self.last_words) {
                return Ok(console);
            }
            eprintln!("\n{} did not come to the end ({}): again", system.name, output.status);
        }
        anyhow::bail!("{} does not come to the end:\n{console}", system.name)
    }
}

/// A static program of a C file of `bench/guest`.
///
/// # Errors
/// If the compiler is missing, or refuses.
pub fn compile(name: &str, folder: &Path) -> anyhow::Result<Vec<u8>> {
    let source = format!("{}/guest/{name}.c", env!("CARGO_MANIFEST_DIR"));
    let program = folder.join(name);
    let status = Command::new("cc")
        .args(["-O2", "-Wall", "-Wextra", "-static", "-pthread", "-o"])
        .args([program.as_path(), Path::new(&source)])
        .status()
        .context("cc")?;
    anyhow::ensure!(status.success(), "cc cannot make a static program of {source}: {status}");
    Ok(std::fs::read(program)?)
}

/// Rate of the time-stamp counter, which a software CPU passes on.
pub fn tsc_khz() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and it reads a counter.
    let cycles = || unsafe { core::arch::x86_64::_rdtsc() };
    let (begin, before) = (Instant::now(), cycles());
    std::thread::sleep(Duration::from_millis(200));
    let cycles = cycles() - before;
    cycles * 1000 / u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX).max(1)
}
