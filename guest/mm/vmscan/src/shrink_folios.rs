//! Pages off an inactive list are freed, written, or kept (Linux: `shrink_folio_list`).
//!
//! ```text
//! locked by others · used · a write begins                      keep: back to the inactive list
//! locked memory · used again · cannot be swapped or unmapped    activate
//! clean, mapped by nobody, held by nobody else                  free
//! ```

use mm_core::{Event, Gfp, Page, PageFlags, Pfn};

use crate::isolate::file_index;
use crate::list::is_file_lru;
use crate::page_list::PageList;
use crate::references::{References, folio_check_references};
use crate::{PageOut, Pages, ScanControl, ScanStat, workingset_eviction};

/// What becomes of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is free, and unlocked.
    Free,
    /// It stays inactive; it is still locked.
    KeepLocked,
    /// It stays inactive; somebody else has it locked, or nobody.
    Keep,
    /// It becomes active, or unevictable; it is still locked.
    Activate,
}

/// What a pass over a list has come to.
struct Pass<P> {
    stat: ScanStat,
    plug: P,
}

/// Works through `pages`; what is left of them, how many were freed, and what was seen.
pub(crate) fn shrink_folio_list<M: Pages>(
    m: &M,
    mut pages: PageList,
    sc: &ScanControl,
) -> (PageList, u64, ScanStat) {
    let mut back = PageList::EMPTY;
    let (mut freed, mut pass) = (0, Pass { stat: ScanStat::default(), plug: M::Plug::default() });
    while let Some((pfn, page)) = pages.pop(m) {
        let fate = if page.try_lock() { shrink_folio(m, (pfn, page), sc, &mut pass) } else { Fate::Keep };
        match fate {
            Fate::Free => {
                freed += 1;
                continue;
            }
            Fate::Keep => {}
            Fate::KeepLocked => m.unlock_page(pfn, page),
            Fate::Activate => activate(m, (pfn, page), &mut pass.stat),
        }
        back.push(m, (pfn, page));
    }
    (back, freed, pass.stat)
}

/// Decides about a locked page.
fn shrink_folio<M: Pages>(
    m: &M,
    (pfn, page): (Pfn, &Page),
    sc: &ScanControl,
    pass: &mut Pass<M::Plug>,
) -> Fate {
    if page.has(PageFlags::UNEVICTABLE) {
        return Fate::Activate;
    }
    let is_mapped = page.mapcount() >= 0;
    if is_mapped && !sc.may_unmap {
        return Fate::KeepLocked;
    }
    count_dirty(page, &mut pass.stat);
    if page.has(PageFlags::WRITEBACK) {
        return writeback(page, sc, &mut pass.stat);
    }
    // A neighbour's entries showed that it is used (Linux: `folio_update_gen` of a page that is isolated).
    if is_mapped && page.has(PageFlags::REFERENCED) && m.lru_gen_enabled() {
        return Fate::KeepLocked;
    }
    let references = folio_check_references(m, pfn, page);
    match references {
        References::Activate => return Fate::Activate,
        References::Keep => {
            pass.stat.ref_keep += 1;
            return Fate::KeepLocked;
        }
        References::Reclaim | References::ReclaimClean => {}
    }
    // Shared memory goes to swap from its mapping, when it is written.
    let is_anon = page.mapping() & memvisor_abi::Page::MAPPING_ANON != 0;
    if is_anon && !page.has(PageFlags::SWAPCACHE) {
        if !sc.gfp.contains(Gfp::IO) {
            return Fate::KeepLocked;
        }
        if !sc.may_swap || !m.add_to_swap(pfn, page) {
            return Fate::Activate;
        }
    }
    if is_mapped && !m.try_to_unmap(pfn, page) {
        pass.stat.unmap_fail += 1;
        return Fate::Activate;
    }
    if page.has(PageFlags::DIRTY) {
        match clean(m, (pfn, page), sc, (references, pass)) {
            None => {}
            Some(fate) => return fate,
        }
    }
    if !m.remove_mapping(pfn, page, || workingset_eviction(m, page)) {
        return Fate::KeepLocked;
    }
    page.remove(OF_LISTS);
    m.unlock_page(pfn, page);
    m.free_folio(pfn);
    Fate::Free
}

const OF_LISTS: PageFlags = PageFlags::ACTIVE
    .union(PageFlags::SWAPBACKED)
    .union(PageFlags::REFERENCED)
    .union(PageFlags::WORKINGSET)
    .union(PageFlags::LRU_REFS)
    .union(PageFlags::RECLAIM);

/// Linux: `folio_check_dirty_writeback` and what follows.
fn count_dirty(page: &Page, stat: &mut ScanStat) {
    // Only pages of files: swap's writes begin here.
    let is_dirty = is_file_lru(page) && page.has(PageFlags::DIRTY);
    let is_written = page.has(PageFlags::WRITEBACK);
    if is_dirty {
        stat.dirty += 1;
        if !is_written {
            stat.unqueued_dirty += 1;
        }
    }
    if is_written && page.has(PageFlags::RECLAIM) {
        stat.congested += 1;
    }
}

/// A page that is being written comes round again when it is clean.
fn writeback(page: &Page, sc: &ScanControl, stat: &mut ScanStat) -> Fate {
    if sc.is_kswapd() && page.has(PageFlags::RECLAIM) && sc.node_writeback {
        stat.immediate += 1;
    } else {
        // Once it is written it goes to the end of its list.
        page.insert(PageFlags::RECLAIM);
        stat.writeback += 1;
    }
    Fate::Activate
}

/// Has a dirty page written; `None` if it is clean now.
fn clean<M: Pages>(
    m: &M,
    (pfn, page): (Pfn, &Page),
    sc: &ScanControl,
    (references, pass): (References, &mut Pass<M::Plug>),
) -> Option<Fate> {
    // File systems write best in their own order: only kswapd does, when nothing else is left.
    if is_file_lru(page) && !(sc.is_kswapd() && page.has(PageFlags::RECLAIM) && sc.node_dirty) {
        page.insert(PageFlags::RECLAIM);
        return Some(Fate::Activate);
    }
    let may_enter = sc.gfp.contains(Gfp::FS) || page.has(PageFlags::SWAPCACHE) && sc.gfp.contains(Gfp::IO);
    if references == References::ReclaimClean || !may_enter || !sc.may_writepage {
        return Some(Fate::KeepLocked);
    }
    match m.pageout(pfn, page, &mut pass.plug) {
        PageOut::Keep => Some(Fate::KeepLocked),
        PageOut::Activate => Some(Fate::Activate),
        PageOut::Clean => None,
        PageOut::Success => {
            pass.stat.pageout += 1;
            m.emit(Event::MmVmscanWriteFolio { pfn, anon: !is_file_lru(page) });
            let busy = PageFlags::DIRTY | PageFlags::WRITEBACK;
            if page.has_any(busy) || !page.try_lock() {
                return Some(Fate::Keep);
            }
            // Devices that write at once are done.
            page.has_any(busy).then_some(Fate::KeepLocked)
        }
    }
}

/// The page is in use: it stays, active or unevictable, and gives up its slot if those are scarce.
fn activate<M: Pages>(m: &M, (pfn, page): (Pfn, &Page), stat: &mut ScanStat) {
    let is_evictable = !page.has(PageFlags::UNEVICTABLE);
    if page.has(PageFlags::SWAPCACHE) && (m.is_vm_swap_full() || !is_evictable) {
        m.folio_free_swap(pfn, page);
    }
    if is_evictable {
        page.insert(PageFlags::ACTIVE);
        stat.activate[file_index(page)] += 1;
    }
    m.unlock_page(pfn, page);
}
