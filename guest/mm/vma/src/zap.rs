//! Removing translations and the tables that held them (Linux: `zap_page_range`, `unmap_region`, `free_pgtables`).

use core::ops::Range;

use mm_filemap::Cows;
use mm_pgtable::{Entry, PteFlags, TableMem};

use crate::gather::Gather;
use crate::mm::RssKind;
use crate::pte::{self, Pte};
use crate::{Kernel, Mm, page, swap};

/// Removes what is mapped in the range and puts it on the gather; tables stay. Pages of its own stay too if `cows` says so.
pub(crate) fn zap<K: Kernel>(k: &K, mm: &Mm, range: Range<u64>, cows: Cows, gather: &mut Gather) {
    let Range { start: mut va, end } = range;
    while va < end {
        let (next, full) = k.tables(mm, |tables| {
            let Some(run) = pte::next_run(tables, mm.page_table(), va, end) else { return (end, false) };
            // The counts once a run (Linux: `add_mm_rss_vec`).
            let (mut rss, mut swapents) = ([0; 2], 0);
            let mut stopped = None;
            for (index, va) in run.used(tables) {
                if gather.left() == 0 {
                    stopped = Some(va);
                    break;
                }
                let seen = Entry::new(tables.read(run.table, index));
                if cows == Cows::Unmap || !is_own(k, seen) {
                    let old = pte::update(tables, run.table, index, |_| Entry::EMPTY);
                    if let Pte::Swap(entry) = pte::decode(old) {
                        swap::release(k, entry);
                        swapents -= 1;
                    } else if let Some(kind) = release(k, va, old, gather)
                        && let Some(count) = rss.get_mut(kind as usize)
                    {
                        *count -= 1;
                    }
                }
            }
            if swapents != 0 {
                mm.add_swapents(swapents);
            }
            for (kind, pages) in [RssKind::Anon, RssKind::File].into_iter().zip(rss) {
                if pages != 0 {
                    mm.add_rss(kind, pages);
                }
            }
            match stopped {
                Some(va) => (va, true),
                None => (run.va + run.count as u64 * mm_core::PAGE_SIZE, false),
            }
        });
        if full && !gather.grow(k) {
            gather.flush(k, mm);
        }
        va = next;
    }
}

/// Whether an entry is that of an anonymous page.
fn is_own<K: Kernel>(k: &K, entry: Entry) -> bool {
    match pte::decode(entry) {
        Pte::Page(pfn) | Pte::Migration(pfn) => k.page(pfn).is_some_and(page::is_anon),
        Pte::Swap(_) => true,
        Pte::Empty | Pte::Special(_) => false,
    }
}

/// Gives up what an entry that was taken out stood for; what it counted as, if it did.
fn release<K: Kernel>(k: &K, va: u64, old: Entry, gather: &mut Gather) -> Option<RssKind> {
    if old.is_present() {
        gather.translation(va);
    }
    match pte::decode(old) {
        Pte::Empty | Pte::Special(_) | Pte::Swap(_) => None,
        Pte::Page(pfn) if k.is_zero_page(pfn) => None,
        Pte::Page(pfn) => {
            let kind = k.page(pfn).map_or(RssKind::Anon, |page| {
                let kind = if page::is_anon(page) { RssKind::Anon } else { RssKind::File };
                // An anonymous page is nobody's but its mappers', who are gone with it.
                if kind == RssKind::File {
                    if old.has(PteFlags::DIRTY) {
                        k.page_dirtied(pfn, page);
                    }
                    if old.has(PteFlags::ACCESSED) {
                        k.folio_mark_accessed(pfn, page);
                    }
                }
                let others = page::remove_rmap_of(k, page);
                // An anonymous page that nobody else maps is freed soon.
                if others || kind == RssKind::File {
                    page::munlock(k, pfn, page);
                }
                kind
            });
            gather.page(k, pfn);
            Some(kind)
        }
        // Whoever moves the page holds its references.
        Pte::Migration(pfn) => Some(kind_of(k, pfn)),
    }
}

pub(crate) fn kind_of<K: Kernel>(k: &K, pfn: mm_core::Pfn) -> RssKind {
    if k.page(pfn).is_none_or(page::is_anon) { RssKind::Anon } else { RssKind::File }
}

/// Unlinks the tables that served `range` and no longer serve anything: nothing is mapped in `bounds`, around it.
pub(crate) fn free_tables<K: Kernel>(
    k: &K,
    mm: &Mm,
    range: Range<u64>,
    bounds: &Range<u64>,
    gather: &mut Gather,
) {
    k.tables(mm, |tables| mm.page_table().free_tables(tables, range, bounds, &mut gather.tables));
}
