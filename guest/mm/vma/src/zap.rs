//! Removing translations and the tables that held them (Linux: `zap_page_range`, `unmap_region`, `free_pgtables`).

use core::ops::Range;

use mm_core::{PageFlags, VirtAddr};
use mm_filemap::Cows;
use mm_pgtable::{Entry, KeepTables, PteFlags, TABLE_ENTRIES, TableMem};

use crate::gather::Gather;
use crate::mm::RssKind;
use crate::pte::{self, Pte};
use crate::{Kernel, Mm, page};

/// Removes what is mapped in the range and puts it on the gather; tables stay. Pages of its own stay too if `cows` says so.
pub(crate) fn zap<K: Kernel>(k: &K, mm: &Mm, range: Range<u64>, cows: Cows, gather: &mut Gather) {
    let Range { start: mut va, end } = range;
    while va < end {
        let room = gather.room(k, TABLE_ENTRIES);
        if room == 0 {
            gather.flush(k, mm);
            continue;
        }
        let next = k.tables(mm, |tables| {
            let Some(mut run) = pte::next_run(tables, mm.page_table(), va, end) else { return end };
            run.count = run.count.min(room);
            for (index, va) in run.entries() {
                let seen = Entry::new(tables.read(run.table, index));
                if !seen.is_empty() && (cows == Cows::Unmap || !is_own(k, seen)) {
                    let old = pte::update(tables, run.table, index, |_| Entry::EMPTY);
                    release(k, mm, va, old, gather);
                }
            }
            run.va + run.count as u64 * mm_core::PAGE_SIZE
        });
        va = next;
    }
}

/// Whether an entry is that of an anonymous page.
fn is_own<K: Kernel>(k: &K, entry: Entry) -> bool {
    match pte::decode(entry) {
        Pte::Page(pfn) | Pte::Migration(pfn) => k.page(pfn).is_some_and(page::is_anon),
        Pte::Empty | Pte::Special(_) => false,
    }
}

/// Accounts for an entry that was taken out.
fn release<K: Kernel>(k: &K, mm: &Mm, va: u64, old: Entry, gather: &mut Gather) {
    if old.is_present() {
        gather.translation(va);
    }
    match pte::decode(old) {
        Pte::Empty | Pte::Special(_) => {}
        Pte::Page(pfn) if k.is_zero_page(pfn) => {}
        Pte::Page(pfn) => {
            mm.add_rss(kind_of(k, pfn), -1);
            if old.has(PteFlags::DIRTY)
                && let Some(page) = k.page(pfn)
            {
                page.insert(PageFlags::DIRTY);
            }
            page::remove_rmap(k, pfn);
            gather.page(k, pfn);
        }
        // Whoever moves the page holds its references.
        Pte::Migration(pfn) => mm.add_rss(kind_of(k, pfn), -1),
    }
}

pub(crate) fn kind_of<K: Kernel>(k: &K, pfn: mm_core::Pfn) -> RssKind {
    if k.page(pfn).is_none_or(page::is_anon) { RssKind::Anon } else { RssKind::File }
}

/// Unlinks the tables of `start..end` that are empty; nothing is mapped there.
pub(crate) fn free_tables<K: Kernel>(k: &K, mm: &Mm, start: u64, end: u64, gather: &mut Gather) {
    let done = k.tables(mm, |tables| {
        mm.page_table().unmap(
            tables,
            VirtAddr::new(start),
            end - start,
            KeepTables::Root,
            &mut gather.tables,
            |_, _, _| debug_assert!(false, "something is mapped where nothing may be"),
        )
    });
    debug_assert!(done.is_ok(), "tables cannot be freed: {done:?}");
}
