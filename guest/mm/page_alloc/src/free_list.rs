//! Lists of free blocks: one an order and type, linked through the descriptors of the blocks' heads.
//!
//! `Zone::nonempty` follows every change: the first order that can serve a request is found with one
//! shift and a count of zero bits.

use memvisor_abi::{FreeList, PFN_NONE};
use mm_core::{MemMap, Migratetype, Order, Page, PageKind, PageState, Pfn};

use crate::Zone;

/// Which end a block goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Allocated next.
    Head,
    /// Allocated last.
    Tail,
}

/// What an inner frame of a block says.
pub(crate) const TAIL: PageState = PageState::new(PageKind::Tail, Order::ZERO);

/// The descriptor of a frame that a list or a caller's check vouches for.
///
/// # Panics
/// If there is none: the list is broken.
#[inline]
pub(crate) fn linked<M: MemMap + ?Sized>(map: &M, pfn: u64) -> &Page {
    match map.page(Pfn::new(pfn)) {
        Some(page) => page,
        None => broken(pfn),
    }
}

#[cold]
#[inline(never)]
fn broken(pfn: u64) -> ! {
    panic!("free list leads to pfn {pfn:#x}, which has no descriptor")
}

impl Zone {
    #[inline]
    pub(crate) fn list(&self, order: Order, migratetype: Migratetype) -> &FreeList {
        // Neither index can exceed its array.
        &self.info().free_area[order.index()].lists[migratetype as usize]
    }

    #[inline]
    pub(crate) fn list_mut(&mut self, order: Order, migratetype: Migratetype) -> &mut FreeList {
        &mut self.info_mut().free_area[order.index()].lists[migratetype as usize]
    }

    /// Orders from `order` on whose list of that type has blocks, a bit an order, `order` first.
    #[inline]
    pub(crate) fn nonempty_from(&self, order: Order, migratetype: Migratetype) -> u16 {
        self.info().nonempty[migratetype as usize] >> order.as_u8()
    }

    /// Whether there is no block of that order and type (Linux: `free_area_empty`).
    #[inline]
    pub(crate) fn is_empty(&self, order: Order, migratetype: Migratetype) -> bool {
        self.nonempty_from(order, migratetype) & 1 == 0
    }

    /// Makes `page` the head of a free block and links it (Linux: `add_to_free_list` with
    /// `set_buddy_order`).
    #[inline]
    pub(crate) fn add_to_free_list<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        (pfn, page): (Pfn, &Page),
        order: Order,
        migratetype: Migratetype,
        zero: bool,
        end: End,
    ) {
        page.set_state(
            PageState::new(PageKind::Buddy, order).with_migratetype(migratetype).with_known_zero(zero),
        );
        self.link(map, (pfn, page), order, migratetype, end);
    }

    #[inline]
    fn link<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        (pfn, page): (Pfn, &Page),
        order: Order,
        migratetype: Migratetype,
        end: End,
    ) {
        let list = self.list_mut(order, migratetype);
        list.nr_free += 1;
        if list.head == PFN_NONE {
            (list.head, list.tail) = (pfn.as_u64(), pfn.as_u64());
            page.set_next(PFN_NONE);
            page.set_prev(PFN_NONE);
            self.info_mut().nonempty[migratetype as usize] |= 1 << order.as_u8();
        } else if end == End::Head {
            let first = core::mem::replace(&mut list.head, pfn.as_u64());
            page.set_next(first);
            page.set_prev(PFN_NONE);
            linked(map, first).set_prev(pfn.as_u64());
        } else {
            let last = core::mem::replace(&mut list.tail, pfn.as_u64());
            page.set_next(PFN_NONE);
            page.set_prev(last);
            linked(map, last).set_next(pfn.as_u64());
        }
    }

    /// Unlinks the head of a block; the caller says what becomes of it (Linux:
    /// `del_page_from_free_list`).
    #[inline]
    pub(crate) fn del_from_free_list<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        page: &Page,
        order: Order,
        migratetype: Migratetype,
    ) {
        let (prev, next) = (page.prev(), page.next());
        let list = self.list_mut(order, migratetype);
        list.nr_free = list.nr_free.wrapping_sub(1);
        if prev == PFN_NONE {
            list.head = next;
        } else {
            linked(map, prev).set_next(next);
        }
        if next == PFN_NONE {
            list.tail = prev;
        } else {
            linked(map, next).set_prev(prev);
        }
        if prev == PFN_NONE && next == PFN_NONE {
            self.info_mut().nonempty[migratetype as usize] &= !(1 << order.as_u8());
        }
    }

    /// Moves a free block to another type's list of the same order, to its tail so that it is used
    /// last, and with it the counts that depend on the type (Linux: `move_to_free_list`, which leaves
    /// the counts to its callers).
    pub(crate) fn move_to_free_list<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        (pfn, page): (Pfn, &Page),
        to: Migratetype,
    ) {
        let (order, from) = (page.order(), page.migratetype());
        self.del_from_free_list(map, page, order, from);
        self.account(from, order.pages().wrapping_neg());
        page.set_migratetype(to);
        self.link(map, (pfn, page), order, to, End::Tail);
        self.account(to, order.pages());
    }

    /// Counts `pages` more (a negative number in two's complement: fewer) free frames of that type. What
    /// is isolated is not free (Linux: `__mod_zone_freepage_state`).
    #[inline]
    pub(crate) fn account(&mut self, migratetype: Migratetype, pages: u64) {
        if migratetype == Migratetype::Isolate {
            return;
        }
        let info = self.info_mut();
        info.free_pages = info.free_pages.wrapping_add(pages);
        if migratetype == Migratetype::Cma {
            info.nr_free_cma = info.nr_free_cma.wrapping_add(pages);
        }
    }
}
