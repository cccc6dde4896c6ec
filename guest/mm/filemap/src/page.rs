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
    if put_last(k, pfn) {
        k.free_pages(pfn, Order::ZERO);
    }
}

/// [`put_page`] for many (Linux: `release_pages`): frames that follow each other, up or down, are freed together. [`Puts::finish`] frees the
/// last ones.
#[derive(Debug, Default)]
pub struct Puts {
    /// Frames that are nobody's any more.
    first: u64,
    count: u64,
}

impl Puts {
    /// Drops a reference.
    #[inline]
    pub fn put<K: Folios + PageAlloc>(&mut self, k: &K, pfn: Pfn) {
        if !put_last(k, pfn) {
            return;
        }
        let frame = pfn.as_u64();
        if frame.wrapping_sub(self.first) == self.count {
            self.count += 1;
        } else if frame.wrapping_add(1) == self.first {
            (self.first, self.count) = (frame, self.count + 1);
        } else {
            self.free(k);
            (self.first, self.count) = (frame, 1);
        }
    }

    /// Frees what is left.
    pub fn finish<K: PageAlloc>(mut self, k: &K) {
        self.free(k);
    }

    fn free<K: PageAlloc>(&mut self, k: &K) {
        let first = Pfn::new(self.first);
        match core::mem::take(&mut self.count) {
            0 => {}
            1 => k.free_pages(first, Order::ZERO),
            count => k.free_run(first, count),
        }
    }
}

/// Whether the reference was the page's last one: it is on no list and nobody's any more, and the caller frees it.
#[inline]
fn put_last<K: Folios + PageAlloc>(k: &K, pfn: Pfn) -> bool {
    let Some(page) = k.page(pfn) else { return false };
    // Frozen, nobody finds it on a list and puts it back there after it left: whoever gets a reference now gets a page without an owner.
    while !refcount::freeze(page.references(), 1) {
        if refcount::put_unless_last(page.references()) {
            return false;
        }
        if page.refcount() < 1 {
            // A free too many: the allocator says so.
            return true;
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
    true
}
