//! Corruptions of what compaction remembers and of movable pages.

use mm_core::{MemMap, NoMigrate, Order, PageFlags, Pfn};

use crate::mm::memmap::Vmemmap;
use crate::mm::{movable, page_alloc};

type Outcome = Result<(), &'static str>;

/// An owner that moves nothing.
static NOBODY: NoMigrate = NoMigrate;

/// A page that an owner registered as movable.
fn movable_page() -> Result<Pfn, &'static str> {
    let owner = movable::register("seeded", &NOBODY).ok_or("too many owners")?;
    let pfn = page_alloc::zones()
        .find_map(|zone| zone.lock().alloc_block(&Vmemmap, Order::ZERO))
        .ok_or("no free page")?;
    movable::set_movable(pfn, owner);
    Ok(pfn)
}

/// A migration scanner that goes on behind the end of its zone.
pub fn position() -> Outcome {
    let zone = page_alloc::zones().find(|zone| zone.lock().info().spanned_pages > 0);
    let mut zone = zone.ok_or("no zone has frames")?.lock();
    let behind = zone.end_pfn().as_u64() + 512;
    zone.info_mut().compact_cached_migrate_pfn[1] = behind;
    Ok(())
}

/// A zone that turns away more requests than deferral allows.
pub fn deferral() -> Outcome {
    let zone = page_alloc::zones().find(|zone| zone.lock().info().spanned_pages > 0);
    zone.ok_or("no zone has frames")?.lock().info_mut().compact_defer_shift = 7;
    Ok(())
}

/// A page that is isolated although nobody migrates.
pub fn isolated() -> Outcome {
    Vmemmap.page(movable_page()?).ok_or("RAM has descriptors")?.insert(PageFlags::ISOLATED);
    Ok(())
}

/// A movable page whose owner does not exist.
pub fn owner() -> Outcome {
    let pfn = movable_page()?;
    Vmemmap.page(pfn).ok_or("RAM has descriptors")?.set_mapping(99);
    Ok(())
}

/// A free page that still says it is movable.
pub fn free_movable() -> Outcome {
    let zone = page_alloc::zones().find(|zone| zone.lock().info().free_pages > 8);
    let zone = zone.ok_or("no zone has free blocks")?.lock();
    let lists = zone.info().free_area.iter().flat_map(|area| area.lists);
    let head = lists.map(|list| list.head).find(|head| *head != memvisor_abi::PFN_NONE);
    let page = head.and_then(|head| Vmemmap.page(Pfn::new(head))).ok_or("the lists are broken")?;
    page.insert(PageFlags::MOVABLE);
    Ok(())
}
