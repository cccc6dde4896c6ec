//! The swap cache: pages in memory that have a slot too (Linux: mm/swap_state.c).
//!
//! A page comes in with a slot of its own ([`crate::folio_alloc_swap`]) to be written out, or for a slot that is named, to be read in
//! ([`add_to_swap_cache`]). It leaves once it is written and nobody maps it, so that it can be freed, or when nobody names its
//! slot. Whoever adds, moves or removes it has it locked.

use mm_core::refcount;
use mm_core::{Page, PageFlags, Pfn};

use crate::area::word;
use crate::slot::{self, Put, Slot, SlotError};
use crate::{Swap, SwapEntry, alloc};

/// What is known of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Its page is in memory; the caller has a reference now.
    Page(Pfn),
    /// Only the device has it; with what is remembered of its eviction, or 0.
    Slot(u64),
    /// Nobody uses the slot (any more), or it is bad.
    None,
}

/// Finds the page of a slot (Linux: `swap_cache_get_folio`). The caller then locks the page and asks [`folio_swap_entry`] whether it is
/// still the slot's.
pub fn swap_cache_get_folio<M: Swap>(m: &M, entry: SwapEntry) -> Lookup {
    let Some(word) = word(m.slots(entry.area()), entry.offset()) else { return Lookup::None };
    loop {
        let seen = Slot::of(word);
        let Some(pfn) = seen.cache() else {
            return if seen.count() > 0 { Lookup::Slot(seen.shadow()) } else { Lookup::None };
        };
        let Some(page) = m.page(pfn) else { return Lookup::None };
        if refcount::try_get(page.references()) {
            // The page may have left and been given out again between the two.
            if Slot::of(word).cache() == Some(pfn) {
                return Lookup::Page(pfn);
            }
            if refcount::put_unless_last(page.references()) {
                continue;
            }
            // The last reference of a page that left the cache: the caller frees it, after it saw that it is not the slot's.
            return Lookup::Page(pfn);
        }
        // Frozen: it is leaving.
        core::hint::spin_loop();
    }
}

/// The slot of a page in the swap cache (Linux: `folio->swap`). The caller has it locked.
pub fn folio_swap_entry(page: &Page) -> Option<SwapEntry> {
    if page.has(PageFlags::SWAPCACHE) { SwapEntry::of_value(page.private()) } else { None }
}

/// Makes `pfn` the page of a slot that is to be read in; what is remembered of the eviction, or 0. The caller has a reference of the fresh
/// page, and locked it.
///
/// # Errors
/// [`SlotError::Cached`] if another was faster, [`SlotError::Free`] if nobody names the slot any more.
pub fn add_to_swap_cache<M: Swap>(m: &M, entry: SwapEntry, pfn: Pfn) -> Result<u64, SlotError> {
    let word = word(m.slots(entry.area()), entry.offset()).ok_or(SlotError::Bad)?;
    // Before it can be found.
    attach(m, pfn, entry);
    let added = slot::add_cache(word, pfn);
    if added.is_err() {
        detach(m, pfn);
    }
    added
}

/// The page is no longer its slot's, and the cache's reference goes; the caller has one more. `shadow` is remembered if entries name the
/// slot; else the slot is free, and the page, which is the only copy, is the caller's to mark dirty.
///
/// # Errors
/// [`SlotError::NotCached`] if it is in no swap cache.
pub fn delete_from_swap_cache<M: Swap>(m: &M, pfn: Pfn, shadow: u64) -> Result<Put, SlotError> {
    let page = m.page(pfn).ok_or(SlotError::Bad)?;
    let entry = folio_swap_entry(page).ok_or(SlotError::NotCached)?;
    let word = word(m.slots(entry.area()), entry.offset()).ok_or(SlotError::Bad)?;
    let put = slot::drop_cache(word, pfn, shadow)?;
    detach(m, pfn);
    if put == Put::Last {
        alloc::give_back(m, entry);
    }
    Ok(put)
}

/// Takes a clean page, which nobody has but the cache and the caller, out to be freed; `shadow` gives what is to be remembered (Linux:
/// `__remove_mapping`). It has no references after that. False, with nothing changed and `shadow` not called, if it is dirty or
/// being written, or somebody else has it. The caller has it locked, and nothing maps it.
pub fn remove_from_swap_cache<M: Swap>(m: &M, pfn: Pfn, shadow: impl FnOnce() -> u64) -> bool {
    let Some(page) = m.page(pfn) else { return false };
    let Some(entry) = folio_swap_entry(page) else { return false };
    let Some(word) = word(m.slots(entry.area()), entry.offset()) else { return false };
    if !refcount::freeze(page.references(), 2) {
        return false;
    }
    // Whoever wrote to it had a reference: after the freeze nobody does.
    if page.has_any(PageFlags::DIRTY | PageFlags::WRITEBACK) {
        refcount::unfreeze(page.references(), 2);
        return false;
    }
    match slot::drop_cache(word, pfn, shadow()) {
        Ok(put) => {
            page.remove(PageFlags::SWAPCACHE);
            page.set_private(0);
            m.count_cached(page, -1);
            if put == Put::Last {
                alloc::give_back(m, entry);
            }
            true
        }
        Err(_) => {
            debug_assert!(false, "frame {pfn} says that it is {entry}'s, which is another's");
            refcount::unfreeze(page.references(), 2);
            false
        }
    }
}

/// A page of the swap cache moves to another frame, which has its owner and its lock (Linux: `folio_migrate_mapping`). `references` of
/// `from` are frozen; the cache's goes over.
///
/// # Errors
/// [`SlotError::NotCached`] if `from` is in no swap cache.
pub fn replace_in_swap_cache<M: Swap>(m: &M, from: Pfn, to: Pfn) -> Result<(), SlotError> {
    let (old, new) = (m.page(from).ok_or(SlotError::Bad)?, m.page(to).ok_or(SlotError::Bad)?);
    let entry = folio_swap_entry(old).ok_or(SlotError::NotCached)?;
    new.set_private(entry.as_value());
    let kept = [PageFlags::UPTODATE, PageFlags::SWAPBACKED].into_iter().filter(|flag| old.has(*flag));
    new.insert(kept.fold(PageFlags::SWAPCACHE, PageFlags::union));
    refcount::get(new.references());
    slot::move_cache(word(m.slots(entry.area()), entry.offset()).ok_or(SlotError::Bad)?, from, to)?;
    old.remove(PageFlags::SWAPCACHE);
    old.set_private(0);
    m.count_cached(old, -1);
    m.count_cached(new, 1);
    Ok(())
}

/// Gives up the slot of a page if no entry names it and it is not being written: the page is the only copy then, and dirty (Linux:
/// `folio_free_swap`). The caller has it locked and a reference.
pub fn folio_free_swap<M: Swap>(m: &M, pfn: Pfn) -> bool {
    let Some(page) = m.page(pfn) else { return false };
    let Some(entry) = folio_swap_entry(page).filter(|_| !page.has(PageFlags::WRITEBACK)) else {
        return false;
    };
    let named = word(m.slots(entry.area()), entry.offset()).is_none_or(|word| Slot::of(word).count() > 0);
    // The count does not rise again: only entries are copied, and there is none.
    if named || delete_from_swap_cache(m, pfn, 0).is_err() {
        return false;
    }
    page.insert(PageFlags::DIRTY);
    true
}

/// An entry that named the slot has gone, and with the last one its page should leave the swap cache too (Linux:
/// `free_swap_and_cache`). The frame of a page that did, whose reference the caller drops.
///
/// # Errors
/// See [`SlotError`].
pub fn free_swap_and_cache<M: Swap>(m: &M, entry: SwapEntry) -> Result<Option<Pfn>, SlotError> {
    let Put::Cached(_) = alloc::swap_free(m, entry)? else { return Ok(None) };
    let Lookup::Page(pfn) = swap_cache_get_folio(m, entry) else { return Ok(None) };
    let Some(page) = m.page(pfn) else { return Ok(None) };
    // Whoever has it locked, or maps it, finds out later that the slot is not needed.
    if page.try_lock() {
        if folio_swap_entry(page) == Some(entry) && page.mapcount() < 0 {
            folio_free_swap(m, pfn);
        }
        m.unlock_page(pfn);
    }
    Ok(Some(pfn))
}

/// A page that somebody stopped to map gives up its slot if nobody else needs it; the caller has a reference (Linux: `free_swap_cache`). A
/// page that somebody has locked keeps it until reclaim comes by.
pub fn free_swap_cache<M: Swap>(m: &M, pfn: Pfn) {
    let Some(page) = m.page(pfn) else { return };
    if page.has(PageFlags::SWAPCACHE) && page.mapcount() < 0 && page.try_lock() {
        folio_free_swap(m, pfn);
        m.unlock_page(pfn);
    }
}

/// How many entries name a slot; 0 if it is free or bad (Linux: `swp_swapcount`).
pub fn swap_count<M: Swap>(m: &M, entry: SwapEntry) -> u64 {
    word(m.slots(entry.area()), entry.offset()).map_or(0, |word| Slot::of(word).count())
}

/// The page names its slot, and the cache has a reference.
pub(crate) fn attach<M: Swap>(m: &M, pfn: Pfn, entry: SwapEntry) {
    let Some(page) = m.page(pfn) else { return };
    refcount::get(page.references());
    page.set_private(entry.as_value());
    page.insert(PageFlags::SWAPCACHE);
    m.count_cached(page, 1);
}

fn detach<M: Swap>(m: &M, pfn: Pfn) {
    let Some(page) = m.page(pfn) else { return };
    page.remove(PageFlags::SWAPCACHE);
    page.set_private(0);
    m.count_cached(page, -1);
    // The caller has another.
    let left = refcount::put_unless_last(page.references());
    debug_assert!(left, "the swap cache had the last reference of frame {pfn}");
}
