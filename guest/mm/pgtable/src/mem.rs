//! Who owns the tables.

use mm_core::Pfn;

/// Memory that holds page tables, and the allocator behind it. Implementations refuse, by panic,
/// frames that are not tables of theirs.
///
/// The walk calls [`TableMem::read`] and [`TableMem::write`] once an entry: make them inline.
pub trait TableMem {
    /// Reads entry `index`, below 512, of `table`, in one access.
    fn read(&self, table: Pfn, index: usize) -> u64;

    /// Writes entry `index`, below 512, of `table`, in one access.
    fn write(&self, table: Pfn, index: usize, value: u64);

    /// Writes `new` if the entry is still `old`; else returns what it is. Where another CPU walks
    /// the tables while they change, this must be one locked instruction, or ACCESSED and DIRTY
    /// bits that it sets are lost; the default is for tables that nobody else walks.
    #[inline]
    fn compare_exchange(&self, table: Pfn, index: usize, old: u64, new: u64) -> Result<(), u64> {
        let now = self.read(table, index);
        if now == old {
            self.write(table, index, new);
            Ok(())
        } else {
            Err(now)
        }
    }

    /// A frame for a table, all zero; `None` when there is no memory.
    fn alloc_table(&mut self) -> Option<Pfn>;

    /// Takes back a frame from [`TableMem::alloc_table`]. It is all zero again, so it may be
    /// handed out once more without being cleared.
    fn free_table(&mut self, table: Pfn);

    /// The first entry of `from..to` that is not all zero; `to` if all are. Worth replacing where a read is dear.
    #[inline]
    fn skip_empty(&self, table: Pfn, from: usize, to: usize) -> usize {
        (from..to).find(|&index| self.read(table, index) != 0).unwrap_or(to)
    }

    /// Copies entries to the same places of another table.
    #[inline]
    fn copy(&self, from: Pfn, to: Pfn, entries: core::ops::Range<usize>) {
        for index in entries {
            self.write(to, index, self.read(from, index));
        }
    }

    /// Writes `count` entries from `index` on: `value`, `value + step`, ... Worth replacing where
    /// a write is dear; `index + count` is at most 512.
    #[inline]
    fn fill(&self, table: Pfn, index: usize, count: usize, value: u64, step: u64) {
        let mut value = value;
        for index in index..index + count {
            self.write(table, index, value);
            value = value.wrapping_add(step);
        }
    }
}
