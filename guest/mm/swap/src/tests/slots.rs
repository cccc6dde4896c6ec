//! Slots, their users and their page.

use memvisor_abi::PageFlags;
use mm_core::Pfn;

use super::machine::{Machine, header};
use crate::{
    Lookup, Put, SlotError, Swap, SwapEntry, add_to_swap_cache, delete_from_swap_cache, folio_alloc_swap,
    folio_free_swap, folio_swap_entry, free_swap_and_cache, remove_from_swap_cache, replace_in_swap_cache,
    swap_cache_get_folio, swap_duplicate, swap_free, swap_write_failed,
};

fn alloc(m: &Machine, pfn: u64) -> SwapEntry {
    folio_alloc_swap(m, Pfn::new(pfn)).expect("a free slot")
}

/// A page that is in its slot only, named once.
fn swapped_out(m: &Machine, pfn: u64, shadow: u64) -> SwapEntry {
    let entry = alloc(m, pfn);
    assert_eq!(swap_duplicate(m, entry), Ok(()));
    assert_eq!(delete_from_swap_cache(m, Pfn::new(pfn), shadow), Ok(Put::Named));
    entry
}

#[test]
fn a_page_gets_the_first_slot_after_the_header_and_is_found_there() {
    let m = Machine::one(4, 16);
    let entry = alloc(&m, 1);
    assert_eq!((entry.area(), entry.offset()), (0, 1));
    assert_eq!(folio_swap_entry(m.descriptor(1)), Some(entry));
    assert_eq!(m.descriptor(1).refcount(), 2);
    assert_eq!(swap_cache_get_folio(&m, entry), Lookup::Page(Pfn::new(1)));
    assert_eq!(m.descriptor(1).refcount(), 3);
    assert_eq!(m.totals().nr_swap_pages(), 14);
    m.audit();
}

#[test]
fn the_last_of_count_and_cache_frees_the_slot() {
    let m = Machine::one(4, 16);
    let entry = alloc(&m, 1);
    assert_eq!(swap_duplicate(&m, entry), Ok(()));
    assert_eq!(swap_duplicate(&m, entry), Ok(()));
    assert_eq!(swap_free(&m, entry), Ok(Put::Named));
    assert_eq!(delete_from_swap_cache(&m, Pfn::new(1), 77), Ok(Put::Named));
    assert_eq!(swap_cache_get_folio(&m, entry), Lookup::Slot(77));
    assert_eq!(swap_free(&m, entry), Ok(Put::Last));
    assert_eq!(swap_cache_get_folio(&m, entry), Lookup::None);
    assert_eq!((m.inuse(0), m.totals().nr_swap_pages()), (0, 15));
    assert_eq!(m.descriptor(1).refcount(), 1);
    m.audit();
}

#[test]
fn a_slot_that_nobody_uses_cannot_be_named_or_freed() {
    let m = Machine::one(4, 16);
    let entry = swapped_out(&m, 1, 0);
    assert_eq!(swap_free(&m, entry), Ok(Put::Last));
    assert_eq!(swap_duplicate(&m, entry), Err(SlotError::Free));
    assert_eq!(swap_free(&m, entry), Err(SlotError::Free));
    assert_eq!(add_to_swap_cache(&m, entry, Pfn::new(2)), Err(SlotError::Free));
    let header = SwapEntry::new(0, 0).expect("an entry");
    assert_eq!(swap_duplicate(&m, header), Err(SlotError::Bad));
    let beyond = SwapEntry::new(0, 16).expect("an entry");
    assert_eq!(swap_free(&m, beyond), Err(SlotError::Bad));
    assert_eq!(swap_duplicate(&m, SwapEntry::new(9, 1).expect("an entry")), Err(SlotError::Bad));
    m.audit();
}

#[test]
fn of_two_who_read_a_page_in_one_wins_and_learns_of_the_eviction() {
    let m = Machine::one(4, 16);
    let entry = swapped_out(&m, 1, 0x1234);
    assert_eq!(add_to_swap_cache(&m, entry, Pfn::new(2)), Ok(0x1234));
    assert_eq!(add_to_swap_cache(&m, entry, Pfn::new(3)), Err(SlotError::Cached));
    assert_eq!((m.descriptor(2).refcount(), m.descriptor(3).refcount()), (2, 1));
    assert!(!m.descriptor(3).has(PageFlags::SWAPCACHE));
    m.audit();
}

#[test]
fn the_only_copy_of_a_page_is_dirty() {
    let m = Machine::one(4, 16);
    let entry = alloc(&m, 1);
    assert_eq!(swap_duplicate(&m, entry), Ok(()));
    assert!(!folio_free_swap(&m, Pfn::new(1)), "an entry names the slot");
    assert_eq!(swap_free(&m, entry), Ok(Put::Cached(Pfn::new(1))));
    m.descriptor(1).insert(PageFlags::WRITEBACK);
    assert!(!folio_free_swap(&m, Pfn::new(1)), "it is being written");
    m.descriptor(1).remove(PageFlags::WRITEBACK);
    assert!(folio_free_swap(&m, Pfn::new(1)));
    assert!(m.descriptor(1).has(PageFlags::DIRTY) && !m.descriptor(1).has(PageFlags::SWAPCACHE));
    assert_eq!(m.inuse(0), 0);
}

#[test]
fn zapping_the_last_entry_takes_the_page_out_of_the_cache_unless_it_is_locked() {
    let m = Machine::one(4, 16);
    for (pfn, locked) in [(1, false), (2, true)] {
        let entry = alloc(&m, pfn);
        assert_eq!(swap_duplicate(&m, entry), Ok(()));
        if locked {
            m.descriptor(pfn).lock();
        }
        assert_eq!(free_swap_and_cache(&m, entry), Ok(Some(Pfn::new(pfn))));
        assert_eq!(m.descriptor(pfn).has(PageFlags::SWAPCACHE), locked);
    }
    // The reference that was handed over, and the cache's where it stayed.
    assert_eq!((m.descriptor(1).refcount(), m.descriptor(2).refcount()), (2, 3));
    m.audit();
}

#[test]
fn a_page_that_moves_takes_its_slot_along() {
    let m = Machine::one(4, 16);
    let entry = alloc(&m, 1);
    m.descriptor(1).set_refcount(0);
    assert_eq!(replace_in_swap_cache(&m, Pfn::new(1), Pfn::new(2)), Ok(()));
    assert_eq!(swap_cache_get_folio(&m, entry), Lookup::Page(Pfn::new(2)));
    assert_eq!(folio_swap_entry(m.descriptor(1)), None);
    m.audit();
}

#[test]
fn a_slot_that_could_not_be_written_is_never_given_out_again() {
    let m = Machine::one(4, 4);
    let entry = alloc(&m, 1);
    swap_write_failed(&m, entry);
    assert_eq!(delete_from_swap_cache(&m, Pfn::new(1), 0), Ok(Put::Last));
    assert_eq!((m.totals().total_swap_pages(), m.totals().nr_swap_pages()), (2, 2));
    let others = [alloc(&m, 1), alloc(&m, 2)];
    assert!(!others.contains(&entry));
    assert_eq!(folio_alloc_swap(&m, Pfn::new(3)), None);
    m.audit();
}

#[test]
fn a_shadow_is_forgotten_with_the_slot() {
    let m = Machine::one(4, 2);
    let entry = swapped_out(&m, 1, 5);
    assert_eq!(swap_free(&m, entry), Ok(Put::Last));
    assert_eq!(alloc(&m, 2), entry);
    assert_eq!(delete_from_swap_cache(&m, Pfn::new(2), 9), Ok(Put::Last));
    assert_eq!(swap_cache_get_folio(&m, entry), Lookup::None);
}

#[test]
fn pages_that_leave_together_lie_together_and_free_clusters_come_first() {
    let m = Machine::one(600, 1024);
    // Slots in order, of a cluster that is all free: not the header's.
    let first: Vec<u64> = (1..300).map(|pfn| alloc(&m, pfn).offset()).collect();
    assert_eq!(first, (256..555).collect::<Vec<_>>());
    for pfn in 1..200 {
        assert_eq!(delete_from_swap_cache(&m, Pfn::new(pfn), 0), Ok(Put::Last));
    }
    // The cluster of this CPU has room still; after it comes a free one, not one that has holes.
    let next: Vec<u64> = (300..514).map(|pfn| alloc(&m, pfn).offset()).collect();
    assert_eq!(next, (555..769).collect::<Vec<_>>());
    m.audit();
}

#[test]
fn a_full_area_leaves_no_slot_unused() {
    let m = Machine::new(700, &[(header(600, &[3, 599]), None)]);
    let mut given: Vec<u64> =
        (1..700).map_while(|pfn| folio_alloc_swap(&m, Pfn::new(pfn))).map(SwapEntry::offset).collect();
    given.sort_unstable();
    assert_eq!(given, (1..599).filter(|slot| *slot != 3).collect::<Vec<_>>());
    assert!(m.totals().is_vm_swap_full());
    assert_eq!(m.totals().nr_swap_pages(), 0);
    m.audit();
}

#[test]
fn areas_are_filled_by_priority_and_equals_in_turns() {
    let small = |prio| (header(3, &[]), prio);
    let m = Machine::new(16, &[small(Some(1)), small(Some(5)), (header(600, &[]), Some(1)), small(None)]);
    assert_eq!(m.order(), [1, 0, 2, 3]);
    let areas: Vec<u32> = (1..8).map(|pfn| alloc(&m, pfn).area()).collect();
    // The best one first. Then a CPU stays in its cluster until that is full, and goes on with the next in turn.
    assert_eq!(areas, [1, 1, 0, 0, 2, 2, 2]);
    m.audit();
}

#[test]
fn only_a_clean_page_that_nobody_else_has_is_evicted() {
    let m = Machine::one(4, 16);
    let entry = alloc(&m, 1);
    assert_eq!(swap_duplicate(&m, entry), Ok(()));
    let page = m.descriptor(1);
    for busy in [PageFlags::DIRTY, PageFlags::WRITEBACK] {
        page.insert(busy);
        assert!(!remove_from_swap_cache(&m, Pfn::new(1), || unreachable!("nothing is to be remembered")));
        page.remove(busy);
    }
    assert_eq!(swap_cache_get_folio(&m, entry), Lookup::Page(Pfn::new(1)));
    assert!(!remove_from_swap_cache(&m, Pfn::new(1), || unreachable!("nothing is to be remembered")));
    page.set_refcount(2);
    assert!(remove_from_swap_cache(&m, Pfn::new(1), || 99));
    assert_eq!((page.refcount(), page.private(), page.has(PageFlags::SWAPCACHE)), (0, 0, false));
    assert_eq!(swap_cache_get_folio(&m, entry), Lookup::Slot(99));
    m.audit();
}
