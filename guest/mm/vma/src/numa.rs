//! On which nodes a VMA's pages lie (Linux: fs/proc/task_mmu.c, `struct numa_maps`, `gather_stats`).

use memvisor_abi::MAX_NUMNODES;
use mm_core::{MemMap, PAGE_SIZE, Page, PageFlags};
use mm_pgtable::{Entry, PteFlags, TableMem};

use crate::pte::{self, Pte};
use crate::{Kernel, Space, Vma, page};

/// Pages that a VMA maps. The page of zeroes and what nobody counts are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumaPages {
    /// All of them.
    pub pages: u64,
    /// Anonymous.
    pub anon: u64,
    /// Written.
    pub dirty: u64,
    /// The most entries that map one of them.
    pub mapcount_max: u64,
    /// In the swap cache.
    pub swapcache: u64,
    /// On an active list, or locked.
    pub active: u64,
    /// On their way to a device.
    pub writeback: u64,
    /// By node.
    pub nodes: [u64; MAX_NUMNODES],
}

impl Default for NumaPages {
    fn default() -> NumaPages {
        NumaPages {
            pages: 0,
            anon: 0,
            dirty: 0,
            mapcount_max: 0,
            swapcache: 0,
            active: 0,
            writeback: 0,
            nodes: [0; MAX_NUMNODES],
        }
    }
}

impl NumaPages {
    fn add(&mut self, of: &Page, entry: Entry) {
        self.pages += 1;
        self.anon += u64::from(page::is_anon(of));
        self.dirty += u64::from(entry.has(PteFlags::DIRTY) || of.has(PageFlags::DIRTY));
        self.mapcount_max = self.mapcount_max.max(page::mappers(of));
        self.swapcache += u64::from(of.has(PageFlags::SWAPCACHE));
        self.active += u64::from(of.has_any(PageFlags::ACTIVE | PageFlags::UNEVICTABLE));
        self.writeback += u64::from(of.has(PageFlags::WRITEBACK));
        if let Some(count) = self.nodes.get_mut(of.node() as usize) {
            *count += 1;
        }
    }
}

impl<K: Kernel> Space<'_, K> {
    /// On which nodes the pages of a VMA lie.
    pub fn numa_pages(&self, vma: &Vma, sum: &mut NumaPages) {
        let (mut va, end) = (vma.start(), vma.end());
        while va < end {
            // A table at a time, so that interrupts are not off for long.
            va = self.k.tables(self.mm, |tables| {
                let Some(run) = pte::next_run(tables, self.mm.page_table(), va, end) else { return end };
                for (index, _) in run.entries() {
                    let entry = Entry::new(tables.read(run.table, index));
                    if let Pte::Page(pfn) = pte::decode(entry)
                        && let Some(of) = MemMap::page(self.k, pfn).filter(|_| !self.k.is_zero_page(pfn))
                    {
                        sum.add(of, entry);
                    }
                }
                run.va + run.count as u64 * PAGE_SIZE
            });
        }
    }
}
