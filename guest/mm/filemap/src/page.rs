//! References of pages.

use mm_core::refcount;
use mm_core::{MemMap, Order, PageAlloc, PageFlags, PageKind, Pfn};

/// Adds a reference for a caller who has one (Linux: `get_page`).
pub fn get_page(map: &impl MemMap, pfn: Pfn) {
    if let Some(page) = map.page(pfn) {
        refcount::get(page.references());
    }
}

/// Drops a reference, and frees the page with the last one (Linux: `put_page`).
///
/// A lookup may get a reference of a page whose last one is being dropped; then that lookup frees it.
pub fn put_page<K: MemMap + PageAlloc>(k: &K, pfn: Pfn) {
    let Some(page) = k.page(pfn) else { return };
    let count = page.references();
    loop {
        let now = page.refcount();
        if now <= 1 {
            break;
        }
        let (success, failure) =
            (core::sync::atomic::Ordering::AcqRel, core::sync::atomic::Ordering::Relaxed);
        if count.compare_exchange(now, now - 1, success, failure).is_ok() {
            return;
        }
    }
    // Whoever has no reference yet does not get the page for what it was.
    page.set_owner(0, 0);
    page.remove(PageFlags::DIRTY | PageFlags::UNWRITTEN);
    page.set_kind(PageKind::Allocated);
    k.free_pages(pfn, Order::ZERO);
}
