//! Corruptions of free lists and zone counters.

use memvisor_abi::{PFN_NONE, Watermark};
use mm_core::{MemMap, Order, PageKind, Pfn};
use mm_page_alloc::Zone;

use crate::mm::memmap::Vmemmap;
use crate::mm::page_alloc::{self, ZoneGuard};

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
        page.set_kind(PageKind::Tail);
        page.set_refcount(0);
    }
    let page = Vmemmap.page(pfn).expect("RAM");
    page.set_kind(PageKind::Buddy);
    page.set_refcount(0);
    page.set_order(order);
    page.set_private(u64::from(order.as_u8()));
    let area = &mut zone.info_mut().free_area[order.index()];
    page.set_prev(PFN_NONE);
    page.set_next(area.head);
    match Vmemmap.page(Pfn::new(area.head)) {
        Some(first) if area.head != PFN_NONE => first.set_prev(pfn.as_u64()),
        _ => area.tail = pfn.as_u64(),
    }
    area.head = pfn.as_u64();
    area.nr_free += 1;
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
    let area = zone.info().free_area.iter().find(|area| area.nr_free > 0).ok_or("no free block")?;
    Vmemmap.page(Pfn::new(area.tail)).ok_or("the list is broken")?.set_next(area.head);
    Ok(())
}

/// A list that is counted longer than it is.
pub fn nr_free() -> Outcome {
    let mut zone = any_zone()?;
    zone.info_mut().free_area[10].nr_free += 1;
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
