//! Single pages and lists move, stay, or are freed on the way.

use memvisor_abi::VmEvent;
use mm_core::{Gfp, MemMap, MigrateError, MigrateMode, Order, PageFlags, PageKind, Pfn};

use super::machine::{one_zone, order, start};
use super::movable::{Pages, add, drop_page, verify};
use crate::{AllocTarget, Context, Migrated, PageList};

fn page_of(pages: &Pages, number: u64) -> Pfn {
    pages.machine().movable.pages.borrow()[&number]
}

fn move_all(pages: &Pages, list: &mut PageList, mode: MigrateMode) -> Migrated {
    let gfp = Gfp::NOWAIT | Gfp::MOVABLE;
    pages.migrate_pages(list, mode, &mut AllocTarget { pages, context: Context::ATOMIC, gfp, node: None })
}

fn isolate_all(pages: &Pages) -> PageList {
    let range = pages.isolate_migratepages_range(Pfn::new(0x1000), Pfn::new(0x1400), MigrateMode::Sync);
    assert_eq!(range.next, Pfn::new(0x1400));
    range.pages
}

#[test]
fn a_page_moves_with_its_contents_and_its_owners_reference() {
    let pages = start(&one_zone(1024), &[0]);
    let free = pages.machine().free_pages();
    assert!(add(&pages, 1));
    let before = page_of(&pages, 1);
    let page = pages.machine().mem.page(before).expect("RAM");
    let mut list = isolate_all(&pages);
    assert!(list.len == 1 && page.has(PageFlags::ISOLATED) && page.refcount() == 2);
    let done = move_all(&pages, &mut list, MigrateMode::Async);
    assert_eq!(done, Migrated { succeeded: 1, failed: 0, no_memory: false });
    assert_ne!(page_of(&pages, 1), before);
    assert!(!page.has(PageFlags::MOVABLE) && !page.has(PageFlags::ISOLATED) && page.refcount() == 0);
    assert_eq!((page.kind(), page.mapping()), (PageKind::Pcp, 0));
    verify(pages.machine());
    assert_eq!(pages.machine().event(VmEvent::PgmigrateSuccess), 1);
    drop_page(&pages, 1);
    assert_eq!(pages.machine().free_pages(), free);
    pages.machine().audit();
}

#[test]
fn a_frame_that_a_programs_page_left_has_no_marks_and_who_waits_for_its_lock_is_woken() {
    let pages = start(&one_zone(1024), &[0]);
    assert!(add(&pages, 1));
    let from = page_of(&pages, 1);
    let page = pages.machine().mem.page(from).expect("RAM");
    page.clear_movable();
    page.set_owner(super::movable::OWNER, 1);
    page.set_kind(PageKind::User);
    page.insert(PageFlags::SWAPBACKED | PageFlags::ACTIVE);
    let mut list = isolate_all(&pages);
    assert_eq!(list.len, 1);
    let done = move_all(&pages, &mut list, MigrateMode::Sync);
    assert_eq!(done, Migrated { succeeded: 1, failed: 0, no_memory: false });
    assert_eq!((page.kind(), page.refcount()), (PageKind::Pcp, 0));
    assert!(
        !page.has_any(PageFlags::SWAPBACKED | PageFlags::ACTIVE | PageFlags::LOCKED),
        "{:?}",
        page.flags()
    );
    // Locked to be isolated, and to be moved.
    assert_eq!(*pages.machine().movable.unlocked.borrow(), [from, from]);
}

#[test]
fn a_page_that_stays_goes_back_to_its_owner() {
    let pages = start(&one_zone(1024), &[0]);
    for (number, error) in [(1, MigrateError::Again), (2, MigrateError::Busy)] {
        assert!(add(&pages, number));
        pages.machine().movable.stubborn.borrow_mut().insert(number, error);
    }
    let before = [page_of(&pages, 1), page_of(&pages, 2)];
    let free = pages.machine().free_pages();
    let mut list = isolate_all(&pages);
    let done = move_all(&pages, &mut list, MigrateMode::Sync);
    assert_eq!(done, Migrated { succeeded: 0, failed: 2, no_memory: false });
    pages.putback_movable_pages(&mut list);
    assert_eq!([page_of(&pages, 1), page_of(&pages, 2)], before);
    assert_eq!(pages.machine().event(VmEvent::PgmigrateFail), 2);
    assert_eq!(pages.machine().free_pages(), free);
    verify(pages.machine());
}

#[test]
fn an_isolated_page_is_not_isolated_again_nor_one_that_is_locked_or_pinned() {
    let pages = start(&one_zone(1024), &[0]);
    assert!(add(&pages, 1) && add(&pages, 2) && add(&pages, 3));
    pages.machine().movable.pinned.borrow_mut().insert(2);
    let locked = pages.machine().mem.page(page_of(&pages, 3)).expect("RAM");
    locked.lock();
    let mut list = isolate_all(&pages);
    assert_eq!(list.len, 1);
    assert_eq!(isolate_all(&pages).len, 0);
    locked.unlock();
    pages.putback_movable_pages(&mut list);
    verify(pages.machine());
}

#[test]
fn a_page_that_its_owner_frees_while_it_is_isolated_is_free_in_the_end() {
    let pages = start(&one_zone(1024), &[0]);
    let free = pages.machine().free_pages();
    assert!(add(&pages, 1) && add(&pages, 2));
    let mut list = isolate_all(&pages);
    drop_page(&pages, 1);
    drop_page(&pages, 2);
    assert_eq!(pages.machine().free_pages(), free - 2, "isolation has references");
    // One is found free by migration, the other is put back.
    let second = PageList { head: list.pop(&pages.machine().mem).expect("two pages").as_u64(), len: 1 };
    assert_eq!(move_all(&pages, &mut list, MigrateMode::Async).succeeded, 1);
    pages.putback_movable_pages(&mut { second });
    assert_eq!(pages.machine().free_pages(), free);
    pages.machine().audit();
}

#[test]
fn a_page_that_somebody_looks_at_is_tried_again_and_left() {
    let pages = start(&one_zone(1024), &[0]);
    assert!(add(&pages, 1));
    let pfn = page_of(&pages, 1);
    pages.get_page(pfn).expect("an allocated page");
    let mut list = isolate_all(&pages);
    assert_eq!(move_all(&pages, &mut list, MigrateMode::Sync).failed, 1);
    pages.putback_movable_pages(&mut list);
    pages.put_page(pfn).expect("a reference");
    verify(pages.machine());
}

#[test]
fn without_memory_the_rest_of_the_list_stays() {
    let pages = start(&one_zone(1024), &[0]);
    assert!((0..8).all(|number| add(&pages, number)));
    let mut list = isolate_all(&pages);
    while pages.alloc_pages(Context::ATOMIC, Gfp::NOWAIT | Gfp::NOWARN, Order::ZERO, None).is_some() {}
    let done = move_all(&pages, &mut list, MigrateMode::Sync);
    assert!(done.no_memory && done.failed == 8);
    pages.putback_movable_pages(&mut list);
    verify(pages.machine());
}

#[test]
fn a_range_is_isolated_in_clusters_and_compound_pages_move_whole() {
    let pages = start(&one_zone(1024), &[0]);
    let mem = &pages.machine().mem;
    let gfp = Gfp::NOWAIT | Gfp::MOVABLE | Gfp::COMP;
    let head = pages.alloc_pages(Context::ATOMIC, gfp, order(3), None).expect("memory");
    let page = mem.page(head).expect("RAM");
    page.set_index(99);
    pages.machine().movable.pages.borrow_mut().insert(99, head);
    page.set_movable(super::movable::OWNER);
    assert!((0..40).all(|number| add(&pages, number)));
    let (mut at, mut total) = (Pfn::new(0x1000), 0);
    while at < Pfn::new(0x1400) {
        let mut range = pages.isolate_migratepages_range(at, Pfn::new(0x1400), MigrateMode::Sync);
        assert!(range.pages.len <= 32 && range.next > at);
        total += range.pages.len;
        assert_eq!(move_all(&pages, &mut range.pages, MigrateMode::Sync).failed, 0);
        at = range.next;
    }
    assert!(total >= 41, "what moved ahead may be seen twice");
    let moved = page_of(&pages, 99);
    let page = mem.page(moved).expect("RAM");
    assert!(page.order() == order(3) && page.has(PageFlags::HEAD) && moved != head);
    pages.machine().movable.pages.borrow_mut().remove(&99);
    verify(pages.machine());
    pages.machine().audit();
}
