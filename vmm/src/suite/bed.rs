//! What beds have in common: a run as it was observed, and the judgement on it.

use std::collections::BTreeSet;

use super::case::{Case, Ending, Setup};
use super::outcome::{Audits, Outcome, Subcase, Usage};
use super::samples::Series;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The guest powered off cleanly.
    Clean,
    /// The guest gave up: what its exit code means.
    Guest(u8, &'static str),
    /// The machine was not started.
    Refused,
    /// Anything else, in words.
    Other(String),
}

/// One audit of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Rules that ran.
    pub rules: usize,
    /// RAM frames covered.
    pub frames: u64,
    /// All findings.
    pub findings: usize,
    /// Rules that found something.
    pub found: BTreeSet<String>,
    /// The first findings in words.
    pub examples: Vec<String>,
}

/// Findings quoted in a failure.
pub const EXAMPLES: usize = 3;

/// Lines quoted of a console: what a program says before its verdict is among them.
const LAST_LINES: usize = 25;

/// A run as it was observed.
#[derive(Clone, Debug)]
pub struct Observed {
    /// How it ended.
    pub ended: Ended,
    /// The guest's console.
    pub console: String,
    /// Error output of the VMM.
    pub messages: String,
    /// The audits in order.
    pub audits: Vec<Audit>,
    /// What the run took of its VMM.
    pub usage: Usage,
    /// What the probes came to.
    pub probes: Vec<Subcase>,
    /// What went wrong with the run itself.
    pub problems: Vec<String>,
    /// What its memory looked like meanwhile, if it was watched.
    pub samples: Series,
}

impl Observed {
    /// Sums the audits up.
    pub fn audits(&self) -> Audits {
        let found: BTreeSet<&String> = self.audits.iter().flat_map(|audit| &audit.found).collect();
        Audits {
            count: self.audits.len(),
            rules: self.audits.last().map_or(0, |audit| audit.rules),
            frames: self.audits.last().map_or(0, |audit| audit.frames),
            findings: self.audits.iter().map(|audit| audit.findings).sum(),
            found: found.into_iter().cloned().collect(),
        }
    }
}

/// Compares what was observed with what the case expects. `parts` are the tests that the guest reported.
pub fn judge(case: &Case, observed: &Observed, parts: &[Subcase]) -> Outcome {
    let expect = &case.expect;
    let audits = observed.audits();
    let mut problems = Vec::new();

    match (expect.exit, &observed.ended) {
        (Ending::Clean | Ending::Findings, Ended::Clean)
        | (Ending::Refused, Ended::Refused)
        | (Ending::Panic, Ended::Guest(101 | 102, _)) => {}
        (expected, ended) => problems.push(unexpected_end(expected, ended, observed)),
    }
    problems.extend_from_slice(&observed.problems);
    if matches!(expect.exit, Ending::Clean | Ending::Findings) {
        // A foreign kernel publishes nothing that could be audited.
        let is_foreign = matches!(&case.setup, Setup::Kvm(setup) if setup.linux.is_some());
        if !is_foreign && observed.audits.iter().all(|audit| audit.rules == 0 || audit.frames == 0) {
            problems.push("no audit took place, so nothing is proved".to_owned());
        }
        for rule in expect.findings.iter().filter(|rule| !audits.found.contains(rule)) {
            let instead = match audits.found.join(", ") {
                none if none.is_empty() => "nothing".to_owned(),
                found => found,
            };
            problems.push(format!("rule {rule} must report something; the audits report {instead}"));
        }
    }
    if expect.exit == Ending::Clean && audits.findings > 0 {
        problems.push(format!("{} findings by {}", audits.findings, audits.found.join(", ")));
        let examples = observed.audits.iter().flat_map(|audit| &audit.examples).take(EXAMPLES);
        problems.extend(examples.map(|example| format!("finding: {example}")));
    }
    for text in expect.console.iter().filter(|text| !observed.console.contains(*text)) {
        problems.push(format!("the console lacks {text:?}"));
    }
    for text in expect.not_console.iter().filter(|text| observed.console.contains(*text)) {
        let lines = observed.console.lines().filter(|line| line.contains(text.as_str())).take(EXAMPLES);
        let held: Vec<&str> = lines.map(str::trim).collect();
        problems.push(format!("the console must not hold {text:?}: {}", held.join("; ")));
    }
    for text in expect.message.iter().filter(|text| !observed.messages.contains(*text)) {
        problems.push(format!("the error output lacks {text:?}: {}", first_lines(&observed.messages)));
    }
    for part in parts.iter().chain(&observed.probes) {
        if let Outcome::Failed(reasons) = &part.outcome {
            problems.push(format!("{}: {}", part.name, reasons.join("; ")));
        }
    }
    for probe in &expect.probes {
        if !observed.probes.iter().any(|part| part.name == probe.name()) {
            problems.push(format!("probe {} did not get its turn", probe.name()));
        }
    }
    Outcome::from_problems(problems)
}

fn unexpected_end(expected: Ending, ended: &Ended, observed: &Observed) -> String {
    let expected = match expected {
        Ending::Clean | Ending::Findings => "a clean power-off",
        Ending::Panic => "a panic or trap of the guest",
        Ending::Refused => "that the VMM refuses this machine",
    };
    let words = match ended {
        Ended::Clean => "the guest powered off cleanly".to_owned(),
        Ended::Guest(code, meaning) => format!("exit code {code} ({meaning})"),
        Ended::Refused => format!("the VMM refused: {}", first_lines(&observed.messages)),
        Ended::Other(text) => text.clone(),
    };
    let cause = match report_of(&observed.console) {
        Some(report) if !matches!(ended, Ended::Clean | Ended::Refused) => format!("; {report}"),
        _ => String::new(),
    };
    let last = match last_lines(&observed.console, LAST_LINES) {
        none if none.is_empty() => "the console is empty".to_owned(),
        lines => format!("the console ends:\n  {}", lines.join("\n  ")),
    };
    format!("expected {expected}, got: {words}{cause}\n{last}")
}

/// The first line of the guest's own report of its end, which registers and a call trace follow.
fn report_of(console: &str) -> Option<&str> {
    let heads = ["Kernel panic", "Oops: "];
    console.lines().rev().map(str::trim).find(|line| heads.iter().any(|head| line.contains(head)))
}

/// The last `most` lines of a text that are not empty.
pub fn last_lines(text: &str, most: usize) -> Vec<&str> {
    let mut lines: Vec<&str> =
        text.lines().rev().map(str::trim).filter(|line| !line.is_empty()).take(most).collect();
    lines.reverse();
    lines
}

fn first_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).take(3).collect();
    if lines.is_empty() { "it is empty".to_owned() } else { lines.join(" / ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::case::parse;

    fn case(expect: &str) -> Case {
        let text = format!(
            "[[case]]\nname = \"boot/x\"\ndescription = \"d\"\nkvm = {{ machine = \"tiny\" }}\n\
             [case.expect]\n{expect}\n"
        );
        parse("boot", &text).unwrap().remove(0)
    }

    fn audited(found: &[&str]) -> Observed {
        let audit = Audit {
            rules: 30,
            frames: 8192,
            findings: found.len(),
            found: found.iter().map(|&rule| rule.to_owned()).collect(),
            examples: found.iter().map(|rule| format!("{rule}: pfn 0x1")).collect(),
        };
        Observed {
            ended: Ended::Clean,
            console: "memvisor: hello\n".to_owned(),
            messages: String::new(),
            audits: vec![audit],
            usage: Usage::default(),
            probes: Vec::new(),
            problems: Vec::new(),
            samples: Series::default(),
        }
    }

    fn problems(expect: &str, observed: &Observed) -> String {
        match judge(&case(expect), observed, &[]) {
            Outcome::Passed => String::new(),
            Outcome::Failed(reasons) => reasons.join("\n"),
            Outcome::Skipped(reason) => panic!("{reason}"),
        }
    }

    #[test]
    fn a_clean_run_with_a_clean_audit_passes() {
        assert_eq!(problems("", &audited(&[])), "");
    }

    #[test]
    fn a_run_without_an_audit_proves_nothing() {
        let mut observed = audited(&[]);
        observed.audits.clear();
        assert!(problems("", &observed).contains("no audit"));
        observed.audits.push(Audit::default());
        assert!(problems("", &observed).contains("no audit"));
    }

    #[test]
    fn findings_fail_a_run_that_must_be_clean_and_are_quoted() {
        let text = problems("", &audited(&["owner.none"]));
        assert!(text.contains("1 findings by owner.none") && text.contains("pfn 0x1"), "{text}");
    }

    #[test]
    fn a_seeded_fault_passes_only_if_the_rule_meant_reports_it() {
        let expect = "exit = \"findings\"\nfindings = [\"buddy.merge\"]";
        assert_eq!(problems(expect, &audited(&["buddy.merge", "buddy.nr_free"])), "");
        assert!(problems(expect, &audited(&["buddy.nr_free"])).contains("buddy.merge must report"));
        assert!(problems(expect, &audited(&[])).contains("report nothing"));
    }

    #[test]
    fn the_console_decides_both_ways() {
        assert!(problems("console = [\"bye\"]", &audited(&[])).contains("lacks \"bye\""));
        assert!(
            problems("not_console = [\"hello\"]", &audited(&[]))
                .contains("must not hold \"hello\": memvisor: hello")
        );
    }

    #[test]
    fn a_panic_is_not_a_clean_end_and_the_last_line_is_shown() {
        let mut observed = audited(&[]);
        observed.ended = Ended::Guest(101, "the guest kernel panicked");
        let text = problems("", &observed);
        assert!(text.contains("101") && text.contains("memvisor: hello"), "{text}");
        observed.console = "Kernel panic - not syncing: why (CPU 0)\n  at x.rs:1\nCall Trace:\n".to_owned()
            + &"  [<0x1>]\n".repeat(LAST_LINES);
        let text = problems("", &observed);
        assert!(text.lines().next().unwrap().contains("not syncing: why"), "{text}");
        assert_eq!(text.lines().count(), 1 + 1 + LAST_LINES, "{text}");
        assert_eq!(problems("exit = \"panic\"", &observed), "");
    }

    #[test]
    fn a_refusal_needs_the_right_message() {
        let mut observed = audited(&[]);
        (observed.ended, observed.messages) = (Ended::Refused, "error: no LA57 here\n".to_owned());
        observed.audits.clear();
        assert_eq!(problems("exit = \"refused\"\nmessage = [\"LA57\"]", &observed), "");
        assert!(problems("exit = \"refused\"\nmessage = [\"disk\"]", &observed).contains("no LA57"));
    }

    #[test]
    fn a_probe_that_fails_or_never_runs_fails_the_case() {
        let expect = "probes = [\"translate-agrees\"]";
        let mut observed = audited(&[]);
        assert!(problems(expect, &observed).contains("did not get its turn"));
        let part = |outcome| Subcase { name: "translate-agrees".to_owned(), outcome };
        observed.probes = vec![part(Outcome::Passed)];
        assert_eq!(problems(expect, &observed), "");
        observed.probes = vec![part(Outcome::Failed(vec!["0x1: differs".to_owned()]))];
        assert!(problems(expect, &observed).contains("0x1: differs"));
    }
}
