//! Every invariant, broken once on purpose.

use memvisor_abi::FreeList;
use mm_core::{MemMap, Migratetype, Order, Page, PageFlags, PageKind, Pfn};

use super::{Pictured, order, zone};

const MOVABLE: usize = Migratetype::Movable as usize;

fn page(zone: &Pictured, pfn: u64) -> &Page {
    zone.mem.page(Pfn::new(pfn)).expect("RAM")
}

fn broken_rule(zone: &Pictured) -> Option<&'static str> {
    let lists = zone.zone.audit(&zone.mem);
    let frames = zone.zone.audit_range(&zone.mem, Pfn::new(0), Pfn::new(zone.pages));
    lists.and(frames).err().map(|violation| violation.rule)
}

#[test]
fn a_misaligned_block_breaks_b1() {
    let mut zone = zone("A.BB....");
    page(&zone, 4).set_kind(PageKind::Tail);
    page(&zone, 5).set_kind(PageKind::Buddy);
    let area = &mut zone.zone.info_mut().free_area[2].lists[MOVABLE];
    (area.head, area.tail) = (5, 5);
    assert_eq!(broken_rule(&zone), Some("B1"));
}

#[test]
fn two_free_buddies_break_b2() {
    let mut zone = zone("AA......");
    // As a free that forgot to merge would leave it.
    let freed = page(&zone, 0);
    freed.set_kind(PageKind::Buddy);
    freed.set_order(order(1));
    freed.set_migratetype(Migratetype::Movable);
    freed.set_refcount(0);
    page(&zone, 1).set_kind(PageKind::Tail);
    freed.set_next(2);
    page(&zone, 2).set_prev(0);
    let info = zone.zone.info_mut();
    info.free_area[1].lists[MOVABLE].head = 0;
    info.free_area[1].lists[MOVABLE].nr_free = 2;
    info.free_pages += 2;
    let violation = zone.zone.audit(&zone.mem).expect_err("buddies are apart");
    assert_eq!(violation.to_string(), "B2 violated at pfn 0x0, order 1");
}

#[test]
fn a_wrong_sum_breaks_b3() {
    let mut zone = zone("A.......");
    zone.zone.info_mut().free_pages -= 1;
    assert_eq!(broken_rule(&zone), Some("B3"));
}

#[test]
fn a_wrong_link_count_or_end_breaks_b4() {
    let mut counted = zone("A.B.C.D.");
    counted.zone.info_mut().free_area[0].lists[MOVABLE].nr_free -= 1;
    assert_eq!(broken_rule(&counted), Some("B4"));

    let linked = zone("A.B.C.D.");
    page(&linked, 5).set_prev(7);
    assert_eq!(broken_rule(&linked), Some("B4"));

    let mut ended = zone("A.B.C.D.");
    ended.zone.info_mut().free_area[0].lists[MOVABLE].tail = 1;
    assert_eq!(broken_rule(&ended), Some("B4"));

    let cycle = zone("A.B.C.D.");
    page(&cycle, 7).set_next(1);
    assert_eq!(broken_rule(&cycle), Some("B4"));

    let strayed = zone("A.B.C.D.");
    page(&strayed, 7).set_next(1 << 40);
    assert_eq!(broken_rule(&strayed), Some("B4"));
}

#[test]
fn a_wrong_head_breaks_b5() {
    let breaks: [fn(&Page); 6] = [
        |head| head.set_migratetype(Migratetype::Cma),
        |head| head.set_kind(PageKind::User),
        |head| head.set_order(Order::ZERO),
        |head| head.set_refcount(1),
        |head| head.set_mapcount(0),
        |head| head.insert(PageFlags::RESERVED),
    ];
    for damage in breaks {
        let zone = zone("AAAA....");
        damage(page(&zone, 4));
        assert_eq!(broken_rule(&zone), Some("B5"));
    }
}

#[test]
fn a_frame_of_another_zone_breaks_b6() {
    let moved = zone("AAAA....");
    page(&moved, 6).set_links(1, mm_core::ZoneKind::Normal);
    assert_eq!(broken_rule(&moved), Some("B6"));

    let mut shrunk = zone("AAAA....");
    shrunk.zone.info_mut().spanned_pages = 7;
    assert_eq!(broken_rule(&shrunk), Some("B6"));
}

#[test]
fn an_owned_frame_inside_a_free_block_breaks_b7() {
    let zone = zone("AAAA....");
    page(&zone, 5).set_kind(PageKind::Table);
    assert_eq!(broken_rule(&zone), Some("B7"));
}

#[test]
fn more_free_than_managed_breaks_b8() {
    let mut zone = zone("AAAA....");
    zone.zone.info_mut().managed_pages = 3;
    assert_eq!(broken_rule(&zone), Some("B8"));
}

#[test]
fn a_lost_block_breaks_b9() {
    let mut zone = zone("A.BBCCCC");
    let info = zone.zone.info_mut();
    info.free_area[0].lists[MOVABLE] = FreeList::EMPTY;
    info.nonempty[MOVABLE] &= !1;
    info.free_pages = 0;
    assert_eq!(broken_rule(&zone), Some("B9"));

    let leaked = super::zone("A.BB....");
    page(&leaked, 0).set_kind(PageKind::Tail);
    assert_eq!(broken_rule(&leaked), Some("B9"));
}

#[test]
fn a_wrong_mark_of_an_empty_list_breaks_b4() {
    let mut zone = zone("A.......");
    zone.zone.info_mut().nonempty[Migratetype::Cma as usize] |= 1;
    assert_eq!(broken_rule(&zone), Some("B4"));
}

#[test]
fn a_free_block_in_an_isolated_pageblock_breaks_b10() {
    for wrong in [Migratetype::Isolate, Migratetype::Cma] {
        let zone = zone("A.......");
        zone.mem.pageblock(Pfn::new(0)).expect("RAM").set_migratetype(wrong);
        assert_eq!(broken_rule(&zone), Some("B10"));
    }
}

#[test]
fn a_wrong_count_of_cma_breaks_b3() {
    let mut zone = zone("A.......");
    zone.zone.info_mut().nr_free_cma = 1;
    assert_eq!(broken_rule(&zone), Some("B3"));
}

#[test]
#[should_panic(expected = "free list leads to pfn 0x5000")]
fn allocating_from_a_broken_list_panics() {
    let mut zone = zone("....");
    zone.zone.info_mut().free_area[2].lists[MOVABLE].head = 0x5000;
    zone.alloc(0);
}
