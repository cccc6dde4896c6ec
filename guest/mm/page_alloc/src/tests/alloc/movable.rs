//! An owner of movable pages: each has a number, and its frame says so in its first and last word.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use mm_core::{
    Gfp, MemMap, Migrate, MigrateError, MigrateMode, Order, Page, PageFlags, PageKind, Pfn, PhysAddr,
    PhysMem, refcount,
};

use super::machine::TestMachine;
use crate::{Context, PageAllocator};

/// What the owner's pages name as their owner.
pub const OWNER: u64 = 7;
const LAST_WORD: u64 = 4088;

/// See the module's text.
#[derive(Debug, Default)]
pub struct SimOwner {
    /// Frame of each page.
    pub pages: RefCell<BTreeMap<u64, Pfn>>,
    /// Pages that may not even be isolated.
    pub pinned: RefCell<BTreeSet<u64>>,
    /// Pages whose lock was opened by migration.
    pub unlocked: RefCell<Vec<Pfn>>,
    /// Pages that are isolated and then not moved, with the reason.
    pub stubborn: RefCell<BTreeMap<u64, MigrateError>>,
}

impl Migrate for TestMachine {
    fn isolate_page(&self, pfn: Pfn, page: &Page, _: MigrateMode) -> bool {
        assert_eq!(page.mapping(), OWNER);
        assert_eq!(self.movable.pages.borrow().get(&page.index()), Some(&pfn));
        !self.movable.pinned.borrow().contains(&page.index())
    }

    fn migrate_page(&self, to: Pfn, from: Pfn, page: &Page, _: MigrateMode) -> Result<(), MigrateError> {
        let number = page.index();
        assert_eq!(page.refcount(), 0, "nobody else has the page");
        if let Some(error) = self.movable.stubborn.borrow().get(&number) {
            return Err(*error);
        }
        for word in [0, LAST_WORD] {
            self.mem.write_u64(at(to, word), self.mem.read_u64(at(from, word)));
            self.mem.write_u64(at(from, word), 0xdead);
        }
        let old = self.movable.pages.borrow_mut().insert(number, to);
        assert_eq!(old, Some(from), "a page of the owner's moved");
        Ok(())
    }

    fn putback_page(&self, pfn: Pfn, page: &Page) {
        assert_eq!(self.movable.pages.borrow().get(&page.index()), Some(&pfn));
    }

    fn release_user_page(&self, page: &Page) {
        page.remove(PageFlags::SWAPBACKED | PageFlags::ACTIVE);
    }

    fn migrate_user_page(&self, _: Pfn, from: Pfn, _: MigrateMode) -> Result<(), MigrateError> {
        // As a program's page that went: its list's marks are there still.
        let page = self.mem.page(from).expect("RAM");
        page.set_owner(0, 0);
        page.set_kind(PageKind::Allocated);
        assert!(refcount::put_unless_last(page.references()), "the owner had one");
        Ok(())
    }

    fn unlock_page(&self, pfn: Pfn, page: &Page) {
        page.unlock();
        self.movable.unlocked.borrow_mut().push(pfn);
    }
}

fn at(pfn: Pfn, word: u64) -> PhysAddr {
    pfn.phys().checked_add(word).expect("frames of tests are low")
}

fn content(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

/// The allocator of tests.
pub type Pages = PageAllocator<&'static TestMachine>;

/// A new page with that number; `false` if there is no memory.
pub fn add(pages: &Pages, number: u64) -> bool {
    let machine = *pages.machine();
    let gfp = Gfp::NOWAIT | Gfp::MOVABLE | Gfp::NOWARN;
    let Some(pfn) = pages.alloc_pages(Context::ATOMIC, gfp, Order::ZERO, None) else { return false };
    machine.mem.write_u64(at(pfn, 0), content(number));
    machine.mem.write_u64(at(pfn, LAST_WORD), !content(number));
    let page = machine.mem.page(pfn).expect("RAM");
    page.set_index(number);
    page.set_movable(OWNER);
    machine.movable.pages.borrow_mut().insert(number, pfn);
    true
}

/// Frees the page with that number.
pub fn drop_page(pages: &Pages, number: u64) {
    let machine = *pages.machine();
    let pfn = machine.movable.pages.borrow_mut().remove(&number).expect("a page of that number");
    let page = machine.mem.page(pfn).expect("RAM");
    page.lock();
    page.clear_movable();
    page.unlock();
    pages.free_pages(pfn, Order::ZERO).expect("the owner frees its page");
}

/// Every page is where its owner thinks, holds what it should, and is nobody else's.
pub fn verify(machine: &TestMachine) {
    for (number, pfn) in machine.movable.pages.borrow().iter() {
        let page = machine.mem.page(*pfn).expect("RAM");
        assert_eq!((page.kind(), page.refcount()), (PageKind::Allocated, 1), "page {number} at {pfn}");
        assert_eq!((page.mapping(), page.index()), (OWNER, *number), "page {number} at {pfn}");
        assert!(
            page.has(PageFlags::MOVABLE) && !page.has(PageFlags::ISOLATED) && !page.has(PageFlags::LOCKED)
        );
        assert_eq!(machine.mem.read_u64(at(*pfn, 0)), content(*number), "page {number} at {pfn}");
        assert_eq!(machine.mem.read_u64(at(*pfn, LAST_WORD)), !content(*number), "page {number} at {pfn}");
    }
}
