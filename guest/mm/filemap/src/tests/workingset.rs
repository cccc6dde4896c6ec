//! Nodes with nothing but shadows: the list against the trees, and what reclaim takes.

use std::vec::Vec;

use mm_core::{Arena, Id, MemMap};
use proptest::prelude::*;

use super::cache::fill;
use super::machine::Machine;
use crate::{
    Cache, Entry, Mapping, Node, clear_shadow_entry, count_shadow_nodes, find_get_entry, find_get_page,
    put_page, remove_mapping, scan_shadow_nodes, truncate_inode_pages_range,
};

/// Page offsets around the borders of nodes of each level.
const INDICES: [u64; 12] = [0, 1, 63, 64, 65, 127, 128, 4095, 4096, 4160, 8192, 1 << 18];

/// Evicts a page if it is there, and leaves that shadow.
fn evict(machine: &Machine, id: Id<Mapping>, index: u64, shadow: u64) {
    if let Some(pfn) = find_get_page(machine, id, index) {
        assert!(remove_mapping(machine, pfn, || shadow));
        MemMap::page(machine, pfn).unwrap().set_refcount(1);
        put_page(machine, pfn);
    }
}

/// Checks W1 for these mappings, and that nobody else is on the list.
fn audit(machine: &Machine, ids: &[Id<Mapping>]) {
    let mut listed = 0;
    for &id in ids {
        Mapping::audit(machine, id).unwrap();
        let tree = Arena::<Mapping>::at(machine, id).i_pages();
        let mut leaves: Vec<Id<Node>> =
            INDICES.iter().filter_map(|&index| tree.leaf(machine, index)).collect();
        leaves.dedup();
        for leaf in leaves {
            let node: &Node = machine.at(leaf);
            assert_eq!(node.mapping.load(), node.has_only_values().then_some(id), "{leaf:?} of {id:?}");
            listed += u64::from(node.has_only_values());
        }
    }
    assert_eq!(machine.shadow_nodes(|list| list.count()), listed);
    assert_eq!(machine.workingset[0].load(std::sync::atomic::Ordering::Relaxed), listed.cast_signed());
}

#[test]
fn pages_far_apart_leave_nodes_and_the_oldest_go_first() {
    let machine = Machine::new();
    let id = machine.mapping(u64::MAX >> 1);
    let far: Vec<u64> = (1..=40).map(|number| number * 64).collect();
    fill(&machine, id, far.iter().copied());
    far.iter().for_each(|&index| evict(&machine, id, index, 77));
    assert_eq!((machine.used(), machine.shadow_nodes(|list| list.count())), (0, 40));
    // 8 pages of memory may have one node.
    assert_eq!(count_shadow_nodes(&machine, 80), 30);
    assert_eq!(scan_shadow_nodes(&machine, 30), 30);
    let left: Vec<u64> =
        far.iter().copied().filter(|&index| find_get_entry(&machine, id, index) != Entry::Empty).collect();
    assert_eq!(left, far[30..]);
    // One that is in use again stays.
    fill(&machine, id, [31 * 64]);
    assert_eq!(scan_shadow_nodes(&machine, 100), 9);
    assert_eq!(machine.workingset[1].load(std::sync::atomic::Ordering::Relaxed), 39);
    assert_eq!(truncate_inode_pages_range(&machine, id, 0..u64::MAX), 1);
    assert_eq!(machine.nodes.live(), 0);
}

#[test]
fn what_lies_in_the_place_of_shared_memory_is_not_listed() {
    let machine = Machine::new();
    machine.has_shmem.store(true, std::sync::atomic::Ordering::Relaxed);
    let id = machine.mapping(u64::MAX >> 1);
    fill(&machine, id, [64]);
    evict(&machine, id, 64, 77);
    assert_eq!((machine.shadow_nodes(|list| list.count()), scan_shadow_nodes(&machine, 9)), (0, 0));
    assert_eq!(find_get_entry(&machine, id, 64), Entry::Value(77));
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Fill,
    Evict,
    Forget,
    Clear,
    Scan(u64),
    Truncate,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => Just(Op::Fill),
        6 => Just(Op::Evict),
        1 => Just(Op::Forget),
        1 => Just(Op::Clear),
        1 => (0_u64..4).prop_map(Op::Scan),
        1 => Just(Op::Truncate),
    ]
}

proptest! {
    #[test]
    fn the_list_has_the_nodes_with_nothing_but_shadows(
        ops in prop::collection::vec((op(), 0..2_usize, prop::sample::select(&INDICES[..])), 1..120)
    ) {
        let machine = Machine::new();
        let ids = [0, 1].map(|_| machine.mapping(u64::MAX >> 1));
        for (op, mapping, index) in ops {
            let id = ids[mapping];
            match op {
                Op::Fill if find_get_page(&machine, id, index).map(|pfn| put_page(&machine, pfn)).is_none() => {
                    fill(&machine, id, [index]);
                }
                Op::Fill => {}
                Op::Evict => evict(&machine, id, index, 77),
                Op::Forget => evict(&machine, id, index, 0),
                Op::Clear => {
                    clear_shadow_entry(&machine, id, index);
                }
                Op::Scan(nr) => {
                    let before = machine.shadow_nodes(|list| list.count());
                    // What moves to the root with its last entry is off the list, too.
                    let freed = scan_shadow_nodes(&machine, nr);
                    prop_assert!(freed <= nr && freed >= nr.min(before).min(1));
                }
                Op::Truncate => {
                    truncate_inode_pages_range(&machine, id, index * mm_core::PAGE_SIZE..u64::MAX);
                }
            }
            audit(&machine, &ids);
        }
        for id in ids {
            truncate_inode_pages_range(&machine, id, 0..u64::MAX);
        }
        prop_assert_eq!((machine.used(), machine.nodes.live()), (0, 0));
    }
}
