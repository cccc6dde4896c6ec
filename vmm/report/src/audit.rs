//! A whole audit.

use std::collections::BTreeMap;
use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::{Align, Finding, Table};

/// Findings of a rule that text shows; the rest is a count.
pub const PRINTED_PER_RULE: usize = 20;
/// Findings of a rule that an audit keeps in memory; further ones are counted only.
pub const KEPT_PER_RULE: usize = 200;
/// Cells of the owner picture.
const BAR_CELLS: u64 = 64;

/// What one rule did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleResult {
    /// Stable dotted name.
    pub name: &'static str,
    /// The invariant in words.
    pub invariant: &'static str,
    /// Objects that were compared (frames, blocks, leaves, ...).
    pub checked: u64,
    /// Findings, all of them.
    pub findings: usize,
    /// Why the rule could not run, if it could not.
    pub skipped: Option<String>,
}

/// The result of an audit.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AuditReport {
    /// Every rule, in the order in which they ran.
    pub rules: Vec<RuleResult>,
    /// RAM frames whose owner was derived.
    pub frames_audited: u64,
    /// Bytes of E820 RAM (whole frames).
    pub ram_bytes: u64,
    /// Frames by owner.
    pub owners: BTreeMap<&'static str, u64>,
    /// At most [`KEPT_PER_RULE`] findings a rule; [`RuleResult::findings`] has the full count.
    pub findings: Vec<Finding>,
    /// What a reader of the report must know, a line each: evidence that was missing and what stood
    /// in for it.
    pub notes: Vec<String>,
    /// Wall-clock time of the audit, in JSON as `duration_us`.
    #[serde(rename = "duration_us", serialize_with = "as_microseconds")]
    pub duration: Duration,
}

fn as_microseconds<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

impl AuditReport {
    /// Exit code of a process whose audit found something. Distinct from 1 (an error stopped the
    /// command) and 2 (wrong usage).
    pub const EXIT_FINDINGS: u8 = 3;

    /// All findings, printed or not.
    pub fn count(&self) -> usize {
        self.rules.iter().map(|rule| rule.findings).sum()
    }

    /// Rules that ran.
    pub fn ran(&self) -> usize {
        self.rules.iter().filter(|rule| rule.skipped.is_none()).count()
    }

    /// Rules that could not run, with the reason.
    pub fn skipped(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.rules.iter().filter_map(|rule| Some((rule.name, rule.skipped.as_deref()?)))
    }

    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.count() == 0
    }

    /// Findings of one rule that were kept.
    pub fn of<'a>(&'a self, rule: &'a str) -> impl Iterator<Item = &'a Finding> {
        self.findings.iter().filter(move |finding| finding.rule == rule)
    }

    /// 0 for a clean audit, else [`AuditReport::EXIT_FINDINGS`].
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(if self.is_clean() { 0 } else { Self::EXIT_FINDINGS })
    }

    /// The closing line, without a newline.
    pub fn summary(&self) -> String {
        format!("audit: {} rules, {} frames, {} findings", self.ran(), self.frames_audited, self.count())
    }

    /// The report as pretty JSON.
    ///
    /// # Errors
    /// Only if the serializer fails, which it does not for these types.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }

    fn rule_table(&self) -> Table {
        let mut table = Table::new(["rule", "checked", "findings", "invariant"])
            .align(1, Align::Right)
            .align(2, Align::Right);
        for rule in &self.rules {
            let (checked, findings) = match rule.skipped {
                Some(_) => ("-".to_owned(), "SKIPPED".to_owned()),
                None => (rule.checked.to_string(), rule.findings.to_string()),
            };
            table.row([rule.name.to_owned(), checked, findings, rule.invariant.to_owned()]);
        }
        table
    }

    /// One cell a share of RAM, at least one for every owner that has frames, in the order of the
    /// legend.
    fn owner_bar(&self) -> String {
        let total: u64 = self.owners.values().sum();
        let mut letters = Vec::new();
        let mut bar = String::new();
        let mut legend =
            Table::new(["", "owner", "frames", "share"]).align(2, Align::Right).align(3, Align::Right);
        for (&owner, &frames) in self.owners.iter().filter(|(_, frames)| **frames > 0) {
            let letter = pick_letter(owner, &letters);
            letters.push(letter);
            let cells = u128::from(frames) * u128::from(BAR_CELLS) / u128::from(total.max(1));
            let cells = usize::try_from(cells).unwrap_or(0).max(1);
            bar.extend(std::iter::repeat_n(letter, cells));
            let permille = u128::from(frames) * 1000 / u128::from(total.max(1));
            legend.row([
                letter.to_string(),
                owner.to_owned(),
                frames.to_string(),
                format!("{}.{}%", permille / 10, permille % 10),
            ]);
        }
        format!("owners of {total} frames\n[{bar}]\n{legend}")
    }
}

/// First letter of the owner's name that no other owner took, or `?`.
fn pick_letter(owner: &str, taken: &[char]) -> char {
    let upper = owner.chars().map(|letter| letter.to_ascii_uppercase());
    owner
        .chars()
        .chain(upper)
        .find(|letter| letter.is_alphanumeric() && !taken.contains(letter))
        .unwrap_or('?')
}

impl fmt::Display for AuditReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.rule_table())?;
        if !self.owners.is_empty() {
            writeln!(f, "{}", self.owner_bar())?;
        }
        for rule in self.rules.iter().filter(|rule| rule.findings > 0) {
            for finding in self.of(rule.name).take(PRINTED_PER_RULE) {
                writeln!(f, "{finding}")?;
            }
            if rule.findings > PRINTED_PER_RULE {
                writeln!(f, "    ... and {} more of {}", rule.findings - PRINTED_PER_RULE, rule.name)?;
            }
        }
        let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, reason) in self.skipped() {
            reasons.entry(reason).or_default().push(name);
        }
        for (reason, names) in reasons {
            writeln!(f, "SKIPPED {} rules, because {reason}: {}", names.len(), names.join(" "))?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        writeln!(f, "{} MiB of RAM audited in {:.1?}", self.ram_bytes >> 20, self.duration)?;
        writeln!(f, "{}", self.summary())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &'static str, findings: usize, skipped: Option<&str>) -> RuleResult {
        RuleResult { name, invariant: "holds", checked: 5, findings, skipped: skipped.map(str::to_owned) }
    }

    fn report(findings: usize) -> AuditReport {
        AuditReport {
            rules: vec![rule("a.one", findings, None), rule("b.two", 0, Some("no registers"))],
            frames_audited: 100,
            ram_bytes: 100 << 12,
            owners: BTreeMap::from([("buddy", 75), ("kernel image", 25), ("user", 0)]),
            findings: (0..findings.min(KEPT_PER_RULE) as u64)
                .map(|pfn| Finding::new("a.one", "frame", "x", "y").frame(pfn))
                .collect(),
            notes: vec!["the registers are missing".to_owned()],
            duration: Duration::from_micros(1500),
        }
    }

    #[test]
    fn the_last_line_has_the_promised_form_and_counts_rules_that_ran() {
        let text = report(0).to_string();
        assert_eq!(text.lines().last(), Some("audit: 1 rules, 100 frames, 0 findings"));
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn findings_past_the_cap_are_counted_and_not_printed() {
        let text = report(250).to_string();
        assert_eq!(text.matches("error: a.one").count(), PRINTED_PER_RULE);
        assert!(text.contains("... and 230 more of a.one"), "{text}");
        assert_eq!(text.lines().last(), Some("audit: 1 rules, 100 frames, 250 findings"));
    }

    #[test]
    fn skipped_rules_are_loud() {
        assert!(report(0).to_string().contains("SKIPPED 1 rules, because no registers: b.two"));
        assert!(report(0).to_string().contains("note: the registers are missing\n"));
    }

    #[test]
    fn the_owner_bar_is_proportional_and_omits_empty_owners() {
        let text = report(0).to_string();
        let bar = text.lines().find(|line| line.starts_with('[')).unwrap();
        assert_eq!(bar.matches('b').count(), 48);
        assert_eq!(bar.matches('k').count(), 16);
        assert!(!text.contains("user"));
        assert!(text.contains("75.0%"));
    }

    #[test]
    fn every_owner_gets_its_own_letter() {
        let owners = ["memmap", "memblock", "mm", "m"];
        let mut taken = Vec::new();
        for owner in owners {
            let letter = pick_letter(owner, &taken);
            assert!(!taken.contains(&letter));
            taken.push(letter);
        }
    }

    #[test]
    fn json_has_the_counts_the_findings_and_the_duration() {
        let value: serde_json::Value = serde_json::from_str(&report(2).to_json().unwrap()).unwrap();
        assert_eq!(value["duration_us"], 1500);
        assert_eq!(value["rules"][1]["skipped"], "no registers");
        assert_eq!(value["findings"][1]["frame"], 1);
        assert_eq!(value["owners"]["buddy"], 75);
        assert_eq!(value["findings"][0]["severity"], "error");
    }

    #[test]
    fn the_exit_code_tells_findings_from_a_clean_audit() {
        assert_eq!(format!("{:?}", report(0).exit_code()), format!("{:?}", ExitCode::SUCCESS));
        assert_ne!(format!("{:?}", report(1).exit_code()), format!("{:?}", ExitCode::SUCCESS));
    }
}
