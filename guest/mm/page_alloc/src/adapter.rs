//! The zone as the allocator above it wants it, on a [`Zone`] that does not tell types of blocks apart: every
//! free block is on one list of its order, a page's type is the one it was last asked for as, and there is
//! neither a highatomic reserve, nor a contiguous area, nor a boost.

use memvisor_abi::PFN_NONE;
use mm_core::{MemMap, Migratetype, Order, Page, PageKind, PageState, Pfn};

use crate::free_list::{self, End, linked};
use crate::{AllocFlags, Zone};

/// The type of the pageblock that a page lies in.
#[inline]
pub(crate) fn pageblock_type(page: &Page) -> Migratetype {
    page.migratetype()
}

/// Orders with free blocks, one bit each.
#[inline]
pub(crate) fn nonempty_orders(zone: &Zone) -> u64 {
    let areas = zone.info().free_area.iter().enumerate();
    areas.fold(0, |orders, (order, area)| orders | u64::from(area.head != PFN_NONE) << order)
}

pub(crate) const fn nr_reserved_highatomic(_: &Zone) -> u64 {
    0
}

pub(crate) const fn nr_free_cma(_: &Zone) -> u64 {
    0
}

pub(crate) const fn watermark_boost(_: &Zone) -> u64 {
    0
}

impl Zone {
    /// Takes a block for an allocation (Linux: `rmqueue_buddy` without locks and watermarks). Only the head's state is
    /// written; the other frames stay `Tail`. References, kind and what an owner needs are the caller's.
    #[inline]
    pub fn rmqueue<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        order: Order,
        migratetype: Migratetype,
        _: AllocFlags,
    ) -> Option<Pfn> {
        let pfn = self.take(map, order)?;
        let head = linked(map, pfn.as_u64());
        head.set_state(PageState::new(PageKind::Allocated, order).with_migratetype(migratetype));
        Some(pfn)
    }

    /// Takes up to `count` blocks of one order, calling `each` for every one, and returns how many there
    /// were (Linux: `rmqueue_bulk`).
    pub fn rmqueue_bulk<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        order: Order,
        count: u32,
        migratetype: Migratetype,
        flags: AllocFlags,
        mut each: impl FnMut(Pfn, &Page),
    ) -> u32 {
        let mut taken = 0;
        while taken < count {
            let Some(pfn) = self.rmqueue(map, order, migratetype, flags) else { break };
            each(pfn, linked(map, pfn.as_u64()));
            taken += 1;
        }
        taken
    }

    /// Links a block whose frames but the first are `Tail`, merged upwards (Linux: `__free_one_page`).
    #[inline]
    pub fn free_one_page<M: MemMap + ?Sized>(&mut self, map: &M, pfn: Pfn, order: Order, _: Migratetype) {
        linked(map, pfn.as_u64()).set_state(PageState::new(PageKind::Tail, Order::ZERO));
        self.link_free(map, pfn, order, None);
    }

    /// Linux: `reserve_highatomic_pageblock`; there is no such reserve.
    pub fn reserve_highatomic_pageblock<M: MemMap + ?Sized>(&mut self, _: &M, _: Pfn) {}

    /// Linux: `unreserve_highatomic_pageblock`; there is no such reserve.
    pub fn unreserve_highatomic_pageblock<M: MemMap + ?Sized>(
        &mut self,
        _: &M,
        _: Migratetype,
        _: bool,
    ) -> bool {
        false
    }

    /// Takes a block from the smallest order that suffices and gives the rest back to the lists (Linux:
    /// `__rmqueue_smallest` with `expand`).
    #[inline]
    pub(crate) fn take<M: MemMap + ?Sized>(&mut self, map: &M, order: Order) -> Option<Pfn> {
        let mut have = Order::all().skip(order.index()).find(|have| self.area(*have).head != PFN_NONE)?;
        let pfn = Pfn::new(self.area(have).head);
        free_list::remove(self.area_mut(have), map, linked(map, pfn.as_u64()));
        while let Some(half) = have.down().filter(|half| *half >= order) {
            let upper = pfn.offset(half.pages());
            free_list::add(self.area_mut(half), map, upper, linked(map, upper.as_u64()), half, End::Head);
            have = half;
        }
        let info = self.info_mut();
        info.free_pages = info.free_pages.saturating_sub(order.pages());
        Some(pfn)
    }
}
