//! MADV_PAGEOUT (Linux: mm/madvise.c, `madvise_pageout`).

use mm_core::PageFlags;
use mm_pgtable::{Entry, PteFlags};

use crate::held::{Held, hold};
use crate::id::Id;
use crate::space::Populate;
use crate::{Kernel, Mm, VmFlags, Vma, pte};

/// Has the pages of a range reclaimed that nobody else maps, as far as that can be done; without mmap_lock. VMAs whose pages must stay are
/// passed over: madvise has refused them, unless they came since.
pub fn madvise_pageout<K: Kernel>(k: &K, mm: Id<Mm>, range: Populate) {
    let at: &Mm = k.at(mm);
    let end = range.start.saturating_add(range.len);
    let mut va = range.start;
    while va < end {
        k.mmap_read_lock(at);
        let found = at.find(k, va).map(|id| take(k, at, k.at(id), va, end));
        k.mmap_read_unlock(at);
        let Some((held, next)) = found else { return };
        va = next;
        if let Some(held) = held.filter(|held| !held.pages().is_empty()) {
            k.reclaim_pages(held.pages());
        }
    }
}

/// Takes references of pages from `va` on, and says where to go on.
fn take<K: Kernel>(k: &K, mm: &Mm, vma: &Vma, va: u64, end: u64) -> (Option<Held>, u64) {
    let (start, stop) = (va.max(vma.start()), end.min(vma.end()));
    let pinned = VmFlags::LOCKED | VmFlags::PFNMAP | VmFlags::HUGETLB;
    if start >= stop || vma.flags().intersects(pinned) {
        return (None, vma.end());
    }
    let held = hold(k, mm, start..stop, |tables, (run, index), page| {
        // Others who map it use it (Linux: `page_mapcount(page) != 1`).
        let alone = page.mapcount() == 0;
        if alone {
            let young = PteFlags::ACCESSED.bits();
            pte::update(tables, run.table, index, |old| Entry::new(old.as_u64() & !young));
            page.remove(PageFlags::REFERENCED);
        }
        alone
    });
    let next = held.next;
    (Some(held), next)
}
