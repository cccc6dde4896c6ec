//! MADV_PAGEOUT (Linux: mm/madvise.c, `madvise_pageout`).

use mm_core::{MemMap, PAGE_SIZE, PageFlags, Pfn};
use mm_pgtable::{Entry, PteFlags, TableMem};

use crate::id::Id;
use crate::pte::{self, Pte};
use crate::space::Populate;
use crate::{Kernel, Mm, VmFlags, Vma, page};

/// Pages that are handed to reclaim at once (Linux: `SWAP_CLUSTER_MAX`).
const BATCH: usize = 32;

/// Pages of one table, held.
struct Taken {
    pages: [Pfn; BATCH],
    count: usize,
    /// Where to go on.
    next: u64,
}

/// Has the pages of a range reclaimed that nobody else maps, as far as that can be done; without mmap_lock. VMAs whose pages must stay are
/// passed over: madvise has refused them, unless they came since.
pub fn madvise_pageout<K: Kernel>(k: &K, mm: Id<Mm>, range: Populate) {
    let at: &Mm = k.at(mm);
    let end = range.start.saturating_add(range.len);
    let mut va = range.start;
    while va < end {
        k.mmap_read_lock(at);
        let taken = at.find(k, va).map(|id| take(k, at, k.at(id), va, end));
        k.mmap_read_unlock(at);
        let Some(Taken { pages, count, next }) = taken else { return };
        va = next;
        if let Some(pages) = pages.get(..count).filter(|pages| !pages.is_empty()) {
            k.reclaim_pages(pages);
        }
    }
}

/// Takes references of pages from `va` on.
fn take<K: Kernel>(k: &K, mm: &Mm, vma: &Vma, va: u64, end: u64) -> Taken {
    let (start, stop) = (va.max(vma.start()), end.min(vma.end()));
    let mut taken = Taken { pages: [Pfn::new(0); BATCH], count: 0, next: vma.end() };
    let pinned = VmFlags::LOCKED | VmFlags::PFNMAP | VmFlags::HUGETLB;
    if start >= stop || vma.flags().intersects(pinned) {
        return taken;
    }
    k.tables(mm, |tables| {
        let Some(run) = pte::next_run(tables, mm.page_table(), start, stop) else { return };
        taken.next = run.va + run.count as u64 * PAGE_SIZE;
        for (index, va) in run.used(tables) {
            let Pte::Page(pfn) = pte::decode(Entry::new(tables.read(run.table, index))) else { continue };
            // Others who map it use it (Linux: `page_mapcount(page) != 1`).
            let Some(page) = MemMap::page(k, pfn).filter(|page| page.mapcount() == 0) else { continue };
            if k.is_zero_page(pfn) {
                continue;
            }
            let Some(slot) = taken.pages.get_mut(taken.count) else {
                taken.next = va;
                return;
            };
            pte::update(tables, run.table, index, |old| {
                Entry::new(old.as_u64() & !PteFlags::ACCESSED.bits())
            });
            page.remove(PageFlags::REFERENCED);
            page::get(k, pfn);
            *slot = pfn;
            taken.count += 1;
        }
    });
    taken
}
