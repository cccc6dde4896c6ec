//! One step at a time.

use std::string::String;
use std::vec::Vec;

use memvisor_abi::NR_ORDERS;
use mm_core::{MemMap, Migratetype, Order, PageFlags, PageKind, Pfn, ZoneKind};
use mm_sim::SimMem;
use proptest::prelude::*;

use super::{order, zone};
use crate::{AllocFlags, FreeError, Zone, init_range};

#[test]
fn hand_over_makes_the_largest_aligned_blocks() {
    let zone = zone("#....... ........ ~~...... #");
    assert_eq!(zone.picture(), "#01.2...3.......~~1.2...#");
}

#[test]
fn hand_over_in_pieces_merges_across_them() {
    let mem = SimMem::new(&[Pfn::new(0)..Pfn::new(4096)]);
    let mut zone = Zone::new(0, ZoneKind::Dma);
    zone.set_extent(Pfn::new(0), 4096, 4096);
    zone.add_managed(4096);
    init_range(&mem, Pfn::new(0), Pfn::new(4096), 0, ZoneKind::Dma, PageKind::Tail);
    for start in [0, 1000, 1500, 3333] {
        let end = [1000, 1500, 3333, 4096].into_iter().find(|end| *end > start).expect("ends follow starts");
        zone.free_range(&mem, Pfn::new(start), Pfn::new(end)).expect("fresh frames");
    }
    let mut blocks = [0; NR_ORDERS];
    blocks[Order::MAX.index()] = 4;
    assert_eq!(zone.info().free_area.map(|area| area.nr_free()), blocks);
    assert_eq!((zone.info().free_pages, zone.audit(&mem)), (4096, Ok(())));
}

#[test]
fn allocation_splits_the_smallest_block_that_suffices() {
    let mut zone = zone("....AA.. ........");
    assert_eq!(zone.alloc(0), Some(6));
    assert_eq!(zone.picture(), "2...AaA03.......");
    assert_eq!(zone.alloc(3), Some(8));
    assert_eq!(zone.alloc(3), None);
    assert_eq!(zone.alloc(1), Some(0));
    assert_eq!(zone.picture(), "Aa1.AaA0Aaaaaaaa");
    assert_eq!(zone.zone.info().free_pages, 3);
}

#[test]
fn an_allocated_block_says_so() {
    let mut zone = zone("........");
    assert_eq!(zone.alloc(2), Some(0));
    let head = zone.mem.page(Pfn::new(0)).expect("RAM");
    assert_eq!((head.kind(), head.order(), head.refcount()), (PageKind::Allocated, order(2), 1));
    let inner = zone.mem.page(Pfn::new(3)).expect("RAM");
    assert_eq!((inner.kind(), inner.order(), inner.refcount()), (PageKind::Tail, Order::ZERO, 0));
}

#[test]
fn freeing_merges_up_to_the_whole() {
    let mut zone = zone("A.BBCCCC");
    zone.free(2, 1).expect("B is allocated");
    assert_eq!(zone.picture(), "A01.Aaaa");
    zone.free(0, 0).expect("A is allocated");
    assert_eq!(zone.picture(), "2...Aaaa");
    zone.free(4, 2).expect("C is allocated");
    assert_eq!(zone.picture(), "3.......");
}

#[test]
fn a_buddy_of_another_order_is_not_merged() {
    let mut zone = zone("AA.B....");
    zone.free(0, 1).expect("A is allocated");
    assert_eq!(zone.picture(), "1.0A2...");
}

#[test]
fn blocks_never_grow_past_the_largest_order() {
    let mut zone = zone(&".".repeat(2048));
    assert_eq!(zone.zone.info().free_area[10].nr_free(), 2);
    let first = zone.alloc(10).expect("a largest block is free");
    zone.free(first, 10).expect("it was allocated");
    assert_eq!(zone.zone.info().free_area[10].nr_free(), 2);
    assert_eq!(zone.picture().chars().filter(|cell| *cell == 'X').count(), 2);
}

#[test]
fn a_freed_block_is_the_next_to_go_out() {
    let mut zone = zone("A.B.C.D.");
    zone.free(4, 0).expect("C is allocated");
    zone.free(0, 0).expect("A is allocated");
    assert_eq!(zone.alloc(1), Some(0));
    assert_eq!(zone.alloc(1), Some(4));
}

#[test]
fn a_block_about_to_merge_further_goes_to_the_tail() {
    // Freeing C makes an order-0 block whose order-1 neighbour is free: D is what keeps them apart.
    let mut zone = zone("A.BB CD..");
    zone.free(4, 0).expect("C is allocated");
    assert_eq!(zone.picture(), "A0Aa0A1.");
    assert_eq!(zone.alloc(0), Some(1), "frame 4 waits for its buddy");
}

#[test]
fn zones_do_not_merge_with_each_other() {
    let mem = SimMem::new(&[Pfn::new(0)..Pfn::new(16)]);
    let mut low = Zone::new(0, ZoneKind::Dma);
    let mut high = Zone::new(0, ZoneKind::Normal);
    let mut other_node = Zone::new(1, ZoneKind::Normal);
    for (zone, start, end) in [(&mut low, 0, 4), (&mut high, 4, 8), (&mut other_node, 8, 16)] {
        let kind = ZoneKind::from_raw(zone.info().kind).expect("a known kind");
        init_range(&mem, Pfn::new(start), Pfn::new(end), zone.info().node, kind, PageKind::Tail);
        zone.set_extent(Pfn::new(0), 16, 16);
        zone.add_managed(end - start);
        zone.free_range(&mem, Pfn::new(start), Pfn::new(end)).expect("fresh frames");
    }
    assert_eq!(low.info().free_area[2].nr_free(), 1);
    assert_eq!(high.info().free_area[2].nr_free(), 1);
    assert_eq!(other_node.info().free_area[3].nr_free(), 1);
    for zone in [&low, &high, &other_node] {
        assert_eq!(zone.audit(&mem), Ok(()));
        assert_eq!(zone.audit_range(&mem, Pfn::new(0), Pfn::new(16)), Ok(()));
    }
    let wrong = low.free_range(&mem, Pfn::new(8), Pfn::new(9));
    assert_eq!(wrong, Err(FreeError::WrongZone { pfn: Pfn::new(8), node: 1, zone: ZoneKind::Normal }));
}

#[test]
fn wrong_frees_are_refused_and_change_nothing() {
    let mut zone = zone("A.BB#~~~ CCCC....");
    let before = zone.picture();
    let pfn = Pfn::new;
    assert_eq!(zone.free(1, 0), Err(FreeError::DoubleFree { pfn: pfn(1) }));
    assert_eq!(zone.free(13, 0), Err(FreeError::DoubleFree { pfn: pfn(13) }));
    assert_eq!(
        zone.free(0, 1),
        Err(FreeError::WrongOrder { pfn: pfn(0), order: order(1), allocated: order(0) })
    );
    assert_eq!(zone.free(3, 1), Err(FreeError::Misaligned { pfn: pfn(3), order: order(1) }));
    assert_eq!(zone.free(3, 0), Err(FreeError::Tail { pfn: pfn(3) }));
    assert_eq!(zone.free(4, 0), Err(FreeError::Reserved { pfn: pfn(4) }));
    assert_eq!(zone.free(5, 0), Err(FreeError::NoDescriptor { pfn: pfn(5) }));
    assert_eq!(zone.free(16, 0), Err(FreeError::OutsideZone { pfn: pfn(16), pages: 1 }));
    zone.mem.page(pfn(2)).expect("RAM").set_refcount(2);
    assert_eq!(zone.free(2, 1), Err(FreeError::InUse { pfn: pfn(2), refcount: 2 }));
    zone.mem.page(pfn(8)).expect("RAM").set_mapcount(0);
    assert_eq!(zone.free(8, 2), Err(FreeError::Mapped { pfn: pfn(8), mapcount: 0 }));
    assert_eq!(zone.picture(), before);
    assert_eq!(
        zone.free(8, 2).expect_err("still mapped").to_string(),
        "free of pfn 0x8: mapcount 0, unmap it first"
    );
}

#[test]
fn a_span_ends_before_its_end() {
    let zone = zone("A...").zone;
    let spans = |pfn, pages| zone.spans(Pfn::new(pfn), pages);
    assert!(spans(0, 4) && spans(3, 1) && spans(3, 0));
    assert!(!spans(0, 5) && !spans(3, 2) && !spans(4, 0) && !spans(4, 1) && !spans(u64::MAX, 2));
}

#[test]
fn hand_over_refuses_frames_with_an_owner() {
    let mut zone = zone("..A#....");
    let pfn = Pfn::new;
    let mut hand_over = |start, end| zone.zone.free_range(&zone.mem, pfn(start), pfn(end));
    assert_eq!(hand_over(0, 2), Err(FreeError::DoubleFree { pfn: pfn(0) }));
    assert_eq!(hand_over(2, 3), Err(FreeError::Owned { pfn: pfn(2), kind: PageKind::Allocated }));
    assert_eq!(hand_over(3, 4), Err(FreeError::Reserved { pfn: pfn(3) }));
    assert_eq!(hand_over(6, 8), Err(FreeError::DoubleFree { pfn: pfn(6) }));
    assert_eq!(hand_over(8, 9), Err(FreeError::OutsideZone { pfn: pfn(8), pages: 1 }));
    assert_eq!(zone.picture(), "1.A#2...");
}

#[test]
fn a_reserved_frame_can_be_released() {
    let mut zone = zone("#...");
    zone.mem.page(Pfn::new(0)).expect("RAM").remove(PageFlags::RESERVED);
    zone.free(0, 0).expect("no longer reserved");
    zone.zone.add_managed(1);
    assert_eq!(zone.picture(), "2...");
}

#[test]
fn a_split_block_is_freed_page_by_page() {
    let mut zone = zone("AAAA");
    zone.zone.split_page(&zone.mem, Pfn::new(0), order(2)).expect("A is allocated");
    for pfn in [2, 0, 3, 1] {
        zone.mem.page(Pfn::new(pfn)).expect("RAM").set_kind(PageKind::User);
        zone.free(pfn, 0).expect("each page is a block now");
    }
    assert_eq!(zone.picture(), "2...");
}

#[test]
fn a_freed_frame_forgets_its_owner() {
    let mut zone = zone("A...");
    let page = zone.mem.page(Pfn::new(0)).expect("RAM");
    page.set_kind(PageKind::User);
    page.set_mapping(7);
    zone.free(0, 0).expect("unmapped");
    let page = zone.mem.page(Pfn::new(0)).expect("RAM");
    assert_eq!((page.mapping(), page.order(), page.refcount()), (0, order(2), 0));
}

#[test]
fn descriptors_of_a_hole_are_skipped() {
    let mem = SimMem::new(&[Pfn::new(0)..Pfn::new(2), Pfn::new(6)..Pfn::new(8)]);
    assert_eq!(init_range(&mem, Pfn::new(1), Pfn::new(7), 2, ZoneKind::Dma32, PageKind::Kernel), 2);
    let page = mem.page(Pfn::new(6)).expect("RAM");
    assert!(page.has(PageFlags::RESERVED));
    assert_eq!((page.node(), page.zone(), page.refcount()), (2, ZoneKind::Dma32, 1));
    assert_eq!(mem.page(Pfn::new(7)).expect("RAM").kind(), PageKind::None);
}

/// What `count` blocks of an order are, one after the other or at once, and the zone afterwards.
fn bulk(text: &str, raw: u8, count: u32, at_once: bool) -> (Vec<u64>, String, bool) {
    let mut zone = zone(text);
    let mut taken = Vec::new();
    let flags = AllocFlags::default();
    let (calls, count) = if at_once { (1, count) } else { (count, 1) };
    for _ in 0..calls {
        zone.zone.rmqueue_bulk(&zone.mem, order(raw), count, Migratetype::Movable, flags, |pfn, _| {
            taken.push(pfn);
        });
    }
    let page = |pfn: &Pfn| zone.mem.page(*pfn).expect("RAM");
    let allocated = taken.iter().all(|pfn| page(pfn).state().is_allocated_block(order(raw)));
    taken.iter().for_each(|pfn| page(pfn).set_refcount(1));
    (taken.iter().map(|pfn| pfn.as_u64()).collect(), zone.picture(), allocated)
}

proptest! {
    #[test]
    fn many_at_once_are_the_same_blocks_as_one_after_the_other(
        free in proptest::collection::vec(prop::bool::weighted(0.75), 64),
        raw in 0_u8..3,
        count in 1_u32..80,
    ) {
        // Four frames each; a letter is a block, so neighbours have different ones.
        let cells = free.iter().zip("ABC".chars().cycle()).map(|(free, letter)| if *free { '.' } else { letter });
        let text: String = cells.flat_map(|cell| std::iter::repeat_n(cell, 4)).collect();
        let (one, at_once) = (bulk(&text, raw, count, false), bulk(&text, raw, count, true));
        prop_assert!(at_once.2);
        prop_assert_eq!(one, at_once);
    }
}
