//! What a person sees while cases run: one line a case, and on a terminal what is running now.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::case::{Bed, Case};
use super::outcome::{CaseResult, Outcome, Totals, Usage};

/// Prints results as they come.
#[derive(Debug)]
pub struct Show {
    bar: ProgressBar,
}

impl Show {
    /// Begins a run of `count` cases.
    pub fn new(count: usize) -> Show {
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new(u64::try_from(count).unwrap_or(u64::MAX))
        } else {
            ProgressBar::hidden()
        };
        if let Ok(style) = ProgressStyle::with_template("{spinner} [{pos}/{len}] {elapsed} {wide_msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Show { bar }
    }

    /// A case begins.
    pub fn start(&self, case: &Case) {
        self.bar.set_message(format!("{} [{}]", case.name, case.bed.name()));
    }

    /// A case ended.
    pub fn finish(&self, result: &CaseResult) {
        let text = line(result);
        self.bar.suspend(|| print(&text));
        self.bar.inc(1);
    }

    /// All ended: prints what could not be tried, by reason, and the closing line.
    pub fn close(self, results: &[CaseResult], time: Duration) {
        self.bar.finish_and_clear();
        print(&closing(results, time));
    }
}

/// A reader that has gone away is no reason to stop testing.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

/// The line of a case; a failure's further reasons and failed parts follow, indented.
fn line(result: &CaseResult) -> String {
    let head = format!("{} [{}]", result.name, result.bed.name());
    let time = result.time.as_secs_f64();
    match &result.outcome {
        Outcome::Passed => {
            let parts = parts(result);
            let audits = match &result.audits {
                audits if audits.count == 0 => String::new(),
                audits => format!(
                    "  {} audits, {} rules, {} frames, {} findings",
                    audits.count, audits.rules, audits.frames, audits.findings
                ),
            };
            let exits = result.usage.exit_count().map_or(String::new(), |count| format!(", {count} exits"));
            format!("PASS {head:<44} {time:6.1} s{audits}{exits}{parts}")
        }
        Outcome::Skipped(reason) => format!("SKIP {head}: {reason}"),
        Outcome::Failed(reasons) => {
            let mut text = format!("FAIL {head:<44} {time:6.1} s");
            for (index, reason) in reasons.iter().enumerate() {
                let lead = if index == 0 { ": " } else { "\n     " };
                text.push_str(lead);
                text.push_str(&reason.replace('\n', "\n     "));
            }
            text
        }
    }
}

/// How many parts a case has, and each that was skipped with its reason.
fn parts(result: &CaseResult) -> String {
    if result.subcases.is_empty() {
        return String::new();
    }
    let mut text = format!(", {} parts", result.subcases.len());
    for part in &result.subcases {
        if let Outcome::Skipped(reason) = &part.outcome {
            text.push_str(&format!("\n     SKIPPED {}: {reason}", part.name));
        }
    }
    text
}

fn closing(results: &[CaseResult], time: Duration) -> String {
    let mut text = String::new();
    let mut reasons: Vec<(&str, usize)> = Vec::new();
    for result in results {
        let Outcome::Skipped(reason) = &result.outcome else { continue };
        match reasons.iter_mut().find(|(known, _)| known == reason) {
            Some((_, count)) => *count += 1,
            None => reasons.push((reason, 1)),
        }
    }
    for (reason, count) in reasons {
        text.push_str(&format!("NOT RUN: {count} cases: {reason}\n"));
    }
    for bed in [Bed::Kvm, Bed::Nested] {
        let mut usage = Usage::default();
        results.iter().filter(|result| result.bed == bed).for_each(|result| usage.add(&result.usage));
        if let Some(words) = usage.describe() {
            text.push_str(&format!("bed {}: {words}\n", bed.name()));
        }
    }
    let Totals { passed, failed, skipped } = Totals::of(results);
    text.push_str(&format!(
        "suites: {passed} passed, {failed} failed, {skipped} skipped in {:.0} s",
        time.as_secs_f64()
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::outcome::Audits;

    fn result(outcome: Outcome) -> CaseResult {
        CaseResult {
            name: "boot/a".to_owned(),
            bed: Bed::Qemu,
            outcome,
            time: Duration::from_millis(1250),
            audits: Audits::default(),
            usage: Usage::default(),
            samples: crate::suite::samples::Series::default(),
            subcases: Vec::new(),
            console: String::new(),
        }
    }

    #[test]
    fn a_skipped_case_says_why_twice() {
        let skipped = result(Outcome::Skipped("no QEMU: install it".to_owned()));
        assert_eq!(line(&skipped), "SKIP boot/a [qemu]: no QEMU: install it");
        let end = closing(&[skipped.clone(), skipped], Duration::from_secs(2));
        assert_eq!(
            end,
            "NOT RUN: 2 cases: no QEMU: install it\nsuites: 0 passed, 0 failed, 2 skipped in 2 s"
        );
    }

    #[test]
    fn a_skipped_part_says_why() {
        let mut passed = result(Outcome::Passed);
        let outcome = Outcome::Skipped("one CPU".to_owned());
        passed.subcases.push(crate::suite::outcome::Subcase { name: "shootdown".to_owned(), outcome });
        assert!(line(&passed).ends_with(", 1 parts\n     SKIPPED shootdown: one CPU"), "{}", line(&passed));
    }

    #[test]
    fn exits_are_told_by_case_and_by_bed() {
        let exits = Some([("hlt".to_owned(), 7)].into());
        let usage = Usage { exits, emulated_instructions: None };
        let passed = CaseResult { bed: Bed::Kvm, usage, ..result(Outcome::Passed) };
        assert!(line(&passed).ends_with(", 7 exits"), "{}", line(&passed));
        let end = closing(&[passed.clone(), passed], Duration::ZERO);
        assert!(end.starts_with("bed kvm: 14 exits (hlt 14)\nsuites: 2 passed"), "{end}");
    }

    #[test]
    fn a_failed_case_is_one_line_with_its_reasons_below() {
        let failed = result(Outcome::Failed(vec!["first".to_owned(), "second".to_owned()]));
        let text = line(&failed);
        assert!(text.starts_with("FAIL boot/a [qemu]") && text.ends_with("s: first\n     second"), "{text}");
    }
}
