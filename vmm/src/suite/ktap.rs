//! KTAP version 1: results that a guest prints on its console, and results that we print.
//!
//! The reader takes console output as it comes: lines that are not KTAP are passed over, subtests are
//! nested by two spaces a level and come before the result that sums them up. What the guest announced
//! and did not deliver is a failure. It never panics, whatever the guest prints.
//! Specification: Linux, Documentation/dev-tools/ktap.rst.

use std::fmt::Write;

use super::outcome::{Outcome, Subcase};

/// Deepest nesting that is followed; deeper lines are passed over.
const MAX_DEPTH: usize = 8;

/// One level of nesting while it is read.
#[derive(Default)]
struct Level {
    /// Tests announced by `1..N`.
    plan: Option<u64>,
    /// Results read at this level itself.
    seen: u64,
    /// Results of this level, nested ones under their parents' names.
    results: Vec<Subcase>,
}

/// Reads the results out of console output. Empty if there are none.
pub fn parse(console: &str) -> Vec<Subcase> {
    let mut levels: Vec<Level> = Vec::new();
    for line in console.lines() {
        let text = line.trim_start_matches(' ');
        let indent = line.len() - text.len();
        let Some(read) = Line::read(text.trim_end()) else { continue };
        let depth = indent / 2;
        if indent % 2 != 0 || depth >= MAX_DEPTH {
            continue;
        }
        match read {
            Line::Version => {
                // A second version line at the same depth ends what stood there and starts anew.
                let results = drain(&mut levels, depth);
                levels.resize_with(depth, Level::default);
                levels.push(Level { results, ..Level::default() });
            }
            // Without a version line first, "ok 1" in a log means nothing.
            _ if levels.len() <= depth => {}
            Line::Plan(count) => levels[depth].plan = Some(count),
            Line::Result { name, outcome } => finish(&mut levels, depth, name, outcome),
            Line::Note(note) => {
                // Kernels explain a failure before or after its line; after it, whose it is, is plain.
                if let Some(Subcase { outcome: Outcome::Failed(reasons), .. }) =
                    levels[depth].results.last_mut()
                {
                    reasons.push(note);
                }
            }
            Line::BailOut(reason) => {
                let bailed = Subcase {
                    name: "bail out".to_owned(),
                    outcome: Outcome::Failed(vec![format!("the guest gave up: {reason}")]),
                };
                levels[depth].results.push(bailed);
            }
        }
    }
    drain(&mut levels, 0)
}

/// Takes the result of a test at `depth`, under which the deeper levels belong.
fn finish(levels: &mut Vec<Level>, depth: usize, name: String, outcome: Outcome) {
    let children = drain(levels, depth + 1);
    let explained = children.iter().any(|child| matches!(child.outcome, Outcome::Failed(_)));
    let Some(level) = levels.get_mut(depth) else { return };
    level.seen += 1;
    let leaf = children.is_empty();
    level.results.extend(
        children
            .into_iter()
            .map(|child| Subcase { name: format!("{name}/{}", child.name), outcome: child.outcome }),
    );
    // A parent only repeats what its children say, unless it fails and none of them does.
    if leaf || (matches!(outcome, Outcome::Failed(_)) && !explained) {
        level.results.push(Subcase { name, outcome });
    }
}

/// Removes the levels from `depth` on and returns their results, with a failure for what is missing.
fn drain(levels: &mut Vec<Level>, depth: usize) -> Vec<Subcase> {
    let mut below = Vec::new();
    while levels.len() > depth {
        let Some(mut level) = levels.pop() else { break };
        // Subtests whose sum never came: the guest stopped in between.
        level.results.append(&mut below);
        if let Some(plan) = level.plan.filter(|plan| *plan != level.seen) {
            let problem = format!("{plan} tests announced, {} reported", level.seen);
            level.results.push(Subcase { name: "plan".to_owned(), outcome: Outcome::Failed(vec![problem]) });
        }
        below = level.results;
    }
    below
}

enum Line {
    Version,
    Plan(u64),
    Result { name: String, outcome: Outcome },
    Note(String),
    BailOut(String),
}

impl Line {
    fn read(text: &str) -> Option<Line> {
        if text == "KTAP version 1" || text == "TAP version 14" {
            return Some(Line::Version);
        }
        if let Some(count) = text.strip_prefix("1..") {
            let digits = count.split_whitespace().next()?;
            return digits.parse().ok().map(Line::Plan);
        }
        if let Some(note) = text.strip_prefix("# ") {
            return Some(Line::Note(note.to_owned()));
        }
        if let Some(reason) = text.strip_prefix("Bail out!") {
            return Some(Line::BailOut(reason.trim().to_owned()));
        }
        let (passed, rest) = match text.strip_prefix("not ok ") {
            Some(rest) => (false, rest),
            None => (true, text.strip_prefix("ok ")?),
        };
        let (number, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let number: u64 = number.parse().ok()?;
        let rest = rest.trim_start();
        let rest = rest.strip_prefix("- ").unwrap_or(rest);
        let (name, directive) = match rest.split_once('#') {
            Some((name, directive)) => (name.trim_end(), directive.trim()),
            None => (rest, ""),
        };
        let name = if name.is_empty() { format!("test {number}") } else { name.to_owned() };
        Some(Line::Result { name, outcome: judge(passed, directive) })
    }
}

fn judge(passed: bool, directive: &str) -> Outcome {
    let (word, reason) = directive.split_once(' ').unwrap_or((directive, ""));
    match (passed, word) {
        (_, "SKIP") => {
            Outcome::Skipped(if reason.is_empty() { "no reason given" } else { reason }.to_owned())
        }
        (false, "TODO" | "XFAIL") => Outcome::Skipped(format!("expected to fail: {reason}")),
        (true, "TIMEOUT" | "ERROR") | (false, _) => {
            let said = if directive.is_empty() { "not ok" } else { directive };
            Outcome::Failed(vec![format!("the guest reports: {said}")])
        }
        (true, _) => Outcome::Passed,
    }
}

/// Results as KTAP, a level for each suite.
pub fn write(suites: &[(String, Vec<Subcase>)]) -> String {
    let mut out = format!("KTAP version 1\n1..{}\n", suites.len());
    for (number, (suite, cases)) in (1..).zip(suites) {
        // Writing to a String cannot fail.
        let _ = write!(out, "  KTAP version 1\n  1..{}\n", cases.len());
        let mut ok = true;
        for (number, case) in (1..).zip(cases) {
            ok &= !matches!(case.outcome, Outcome::Failed(_));
            let _ = writeln!(out, "  {}", line(number, &case.name, &case.outcome));
            if let Outcome::Failed(reasons) = &case.outcome {
                for text in reasons.iter().flat_map(|reason| reason.lines()) {
                    let _ = writeln!(out, "  # {text}");
                }
            }
        }
        let outcome = if ok { Outcome::Passed } else { Outcome::Failed(Vec::new()) };
        let _ = writeln!(out, "{}", line(number, suite, &outcome));
    }
    out
}

fn line(number: u64, name: &str, outcome: &Outcome) -> String {
    // '#' starts a directive.
    let name = name.replace(['#', '\n'], "_");
    match outcome {
        Outcome::Passed => format!("ok {number} - {name}"),
        Outcome::Failed(_) => format!("not ok {number} - {name}"),
        Outcome::Skipped(reason) => format!("ok {number} - {name} # SKIP {}", reason.replace('\n', " ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn picture(console: &str) -> Vec<String> {
        parse(console)
            .iter()
            .map(|case| {
                let sign = match &case.outcome {
                    Outcome::Passed => "+".to_owned(),
                    Outcome::Failed(_) => "!".to_owned(),
                    Outcome::Skipped(reason) => format!("({reason})"),
                };
                format!("{}{sign}", case.name)
            })
            .collect()
    }

    #[test]
    fn results_are_found_among_log_lines() {
        let console = "\
memvisor: booting
ok 7 - before the version line means nothing
KTAP version 1
1..3
pgdat: node 0
ok 1 - first
not ok 2 - second
ok 3 third without dash # SKIP no swap
memvisor: off
";
        assert_eq!(picture(console), ["first+", "second!", "third without dash(no swap)"]);
    }

    #[test]
    fn subtests_stand_under_their_parent() {
        let console = "\
KTAP version 1
1..2
  KTAP version 1
  1..2
  ok 1 - map
  not ok 2 - unmap
not ok 1 - pgtable
ok 2 - other
";
        assert_eq!(picture(console), ["pgtable/map+", "pgtable/unmap!", "other+"]);
    }

    #[test]
    fn a_parent_that_fails_alone_is_reported() {
        let console = "KTAP version 1\n1..1\n  KTAP version 1\n  1..1\n  ok 1 - a\nnot ok 1 - p\n";
        assert_eq!(picture(console), ["p/a+", "p!"]);
    }

    #[test]
    fn a_plan_that_is_not_kept_fails() {
        assert_eq!(picture("KTAP version 1\n1..3\nok 1 - a\n"), ["a+", "plan!"]);
        // The guest stopped inside the subtests.
        assert_eq!(
            picture("KTAP version 1\n1..1\n  KTAP version 1\n  1..2\n  ok 1 - a\n"),
            ["a+", "plan!", "plan!"]
        );
    }

    #[test]
    fn a_note_after_a_failure_explains_it() {
        let results = parse("KTAP version 1\n1..2\nnot ok 1 a\n# it was 3\nok 2 b\n# all is well\n");
        let Outcome::Failed(reasons) = &results[0].outcome else { panic!("{results:?}") };
        assert_eq!(reasons.last().map(String::as_str), Some("it was 3"));
        assert_eq!(results[1].outcome, Outcome::Passed);
    }

    #[test]
    fn two_documents_on_one_console_are_both_read() {
        let one = "KTAP version 1\n1..1\nok 1 - a\n";
        assert_eq!(picture(&format!("{one}{one}")), ["a+", "a+"]);
    }

    #[test]
    fn directives_decide() {
        let one = |line: &str| picture(&format!("KTAP version 1\n{line}\n"));
        assert_eq!(one("not ok 1 - a # TODO later"), ["a(expected to fail: later)"]);
        assert_eq!(one("ok 1 - a # TIMEOUT"), ["a!"]);
        assert_eq!(one("ok 1"), ["test 1+"]);
        assert_eq!(one("Bail out! no memory"), ["bail out!"]);
    }

    #[test]
    fn carriage_returns_of_a_serial_line_are_ignored() {
        assert_eq!(picture("KTAP version 1\r\n1..1\r\nok 1 - a\r\n"), ["a+"]);
    }

    fn outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            Just(Outcome::Passed),
            Just(Outcome::Failed(vec!["reason".to_owned()])),
            Just(Outcome::Skipped("why".to_owned())),
        ]
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC*") {
            parse(&text);
        }

        #[test]
        fn any_soup_of_ktap_is_survived(lines in prop::collection::vec(
            "( {0,20})(KTAP version 1|1\\.\\.[0-9]{1,25}|(not )?ok [0-9]{1,25}( - [a-z]{0,3})?( ?#[A-Z ]{0,6})?|Bail out!)", 0..40)) {
            parse(&lines.join("\n"));
        }

        #[test]
        fn what_is_written_reads_back(
            suites in prop::collection::vec(
                ("[a-z]{1,8}", prop::collection::vec(("[a-z]{1,8}", outcome()), 1..6)), 1..4)) {
            let suites: Vec<(String, Vec<Subcase>)> = suites
                .into_iter()
                .map(|(name, cases)| {
                    (name, cases.into_iter().map(|(name, outcome)| Subcase { name, outcome }).collect())
                })
                .collect();
            let expected: Vec<(String, bool)> = suites
                .iter()
                .flat_map(|(suite, cases)| cases.iter().map(move |case| {
                    (format!("{suite}/{}", case.name), matches!(case.outcome, Outcome::Failed(_)))
                }))
                .collect();
            let read: Vec<(String, bool)> = parse(&write(&suites))
                .into_iter()
                .map(|case| (case.name, matches!(case.outcome, Outcome::Failed(_))))
                .collect();
            prop_assert_eq!(read, expected);
        }
    }
}
