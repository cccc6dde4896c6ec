//! Lists of slabs, linked through the descriptors of their heads. The list lock of cache and node guards them.

use memvisor_abi::{CacheCpu, PFN_NONE, SlabList};
use mm_core::{MemMap, Page, Pfn};

/// Puts a slab first.
pub(crate) fn push_front(list: &mut SlabList, map: &impl MemMap, pfn: Pfn, page: &Page) {
    page.set_prev(PFN_NONE);
    page.set_next(list.head);
    match map.page(Pfn::new(list.head)).filter(|_| list.head != PFN_NONE) {
        Some(next) => next.set_prev(pfn.as_u64()),
        None => list.tail = pfn.as_u64(),
    }
    list.head = pfn.as_u64();
    list.nr += 1;
}

/// Puts a slab last.
pub(crate) fn push_back(list: &mut SlabList, map: &impl MemMap, pfn: Pfn, page: &Page) {
    page.set_next(PFN_NONE);
    page.set_prev(list.tail);
    match map.page(Pfn::new(list.tail)).filter(|_| list.tail != PFN_NONE) {
        Some(last) => last.set_next(pfn.as_u64()),
        None => list.head = pfn.as_u64(),
    }
    list.tail = pfn.as_u64();
    list.nr += 1;
}

/// Takes a slab of the list off.
pub(crate) fn remove(list: &mut SlabList, map: &impl MemMap, page: &Page) {
    let (next, prev) = (page.next(), page.prev());
    match map.page(Pfn::new(prev)).filter(|_| prev != PFN_NONE) {
        Some(before) => before.set_next(next),
        None => list.head = next,
    }
    match map.page(Pfn::new(next)).filter(|_| next != PFN_NONE) {
        Some(after) => after.set_prev(prev),
        None => list.tail = prev,
    }
    page.set_next(PFN_NONE);
    page.set_prev(PFN_NONE);
    list.nr = list.nr.saturating_sub(1);
}

/// Puts a slab first on a CPU's partial list, which only that CPU reaches.
#[inline]
pub(crate) fn push_cpu(cpu: &mut CacheCpu, map: &impl MemMap, pfn: Pfn, page: &Page) {
    page.set_prev(PFN_NONE);
    page.set_next(cpu.partial);
    if let Some((_, next)) = at(cpu.partial, map) {
        next.set_prev(pfn.as_u64());
    }
    cpu.partial = pfn.as_u64();
    cpu.partial_slabs += 1;
}

/// Takes a slab off the CPU's partial list.
#[inline]
pub(crate) fn remove_cpu(cpu: &mut CacheCpu, map: &impl MemMap, page: &Page) {
    let (next, prev) = (page.next(), page.prev());
    match at(prev, map) {
        Some((_, before)) => before.set_next(next),
        None => cpu.partial = next,
    }
    if let Some((_, after)) = at(next, map) {
        after.set_prev(prev);
    }
    page.set_next(PFN_NONE);
    page.set_prev(PFN_NONE);
    cpu.partial_slabs = cpu.partial_slabs.saturating_sub(1);
}

/// The first slab.
pub(crate) fn first<'m>(list: &SlabList, map: &'m impl MemMap) -> Option<(Pfn, &'m Page)> {
    at(list.head, map)
}

/// The slab that a link names.
pub(crate) fn at(link: u64, map: &impl MemMap) -> Option<(Pfn, &Page)> {
    if link == PFN_NONE {
        return None;
    }
    let pfn = Pfn::new(link);
    map.page(pfn).map(|page| (pfn, page))
}
