//! Corruptions of per-CPU lists, zonelists and events.

use memvisor_abi::{NumaEvent, PFN_NONE, PcpList, PerCpuPages};
use mm_core::{CpuLocal, MemMap, Order, PageKind, Pfn};

use crate::mm::memmap::Vmemmap;
use crate::mm::page_alloc;
use crate::mm::pcp::{self, Local};

type Outcome = Result<(), &'static str>;

const EMPTY: &str = "no per-CPU list has blocks";

/// Makes sure that this CPU keeps something, and calls `f` with the zone and lists that hold it.
fn with_filled<R>(f: impl FnOnce(usize, &mut [PerCpuPages]) -> R) -> Result<R, &'static str> {
    let pfn = page_alloc::alloc_pages(Order::ZERO, None, PageKind::Allocated).ok_or("no memory")?;
    page_alloc::free_pages(pfn, Order::ZERO);
    Local.with(|_, cpu| {
        let zone = cpu.pcps.iter().position(|pcp| pcp.count > 0).ok_or(EMPTY)?;
        Ok(f(zone, cpu.pcps))
    })
}

fn first_list(pcp: &mut PerCpuPages) -> Option<&mut PcpList> {
    pcp.lists.iter_mut().find(|list| list.head != PFN_NONE)
}

/// A list that is counted longer than it is.
pub fn count() -> Outcome {
    with_filled(|zone, pcps| pcps[zone].count += 1)
}

/// A block on a list whose descriptor says that somebody refers to it.
pub fn state() -> Outcome {
    with_filled(|zone, pcps| {
        let list = first_list(&mut pcps[zone]).ok_or(EMPTY)?;
        Vmemmap.page(Pfn::new(list.head)).ok_or(EMPTY)?.set_refcount(1);
        Ok(())
    })?
}

/// A list whose last block leads back to its first.
pub fn cycle() -> Outcome {
    with_filled(|zone, pcps| {
        let list = first_list(&mut pcps[zone]).ok_or(EMPTY)?;
        Vmemmap.page(Pfn::new(list.tail)).ok_or(EMPTY)?.set_next(list.head);
        Ok(())
    })?
}

/// A CPU's lists of one zone among those of another.
pub fn wrong_zone() -> Outcome {
    with_filled(|zone, pcps| {
        let other = (0..pcps.len()).find(|other| *other != zone && pcps[*other].count == 0);
        let other = other.ok_or("every list of the CPU has blocks")?;
        let (lists, count) = (pcps[zone].lists, pcps[zone].count);
        (pcps[zone].lists, pcps[zone].count) = (PerCpuPages::EMPTY.lists, 0);
        (pcps[other].lists, pcps[other].count) = (lists, count);
        Ok(())
    })?
}

/// A CPU that may keep more than its share.
pub fn high() -> Outcome {
    with_filled(|zone, pcps| pcps[zone].high += 1)
}

/// A page that a CPU keeps goes to the zone, too.
pub fn in_buddy() -> Outcome {
    let pfn = with_filled(|zone, pcps| first_list(&mut pcps[zone]).map(|list| Pfn::new(list.head)))?;
    let pfn = pfn.ok_or(EMPTY)?;
    let page = Vmemmap.page(pfn).ok_or(EMPTY)?;
    let (node, kind) = (page.node(), page.zone());
    page_alloc::zone(node, kind).lock().free_one_page(&Vmemmap, pfn, Order::ZERO, page.migratetype());
    Ok(())
}

/// The first node's list with its best zone last.
pub fn zonelist_order() -> Outcome {
    pcp::with_zonelist(0, |list| {
        let count = list.count as usize;
        list.fallback[..count].rotate_left(1);
        if count > 1 { Ok(()) } else { Err("the node's list has one zone") }
    })
}

/// A zone of another number in the first node's own list.
pub fn zonelist_own() -> Outcome {
    pcp::with_zonelist(0, |list| {
        list.nofallback[0] ^= 1;
        if list.nofallback_count > 0 { Ok(()) } else { Err("the node has no memory") }
    })
}

/// An allocation that was local, and neither hit nor miss.
pub fn numa_event() -> Outcome {
    with_filled(|zone, pcps| pcps[zone].numa[NumaEvent::Local as usize] += 1)
}
