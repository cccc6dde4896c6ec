//! Pages of mappings: finding, adding and taking out (Linux: mm/filemap.c).

use memvisor_abi as abi;
use memvisor_abi::NodeStat;
use mm_core::{Arena, Event, Gfp, Id, MemMap, Order, Page, PageFlags, PageKind, Pfn, refcount};

use crate::lookup::{self, Tried};
use crate::tree::Spare;
use crate::workingset::{erase_entry, store_entry};
use crate::{Cache, CacheError, Entry, Mapping, Missing, get_page, put_page};

/// Tries without the lock.
const TRIES: usize = 8;

/// Where a page may be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Below the end of the file only.
    Size,
    /// Anywhere: the caller makes the file longer, or allocates past its end.
    None,
}

/// What is at `index`; of a page the caller gets a reference (Linux: `filemap_get_entry`). Takes no lock unless the mapping is
/// changed all the time.
pub fn find_get_entry<K: Cache>(k: &K, id: Id<Mapping>, index: u64) -> Entry {
    let mapping: &Mapping = k.at(id);
    for _ in 0..TRIES {
        match k.rcu_read(|| mapping.i_pages().load_unlocked(k, index)) {
            None => break,
            Some(Entry::Frame(pfn)) => {
                let Some(page) = MemMap::page(k, pfn) else { break };
                match lookup::try_get(page, (id.as_u64(), index)) {
                    Tried::Got => return Entry::Frame(pfn),
                    Tried::Free => {}
                    Tried::Other => put_page(k, pfn),
                }
            }
            Some(other) => return other,
        }
    }
    k.pages_lock(id, || {
        let entry = mapping.i_pages().load(k, index);
        if let Entry::Frame(pfn) = entry {
            get_page(k, pfn);
        }
        entry
    })
}

/// The page at `index`, with a reference (Linux: `find_get_page`).
pub fn find_get_page<K: Cache>(k: &K, id: Id<Mapping>, index: u64) -> Option<Pfn> {
    match find_get_entry(k, id, index) {
        Entry::Frame(pfn) => Some(pfn),
        Entry::Empty | Entry::Value(_) => None,
    }
}

/// The page at `index`, with a reference, if it can be mapped as it is: nobody waits for it, and nothing is to begin when it is met (Linux:
/// `next_uptodate_page`).
pub fn get_ready_page<K: Cache>(k: &K, id: Id<Mapping>, index: u64) -> Option<Pfn> {
    let mapping: &Mapping = k.at(id);
    let pfn = find_get_page(k, id, index)?;
    let is_ready = MemMap::page(k, pfn).is_some_and(|page| {
        // RECLAIM is PG_readahead: a reader who comes to it has more read ahead. UNWRITTEN becomes a written page by a fault of its own.
        let complete = page.has(PageFlags::UPTODATE) || k.is_shmem(id);
        let waits = PageFlags::LOCKED | PageFlags::RECLAIM | PageFlags::UNWRITTEN;
        complete && !page.has_any(waits)
    });
    if is_ready && index < mapping.end_index() {
        return Some(pfn);
    }
    put_page(k, pfn);
    None
}

/// Whether there is a page at `index` (Linux: `filemap_get_incore_folio`, for mincore).
pub fn has_page<K: Cache>(k: &K, id: Id<Mapping>, index: u64) -> bool {
    let tree = Arena::<Mapping>::at(k, id).i_pages();
    let entry = k.rcu_read(|| tree.load_unlocked(k, index));
    let entry = entry.unwrap_or_else(|| k.pages_lock(id, || tree.load(k, index)));
    matches!(entry, Entry::Frame(_))
}

/// The first index in `from..=last` with something at it (Linux: `mapping_seek_hole_data`).
pub fn next_page<K: Cache>(k: &K, id: Id<Mapping>, from: u64, last: u64) -> Option<u64> {
    let tree = Arena::<Mapping>::at(k, id).i_pages();
    let found = k.rcu_read(|| tree.next_unlocked(k, from, last));
    found.unwrap_or_else(|()| k.pages_lock(id, || tree.next(k, from, last))).map(|(index, _)| index)
}

/// Puts a page of the caller's, with its contents, at `index`; the cache takes a reference of its own (Linux: `filemap_add_folio`). A
/// value that is there gives way.
///
/// # Errors
/// [`CacheError::Exists`], [`CacheError::PastEnd`] or [`CacheError::NoMemory`]; the page is only the caller's then.
pub fn add_to_page_cache<K: Cache>(
    k: &K,
    id: Id<Mapping>,
    index: u64,
    pfn: Pfn,
    bound: Bound,
) -> Result<(), CacheError> {
    add_page(k, (id, index), pfn, bound, |seen| !matches!(seen, Entry::Frame(_)))
}

/// [`add_to_page_cache`] in the place of what `gives_way`, which is asked with the lock held.
pub(crate) fn add_page<K: Cache>(
    k: &K,
    (id, index): (Id<Mapping>, u64),
    pfn: Pfn,
    bound: Bound,
    gives_way: impl Fn(Entry) -> bool,
) -> Result<(), CacheError> {
    let mapping: &Mapping = k.at(id);
    let page = MemMap::page(k, pfn).ok_or(CacheError::NoMemory)?;
    page.set_kind(PageKind::User);
    let mut spare = Spare::default();
    let mut shadow = None;
    let done = loop {
        let tried = k.pages_lock(id, || {
            if bound == Bound::Size && index >= mapping.end_index() {
                return Ok(Err(CacheError::PastEnd));
            }
            let tree = mapping.i_pages();
            let seen = tree.load(k, index);
            if !gives_way(seen) {
                return Ok(Err(CacheError::Exists));
            }
            shadow = match seen {
                Entry::Value(value) => Some(value),
                Entry::Frame(_) | Entry::Empty => None,
            };
            // Before anybody finds it.
            page.set_owner(id.as_u64(), index);
            store_entry(k, id, index, Entry::Frame(pfn), &mut spare).inspect_err(|_| page.set_owner(0, 0))?;
            refcount::get(page.references());
            mapping.add_nrpages(1);
            Ok(Ok(()))
        });
        match tried {
            Ok(done) => break done,
            Err(Missing(nodes)) => {
                if spare.fill(k, Missing(nodes)).is_none() {
                    break Err(CacheError::NoMemory);
                }
            }
        }
    };
    spare.free(k);
    if done.is_ok() {
        count_page(k, page, 1);
        k.emit(Event::MmFilemapAdd { pfn, index });
        // What stands in the place of shared memory is no shadow.
        if let Some(shadow) = shadow.filter(|_| !page.has(PageFlags::SWAPBACKED)) {
            k.workingset_refault(page, shadow);
        }
        k.folio_add_lru(pfn, page, PageFlags::empty());
    }
    done
}

/// Takes a page, which the caller has a reference of, out of its mapping; false if it is not at `index` (Linux:
/// `filemap_remove_folio`). Who still maps it keeps it.
pub fn delete_from_page_cache<K: Cache>(k: &K, id: Id<Mapping>, index: u64, pfn: Pfn) -> bool {
    let mapping: &Mapping = k.at(id);
    let deleted = k.pages_lock(id, || {
        let found = mapping.i_pages().load(k, index) == Entry::Frame(pfn);
        if found {
            erase(k, id, index);
        }
        found
    });
    if deleted {
        if let Some(page) = MemMap::page(k, pfn) {
            count_page(k, page, -1);
        }
        put_page(k, pfn);
    }
    deleted
}

/// What a page that moves takes along (Linux: `folio_migrate_flags`). What names its list stays with the old frame, too: it leaves its list
/// when it is freed.
pub const MOVES: PageFlags = PageFlags::DIRTY
    .union(PageFlags::UNWRITTEN)
    .union(PageFlags::UPTODATE)
    .union(PageFlags::REFERENCED)
    .union(PageFlags::ACTIVE)
    .union(PageFlags::UNEVICTABLE)
    .union(PageFlags::SWAPBACKED)
    .union(PageFlags::WORKINGSET);

/// Gives the slot of the page `old`, which the caller has a reference of, to the fresh page `new`, with its contents by `copy`; the cache
/// takes a reference of it. False, with nothing changed, if somebody else holds `old`, or it has left the mapping (Linux:
/// `folio_migrate_mapping`). After it the caller's reference is the last one of `old`, which is nobody's page; entries that mapped it are
/// the caller's to mend, who has made sure that nothing maps it now.
pub fn replace_page<K: Cache>(
    k: &K,
    id: Id<Mapping>,
    index: u64,
    (old, new): (Pfn, Pfn),
    copy: impl FnOnce(),
) -> bool {
    let tree = Arena::<Mapping>::at(k, id).i_pages();
    let (Some(from), Some(to)) = (MemMap::page(k, old), MemMap::page(k, new)) else { return false };
    k.pages_lock(id, || {
        // The cache's reference and the caller's. Frozen, a lookup that found the page does not get it, and looks again (L2).
        if tree.load(k, index) != Entry::Frame(old) || !refcount::freeze(from.references(), 2) {
            return false;
        }
        copy();
        to.set_kind(PageKind::User);
        to.set_owner(id.as_u64(), index);
        to.insert(from.flags() & MOVES);
        to.set_private(from.private());
        refcount::get(to.references());
        // The slot is there, so no node is needed.
        let stored = tree.store(k, index, Entry::Frame(new), &mut Spare::default());
        debug_assert!(stored.is_ok(), "a slot in use needs no nodes");
        from.set_owner(0, 0);
        from.remove(PageFlags::DIRTY | PageFlags::UPTODATE | PageFlags::UNWRITTEN);
        from.set_private(0);
        from.set_kind(PageKind::Allocated);
        refcount::unfreeze(from.references(), 1);
        // Globally nothing changes.
        move_counts(k, id, (from, to));
        true
    })
}

/// A page came into a mapping or left it (Linux: `NR_FILE_PAGES`, `NR_SHMEM`).
pub(crate) fn count_page<K: Cache>(k: &K, page: &Page, delta: i64) {
    k.count_file_pages(delta);
    count_page_of_zone(k, page, delta);
}

fn count_page_of_zone<K: Cache>(k: &K, page: &Page, delta: i64) {
    k.mod_page_state(page, NodeStat::FilePages, delta);
    if page.has(PageFlags::SWAPBACKED) {
        k.mod_page_state(page, NodeStat::Shmem, delta);
    }
}

/// What a page of a mapping counts for moves with its contents. `from` has its list's flags still, `to` what moved.
fn move_counts<K: Cache>(k: &K, id: Id<Mapping>, (from, to): (&Page, &Page)) {
    count_page_of_zone(k, from, -1);
    count_page_of_zone(k, to, 1);
    // Of shared memory DIRTY says something else.
    if to.has(PageFlags::DIRTY) && !k.is_shmem(id) {
        k.mod_page_state(from, NodeStat::Dirty, -1);
        k.mod_page_state(to, NodeStat::Dirty, 1);
    }
}

/// Takes a clean page out that nobody has but the cache and the caller, and leaves what `shadow` gives in its place, or nothing if that is 0
/// (Linux: `__remove_mapping`). The page has no references after it: the caller frees it, with [`put_page`] once it has one again. False,
/// with nothing changed and `shadow` not called, if it is dirty, somebody else holds it, or it has left its mapping. The caller has
/// it locked.
pub fn remove_mapping<K: Cache>(k: &K, pfn: Pfn, shadow: impl FnOnce() -> u64) -> bool {
    let Some(page) = MemMap::page(k, pfn) else { return false };
    // The mapping may let go of the page at any time, and be gone: it keeps its type in here, and its tree does not have the page then.
    let removed = k.rcu_read(|| {
        let (raw, index) = page.owner();
        let Some(id) = Id::new(raw).filter(|_| raw & abi::Page::MAPPING_ANON == 0) else { return false };
        k.pages_lock(id, || freeze_and_remove(k, id, index, pfn, shadow))
    });
    if removed {
        count_page(k, page, -1);
    }
    removed
}

/// [`remove_mapping`] with the lock held.
fn freeze_and_remove<K: Cache>(
    k: &K,
    id: Id<Mapping>,
    index: u64,
    pfn: Pfn,
    shadow: impl FnOnce() -> u64,
) -> bool {
    let mapping: &Mapping = k.at(id);
    let Some(page) = MemMap::page(k, pfn) else { return false };
    if mapping.i_pages().load(k, index) != Entry::Frame(pfn) || !refcount::freeze(page.references(), 2) {
        return false;
    }
    // Whoever wrote to it had a reference: after the freeze nobody does (Linux: the same order).
    if page.has(PageFlags::DIRTY) {
        refcount::unfreeze(page.references(), 2);
        return false;
    }
    match shadow() {
        0 => {
            erase(k, id, index);
        }
        shadow => {
            // The slot is there, so no node is needed.
            let stored = store_entry(k, id, index, Entry::Value(shadow), &mut Spare::default());
            debug_assert!(stored.is_ok(), "a slot in use needs no nodes");
            page.set_mapping(0);
            mapping.add_nrpages(-1);
        }
    }
    true
}

/// Takes what is at `index` out, under the lock; the cache's reference of a page goes to the caller.
pub(crate) fn erase<K: Cache>(k: &K, id: Id<Mapping>, index: u64) -> Option<Pfn> {
    match erase_entry(k, id, index) {
        Entry::Frame(pfn) => {
            if let Some(page) = MemMap::page(k, pfn) {
                page.set_mapping(0);
            }
            Arena::<Mapping>::at(k, id).add_nrpages(-1);
            k.emit(Event::MmFilemapDelete { pfn, index });
            Some(pfn)
        }
        Entry::Empty | Entry::Value(_) => None,
    }
}

/// The page at `index` with a reference; one that is not there yet is allocated, zero, and completed by `fill` (Linux:
/// `read_cache_page`, `filemap_fault`). True beside it if it came in by this call.
///
/// # Errors
/// [`CacheError::PastEnd`], [`CacheError::NoMemory`], or what `fill` says.
pub fn read_cache_page<K: Cache>(
    k: &K,
    id: Id<Mapping>,
    index: u64,
    bound: Bound,
    fill: impl FnOnce(Pfn) -> Result<(), CacheError>,
) -> Result<(Pfn, bool), CacheError> {
    let mapping: &Mapping = k.at(id);
    if bound == Bound::Size && index >= mapping.end_index() {
        return Err(CacheError::PastEnd);
    }
    if let Some(pfn) = find_get_page(k, id, index) {
        return Ok((pfn, false));
    }
    let fresh = k.alloc_pages(Gfp::HIGHUSER_MOVABLE | Gfp::ZERO, Order::ZERO, None);
    let fresh = fresh.ok_or(CacheError::NoMemory)?;
    let mut done = fill(fresh);
    if let (Ok(()), Some(page)) = (&done, MemMap::page(k, fresh)) {
        page.insert(PageFlags::UPTODATE);
    }
    while done.is_ok() {
        match add_to_page_cache(k, id, index, fresh, bound) {
            Ok(()) => return Ok((fresh, true)),
            Err(CacheError::Exists) => {
                if let Some(pfn) = find_get_page(k, id, index) {
                    put_page(k, fresh);
                    return Ok((pfn, false));
                }
            }
            Err(error) => done = Err(error),
        }
    }
    put_page(k, fresh);
    Err(done.err().unwrap_or(CacheError::NoMemory))
}
