//! Rules, and the book in which they record what they checked and found.

use std::collections::HashMap;
use std::fmt;

use memvisor_report::{Finding, KEPT_PER_RULE, RuleResult};

/// A rule: one invariant with a stable dotted name.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// `family.name`; never changes once released.
    pub name: &'static str,
    /// The invariant in one line.
    pub invariant: &'static str,
    /// What the rule looks at.
    pub reads: &'static str,
    /// The seeded faults of the guest that are meant for this rule.
    pub seeded: &'static [&'static str],
    /// Where a kernel developer should look first when it is broken.
    pub hint: &'static str,
}

/// Results of all rules so far. A rule that only declares itself has run and checked nothing.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    results: Vec<RuleResult>,
    kept: Vec<Finding>,
    places: HashMap<&'static str, usize>,
}

impl Ledger {
    /// A book with a line for each of `rules`.
    pub fn new(rules: &[&'static Rule]) -> Ledger {
        let mut ledger = Ledger::default();
        for rule in rules {
            ledger.line(rule);
        }
        ledger
    }

    /// `rule` compared `count` more objects.
    pub fn checked(&mut self, rule: &'static Rule, count: u64) {
        let line = self.line(rule);
        line.checked = line.checked.saturating_add(count);
    }

    /// Records a finding made by [`finding`].
    pub fn report(&mut self, rule: &'static Rule, finding: Finding) {
        let line = self.line(rule);
        line.findings += 1;
        if line.findings <= KEPT_PER_RULE {
            self.kept.push(finding);
        }
    }

    /// Compares two values that must be equal.
    pub fn expect_eq<T: PartialEq + fmt::Display>(
        &mut self,
        rule: &'static Rule,
        what: impl fmt::Display,
        guest: T,
        outside: T,
    ) {
        self.checked(rule, 1);
        if guest != outside {
            self.report(rule, finding(rule, what, guest.to_string(), outside.to_string()));
        }
    }

    /// `rule` cannot run; the first reason stays.
    pub fn skip(&mut self, rule: &'static Rule, reason: &str) {
        let line = self.line(rule);
        if line.skipped.is_none() {
            line.skipped = Some(reason.to_owned());
        }
    }

    /// `rule` did not run after all, whatever it found.
    pub fn withdraw(&mut self, rule: &'static Rule, reason: &str) {
        let line = self.line(rule);
        (line.checked, line.findings) = (0, 0);
        line.skipped.get_or_insert_with(|| reason.to_owned());
        self.kept.retain(|finding| finding.rule != rule.name);
    }

    /// Gives the results back, with `history` asked for each finding that names a frame.
    pub fn close(mut self, history: impl Fn(u64) -> Option<String>) -> (Vec<RuleResult>, Vec<Finding>) {
        for finding in &mut self.kept {
            finding.history = finding.frame.and_then(&history);
        }
        (self.results, self.kept)
    }

    fn line(&mut self, rule: &'static Rule) -> &mut RuleResult {
        let place = *self.places.entry(rule.name).or_insert_with(|| {
            self.results.push(RuleResult {
                name: rule.name,
                invariant: rule.invariant,
                checked: 0,
                findings: 0,
                skipped: None,
            });
            self.results.len() - 1
        });
        // Places are positions in a vector that only grows.
        &mut self.results[place]
    }
}

/// A finding of `rule`, with its hint.
pub(crate) fn finding(
    rule: &'static Rule,
    what: impl fmt::Display,
    guest: impl Into<String>,
    outside: impl Into<String>,
) -> Finding {
    Finding::new(rule.name, what, guest, outside).hint(rule.hint)
}
