//! `memvisor explain`.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use memvisor_inspect::{Guest, trace::Names, views::AddressView};
use memvisor_report::Table;

use super::{
    out::{self, BadInput, parse_address},
    run::{self, RunArgs},
    source::SourceArgs,
};
use crate::{
    devices::ConsoleTarget,
    explain::{self, Collector, Explanation, WALKS, Walk},
    machine::Machine,
    run::{AtEnd, Progress, Vm, conduct},
};

const AFTER_HELP: &str = "\
Boots a fresh guest, lets it run one operation of its memory manager with tracing on, and tells what happened: the call
tree with the arguments and results that were, a sentence for each step, and the structures that it
touched before and after, read from outside while the guest stood still.

Examples:
  memvisor explain --list                       the operations
  memvisor explain alloc-pages                  on the default machine
  memvisor explain zone-fallback -- numa4       on another
  memvisor explain buddy-split --json           for a program
  memvisor explain cow                          copy on write after a fork
  memvisor explain address 0x7ffff7ffa123       an address: indices a level, sign extension; and its walk in a running guest
  memvisor explain address 0x400000 --pid 2 --vm lab";

/// Arguments of `explain`.
#[derive(Clone, Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct ExplainArgs {
    /// The operation
    #[arg(required_unless_present = "list")]
    name: Option<String>,
    /// With `address`: the virtual address to take apart
    #[arg(value_parser = parse_address, required_if_eq("name", "address"))]
    va: Option<u64>,
    /// With `address`: walk the tables of this process
    #[arg(long)]
    pid: Option<u32>,
    #[command(flatten)]
    source: SourceArgs,
    /// List the operations
    #[arg(long)]
    list: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Machine and options, as for `memvisor run`
    #[arg(last = true, value_name = "MACHINE AND OPTIONS")]
    run: Vec<String>,
}

pub(super) fn run(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let Some(name) = args.name.as_deref().filter(|_| !args.list) else {
        list(args.json)?;
        return Ok(ExitCode::SUCCESS);
    };
    if let ("address", Some(va)) = (name, args.va) {
        return address(args, va);
    }
    let walk = explain::find(name).ok_or_else(|| {
        BadInput(format!("no operation is called {name:?}: `memvisor explain --list` names them"))
    })?;
    let (run_args, machine) = prepare(walk, &args.run)?;
    let launch = run::launch(&run_args, &machine, ConsoleTarget::Null)?;
    let vm = launch.vm.clone();
    let mut names = Names { tsc_khz: vm.tsc_khz, ..Names::default() };
    let (event_loop, events) = launch.event_loop(&run_args, false)?;
    let mut collector = Collector::new(walk);
    let mut wrong = None;
    let outcome = conduct(&vm, &events, AtEnd::Return, |progress| {
        if let Progress::Checkpoint(record) = progress
            && let Err(error) = look(&vm, &record.name, &mut names, &mut collector)
        {
            wrong.get_or_insert(error);
        }
    });
    drop(event_loop);
    if let Some(error) = wrong {
        return Err(error);
    }
    if collector.parts.is_empty() {
        let console = vm.console().transcript();
        let reason = console.lines().rev().find(|line| line.starts_with("explain: "));
        bail!("{}: {}", outcome.end.describe(), reason.unwrap_or("it showed nothing"));
    }
    let explanation =
        Explanation { name: walk.name.into(), about: walk.about.into(), parts: collector.parts };
    out::show(&explanation, args.json)?;
    if let Some(report) = outcome.audit().filter(|report| !report.is_clean()) {
        eprintln!("{report}");
    }
    if !outcome.end.is_clean() {
        eprintln!("memvisor: {}", outcome.end.describe());
    }
    Ok(ExitCode::from(outcome.status() as u8))
}

/// What to run: the machine that was asked for, or the walkthrough's own, with the disks that it needs.
fn prepare(walk: &Walk, words: &[String]) -> anyhow::Result<(RunArgs, Machine)> {
    let parse = |words: &[String]| {
        let run_args = RunArgs::parse(words, &walk.cmdline()).map_err(|error| BadInput(error.to_string()))?;
        let machine = run::resolve(&run_args)?;
        anyhow::Ok((run_args, machine))
    };
    let Some(stage) = walk.stage else { return parse(words) };
    let mut words = words.to_vec();
    if words.is_empty() {
        words.extend(stage.machine.iter().map(|word| (*word).to_owned()));
    }
    let (run_args, machine) = parse(&words)?;
    if !machine.disks.is_empty() {
        return Ok((run_args, machine));
    }
    words.extend(stage.disks.iter().flat_map(|disk| ["--disk".to_owned(), (*disk).to_owned()]));
    parse(&words)
}

/// Reads what the guest holds at a checkpoint.
fn look(vm: &Vm, name: &str, names: &mut Names, collector: &mut Collector) -> anyhow::Result<()> {
    let root = vm.device.root_gpa().context("the guest announced no root descriptor")?;
    let memory = vm.memory().mapped()?;
    let guest = Guest::attach(&memory, root)?;
    names.refresh(&guest);
    collector.checkpoint(name, &guest, names)
}

/// What an address is made of, and where it leads in the guest that the arguments choose or that runs alone.
fn address(args: &ExplainArgs, va: u64) -> anyhow::Result<ExitCode> {
    let walk = match args.source.open() {
        Ok(source) => Some(source.walker_of(args.pid)?.translate(source.memory(), va)),
        Err(error) if args.source.is_chosen() || args.pid.is_some() => return Err(error),
        // No guest runs: what an address is made of needs none.
        Err(_) => None,
    };
    out::show(&AddressView::new(va, walk), args.json)?;
    Ok(ExitCode::SUCCESS)
}

fn list(json: bool) -> std::io::Result<()> {
    if json {
        return out::json(&WALKS);
    }
    let mut table = Table::new(["operation", "what it shows"]);
    for walk in WALKS {
        table.row([walk.name, walk.about]);
    }
    table.row([
        "address VA",
        "an address: indices by level, sign extension, 48 and 57 bits; and its walk in a guest that runs",
    ]);
    out::text(&table)
}
