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

/// A list of slabs that only one CPU reaches.
#[derive(Debug)]
pub(crate) struct CpuList<'c> {
    pub(crate) head: &'c mut u64,
    pub(crate) nr: &'c mut u32,
}

impl CpuList<'_> {
    /// Puts a slab first.
    #[inline]
    pub(crate) fn push(self, map: &impl MemMap, pfn: Pfn, page: &Page) {
        page.set_prev(PFN_NONE);
        page.set_next(*self.head);
        if let Some((_, next)) = at(*self.head, map) {
            next.set_prev(pfn.as_u64());
        }
        *self.head = pfn.as_u64();
        *self.nr += 1;
    }

    /// Takes a slab of the list off.
    #[inline]
    pub(crate) fn remove(self, map: &impl MemMap, page: &Page) {
        let (next, prev) = (page.next(), page.prev());
        match at(prev, map) {
            Some((_, before)) => before.set_next(next),
            None => *self.head = next,
        }
        if let Some((_, after)) = at(next, map) {
            after.set_prev(prev);
        }
        page.set_next(PFN_NONE);
        page.set_prev(PFN_NONE);
        *self.nr = self.nr.saturating_sub(1);
    }

    /// Takes the first slab off.
    pub(crate) fn pop(self, map: &impl MemMap) -> Option<(Pfn, &Page)> {
        let (pfn, page) = at(*self.head, map)?;
        self.remove(map, page);
        Some((pfn, page))
    }
}

/// The CPU's slabs with free and used objects.
pub(crate) fn partial(cpu: &mut CacheCpu) -> CpuList<'_> {
    CpuList { head: &mut cpu.partial, nr: &mut cpu.partial_slabs }
}

/// The CPU's slabs without a used object.
pub(crate) fn empty(cpu: &mut CacheCpu) -> CpuList<'_> {
    CpuList { head: &mut cpu.empty, nr: &mut cpu.empty_slabs }
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
