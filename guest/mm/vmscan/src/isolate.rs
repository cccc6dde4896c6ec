//! Taking pages off the lists to work on them, and putting them back (Linux: `isolate_lru_folios`, `move_folios_to_lru`).

use memvisor_abi::{LruKind, Lruvec};
use mm_core::{Page, PageFlags, Pfn, ZoneKind, refcount};

use crate::list::{self, End, is_file_lru};
use crate::page_list::PageList;
use crate::{Lru, Pages, ScanControl};

/// Takes a page, of which the caller has a reference, off its list or out of the batch that it waits in; false if it is in neither
/// (Linux: the same name, which takes a reference and no page from a batch). It is not counted as isolated by reclaim.
pub fn folio_isolate_lru<M: Lru>(m: &M, page: &Page) -> bool {
    m.lruvec(page.node(), |lruvec| {
        // Nobody puts it on a list meanwhile.
        let is_listed = page.take(PageFlags::LRU);
        if is_listed {
            list::del(m, lruvec, page);
        }
        is_listed || page.take(PageFlags::LRU_ADD)
    })
}

/// Puts a page back that [`folio_isolate_lru`] took; the reference stays the caller's (Linux: the same name, without its put).
pub fn folio_putback_lru<M: Lru>(m: &M, pfn: Pfn, page: &Page) {
    if m.lru_gen_enabled() {
        // What waits in a batch is fresh there.
        m.lruvec(page.node(), |lruvec| list::add(m, lruvec, (pfn, page), End::Head));
        return;
    }
    crate::folio_add_lru(m, pfn, page);
}

/// Up to `nr_to_scan` pages from the end of a list, and how many were looked at. Pages of zones that do not help are passed over, and
/// lie at the head after it.
pub(crate) fn isolate_lru_folios<M: Lru>(
    m: &M,
    lruvec: &mut Lruvec,
    (kind, nr_to_scan): (LruKind, u64),
    sc: &ScanControl,
) -> (PageList, u64) {
    let mut taken = PageList::EMPTY;
    let (mut scanned, mut looked) = (0, 0);
    let most = lruvec.lists[kind as usize].count;
    while scanned < nr_to_scan && looked < most {
        let Some(pfn) = list::last(&lruvec.lists[kind as usize]) else { break };
        let Some(page) = m.page(pfn) else { break };
        looked += 1;
        if page.zone() as u32 > sc.reclaim_idx as u32 {
            list::rotate(m, lruvec, (pfn, page), End::Head);
            continue;
        }
        scanned += 1;
        let is_wanted = sc.may_unmap || page.mapcount() < 0;
        // Whoever frees it now waits for the lock to take it off.
        if !is_wanted || !refcount::try_get(page.references()) {
            list::rotate(m, lruvec, (pfn, page), End::Head);
            continue;
        }
        list::del(m, lruvec, page);
        page.remove(PageFlags::LRU);
        taken.push(m, (pfn, page));
    }
    let isolated = &mut lruvec.isolated[usize::from(kind.is_file())];
    *isolated += taken.len();
    (taken, scanned)
}

/// Puts pages on the lists that their flags name now, and drops their references. `kind` is where they came from, and
/// `taken` how many did.
pub(crate) fn move_folios_to_lru<M: Pages>(
    m: &M,
    node: u32,
    (kind, taken): (LruKind, u64),
    mut back: PageList,
) {
    m.lruvec(node, |lruvec| {
        let isolated = &mut lruvec.isolated[usize::from(kind.is_file())];
        *isolated = isolated.saturating_sub(taken);
    });
    while !back.is_empty() {
        // Linked by the same fields on both lists, so one after the other; references after the lock.
        let mut moved = [0; 32];
        let mut len = 0;
        m.lruvec(node, |lruvec| {
            for place in &mut moved {
                let Some((pfn, page)) = back.pop(m) else { break };
                if page.has(PageFlags::UNEVICTABLE) {
                    page.remove(PageFlags::ACTIVE);
                }
                list::add(m, lruvec, (pfn, page), End::Head);
                *place = pfn.as_u64();
                len += 1;
            }
        });
        moved.iter().take(len).for_each(|pfn| m.folio_put(Pfn::new(*pfn)));
    }
}

/// Pages of a list that are in zones up to `highest` (Linux: `lruvec_lru_size`).
pub(crate) fn lruvec_lru_size(lruvec: &Lruvec, kind: LruKind, highest: ZoneKind) -> u64 {
    lruvec.zone_pages.iter().take(highest as usize + 1).map(|zone| zone[kind as usize]).sum()
}

/// Index of a page's kind in counts of both: anonymous, of files.
pub(crate) fn file_index(page: &Page) -> usize {
    usize::from(is_file_lru(page))
}
