//! Deferral and the fragmentation index, by Linux's numbers.

use mm_core::{Migratetype, Pfn, ZoneKind};

use super::machine::{one_zone, order, start};
use crate::{ContigPageInfo, KcompactdWork, Zone};

#[test]
fn each_failure_doubles_the_requests_that_are_turned_away() {
    let pages = start(&one_zone(1024), &[0]);
    let map = &pages.machine().mem;
    let mut zone = Zone::new(0, ZoneKind::Normal);
    for shift in 1..=8_u32 {
        zone.defer_compaction(map, order(9));
        let limit = 1 << shift.min(6);
        let turned_away = (0..limit).filter(|_| zone.is_compaction_deferred(map, order(9))).count();
        assert_eq!(turned_away, limit - 1, "after {shift} failures");
        zone.audit_compaction().expect("sound");
    }
    // The limit is reached: everybody is tried until one fails again.
    assert!(!zone.is_compaction_deferred(map, order(9)));
}

#[test]
fn smaller_orders_than_the_one_that_failed_are_tried_at_once() {
    let pages = start(&one_zone(1024), &[0]);
    let map = &pages.machine().mem;
    let mut zone = Zone::new(0, ZoneKind::Normal);
    zone.reset_compaction_defer(map, order(10), true);
    zone.defer_compaction(map, order(9));
    assert!(!zone.is_compaction_deferred(map, order(8)));
    assert!(zone.is_compaction_deferred(map, order(9)));
    zone.reset_compaction_defer(map, order(9), true);
    assert!(!zone.is_compaction_deferred(map, order(9)));
    assert_eq!(zone.info().compact_order_failed, 10);
    zone.audit_compaction().expect("sound");
}

#[test]
fn the_index_tells_fragmentation_from_lack_of_memory() {
    let info = |free_pages, free_blocks_total, free_blocks_suitable| ContigPageInfo {
        free_pages,
        free_blocks_total,
        free_blocks_suitable,
    };
    // Linux: 1000 - (1000 + free * 1000 / requested) / blocks.
    assert_eq!(info(0, 0, 0).fragmentation_index(order(9)), 0);
    assert_eq!(info(600, 3, 1).fragmentation_index(order(9)), -1000);
    assert_eq!(info(2048, 2048, 0).fragmentation_index(order(9)), 998);
    assert_eq!(info(256, 1, 0).fragmentation_index(order(9)), -500);
    assert_eq!(info(4, 4, 0).fragmentation_index(order(9)), 749);
    assert_eq!(info(0, 0, 0).unusable_free_index(order(3)), 1000);
    assert_eq!(info(100, 30, 2).unusable_free_index(order(3)), 840);
    assert_eq!(info(512, 1, 1).unusable_free_index(order(9)), 0);
}

#[test]
fn free_blocks_are_counted_as_the_orders_that_they_hold() {
    let pages = start(&one_zone(1536), &[0]);
    let zone = pages.machine().zones[ZoneKind::Normal as usize].borrow();
    assert!(zone.info().free_area[9].lists[Migratetype::Movable as usize].nr_free == 1);
    let info = zone.contig_page_info(order(9));
    assert_eq!(info, ContigPageInfo { free_pages: 1536, free_blocks_total: 2, free_blocks_suitable: 3 });
}

#[test]
fn kcompactd_keeps_a_larger_wish_that_came_meanwhile() {
    let mut work = KcompactdWork::NONE;
    assert!(!work.ask(order(0), ZoneKind::Normal));
    assert!(work.ask(order(4), ZoneKind::Normal));
    let done = work;
    assert!(work.ask(order(9), ZoneKind::Dma));
    work.finish(done);
    assert_eq!(work, KcompactdWork { max_order: Some(order(9)), highest: ZoneKind::Dma });
    work.finish(work);
    assert_eq!(work, KcompactdWork::NONE);
}

#[test]
fn positions_outside_the_zone_are_a_violation() {
    let mut zone = Zone::new(0, ZoneKind::Normal);
    zone.set_extent(Pfn::new(0x1000), 1024, 1024);
    zone.audit_compaction().expect("never run");
    zone.info_mut().compact_cached_free_pfn = 0x1401;
    assert_eq!(zone.audit_compaction().expect_err("outside").rule, "C1");
    zone.info_mut().compact_cached_free_pfn = 0;
    zone.info_mut().compact_considered = 2;
    assert_eq!(zone.audit_compaction().expect_err("more than its limit").rule, "C2");
}
