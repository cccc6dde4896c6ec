//! `memvisor trace`.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context;
use clap::Args;
use memvisor_abi::{EVENTS, EventInfo, Group, Phase, select_events};
use memvisor_inspect::{
    Guest, MappedMemory,
    trace::{EventText, Names, RingCount, TraceReader},
};
use memvisor_report::Table;
use serde_json::{Value, json};

use super::{
    out::{self, BadInput},
    run::{self, RunArgs},
};
use crate::{
    devices::ConsoleTarget,
    machine::Size,
    run::{AtEnd, RunEvent, Vm, conduct},
};

const AFTER_HELP: &str = "\
EVENTS are words separated by commas: a group (alloc, slab, compaction, reclaim, vmalloc, task), a name or a
pattern (mm_page_*), SYSTEM:NAME as perf writes it (kmem:*), all; !WORD takes away again. Functions of the call
tree record their entry and their return; Linux's tracepoints have Linux's names.

Examples:
  memvisor trace --list                               every event with its arguments
  memvisor trace alloc                                the default machine, every step of every page allocation
  memvisor trace 'kmem:*' -o kmem.txt -- tiny         Linux's kmem tracepoints, into a file
  memvisor trace 'all,!task' --json -- numa4 --cmdline ktest

The guest's console goes to standard error. The guest never waits for the reader: what was overwritten in a ring
before it was read is counted and told at the end (--buffer makes rings larger).";

/// Arguments of `trace`.
#[derive(Clone, Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct TraceArgs {
    /// What to trace: groups, names, patterns
    #[arg(value_name = "EVENTS", required_unless_present = "list")]
    events: Option<String>,
    /// List the events that EVENTS select, all without it, and start nothing
    #[arg(long)]
    list: bool,
    /// A JSON object a line; the last one is the summary
    #[arg(long)]
    json: bool,
    /// Write events to a file
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Size of each CPU's ring [default: 256K, 4,096 records]
    #[arg(long, value_name = "SIZE")]
    buffer: Option<Size>,
    /// Machine and options, as for `memvisor run`
    #[arg(last = true, value_name = "MACHINE AND OPTIONS")]
    run: Vec<String>,
}

pub(super) fn run(args: &TraceArgs) -> anyhow::Result<ExitCode> {
    let patterns = args.events.as_deref().unwrap_or("all");
    let mask = select_events(patterns).map_err(|word| {
        BadInput(format!("no event is called {word:?}: `memvisor trace --list` names groups and events"))
    })?;
    let selected = |event: &&EventInfo| mask[usize::from(event.number / 64)] >> (event.number % 64) & 1 == 1;
    if args.list {
        list(&EVENTS.iter().filter(selected).collect::<Vec<_>>(), args.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    if patterns.contains(char::is_whitespace) || mask.iter().all(|word| *word == 0) {
        return Err(BadInput(format!("{patterns:?} selects no event")).into());
    }
    let mut words = format!("trace={patterns}");
    if let Some(size) = args.buffer {
        words += &format!(" trace_buf_size={}", size.bytes());
    }
    let run_args = RunArgs::parse(&args.run, &words).map_err(|error| BadInput(error.to_string()))?;
    let sink: Box<dyn Write + Send> = match &args.output {
        Some(path) => Box::new(File::create(path).with_context(|| format!("create {}", path.display()))?),
        None => Box::new(io::stdout()),
    };
    let machine = run::resolve(&run_args)?;
    let launch = run::launch(&run_args, &machine, ConsoleTarget::Stderr)?;
    let vm = launch.vm.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let tracer = Tracer {
        vm: vm.clone(),
        out: BufWriter::new(sink),
        json: args.json,
        names: Names { tsc_khz: vm.tsc_khz, ..Names::default() },
        counts: BTreeMap::new(),
    };
    let thread = {
        let (stop, sender) = (stop.clone(), launch.sender.clone());
        thread::Builder::new().name("trace".into()).spawn(move || {
            let result = tracer.follow(&stop);
            if result.is_err() {
                // Nobody gets the events: the guest need not go on. Fails if it has ended already.
                let _ = sender.send(RunEvent::Quit("the trace, which cannot go on,".into()));
            }
            result
        })?
    };
    let (event_loop, events) = launch.event_loop(&run_args, false)?;
    let outcome = conduct(&vm, &events, AtEnd::Return, |_| {});
    stop.store(true, Ordering::Release);
    let summary = thread.join().map_err(|_| anyhow::anyhow!("the tracing thread panicked"))??;
    drop(event_loop);
    if let Some(path) = &args.output {
        eprintln!("memvisor: {} events in {}, {} lost", summary.read(), path.display(), summary.lost());
    }
    eprintln!("memvisor: {} ({} ms)", outcome.end.describe(), outcome.duration.as_millis());
    if let Some(report) = outcome.audit().filter(|report| !report.is_clean()) {
        eprintln!("{report}");
    }
    Ok(ExitCode::from(outcome.status() as u8))
}

/// What `--list` prints.
fn list(events: &[&EventInfo], json: bool) -> io::Result<()> {
    if json {
        let list: Vec<Value> = events
            .iter()
            .map(|event| {
                json!({
                    "event": event.name,
                    "group": event.group.name(),
                    "system": (!event.system.is_empty()).then_some(event.system),
                    "phase": format!("{:?}", event.phase).to_lowercase(),
                    "fields": event.fields.iter().map(|field| field.name).collect::<Vec<_>>(),
                })
            })
            .collect();
        return out::json(&list);
    }
    let mut table = Table::new(["group", "event", "", "arguments"]);
    for event in events {
        let name =
            if event.is_linux() { format!("{}:{}", event.system, event.name) } else { event.name.into() };
        let phase = match event.phase {
            Phase::Point => "",
            Phase::Enter => "enter",
            Phase::Exit => "return",
        };
        let fields: Vec<_> = event.fields.iter().map(|field| field.name).collect();
        table.row([event.group.name().to_owned(), name, phase.to_owned(), fields.join(" ")]);
    }
    out::text(&table)
}

/// How long new records may wait in the rings.
const POLL: Duration = Duration::from_millis(5);

fn attach(memory: &MappedMemory, root: u64) -> anyhow::Result<Option<TraceReader>> {
    Ok(TraceReader::attach(&Guest::attach(memory, root)?)?)
}

struct Tracer {
    vm: Arc<Vm>,
    out: BufWriter<Box<dyn Write + Send>>,
    json: bool,
    names: Names,
    /// Records by event number.
    counts: BTreeMap<u16, u64>,
}

/// What was traced, by CPU.
struct Summary(Vec<RingCount>);

impl Summary {
    fn read(&self) -> u64 {
        self.0.iter().map(|ring| ring.read).sum()
    }

    fn lost(&self) -> u64 {
        self.0.iter().map(|ring| ring.lost).sum()
    }
}

impl Tracer {
    /// Writes events until `stop` and then what is left.
    fn follow(mut self, stop: &AtomicBool) -> anyhow::Result<Summary> {
        let memory = self.vm.memory().mapped()?;
        let mut reader = None;
        let mut entries = Vec::new();
        loop {
            // Whoever sets it has stopped the guest, so this poll is the last.
            let last = stop.load(Ordering::Acquire);
            if reader.is_none()
                && let Some(root) = self.vm.device.root_gpa()
            {
                // A guest that boots publishes itself piece by piece: only the last answer counts.
                reader = match attach(&memory, root) {
                    Err(error) if last => return Err(error),
                    result => result.ok().flatten(),
                };
            }
            if let Some(reader) = &mut reader {
                entries.clear();
                reader.poll(&memory, &mut entries)?;
                if entries.iter().any(|entry| entry.info().is_some_and(|info| info.group == Group::Slab))
                    && let Some(guest) =
                        self.vm.device.root_gpa().and_then(|root| Guest::attach(&memory, root).ok())
                {
                    self.names.refresh(&guest);
                }
                for entry in &entries {
                    *self.counts.entry(entry.record.event).or_default() += 1;
                    let text = EventText { entry, names: &self.names };
                    if self.json {
                        writeln!(self.out, "{}", text.json())?;
                    } else {
                        writeln!(self.out, "{text}")?;
                    }
                }
                self.out.flush()?;
            }
            if last {
                let reader = reader.context(
                    "the guest published no trace rings: it ended too early, or its kernel is not memvisor's",
                )?;
                let summary = Summary(reader.counts().collect());
                self.summarize(&summary)?;
                return Ok(summary);
            }
            thread::sleep(POLL);
        }
    }

    fn summarize(&mut self, summary: &Summary) -> io::Result<()> {
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for (event, count) in &self.counts {
            // A function counts by its entries.
            let Some(info) = EventInfo::of(*event).filter(|info| info.phase != Phase::Exit) else { continue };
            *counts.entry(info.name).or_default() += count;
        }
        if self.json {
            writeln!(self.out, "{}", json!({ "summary": { "cpus": summary.0, "events": counts } }))?;
            return self.out.flush();
        }
        for ring in &summary.0 {
            write!(self.out, "# CPU {}: {} records, {} lost", ring.cpu, ring.read, ring.lost)?;
            if ring.damaged + ring.resets != 0 {
                write!(self.out, ", {} damaged, {} resets", ring.damaged, ring.resets)?;
            }
            writeln!(self.out)?;
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
        for (name, count) in counts {
            writeln!(self.out, "# {count:>8} {name}")?;
        }
        self.out.flush()
    }
}
