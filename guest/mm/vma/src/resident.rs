//! What is resident of a VMA (Linux: fs/proc/task_mmu.c, `smap_gather_stats`).

use mm_core::{PAGE_SIZE, PageFlags, Pfn};
use mm_pgtable::{Entry, PteFlags, TableMem};

use crate::id::Id;
use crate::pte::{self, Pte};
use crate::{Kernel, Space, VmFlags, Vma, page};

/// Resident memory of a VMA, in bytes (Linux: `struct mem_size_stats`). The page of zeroes and frames that nobody counts are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// All of it.
    pub rss: u64,
    /// Each page divided by those who map it.
    pub pss: u64,
    /// The part of `pss` that was written.
    pub pss_dirty: u64,
    /// Clean, mapped by others too.
    pub shared_clean: u64,
    /// Dirty, mapped by others too.
    pub shared_dirty: u64,
    /// Clean, mapped here only.
    pub private_clean: u64,
    /// Dirty, mapped here only.
    pub private_dirty: u64,
    /// Used since the marks were cleared.
    pub referenced: u64,
    /// Anonymous.
    pub anonymous: u64,
    /// Of those, given away by MADV_FREE, and not written to since.
    pub lazyfree: u64,
    /// The part of `pss` that is locked.
    pub locked: u64,
    /// In swap areas.
    pub swap: u64,
    /// Each slot's page divided by the entries that name the slot.
    pub swap_pss: u64,
}

/// Bits of a fraction of a byte in sums of shares (Linux: `PSS_SHIFT`).
const PSS_SHIFT: u32 = 12;

impl Resident {
    /// Linux: `smaps_account`.
    fn add<K: Kernel>(&mut self, k: &K, pfn: Pfn, entry: Entry) {
        let Some(of) = k.page(pfn) else { return };
        let mappers = page::mappers(of);
        let share = (PAGE_SIZE << PSS_SHIFT) / mappers.max(1);
        let is_dirty = entry.has(PteFlags::DIRTY) || of.has(PageFlags::DIRTY);
        self.rss += PAGE_SIZE;
        self.pss += share;
        if is_dirty {
            self.pss_dirty += share;
        }
        if entry.has(PteFlags::ACCESSED) {
            self.referenced += PAGE_SIZE;
        }
        if page::is_anon(of) {
            self.anonymous += PAGE_SIZE;
            if !of.has(PageFlags::SWAPBACKED) && !is_dirty {
                self.lazyfree += PAGE_SIZE;
            }
        }
        *match (mappers > 1, is_dirty) {
            (true, false) => &mut self.shared_clean,
            (true, true) => &mut self.shared_dirty,
            (false, false) => &mut self.private_clean,
            (false, true) => &mut self.private_dirty,
        } += PAGE_SIZE;
    }
}

impl<K: Kernel> Space<'_, K> {
    /// What is resident of a VMA.
    pub fn resident(&self, id: Id<Vma>) -> Resident {
        let vma = self.vma(id);
        let (mut sum, mut va, end) = (Resident::default(), vma.start(), vma.end());
        while va < end {
            // A table at a time, so that interrupts are not off for long.
            va = self.k.tables(self.mm, |tables| {
                let Some(run) = pte::next_run(tables, self.mm.page_table(), va, end) else { return end };
                for (index, _) in run.entries() {
                    let entry = Entry::new(tables.read(run.table, index));
                    match pte::decode(entry) {
                        Pte::Page(pfn) if !self.k.is_zero_page(pfn) => sum.add(self.k, pfn, entry),
                        Pte::Swap(entry) => {
                            let named = mm_swap::swap_count(self.k, entry).max(1);
                            sum.swap += PAGE_SIZE;
                            sum.swap_pss += (PAGE_SIZE << PSS_SHIFT) / named;
                        }
                        _ => {}
                    }
                }
                run.va + run.count as u64 * PAGE_SIZE
            });
        }
        sum.pss >>= PSS_SHIFT;
        sum.pss_dirty >>= PSS_SHIFT;
        sum.swap_pss >>= PSS_SHIFT;
        sum.locked = if vma.flags().contains(VmFlags::LOCKED) { sum.pss } else { 0 };
        sum
    }
}
