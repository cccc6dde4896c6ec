//! References of pages.

use mm_core::refcount;
use mm_core::{Folios, MemMap, Order, PageAlloc, PageFlags, PageKind, Pfn};

/// Adds a reference for a caller who has one (Linux: `get_page`).
pub fn get_page(map: &impl MemMap, pfn: Pfn) {
    if let Some(page) = map.page(pfn) {
        refcount::get(page.references());
    }
}

/// Drops a reference, and frees the page with the last one (Linux: `put_page`).
///
/// A lookup may get a reference of a page whose last one is being dropped; then that lookup frees it.
pub fn put_page<K: Folios + PageAlloc>(k: &K, pfn: Pfn) {
    let Some(page) = k.page(pfn) else { return };
    // Frozen, nobody finds it on a list and puts it back there after it left: whoever gets a reference now gets a page without an owner.
    while !refcount::freeze(page.references(), 1) {
        if refcount::put_unless_last(page.references()) {
            return;
        }
        if page.refcount() < 1 {
            // A free too many: the allocator says so.
            return k.free_pages(pfn, Order::ZERO);
        }
    }
    k.folio_del_lru(page);
    // Whoever has no reference yet does not get the page for what it was.
    page.set_owner(0, 0);
    let marks = PageFlags::DIRTY
        | PageFlags::UNWRITTEN
        | PageFlags::UPTODATE
        | PageFlags::SWAPBACKED
        | PageFlags::RECLAIM;
    if page.has_any(marks) {
        page.remove(marks);
    }
    page.set_kind(PageKind::Allocated);
    refcount::unfreeze(page.references(), 1);
    k.free_pages(pfn, Order::ZERO);
}
