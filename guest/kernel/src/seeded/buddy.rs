//! Corruptions of free lists and zone counters.

use memvisor_abi::{PFN_NONE, Watermark, ZoneKind};
use mm_core::{MemMap, Migratetype, Order, PageKind, PageState, Pfn, PhysAddr, PhysMem};
use mm_page_alloc::Zone;

use crate::mm::memmap::Vmemmap;
use crate::mm::page_alloc::{self, ZoneGuard};
use crate::mm::phys::DirectMap;
use crate::mm::{cma, sysctl};

type Outcome = Result<(), &'static str>;

/// The zones with free blocks.
fn populated() -> impl Iterator<Item = ZoneGuard> {
    page_alloc::zones().map(|zone| zone.lock()).filter(|zone| zone.info().free_pages > 8)
}

fn any_zone() -> Result<ZoneGuard, &'static str> {
    populated().next().ok_or("no zone has free blocks")
}

fn take(zone: &mut Zone, order: u8) -> Result<Pfn, &'static str> {
    zone.alloc_block(&Vmemmap, Order::new(order).expect("a small order")).ok_or("no free block")
}

/// Puts a block at the head of a list as the allocator would, but without asking whether it belongs there.
fn push(zone: &mut Zone, pfn: Pfn, order: u8) {
    let order = Order::new(order).expect("a small order");
    for index in 1..order.pages() {
        let page = Vmemmap.page(pfn.offset(index)).expect("RAM");
        page.set_state(PageState::new(PageKind::Tail, Order::ZERO));
        page.set_refcount(0);
    }
    let page = Vmemmap.page(pfn).expect("RAM");
    page.set_state(PageState::new(PageKind::Buddy, order).with_migratetype(Migratetype::Movable));
    page.set_refcount(0);
    let list = &mut zone.info_mut().free_area[order.index()].lists[Migratetype::Movable as usize];
    page.set_prev(PFN_NONE);
    page.set_next(list.head);
    match Vmemmap.page(Pfn::new(list.head)) {
        Some(first) if list.head != PFN_NONE => first.set_prev(pfn.as_u64()),
        _ => list.tail = pfn.as_u64(),
    }
    list.head = pfn.as_u64();
    list.nr_free += 1;
    zone.info_mut().nonempty[Migratetype::Movable as usize] |= 1 << order.index();
    zone.info_mut().free_pages += order.pages();
}

/// A block of two pages that starts at an odd frame.
pub fn misaligned() -> Outcome {
    let mut zone = any_zone()?;
    let pfn = take(&mut zone, 2)?;
    push(&mut zone, pfn, 0);
    push(&mut zone, pfn.offset(1), 1);
    push(&mut zone, pfn.offset(3), 0);
    Ok(())
}

/// Two free buddies that were not merged.
pub fn unmerged() -> Outcome {
    let mut zone = any_zone()?;
    let pfn = take(&mut zone, 1)?;
    push(&mut zone, pfn, 0);
    push(&mut zone, pfn.offset(1), 0);
    Ok(())
}

/// A block of one zone on the list of another.
pub fn wrong_zone() -> Outcome {
    let pfn = take(&mut *any_zone()?, 0)?;
    let mut other = populated().nth(1).ok_or("only one zone has free blocks")?;
    push(&mut other, pfn, 0);
    Ok(())
}

/// A list whose last block leads back to its first.
pub fn cycle() -> Outcome {
    let zone = any_zone()?;
    let mut lists = zone.info().free_area.iter().flat_map(|area| &area.lists);
    let list = lists.find(|list| list.nr_free > 0).ok_or("no free block")?;
    Vmemmap.page(Pfn::new(list.tail)).ok_or("the list is broken")?.set_next(list.head);
    Ok(())
}

/// A list that is counted longer than it is.
pub fn nr_free() -> Outcome {
    let mut zone = any_zone()?;
    zone.info_mut().free_area[10].lists[Migratetype::Movable as usize].nr_free += 1;
    Ok(())
}

/// A zone that counts a page more than its lists hold.
pub fn free_pages() -> Outcome {
    any_zone()?.info_mut().free_pages += 1;
    Ok(())
}

/// A zone that believes in a page that does not exist.
pub fn present() -> Outcome {
    any_zone()?.info_mut().present_pages += 1;
    Ok(())
}

/// A low watermark below the minimum.
pub fn watermark() -> Outcome {
    let mut zone = any_zone()?;
    let marks = &mut zone.info_mut().watermark;
    marks[Watermark::Low as usize] = marks[Watermark::Min as usize].saturating_sub(1);
    Ok(())
}

/// Settings that changed, and watermarks that did not follow.
pub fn stale_watermark() -> Outcome {
    sysctl::with_settings(|settings| {
        settings.watermark_scale_factor = 500;
        settings.changes += 1;
    });
    Ok(())
}

/// A request for more free memory that was recorded and not obeyed.
pub fn sysctl_user_kbytes() -> Outcome {
    sysctl::with_settings(|settings| {
        settings.user_min_free_kbytes = settings.min_free_kbytes + 4;
        settings.changes += 1;
    });
    Ok(())
}

/// A zone that keeps a page more from its neighbours' users than its ratio says.
pub fn lowmem_reserve() -> Outcome {
    any_zone()?.info_mut().lowmem_reserve[ZoneKind::Movable as usize] += 1;
    Ok(())
}

/// A set bit for an order whose list is empty, or none for one that is not.
pub fn nonempty() -> Outcome {
    any_zone()?.info_mut().nonempty[Migratetype::Movable as usize] ^= 1;
    Ok(())
}

/// A free block that says it is on another type's list.
pub fn block_type() -> Outcome {
    let zone = any_zone()?;
    let mut lists = zone.info().free_area.iter().map(|area| area.lists[Migratetype::Movable as usize]);
    let list = lists.find(|list| list.nr_free > 0).ok_or("no movable block is free")?;
    Vmemmap.page(Pfn::new(list.head)).ok_or("the list is broken")?.set_migratetype(Migratetype::Cma);
    Ok(())
}

/// A free block that is called zero and is not.
pub fn known_zero() -> Outcome {
    let zone = any_zone()?;
    let mut lists = zone.info().free_area.iter().map(|area| area.lists[Migratetype::Movable as usize]);
    let list = lists.find(|list| list.nr_free > 0).ok_or("no movable block is free")?;
    let pfn = Pfn::new(list.head);
    let page = Vmemmap.page(pfn).ok_or("the list is broken")?;
    DirectMap.write_u64(pfn.phys(), 1);
    page.set_state(page.state().with_known_zero(true));
    Ok(())
}

/// A pageblock that became isolated while its free blocks stayed available.
pub fn pageblock_isolated() -> Outcome {
    let zone = any_zone()?;
    let head = zone.info().free_area[10].lists[Migratetype::Movable as usize].head;
    let block = Vmemmap.pageblock(Pfn::new(head)).ok_or("no block of the largest order is free")?;
    block.set_migratetype(Migratetype::Isolate);
    Ok(())
}

/// A pageblock of a type that does not exist.
pub fn pageblock_type() -> Outcome {
    let zone = any_zone()?;
    let block = Vmemmap.pageblock(Pfn::new(zone.info().start_pfn)).ok_or("the zone starts in a hole")?;
    block.set_raw(7);
    Ok(())
}

/// A zone that counts a page of a contiguous area as free that is not.
pub fn nr_free_cma() -> Outcome {
    any_zone()?.info_mut().nr_free_cma += 1;
    Ok(())
}

/// An area that claims a block more than it was given.
pub fn cma_area() -> Outcome {
    cma::with_area(0, |area| area.count += Order::MAX.pages()).ok_or("no contiguous area; cma= makes one")
}

/// A free frame of an area whose bit says that somebody has it.
pub fn cma_bitmap() -> Outcome {
    let area = cma::area(0).ok_or("no contiguous area; cma= makes one")?;
    DirectMap.write_u64(PhysAddr::new(area.bitmap_gpa), 1);
    Ok(())
}

/// A highatomic reserve that holds no pageblock.
pub fn highatomic() -> Outcome {
    any_zone()?.info_mut().nr_reserved_highatomic += 512;
    Ok(())
}

/// A pageblock counted as isolated that is not.
pub fn nr_isolated() -> Outcome {
    any_zone()?.info_mut().nr_isolate_pageblock += 1;
    Ok(())
}

/// A boost far above what fragmentation can make.
pub fn boost() -> Outcome {
    let mut zone = any_zone()?;
    zone.info_mut().watermark_boost = 1 << 40;
    Ok(())
}
