//! The list of free blocks of one order, linked through the descriptors of the blocks' heads.

use memvisor_abi::{FreeArea, PFN_NONE};
use mm_core::{MemMap, Order, Page, PageKind, Pfn};

/// Which end a block goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Allocated next.
    Head,
    /// Allocated last.
    Tail,
}

/// The descriptor of a frame that a list or a caller's check vouches for.
///
/// # Panics
/// If there is none: the list is broken.
pub(crate) fn linked<M: MemMap + ?Sized>(map: &M, pfn: u64) -> &Page {
    match map.page(Pfn::new(pfn)) {
        Some(page) => page,
        None => panic!("free list leads to pfn {pfn:#x}, which has no descriptor"),
    }
}

/// Makes `page` the head of a free block and links it (Linux: `add_to_free_list` with
/// `set_buddy_order`).
pub(crate) fn add<M: MemMap + ?Sized>(
    area: &mut FreeArea,
    map: &M,
    pfn: Pfn,
    page: &Page,
    order: Order,
    end: End,
) {
    page.set_kind(PageKind::Buddy);
    page.set_order(order);
    page.set_private(u64::from(order.as_u8()));
    let (prev, next) = match end {
        End::Head => (PFN_NONE, area.head),
        End::Tail => (area.tail, PFN_NONE),
    };
    page.set_prev(prev);
    page.set_next(next);
    join(area, map, prev, Some(pfn), next);
    area.nr_free += 1;
}

/// Unlinks `page` and makes it an inner frame; the caller says what becomes of it (Linux:
/// `del_page_from_free_list`).
pub(crate) fn remove<M: MemMap + ?Sized>(area: &mut FreeArea, map: &M, page: &Page) {
    join(area, map, page.prev(), None, page.next());
    page.set_next(PFN_NONE);
    page.set_prev(PFN_NONE);
    page.set_private(0);
    page.set_order(Order::ZERO);
    page.set_kind(PageKind::Tail);
    area.nr_free = area.nr_free.saturating_sub(1);
}

/// Points the neighbours `prev` and `next` (or the list's ends) at `between`, or at each other.
fn join<M: MemMap + ?Sized>(area: &mut FreeArea, map: &M, prev: u64, between: Option<Pfn>, next: u64) {
    let forward = between.map_or(next, Pfn::as_u64);
    let back = between.map_or(prev, Pfn::as_u64);
    if prev == PFN_NONE {
        area.head = forward;
    } else {
        linked(map, prev).set_next(forward);
    }
    if next == PFN_NONE {
        area.tail = back;
    } else {
        linked(map, next).set_prev(back);
    }
}
