//! MADV_FREE: pages of a program that may be dropped until it writes to them again (Linux: `madvise_free_pte_range`, and what
//! `try_to_unmap_one` does with their entries).
//!
//! Invariants:
//! F1  such a page is anonymous and not SWAPBACKED, and so on the lists of files, and in no swap cache;
//! F2  that it was written to since is in DIRTY of an entry that maps it, or of the page. Reclaim drops no such page, but makes it SWAPBACKED
//!     again: it is an anonymous page like others.

use mm_core::{Page, PageFlags, Pfn};
use mm_pgtable::{Entry, PteFlags, TableMem};

use crate::gather::Gather;
use crate::pte::{self, Pte};
use crate::{Kernel, Mm, swap};

/// Gives pages of a range away, and drops what of it is in swap areas at once (Linux: `madvise_free_single_vma`). It is private and anonymous.
pub(crate) fn give_away<K: Kernel>(k: &K, mm: &Mm, (start, end): (u64, u64), gather: &mut Gather) {
    const MARKS: u64 = PteFlags::ACCESSED.union(PteFlags::DIRTY).bits();
    k.tables(mm, |tables| {
        pte::for_each_run(tables, mm.page_table(), start, end, |tables, run| {
            for (index, va) in run.entries() {
                match pte::decode(Entry::new(tables.read(run.table, index))) {
                    Pte::Page(pfn) if !k.is_zero_page(pfn) => {
                        let Some(page) = k.page(pfn).filter(|page| is_only_here(k, pfn, page)) else {
                            continue;
                        };
                        let clean = |old: Entry| Entry::new(old.as_u64() & !MARKS);
                        let old = pte::update(tables, run.table, index, clean);
                        if old.is_present() && old != clean(old) {
                            gather.translation(va);
                        }
                        k.mark_page_lazyfree(pfn, page);
                    }
                    Pte::Swap(entry) => {
                        tables.write(run.table, index, 0);
                        mm.add_swapents(-1);
                        swap::release(k, entry);
                    }
                    _ => {}
                }
            }
        });
    });
}

/// Whether what is in the page is known to this entry alone: not to a slot of a swap area, nor, if only the page says that it was written, to
/// other entries. The page is in no swap cache then, and clean.
fn is_only_here<K: Kernel>(k: &K, pfn: Pfn, page: &Page) -> bool {
    if !page.has_any(PageFlags::SWAPCACHE | PageFlags::DIRTY) {
        return true;
    }
    if !page.try_lock() {
        return false;
    }
    let alone = page.mapcount() == 0 && (!page.has(PageFlags::SWAPCACHE) || mm_swap::folio_free_swap(k, pfn));
    if alone {
        page.remove(PageFlags::DIRTY);
    }
    k.unlock_page(pfn);
    alone
}

/// Whether a page that was given away may be dropped, as far as an entry says that was just taken out of its table, and is still counted; if not
/// the page is like others from now on (F2). The caller has a reference, and is the only one but for entries.
pub(crate) fn may_drop(page: &Page, old: Entry) -> bool {
    let is_clean = !old.has(PteFlags::DIRTY) && !page.has(PageFlags::DIRTY);
    let may = is_clean && page.refcount() == page.mapcount() + 2;
    if !may {
        page.insert(PageFlags::SWAPBACKED);
    }
    may
}
