//! The walk under every operation.
//!
//! A walk visits the entries that a range touches, in ascending order, depth first. A
//! [`Visitor`] reads the entries, decides at each whether to go on or to enter a table (one that
//! is there, or one that it makes), and is told when a table was left. Ranges are given by their
//! last address, because the topmost range ends at 2^64.

use mm_core::{Pfn, VirtAddr};

use crate::{Entry, Levels, TABLE_ENTRIES};

/// An entry on the way, and the part of the range under it.
#[derive(Debug)]
pub(crate) struct Slot {
    pub table: Pfn,
    pub index: usize,
    pub level: u8,
    pub entry: Entry,
    /// First address under the entry.
    pub start: u64,
    /// First and last address of the range under the entry.
    pub first: u64,
    pub last: u64,
    /// Last address of the range under the table.
    pub table_last: u64,
    /// The least that the table entries above grant, as one of them.
    pub above: Entry,
}

impl Slot {
    /// Address for errors and callbacks.
    pub(crate) fn va(&self) -> VirtAddr {
        VirtAddr::new(self.first)
    }

    /// Whether the range holds everything under the entry.
    pub(crate) fn is_whole(&self) -> bool {
        self.last - self.first == Levels::page_size(self.level) - 1
    }

    /// How many entries from this one on, in this table, the range holds wholly.
    pub(crate) fn run(&self) -> usize {
        if self.first != self.start {
            return 0;
        }
        // At most 512 entries, and their bytes are at most half of the address space.
        let entries = (self.table_last - self.start + 1) >> Levels::page_shift(self.level);
        usize::try_from(entries).unwrap_or(TABLE_ENTRIES)
    }
}

/// What to do after an entry.
pub(crate) enum Step {
    /// This many entries, at least 1, are dealt with.
    Next(usize),
    /// Visit the range's entries in this table of the level below, then leave.
    Enter(Pfn),
}

/// An operation as the walk sees it.
pub(crate) trait Visitor {
    type Error;
    /// Whether [`Visitor::entry`] wants to see entries that are all zero.
    const EMPTY: bool;

    fn read(&self, table: Pfn, index: usize) -> Entry;

    /// The table that the entry points to, if the visitor has nothing to do at the entry, neither
    /// now nor on leaving.
    fn pass(&self, _entry: Entry, _level: u8) -> Option<Pfn> {
        None
    }

    fn entry(&mut self, slot: &Slot) -> Result<Step, Self::Error>;

    /// The walk comes back from `table`, which [`Visitor::entry`] returned for `slot`, with
    /// `result`; what this returns goes on upwards. Called in the error case as well.
    fn leave(
        &mut self,
        _slot: &Slot,
        _table: Pfn,
        result: Result<(), Self::Error>,
    ) -> Result<(), Self::Error> {
        result
    }
}

/// Visits `first..=last`, both canonical and in the same half, under the table `root` of
/// `levels`.
pub(crate) fn walk<V: Visitor>(
    visitor: &mut V,
    root: Pfn,
    levels: Levels,
    first: u64,
    last: u64,
) -> Result<(), V::Error> {
    let (mut table, mut level, mut above) = (root, levels.count(), Entry::table(root, true));
    // A page fault maps one page: go down to its table without the ceremony of a visit.
    while level > 1 && (first ^ last) >> Levels::page_shift(level) == 0 {
        let entry = visitor.read(table, Levels::index(VirtAddr::new(first), level));
        let Some(child) = visitor.pass(entry, level) else { break };
        (table, level, above) = (child, level - 1, above.and(entry));
    }
    visit(visitor, table, level, first, last, above)
}

fn visit<V: Visitor>(
    visitor: &mut V,
    table: Pfn,
    level: u8,
    first: u64,
    last: u64,
    above: Entry,
) -> Result<(), V::Error> {
    let shift = Levels::page_shift(level);
    let in_entry = Levels::page_size(level) - 1;
    // Sign bits included, so that no address has to be extended again.
    let base = first & !(in_entry << 9 | 0x1ff);
    let mut index = Levels::index(VirtAddr::new(first), level);
    let end = Levels::index(VirtAddr::new(last), level);
    while index <= end {
        let entry = visitor.read(table, index);
        if !V::EMPTY && entry.is_empty() {
            index += 1;
            continue;
        }
        let start = base | (index as u64) << shift;
        let slot = Slot {
            table,
            index,
            level,
            entry,
            start,
            first: first.max(start),
            last: last.min(start | in_entry),
            table_last: last,
            above,
        };
        index += match visitor.entry(&slot)? {
            Step::Next(entries) => entries,
            Step::Enter(child) => {
                let result = visit(visitor, child, level - 1, slot.first, slot.last, above.and(entry));
                visitor.leave(&slot, child, result)?;
                1
            }
        };
    }
    Ok(())
}
