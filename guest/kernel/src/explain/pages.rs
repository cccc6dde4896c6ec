//! Ordinary allocations.

use mm_core::{MemMap, Order, PageKind, Pfn};

use super::{Taken, part};
use crate::mm::memmap::Vmemmap;
use crate::mm::page_alloc;

/// Four frames, taken and given back.
pub fn alloc_pages() -> Result<(), &'static str> {
    let order = Order::covering(4).ok_or("there is no order 2")?;
    let pfn = part(c"before: alloc_pages(GFP_KERNEL, 2)", c"after: alloc_pages(GFP_KERNEL, 2)", || {
        page_alloc::alloc_pages(order, None, PageKind::Allocated)
    })
    .ok_or("no four frames are free")?;
    part(c"before: __free_pages(page, 2)", c"after: __free_pages(page, 2)", || {
        page_alloc::free_pages(pfn, order);
    });
    Ok(())
}

/// A frame when the preferred zone is down at its watermark: the next zone of the list gives it.
pub fn zone_fallback() -> Result<(), &'static str> {
    let place = |pfn: Pfn| Vmemmap.page(pfn).map(|page| (page.node(), page.zone()));
    let probe = page_alloc::alloc_pages(Order::ZERO, None, PageKind::Allocated).ok_or("nothing is free")?;
    let preferred = place(probe);
    page_alloc::free_pages(probe, Order::ZERO);
    let mut taken = Taken::new();
    for order in Order::all().rev() {
        while taken.take(order, |pfn| place(pfn) == preferred) {}
    }
    let pfn = part(
        c"before: alloc_pages(GFP_KERNEL, 0), first zone low",
        c"after: alloc_pages(GFP_KERNEL, 0), first zone low",
        || page_alloc::alloc_pages(Order::ZERO, None, PageKind::Allocated),
    );
    taken.give_back();
    match pfn {
        Some(pfn) => page_alloc::free_pages(pfn, Order::ZERO),
        None => return Err("its zonelist has one zone with memory to spare"),
    }
    Ok(())
}
