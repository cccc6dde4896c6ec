//! One list at a time (Linux: `shrink_inactive_list`, `shrink_active_list`, `shrink_list`).

use memvisor_abi::{LruKind, Lruvec, VmEvent};
use mm_core::{Event, EventId, Gfp, PageFlags};

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
    count_by_kind(m, (list.0, scanned), sc, &SCAN);
    let count = taken.len();
    tell_isolated(m, node, list, (scanned, count));
    if count == 0 {
        return 0;
    }
    let (back, freed, stat) = shrink_folio_list(m, taken, sc);
    move_folios_to_lru(m, node, (list.0, count), back);
    let file = list.0.is_file();
    m.emit_with(EventId::MmVmscanLruShrinkInactive, || Event::MmVmscanLruShrinkInactive {
        nid: Some(node),
        file,
        priority: sc.priority,
        nr_ref_keep: i32::try_from(stat.ref_keep).unwrap_or(i32::MAX),
        nr_scanned: scanned,
        nr_reclaimed: freed,
        nr_pageout: stat.pageout,
        nr_activate: stat.activate[0] + stat.activate[1],
    });
    count_by_kind(m, (list.0, freed), sc, &STEAL);
    m.count_vm_events(VmEvent::Pgactivate, stat.activate[0] + stat.activate[1]);
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

/// Tells what was taken off a list: pages looked at, and taken.
fn tell_isolated<M: Zones>(
    m: &M,
    node: u32,
    (kind, nr_requested): (LruKind, u64),
    (nr_scanned, nr_taken): (u64, u64),
) {
    m.emit_with(EventId::MmVmscanLruIsolate, || Event::MmVmscanLruIsolate {
        nid: Some(node),
        lru: u8::try_from(kind as usize).unwrap_or(u8::MAX),
        nr_requested,
        nr_scanned,
        nr_taken,
    });
}

/// Events by who reclaims, kswapd or another, and by kind, anonymous or of files.
pub(crate) struct Events {
    who: [VmEvent; 2],
    kind: [VmEvent; 2],
}

pub(crate) const SCAN: Events = Events {
    who: [VmEvent::PgscanKswapd, VmEvent::PgscanDirect],
    kind: [VmEvent::PgscanAnon, VmEvent::PgscanFile],
};
pub(crate) const STEAL: Events = Events {
    who: [VmEvent::PgstealKswapd, VmEvent::PgstealDirect],
    kind: [VmEvent::PgstealAnon, VmEvent::PgstealFile],
};

pub(crate) fn count_by_kind<M: Zones>(
    m: &M,
    (kind, pages): (LruKind, u64),
    sc: &ScanControl,
    events: &Events,
) {
    m.count_vm_events(events.who[usize::from(!sc.is_kswapd())], pages);
    m.count_vm_events(events.kind[usize::from(kind.is_file())], pages);
}

/// Pages of an active list that were not used become inactive; used code stays (Linux: the same name).
pub(crate) fn shrink_active_list<M: Zones>(m: &M, node: u32, list: (LruKind, u64), sc: &mut ScanControl) {
    lru_add_drain(m);
    let (mut taken, scanned) = m.lruvec(node, |lruvec| isolate_lru_folios(m, lruvec, list, sc));
    sc.nr_scanned += scanned;
    m.count_vm_events(VmEvent::Pgrefill, scanned);
    let count = taken.len();
    tell_isolated(m, node, list, (scanned, count));
    let mut deactivated = 0;
    let mut back = PageList::EMPTY;
    while let Some((pfn, page)) = taken.pop(m) {
        if !page.has(PageFlags::UNEVICTABLE) {
            let used = m.folio_referenced(pfn, page);
            let is_code = used.ptes > 0 && used.is_exec && is_file_lru(page);
            if !is_code {
                page.remove(PageFlags::ACTIVE);
                page.insert(PageFlags::WORKINGSET);
                deactivated += 1;
            }
        }
        back.push(m, (pfn, page));
    }
    m.count_vm_events(VmEvent::Pgdeactivate, deactivated);
    m.emit_with(EventId::MmVmscanLruShrinkActive, || Event::MmVmscanLruShrinkActive {
        nid: Some(node),
        file: list.0.is_file(),
        priority: sc.priority,
        nr_taken: count,
        nr_active: count - deactivated,
        nr_deactivated: deactivated,
    });
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
