//! Counts of a user page.
//!
//! Invariants:
//! P1  `mapcount` + 1 is the entries that map the page;
//! P2  `refcount` is those entries, plus one for the page cache that it is in, plus one for each holder on the way;
//! P3  an anonymous page's `mapping` is its `AnonVma` with bit 0 set, its `index` the page offset in VMAs that map it.

use core::sync::atomic::Ordering::Relaxed;

use memvisor_abi as abi;
use mm_core::{MemMap, Page, PageKind, Pfn};
pub(crate) use mm_filemap::get_page as get;
pub use mm_filemap::put_page as put;

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
    owner_of(page.mapping())
}

/// Who a page's `mapping` names.
pub(crate) fn owner_of(raw: u64) -> Owner {
    if raw & ANON != 0 {
        Id::new(raw & !ANON).map_or(Owner::None, Owner::Anon)
    } else {
        Id::new(raw).map_or(Owner::None, Owner::Mapped)
    }
}

/// Whether a page of the page cache is still at `pgoff` of the mapping (Linux: `page->mapping != mapping` after `lock_page`). With the page
/// tables locked it stays so until an entry is made, because whoever takes the page out unmaps it after that.
pub(crate) fn is_at(page: &Page, mapping: Id<Mapping>, pgoff: u64) -> bool {
    page.owner() == (mapping.as_u64(), pgoff)
}

/// Whether a page is anonymous (Linux: `PageAnon`).
pub fn is_anon(page: &Page) -> bool {
    page.mapping() & ANON != 0
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

/// PTEs that map the page, of all address spaces.
pub(crate) fn mappers(page: &Page) -> u64 {
    u64::from((page.mapcount() + 1).max(0).unsigned_abs())
}

/// One PTE less maps the page (Linux: `page_remove_rmap`).
pub(crate) fn remove_rmap(map: &impl MemMap, pfn: Pfn) {
    if let Some(page) = map.page(pfn) {
        page.mappings().fetch_sub(1, Relaxed);
    }
}
