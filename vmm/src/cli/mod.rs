//! The command line. Thin: it reads arguments, calls the library and prints.
//!
//! Exit codes are [`crate::run::ExitStatus`]; `memvisor --help` lists them.

mod check;
mod disks;
mod dma;
mod dump;
mod explain;
mod import;
mod inspect;
mod list;
mod map;
mod out;
mod run;
mod source;
mod stage2;
#[cfg(test)]
mod tests;
mod top;
mod trace;

use std::{io, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand, error::ErrorKind};
use tracing_subscriber::filter::LevelFilter;
use vmm_sys_util::signal::register_signal_handler;

use crate::{
    control::{ClientError, SocketError},
    import::ImportError,
    machine::MachineError,
    run::{ExitStatus, RunError},
    suite::{self, TestArgs, merge::ReportArgs},
};

pub use out::BadInput;
pub(crate) use stage2::LiveStage2;

const AFTER_HELP: &str = "\
Examples:
  memvisor run                               the default machine: boot, audit, exit
  memvisor run numa4 --dry-run               show the machine, start nothing
  memvisor run --hold --name lab &           keep the guest after its end, then
  memvisor inspect zones --vm lab            look at it from outside

Exit codes:
  0  the guest powered off cleanly and the audit has no findings; other commands: done
  1  the command failed for a reason without a code of its own
  2  wrong usage, or a machine file, kernel or flag that cannot be used
  3  the audit found something
  4  /dev/kvm is missing or not permitted
  5  the guest failed: panic, failed test, triple fault, reset
  6  KVM or memvisor failed
  7  stopped from outside before the guest ended
  8  `test`: no case failed because none could run

Messages of memvisor itself: MEMVISOR_LOG=info (or debug, trace).";

/// A test bench for kernel memory management: runs a guest on the machine that a file describes and
/// proves from outside, by reading its memory, that what it believes about its memory is true.
#[derive(Debug, Parser)]
#[command(name = "memvisor", version, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build a machine, boot a guest on it and audit its memory
    Run(run::RunArgs),
    /// Look into the memory of a running guest, a dump, or another VMM's memory file
    Inspect(inspect::InspectArgs),
    /// Watch a running guest: memory by kind, zones against their watermarks, rates, processes
    Top(top::TopArgs),
    /// Audit the memory of a running guest, a dump, or a memory file
    Check(check::CheckArgs),
    /// Write a running guest's memory and registers to an ELF core file
    Dump(dump::DumpArgs),
    /// Make a machine file from what a real machine's Linux says about it
    Import(import::ImportArgs),
    /// Run a guest and write what its memory manager does, event by event, while it runs
    Trace(trace::TraceArgs),
    /// Show one operation of the memory manager, step by step, in a fresh guest
    Explain(explain::ExplainArgs),
    /// Run suites of cases on the beds that this machine has
    Test(TestArgs),
    /// Put the results of several test runs into one report
    Report(ReportArgs),
    /// List running guests
    #[command(visible_alias = "list")]
    Vms(list::VmsArgs),
    /// List the machines that `run` knows by name
    Machines(list::MachinesArgs),
    /// Print completions for a shell
    #[command(
        after_help = "Example:\n  memvisor completions bash > ~/.local/share/bash-completion/completions/memvisor"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Runs the command that the process's arguments name.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let helps = matches!(
                error.kind(),
                ErrorKind::DisplayHelp
                    | ErrorKind::DisplayVersion
                    | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            );
            if helps {
                // Fails only if nobody reads; the exit code tells the rest.
                let _ = error.print();
            } else {
                eprintln!("memvisor: {}", one_line(&error.render().to_string()));
            }
            return ExitCode::from(if error.use_stderr() { ExitStatus::BadInput as u8 } else { 0 });
        }
    };
    ignore_file_limit();
    tracing_subscriber::fmt().with_max_level(log_level()).with_writer(io::stderr).without_time().init();

    match dispatch(cli.command) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::from(128 + 13),
        Err(error) => {
            eprintln!("memvisor: {error:#}");
            ExitCode::from(status_of(&error) as u8)
        }
    }
}

/// What clap says about a wrong command line, on one line and without the usage.
fn one_line(text: &str) -> String {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let mut line = String::new();
    for part in text.lines().map(str::trim).filter(|part| !part.is_empty()) {
        if part.starts_with("Usage:") || part.starts_with("For more information") {
            break;
        }
        let joint = match part.chars().next() {
            _ if line.is_empty() => "",
            Some('[' | '-' | '<') => " ",
            _ => "; ",
        };
        line.push_str(joint);
        line.push_str(part);
    }
    line + " (see --help)"
}

/// A file that would pass RLIMIT_FSIZE is an error to tell (EFBIG), not a signal to die by.
fn ignore_file_limit() {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    // Without the handler the signal ends the process, as it does elsewhere.
    let _ = register_signal_handler(libc::SIGXFSZ, nothing);
}

/// What MEMVISOR_LOG asks for.
fn log_level() -> LevelFilter {
    let Ok(word) = std::env::var("MEMVISOR_LOG") else { return LevelFilter::WARN };
    word.parse().unwrap_or_else(|_| {
        eprintln!(
            "memvisor: MEMVISOR_LOG={word} is none of off, error, warn, info, debug, trace: taken as warn"
        );
        LevelFilter::WARN
    })
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => run::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Dump(args) => dump::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Trace(args) => trace::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Test(args) => suite::run(args),
        Command::Report(args) => suite::merge::run(&args),
        Command::Vms(args) => list::vms(&args),
        Command::Machines(args) => list::machines(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "memvisor", &mut script);
            out::write(&script)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Whether whoever read our output went away: not an error of ours, and told as a shell would.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    // A guest's VMM that goes away is an error of its own.
    if error.is::<ClientError>() {
        return false;
    }
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

fn status_of(error: &anyhow::Error) -> ExitStatus {
    if let Some(error) = error.downcast_ref::<RunError>() {
        error.status()
    } else if let Some(ClientError::Name(_)) = error.downcast_ref() {
        ExitStatus::BadInput
    } else if error.is::<MachineError>()
        || error.is::<ImportError>()
        || error.is::<BadInput>()
        || error.is::<SocketError>()
    {
        ExitStatus::BadInput
    } else {
        ExitStatus::Error
    }
}
