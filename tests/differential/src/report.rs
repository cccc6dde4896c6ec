//! What a comparison came to, for people and for programs.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use crate::compare::Part;
use crate::sequence::Sequence;

/// A difference that nobody explained.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// Where it was found first.
    pub found_in: String,
    /// The shortest sequence, a line a call.
    pub calls: Vec<String>,
    /// Where its records differ.
    pub part: Part,
    /// Sequences that differ at the same kind of call, this one included.
    pub sequences: usize,
}

/// A comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The right kernel.
    pub linux: String,
    /// The bed of the other.
    pub bed: crate::guest::Bed,
    /// Where the random sequences come from.
    pub seed: u64,
    /// Hand-written cases that were compared.
    pub cases: usize,
    /// Random sequences that were compared.
    pub sequences: usize,
    /// Calls of all.
    pub calls: usize,
    /// Sequences that were the same.
    pub same: usize,
    /// Sequences that differ by a difference that is meant, by its name.
    pub meant: std::collections::BTreeMap<&'static str, usize>,
    /// Names of the sequences that differ otherwise.
    pub differing: Vec<String>,
    /// Names of the sequences with which Linux did something else the first time, and the second time what the guest did both times.
    pub unsteady: Vec<String>,
    /// The differences that were looked into.
    pub findings: Vec<Finding>,
    /// Seconds until all was compared.
    pub compared_s: f64,
    /// Seconds with what was looked into.
    pub total_s: f64,
}

/// Seconds, to the tenth.
pub fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 10.0).round() / 10.0
}

impl Report {
    /// The report for people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for finding in &self.findings {
            finding.show(&mut out);
        }
        let Report { linux, seed, cases, sequences, calls, same, .. } = self;
        let _ = writeln!(
            out,
            "differential: {linux} and memvisor on bed {}, seed {seed:#x}: {cases} cases and {sequences} random sequences, \
             {calls} calls, in {:.1} s",
            format!("{:?}", self.bed).to_lowercase(),
            self.compared_s
        );
        let meant: usize = self.meant.values().sum();
        let differing = self.differing.len();
        let _ = writeln!(out, "differential: {same} the same, {meant} meant to differ, {differing} differ");
        for (name, count) in &self.meant {
            let _ = writeln!(out, "  {count} by {name} (docs/linux-differences.md)");
        }
        if !self.unsteady.is_empty() {
            let _ = writeln!(
                out,
                "  {} where Linux itself changed, to what the guest does: {}",
                self.unsteady.len(),
                self.unsteady.join(" ")
            );
        }
        if differing > 0 {
            let names: Vec<&str> = self.differing.iter().take(20).map(String::as_str).collect();
            let more = if differing > names.len() { " ..." } else { "" };
            let _ = writeln!(out, "  differing: {}{more}", names.join(" "));
            let name = names.first().and_then(|name| name.split(' ').next()).unwrap_or_default();
            let _ = writeln!(out, "  again: make differential SEED={seed:#x} ARGS='--only {name}'");
        }
        out
    }
}

impl Finding {
    /// A finding for a sequence that was shrunk to `shortest`.
    pub fn new(found_in: &str, shortest: &Sequence, part: Part, sequences: usize) -> Finding {
        let calls = shortest.calls.iter().map(ToString::to_string).collect();
        Finding { found_in: found_in.to_owned(), calls, part, sequences }
    }

    fn show(&self, out: &mut String) {
        let _ = writeln!(out, "DIFFERENCE in {}, {} calls are enough:", self.found_in, self.calls.len());
        for (index, call) in self.calls.iter().enumerate() {
            let mark = if self.part.call == Some(index) { ">" } else { " " };
            let _ = writeln!(out, "{mark} {index:3}  {call}");
        }
        let width = self.part.linux.iter().map(String::len).max().unwrap_or(0).clamp(20, 70);
        let _ = writeln!(out, "      {:width$}   guest", "Linux");
        for at in 0..self.part.linux.len().max(self.part.guest.len()) {
            let line = |lines: &[String]| lines.get(at).cloned().unwrap_or_default();
            let (linux, guest) = (line(&self.part.linux), line(&self.part.guest));
            let mark = if linux == guest { ' ' } else { '!' };
            let _ = writeln!(out, "    {mark} {linux:width$}   {guest}");
        }
        let _ = writeln!(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_shows_the_calls_and_both_records() {
        let calls = vec!["munmap main 1p".parse().unwrap(), "read main".parse().unwrap()];
        let shortest = Sequence { name: "s".to_owned(), calls };
        let part =
            Part { call: Some(1), linux: vec!["1 signal 11".to_owned()], guest: vec!["1 0".to_owned()] };
        let mut text = String::new();
        Finding::new("random-7", &shortest, part, 1).show(&mut text);
        assert!(text.contains("random-7, 2 calls"));
        assert!(text.contains(">   1  read main"));
        assert!(text.contains("! 1 signal 11"));
    }
}
