//! `memvisor check`.

use std::process::ExitCode;

use clap::Args;
use memvisor_check::{Evidence, Moment};
use memvisor_inspect::CpuRegisters;

use super::{
    out,
    source::{Source, SourceArgs},
};

const AFTER_HELP: &str = "\
A running guest is paused while it is audited. Exit code 3 means findings.

Examples:
  memvisor check                       the only running guest
  memvisor check --dump guest.core --json
  memvisor check --mem ram.mem         rules that need registers or the machine's facts are skipped";

/// Arguments of `check`.
#[derive(Clone, Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let mut source = args.source.open()?;
    let report = source.paused(|source: &Source| {
        let registers: &[CpuRegisters] = &source.registers;
        Ok(memvisor_check::audit(&Evidence {
            source: source.memory(),
            root_gpa: source.root_gpa,
            facts: source.facts.as_ref(),
            registers,
            moment: Moment::Any,
        }))
    })?;
    out::show(&report, args.json)?;
    Ok(report.exit_code())
}
