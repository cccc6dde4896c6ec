//! Suites: cases from tests/cases, run on the beds, judged, reported (`memvisor test`).
//!
//! A case is a run of the guest on a machine. It passes if the run ends as its stanza says, the audits from
//! outside find what they must and nothing else, the tests that the guest reports pass, and the
//! probes that the stanza names agree. What cannot run here is skipped with the reason, and counted.

mod anchor;
pub mod bed;
pub mod case;
mod command;
mod images;
mod initrd;
pub mod ktap;
mod kvm;
mod linux;
pub mod matrix;
pub mod merge;
pub mod outcome;
mod outside;
mod probes;
mod prompt;
mod qemu;
mod qmp;
pub mod report;
pub mod samples;
pub mod select;
pub mod shard;
mod show;
mod stuck;

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::cli::BadInput;
use case::{Bed, Case, Length, Need, Setup};
use matrix::Matrix;
use outcome::{Audits, CaseResult, Outcome, Totals, Usage};
use report::ReportFile;
use samples::Series;
use shard::{Found, Shard};
use show::Show;

/// Exit code when no case failed because none could run; the numbers below are
/// [`crate::run::ExitStatus`].
pub const EXIT_NOTHING_RAN: u8 = 8;

/// Arguments of `memvisor test`.
#[derive(Clone, Debug, clap::Args)]
pub struct TestArgs {
    /// Suites, groups of suites (`pressure`) or cases to run, `*` for any characters; without one, all
    #[arg(value_name = "SUITE|GROUP|CASE")]
    pub names: Vec<String>,
    /// List the selected cases and run nothing
    #[arg(long)]
    pub list: bool,
    /// With --list: as JSON
    #[arg(long, requires = "list")]
    pub json: bool,
    /// Where to run
    #[arg(long, value_enum, default_value = "all")]
    pub bed: Beds,
    /// Only cases that need this of the host
    #[arg(long, value_name = "WHAT", value_enum)]
    pub needs: Option<Need>,
    /// Only cases that do not need this of the host
    #[arg(long, value_name = "WHAT", value_enum)]
    pub needs_not: Vec<Need>,
    /// Only cases of this length and shorter ones [default: long; with --matrix, which multiplies them: normal]
    #[arg(long, value_enum)]
    pub length: Option<Length>,
    /// Write the results to a file: html=FILE, junit=FILE, json=FILE or ktap=FILE; may be repeated
    #[arg(long, value_name = "FORM=FILE")]
    pub report: Vec<ReportFile>,
    /// Look at each guest's memory many times a second while it runs; an HTML report does, and shows it as plots, a JSON report
    /// lists what was seen
    #[arg(long)]
    pub samples: bool,
    /// Run the cases on each combination of machines, slab allocators, depths and CPUs: small, full, or a TOML file of axes
    #[arg(long, value_name = "NAME|FILE")]
    pub matrix: Option<String>,
    /// Run the I-th of N shares; else read from the environment of Kubernetes, Slurm or a CI matrix
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,
    /// Keep the guests' consoles in this folder
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// Seconds that a case may take, instead of what its stanza says
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// Cases that run at the same time [default: half of the CPUs]
    #[arg(long, value_name = "N")]
    pub jobs: Option<NonZeroUsize>,
    /// Test this guest kernel instead of the bundled one
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
}

/// Choice of beds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Beds {
    /// memvisor on this machine's /dev/kvm.
    Kvm,
    /// The guest image under QEMU's software CPU.
    Qemu,
    /// memvisor on a KVM that pages guests in two dimensions; `make test-nested` boots one.
    Nested,
    /// Kvm and qemu.
    All,
}

impl Beds {
    const fn list(self) -> &'static [Bed] {
        match self {
            Beds::Kvm => &[Bed::Kvm],
            Beds::Qemu => &[Bed::Qemu],
            Beds::Nested => &[Bed::Nested],
            Beds::All => &[Bed::Kvm, Bed::Qemu],
        }
    }
}

/// Lists or runs the selected cases. The exit code is 0 if none failed, 1 if one did, and
/// [`EXIT_NOTHING_RAN`] if there was nothing that could run.
///
/// # Errors
/// Unknown names, a share that cannot be told, broken case files, a report that cannot be written.
pub fn run(args: TestArgs) -> anyhow::Result<ExitCode> {
    let mut cases = case::load()?;
    if args.bed == Beds::Nested {
        cases = cases.into_iter().filter_map(Case::nested).collect();
    }
    let mut cases =
        select::select(cases, &args.names, args.bed.list()).map_err(|error| BadInput(error.to_string()))?;
    let length = args.length.unwrap_or(if args.matrix.is_some() { Length::Normal } else { Length::Long });
    cases.retain(|case| {
        case.length <= length
            && args.needs.is_none_or(|need| case.needs().contains(&need))
            && !args.needs_not.iter().any(|need| case.needs().contains(need))
    });
    if let Some(name) = &args.matrix {
        let matrix = Matrix::load(name).map_err(|error| BadInput(error.to_string()))?;
        cases = matrix.expand(&cases);
    }
    if let Some(shard) = share(args.shard)? {
        cases = shard.take(cases);
    }
    if let Some(seconds) = args.timeout {
        for case in &mut cases {
            case.timeout = Duration::from_secs(seconds);
        }
    }
    if args.list {
        return list(&cases, args.json);
    }

    let start = Instant::now();
    let watches = args.samples || args.report.iter().any(ReportFile::has_plots);
    let bench = Bench::new(&cases, args.kernel.as_deref(), watches)?;
    let results = bench.run_all(&cases, args.jobs.map_or_else(default_jobs, NonZeroUsize::get));
    if let Some(folder) = &args.keep {
        keep(folder, &results).with_context(|| format!("keep consoles in {}", folder.display()))?;
    }
    for report in &args.report {
        report.write(&results, start.elapsed())?;
    }
    let totals = Totals::of(&results);
    Ok(match (totals.failed, totals.passed) {
        (0, 0) => ExitCode::from(EXIT_NOTHING_RAN),
        (0, _) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// The share asked for, or found in the environment. Notes about it go to the error output.
fn share(asked: Option<Shard>) -> anyhow::Result<Option<Shard>> {
    if asked.is_some() {
        return Ok(asked);
    }
    Ok(match Shard::from_environment(|name| std::env::var(name).ok())? {
        Found::Nothing => None,
        Found::Share(shard, variable) => {
            eprintln!("note: share {shard} of the cases, by {variable} in the environment");
            Some(shard)
        }
        Found::NoCount { index, count } => {
            eprintln!(
                "note: {index} is set but {count} is not, so the cases are not divided: all of them run here"
            );
            None
        }
    })
}

fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(1, |cpus| cpus.get().div_ceil(2))
}

fn list(cases: &[Case], json: bool) -> anyhow::Result<ExitCode> {
    use std::io::Write;

    let mut out = std::io::stdout().lock();
    if json {
        let rows: Vec<_> = cases
            .iter()
            .map(|case| {
                serde_json::json!({
                    "name": case.name,
                    "suite": case.suite(),
                    "bed": case.bed,
                    "description": case.description,
                    "timeout_s": case.timeout.as_secs(),
                    "needs": case.needs(),
                    "length": case.length,
                })
            })
            .collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut suite = "";
    for case in cases {
        if case.suite() != suite {
            suite = case.suite();
            writeln!(out, "{suite}:")?;
        }
        writeln!(out, "  {:<44} {:<5} {}", case.name, case.bed.name(), case.description)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn keep(folder: &Path, results: &[CaseResult]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for result in results.iter().filter(|result| !result.console.is_empty()) {
        std::fs::write(folder.join(result.name.replace('/', "-") + ".log"), &result.console)?;
    }
    Ok(())
}

/// What cases share: which beds there are, and the guest image as a file.
struct Bench {
    no_kernel: Option<String>,
    // `None` if no case asks.
    host: Option<Result<kvm::Host, String>>,
    no_qemu: Option<String>,
    image: Option<PathBuf>,
    kernel: Option<PathBuf>,
    /// Whether guests are looked at while they run.
    watches: bool,
    // Held for bed nested only. What cannot be had there fails the cases themselves, with its reason.
    _anchor: Option<anchor::Anchor>,
    // Holds the image of the bundled guest.
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new(cases: &[Case], kernel: Option<&Path>, watches: bool) -> anyhow::Result<Bench> {
        let uses = |bed| cases.iter().any(|case| case.bed == bed);
        let folder = tempfile::tempdir()?;
        let image = match kernel {
            Some(path) => {
                // QEMU and the runs start elsewhere.
                Some(path.canonicalize().with_context(|| format!("kernel {}", path.display()))?)
            }
            None => outside::bundled_kernel(folder.path())?,
        };
        let no_kernel = image.is_none().then(|| {
            "this memvisor was built without a guest kernel: build with `make`, or pass --kernel FILE"
                .to_owned()
        });
        Ok(Bench {
            _anchor: uses(Bed::Nested).then(|| anchor::Anchor::hold().ok()).flatten(),
            no_kernel,
            host: (uses(Bed::Kvm) || uses(Bed::Nested))
                .then(|| kvm::Host::probe().map_err(|error| error.to_string())),
            no_qemu: uses(Bed::Qemu).then(qemu::missing).flatten(),
            kernel: kernel.and(image.clone()),
            image,
            watches,
            _folder: folder,
        })
    }

    /// Runs the cases, `jobs` at a time; the results are in the order of the cases. Those that may take longest
    /// begin first, so that none is left running alone at the end.
    fn run_all(&self, cases: &[Case], jobs: usize) -> Vec<CaseResult> {
        let start = Instant::now();
        let show = Show::new(cases.len());
        let mut order: Vec<(usize, &Case)> = cases.iter().enumerate().collect();
        order.sort_by_key(|(_, case)| std::cmp::Reverse(case.timeout));
        let queue: Mutex<VecDeque<(usize, &Case)>> = Mutex::new(order.into());
        let results = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..jobs.clamp(1, cases.len().max(1)) {
                scope.spawn(|| {
                    loop {
                        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                        let Some((index, case)) = next else { return };
                        show.start(case);
                        let result = self.run_case(case);
                        show.finish(&result);
                        results.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
                    }
                });
            }
        });
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_by_key(|(index, _)| *index);
        let results: Vec<CaseResult> = results.into_iter().map(|(_, result)| result).collect();
        show.close(&results, start.elapsed());
        results
    }

    /// Why a case cannot be tried here.
    fn missing(&self, case: &Case) -> Option<String> {
        if let Some(reason) = images::missing().filter(|_| !case.images.is_empty()) {
            return Some(reason.to_owned());
        }
        if let Some(reason) = case.initrd.as_deref().and_then(initrd::missing) {
            return Some(reason);
        }
        if self.no_kernel.is_some() || case.bed == Bed::Qemu {
            return self.no_kernel.clone().or_else(|| self.no_qemu.clone());
        }
        match self.host.as_ref()? {
            Err(reason) => Some(reason.clone()),
            Ok(host) => {
                // What makes the bed is a need of each of its cases.
                let bed = if case.bed == Bed::Nested { &[Need::SecondStage][..] } else { &[] };
                host.lacks(bed).or_else(|| host.lacks(case.needs())).map(str::to_owned)
            }
        }
    }

    fn run_case(&self, case: &Case) -> CaseResult {
        let start = Instant::now();
        let mut result = CaseResult {
            name: case.name.clone(),
            bed: case.bed,
            outcome: Outcome::Passed,
            time: Duration::ZERO,
            audits: Audits::default(),
            usage: Usage::default(),
            subcases: Vec::new(),
            samples: Series::default(),
            console: String::new(),
        };
        if let Some(reason) = self.missing(case) {
            result.outcome = Outcome::Skipped(reason);
            return result;
        }
        let deadline = start + case.timeout;
        match self.observe(case, deadline) {
            Ok(observed) => {
                let mut parts = ktap::parse(&observed.console);
                result.outcome = bed::judge(case, &observed, &parts);
                result.audits = observed.audits();
                result.usage = observed.usage;
                result.samples = observed.samples;
                parts.extend(observed.probes);
                result.subcases = parts;
                result.console = observed.console;
            }
            Err(error) => result.outcome = Outcome::Failed(vec![format!("{error:#}")]),
        }
        result.time = start.elapsed();
        result
    }

    /// Runs the case's guest, with its disks made before and checked after.
    fn observe(&self, case: &Case, deadline: Instant) -> anyhow::Result<bed::Observed> {
        let mut case = case.clone();
        if let Some(Ok(host)) = &self.host {
            host.fit(&mut case);
        }
        let _folder = images::make(&mut case.images)?;
        let mut observed = match (&case.setup, &self.image) {
            (Setup::Kvm(_), _) => kvm::run(&case, self.kernel.as_deref(), deadline, self.watches),
            (Setup::Qemu(setup), Some(image)) => qemu::run(&case, setup, image, deadline, self.watches),
            (Setup::Qemu(_), None) => Err(anyhow::anyhow!("no guest image")),
        }?;
        observed.probes.extend(images::examine(&case.images));
        Ok(observed)
    }
}
