//! Where to look for memory when the local node has none (Linux: `build_zonelists`).

use memvisor_abi::{MAX_NR_ZONES, MAX_NUMNODES, Zonelist, ZonelistOrder};
use mm_core::ZoneKind;

/// Distances that Linux assumes without a SLIT (`LOCAL_DISTANCE`, `REMOTE_DISTANCE`).
const LOCAL_DISTANCE: u8 = 10;
const REMOTE_DISTANCE: u8 = 20;

/// What the fallback order takes into account about a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeState {
    /// The node has present pages; others are left out (Linux: `N_MEMORY`).
    pub has_memory: bool,
    /// The node has CPUs, so its memory is in more demand (Linux: `PENALTY_FOR_NODE_WITH_CPUS`).
    pub has_cpus: bool,
    /// How often the node came first among nodes of one distance. Starts at 0 and is carried from
    /// one node's order to the next, so that equal nodes take turns (Linux: `node_load`).
    pub load: u32,
}

/// A zone to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneRef {
    /// Node number.
    pub node: u32,
    /// Zone of that node.
    pub kind: ZoneKind,
}

/// Writes the nodes to try for an allocation on `node`, best first, and returns how many (Linux:
/// `find_next_best_node` as `build_zonelists` calls it, for one node).
///
/// `distances` is the SLIT, `nodes` rows of `nodes`; what it lacks counts as 10 on the diagonal and 20
/// elsewhere. The local node is first if it has memory, then the nearest. Among equally near ones,
/// those after `node` precede those before it, those without CPUs precede those with, and then
/// the less loaded one, then the lower number wins. Call it for every node, ascending, with the
/// same `states`.
pub fn fallback_order(
    node: u32,
    distances: &[u8],
    nodes: usize,
    states: &mut [NodeState],
    out: &mut [u32],
) -> usize {
    let count = nodes.min(states.len()).min(MAX_NUMNODES);
    let mut used = 0u64;
    let mut last_distance = distance(distances, nodes, node, node);
    let mut written = 0;
    for slot in out.iter_mut() {
        let candidates = states.iter_mut().zip(0u32..).take(count);
        let best =
            candidates.filter(|(state, other)| state.has_memory && used & (1 << other) == 0).min_by_key(
                |(state, other)| if *other == node { 0 } else { cost(distances, nodes, node, *other, state) },
            );
        let Some((state, best)) = best else { break };
        let away = distance(distances, nodes, node, best);
        if away != last_distance {
            state.load += 1;
        }
        last_distance = away;
        used |= 1 << best;
        *slot = best;
        written += 1;
    }
    written
}

/// The zones of `order`'s nodes, each node's from `highest` down (Linux: `build_zonerefs_node`). Skip
/// zones without managed pages.
pub fn zone_refs(order: &[u32], highest: ZoneKind) -> impl Iterator<Item = ZoneRef> + '_ {
    order.iter().flat_map(move |&node| {
        let kinds = ZoneKind::ALL.into_iter().rev().filter(move |kind| *kind <= highest);
        kinds.map(move |kind| ZoneRef { node, kind })
    })
}

/// Builds a node's lists from the order of nodes (Linux: `build_zonelists_in_node_order`, and
/// `build_zonelists_in_zone_order` of Linux before 4.14). `populated` says whether the zone with that index has
/// present pages.
///
/// In zone order a far node's ZONE_NORMAL comes before the near node's ZONE_DMA32, so that low memory lasts; in node
/// order memory stays near.
pub fn build_zonelist(
    list: &mut Zonelist,
    node: u32,
    nodes: &[u32],
    order: ZonelistOrder,
    populated: impl Fn(usize) -> bool,
) {
    *list = Zonelist { node, order: order as u32, ..Zonelist::EMPTY };
    let index = |node: u32, kind: ZoneKind| node as usize * MAX_NR_ZONES + kind as usize;
    let descending = || ZoneKind::ALL.into_iter().rev();
    let mut add = |node, kind| {
        let zone = index(node, kind);
        let slot = list.fallback.get_mut(list.count as usize).zip(u16::try_from(zone).ok());
        if let Some((slot, number)) = slot.filter(|_| populated(zone)) {
            *slot = number;
            list.count += 1;
        }
    };
    match order {
        ZonelistOrder::Node => nodes.iter().for_each(|&node| descending().for_each(|kind| add(node, kind))),
        ZonelistOrder::Zone => descending().for_each(|kind| nodes.iter().for_each(|&node| add(node, kind))),
    }
    for kind in descending() {
        let zone = index(node, kind);
        let slot = list.nofallback.get_mut(list.nofallback_count as usize).zip(u16::try_from(zone).ok());
        if let Some((slot, number)) = slot.filter(|_| populated(zone)) {
            *slot = number;
            list.nofallback_count += 1;
        }
    }
}

/// Never 0, which is the local node's.
fn cost(distances: &[u8], nodes: usize, from: u32, to: u32, state: &NodeState) -> u64 {
    let near =
        u64::from(distance(distances, nodes, from, to)) + u64::from(to < from) + u64::from(state.has_cpus);
    near * MAX_NUMNODES as u64 + u64::from(state.load) + 1
}

fn distance(distances: &[u8], nodes: usize, from: u32, to: u32) -> u8 {
    let index = usize::try_from(from)
        .ok()
        .zip(usize::try_from(to).ok())
        .filter(|(from, to)| *from < nodes && *to < nodes)
        .and_then(|(from, to)| from.checked_mul(nodes)?.checked_add(to));
    match index.and_then(|index| distances.get(index)) {
        Some(&distance) => distance,
        None if from == to => LOCAL_DISTANCE,
        None => REMOTE_DISTANCE,
    }
}
