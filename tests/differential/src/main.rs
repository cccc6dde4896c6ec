//! `memvisor-differential`: the comparison, and the archive that the suite boots.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use memvisor_differential::compare::{Part, first_difference};
use memvisor_differential::differences::explain;
use memvisor_differential::guest::{Bed, Guest};
use memvisor_differential::host::Host;
use memvisor_differential::output::{Outcome, Side, run_all};
use memvisor_differential::report::{Finding, Report, seconds};
use memvisor_differential::sequence::{Mode, Sequence};
use memvisor_differential::shrink::Pair;
use memvisor_differential::{cases, generate, suite};

#[derive(Debug, Parser)]
#[command(
    about = "The same calls on this machine's Linux and in the guest, and every difference in what they do"
)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Compare, and shrink what differs. Exit code 1 if anything does that is not meant to
    Run(RunArgs),
    /// Write an archive whose first process compares itself with what this machine's Linux does now
    Pack(PackArgs),
    /// Print sequences, a line a call
    Show(Which),
}

/// Which sequences.
#[derive(Clone, Debug, Args)]
struct Which {
    /// Random sequences
    #[arg(long, value_name = "N", default_value_t = 1000)]
    sequences: u64,
    /// Calls of each
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1024))]
    calls: u16,
    /// Where random sequences come from, decimal or 0x and hexadecimal
    #[arg(long, value_parser = seed, default_value = "1")]
    seed: u64,
    /// Leave the hand-written cases out
    #[arg(long)]
    no_cases: bool,
    /// Map no files in random sequences
    #[arg(long)]
    no_files: bool,
    /// Only the sequences of these names, such as random-7 or mmap/fixed; may be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    which: Which,
    /// Where the guest runs
    #[arg(long, value_enum, default_value = "qemu")]
    bed: Bed,
    /// The static program of tests/programs/differential
    #[arg(long, value_name = "FILE")]
    program: PathBuf,
    /// The guest kernel
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// memvisor, for bed kvm
    #[arg(long, value_name = "FILE", default_value = "memvisor")]
    memvisor: PathBuf,
    /// RAM of the guest in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    memory: u64,
    /// CPUs of the guest
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// Words for the guest's command line
    #[arg(long, value_name = "TEXT", default_value = "", allow_hyphen_values = true)]
    cmdline: String,
    /// Seconds without a word from the program after which the guest is stopped
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    patience: u64,
    /// Sequences a boot
    #[arg(long, value_name = "N", default_value_t = 250)]
    batch: usize,
    /// Guests at the same time [default: as many as there are CPUs]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Differences to look into; sequences that differ at the same kind of call count as one
    #[arg(long, value_name = "N", default_value_t = 5)]
    findings: usize,
    /// The report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct PackArgs {
    #[command(flatten)]
    which: Which,
    /// The static program of tests/programs/differential
    #[arg(long, value_name = "FILE")]
    program: PathBuf,
    /// The archive
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

fn seed(text: &str) -> Result<u64, String> {
    let number = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    number.map_err(|error| error.to_string())
}

impl Which {
    fn sequences(&self) -> anyhow::Result<Vec<Sequence>> {
        let mut all = if self.no_cases { Vec::new() } else { cases::load()? };
        let only: Vec<u64> =
            self.only.iter().filter_map(|name| name.strip_prefix("random-")?.parse().ok()).collect();
        let numbers: Vec<u64> = if self.only.is_empty() { (0..self.sequences).collect() } else { only };
        all.extend(
            numbers
                .into_iter()
                .map(|n| generate::with_files(self.seed, n, self.calls.into(), !self.no_files)),
        );
        if !self.only.is_empty() {
            all.retain(|sequence| self.only.iter().any(|name| sequence.name.starts_with(name.as_str())));
        }
        anyhow::ensure!(!all.is_empty(), "no sequence has such a name");
        Ok(all)
    }
}

fn main() -> anyhow::Result<ExitCode> {
    match Command::parse().verb {
        Verb::Run(args) => run(&args),
        Verb::Pack(args) => {
            let mut sequences = args.which.sequences()?;
            sequences.retain(suite::is_comparable);
            let archive = suite::pack(&args.program, &sequences)?;
            std::fs::write(&args.out, archive).with_context(|| args.out.display().to_string())?;
            println!("{} sequences in {}", sequences.len(), args.out.display());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Show(which) => {
            for sequence in which.sequences()? {
                println!("case {}", sequence.name);
                sequence.calls.iter().for_each(|call| println!("{call}"));
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let sequences = args.which.sequences()?;
    let linux = Host::new(&args.program);
    let guest = Guest {
        bed: args.bed,
        program: args.program.clone(),
        kernel: args.kernel.clone(),
        memvisor: args.memvisor.clone(),
        memory_mib: args.memory,
        cpus: args.cpus,
        cmdline: args.cmdline.clone(),
        patience: Duration::from_secs(args.patience),
    };
    let jobs = args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |cpus| cpus.get()));
    let pair = Pair { linux: &linux, guest: &guest };
    let differing = differing(pair, &sequences, args.batch, jobs)?;
    let compared = start.elapsed();
    let mut report = Report {
        linux: Host::release(),
        bed: args.bed,
        seed: args.which.seed,
        cases: sequences.iter().filter(|sequence| !sequence.name.starts_with("random-")).count(),
        sequences: sequences.iter().filter(|sequence| sequence.name.starts_with("random-")).count(),
        calls: sequences.iter().map(|sequence| sequence.calls.len()).sum(),
        same: sequences.len() - differing.len(),
        meant: BTreeMap::new(),
        differing: Vec::new(),
        unsteady: Vec::new(),
        findings: Vec::new(),
        compared_s: seconds(compared),
        total_s: 0.0,
    };
    let differing: Vec<Differing> = differing
        .into_iter()
        .map(|(at, first)| Differing { sequence: sequences[at].clone(), first })
        .collect();
    look_into(pair, &differing, args, &mut report)?;
    report.total_s = seconds(start.elapsed());
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.text());
    }
    Ok(if report.differing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What both kernels did.
type Both = (Outcome, Outcome);

/// A sequence whose hashes differ, and what both did.
struct Differing {
    sequence: Sequence,
    first: Both,
}

/// Indices of the sequences whose hashes differ, with what both did.
fn differing(
    pair: Pair<'_>,
    all: &[Sequence],
    batch: usize,
    jobs: usize,
) -> anyhow::Result<Vec<(usize, Both)>> {
    let bar = ProgressBar::new(2 * all.len() as u64);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {msg}")?);
    let batches: Vec<(usize, &[Sequence])> =
        all.chunks(batch.max(1)).enumerate().map(|(at, chunk)| (at * batch.max(1), chunk)).collect();
    let (next, found) = (AtomicUsize::new(0), Mutex::new((Vec::new(), None)));
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, batches.len().max(1)) {
            scope.spawn(|| {
                while let Some(&(first, batch)) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = hashes_differ(pair, batch, &bar);
                    let Ok(mut found) = found.lock() else { return };
                    match outcome {
                        Ok(at) => found.0.extend(at.into_iter().map(|(at, both)| (first + at, both))),
                        Err(error) => found.1 = Some(error),
                    }
                    bar.set_message(format!("{} differ", found.0.len()));
                }
            });
        }
    });
    bar.finish_and_clear();
    let (mut at, error) = found.into_inner().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
    if let Some(error) = error {
        return Err(error);
    }
    at.sort_unstable_by_key(|(at, _)| *at);
    Ok(at)
}

fn hashes_differ(
    pair: Pair<'_>,
    batch: &[Sequence],
    bar: &ProgressBar,
) -> anyhow::Result<Vec<(usize, Both)>> {
    let run = |side: &dyn Side| run_all(side, batch, Mode::Compact, &|count| bar.inc(count as u64));
    let (linux, guest): (Vec<Outcome>, Vec<Outcome>) = (run(pair.linux)?, run(pair.guest)?);
    let pairs = linux.into_iter().zip(guest).enumerate();
    Ok(pairs.filter(|(_, (linux, guest))| !linux.is_same(guest)).collect())
}

/// Who did something else the first time, of two who did the same the second time; `None` if only Linux did.
fn changed(first: &Both, second: &Both) -> Option<&'static str> {
    match (first.0.is_same(&second.0), first.1.is_same(&second.1)) {
        (false, true) => None,
        (true, false) => Some("once, the guest changed"),
        _ => Some("once, both changed"),
    }
}

/// What a difference has in common with others that are probably the same: the call, and what came of it.
fn kind(sequence: &Sequence, part: &Part, guest: &Outcome) -> String {
    if matches!(guest, Outcome::Died(_)) {
        return "died".to_owned();
    }
    let name =
        part.call.and_then(|call| sequence.calls.get(call)).map_or("contents", |call| call.name.text());
    let first = |lines: &[String]| {
        let line = lines.first().map_or("", String::as_str);
        let result = line.split(' ').skip(1).map(|word| word.trim_start_matches(|c| "mlh".contains(c)));
        // Where something is does not matter, which errno or signal does.
        result.map(|word| if word.len() > 3 { "address" } else { word }).collect::<Vec<_>>().join(" ")
    };
    let (linux, guest) = (first(&part.linux), first(&part.guest));
    if linux == guest { format!("{name}, areas") } else { format!("{name}, {linux}, {guest}") }
}

/// Records of a batch at a time, so that a few hundred do not fill the console of one boot.
const RECORDS: usize = 50;

/// Tells what is meant from what is not, and shrinks the first sequence of each kind.
fn look_into(
    pair: Pair<'_>,
    differing: &[Differing],
    args: &RunArgs,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut kinds: BTreeMap<String, (Sequence, usize)> = BTreeMap::new();
    for batch in differing.chunks(RECORDS) {
        let sequences: Vec<Sequence> = batch.iter().map(|differing| differing.sequence.clone()).collect();
        for (Differing { sequence, first }, both) in batch.iter().zip(pair.records(&sequences)?) {
            let Some(part) = first_difference(&both.0, &both.1) else {
                // It differed once, and not again: that is worth knowing, too.
                match changed(first, &both) {
                    None => report.unsteady.push(sequence.name.clone()),
                    Some(how) => report.differing.push(format!("{} ({how})", sequence.name)),
                }
                continue;
            };
            let guest = both.1;
            if let Some(meant) = explain(sequence, &part) {
                *report.meant.entry(meant.name).or_default() += 1;
                continue;
            }
            report.differing.push(sequence.name.clone());
            let kind = kind(sequence, &part, &guest);
            kinds.entry(kind).or_insert_with(|| (sequence.clone(), 0)).1 += 1;
        }
    }
    for (kind, (sequence, count)) in kinds.into_iter().take(args.findings) {
        let bar = ProgressBar::new_spinner();
        let shortest = pair.shrink(&sequence, &|calls| {
            bar.set_message(format!("{}: {kind}: {calls} calls", sequence.name));
            bar.tick();
        })?;
        bar.finish_and_clear();
        let records = pair.records(std::slice::from_ref(&shortest))?;
        let part = records.first().and_then(|(linux, guest)| first_difference(linux, guest));
        report.findings.push(Finding::new(&sequence.name, &shortest, part.unwrap_or_default(), count));
    }
    Ok(())
}
