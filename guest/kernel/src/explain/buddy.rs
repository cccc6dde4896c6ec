//! Splitting and merging.

use memvisor_abi::ZoneKind;
use mm_core::{Gfp, MemMap, Migratetype, Order, Pfn};
use mm_page_alloc::Context;

use super::{Taken, part};
use crate::mm::memmap::Vmemmap;
use crate::mm::page_alloc::{self, PAGES};

/// A frame for contents that can move: all memory is of that type at boot, so nothing has to be stolen.
fn alloc_page() -> Option<Pfn> {
    page_alloc::alloc_gfp(Context::ATOMIC, Gfp::NOWAIT | Gfp::MOVABLE | Gfp::NOWARN, Order::ZERO, None)
}

/// Takes every free movable block below the largest order from the zone that allocations prefer, and empties the
/// CPUs' lists, so that the next frame has to be cut from a largest block. Returns that zone.
fn drain_small(taken: &mut Taken) -> Result<(u32, ZoneKind), &'static str> {
    let probe = alloc_page().ok_or("nothing is free")?;
    let (node, kind) =
        Vmemmap.page(probe).map(|page| (page.node(), page.zone())).ok_or("a frame without descriptor")?;
    page_alloc::free_pages(probe, Order::ZERO);
    PAGES.drain_all_pages();
    for order in Order::all().filter(|order| *order < Order::MAX) {
        while let Some(pfn) = take_free(node, kind, order) {
            taken.keep(pfn);
        }
    }
    Ok((node, kind))
}

/// A free movable block of exactly that order.
fn take_free(node: u32, kind: ZoneKind, order: Order) -> Option<Pfn> {
    let mut zone = page_alloc::zone(node, kind).lock();
    let list = &zone.info().free_area[order.index()].lists[Migratetype::Movable as usize];
    if list.nr_free == 0 { None } else { zone.alloc_block(&Vmemmap, order) }
}

fn with_largest_blocks_only(
    operation: impl FnOnce(u32, ZoneKind) -> Option<Pfn>,
) -> Result<Pfn, &'static str> {
    let mut taken = Taken::new();
    let ready = drain_small(&mut taken);
    let pfn = ready.ok().and_then(|(node, kind)| operation(node, kind));
    taken.give_back();
    ready?;
    pfn.ok_or("no largest block is free")
}

/// One frame out of a block of 1,024: ten splits for the first frame of the batch that refills the CPU's list.
pub fn split() -> Result<(), &'static str> {
    let pfn = with_largest_blocks_only(|_, _| {
        part(
            c"before: alloc_pages(GFP_NOWAIT | __GFP_MOVABLE, 0)",
            c"after: alloc_pages(GFP_NOWAIT | __GFP_MOVABLE, 0)",
            alloc_page,
        )
    })?;
    page_alloc::free_pages(pfn, Order::ZERO);
    Ok(())
}

/// A frame that is cut off a block of 1,024, given back: first to the CPU's list, and ten merges when that is drained.
pub fn merge() -> Result<(), &'static str> {
    with_largest_blocks_only(|node, kind| {
        // Straight from the zone, so that the CPU's list keeps nothing of the same block.
        let pfn = page_alloc::zone(node, kind).lock().alloc_block(&Vmemmap, Order::ZERO)?;
        part(c"before: __free_pages(page, 0)", c"after: __free_pages(page, 0)", || {
            page_alloc::free_pages(pfn, Order::ZERO);
        });
        part(c"before: drain_local_pages()", c"after: drain_local_pages()", || PAGES.drain_local_pages());
        Some(pfn)
    })?;
    Ok(())
}
