//! The page allocator on real memory.

use memvisor_abi::{PFN_NONE, Watermark};
use mm_core::{MemMap, Order, PageKind, Pfn};

use super::{Failure, check};
use crate::mm::memmap::Vmemmap;
use crate::mm::page_alloc::{self, PAGES, ZoneLock};

/// Free pages of all zones, after every CPU gave back what it keeps.
pub fn free_pages() -> u64 {
    PAGES.drain_all_pages();
    let free = |zone: ZoneLock| {
        let zone = zone.lock();
        zone.info().free_pages + zone.info().deferred_pages
    };
    page_alloc::zones().map(free).sum()
}

pub fn blocks_of_every_order_come_and_go() -> Result<(), Failure> {
    let before = free_pages();
    for order in Order::all() {
        let pfn =
            page_alloc::alloc_pages(order, None, PageKind::Allocated).ok_or(Failure::Wrong("no block"))?;
        check(pfn.block(order) == pfn, "a block does not start at a multiple of its size")?;
        check(free_pages() == before - order.pages(), "the block was not taken from the free pages")?;
        page_alloc::free_pages(pfn, order);
    }
    check(free_pages() == before, "free pages differ after everything was freed")
}

pub fn exhaustion_ends_at_the_watermark_and_gives_all_back() -> Result<(), Failure> {
    let before = free_pages();
    let mut list = PFN_NONE;
    let mut blocks = 0;
    while let Some(pfn) = page_alloc::alloc_pages(Order::MAX, None, PageKind::Allocated) {
        Vmemmap.page(pfn).ok_or(Failure::Wrong("no descriptor"))?.set_next(list);
        list = pfn.as_u64();
        blocks += 1;
    }
    let kept = page_alloc::zones().all(|zone| {
        let zone = zone.lock();
        zone.info().managed_pages == 0
            || zone.info().free_pages + zone.info().deferred_pages
                >= zone.info().watermark[Watermark::Min as usize]
    });
    let taken = before - free_pages();
    while list != PFN_NONE {
        let pfn = Pfn::new(list);
        let page = Vmemmap.page(pfn).ok_or(Failure::Wrong("no descriptor"))?;
        list = page.next();
        page.set_next(PFN_NONE);
        page_alloc::free_pages(pfn, Order::MAX);
    }
    check(blocks > 0, "not a single block of the largest order")?;
    check(taken == blocks * Order::MAX.pages(), "free pages do not match the blocks taken")?;
    check(kept, "a zone went below its minimum")?;
    check(free_pages() == before, "free pages differ after everything was freed")
}

pub fn every_zone_passes_its_own_audit() -> Result<(), Failure> {
    for zone in page_alloc::zones() {
        check(zone.lock().audit(&Vmemmap).is_ok(), "a zone violates an invariant of mm-page-alloc")?;
    }
    Ok(())
}
