//! Counts of a user page.
//!
//! Invariants:
//! P1  `mapcount` + 1 is the entries that map the page;
//! P2  `refcount` is those entries, plus one for the mapping that it belongs to, plus one for each holder on the way;
//! P3  an anonymous page's `mapping` is its `AnonVma` with bit 0 set, its `index` the page offset in VMAs that map it.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use memvisor_abi as abi;
use mm_core::{MemMap, Order, Page, PageAlloc, PageFlags, PageKind, Pfn};

use crate::id::Id;
use crate::{AnonVma, Mapping};

const ANON: u64 = abi::Page::MAPPING_ANON;

/// Who finds the PTEs of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Anonymous.
    Anon(Id<AnonVma>),
    /// A page of a mapping.
    Mapped(Id<Mapping>),
    /// Nobody.
    None,
}

/// Who finds the PTEs of `page` (P3).
pub fn owner(page: &Page) -> Owner {
    let raw = page.mapping();
    if raw & ANON != 0 {
        Id::new(raw & !ANON).map_or(Owner::None, Owner::Anon)
    } else {
        Id::new(raw).map_or(Owner::None, Owner::Mapped)
    }
}

/// Whether a page is anonymous (Linux: `PageAnon`).
pub fn is_anon(page: &Page) -> bool {
    page.mapping() & ANON != 0
}

/// A page of a mapping: whoever makes one says so before it is mapped.
pub fn set_mapped(page: &Page, mapping: Id<Mapping>, pgoff: u64) {
    page.set_kind(PageKind::User);
    page.set_mapping(mapping.as_u64());
    page.set_index(pgoff);
    page.set_mapcount(-1);
}

/// A fresh anonymous page, mapped once (Linux: `page_add_new_anon_rmap`).
pub(crate) fn add_new_anon(page: &Page, anon: Id<AnonVma>, index: u64) {
    page.set_kind(PageKind::User);
    page.set_mapping(anon.as_u64() | ANON);
    page.set_index(index);
    page.set_mapcount(0);
}

/// One more PTE maps the page. Each address space has a page-table lock of its own, so nothing else orders the counting.
pub(crate) fn add_rmap(map: &impl MemMap, pfn: Pfn) {
    if let Some(page) = map.page(pfn) {
        page.mappings().fetch_add(1, Relaxed);
    }
}

/// One PTE less maps the page (Linux: `page_remove_rmap`).
pub(crate) fn remove_rmap(map: &impl MemMap, pfn: Pfn) {
    if let Some(page) = map.page(pfn) {
        page.mappings().fetch_sub(1, Relaxed);
    }
}

/// Adds a reference for a caller who has one (Linux: `get_page`).
pub(crate) fn get(map: &impl MemMap, pfn: Pfn) {
    if let Some(page) = map.page(pfn) {
        page.references().fetch_add(1, Relaxed);
    }
}

/// Drops a reference, and frees the page with the last one (Linux: `put_page`).
pub fn put<K: MemMap + PageAlloc>(k: &K, pfn: Pfn) {
    let Some(page) = k.page(pfn) else { return };
    let count = page.references();
    let mut now = count.load(Acquire);
    while now > 1 {
        match count.compare_exchange_weak(now, now - 1, AcqRel, Acquire) {
            Ok(_) => return,
            Err(other) => now = other,
        }
    }
    page.set_mapping(0);
    page.set_index(0);
    page.remove(PageFlags::DIRTY);
    page.set_kind(PageKind::Allocated);
    k.free_pages(pfn, Order::ZERO);
}
