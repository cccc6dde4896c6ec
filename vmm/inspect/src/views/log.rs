//! What the kernel said (Linux: dmesg, crash's `log`).

use std::fmt;

use serde::Serialize;

use crate::guest::{LogLine, LogProblem};
use crate::{Guest, GuestError, MemorySource};

/// `inspect log`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogView {
    /// Records, the oldest first.
    pub lines: Vec<LogLine>,
    /// Records that are gone because newer ones took their place.
    pub lost: u64,
    /// Where the log stops to make sense.
    pub problem: Option<LogProblem>,
}

impl LogView {
    /// Reads it; `None` if the guest keeps none.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<Option<LogView>, GuestError> {
        let log = guest.kernel_log()?;
        Ok(log.map(|log| LogView {
            lines: log.lines,
            lost: log.state.first_seq,
            problem: log.problem.filter(|_| !log.is_busy),
        }))
    }
}

impl fmt::Display for LogView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lost > 0 {
            writeln!(f, "({} lines before were overwritten)", self.lost)?;
        }
        for line in &self.lines {
            let micros = line.ts_nsec / 1000;
            writeln!(f, "[{:5}.{:06}] {}", micros / 1_000_000, micros % 1_000_000, line.text)?;
        }
        match &self.problem {
            Some(problem) => writeln!(f, "the log ends here: {problem}"),
            None => Ok(()),
        }
    }
}
