//! Reclaim by whoever allocates (Linux: `try_to_free_pages`, `do_try_to_free_pages`, `shrink_zones`).

use mm_core::{Gfp, Order, ZoneKind};

use crate::scan_control::{DEF_PRIORITY, ScanControl, Who};
use crate::shrink_node::COSTLY_ORDER;
use crate::{KswapdState, Mark, Throttle, Zones, shrink_node, snapshot_refaults};

/// Frees pages for an allocation; how many, or 1 if compaction could serve it now. `zones` are those that it may use, best first: of
/// each node the lists are shrunk once a round, so nodes go by distance.
pub fn try_to_free_pages<M: Zones, I: Iterator<Item = (u32, ZoneKind)>>(
    m: &M,
    zones: &impl Fn() -> I,
    (gfp, order, highest): (Gfp, Order, ZoneKind),
) -> u64 {
    let mut sc = ScanControl::new(Who::Direct, gfp, order, highest);
    loop {
        loop {
            sc.nr_scanned = 0;
            shrink_zones(m, zones, &mut sc);
            if sc.nr_reclaimed >= sc.nr_to_reclaim || sc.compaction_ready || sc.priority == 0 {
                break;
            }
            if sc.priority < DEF_PRIORITY - 2 {
                sc.may_writepage = true;
            }
            sc.priority -= 1;
        }
        for_each_node(zones, |node| snapshot_refaults(m, node));
        if sc.nr_reclaimed > 0 {
            return sc.nr_reclaimed;
        }
        if sc.compaction_ready {
            return 1;
        }
        // Active lists were spared, and nothing else was there.
        if !sc.skipped_deactivate {
            return 0;
        }
        sc.priority = DEF_PRIORITY;
        sc.force_deactivate = true;
        sc.skipped_deactivate = false;
    }
}

/// One round over the nodes.
fn shrink_zones<M: Zones, I: Iterator<Item = (u32, ZoneKind)>>(
    m: &M,
    zones: &impl Fn() -> I,
    sc: &mut ScanControl,
) {
    let is_costly = sc.order.index() > COSTLY_ORDER;
    let (mut first, mut done) = (None, 0_u64);
    for (node, zone) in zones() {
        first = first.or(Some(node));
        // More free pages are of no use where those that are there only need to be moved.
        if is_costly && m.is_compaction_ready(node, zone, sc.order) {
            sc.compaction_ready = true;
            continue;
        }
        let bit = 1_u64.checked_shl(node).unwrap_or(0);
        if done & bit == 0 {
            done |= bit;
            shrink_node(m, node, sc);
        }
    }
    if let Some(node) = first
        && sc.nr_reclaimed == 0
        && sc.priority < DEF_PRIORITY - 2
    {
        m.reclaim_throttle(node, Throttle::NoProgress);
    }
}

/// Each node of the zones once, in order.
fn for_each_node<I: Iterator<Item = (u32, ZoneKind)>>(zones: &impl Fn() -> I, mut f: impl FnMut(u32)) {
    for (index, (node, _)) in zones().enumerate() {
        let is_first = zones().take(index).all(|(other, _)| other != node);
        if is_first {
            f(node);
        }
    }
}

/// Whether direct reclaim may go on, or should wait for kswapd because the reserves are nearly gone (Linux: the same name).
pub fn allow_direct_reclaim<M: Zones>(m: &M, node: u32, state: &KswapdState) -> bool {
    if state.is_hopeless() {
        return true;
    }
    let (mut reserve, mut free) = (0, 0);
    for zone in m.managed_zones(node, ZoneKind::Normal) {
        if m.zone_reclaimable_pages(node, zone) > 0 {
            reserve += m.watermark(node, zone, Mark::Min);
            free += m.free_pages(node, zone);
        }
    }
    reserve == 0 || free > reserve / 2
}
