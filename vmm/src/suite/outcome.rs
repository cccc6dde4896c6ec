//! What came of a case.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::case::Bed;
use super::samples::Series;

/// What came of a case or of a part of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subcase {
    /// Name within the case; parents first, separated by slashes.
    pub name: String,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What the audits of a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// What a run took of its VMM, as far as the bed can tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Exits to the VMM by reason, of all CPUs; `None` where the VMM is not memvisor.
    pub exits: Option<BTreeMap<String, u64>>,
    /// Instructions that KVM emulated: where it emulates ring 0, nearly all that the guest's kernel executed.
    /// `None` where the bed does not count.
    pub emulated_instructions: Option<u64>,
}

impl Usage {
    /// Adds what another run took.
    pub fn add(&mut self, other: &Usage) {
        for (reason, count) in other.exits.iter().flatten() {
            *self.exits.get_or_insert_default().entry(reason.clone()).or_default() += count;
        }
        if let Some(count) = other.emulated_instructions {
            *self.emulated_instructions.get_or_insert(0) += count;
        }
    }

    /// All exits; `None` if they are not known.
    pub fn exit_count(&self) -> Option<u64> {
        Some(self.exits.as_ref()?.values().sum())
    }

    /// In words, reasons with most exits first; `None` if nothing is known.
    pub fn describe(&self) -> Option<String> {
        let mut reasons: Vec<(&String, &u64)> =
            self.exits.as_ref()?.iter().filter(|(_, count)| **count > 0).collect();
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let reasons: Vec<String> =
            reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        let mut text = format!("{} exits", self.exit_count()?);
        if !reasons.is_empty() {
            text.push_str(&format!(" ({})", reasons.join(", ")));
        }
        if let Some(count) = self.emulated_instructions {
            text.push_str(&format!(", {count} instructions emulated"));
        }
        Some(text)
    }
}

/// What came of a case, and what it left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaseResult {
    /// `suite/case`.
    pub name: String,
    /// Where it ran.
    pub bed: Bed,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Wall-clock time in seconds.
    #[serde(rename = "seconds", serialize_with = "as_seconds", deserialize_with = "from_seconds")]
    pub time: Duration,
    /// What the audits came to.
    pub audits: Audits,
    /// Exits and instructions.
    pub usage: Usage,
    /// Tests that the guest reported and probes.
    pub subcases: Vec<Subcase>,
    /// What its memory looked like while it ran, if somebody looked.
    #[serde(default, skip_serializing_if = "Series::is_empty")]
    pub samples: Series,
    /// The guest's console; a JSON report has it of cases that failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
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

/// Reads a time in seconds.
pub(super) fn from_seconds<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
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
    pub fn of<'a>(results: impl IntoIterator<Item = &'a CaseResult>) -> Totals {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(exits: &[(&str, u64)], emulated_instructions: Option<u64>) -> Usage {
        let exits = exits.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect();
        Usage { exits: Some(exits), emulated_instructions }
    }

    #[test]
    fn usage_adds_up_by_reason_and_says_the_frequent_first() {
        let mut sum = Usage::default();
        assert_eq!((sum.describe(), sum.exit_count()), (None, None));
        sum.add(&usage(&[("hlt", 2), ("io_out", 5), ("other", 0)], Some(100)));
        sum.add(&usage(&[("hlt", 1)], None));
        sum.add(&Usage::default());
        assert_eq!(sum.describe().as_deref(), Some("8 exits (io_out 5, hlt 3), 100 instructions emulated"));
        assert_eq!(sum.exit_count(), Some(8));
    }
}
