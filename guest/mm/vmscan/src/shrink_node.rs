//! All lists of a node (Linux: `prepare_scan_count`, `shrink_lruvec`, `shrink_node`).

use memvisor_abi::LruKind;
use mm_core::{Event, EventId, Order, ZoneKind};

use crate::balance::{Deactivate, ScanCount, scan_count};
use crate::lrugen::lru_gen_shrink_lruvec;
use crate::scan_control::{DEF_PRIORITY, SWAP_CLUSTER_MAX, ScanStat};
use crate::shrink::{is_low, shrink_active_list, shrink_list, sizes};
use crate::{Mark, ScanControl, Throttle, Zones};

/// Orders above this are served by compaction (Linux: `PAGE_ALLOC_COSTLY_ORDER`).
pub(crate) const COSTLY_ORDER: usize = 3;

/// Reclaims from a node until enough is free for now; whether anything was.
pub fn shrink_node<M: Zones>(m: &M, node: u32, sc: &mut ScanControl) -> bool {
    let (scanned, reclaimed) = (sc.nr_scanned, sc.nr_reclaimed);
    m.emit_with(EventId::ShrinkNode, || begin_of(m, node, sc.priority));
    let is_reclaimable = shrink_node_once_or_more(m, node, sc);
    m.emit(Event::ShrinkNodeRet {
        nr_scanned: sc.nr_scanned - scanned,
        nr_reclaimed: sc.nr_reclaimed - reclaimed,
    });
    is_reclaimable
}

/// What a pass over a node finds.
fn begin_of<M: Zones>(m: &M, node: u32, priority: u8) -> Event {
    let lists = m.lruvec(node, |lruvec| LruKind::ALL.map(|kind| lruvec.lists[kind as usize].count));
    let sum = |kinds: [LruKind; 2]| kinds.map(|kind| lists[kind as usize]).into_iter().sum();
    Event::ShrinkNode {
        nid: Some(node),
        priority,
        anon: sum([LruKind::InactiveAnon, LruKind::ActiveAnon]),
        file: sum([LruKind::InactiveFile, LruKind::ActiveFile]),
        free_swap: m.nr_swap_pages(),
        free: m.managed_zones(node, ZoneKind::Movable).map(|zone| m.free_pages(node, zone)).sum(),
    }
}

fn shrink_node_once_or_more<M: Zones>(m: &M, node: u32, sc: &mut ScanControl) -> bool {
    let mut is_reclaimable = false;
    loop {
        sc.nr = ScanStat::default();
        let (reclaimed, scanned) = (sc.nr_reclaimed, sc.nr_scanned);
        if m.lru_gen_enabled() {
            lru_gen_shrink_lruvec(m, node, sc);
        } else {
            prepare_scan_count(m, node, sc);
            shrink_lruvec(m, node, sc);
        }
        sc.nr_reclaimed += m.shrink_slab(node, sc.priority);
        let freed = sc.nr_reclaimed - reclaimed;
        is_reclaimable |= freed > 0;
        slow_down(m, node, sc);
        if !should_continue_reclaim(m, node, (freed, sc.nr_scanned - scanned), sc) {
            return is_reclaimable;
        }
    }
}

/// Waits for writes where reclaim runs ahead of them.
fn slow_down<M: Zones>(m: &M, node: u32, sc: &mut ScanControl) {
    let nr = &sc.nr;
    if sc.is_kswapd() {
        sc.node_writeback |= nr.writeback > 0 && nr.writeback == nr.taken;
        sc.node_dirty |= nr.unqueued_dirty > 0 && nr.unqueued_dirty == nr.file_taken;
        if nr.immediate > 0 {
            m.reclaim_throttle(node, Throttle::Writeback);
        }
    } else if nr.dirty > 0 && nr.dirty == nr.congested {
        m.reclaim_throttle(node, Throttle::Congested);
    }
}

/// Linux: the same name.
fn prepare_scan_count<M: Zones>(m: &M, node: u32, sc: &mut ScanControl) {
    crate::lru_add_drain(m);
    let (mut high, mut free) = (0, 0);
    for zone in m.managed_zones(node, ZoneKind::Movable) {
        high += m.watermark(node, zone, Mark::High);
        free += m.free_pages(node, zone);
    }
    let (priority, force) = (sc.priority, sc.force_deactivate);
    sc.scan = m.lruvec(node, |lruvec| {
        // Pages that came back and were used at once: what is active now may be stale.
        let refaults = |file: usize| lruvec.activated[file] != lruvec.refaults[file];
        let may_deactivate = Deactivate {
            anon: force || refaults(0) || is_low(lruvec, false),
            file: force || refaults(1) || is_low(lruvec, true),
        };
        let count = |kind: LruKind| lruvec.lists[kind as usize].count;
        let file = count(LruKind::InactiveFile) + count(LruKind::ActiveFile);
        crate::scan_control::Scan {
            cost: lruvec.cost,
            may_deactivate,
            cache_trim_mode: count(LruKind::InactiveFile) >> priority > 0 && !may_deactivate.file,
            file_is_tiny: file + free <= high
                && !may_deactivate.anon
                && count(LruKind::InactiveAnon) >> priority > 0,
        }
    });
}

/// Linux: the same name.
fn shrink_lruvec<M: Zones>(m: &M, node: u32, sc: &mut ScanControl) {
    const LISTS: [LruKind; 4] =
        [LruKind::InactiveAnon, LruKind::ActiveAnon, LruKind::InactiveFile, LruKind::ActiveFile];
    let targets = scan_count(&ScanCount {
        priority: sc.priority,
        swappiness: m.swappiness(),
        can_swap: sc.may_swap && m.nr_swap_pages() > 0,
        scan: sc.scan,
        sizes: m.lruvec(node, |lruvec| sizes(lruvec, sc)),
    });
    let mut left = targets;
    // Direct reclaim at its first try takes a bit of everything, so that all who allocate do alike.
    let is_proportional = !sc.is_kswapd() && sc.priority == DEF_PRIORITY;
    let mut reclaimed = 0;
    // The active anonymous list does not keep it going: it is aged with the others.
    while [0, 2, 3].iter().any(|list| left[*list] > 0) {
        for kind in LISTS {
            let scan = left[kind as usize].min(SWAP_CLUSTER_MAX);
            if scan > 0 {
                left[kind as usize] -= scan;
                reclaimed += shrink_list(m, node, (kind, scan), sc);
            }
        }
        m.cond_resched();
        if reclaimed < sc.nr_to_reclaim || is_proportional {
            continue;
        }
        if !rebalance(&targets, &mut left) {
            break;
        }
    }
    sc.nr_reclaimed += reclaimed;
    // Not only when it is reclaimed from, or one day all of it looks used.
    if sc.may_swap && m.nr_swap_pages() > 0 && m.lruvec(node, |lruvec| is_low(lruvec, false)) {
        shrink_active_list(m, node, (LruKind::ActiveAnon, SWAP_CLUSTER_MAX), sc);
    }
}

/// Enough is free: the kind with less left to scan is done, and of the other as large a part is scanned as of that one; false if
/// one kind is done anyway.
fn rebalance(
    targets: &[u64; memvisor_abi::NR_LRU_LISTS],
    left: &mut [u64; memvisor_abi::NR_LRU_LISTS],
) -> bool {
    const ANON: [usize; 2] = [LruKind::InactiveAnon as usize, LruKind::ActiveAnon as usize];
    const FILE: [usize; 2] = [LruKind::InactiveFile as usize, LruKind::ActiveFile as usize];
    let sum = |of: &[u64], lists: [usize; 2]| of[lists[0]] + of[lists[1]];
    let (anon, file) = (sum(left, ANON), sum(left, FILE));
    if anon == 0 || file == 0 {
        return false;
    }
    let (less, more) = if file > anon { (ANON, FILE) } else { (FILE, ANON) };
    let percentage = sum(left, less) * 100 / (sum(targets, less) + 1);
    less.into_iter().for_each(|list| left[list] = 0);
    for list in more {
        let scanned = targets[list] - left[list];
        left[list] = (targets[list] * (100 - percentage.min(100)) / 100).saturating_sub(scanned);
    }
    true
}

/// Whether more should be freed for a large block (Linux: the same name).
fn should_continue_reclaim<M: Zones>(
    m: &M,
    node: u32,
    (freed, scanned): (u64, u64),
    sc: &ScanControl,
) -> bool {
    let for_compaction =
        sc.order > Order::ZERO && (sc.order.index() > COSTLY_ORDER || sc.priority < DEF_PRIORITY - 2);
    if !for_compaction || freed == 0 || scanned == 0 {
        return false;
    }
    if m.managed_zones(node, sc.reclaim_idx).any(|zone| m.is_compaction_ready(node, zone, sc.order)) {
        return false;
    }
    let has_swap = m.nr_swap_pages() > 0;
    let inactive = m.lruvec(node, |lruvec| {
        let anon = if has_swap { lruvec.pages(LruKind::InactiveAnon) } else { 0 };
        lruvec.pages(LruKind::InactiveFile) + anon
    });
    inactive > compact_gap(sc.order)
}

/// Free pages that compaction needs (Linux: the same name).
pub(crate) fn compact_gap(order: Order) -> u64 {
    2 << order.index()
}

/// What came back until now is no news in the next reclaim (Linux: the same name).
pub fn snapshot_refaults<M: Zones>(m: &M, node: u32) {
    m.lruvec(node, |lruvec| lruvec.refaults = lruvec.activated);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_other_kind_as_large_a_part_is_scanned() {
        // Half of the anonymous pages is left to scan, so half of each list of files is enough.
        let mut left = [50, 50, 300, 350, 0];
        assert!(rebalance(&[100, 100, 400, 400, 0], &mut left));
        assert_eq!(left, [0, 0, 104, 154, 0]);
        // What is beyond that half is done.
        let mut left = [300, 300, 60, 40, 0];
        assert!(rebalance(&[600, 900, 100, 100, 0], &mut left));
        assert_eq!(left, [6, 0, 0, 0, 0]);
    }

    #[test]
    fn with_one_kind_done_nothing_more_is_scanned() {
        let mut left = [0, 0, 10, 10, 0];
        assert!(!rebalance(&[10, 10, 20, 20, 0], &mut left));
    }
}
