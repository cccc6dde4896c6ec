//! Splitting and merging.

use mm_core::{MemMap, Order, PageKind, Pfn};

use super::{Taken, part};
use crate::mm::memmap::Vmemmap;
use crate::mm::page_alloc;

/// Takes every free block below the largest order from the zone that allocations prefer, so that the next frame
/// has to be cut from a largest block. Returns that frame's zone.
fn drain_small(taken: &mut Taken) -> Result<(), &'static str> {
    let probe = page_alloc::alloc_pages(Order::ZERO, None, PageKind::Allocated).ok_or("nothing is free")?;
    let (node, kind) =
        Vmemmap.page(probe).map(|page| (page.node(), page.zone())).ok_or("a frame without descriptor")?;
    page_alloc::free_pages(probe, Order::ZERO);
    for order in Order::all().filter(|order| *order < Order::MAX) {
        while page_alloc::zone(node, kind).lock().info().free_area[order.index()].nr_free() != 0 {
            if !taken.take(order, |pfn| Vmemmap.page(pfn).is_some_and(|page| page.zone() == kind)) {
                return Err("the zone is too small");
            }
        }
    }
    Ok(())
}

fn with_largest_blocks_only(operation: impl FnOnce() -> Option<Pfn>) -> Result<Pfn, &'static str> {
    let mut taken = Taken::new();
    let ready = drain_small(&mut taken);
    let pfn = if ready.is_ok() { operation() } else { None };
    taken.give_back();
    ready?;
    pfn.ok_or("no largest block is free")
}

/// One frame out of a block of 1,024: ten splits.
pub fn split() -> Result<(), &'static str> {
    let pfn = with_largest_blocks_only(|| {
        part(c"before: alloc_pages(GFP_KERNEL, 0)", c"after: alloc_pages(GFP_KERNEL, 0)", || {
            page_alloc::alloc_pages(Order::ZERO, None, PageKind::Allocated)
        })
    })?;
    page_alloc::free_pages(pfn, Order::ZERO);
    Ok(())
}

/// The frame that [`split`] cuts off, given back: ten merges.
pub fn merge() -> Result<(), &'static str> {
    with_largest_blocks_only(|| {
        let pfn = page_alloc::alloc_pages(Order::ZERO, None, PageKind::Allocated)?;
        part(c"before: __free_pages(page, 0)", c"after: __free_pages(page, 0)", || {
            page_alloc::free_pages(pfn, Order::ZERO);
        });
        Some(pfn)
    })?;
    Ok(())
}
