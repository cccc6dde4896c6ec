//! From exec to the guest's first byte, and to the end of the process.

use std::{ffi::OsString, fs, path::Path};

use anyhow::Context;

use crate::{
    Options, guest,
    process::{self, Timing, command, find, millis},
    stats::{ratio, spread},
    table::{Score, Table, Target},
};

/// The program that makes the same KVM calls and nothing else.
const BARE: &str = include_str!("../bare/bare.c");

/// What is written for a VMM to find.
pub struct Files {
    folder: tempfile::TempDir,
    /// The guest.
    pub kernel: std::path::PathBuf,
}

impl Files {
    /// Writes the guest.
    ///
    /// # Errors
    /// If the temporary directory cannot be written to.
    pub fn new() -> anyhow::Result<Files> {
        let folder = tempfile::tempdir()?;
        let kernel = folder.path().join("tiny.elf");
        fs::write(&kernel, guest::elf())?;
        Ok(Files { folder, kernel })
    }

    /// A machine file: one node, one CPU, `mib` MiB.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn machine(&self, mib: u64) -> anyhow::Result<std::path::PathBuf> {
        let path = self.folder.path().join(format!("start-{mib}.toml"));
        let text = format!(
            "[machine]\n\n[[node]]\nmemory = [\"{mib}M\"]\ncpus = [0]\n\n[boot]\npaging = 4\nprotocol = \"pvh\"\n"
        );
        fs::write(&path, text)?;
        Ok(path)
    }

    /// The bare program, compiled.
    ///
    /// # Errors
    /// If there is no C compiler, or it fails.
    pub fn bare(&self) -> anyhow::Result<std::path::PathBuf> {
        let source = self.folder.path().join("bare.c");
        let program = self.folder.path().join("bare");
        fs::write(&source, BARE)?;
        process::run(&command([&"cc", &"-O2", &"-o", &program, &source])).context("compile bare.c")?;
        Ok(program)
    }

    /// Memvisor's command.
    ///
    /// # Errors
    /// If the machine file cannot be written.
    pub fn memvisor(&self, program: &Path, mib: u64) -> anyhow::Result<Vec<OsString>> {
        let machine = self.machine(mib)?;
        Ok(command([
            &program,
            &"run",
            &machine,
            &"--kernel",
            &self.kernel,
            &"--boot",
            &"pvh",
            &"--audit",
            &"off",
            // As the bare program; for a kernel that is not its own memvisor adds PIC, I/O APIC and PIT by itself.
            &"--irqchip",
            &"split",
        ]))
    }
}

struct Contender {
    name: &'static str,
    command: Vec<OsString>,
    code: i32,
    timings: Vec<Timing>,
}

/// Runs it.
///
/// # Errors
/// If a command fails.
pub fn run(options: &Options) -> anyhow::Result<Score> {
    let files = Files::new()?;
    let bare = files.bare()?;
    let qemu = find("qemu-system-x86_64");
    let mut table = Table::new(
        "Start",
        &format!(
            "A PVH ELF that prints one line and ends, 1 CPU: milliseconds from before the process is started to the \
             guest's first byte, and to the end of the process; medians of {} interleaved runs (range). The ratio is \
             the peer's time divided by memvisor's for QEMU, memvisor's divided by the peer's for the bare program. Both of these have the local APIC in KVM and no PIC, \
             I/O APIC and PIT; the last row is about what those cost.",
            options.rounds
        ),
    );
    for mib in [128, 1024, 8192] {
        let mut all = vec![
            Contender {
                name: "memvisor",
                command: files.memvisor(&options.memvisor, mib)?,
                code: 0,
                timings: Vec::new(),
            },
            Contender {
                name: "bare C program",
                command: bare_command(&bare, &files.kernel, mib),
                code: 0,
                timings: Vec::new(),
            },
        ];
        if let Some(qemu) = &qemu {
            all.push(Contender {
                name: "QEMU microvm",
                command: qemu_command(qemu, "microvm", None, &files.kernel, mib),
                code: 1,
                timings: Vec::new(),
            });
            let machine = "microvm,pic=off,pit=off,rtc=off,acpi=off,pcie=off,usb=off";
            all.push(Contender {
                name: "QEMU microvm, qboot, all off",
                command: qemu_command(qemu, machine, Some("qboot.rom"), &files.kernel, mib),
                code: 1,
                timings: Vec::new(),
            });
        }
        for round in 0..=options.rounds {
            for contender in &mut all {
                let timing = process::time(&contender.command, guest::FIRST_BYTE, contender.code)?;
                if round > 0 {
                    contender.timings.push(timing);
                }
            }
        }
        rows(&mut table, mib, &all);
        if mib == 1024 {
            pc(options, &mut table, &files, &all)?;
        }
        if qemu.is_none() {
            table.absent(&format!("{mib} MiB"), "QEMU microvm", "qemu-system-x86_64 is not installed");
        }
    }
    Ok(table.print("start"))
}

/// With the interrupt controllers and the timer of a PC, which stock kernels need.
fn pc(options: &Options, table: &mut Table, files: &Files, all: &[Contender]) -> anyhow::Result<()> {
    let mut command = files.memvisor(&options.memvisor, 1024)?;
    command.truncate(command.len() - 2);
    let mut exits = Vec::new();
    for _ in 0..options.rounds {
        exits.push(millis(process::time(&command, guest::FIRST_BYTE, 0)?.exit));
    }
    let split: Vec<f64> =
        all.iter().take(1).flat_map(|ours| &ours.timings).map(|timing| millis(timing.exit)).collect();
    table.row(
        "1024 MiB, to exit, PIC, I/O APIC and PIT in KVM",
        &spread(&exits, "ms"),
        ("memvisor without them", &spread(&split, "ms")),
        (ratio(&exits, &split), "x"),
        Target::None,
    );
    Ok(())
}

fn rows(table: &mut Table, mib: u64, all: &[Contender]) {
    let [ours, bare, qemus @ ..] = all else { return };
    let times = |contender: &Contender, pick: fn(&Timing) -> std::time::Duration| -> Vec<f64> {
        contender.timings.iter().map(|timing| millis(pick(timing))).collect()
    };
    let first = |timing: &Timing| timing.first_byte;
    let exit = |timing: &Timing| timing.exit;
    for (what, pick, bound) in [
        ("first byte", first as fn(&Timing) -> std::time::Duration, 2.5),
        ("exit", exit as fn(&Timing) -> std::time::Duration, 3.0),
    ] {
        let (a, b) = (times(ours, pick), times(bare, pick));
        table.row(
            &format!("{mib} MiB, to {what}"),
            &spread(&a, "ms"),
            (bare.name, &spread(&b, "ms")),
            (ratio(&a, &b), "x"),
            Target::AtMost(bound),
        );
    }
    for (qemu, target) in qemus.iter().zip([Target::AtLeast(12.0), Target::None]) {
        let (a, b) = (times(ours, first), times(qemu, first));
        table.row(
            &format!("{mib} MiB, to first byte"),
            &spread(&a, "ms"),
            (qemu.name, &spread(&b, "ms")),
            (ratio(&b, &a), "x"),
            target,
        );
    }
}

/// The bare program with the memory slots that memvisor makes: conventional memory, the firmware's
/// tables, RAM up to the hole below 4 GiB, and the rest above.
fn bare_command(bare: &Path, kernel: &Path, mib: u64) -> Vec<OsString> {
    let bytes = mib << 20;
    let hole = 3 << 30;
    let mut words = command([&bare, &kernel, &"0+9f000", &"e0000+20000"]);
    let low = bytes.min(hole) - (1 << 20);
    words.push(format!("100000+{low:x}").into());
    if bytes > hole {
        words.push(format!("100000000+{:x}", bytes - hole).into());
    }
    words
}

fn qemu_command(
    qemu: &Path,
    machine: &str,
    firmware: Option<&str>,
    kernel: &Path,
    mib: u64,
) -> Vec<OsString> {
    let mut words = command([
        &qemu,
        &"-M",
        &machine,
        &"-enable-kvm",
        &"-m",
        &mib.to_string(),
        &"-nodefaults",
        &"-no-user-config",
        &"-display",
        &"none",
        &"-serial",
        &"stdio",
        &"-no-reboot",
        &"-device",
        &"isa-debug-exit,iobase=0xf4,iosize=1",
        &"-kernel",
        &kernel,
    ]);
    if let Some(firmware) = firmware {
        words.extend(command([&"-bios", &firmware]));
    }
    words
}
