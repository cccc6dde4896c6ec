//! One list at a time (Linux: `shrink_inactive_list`, `shrink_active_list`, `shrink_list`).

use memvisor_abi::{LruKind, Lruvec};
use mm_core::{Gfp, PageFlags};

use crate::isolate::{isolate_lru_folios, lruvec_lru_size, move_folios_to_lru};
use crate::list::is_file_lru;
use crate::page_list::PageList;
use crate::shrink_folios::shrink_folio_list;
use crate::{ScanControl, Throttle, Zones, inactive_is_low, lru_add_drain, lru_note_cost};

/// Looks at pages of a list; those freed.
pub(crate) fn shrink_list<M: Zones>(
    m: &M,
    node: u32,
    (kind, nr_to_scan): (LruKind, u64),
    sc: &mut ScanControl,
) -> u64 {
    if !kind.is_active() {
        return shrink_inactive_list(m, node, (kind, nr_to_scan), sc);
    }
    if sc.scan.may_deactivate.allows(kind.is_file()) {
        shrink_active_list(m, node, (kind, nr_to_scan), sc);
    } else {
        sc.skipped_deactivate = true;
    }
    0
}

fn shrink_inactive_list<M: Zones>(m: &M, node: u32, list: (LruKind, u64), sc: &mut ScanControl) -> u64 {
    // More in hands than on the list: others do the same, and freeing it twice over helps nobody.
    if too_many_isolated(m, node, list.0, sc) {
        m.reclaim_throttle(node, Throttle::Isolated);
        if too_many_isolated(m, node, list.0, sc) {
            return 0;
        }
    }
    lru_add_drain(m);
    let (taken, scanned) = m.lruvec(node, |lruvec| isolate_lru_folios(m, lruvec, list, sc));
    sc.nr_scanned += scanned;
    let count = taken.len();
    if count == 0 {
        return 0;
    }
    let (back, freed, stat) = shrink_folio_list(m, taken, sc);
    move_folios_to_lru(m, node, (list.0, count), back);
    let file = list.0.is_file();
    m.lruvec(node, |lruvec| lru_note_cost(lruvec, file, stat.pageout));
    // Nobody has begun to write what lies at the end.
    if stat.unqueued_dirty == count {
        m.wakeup_flusher_threads();
    }
    sc.nr.add(&stat);
    sc.nr.taken += count;
    if file {
        sc.nr.file_taken += count;
    }
    freed
}

/// Pages of an active list that were not used become inactive; used code stays (Linux: the same name).
pub(crate) fn shrink_active_list<M: Zones>(m: &M, node: u32, list: (LruKind, u64), sc: &mut ScanControl) {
    lru_add_drain(m);
    let (mut taken, scanned) = m.lruvec(node, |lruvec| isolate_lru_folios(m, lruvec, list, sc));
    sc.nr_scanned += scanned;
    let count = taken.len();
    let mut back = PageList::EMPTY;
    while let Some((pfn, page)) = taken.pop(m) {
        if !page.has(PageFlags::UNEVICTABLE) {
            let used = m.folio_referenced(pfn, page);
            let is_code = used.ptes > 0 && used.is_exec && is_file_lru(page);
            if !is_code {
                page.remove(PageFlags::ACTIVE);
                page.insert(PageFlags::WORKINGSET);
            }
        }
        back.push(m, (pfn, page));
    }
    move_folios_to_lru(m, node, (list.0, count), back);
}

/// Linux: the same name.
fn too_many_isolated<M: Zones>(m: &M, node: u32, kind: LruKind, sc: &ScanControl) -> bool {
    if sc.is_kswapd() {
        return false;
    }
    let (inactive, isolated) = m.lruvec(node, |lruvec| {
        (lruvec.lists[kind as usize].count, lruvec.isolated[usize::from(kind.is_file())])
    });
    // Who may do more waits for those who may do less, so that these can hold nobody up.
    let may_all = sc.gfp.contains(Gfp::IO | Gfp::FS);
    isolated > if may_all { inactive >> 3 } else { inactive }
}

/// Whether an inactive list of a node is too short.
pub(crate) fn is_low(lruvec: &Lruvec, file: bool) -> bool {
    let count = |kind: LruKind| lruvec.lists[kind as usize].count;
    if file {
        inactive_is_low(count(LruKind::InactiveFile), count(LruKind::ActiveFile))
    } else {
        inactive_is_low(count(LruKind::InactiveAnon), count(LruKind::ActiveAnon))
    }
}

/// Pages of each list in zones that help.
pub(crate) fn sizes(lruvec: &Lruvec, sc: &ScanControl) -> [u64; memvisor_abi::NR_LRU_LISTS] {
    LruKind::ALL.map(|kind| lruvec_lru_size(lruvec, kind, sc.reclaim_idx))
}
