//! Fallback orders.

use memvisor_abi::{Zonelist, ZonelistOrder};
use mm_core::ZoneKind;

use crate::{NodeState, ZoneRef, build_zonelist, fallback_order, zone_refs};

fn orders(distances: &[u8], states: &mut [NodeState]) -> Vec<Vec<u32>> {
    let nodes = states.len();
    (0u32..)
        .take(nodes)
        .map(|node| {
            let mut out = vec![u32::MAX; nodes];
            let count = fallback_order(node, distances, nodes, states, &mut out);
            out.truncate(count);
            out
        })
        .collect()
}

const USUAL: NodeState = NodeState { has_memory: true, has_cpus: true, load: 0 };

#[test]
fn nearer_nodes_come_first() {
    #[rustfmt::skip]
    let slit = [
        10, 30, 20,
        30, 10, 25,
        20, 25, 10,
    ];
    assert_eq!(orders(&slit, &mut [USUAL; 3]), [[0, 2, 1], [1, 2, 0], [2, 0, 1]]);
}

#[test]
fn distances_may_be_asymmetric() {
    #[rustfmt::skip]
    let slit = [
        10, 12, 40,
        40, 10, 12,
        12, 40, 10,
    ];
    assert_eq!(orders(&slit, &mut [USUAL; 3]), [[0, 1, 2], [1, 2, 0], [2, 0, 1]]);
}

#[test]
fn nodes_after_the_local_one_precede_those_before() {
    assert_eq!(orders(&[], &mut [USUAL; 4]), [[0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 0, 1], [3, 0, 1, 2]]);
}

#[test]
fn equal_nodes_take_turns() {
    // Nodes 0 and 1 have CPUs only. Node 2 was node 0's first choice, so it is node 1's second.
    let mut states = [USUAL; 4];
    (states[0].has_memory, states[1].has_memory) = (false, false);
    let orders = orders(&[], &mut states);
    assert_eq!(orders[..2], [[2, 3], [3, 2]]);
}

#[test]
fn a_node_without_cpus_is_preferred_among_equals() {
    let mut states = [USUAL; 3];
    states[2].has_cpus = false;
    assert_eq!(orders(&[], &mut states)[0], [0, 2, 1]);
}

#[test]
fn nodes_without_memory_are_left_out() {
    let mut states = [USUAL; 3];
    states[1].has_memory = false;
    assert_eq!(orders(&[], &mut states), [vec![0, 2], vec![2, 0], vec![2, 0]]);
}

#[test]
fn a_short_output_and_a_wrong_node_are_harmless() {
    let mut out = [7; 1];
    assert_eq!(fallback_order(0, &[10], 64, &mut [USUAL; 3], &mut out), 1);
    assert_eq!(out, [0]);
    assert_eq!(fallback_order(99, &[], 3, &mut [NodeState::default(); 3], &mut [0; 3]), 0);
}

#[test]
fn zones_of_a_node_are_tried_from_the_top() {
    let refs: Vec<ZoneRef> = zone_refs(&[1, 0], ZoneKind::Dma32).collect();
    let zone = |node, kind| ZoneRef { node, kind };
    assert_eq!(
        refs,
        [zone(1, ZoneKind::Dma32), zone(1, ZoneKind::Dma), zone(0, ZoneKind::Dma32), zone(0, ZoneKind::Dma)]
    );
}

#[test]
fn distance_outweighs_side_cpus_and_load() {
    // Node 1 is one nearer, though it comes before, has CPUs and was first already.
    #[rustfmt::skip]
    let slit = [
        10, 20, 20,
        20, 10, 20,
        22, 20, 10,
    ];
    let mut states = [NodeState { load: 60, ..USUAL }; 3];
    states[0] = NodeState { has_cpus: false, load: 0, ..USUAL };
    let mut out = [0; 3];
    assert_eq!(fallback_order(2, &slit, 3, &mut states, &mut out), 3);
    assert_eq!(out, [2, 1, 0]);
    // The first of a farther distance took the load; the local node did not.
    assert_eq!(states.map(|state| state.load), [1, 61, 60]);
}

#[test]
fn zonelists_go_by_node_or_by_zone() {
    // Zones of five kinds a node: DMA32 and NORMAL of node 0, NORMAL and MOVABLE of node 1.
    let populated = |zone: usize| [1, 2, 7, 9].contains(&zone);
    for (order, all) in [(ZonelistOrder::Node, [2, 1, 9, 7]), (ZonelistOrder::Zone, [9, 2, 7, 1])] {
        let mut list = Zonelist { count: 3, nofallback_count: 3, ..Zonelist::EMPTY };
        build_zonelist(&mut list, 0, &[0, 1], order, populated);
        assert_eq!((list.node, list.order), (0, order as u32));
        assert_eq!((list.count, &list.fallback[..4]), (4, &all[..]));
        assert_eq!((list.nofallback_count, &list.nofallback[..2]), (2, &[2, 1][..]));
    }
    // A node without memory has no list of its own, and the others'.
    let mut list = Zonelist::EMPTY;
    build_zonelist(&mut list, 2, &[1, 0], ZonelistOrder::Node, populated);
    assert_eq!((list.node, list.count, list.nofallback_count), (2, 4, 0));
    assert_eq!(list.fallback[..4], [9, 7, 2, 1]);
}

#[test]
fn what_a_short_slit_lacks_is_remote_and_rows_past_the_nodes_are_not_read() {
    let mut out = [0; 3];
    // Of three nodes it knows one distance.
    assert_eq!(fallback_order(0, &[10, 15], 3, &mut [USUAL; 3], &mut out), 3);
    assert_eq!(out, [0, 1, 2]);
    // A node that is none of two: what stands behind their rows is no distance of it.
    let mut out = [0; 2];
    assert_eq!(fallback_order(2, &[10, 20, 20, 10, 30, 11], 2, &mut [USUAL; 2], &mut out), 2);
    assert_eq!(out, [0, 1]);
}
