//! Taking areas out of use.

use std::cell::Cell;

use mm_core::Pfn;

use super::machine::{Machine, header};
use crate::{
    Lookup, Swap, SwapEntry, SwapError, Unuse, add_to_swap_cache, delete_from_swap_cache, folio_alloc_swap,
    folio_free_swap, swap_cache_get_folio, swap_duplicate, swap_free, swapoff,
};

/// Entries of one address space, by page; frame 10 + page is where a page comes in.
struct Space<'m> {
    m: &'m Machine,
    entries: Vec<Cell<Option<SwapEntry>>>,
    fails: Option<SwapError>,
    promised: Cell<u64>,
}

impl Unuse for Space<'_> {
    fn promise(&self, pages: u64) -> bool {
        self.promised.set(self.promised.get() + pages);
        true
    }

    fn unpromise(&self, pages: u64) {
        self.promised.set(self.promised.get() - pages);
    }

    fn unuse_all(&self, area: u32) -> Result<(), SwapError> {
        for (entry, frame) in self.entries.iter().zip(10..) {
            let Some(slot) = entry.get().filter(|slot| slot.area() == area) else { continue };
            if let Lookup::Slot(_) = swap_cache_get_folio(self.m, slot) {
                if let Some(error) = self.fails {
                    return Err(error);
                }
                add_to_swap_cache(self.m, slot, Pfn::new(frame)).expect("nobody else reads it");
            }
            swap_free(self.m, slot).expect("the entry named it");
            entry.set(None);
        }
        Ok(())
    }

    fn free_cached(&self, entry: SwapEntry) {
        if let Lookup::Page(pfn) = swap_cache_get_folio(self.m, entry) {
            folio_free_swap(self.m, pfn);
        }
    }

    fn is_interrupted(&self) -> bool {
        self.fails == Some(SwapError::Interrupted)
    }

    fn relax(&self) {}
}

/// Two areas; five pages out, the first still in the cache, all in area 1.
fn machine() -> Machine {
    Machine::new(20, &[(header(64, &[]), Some(1)), (header(64, &[]), Some(2))])
}

fn space(m: &Machine, fails: Option<SwapError>) -> Space<'_> {
    let entries = (1..6).map(|pfn| {
        let entry = folio_alloc_swap(m, Pfn::new(pfn)).expect("a slot");
        swap_duplicate(m, entry).expect("it is in use");
        if pfn > 1 {
            delete_from_swap_cache(m, Pfn::new(pfn), 0).expect("it is cached");
        }
        Cell::new(Some(entry))
    });
    Space { m, entries: entries.collect(), fails, promised: Cell::new(0) }
}

#[test]
fn everything_comes_in_and_no_slot_is_given_out_any_more() {
    let m = machine();
    let space = space(&m, None);
    assert_eq!(swapoff(&m, 1, &space), Ok(()));
    assert_eq!((m.inuse(1), space.promised.get()), (0, 0));
    assert_eq!((m.totals().nr_swap_pages(), m.totals().total_swap_pages()), (63, 63));
    assert_eq!(folio_alloc_swap(&m, Pfn::new(6)).map(SwapEntry::area), Some(0));
    assert_eq!(swapoff(&m, 1, &space), Err(SwapError::NoArea));
    m.audit();
}

#[test]
fn after_a_failure_the_area_is_in_use_as_before() {
    for error in [SwapError::NoMemory, SwapError::Io, SwapError::Interrupted] {
        let m = machine();
        let space = space(&m, Some(error));
        assert_eq!(swapoff(&m, 1, &space), Err(error));
        assert_eq!(m.order(), [1, 0]);
        assert_eq!(m.totals().total_swap_pages(), 126);
        assert_eq!(m.totals().nr_swap_pages(), 126 - m.inuse(1));
        assert_eq!(folio_alloc_swap(&m, Pfn::new(6)).map(SwapEntry::area), Some(1));
        m.audit();
    }
}
