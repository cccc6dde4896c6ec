//! alloc_pages and its relatives: what they give, and what they refuse.

use memvisor_abi::VmEvent;
use mm_core::{Gfp, MaySleep, MemMap, Order, PageFlags, PageKind, Pfn, PhysMem, ZoneKind};

use super::machine::{one_zone, order, start, two_nodes};
use crate::{Context, FreeError, GfpError, TaskFlags, check_gfp};

#[test]
fn contradictions_are_refused_and_reported() {
    let token = MaySleep::checked_by_scheduler();
    let task = Context::task(&token);
    let refused = |gfp| check_gfp(task, gfp).expect_err("Linux forbids it");
    assert!(matches!(refused(Gfp::DMA | Gfp::HIGHMEM), GfpError::Zones { .. }));
    assert!(matches!(refused(Gfp::MOVABLE | Gfp::RECLAIMABLE), GfpError::Mobility { .. }));
    assert!(matches!(refused(Gfp::from_bits_retain(1 << 30)), GfpError::Unknown { bits } if bits == 1 << 30));
    let pages = start(&one_zone(1024), &[0]);
    assert_eq!(pages.alloc_pages(Context::ATOMIC, Gfp::KERNEL, Order::ZERO, None), None);
    assert!(pages.machine().lines.borrow()[0].contains("may sleep"));
    assert!(pages.alloc_pages(Context::ATOMIC, Gfp::ATOMIC, Order::ZERO, None).is_some());
}

#[test]
fn orders_sizes_and_nodes_that_do_not_exist_give_nothing() {
    let pages = start(&one_zone(4096), &[0]);
    let token = MaySleep::checked_by_scheduler();
    let task = Context::task(&token);
    assert_eq!(pages.alloc_pages_raw(task, Gfp::KERNEL, 11, None), None);
    assert!(pages.alloc_pages_raw(task, Gfp::KERNEL, 10, None).is_some());
    assert_eq!(pages.alloc_pages(task, Gfp::KERNEL, Order::ZERO, Some(63)), None);
    assert_eq!(pages.alloc_pages_exact(task, 0, Gfp::KERNEL), None);
    assert_eq!(pages.alloc_pages_exact(task, 5 << 20, Gfp::KERNEL), None);
}

#[test]
fn zeroed_pages_are_zero_and_others_are_not_touched() {
    let pages = start(&one_zone(1024), &[0]);
    let zeroed = pages.get_zeroed_page(Context::ATOMIC, Gfp::ATOMIC).expect("memory is empty");
    assert_eq!(pages.machine().mem.read_u64(zeroed), 0);
    assert_eq!(pages.machine().mem.touched_frames(), [zeroed.pfn()]);
    assert_eq!(pages.machine().event(VmEvent::PageZeroed), 1);
}

#[test]
fn an_exact_allocation_gives_its_rest_back() {
    let pages = start(&one_zone(1024), &[0]);
    let free = pages.machine().free_pages();
    let start = pages.alloc_pages_exact(Context::ATOMIC, 5 * 4096, Gfp::ATOMIC).expect("memory is empty");
    assert_eq!(pages.machine().free_pages(), free - 5);
    assert_eq!(pages.free_pages_exact(start, 5 * 4096), Ok(()));
    assert_eq!(pages.machine().free_pages(), free);
    pages.machine().audit();
}

#[test]
fn a_compound_page_is_one_from_every_frame() {
    let pages = start(&one_zone(1024), &[0]);
    let map = &pages.machine().mem;
    let head = pages.alloc_pages(Context::ATOMIC, Gfp::ATOMIC | Gfp::COMP, order(3), None).expect("memory");
    assert!(map.page(head).expect("RAM").has(PageFlags::HEAD));
    assert_eq!(map.page(head.offset(7)).expect("RAM").compound_head(), Some(head));
    assert_eq!(pages.get_page(head.offset(5)), Ok(()));
    assert_eq!(pages.split_page(head, order(3)), Err(FreeError::Compound { pfn: head }));
    let tail = head.offset(1);
    assert_eq!(pages.free_pages(tail, Order::ZERO), Err(FreeError::Tail { pfn: tail }));
    let free = pages.machine().free_pages();
    assert_eq!(pages.put_page(head.offset(2)), Ok(()));
    assert_eq!(pages.machine().free_pages(), free, "one reference is left");
    assert_eq!(pages.put_page(head.offset(6)), Ok(()));
    assert_eq!(pages.machine().free_pages(), free + 8);
    assert_eq!(map.page(head.offset(7)).expect("RAM").compound_head(), None);
    pages.machine().audit();
}

#[test]
fn every_wrong_free_is_named_and_changes_nothing() {
    let pages = start(&two_nodes(), &[0, 1]);
    let map = &pages.machine().mem;
    let pfn = pages.alloc_pages(Context::ATOMIC, Gfp::ATOMIC, order(2), None).expect("memory");
    let before = pages.machine().free_pages();
    let page = map.page(pfn).expect("RAM");
    assert_eq!(
        pages.free_pages(pfn, order(1)),
        Err(FreeError::WrongOrder { pfn, order: order(1), allocated: order(2) })
    );
    let inner = pfn.offset(1);
    assert_eq!(pages.free_pages(inner, Order::ZERO), Err(FreeError::DoubleFree { pfn: inner }));
    page.set_mapcount(0);
    assert_eq!(pages.free_pages(pfn, order(2)), Err(FreeError::Mapped { pfn, mapcount: 0 }));
    page.set_mapcount(-1);
    page.insert(PageFlags::RESERVED);
    assert_eq!(pages.free_pages(pfn, order(2)), Err(FreeError::Reserved { pfn }));
    page.remove(PageFlags::RESERVED);
    page.set_refcount(0);
    assert_eq!(pages.free_pages(pfn, order(2)), Err(FreeError::InUse { pfn, refcount: 0 }));
    page.set_refcount(1);
    let hole = Pfn::new(0x9_0000);
    assert_eq!(pages.free_pages(hole, Order::ZERO), Err(FreeError::NoDescriptor { pfn: hole }));
    assert_eq!(pages.machine().free_pages(), before);
    assert_eq!(pages.free_pages(pfn, order(2)), Ok(()));
    assert_eq!(pages.free_pages(pfn, order(2)), Err(FreeError::DoubleFree { pfn }));
    assert_eq!(pages.machine().free_pages(), before + 4);
    pages.machine().audit();
}

#[test]
fn a_block_that_somebody_else_refers_to_loses_all_but_its_first_frame() {
    let pages = start(&one_zone(1024), &[0]);
    let pfn = pages.alloc_pages(Context::ATOMIC, Gfp::ATOMIC, order(3), None).expect("memory");
    let free = pages.machine().free_pages();
    pages.get_page(pfn).expect("allocated");
    assert_eq!(pages.free_pages(pfn, order(3)), Ok(()));
    assert_eq!(pages.machine().free_pages(), free + 7);
    assert_eq!(pages.put_page(pfn), Ok(()));
    assert_eq!(pages.machine().free_pages(), free + 8);
    pages.machine().audit();
}

#[test]
fn the_request_that_is_to_fail_does_whoever_would_have_served_it() {
    let pages = start(&one_zone(1024), &[0]);
    let token = MaySleep::checked_by_scheduler();
    let one = |gfp| pages.alloc_pages(Context::task(&token), gfp, Order::ZERO, None);
    // The list of this CPU has pages.
    let given: Vec<_> = (0..4).filter_map(|_| one(Gfp::KERNEL)).collect();
    let free = pages.machine().free_pages();
    pages.machine().fail_nth.set(3);
    let got = [Gfp::KERNEL, Gfp::KERNEL, Gfp::KERNEL, Gfp::KERNEL].map(one);
    assert_eq!(got.map(|pfn| pfn.is_some()), [true, true, false, true]);
    pages.machine().fail_nth.set(1);
    assert!(one(Gfp::KERNEL | Gfp::NOFAIL).is_some(), "who cannot do without is not counted");
    let list = pages.alloc_pages_bulk_list(Context::ATOMIC, Gfp::ATOMIC, None, 33);
    assert_eq!(list.len, 0, "nor does a list help");
    assert_eq!(pages.machine().fail_nth.get(), 0);
    assert_eq!((given.len() as u64, free - pages.machine().free_pages()), (4, 4));
    pages.machine().audit();
}

#[test]
fn bulk_fills_the_empty_places_and_lists() {
    let pages = start(&one_zone(1024), &[0]);
    let free = pages.machine().free_pages();
    let one = pages.alloc_pages(Context::ATOMIC, Gfp::ATOMIC, Order::ZERO, None);
    let mut array = [None; 40];
    array[3] = one;
    assert_eq!(pages.alloc_pages_bulk_array(Context::ATOMIC, Gfp::ATOMIC, None, &mut array), 40);
    assert_eq!(array[3], one);
    let list = pages.alloc_pages_bulk_list(Context::ATOMIC, Gfp::ATOMIC, None, 33);
    assert_eq!(list.len, 33);
    assert_eq!(pages.machine().free_pages(), free - 73);
    assert_eq!(pages.free_pages_list(list), 0);
    array.iter().flatten().for_each(|pfn| pages.free_pages(*pfn, Order::ZERO).expect("allocated"));
    assert_eq!(pages.machine().free_pages(), free);
    pages.machine().audit();
}

#[test]
fn highmem_is_not_for_addresses_and_the_owner_is_the_allocator() {
    let pages = start(&two_nodes(), &[0, 1]);
    let addr = pages.get_free_pages(Context::ATOMIC, Gfp::ATOMIC | Gfp::HIGHMEM | Gfp::MOVABLE, Order::ZERO);
    let page = pages.machine().mem.page(addr.expect("memory").pfn()).expect("RAM");
    assert_eq!((page.zone(), page.kind(), page.refcount()), (ZoneKind::Normal, PageKind::Allocated, 1));
}

#[test]
fn scopes_of_a_task_take_rights_away() {
    let token = MaySleep::checked_by_scheduler();
    let noio = Context { task: TaskFlags::MEMALLOC_NOIO, ..Context::task(&token) };
    assert_eq!(noio.scoped(Gfp::KERNEL), Gfp::NOIO);
    let nofs = Context { task: TaskFlags::MEMALLOC_NOFS, ..Context::task(&token) };
    assert_eq!(nofs.scoped(Gfp::KERNEL), Gfp::NOFS);
}
