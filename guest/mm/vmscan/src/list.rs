//! Putting pages on lists and taking them off (Linux: include/linux/mm_inline.h). The LRU lock is held.

use memvisor_abi::{LruKind, LruList, Lruvec, PFN_NONE};
use mm_core::{MemMap, Page, PageFlags, Pfn};

use crate::lrugen;

/// The list that a page's flags name (Linux: `folio_lru_list`).
pub(crate) fn folio_lru_list(page: &Page) -> LruKind {
    match (page.has(PageFlags::UNEVICTABLE), is_file_lru(page), page.has(PageFlags::ACTIVE)) {
        (true, ..) => LruKind::Unevictable,
        (false, false, false) => LruKind::InactiveAnon,
        (false, false, true) => LruKind::ActiveAnon,
        (false, true, false) => LruKind::InactiveFile,
        (false, true, true) => LruKind::ActiveFile,
    }
}

/// Whether a page is of a file, and not anonymous or of shared memory (Linux: `folio_is_file_lru`).
pub(crate) fn is_file_lru(page: &Page) -> bool {
    !page.has(PageFlags::SWAPBACKED)
}

/// Where a page comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// To be reclaimed last.
    Head,
    /// To be reclaimed next.
    Tail,
}

/// Puts a page on the list that its flags name, and marks it LRU. With generations it is ACTIVE no more.
pub(crate) fn add<M: MemMap>(m: &M, lruvec: &mut Lruvec, (pfn, page): (Pfn, &Page), end: End) {
    if lrugen::is_enabled(lruvec) && !page.has(PageFlags::UNEVICTABLE) {
        return lrugen::lru_gen_add_folio(m, lruvec, (pfn, page), end);
    }
    let kind = folio_lru_list(page);
    page.insert(PageFlags::LRU);
    push(m, &mut lruvec.lists[kind as usize], (pfn, page), end);
    if let Some(zone) = lruvec.zone_pages.get_mut(page.zone() as usize) {
        zone[kind as usize] += 1;
    }
}

/// Takes a page off the list that its flags name. Its LRU mark is the caller's affair. With generations it is ACTIVE if it was young.
pub(crate) fn del<M: MemMap>(m: &M, lruvec: &mut Lruvec, page: &Page) {
    if lrugen::is_enabled(lruvec) && lrugen::lru_gen_del_folio(m, lruvec, page) {
        return;
    }
    let kind = folio_lru_list(page);
    unlink(m, &mut lruvec.lists[kind as usize], page);
    if let Some(zone) = lruvec.zone_pages.get_mut(page.zone() as usize) {
        zone[kind as usize] = zone[kind as usize].saturating_sub(1);
    }
}

/// Moves a page to an end of its list.
pub(crate) fn rotate<M: MemMap>(m: &M, lruvec: &mut Lruvec, (pfn, page): (Pfn, &Page), end: End) {
    let list = &mut lruvec.lists[folio_lru_list(page) as usize];
    unlink(m, list, page);
    push(m, list, (pfn, page), end);
}

pub(crate) fn push<M: MemMap>(m: &M, list: &mut LruList, (pfn, page): (Pfn, &Page), end: End) {
    let raw = pfn.as_u64();
    let other = match end {
        End::Head => core::mem::replace(&mut list.head, raw),
        End::Tail => core::mem::replace(&mut list.tail, raw),
    };
    let (prev, next) = if end == End::Head { (PFN_NONE, other) } else { (other, PFN_NONE) };
    page.set_prev(prev);
    page.set_next(next);
    match m.page(Pfn::new(other)).filter(|_| other != PFN_NONE) {
        Some(other) if end == End::Head => other.set_prev(raw),
        Some(other) => other.set_next(raw),
        None if end == End::Head => list.tail = raw,
        None => list.head = raw,
    }
    list.count += 1;
}

pub(crate) fn unlink<M: MemMap>(m: &M, list: &mut LruList, page: &Page) {
    let (prev, next) = (page.prev(), page.next());
    match m.page(Pfn::new(prev)).filter(|_| prev != PFN_NONE) {
        Some(before) => before.set_next(next),
        None => list.head = next,
    }
    match m.page(Pfn::new(next)).filter(|_| next != PFN_NONE) {
        Some(after) => after.set_prev(prev),
        None => list.tail = prev,
    }
    list.count = list.count.saturating_sub(1);
    page.set_next(PFN_NONE);
    page.set_prev(PFN_NONE);
}

/// The last page of a list.
pub(crate) fn last(list: &LruList) -> Option<Pfn> {
    (list.tail != PFN_NONE).then(|| Pfn::new(list.tail))
}
