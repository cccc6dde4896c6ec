//! Pages that a VMA maps, held a batch at a time, so that they can be worked on without the lock of its page tables.

use core::ops::Range;

use mm_core::{MemMap, PAGE_SIZE, Page, Pfn};
use mm_pgtable::{Entry, TableMem};

use crate::pte::{self, Pte, Run};
use crate::{Kernel, Mm, page};

/// Pages of a batch (Linux: `SWAP_CLUSTER_MAX`).
const BATCH: usize = 32;

/// Pages of one table, each with a reference.
#[derive(Debug)]
pub(crate) struct Held {
    pages: [Pfn; BATCH],
    count: usize,
    /// Where to go on.
    pub next: u64,
}

impl Held {
    pub(crate) fn pages(&self) -> &[Pfn] {
        self.pages.get(..self.count).unwrap_or_default()
    }
}

/// Takes references of pages in a range of a VMA, which stays as it is: of those of which `wanted` says so. It is asked with the page tables
/// locked, and sees neither the page of zeroes nor what nobody counts.
pub(crate) fn hold<K: Kernel>(
    k: &K,
    mm: &Mm,
    range: Range<u64>,
    mut wanted: impl FnMut(&mut K::Tables, (Run, usize), &Page) -> bool,
) -> Held {
    let mut held = Held { pages: [Pfn::new(0); BATCH], count: 0, next: range.end };
    k.tables(mm, |tables| {
        let Some(run) = pte::next_run(tables, mm.page_table(), range.start, range.end) else { return };
        held.next = run.va + run.count as u64 * PAGE_SIZE;
        for (index, va) in run.entries() {
            let Pte::Page(pfn) = pte::decode(Entry::new(tables.read(run.table, index))) else { continue };
            let Some(page) = MemMap::page(k, pfn).filter(|_| !k.is_zero_page(pfn)) else { continue };
            let Some(slot) = held.pages.get_mut(held.count) else {
                held.next = va;
                return;
            };
            if wanted(tables, (run, index), page) {
                page::get(k, pfn);
                *slot = pfn;
                held.count += 1;
            }
        }
    });
    held
}
