//! Ordinary allocations.

use mm_core::{Gfp, MemMap, Order, PageKind, Pfn, PhysMem, ZoneKind};
use mm_page_alloc::Context;

use super::{Taken, part};
use crate::mm::memmap::Vmemmap;
use crate::mm::page_alloc::{self, PAGES};
use crate::mm::phys::DirectMap;
use crate::sched;

/// Four frames, taken and given back.
pub fn alloc_pages() -> Result<(), &'static str> {
    let order = Order::covering(4).ok_or("there is no order 2")?;
    let token = sched::task_context();
    let pfn = part(c"before: alloc_pages(GFP_KERNEL, 2)", c"after: alloc_pages(GFP_KERNEL, 2)", || {
        page_alloc::alloc_gfp(Context::task(&token), Gfp::KERNEL, order, None)
    })
    .ok_or("no four frames are free")?;
    part(c"before: __free_pages(page, 2)", c"after: __free_pages(page, 2)", || {
        page_alloc::free_pages(pfn, order);
    });
    Ok(())
}

/// A zeroed frame twice: of RAM that nobody has written to, and of a frame that was in use.
pub fn get_zeroed_page() -> Result<(), &'static str> {
    let token = sched::task_context();
    let zeroed = || {
        let addr = PAGES.get_zeroed_page(Context::task(&token), Gfp::KERNEL).ok_or("no frame is free")?;
        if DirectMap.read_u64(addr) == 0 { Ok(addr) } else { Err("the frame is not zero") }
    };
    let first = part(c"before: get_zeroed_page(GFP_KERNEL)", c"after: get_zeroed_page(GFP_KERNEL)", zeroed)?;
    DirectMap.write_u64(first, u64::MAX);
    part(c"before: free_page, after a write", c"after: free_page, after a write", || {
        page_alloc::free_pages(first.pfn(), Order::ZERO);
    });
    let again = part(
        c"before: get_zeroed_page(GFP_KERNEL), again",
        c"after: get_zeroed_page(GFP_KERNEL), again",
        zeroed,
    )?;
    page_alloc::free_pages(again.pfn(), Order::ZERO);
    Ok(())
}

/// Node and zone of a frame.
pub(super) fn place(pfn: Pfn) -> Option<(u32, ZoneKind)> {
    Vmemmap.page(pfn).map(|page| (page.node(), page.zone()))
}

/// A frame when the preferred zone is down at its watermark: the next zone of the list gives it.
pub fn zone_fallback() -> Result<(), &'static str> {
    let probe = page_alloc::alloc_pages(Order::ZERO, None, PageKind::Allocated).ok_or("nothing is free")?;
    let preferred = place(probe);
    page_alloc::free_pages(probe, Order::ZERO);
    let token = sched::task_context();
    let mut taken = Taken::new();
    taken.take_all(Gfp::KERNEL, |pfn| place(pfn) == preferred);
    let pfn = part(
        c"before: alloc_pages(GFP_KERNEL, 0), first zone low",
        c"after: alloc_pages(GFP_KERNEL, 0), first zone low",
        || page_alloc::alloc_gfp(Context::task(&token), Gfp::KERNEL, Order::ZERO, None),
    );
    taken.give_back();
    match pfn {
        Some(pfn) => page_alloc::free_pages(pfn, Order::ZERO),
        None => return Err("its zonelist has one zone with memory to spare"),
    }
    Ok(())
}
