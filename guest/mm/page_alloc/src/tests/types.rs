//! Blocks by type: stealing, reserves, isolation, and what is known to be zero.

use memvisor_abi::PAGEBLOCK_PAGES;
use mm_core::{MemMap, Migratetype, Order, PageFlags, PageKind, Pfn, ZoneKind};
use mm_sim::SimMem;

use super::order;
use crate::{AllocFlags, WATERMARK_BOOST_FACTOR, Zone, init_range};

const NONE: AllocFlags = AllocFlags::empty();

/// A zone of that many free pageblocks from frame 0, all movable.
pub(super) fn zone(pageblocks: u64) -> (SimMem, Zone) {
    let pages = pageblocks * PAGEBLOCK_PAGES;
    let (start, end) = (Pfn::new(0), Pfn::new(pages));
    let mem = SimMem::new(&[start..end]);
    init_range(&mem, start, end, 0, ZoneKind::Normal, PageKind::Tail);
    let mut zone = Zone::new(0, ZoneKind::Normal);
    zone.set_extent(start, pages, pages);
    zone.add_managed(pages);
    zone.free_zero_range(&mem, start, end).expect("fresh frames");
    (mem, zone)
}

pub(super) fn types(mem: &SimMem, pageblocks: u64) -> Vec<Migratetype> {
    let at = |index| mem.pageblock(Pfn::new(index * PAGEBLOCK_PAGES)).expect("RAM").migratetype();
    (0..pageblocks).map(at).collect()
}

pub(super) fn sound(mem: &SimMem, zone: &Zone) {
    assert_eq!(zone.audit(mem), Ok(()));
    assert_eq!(zone.audit_range(mem, Pfn::new(0), zone.end_pfn()), Ok(()));
    let middle = Pfn::new(zone.end_pfn().as_u64() / 2);
    assert_eq!(zone.audit_range(mem, Pfn::new(0), middle), Ok(()), "a part of it");
}

#[test]
fn the_first_unmovable_allocation_takes_whole_pageblocks() {
    let (mem, mut zone) = zone(4);
    let pfn = zone.rmqueue(&mem, Order::ZERO, Migratetype::Unmovable, NONE).expect("memory is free");
    // A block of the largest order is two pageblocks: both change, and the next page comes from there.
    let block = usize::try_from(pfn.as_u64() / PAGEBLOCK_PAGES).expect("small");
    let types = types(&mem, 4);
    assert_eq!(types.iter().filter(|kind| **kind == Migratetype::Unmovable).count(), 2);
    assert_eq!(types[block], Migratetype::Unmovable);
    let next = zone.rmqueue(&mem, Order::ZERO, Migratetype::Unmovable, NONE).expect("memory is free");
    assert_eq!(next.block(Order::MAX), pfn.block(Order::MAX));
    let movable = zone.rmqueue(&mem, Order::ZERO, Migratetype::Movable, NONE).expect("memory is free");
    assert_ne!(movable.block(Order::MAX), pfn.block(Order::MAX));
    sound(&mem, &zone);
}

/// Takes everything, then frees `free` frames of the first pageblock from its start.
fn first_pageblock_free(mem: &SimMem, zone: &mut Zone, free: u64) {
    while zone.alloc_block(mem, Order::ZERO).is_some() {}
    for pfn in 0..free {
        zone.free_block(mem, Pfn::new(pfn), Order::ZERO).expect("it was allocated");
    }
}

#[test]
fn half_a_free_pageblock_is_stolen_whole_and_less_is_not() {
    for (free, stolen) in [(256, true), (255, false)] {
        let (mem, mut zone) = zone(2);
        first_pageblock_free(&mem, &mut zone, free);
        // What is allocated there may be moved: it does not count as alike for an unmovable request.
        for pfn in free..PAGEBLOCK_PAGES {
            mem.page(Pfn::new(pfn)).expect("RAM").insert(PageFlags::MOVABLE);
        }
        zone.rmqueue(&mem, Order::ZERO, Migratetype::Unmovable, NONE).expect("there are free frames");
        let expected = if stolen { Migratetype::Unmovable } else { Migratetype::Movable };
        assert_eq!(types(&mem, 2), [expected, Migratetype::Movable], "{free} free");
        // Either way all free frames of the pageblock follow.
        let movable: u64 = Order::all().map(|order| zone.list(order, Migratetype::Movable).nr_free).sum();
        assert_eq!(movable, 0);
        sound(&mem, &zone);
    }
}

#[test]
fn a_movable_request_breaks_the_smallest_block_of_another_type() {
    let (mem, mut zone) = zone(2);
    first_pageblock_free(&mem, &mut zone, 0);
    mem.pageblock(Pfn::new(0)).expect("RAM").set_migratetype(Migratetype::Unmovable);
    // Blocks of order 3 and 1, both too small to take the pageblock along.
    for pfn in (0..8).chain(16..18) {
        zone.free_block(&mem, Pfn::new(pfn), Order::ZERO).expect("it was allocated");
    }
    let pfn = zone.rmqueue(&mem, Order::ZERO, Migratetype::Movable, NONE).expect("there are free frames");
    assert_eq!(pfn.block(order(1)), Pfn::new(16));
    assert_eq!(types(&mem, 1), [Migratetype::Unmovable]);
    sound(&mem, &zone);
}

#[test]
fn nofragment_leaves_smaller_blocks_of_other_types_alone() {
    let (mem, mut zone) = zone(2);
    first_pageblock_free(&mem, &mut zone, 256);
    assert_eq!(zone.rmqueue(&mem, Order::ZERO, Migratetype::Unmovable, AllocFlags::NOFRAGMENT), None);
    assert!(zone.rmqueue(&mem, Order::ZERO, Migratetype::Unmovable, NONE).is_some());
}

#[test]
fn stealing_boosts_the_watermarks_up_to_a_limit() {
    let (mem, mut zone) = zone(8);
    zone.info_mut().watermark = [1000, 1250, 1500];
    zone.info_mut().watermark_boost_factor = WATERMARK_BOOST_FACTOR;
    first_pageblock_free(&mem, &mut zone, 300);
    zone.rmqueue(&mem, Order::ZERO, Migratetype::Unmovable, AllocFlags::KSWAPD).expect("free frames");
    assert_eq!(zone.info().watermark_boost, PAGEBLOCK_PAGES);
    assert_eq!(zone.info().flags, memvisor_abi::Zone::BOOSTED_WATERMARK);
    // 150 % of 1500 is the most.
    for _ in 0..8 {
        mem.pageblock(Pfn::new(0)).expect("RAM").set_migratetype(Migratetype::Movable);
        zone.move_freepages_block(&mem, Pfn::new(0), Migratetype::Movable);
        zone.rmqueue(&mem, Order::ZERO, Migratetype::Unmovable, NONE).expect("free frames");
    }
    assert_eq!(zone.info().watermark_boost, 2250);
}

#[test]
fn the_highatomic_reserve_is_for_harder_requests_of_more_than_a_page() {
    let (mem, mut zone) = zone(2);
    first_pageblock_free(&mem, &mut zone, 16);
    zone.reserve_highatomic_pageblock(&mem, Pfn::new(0));
    assert_eq!((zone.info().nr_reserved_highatomic, zone.info().free_pages), (PAGEBLOCK_PAGES, 16));
    for migratetype in [Migratetype::Unmovable, Migratetype::Movable] {
        assert_eq!(zone.rmqueue(&mem, Order::ZERO, migratetype, AllocFlags::HARDER), None);
        assert_eq!(zone.rmqueue(&mem, order(1), migratetype, NONE), None);
    }
    let pfn = zone.rmqueue(&mem, order(1), Migratetype::Unmovable, AllocFlags::HARDER);
    assert_eq!(pfn, Some(Pfn::new(0)));
    // The last pageblock stays unless it is forced; 1 % and a pageblock is the most.
    assert!(!zone.unreserve_highatomic_pageblock(&mem, Migratetype::Movable, false));
    zone.reserve_highatomic_pageblock(&mem, Pfn::new(PAGEBLOCK_PAGES));
    zone.reserve_highatomic_pageblock(&mem, Pfn::new(0));
    assert_eq!(types(&mem, 2), [Migratetype::HighAtomic, Migratetype::HighAtomic]);
    assert!(zone.unreserve_highatomic_pageblock(&mem, Migratetype::Movable, true));
    assert_eq!(zone.info().nr_reserved_highatomic, PAGEBLOCK_PAGES);
    assert!(zone.rmqueue(&mem, Order::ZERO, Migratetype::Movable, NONE).is_some());
    sound(&mem, &zone);
}

#[test]
fn an_isolated_pageblock_is_neither_free_nor_merged_and_comes_back() {
    let (mem, mut zone) = zone(2);
    assert!(zone.set_migratetype_isolate(&mem, Pfn::new(700)));
    assert!(!zone.set_migratetype_isolate(&mem, Pfn::new(700)));
    let start = Pfn::new(PAGEBLOCK_PAGES);
    assert_eq!((zone.info().free_pages, zone.info().nr_isolate_pageblock), (PAGEBLOCK_PAGES, 1));
    assert_eq!(zone.test_pages_isolated(&mem, start, zone.end_pfn()), Ok(()));
    assert_eq!(zone.test_pages_isolated(&mem, Pfn::new(0), zone.end_pfn()), Err(Pfn::new(0)));
    sound(&mem, &zone);
    let mut taken = Vec::new();
    while let Some(pfn) = zone.alloc_block(&mem, Order::ZERO) {
        assert!(pfn < start, "{pfn} is isolated");
        taken.push(pfn);
    }
    for pfn in taken {
        zone.free_block(&mem, pfn, Order::ZERO).expect("it was allocated");
    }
    // The whole pageblock is free again, and its buddy stays out of it.
    assert_eq!(zone.info().free_pages, PAGEBLOCK_PAGES);
    assert_eq!(zone.test_pages_isolated(&mem, start, zone.end_pfn()), Ok(()));
    sound(&mem, &zone);
    assert!(zone.unset_migratetype_isolate(&mem, start, Migratetype::Movable));
    assert_eq!(zone.list(Order::MAX, Migratetype::Movable).nr_free, 1);
    assert_eq!((zone.info().free_pages, zone.info().nr_isolate_pageblock), (2 * PAGEBLOCK_PAGES, 0));
    sound(&mem, &zone);
}

#[test]
fn what_is_freed_into_an_isolated_pageblock_does_not_become_free() {
    let (mem, mut zone) = zone(2);
    first_pageblock_free(&mem, &mut zone, 8);
    assert!(zone.set_migratetype_isolate(&mem, Pfn::new(0)));
    zone.free_block(&mem, Pfn::new(8), Order::ZERO).expect("it was allocated");
    assert_eq!(zone.info().free_pages, 0);
    assert_eq!(zone.test_pages_isolated(&mem, Pfn::new(0), Pfn::new(9)), Ok(()));
    assert_eq!(zone.test_pages_isolated(&mem, Pfn::new(0), Pfn::new(10)), Err(Pfn::new(9)));
    sound(&mem, &zone);
}

#[test]
fn isolated_pageblocks_next_to_each_other_merge_and_come_back_one_by_one() {
    let (mem, mut zone) = zone(2);
    let (first, second) = (Pfn::new(0), Pfn::new(PAGEBLOCK_PAGES));
    for pfn in [first, second] {
        assert!(zone.set_migratetype_isolate(&mem, pfn));
        sound(&mem, &zone);
    }
    assert_eq!((zone.info().free_pages, zone.list(Order::MAX, Migratetype::Isolate).nr_free), (0, 1));
    // Only this one comes back, though its free block covered the other too.
    assert!(zone.unset_migratetype_isolate(&mem, first, Migratetype::Movable));
    assert_eq!(zone.info().free_pages, PAGEBLOCK_PAGES);
    assert_eq!(zone.test_pages_isolated(&mem, second, zone.end_pfn()), Ok(()));
    sound(&mem, &zone);
    assert!(zone.unset_migratetype_isolate(&mem, second, Migratetype::Movable));
    assert_eq!(zone.list(Order::MAX, Migratetype::Movable).nr_free, 1);
    sound(&mem, &zone);
}

#[test]
fn a_block_over_two_pageblocks_is_freed_into_each_by_its_type() {
    for isolated in 0..2 {
        let (mem, mut zone) = zone(2);
        let block = zone.alloc_block(&mem, Order::MAX).expect("all is free");
        assert!(zone.set_migratetype_isolate(&mem, Pfn::new(isolated * PAGEBLOCK_PAGES)));
        zone.free_block(&mem, block, Order::MAX).expect("it was allocated");
        assert_eq!(zone.info().free_pages, PAGEBLOCK_PAGES, "pageblock {isolated} is isolated");
        sound(&mem, &zone);
        while let Some(pfn) = zone.alloc_block(&mem, Order::ZERO) {
            assert_ne!(pfn.as_u64() / PAGEBLOCK_PAGES, isolated, "{pfn} is isolated");
        }
    }
}

#[test]
fn contiguous_areas_serve_movable_requests_that_may_use_them() {
    let (mem, mut zone) = zone(2);
    first_pageblock_free(&mem, &mut zone, 0);
    mem.pageblock(Pfn::new(0)).expect("RAM").set_migratetype(Migratetype::Cma);
    for pfn in 0..4 {
        zone.free_block(&mem, Pfn::new(pfn), Order::ZERO).expect("it was allocated");
    }
    assert_eq!((zone.info().free_pages, zone.info().nr_free_cma), (4, 4));
    assert_eq!(zone.rmqueue(&mem, Order::ZERO, Migratetype::Unmovable, NONE), None);
    assert_eq!(zone.rmqueue(&mem, Order::ZERO, Migratetype::Movable, NONE), None);
    assert!(zone.rmqueue(&mem, Order::ZERO, Migratetype::Movable, AllocFlags::CMA).is_some());
    assert_eq!((zone.info().free_pages, zone.info().nr_free_cma), (3, 3));
    sound(&mem, &zone);
}

#[test]
fn movable_requests_are_balanced_over_contiguous_areas_and_the_rest() {
    let (mem, mut zone) = zone(2);
    first_pageblock_free(&mem, &mut zone, 0);
    mem.pageblock(Pfn::new(0)).expect("RAM").set_migratetype(Migratetype::Cma);
    for pfn in (0..4).chain(PAGEBLOCK_PAGES..PAGEBLOCK_PAGES + 4) {
        zone.free_block(&mem, Pfn::new(pfn), Order::ZERO).expect("it was allocated");
    }
    let mut next = || zone.rmqueue(&mem, Order::ZERO, Migratetype::Movable, AllocFlags::CMA);
    // From the areas only while they hold more than half of what is free, rounded down.
    let areas: Vec<bool> =
        (0..8).map(|_| next().expect("some are free").as_u64() < PAGEBLOCK_PAGES).collect();
    assert_eq!(areas, [false, true, false, true, false, true, false, true]);
    assert_eq!(next(), None);
    sound(&mem, &zone);
}

#[test]
fn half_of_a_largest_block_is_the_next_to_go_out_whatever_is_free_beside_the_whole() {
    let (mem, mut zone) = zone(8);
    while zone.alloc_block(&mem, order(9)).is_some() {}
    // The last two merge; the others have an allocated buddy.
    for pageblock in [6, 7, 0, 4] {
        zone.free_block(&mem, Pfn::new(pageblock * PAGEBLOCK_PAGES), order(9)).expect("it was allocated");
    }
    // No block is larger than those, so there is no further merge to wait for.
    assert_eq!(zone.alloc_block(&mem, order(9)), Some(Pfn::new(4 * PAGEBLOCK_PAGES)));
    sound(&mem, &zone);
}

#[test]
fn fresh_memory_is_zero_until_somebody_had_it() {
    let (mem, mut zone) = zone(1);
    let first = zone.rmqueue(&mem, order(3), Migratetype::Movable, NONE).expect("memory is free");
    assert!(mem.page(first).expect("RAM").is_known_zero());
    mem.page(first).expect("RAM").set_refcount(1);
    zone.free_block(&mem, first, order(3)).expect("it was allocated");
    // Merged with the rest, which is clean, the whole is not.
    let all = zone.rmqueue(&mem, order(9), Migratetype::Movable, NONE).expect("memory is free");
    assert!(!mem.page(all).expect("RAM").is_known_zero());
}
