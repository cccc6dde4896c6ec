//! Counts of a user page.
//!
//! Invariants:
//! P1  `mapcount` + 1 is the entries that map the page;
//! P2  `refcount` is those entries, plus one for the page cache or swap cache that it is in, plus one for each holder on the way;
//! P3  an anonymous page's `mapping` is its `AnonVma` with bit 0 set, its `index` the page offset in VMAs that map it.

use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use memvisor_abi as abi;
use memvisor_abi::NodeStat;
use mm_core::{Folios, MemMap, Page, PageFlags, PageKind, Pfn};
use mm_filemap::Puts;
pub(crate) use mm_filemap::get_page as get;
pub use mm_filemap::put_page as put;
use mm_pgtable::{Entry, PteFlags};

use crate::id::Id;
use crate::{AnonVma, Kernel, Mapping, VmFlags, Vma};

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

/// A fresh anonymous page, mapped once by a VMA (Linux: `page_add_new_anon_rmap`, `folio_add_lru_vma`).
pub(crate) fn add_new_anon(
    k: &impl Folios,
    (pfn, page): (Pfn, &Page),
    anon: Id<AnonVma>,
    (vma, index): (&Vma, u64),
) {
    page.set_kind(PageKind::User);
    set_anon(page, anon, index);
    page.set_mapcount(0);
    k.mod_page_state(page, NodeStat::AnonMapped, 1);
    let locked = if is_locked(vma) { PageFlags::UNEVICTABLE } else { PageFlags::empty() };
    k.folio_add_lru(pfn, page, PageFlags::SWAPBACKED | locked);
}

/// Whether pages stay in memory while this VMA maps them (Linux: the condition of `mlock_vma_folio`).
pub(crate) fn is_locked(vma: &Vma) -> bool {
    let flags = vma.flags();
    flags.contains(VmFlags::LOCKED) && !flags.intersects(VmFlags::SPECIAL)
}

/// An entry that maps the page has gone, perhaps one of locked memory: if another is, reclaim finds it when it comes across the page
/// (Linux: `munlock_vma_folio`, which knows how many there are).
pub(crate) fn munlock(k: &impl Folios, pfn: Pfn, page: &Page) {
    if page.has(PageFlags::UNEVICTABLE) {
        k.set_unevictable(pfn, page, false);
    }
}

/// Makes a page anonymous (Linux: `__page_set_anon_rmap`).
pub(crate) fn set_anon(page: &Page, anon: Id<AnonVma>, index: u64) {
    page.set_owner(anon.as_u64() | ANON, index);
}

/// Drops a reference of a page that was unmapped, and its slot of a swap area if nobody needs that any more (Linux:
/// `free_page_and_swap_cache`).
pub(crate) fn put_and_free_swap<K: Kernel>(k: &K, pfn: Pfn) {
    free_swap(k, pfn);
    put(k, pfn);
}

/// [`put_and_free_swap`] for one of many (Linux: `free_pages_and_swap_cache`).
pub(crate) fn put_one_and_free_swap<K: Kernel>(k: &K, puts: &mut Puts, pfn: Pfn) {
    free_swap(k, pfn);
    puts.put(k, pfn);
}

#[inline]
fn free_swap<K: Kernel>(k: &K, pfn: Pfn) {
    if MemMap::page(k, pfn).is_some_and(|page| page.has(PageFlags::SWAPCACHE)) {
        mm_swap::free_swap_cache(k, pfn);
    }
}

/// One more PTE maps the page. Each address space has a page-table lock of its own, so nothing else orders the counting.
pub(crate) fn add_rmap(k: &impl Folios, pfn: Pfn) {
    if let Some(page) = k.page(pfn)
        && page.mappings().fetch_add(1, Relaxed) < 0
    {
        k.mod_page_state(page, mapped_as(page), 1);
    }
}

/// What a mapped page counts as.
fn mapped_as(page: &Page) -> NodeStat {
    if is_anon(page) { NodeStat::AnonMapped } else { NodeStat::FileMapped }
}

/// PTEs that map the page, of all address spaces.
pub(crate) fn mappers(page: &Page) -> u64 {
    u64::from((page.mapcount() + 1).max(0).unsigned_abs())
}

/// One PTE less maps the page (Linux: `page_remove_rmap`).
pub(crate) fn remove_rmap(k: &impl Folios, pfn: Pfn) {
    if let Some(page) = k.page(pfn) {
        remove_rmap_of(k, page);
    }
}

/// [`remove_rmap`]; whether others map the page.
pub(crate) fn remove_rmap_of(k: &impl Folios, page: &Page) -> bool {
    let others = page.mappings().fetch_sub(1, Relaxed) > 0;
    if !others {
        k.mod_page_state(page, mapped_as(page), -1);
    }
    others
}

/// What a page knows of an entry that was taken from it, and that whoever had it wrote (Linux: the end of `try_to_unmap_one`). The
/// caller has a reference, so that the entry's is not the last.
pub(crate) fn entry_taken<K: Kernel>(k: &K, pfn: Pfn, page: &Page, old: Entry) {
    if old.has(PteFlags::DIRTY) {
        k.page_dirtied(pfn, page);
    }
    remove_rmap(k, pfn);
    page.references().fetch_sub(1, AcqRel);
}
