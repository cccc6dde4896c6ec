//! Taking pages out of mappings: truncation, files that are gone, pages that nobody needs.

use core::ops::Range;

use memvisor_abi::PageFlags;
use mm_core::{MaySleep, MemMap};
use mm_filemap::{Cache, Mark, clear_shadow_entries, put_page};
use mm_vma::{Id, Mapping};

use super::{cancel_dirty, delete, list};
use crate::mm::memmap::Vmemmap;
use crate::mm::page_wait;
use crate::mm::space::{Spaces, backing};

/// Takes the pages from `from` on out of the mapping, locked one by one, when nobody reads or writes them; the caller has set the size
/// (Linux: `truncate_inode_pages_range`).
pub fn truncate_pages(id: Id<Mapping>, from: u64, context: &MaySleep<'_>) {
    let mut next = from;
    while let Some(index) = mm_filemap::next_page(&Spaces, id, next, u64::MAX) {
        let Some(pfn) = mm_filemap::find_get_page(&Spaces, id, index) else {
            // A shadow; it would stay for whoever has the mapping next. What else is there by now is met again.
            mm_filemap::clear_shadow_entry(&Spaces, id, index);
            continue;
        };
        next = index.saturating_add(1);
        if let Some(page) = Vmemmap.page(pfn) {
            page_wait::lock_page(pfn, page, context);
            page_wait::wait_on_page_writeback(pfn, page, context);
            delete(id, index, pfn);
            page.set_private(0);
            page_wait::unlock_page(pfn, page);
        }
        put_page(&Spaces, pfn);
        if index == u64::MAX {
            break;
        }
    }
    // After it: no page comes back, and none of those that went is mapped any more (C3).
    Spaces.unmap_mapping_range(id, from..u64::MAX, mm_filemap::Cows::Unmap);
}

/// Nothing of the mapping is written any more: what is on its way is waited for, and what is dirty stays in memory as long as somebody maps it.
pub fn abandon(id: Id<Mapping>, context: &MaySleep<'_>) {
    backing::set_gone(id);
    list::forget(id);
    for mark in [Mark::Dirty, Mark::Writeback] {
        while let Some((index, pfn)) = mm_filemap::writeback::find_get_marked(&Spaces, id, mark, 0, u64::MAX)
        {
            if let Some(page) = Vmemmap.page(pfn) {
                page_wait::lock_page(pfn, page, context);
                page_wait::wait_on_page_writeback(pfn, page, context);
                cancel_dirty(id, index, pfn);
                mm_filemap::writeback::forget_mark(&Spaces, id, index, pfn);
                page_wait::unlock_page(pfn, page);
            }
            put_page(&Spaces, pfn);
        }
    }
}

/// Takes clean pages out that nobody uses, and what reclaim left in the places of others; how many pages (Linux: `invalidate_mapping_pages`).
pub fn invalidate(id: Id<Mapping>, pages: Range<u64>) -> u64 {
    let Some(last) = pages.end.checked_sub(1) else { return 0 };
    clear_shadow_entries(&Spaces, id, pages.clone());
    let (mut next, mut gone) = (pages.start, 0);
    while next <= last
        && let Some(index) = mm_filemap::next_page(&Spaces, id, next, last)
    {
        next = index.saturating_add(1);
        let Some(pfn) = mm_filemap::find_get_page(&Spaces, id, index) else { continue };
        let Some(page) = Vmemmap.page(pfn) else { continue };
        let busy = PageFlags::DIRTY | PageFlags::WRITEBACK;
        let removed = page_wait::trylock_page(page) && {
            let idle = !page.has_any(busy) && page.mapcount() < 0;
            let removed = idle && mm_filemap::remove_mapping(&Spaces, pfn, || 0);
            page_wait::unlock_page(pfn, page);
            removed
        };
        if removed {
            // It has no references: it is the caller's.
            page.set_private(0);
            page.set_refcount(1);
            gone += 1;
        }
        put_page(&Spaces, pfn);
        if index == u64::MAX {
            break;
        }
    }
    gone
}
