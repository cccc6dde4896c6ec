//! What a caller of the page allocator may get wrong: each call gives Linux's result and changes nothing. The audit at the
//! end of the run says so from outside.

use memvisor_abi::{MAX_NR_ZONES, PFN_NONE};
use mm_core::{Gfp, MemMap, Order, PAGE_SIZE, Page, Pfn, PhysAddr};
use mm_page_alloc::{Context, FreeError, Machine};

use super::buddy::{every_zone_passes_its_own_audit, free_pages};
use super::{Failure, Test, check};
use crate::mm::memmap::Vmemmap;
use crate::mm::page_alloc::{self, PAGES};

/// `ktest=bad-input`.
pub const TESTS: [(&str, Test); 7] = [
    ("orders_above_ten_give_nothing", orders_above_ten_give_nothing),
    ("no_bytes_and_too_many_give_nothing", no_bytes_and_too_many_give_nothing),
    ("a_block_freed_twice_is_refused", a_block_freed_twice_is_refused),
    ("tail_pages_are_refused", tail_pages_are_refused),
    ("a_page_of_another_zone_is_refused", a_page_of_another_zone_is_refused),
    ("what_is_no_page_is_refused", what_is_no_page_is_refused),
    ("every_zone_passes_its_own_audit", every_zone_passes_its_own_audit),
];

const GFP: Gfp = Gfp::NOWAIT.union(Gfp::NOWARN);

fn block(order: u8, gfp: Gfp) -> Result<(Pfn, Order), Failure> {
    let order = Order::new(order).ok_or(Failure::Wrong("no such order"))?;
    let pfn = page_alloc::alloc_gfp(Context::ATOMIC, GFP | gfp, order, None);
    pfn.map(|pfn| (pfn, order)).ok_or(Failure::Wrong("no memory"))
}

/// Runs `f`, after which as many pages are free as before.
fn keeping_pages(f: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    let before = free_pages();
    f()?;
    check(free_pages() == before, "free pages differ afterwards")
}

fn orders_above_ten_give_nothing() -> Result<(), Failure> {
    keeping_pages(|| {
        for order in [11, 12, 52, 63, 64, 255, 256, u32::MAX] {
            let got = PAGES.alloc_pages_raw(Context::ATOMIC, GFP, order, None);
            check(got.is_none(), "there is a block of more than order 10")?;
        }
        Ok(())
    })
}

fn no_bytes_and_too_many_give_nothing() -> Result<(), Failure> {
    keeping_pages(|| {
        for bytes in [0, (PAGE_SIZE << Order::MAX.as_u8()) + 1, 1 << 40, u64::MAX] {
            let got = PAGES.alloc_pages_exact(Context::ATOMIC, bytes, GFP);
            check(got.is_none(), "no bytes, or too many, were allocated")?;
            check(PAGES.free_pages_exact(PhysAddr::new(0), 0).is_ok(), "no bytes could not be freed")?;
        }
        Ok(())
    })
}

/// Freed twice while it is on the CPU's list, then while it is in its zone.
fn a_block_freed_twice_is_refused() -> Result<(), Failure> {
    keeping_pages(|| {
        for order in [0, 1, 3, 4, 9, 10] {
            let (pfn, order) = block(order, Gfp::empty())?;
            page_alloc::free_pages(pfn, order);
            for drained in [false, true] {
                if drained {
                    PAGES.drain_all_pages();
                }
                let again = page_alloc::try_free_pages(pfn, order);
                check(matches!(again, Err(FreeError::DoubleFree { .. })), "a block was freed twice")?;
                check(PAGES.put_page(pfn).is_err(), "a free page lost a reference")?;
                check(PAGES.get_page(pfn).is_err(), "a free page got a reference")?;
                check(PAGES.split_page(pfn, order).is_err(), "a free block was split")?;
            }
        }
        Ok(())
    })
}

fn tail_pages_are_refused() -> Result<(), Failure> {
    keeping_pages(|| {
        let (plain, order) = block(3, Gfp::empty())?;
        let (compound, _) = block(3, Gfp::COMP)?;
        for index in 1..order.pages() {
            let free = |head: Pfn| page_alloc::try_free_pages(head.offset(index), Order::ZERO);
            check(matches!(free(plain), Err(FreeError::DoubleFree { .. })), "an inner frame was freed")?;
            check(matches!(free(compound), Err(FreeError::Tail { .. })), "a tail page was freed")?;
        }
        let half = Order::new(2).map(|half| page_alloc::try_free_pages(plain, half));
        check(matches!(half, Some(Err(FreeError::WrongOrder { .. }))), "a block was freed by half")?;
        let split = PAGES.split_page(compound, order);
        check(matches!(split, Err(FreeError::Compound { .. })), "a compound page was split")?;
        page_alloc::free_pages(plain, order);
        page_alloc::free_pages(compound, order);
        Ok(())
    })
}

/// The allocator finds the zone by the page; a zone that is told to take another's page looks at it.
fn a_page_of_another_zone_is_refused() -> Result<(), Failure> {
    keeping_pages(|| {
        let (pfn, order) = block(0, Gfp::empty())?;
        let page = Vmemmap.page(pfn).ok_or(Failure::Wrong("no descriptor"))?;
        let own = page.node() as usize * MAX_NR_ZONES + page.zone() as usize;
        let machine = PAGES.machine();
        for index in (0..machine.glances().len()).filter(|index| *index != own) {
            let freed = machine.with_zone(index, |zone| zone.free_block(&Vmemmap, pfn, order));
            let refused = matches!(freed, Err(FreeError::WrongZone { .. } | FreeError::OutsideZone { .. }));
            check(refused, "a zone took a page of another")?;
        }
        check(page.refcount() == 1, "a refusal changed the page")?;
        page_alloc::free_pages(pfn, order);
        Ok(())
    })
}

/// Holes, what lies behind all RAM, and what was never the allocator's.
fn what_is_no_page_is_refused() -> Result<(), Failure> {
    keeping_pages(|| {
        for raw in [PAGE_SIZE << 20, (1 << 52) - 1, 1 << 52, PFN_NONE - 1, PFN_NONE] {
            let pfn = Pfn::new(raw);
            check(page_alloc::try_free_pages(pfn, Order::ZERO).is_err(), "a frame that is no RAM was freed")?;
            check(PAGES.put_page(pfn).is_err() && PAGES.get_page(pfn).is_err(), "no page was referenced")?;
        }
        let image = Pfn::new(crate::mm::phys::image().phys / PAGE_SIZE);
        let reserved = page_alloc::try_free_pages(image, Order::ZERO);
        check(matches!(reserved, Err(FreeError::Reserved { .. })), "the kernel was freed")?;
        check(Vmemmap.page(image).map(Page::refcount) == Some(1), "a refusal changed the page")
    })
}
