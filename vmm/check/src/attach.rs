//! Whether there is a guest to audit.
//!
//! A1  `attach.root`: the root descriptor is where the guest announced it (or found by a scan), and
//!     has this build's magic, version and layout hash.
//! A2  `attach.tables`: every table and free list that the guest's boot stage promises can be read:
//!     in RAM, with a sane stride and count.

use memvisor_inspect::{Facts, Guest, MemorySource, find_root};

use crate::Rule;
use crate::context::AuditedGuest;
use crate::ledger::{Ledger, finding};

pub(crate) const ROOT: Rule = Rule {
    name: "attach.root",
    invariant: "the root descriptor is valid and of this build",
    reads: "Root",
    seeded: &[],
    hint: "was the guest built from the same guest/abi as this tool?",
};
pub(crate) const TABLES: Rule = Rule {
    name: "attach.tables",
    invariant: "every table promised by the boot stage is readable",
    reads: "every TableRef of Root, free list heads",
    seeded: &["mm-list"],
    hint: "the guest's publication of its tables (introspection)",
};

/// The guest, if there is one.
pub(crate) fn attach<'a>(
    source: &'a dyn MemorySource,
    root_gpa: Option<u64>,
    facts: Option<&Facts>,
    ledger: &mut Ledger,
) -> Option<AuditedGuest<'a>> {
    ledger.checked(&ROOT, 1);
    let Some(gpa) = root_gpa.or_else(|| find_root(source)) else {
        let machine = facts.map_or("the machine", |facts| facts.machine.as_str());
        ledger.report(&ROOT, finding(&ROOT, machine, "nothing", "no root descriptor anywhere in RAM"));
        return None;
    };
    match Guest::attach(source, gpa) {
        Ok(guest) => Some(guest),
        Err(error) => {
            let claim = match root_gpa {
                Some(gpa) => format!("it is at {gpa:#x}"),
                None => "nothing".to_owned(),
            };
            ledger
                .report(&ROOT, finding(&ROOT, "the root descriptor", claim, error.to_string()).address(gpa));
            None
        }
    }
}
