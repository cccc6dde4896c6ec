//! Shared memory in swap areas: the slot's value is in the tree in the place of the page (Linux: mm/shmem.c, `shmem_writepage`,
//! `shmem_swapin_folio`, `shmem_unuse`).
//!
//! A value in the tree counts once in its slot's word. A page is in the page cache or in the swap cache; for a moment, under its lock, in both.

use abi::Page as AbiPage;
use memvisor_abi as abi;
use mm_core::{Arena, Id, MemMap, Page, PageFlags, PageKind, Pfn, PolicyAt, refcount};
use mm_swap::{
    SwapEntry, SwapError, SwapInError, delete_from_swap_cache, folio_alloc_swap, folio_swap_entry,
    free_swap_and_cache, swap_duplicate, swap_free,
};

use crate::filemap::count_page;
use crate::tree::Spare;
use crate::{Cache, CacheError, Entry, Mapping, put_page};

/// Gives a page of shared memory a slot and moves it from its mapping to the swap cache, dirty; false if it stays: no slot, somebody else holds
/// it, or it has left its mapping (Linux: `shmem_writepage` up to `swap_writepage`). The caller has it locked and the only
/// reference beside the mapping's; nobody maps it.
pub fn move_to_swap<K: Cache>(k: &K, pfn: Pfn) -> bool {
    let Some(page) = MemMap::page(k, pfn) else { return false };
    // A slot first: it may take locks that come above the mapping's.
    let Some(entry) = folio_alloc_swap(k, pfn) else { return false };
    let moved = k.rcu_read(|| {
        let (raw, index) = page.owner();
        let id = Id::<Mapping>::new(raw).filter(|_| raw & AbiPage::MAPPING_ANON == 0)?;
        let moved = k.is_shmem(id)
            && k.pages_lock(id, || {
                let moved = leave(k, k.at(id), (index, pfn, page), entry);
                if moved {
                    k.count_swapped(id, 1);
                }
                moved
            });
        moved.then_some(())
    });
    if moved.is_none() {
        // It stays as it was; its slot goes back, which nobody names.
        let deleted = delete_from_swap_cache(k, pfn, 0);
        debug_assert!(deleted.is_ok(), "a locked page left the swap cache: {deleted:?}");
        return false;
    }
    count_page(k, page, -1);
    true
}

/// [`move_to_swap`] with the mapping's lock held.
fn leave<K: Cache>(
    k: &K,
    mapping: &Mapping,
    (index, pfn, page): (u64, Pfn, &Page),
    entry: SwapEntry,
) -> bool {
    // The mapping's reference, the swap cache's and the caller's. Whoever else found the page has one, and may map it.
    if mapping.i_pages().load(k, index) != Entry::Frame(pfn) || !refcount::freeze(page.references(), 3) {
        return false;
    }
    if page.mapcount() >= 0 || swap_duplicate(k, entry).is_err() {
        refcount::unfreeze(page.references(), 3);
        return false;
    }
    // The slot is there, so no node is needed.
    let stored = mapping.i_pages().store(k, index, Entry::Value(entry.as_value()), &mut Spare::default());
    debug_assert!(stored.is_ok(), "a slot in use needs no nodes");
    mapping.add_nrpages(-1);
    page.set_owner(0, 0);
    // What was allocated and never written is zeroes from now on.
    page.remove(PageFlags::UNWRITTEN);
    page.insert(PageFlags::UPTODATE | PageFlags::DIRTY | PageFlags::SWAPBACKED);
    refcount::unfreeze(page.references(), 2);
    true
}

/// Brings the page of a value back to where the value is, with a reference for the caller; `None` if something else is there by now (Linux:
/// `shmem_swapin_folio`).
///
/// # Errors
/// [`CacheError::NoMemory`], [`CacheError::Io`].
pub(super) fn swap_in<K: Cache>(
    k: &K,
    id: Id<Mapping>,
    at: PolicyAt,
    value: u64,
) -> Result<Option<Pfn>, CacheError> {
    let mapping: &Mapping = k.at(id);
    let is_there = || k.pages_lock(id, || mapping.i_pages().load(k, at.index)) == Entry::Value(value);
    let entry = SwapEntry::of_value(value).ok_or(CacheError::Io)?;
    let pfn = match k.swapin_readahead(entry, at) {
        Ok(found) => found.pfn,
        Err(_) if !is_there() => return Ok(None),
        Err(SwapInError::NoMemory) => return Err(CacheError::NoMemory),
        Err(SwapInError::Gone) => return Err(CacheError::Io),
    };
    k.lock_page(pfn);
    let result =
        MemMap::page(k, pfn).map_or(Ok(false), |page| come_back(k, (id, at.index), (pfn, page), entry));
    k.unlock_page(pfn);
    match result {
        Ok(true) => Ok(Some(pfn)),
        Ok(false) => {
            put_page(k, pfn);
            Ok(None)
        }
        Err(error) => {
            put_page(k, pfn);
            Err(error)
        }
    }
}

/// [`swap_in`] with the page locked.
fn come_back<K: Cache>(
    k: &K,
    (id, index): (Id<Mapping>, u64),
    (pfn, page): (Pfn, &Page),
    entry: SwapEntry,
) -> Result<bool, CacheError> {
    if folio_swap_entry(page) != Some(entry) {
        return Ok(false);
    }
    if !page.has(PageFlags::UPTODATE) {
        k.swap_readpage(pfn);
    }
    if !page.has(PageFlags::UPTODATE) {
        return Err(CacheError::Io);
    }
    k.wait_on_page_writeback(pfn);
    let mapping: &Mapping = k.at(id);
    let added = k.pages_lock(id, || {
        let tree = mapping.i_pages();
        if tree.load(k, index) != Entry::Value(entry.as_value()) {
            return false;
        }
        page.set_kind(PageKind::User);
        page.set_owner(id.as_u64(), index);
        refcount::get(page.references());
        let stored = tree.store(k, index, Entry::Frame(pfn), &mut Spare::default());
        debug_assert!(stored.is_ok(), "a slot in use needs no nodes");
        mapping.add_nrpages(1);
        true
    });
    if !added {
        return Ok(false);
    }
    count_page(k, page, 1);
    k.count_swapped(id, -1);
    // The page is the only copy from now on.
    let deleted = delete_from_swap_cache(k, pfn, 0);
    debug_assert!(deleted.is_ok(), "a locked page left the swap cache: {deleted:?}");
    let freed = swap_free(k, entry);
    debug_assert!(freed.is_ok(), "a value named {entry}, which was not counted");
    page.insert(PageFlags::DIRTY);
    Ok(true)
}

/// A value was taken out: its slot goes back (Linux: `shmem_free_swap`).
pub(crate) fn free_swap<K: Cache>(k: &K, value: u64) {
    let Some(entry) = SwapEntry::of_value(value) else { return };
    match free_swap_and_cache(k, entry) {
        Ok(None) => {}
        Ok(Some(pfn)) => put_page(k, pfn),
        Err(error) => debug_assert!(false, "a value named {entry}: {error:?}"),
    }
}

/// Brings every page of a mapping back that is in the area (Linux: `shmem_unuse_inode`).
///
/// # Errors
/// [`SwapError::NoMemory`], [`SwapError::Io`].
pub fn unuse<K: Cache>(k: &K, id: Id<Mapping>, area: u32) -> Result<(), SwapError> {
    let tree = Arena::<Mapping>::at(k, id).i_pages();
    let mut from = 0;
    loop {
        let Some((index, entry)) = k.pages_lock(id, || tree.next(k, from, u64::MAX)) else { return Ok(()) };
        if let Entry::Value(value) = entry
            && SwapEntry::of_value(value).is_some_and(|entry| entry.area() == area)
        {
            match swap_in(k, id, PolicyAt::of_task(index), value) {
                Ok(Some(pfn)) => put_page(k, pfn),
                // Once more: it may be a value again.
                Ok(None) => continue,
                Err(CacheError::NoMemory) => return Err(SwapError::NoMemory),
                Err(_) => return Err(SwapError::Io),
            }
        }
        let Some(next) = index.checked_add(1) else { return Ok(()) };
        from = next;
    }
}
