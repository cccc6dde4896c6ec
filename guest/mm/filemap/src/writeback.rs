//! Dirty pages of files on disks, and how the tree marks them (Linux: mm/page-writeback.c).
//!
//! Invariants, for mappings whose pages are written back:
//! D1  DIRTY of a page in the tree is set under the mapping's lock, with the mark; it is cleared with the page locked. So a page that is
//!     DIRTY has the mark, and a page with the mark that is neither DIRTY nor locked does not exist;
//! D2  WRITEBACK is set with the page locked and cleared once, both under the mapping's lock with the mark;
//! D3  a page that left the tree is not DIRTY by what is counted: whoever takes it out learns whether it was.
//!
//! Counting is the caller's, by what these functions return: each change of a flag is told once.

use memvisor_abi as abi;
use mm_core::{Id, MemMap, PageFlags, Pfn};

use crate::filemap::{count_page, erase};
use crate::{Cache, Entry, Mapping, Mark, put_page};

/// Marks a page that somebody has written, if it is still in its mapping (Linux: `filemap_dirty_folio`). The mapping, if the page was
/// clean. The caller has a reference, or the page-table lock of an entry that maps the page.
pub fn mark_dirty<K: Cache>(k: &K, pfn: Pfn) -> Option<Id<Mapping>> {
    let page = MemMap::page(k, pfn)?;
    // The mapping may let go of the page at any time, and be gone: it keeps its type in here, and its tree does not have the page then.
    k.rcu_read(|| {
        let (raw, index) = page.owner();
        let id = Id::new(raw).filter(|_| raw & abi::Page::MAPPING_ANON == 0)?;
        k.pages_lock(id, || {
            let tree = k.at(id).i_pages();
            if tree.load(k, index) != Entry::Frame(pfn) || page.has(PageFlags::DIRTY) {
                return None;
            }
            page.insert(PageFlags::DIRTY);
            tree.set_mark(k, index, Mark::Dirty);
            Some(id)
        })
    })
}

/// Ends that without a write: what the page holds is not wanted any more (Linux: `folio_cancel_dirty`). Whether it was dirty. The
/// caller has it locked.
pub fn cancel_dirty<K: Cache>(k: &K, id: Id<Mapping>, index: u64, pfn: Pfn) -> bool {
    let Some(page) = MemMap::page(k, pfn) else { return false };
    k.pages_lock(id, || {
        let tree = k.at(id).i_pages();
        let here = tree.load(k, index) == Entry::Frame(pfn);
        if here && !page.has(PageFlags::WRITEBACK) {
            tree.clear_mark(k, index, Mark::Dirty);
        }
        here && page.take(PageFlags::DIRTY)
    })
}

/// The page, which the caller has locked and has just made clean, is being written from now on (Linux: `folio_start_writeback`).
pub fn start_writeback<K: Cache>(k: &K, id: Id<Mapping>, index: u64, pfn: Pfn) {
    let Some(page) = MemMap::page(k, pfn) else { return };
    k.pages_lock(id, || {
        let tree = k.at(id).i_pages();
        page.insert(PageFlags::WRITEBACK);
        tree.set_mark(k, index, Mark::Writeback);
        if !page.has(PageFlags::DIRTY) {
            tree.clear_mark(k, index, Mark::Dirty);
        }
        tree.clear_mark(k, index, Mark::ToWrite);
    });
}

/// The page, locked, was made clean but needs no write after all: its mark goes, if nobody wrote to it since.
pub fn forget_mark<K: Cache>(k: &K, id: Id<Mapping>, index: u64, pfn: Pfn) {
    let Some(page) = MemMap::page(k, pfn) else { return };
    k.pages_lock(id, || {
        let tree = k.at(id).i_pages();
        if tree.load(k, index) == Entry::Frame(pfn) && !page.has(PageFlags::DIRTY) {
            tree.clear_mark(k, index, Mark::Dirty);
        }
    });
}

/// The write of a page has ended, also in an interrupt: `wake` clears WRITEBACK and wakes who waits, under the mapping's lock (Linux:
/// `__folio_end_writeback`). The page is still in its mapping: nobody takes it out meanwhile.
pub fn end_writeback<K: Cache>(k: &K, pfn: Pfn, wake: impl FnOnce()) {
    let Some(page) = MemMap::page(k, pfn) else { return };
    let (raw, index) = page.owner();
    let Some(id) = Id::<Mapping>::new(raw) else { return wake() };
    k.pages_lock(id, || {
        k.at(id).i_pages().clear_mark(k, index, Mark::Writeback);
        wake();
    });
}

/// Takes a page, which the caller has a reference of and has locked, out of its mapping; whether it was dirty, or `None` if it is not at
/// `index` (Linux: `delete_from_page_cache_batch` with `filemap_unaccount_folio`). Nobody writes it to its device.
pub fn delete_locked<K: Cache>(k: &K, id: Id<Mapping>, index: u64, pfn: Pfn) -> Option<bool> {
    let page = MemMap::page(k, pfn)?;
    let mapping: &Mapping = k.at(id);
    let dirty = k.pages_lock(id, || {
        (mapping.i_pages().load(k, index) == Entry::Frame(pfn)).then(|| {
            erase(k, id, index);
            page.take(PageFlags::DIRTY)
        })
    })?;
    count_page(k, page, -1);
    put_page(k, pfn);
    Some(dirty)
}

/// The first page in `from..=last` that has the mark, with a reference and its index (Linux: `find_get_pages_range_tag`).
pub fn find_get_marked<K: Cache>(
    k: &K,
    id: Id<Mapping>,
    mark: Mark,
    from: u64,
    last: u64,
) -> Option<(u64, Pfn)> {
    let mapping: &Mapping = k.at(id);
    if !mapping.i_pages().is_marked(mark) {
        return None;
    }
    k.pages_lock(id, || {
        let (index, entry) = mapping.i_pages().next_marked(k, mark, from, last)?;
        let Entry::Frame(pfn) = entry else { return None };
        crate::get_page(k, pfn);
        Some((index, pfn))
    })
}
