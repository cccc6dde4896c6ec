//! The kernel's own accesses to the memory of a program, which go through its page tables by hand (Linux copies through the program's
//! addresses, and the MMU does what is done here).

use mm_core::{PAGE_SIZE, PhysAddr};
use mm_pgtable::{Entry, PteFlags};

use crate::pte::{self, Pte};
use crate::{Kernel, Mm};

/// Calls `f` with where the byte at `va` is, if it is mapped and the program itself may use it so. The entry is marked as the MMU would mark it:
/// ACCESSED, and DIRTY for a write; or the page would look as if nobody needed it, and what was written would be lost when it is
/// reclaimed.
///
/// The tables are locked until `f` returns, which neither sleeps nor uses them: the byte stays where it is.
pub fn with_user_byte<K: Kernel, R>(
    k: &K,
    mm: &Mm,
    va: u64,
    write: bool,
    f: impl FnOnce(PhysAddr) -> R,
) -> Option<R> {
    let needed = if write { PteFlags::USER | PteFlags::WRITE } else { PteFlags::USER };
    let mark = if write { PteFlags::ACCESSED | PteFlags::DIRTY } else { PteFlags::ACCESSED };
    k.tables(mm, |tables| {
        let (table, index) = pte::locate(tables, mm.page_table(), va).ok()?;
        let usable = |entry: Entry| entry.is_present() && entry.has(needed);
        let entry = pte::update(tables, table, index, |old| {
            if usable(old) { Entry::new(old.as_u64() | mark.bits()) } else { old }
        });
        let (Pte::Page(pfn) | Pte::Special(pfn)) = pte::decode(entry) else { return None };
        usable(entry).then(|| f(PhysAddr::new(pfn.phys().as_u64() + va % PAGE_SIZE)))
    })
}
