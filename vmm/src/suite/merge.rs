//! Results of several runs as one report: what the shares of a selection came to (`memvisor report`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use super::outcome::Totals;
use super::report::{self, ReportFile};
use crate::cli::BadInput;

/// Arguments of `memvisor report`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example, for three machines that each ran a share:
  memvisor test pressure --shard 1/3 --samples --report json=1.json     (2/3 and 3/3 elsewhere)
  memvisor report 1.json 2.json 3.json --report html=all.html --report junit=all.xml")]
pub struct ReportArgs {
    /// Results that `memvisor test --report json=FILE` wrote
    #[arg(value_name = "FILE", required = true)]
    pub results: Vec<PathBuf>,
    /// Write them to a file: html=FILE, junit=FILE, json=FILE or ktap=FILE; may be repeated
    #[arg(long, value_name = "FORM=FILE", required = true)]
    pub report: Vec<ReportFile>,
}

/// Reads all results, writes the reports and prints the totals. The exit code is 1 if a case failed.
///
/// # Errors
/// A file that is no such report, a case that is in two of them, a report that cannot be written.
pub fn run(args: &ReportArgs) -> anyhow::Result<ExitCode> {
    let mut results = Vec::new();
    let mut longest = Duration::ZERO;
    let mut seen: BTreeMap<(String, &'static str), &Path> = BTreeMap::new();
    for path in &args.results {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read results {}", path.display()))?;
        let document = report::read_json(&text).map_err(|error| {
            BadInput(format!("{}: not results of `memvisor test`: {error}", path.display()))
        })?;
        for result in &document.cases {
            if let Some(other) = seen.insert((result.name.clone(), result.bed.name()), path) {
                let (name, bed) = (&result.name, result.bed.name());
                let (other, path) = (other.display(), path.display());
                return Err(BadInput(format!(
                    "{name} [{bed}] is in {other} and in {path}: give each share once"
                ))
                .into());
            }
        }
        // Shares run side by side.
        longest = longest.max(document.time);
        results.extend(document.cases);
    }
    for report in &args.report {
        report.write(&results, longest)?;
    }
    let totals = Totals::of(&results);
    println!("suites: {} passed, {} failed, {} skipped", totals.passed, totals.failed, totals.skipped);
    Ok(if totals.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
