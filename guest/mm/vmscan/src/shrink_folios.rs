//! Pages off an inactive list are freed, written, or kept (Linux: `shrink_folio_list`).
//!
//! ```text
//! locked by others · used · a write begins                      keep: back to the inactive list
//! locked memory · used again · cannot be swapped or unmapped    activate
//! clean, mapped by nobody, held by nobody else                  free
//! given away by MADV_FREE, not written to since                 free, without swap
//! ```
//!
//! Pages that somebody maps are unmapped one after the other first, and stay locked; then one flush of translations is for all of them (Linux flushes
//! before each write, and once before clean pages are freed, which it has taken out of their caches by then). With a page's lock held only locks
//! of other pages are tried, so that nobody waits for anybody.

use memvisor_abi::VmEvent;
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
    /// Nobody maps it any more, but CPUs may still reach it; it is still locked.
    Unmapped(References),
}

/// What a pass over a list has come to.
struct Pass<M: Pages> {
    stat: ScanStat,
    plug: M::Plug,
    unflushed: M::Unflushed,
    back: PageList,
    freed: u64,
}

impl<M: Pages> Pass<M> {
    /// A page's fate is decided, but for one that is to be flushed first.
    fn settle(&mut self, m: &M, (pfn, page): (Pfn, &Page), fate: Fate) {
        match fate {
            Fate::Free => {
                self.freed += 1;
                return;
            }
            Fate::Keep | Fate::Unmapped(_) => {}
            Fate::KeepLocked => m.unlock_page(pfn, page),
            Fate::Activate => activate(m, (pfn, page), &mut self.stat),
        }
        self.back.push(m, (pfn, page));
    }
}

/// Works through `pages`; what is left of them, how many were freed, and what was seen.
pub(crate) fn shrink_folio_list<M: Pages>(
    m: &M,
    mut pages: PageList,
    sc: &ScanControl,
) -> (PageList, u64, ScanStat) {
    let mut pass: Pass<M> = Pass {
        stat: ScanStat::default(),
        plug: M::Plug::default(),
        unflushed: M::Unflushed::default(),
        back: PageList::EMPTY,
        freed: 0,
    };
    let mut unmapped =
        [References::Reclaim, References::ReclaimClean].map(|references| (references, PageList::EMPTY));
    while let Some((pfn, page)) = pages.pop(m) {
        let fate = if page.try_lock() { shrink_folio(m, (pfn, page), sc, &mut pass) } else { Fate::Keep };
        match fate {
            Fate::Unmapped(references) => {
                unmapped
                    .iter_mut()
                    .filter(|(of, _)| *of == references)
                    .for_each(|(_, list)| list.push(m, (pfn, page)));
            }
            fate => pass.settle(m, (pfn, page), fate),
        }
    }
    m.try_to_unmap_flush(&mut pass.unflushed);
    for (references, mut list) in unmapped {
        while let Some((pfn, page)) = list.pop(m) {
            let fate = shrink_unmapped(m, (pfn, page), sc, (references, &mut pass));
            pass.settle(m, (pfn, page), fate);
        }
    }
    (pass.back, pass.freed, pass.stat)
}

/// Decides about a locked page.
fn shrink_folio<M: Pages>(m: &M, (pfn, page): (Pfn, &Page), sc: &ScanControl, pass: &mut Pass<M>) -> Fate {
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
    // Shared memory goes to swap from its mapping, when it is written; what was given away goes nowhere.
    if is_anon(page) && page.has(PageFlags::SWAPBACKED) && !page.has(PageFlags::SWAPCACHE) {
        if !sc.gfp.contains(Gfp::IO) {
            return Fate::KeepLocked;
        }
        if !sc.may_swap || !m.add_to_swap(pfn, page) {
            return Fate::Activate;
        }
    }
    if is_mapped {
        if m.try_to_unmap(pfn, page, &mut pass.unflushed) {
            return Fate::Unmapped(references);
        }
        // Whoever still maps it may free it as soon as it is unlocked.
        m.try_to_unmap_flush(&mut pass.unflushed);
        pass.stat.unmap_fail += 1;
        return Fate::Activate;
    }
    shrink_unmapped(m, (pfn, page), sc, (references, pass))
}

/// Decides about a locked page that no program maps, nor any CPU reaches.
fn shrink_unmapped<M: Pages>(
    m: &M,
    (pfn, page): (Pfn, &Page),
    sc: &ScanControl,
    (references, pass): (References, &mut Pass<M>),
) -> Fate {
    if page.has(PageFlags::DIRTY) {
        match clean(m, (pfn, page), sc, (references, pass)) {
            None => {}
            Some(fate) => return fate,
        }
    }
    if !m.remove_mapping(pfn, page, || workingset_eviction(m, page)) {
        return Fate::KeepLocked;
    }
    if is_lazyfree(page) {
        m.count_vm_events(VmEvent::Pglazyfreed, 1);
    }
    page.remove(OF_LISTS);
    m.unlock_page(pfn, page);
    m.free_folio(pfn);
    Fate::Free
}

fn is_anon(page: &Page) -> bool {
    page.mapping() & memvisor_abi::Page::MAPPING_ANON != 0
}

/// Given away by MADV_FREE, and not written to since as far as is known.
fn is_lazyfree(page: &Page) -> bool {
    is_anon(page) && !page.has(PageFlags::SWAPBACKED)
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
    let is_dirty = is_file_lru(page) && !is_anon(page) && page.has(PageFlags::DIRTY);
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
    (references, pass): (References, &mut Pass<M>),
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
