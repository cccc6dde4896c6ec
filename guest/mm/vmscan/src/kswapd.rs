//! The reclaimer of a node (Linux: `balance_pgdat`, `pgdat_balanced`, `kswapd_shrink_node`).

use mm_core::{Event, EventId, Gfp, Order, ZoneKind};

use crate::lrugen::lru_gen_age_node;
use crate::scan_control::{DEF_PRIORITY, SWAP_CLUSTER_MAX, ScanControl, Who};
use crate::shrink_node::compact_gap;
use crate::{Mark, Zones, shrink_node, snapshot_refaults};

/// Runs of kswapd without a page freed after which it gives up until somebody else frees one (Linux: the same name).
pub const MAX_RECLAIM_RETRIES: u32 = 16;

/// What a node's kswapd keeps between its runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KswapdState {
    /// Runs in which nothing was freed, in a row (Linux: `kswapd_failures`).
    pub failures: u32,
}

impl KswapdState {
    /// Whether it is of no use to wake it (Linux: `kswapd_failures >= MAX_RECLAIM_RETRIES`).
    pub const fn is_hopeless(&self) -> bool {
        self.failures >= MAX_RECLAIM_RETRIES
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balanced {
    /// The order that was aimed at last: 0 if there were enough pages for compaction to do the rest.
    pub order: Order,
    /// The priority it came to.
    pub priority: u8,
    /// Pages freed.
    pub nr_reclaimed: u64,
}

/// Whether a zone of the node up to `highest` is above its high watermark, so that kswapd may rest (Linux: the same name).
pub fn pgdat_balanced<M: Zones>(m: &M, node: u32, order: Order, highest: ZoneKind) -> bool {
    let mut zones = m.managed_zones(node, highest).peekable();
    // A node without such zones has nothing to balance.
    zones.peek().is_none() || zones.any(|zone| m.is_watermark_ok(node, zone, order, Mark::High, highest))
}

/// Reclaims until the node is balanced, or trying harder is of no use.
///
/// `wake_throttled` is called whenever it went on: it lets those go on who wait for reserves.
pub fn balance_pgdat<M: Zones>(
    m: &M,
    (node, state): (u32, &mut KswapdState),
    order: Order,
    highest: ZoneKind,
    mut wake_throttled: impl FnMut(),
) -> Balanced {
    let free = || m.managed_zones(node, highest).map(|zone| m.free_pages(node, zone)).sum();
    m.emit_with(EventId::BalancePgdat, || Event::BalancePgdat {
        nid: Some(node),
        order,
        highest_zoneidx: highest,
        free: free(),
        high: m.managed_zones(node, highest).map(|zone| m.watermark(node, zone, Mark::High)).sum(),
    });
    let boosts = ZoneKind::ALL
        .map(|zone| if zone as u32 <= highest as u32 { m.watermark_boost(node, zone) } else { 0 });
    let mut boost: u64 = boosts.iter().sum();
    let is_boosted = boost > 0;
    let mut sc = ScanControl::new(Who::Kswapd, Gfp::KERNEL, order, highest);
    let mut failed = true;
    while sc.priority >= 1 {
        let before = sc.nr_reclaimed;
        let mut raise_priority = true;
        let balanced = pgdat_balanced(m, node, sc.order, highest);
        if !balanced && boost > 0 {
            // Real pressure: begin again, with all means.
            boost = 0;
            sc.priority = DEF_PRIORITY;
            continue;
        }
        if balanced && boost == 0 {
            failed = false;
            break;
        }
        // For a boost alone nothing is written or swapped, and nobody's pages are hunted.
        if boost > 0 && sc.priority == DEF_PRIORITY - 2 {
            raise_priority = false;
        }
        sc.may_writepage = boost == 0 || sc.priority < DEF_PRIORITY - 2;
        sc.may_swap = boost == 0;
        if m.lru_gen_enabled() {
            lru_gen_age_node(m, node, &sc);
        }
        if kswapd_shrink_node(m, node, state, &mut sc) {
            raise_priority = false;
        }
        wake_throttled();
        let freed = sc.nr_reclaimed - before;
        let had_boost = boost > 0;
        boost = boost.saturating_sub(freed);
        if had_boost && freed == 0 {
            break;
        }
        if raise_priority || freed == 0 {
            sc.priority -= 1;
        }
    }
    if failed && sc.nr_reclaimed == 0 {
        state.failures = state.failures.saturating_add(1);
    }
    if is_boosted {
        for (zone, boost) in ZoneKind::ALL.into_iter().zip(boosts).filter(|(_, boost)| *boost > 0) {
            m.lower_boost(node, zone, boost);
        }
        m.wakeup_kcompactd(node, highest);
    }
    snapshot_refaults(m, node);
    m.emit_with(EventId::BalancePgdatRet, || Event::BalancePgdatRet {
        nr_reclaimed: sc.nr_reclaimed,
        free: free(),
        priority: sc.priority,
    });
    Balanced { order: sc.order, priority: sc.priority, nr_reclaimed: sc.nr_reclaimed }
}

/// One pass at a priority; whether as many pages were looked at as should be free (Linux: the same name).
fn kswapd_shrink_node<M: Zones>(m: &M, node: u32, state: &mut KswapdState, sc: &mut ScanControl) -> bool {
    sc.nr_to_reclaim = m
        .managed_zones(node, sc.reclaim_idx)
        .map(|zone| m.watermark(node, zone, Mark::High).max(SWAP_CLUSTER_MAX))
        .sum();
    let scanned = sc.nr_scanned;
    if shrink_node(m, node, sc) {
        state.failures = 0;
    }
    // Compaction does the rest.
    if sc.order > Order::ZERO && sc.nr_reclaimed >= compact_gap(sc.order) {
        sc.order = Order::ZERO;
    }
    sc.nr_scanned - scanned >= sc.nr_to_reclaim
}
