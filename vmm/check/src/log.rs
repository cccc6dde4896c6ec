//! K1: the kernel's log.

use crate::Rule;
use crate::context::Context;
use crate::ledger::{Ledger, finding};

pub(crate) const RECORDS: Rule = Rule {
    name: "log.records",
    invariant: "the log's records lie one behind the other, numbered without gap",
    reads: "KernelLog, LogHeader",
    seeded: &["log-number", "log-length", "log-next"],
    hint: "Log::push",
};

/// Runs K1.
pub(crate) fn run(context: &Context<'_>, ledger: &mut Ledger) {
    match context.guest.kernel_log() {
        Ok(Some(log)) if log.is_busy => ledger.skip(&RECORDS, "somebody is writing the log just now"),
        Ok(Some(log)) => {
            ledger.checked(&RECORDS, log.lines.len() as u64);
            if let Some(problem) = log.problem {
                ledger
                    .report(&RECORDS, finding(&RECORDS, "the kernel's log", "is a log", problem.to_string()));
            }
        }
        Ok(None) => ledger.skip(&RECORDS, "the guest publishes no log"),
        Err(problem) => ledger.skip(&RECORDS, &problem.to_string()),
    }
}
