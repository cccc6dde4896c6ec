//! Fallback orders.

use mm_core::ZoneKind;

use crate::{NodeState, ZoneRef, fallback_order, zone_refs};

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
