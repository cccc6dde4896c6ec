//! `memvisor dump`.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use memvisor_inspect::core_file::{self, Vmcoreinfo};
use tempfile::NamedTempFile;
use vmm_sys_util::signal::register_signal_handler;

use super::{
    out,
    source::{Source, SourceArgs},
};

const AFTER_HELP: &str = "\
The guest is paused while it is written. The file has a PT_LOAD segment for each memory range, the registers of
every CPU (NT_PRSTATUS) and a VMCOREINFO note.

Examples:
  memvisor dump -o guest.core
  gdb -ex 'info threads' -core guest.core
  memvisor inspect zones --dump guest.core";

/// Arguments of `dump`.
#[derive(Clone, Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct DumpArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// File to write; it appears when it is complete
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Print a summary as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DumpArgs) -> anyhow::Result<ExitCode> {
    let mut source = args.source.open()?;
    catch_signals().context("cannot catch signals")?;
    let folder = args.output.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.map_or_else(|| PathBuf::from("."), PathBuf::from);
    let bar = ProgressBar::new(0).with_style(
        ProgressStyle::with_template("dump {bar:40} {bytes}/{total_bytes} {bytes_per_sec}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    bar.enable_steady_tick(Duration::from_millis(100));
    let result = source.paused(|source: &Source| {
        let mut file = NamedTempFile::new_in(&folder)
            .with_context(|| format!("cannot create a file in {}", folder.display()))?;
        let facts = source.facts.clone().unwrap_or_default();
        let info = match source.root() {
            Some(_) => vmcoreinfo(source).to_string(),
            // Of a foreign kernel only Linux is known to leave something for readers.
            None => core_file::find_linux(source.memory()).unwrap_or_else(|| vmcoreinfo(source).to_string()),
        };
        let summary = core_file::write(
            &mut Stoppable(file.as_file_mut()),
            source.memory(),
            &source.registers,
            &facts,
            &info,
            &mut |done, total| {
                bar.set_length(total);
                bar.set_position(done);
            },
        )?;
        file.persist(&args.output)
            .with_context(|| format!("cannot name the dump {}", args.output.display()))?;
        Ok(summary)
    });
    bar.finish_and_clear();
    let summary = result?;
    if args.json {
        out::json(&summary)?;
    } else {
        out::text(&format!(
            "{}: {} MiB of RAM, of which {} MiB are zero and left out as holes",
            args.output.display(),
            summary.ram_len >> 20,
            summary.hole_len >> 20
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

static STOPPED: AtomicBool = AtomicBool::new(false);

/// Makes Ctrl-C and its like an error, after which the guest goes on and the unfinished file is
/// removed.
fn catch_signals() -> io::Result<()> {
    extern "C" fn stop(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        STOPPED.store(true, Ordering::Relaxed);
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        register_signal_handler(signal, stop).map_err(|errno| io::Error::from_raw_os_error(errno.errno()))?;
    }
    Ok(())
}

/// A file that takes no more once a signal came.
struct Stoppable<'a>(&'a mut File);

impl Write for Stoppable<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if STOPPED.load(Ordering::Relaxed) {
            return Err(io::Error::other("stopped by a signal"));
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Seek for Stoppable<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

/// What is known about the kernel's place.
fn vmcoreinfo(source: &Source) -> Vmcoreinfo {
    /// Linux: `__START_KERNEL_map`.
    const START_KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
    let mut info = Vmcoreinfo { root_gpa: source.root_gpa, ..Vmcoreinfo::default() };
    if let Ok(guest) = source.guest() {
        let root = guest.root();
        info.os_release = format!("memvisor-abi-{}", root.version);
        info.root_gpa = Some(guest.root_gpa());
        info.five_levels = root.levels == 5;
        info.phys_base =
            root.kernel_gpa.wrapping_sub(root.kernel_va.wrapping_sub(START_KERNEL_MAP)).cast_signed();
    }
    info
}
