//! Taking out tables of user space that serve nothing any more (Linux: mm/memory.c, `free_pgd_range`).

use core::ops::Range;

use mm_core::{Pfn, VirtAddr};

use crate::{Entry, Gather, Levels, PageTable, TABLE_ENTRIES, TableMem};

impl PageTable {
    /// Puts the tables below the root on the gather that serve addresses of `range` and span nothing outside of `bounds`.
    /// Both are of the lower half; `range` lies in `bounds`, in which nothing is mapped and, outside of `range`, no table lies wholly:
    /// whoever unmapped there before took them out. So no table needs to be looked through.
    pub fn free_tables<M: TableMem>(
        self,
        mem: &mut M,
        range: Range<u64>,
        bounds: &Range<u64>,
        gather: &mut Gather,
    ) {
        if !range.is_empty() {
            let mut freeing = Freeing { mem, bounds, gather };
            freeing.below(self.root, self.levels.count(), range.start, range.end - 1);
        }
    }
}

struct Freeing<'a, M> {
    mem: &'a mut M,
    bounds: &'a Range<u64>,
    gather: &'a mut Gather,
}

impl<M: TableMem> Freeing<'_, M> {
    /// The tables that entries of `table` for `first..=last` point to.
    fn below(&mut self, table: Pfn, level: u8, first: u64, last: u64) {
        let size = Levels::page_size(level);
        let end = Levels::index(VirtAddr::new(last), level) + 1;
        let mut index = Levels::index(VirtAddr::new(first), level);
        // First address under the table.
        let base = (first & !(size - 1)) - index as u64 * size;
        loop {
            index = self.mem.skip_empty(table, index, end);
            if index >= end {
                return;
            }
            let entry = Entry::new(self.mem.read(table, index));
            let start = base + index as u64 * size;
            if entry.is_table(level) {
                let child = entry.table_pfn();
                let from = first.max(start);
                if level > 2 {
                    self.below(child, level - 1, from, last.min(start | (size - 1)));
                }
                // The last span of the half ends where the half does, which is a number.
                if self.bounds.start <= start && start + size <= self.bounds.end {
                    debug_assert!(
                        self.mem.skip_empty(child, 0, TABLE_ENTRIES) == TABLE_ENTRIES,
                        "a table that is taken out at {start:#x} is in use"
                    );
                    self.mem.write(table, index, 0);
                    self.gather.table(self.mem, child, from, true);
                }
            }
            index += 1;
        }
    }
}
