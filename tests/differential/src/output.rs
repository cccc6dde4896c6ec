//! What the program says, out of a console on which others speak, too.

use crate::sequence::{Mode, Sequence, input};

/// A record of a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was carried out.
    Ran {
        /// Of the whole record.
        hash: u64,
        /// The record's lines; none in compact mode.
        lines: Vec<String>,
    },
    /// The kernel or the program did not come to its end: what the console says last.
    Died(String),
}

impl Outcome {
    /// Whether two kernels did the same. One that died is like no other.
    pub fn is_same(&self, other: &Outcome) -> bool {
        match (self, other) {
            (Outcome::Ran { hash, .. }, Outcome::Ran { hash: other, .. }) => hash == other,
            _ => false,
        }
    }
}

/// One run of the program: outcomes of the first sequences in order, and why there are no more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Hash and record.
    pub records: Vec<(u64, Vec<String>)>,
    /// Whether the program said that it was done.
    pub is_complete: bool,
    /// What went wrong, as the program says.
    pub problem: Option<String>,
}

impl Said {
    /// Reads a console.
    pub fn parse(console: &str) -> Said {
        let mut said = Said::default();
        let mut lines = Vec::new();
        for line in console.lines() {
            let line = line.trim_end_matches('\r');
            // Whatever a kernel says before the end of a line of the program stands before it.
            let Some((_, line)) = line.split_once('~') else { continue };
            match line.split_at_checked(2) {
                Some(("+ ", text)) => lines.push(text.to_owned()),
                Some(("= ", text)) => {
                    let hash = text.split(' ').nth(1).and_then(|hash| u64::from_str_radix(hash, 16).ok());
                    if let Some(hash) = hash {
                        said.records.push((hash, core::mem::take(&mut lines)));
                    }
                }
                Some((". ", _)) => said.is_complete = true,
                Some(("! ", text)) => said.problem = Some(text.to_owned()),
                _ => {}
            }
        }
        said
    }
}

/// A kernel that runs the program.
pub trait Side: Sync {
    /// What reports call it.
    fn name(&self) -> &str;

    /// Runs the program on `input`; its console, whatever became of it.
    ///
    /// # Errors
    /// What kept it from starting.
    fn run(&self, input: &str) -> anyhow::Result<String>;
}

/// Lines that say why a kernel ended.
const LAST_WORDS: usize = 12;

/// Runs all sequences, again and again from behind one at which the kernel died.
///
/// # Errors
/// If the program cannot be started, or ends before the first sequence.
pub fn run_all(
    side: &dyn Side,
    sequences: &[Sequence],
    mode: Mode,
    progress: &dyn Fn(usize),
) -> anyhow::Result<Vec<Outcome>> {
    let mut outcomes = Vec::with_capacity(sequences.len());
    while outcomes.len() < sequences.len() {
        let rest = &sequences[outcomes.len()..];
        let console = side.run(&input(mode, rest.iter(), &[]))?;
        let said = Said::parse(&console);
        if let Some(problem) = said.problem {
            anyhow::bail!("the program gives up on {}: {problem}", side.name());
        }
        let got = said.records.len();
        progress(got);
        outcomes.extend(said.records.into_iter().map(|(hash, lines)| Outcome::Ran { hash, lines }));
        if got < rest.len() {
            progress(1);
            outcomes.push(Outcome::Died(last_words(&console)));
        }
    }
    Ok(outcomes)
}

fn last_words(console: &str) -> String {
    let lines: Vec<&str> = console
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty() && !line.starts_with('~'))
        .collect();
    // What a panic prints first says most.
    let first = lines.iter().position(|line| line.contains("panic") || line.contains("BUG"));
    let from = first.unwrap_or(lines.len().saturating_sub(LAST_WORDS));
    lines[from..].iter().take(LAST_WORDS).fold(String::new(), |text, line| text + line + "\n")
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn a_console_is_read_around_what_the_kernel_says() {
        let console =
            "boot\r\n~+ 0 0\r\n~+   m0-m1000\r\ntask[3]: hello\r\n~= 0 1f\r\noops~= 1 20\r\n~. 2\r\n";
        let said = Said::parse(console);
        assert_eq!(said.records[0], (0x1f, vec!["0 0".to_owned(), "  m0-m1000".to_owned()]));
        assert_eq!(said.records[1], (0x20, vec![]));
        assert!(said.is_complete && said.problem.is_none());
        assert_eq!(Said::parse("~! mmap: -12\n").problem.as_deref(), Some("mmap: -12"));
    }

    struct Scripted(RefCell<Vec<&'static str>>);

    // One thread uses it.
    struct Alone(std::sync::Mutex<Scripted>);

    impl Side for Alone {
        fn name(&self) -> &str {
            "script"
        }

        fn run(&self, _: &str) -> anyhow::Result<String> {
            Ok(self.0.lock().unwrap().0.borrow_mut().remove(0).to_owned())
        }
    }

    #[test]
    fn after_a_sequence_that_kills_the_kernel_the_others_run() {
        let consoles = vec!["~= 0 1\nKernel panic: why\n at x\n", "~= 0 3\n~. 1\n"];
        let side = Alone(std::sync::Mutex::new(Scripted(RefCell::new(consoles))));
        let empty = Sequence { name: "s".to_owned(), calls: Vec::new() };
        let outcomes =
            run_all(&side, &[empty.clone(), empty.clone(), empty], Mode::Compact, &|_| ()).unwrap();
        assert!(matches!(&outcomes[1], Outcome::Died(text) if text.starts_with("Kernel panic: why")));
        assert!(matches!(outcomes[2], Outcome::Ran { hash: 3, .. }));
        assert!(!outcomes[1].is_same(&outcomes[1]));
    }
}
