//! Lists of calls, and what the program reads.

use std::fmt::Write;

use crate::call::{Call, Name, Value};

/// Calls that run in one process, from a fresh address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// What it is called in reports; no blanks.
    pub name: String,
    /// In order.
    pub calls: Vec<Call>,
}

/// What the program says of each sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The record's hash.
    Compact,
    /// The record.
    Full,
    /// Whether the hash is the one that the sequence came with, as KTAP.
    Ktap,
}

impl Mode {
    const fn word(self) -> &'static str {
        match self {
            Mode::Compact => "compact",
            Mode::Full => "full",
            Mode::Ktap => "ktap",
        }
    }
}

impl Sequence {
    /// The sequence without its calls `[from, to)`: forks whose children or parents had them have fewer.
    #[must_use]
    pub fn without(&self, from: usize, to: usize) -> Sequence {
        let mut calls = self.calls.clone();
        for index in (from..to.min(calls.len())).rev() {
            calls.remove(index);
            for (at, call) in calls.iter_mut().enumerate().take(index) {
                if call.name == Name::Fork {
                    shorten(call, at, index);
                }
            }
        }
        Sequence { name: self.name.clone(), calls }
    }

    /// The first `count` calls.
    #[must_use]
    pub fn first(&self, count: usize) -> Sequence {
        self.without(count, self.calls.len())
    }
}

/// Takes the call that was at `gone` away from the fork at `at`.
fn shorten(fork: &mut Call, at: usize, gone: usize) {
    let [child, parent, ..] = &mut fork.values;
    let middle = at + 1 + usize::try_from(child.number).unwrap_or(usize::MAX - at - 1);
    let end = middle.saturating_add(usize::try_from(parent.number).unwrap_or(usize::MAX));
    if gone < middle {
        child.number -= 1;
    } else if gone < end {
        parent.number -= 1;
    }
}

/// A fork whose child makes `child` calls and whose parent then `parent`.
pub fn fork(child: u64, parent: u64) -> Call {
    Call::new(Name::Fork, &[Value::number(child), Value::number(parent)])
}

/// The program's input. `expected` has the hashes for [`Mode::Ktap`], or nothing.
pub fn input<'a>(
    mode: Mode,
    sequences: impl ExactSizeIterator<Item = &'a Sequence>,
    expected: &[u64],
) -> String {
    let mut text = format!("mode {} {:x}\n", mode.word(), sequences.len());
    for (id, sequence) in sequences.enumerate() {
        let hash = expected.get(id).copied().unwrap_or(0);
        let Sequence { name, calls } = sequence;
        let _ = writeln!(text, "S {id:x} {:x} {hash:x} {name}", calls.len());
        for call in calls {
            text.push_str(&call.wire());
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(lines: &[&str]) -> Sequence {
        let calls = lines.iter().map(|line| line.parse().unwrap()).collect();
        Sequence { name: "s".to_owned(), calls }
    }

    fn text(sequence: &Sequence) -> String {
        sequence.calls.iter().map(|call| format!("{call};")).collect()
    }

    #[test]
    fn a_fork_loses_the_calls_that_are_taken_away() {
        let all = sequence(&["munlockall", "fork 2 1", "read 1", "read 2", "read 3", "read 4"]);
        assert_eq!(text(&all.without(0, 1)), "fork 2 1;read 1;read 2;read 3;read 4;");
        assert_eq!(text(&all.without(2, 3)), "munlockall;fork 1 1;read 2;read 3;read 4;");
        assert_eq!(text(&all.without(4, 5)), "munlockall;fork 2 0;read 1;read 2;read 4;");
        assert_eq!(text(&all.without(5, 6)), "munlockall;fork 2 1;read 1;read 2;read 3;");
        assert_eq!(text(&all.without(1, 2)), "munlockall;read 1;read 2;read 3;read 4;");
        assert_eq!(text(&all.first(3)), "munlockall;fork 1 0;read 1;");
    }

    #[test]
    fn forks_in_children_lose_them_too() {
        let all = sequence(&["fork 3 0", "fork 1 1", "read 1", "read 2"]);
        assert_eq!(text(&all.without(2, 3)), "fork 2 0;fork 0 1;read 2;");
        assert_eq!(text(&all.without(1, 2)), "fork 2 0;read 1;read 2;");
    }

    #[test]
    fn the_program_gets_numbers() {
        let all = [sequence(&["read main+1p"]), sequence(&[])];
        let expected = "mode ktap 2\nS 0 1 7f s\nread m1000\nS 1 0 0 s\n";
        assert_eq!(input(Mode::Ktap, all.iter(), &[0x7f]), expected);
    }
}
