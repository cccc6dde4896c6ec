//! Which block another type gives away, whether its pageblock goes along, and the boost that follows.

use memvisor_abi::PAGEBLOCK_PAGES;
use mm_core::{MemMap, Migratetype, Order, PageFlags, Pfn};
use mm_sim::SimMem;

use super::types::{sound, types, zone};
use crate::{AllocFlags, WATERMARK_BOOST_FACTOR, Zone};

const NONE: AllocFlags = AllocFlags::empty();

/// A zone of two pageblocks of these types in which only `free` is free.
fn fragmented(kinds: [Migratetype; 2], free: impl IntoIterator<Item = u64>) -> (SimMem, Zone) {
    let (mem, mut zone) = zone(2);
    while zone.alloc_block(&mem, Order::ZERO).is_some() {}
    for (start, kind) in [0, PAGEBLOCK_PAGES].into_iter().zip(kinds) {
        mem.pageblock(Pfn::new(start)).expect("RAM").set_migratetype(kind);
    }
    for pfn in free {
        zone.free_block(&mem, Pfn::new(pfn), Order::ZERO).expect("it was allocated");
    }
    (mem, zone)
}

fn pages(zone: &Zone, migratetype: Migratetype) -> u64 {
    Order::all().map(|order| zone.list(order, migratetype).nr_free << order.as_u8()).sum()
}

#[test]
fn a_movable_request_takes_the_pageblock_of_a_block_of_order_4_along_and_of_order_3_not() {
    for (order, left) in [(4, 0), (3, 8)] {
        let (mem, mut zone) = fragmented([Migratetype::Unmovable; 2], (0..1 << order).chain([32]));
        let pfn = zone.rmqueue(&mem, Order::ZERO, Migratetype::Movable, NONE).expect("some are free");
        // The smallest of what came over.
        assert_eq!((pfn.as_u64(), pages(&zone, Migratetype::Unmovable)), (32, left), "order {order}");
        sound(&mem, &zone);
    }
}

#[test]
fn the_largest_block_is_stolen_where_its_pageblock_may_come_along() {
    for (order, migratetype) in [(3, Migratetype::Unmovable), (4, Migratetype::Movable)] {
        // A single page in the first pageblock, a larger block in the second.
        let second = PAGEBLOCK_PAGES..PAGEBLOCK_PAGES + (1 << order);
        let other =
            if migratetype == Migratetype::Movable { Migratetype::Unmovable } else { Migratetype::Movable };
        let (mem, mut zone) = fragmented([other; 2], second.clone().chain([32]));
        let pfn = zone.rmqueue(&mem, Order::ZERO, migratetype, NONE).expect("some are free");
        assert!(second.contains(&pfn.as_u64()), "{pfn} is not of the largest block");
        assert_eq!(pages(&zone, other), 1);
        sound(&mem, &zone);
    }
}

#[test]
fn allocated_frames_count_as_alike_only_if_they_cannot_be_of_another_type() {
    let cases = [
        // In a movable pageblock, what does not move is like the request: 100 free and 212 of 512 make a majority.
        (Migratetype::Movable, Migratetype::Unmovable, 200, true),
        (Migratetype::Movable, Migratetype::Unmovable, 412, false),
        // Unmovable and reclaimable frames look the same.
        (Migratetype::Reclaimable, Migratetype::Unmovable, 0, false),
        // For a movable request, what moves is alike.
        (Migratetype::Unmovable, Migratetype::Movable, 156, true),
        (Migratetype::Unmovable, Migratetype::Movable, 155, false),
    ];
    for (old, start, movable, changes) in cases {
        let (mem, mut zone) = fragmented([old; 2], 0..100);
        for pfn in 100..100 + movable {
            mem.page(Pfn::new(pfn)).expect("RAM").insert(PageFlags::MOVABLE);
        }
        zone.rmqueue(&mem, Order::ZERO, start, NONE).expect("some are free");
        let expected = if changes { start } else { old };
        assert_eq!(types(&mem, 1), [expected], "{start:?} from {old:?} with {movable} movable");
        assert_eq!(pages(&zone, old), 0, "all that is free came along");
        sound(&mem, &zone);
    }
}

#[test]
fn only_zones_of_four_pageblocks_are_boosted_and_only_kswapd_is_told() {
    for (pageblocks, factor, flags, boost, told) in [
        (4, WATERMARK_BOOST_FACTOR, AllocFlags::KSWAPD, PAGEBLOCK_PAGES, true),
        (4, WATERMARK_BOOST_FACTOR, NONE, PAGEBLOCK_PAGES, false),
        (4, 0, AllocFlags::KSWAPD, 0, false),
        (3, WATERMARK_BOOST_FACTOR, AllocFlags::KSWAPD, 0, false),
    ] {
        let (mem, mut zone) = zone(pageblocks);
        zone.info_mut().watermark = [1000, 1250, 1500];
        zone.info_mut().watermark_boost_factor = factor;
        while zone.alloc_block(&mem, Order::ZERO).is_some() {}
        zone.free_block(&mem, Pfn::new(0), Order::ZERO).expect("it was allocated");
        zone.rmqueue(&mem, Order::ZERO, Migratetype::Unmovable, flags).expect("one is free");
        let got =
            (zone.info().watermark_boost, zone.info().flags & memvisor_abi::Zone::BOOSTED_WATERMARK != 0);
        assert_eq!(got, (boost, told), "{pageblocks} pageblocks, factor {factor}, {flags:?}");
    }
}
