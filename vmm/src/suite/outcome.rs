//! What came of a case.

use std::time::Duration;

use serde::Serialize;

use super::case::Bed;

/// What came of a case or of a part of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", content = "reason", rename_all = "lowercase")]
pub enum Outcome {
    /// As expected.
    Passed,
    /// Not as expected; each reason is a sentence.
    Failed(Vec<String>),
    /// Could not be tried here, for this reason.
    Skipped(String),
}

impl Outcome {
    /// [`Outcome::Failed`] if there are reasons, else [`Outcome::Passed`].
    pub fn from_problems(problems: Vec<String>) -> Outcome {
        if problems.is_empty() { Outcome::Passed } else { Outcome::Failed(problems) }
    }
}

/// A test that the guest, or a probe, reported within a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Subcase {
    /// Name within the case; parents first, separated by slashes.
    pub name: String,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What the audits of a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Audits {
    /// Audits made.
    pub count: usize,
    /// Rules that the last of them ran.
    pub rules: usize,
    /// Frames that the last of them covered.
    pub frames: u64,
    /// Findings of all of them.
    pub findings: usize,
    /// Names of the rules that found something, without repetition, ascending.
    pub found: Vec<String>,
}

/// What came of a case, and what it left.
#[derive(Clone, Debug, Serialize)]
pub struct CaseResult {
    /// `suite/case`.
    pub name: String,
    /// Where it ran.
    pub bed: Bed,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Wall-clock time in seconds.
    #[serde(rename = "seconds", serialize_with = "as_seconds")]
    pub time: Duration,
    /// What the audits came to.
    pub audits: Audits,
    /// Tests that the guest reported and probes.
    pub subcases: Vec<Subcase>,
    /// The guest's console.
    #[serde(skip)]
    pub console: String,
}

impl CaseResult {
    /// The part of the name before the slash.
    pub fn suite(&self) -> &str {
        self.name.split('/').next().unwrap_or(&self.name)
    }
}

fn as_seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

/// Counts of outcomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Cases that passed.
    pub passed: usize,
    /// Cases that failed.
    pub failed: usize,
    /// Cases that could not be tried.
    pub skipped: usize,
}

impl Totals {
    /// Counts results.
    pub fn of(results: &[CaseResult]) -> Totals {
        let mut totals = Totals::default();
        for result in results {
            match result.outcome {
                Outcome::Passed => totals.passed += 1,
                Outcome::Failed(_) => totals.failed += 1,
                Outcome::Skipped(_) => totals.skipped += 1,
            }
        }
        totals
    }
}
