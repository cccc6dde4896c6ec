//! The tree against a `BTreeMap`.

use std::collections::BTreeMap;
use std::vec::Vec;

use mm_core::Pfn;
use proptest::prelude::*;

use super::machine::Machine;
use crate::{Entry, Mark, Missing, Spare, Tree};

#[derive(Clone, Copy, Debug)]
enum Op {
    Store(u64, u64),
    Erase(u64),
    Mark(u64, Mark),
    Unmark(u64, Mark),
    Next(u64, u64),
    NextMarked(Mark, u64, u64),
}

/// Indices that meet often, and some of every height.
fn index() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..8_u64,
        4 => 60..70_u64,
        3 => 4090..4100_u64,
        2 => (0..64_u32, 0..2_u64).prop_map(|(bit, off)| (1_u64 << bit) - off),
        1 => Just(u64::MAX),
        1 => any::<u64>(),
    ]
}

fn mark() -> impl Strategy<Value = Mark> {
    (0..Mark::COUNT).prop_map(|number| Mark::ALL[number])
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (index(), 1..1_u64 << 20).prop_map(|(index, value)| Op::Store(index, value)),
        5 => index().prop_map(Op::Erase),
        3 => (index(), mark()).prop_map(|(index, mark)| Op::Mark(index, mark)),
        2 => (index(), mark()).prop_map(|(index, mark)| Op::Unmark(index, mark)),
        3 => (index(), index()).prop_map(|(from, last)| Op::Next(from, last)),
        3 => (mark(), index(), index()).prop_map(|(mark, from, last)| Op::NextMarked(mark, from, last)),
    ]
}

/// Even numbers are frames, odd ones values.
fn entry(value: u64) -> Entry {
    if value.is_multiple_of(2) { Entry::Frame(Pfn::new(value)) } else { Entry::Value(value) }
}

fn put(machine: &Machine, tree: &Tree, index: u64, entry: Entry) -> Entry {
    let mut spare = Spare::default();
    let missing = tree.missing(machine, index);
    if missing != Missing(0) {
        assert_eq!(tree.store(machine, index, entry, &mut spare), Err(missing), "a store says what it needs");
    }
    spare.fill(machine, missing).unwrap();
    let old = tree.store(machine, index, entry, &mut spare).unwrap();
    let used = machine.nodes.live();
    spare.free(machine);
    assert_eq!(machine.nodes.live(), used, "exactly the nodes that are missing are used");
    old
}

proptest! {
    #[test]
    fn a_tree_is_a_map(ops in proptest::collection::vec(op(), 1..60)) {
        let machine = Machine::new();
        let tree = Tree::default();
        let mut model: BTreeMap<u64, (u64, [bool; Mark::COUNT])> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Store(index, value) => {
                    let old = put(&machine, &tree, index, entry(value));
                    let slot = model.entry(index).or_insert((0, [false; Mark::COUNT]));
                    prop_assert_eq!(old, if slot.0 == 0 { Entry::Empty } else { entry(slot.0) });
                    slot.0 = value;
                }
                Op::Erase(index) => {
                    let old = model.remove(&index).map_or(Entry::Empty, |old| entry(old.0));
                    prop_assert_eq!(tree.erase(&machine, index), old);
                }
                Op::Mark(index, mark) => {
                    tree.set_mark(&machine, index, mark);
                    if let Some(slot) = model.get_mut(&index) {
                        slot.1[mark as usize] = true;
                    }
                }
                Op::Unmark(index, mark) => {
                    tree.clear_mark(&machine, index, mark);
                    if let Some(slot) = model.get_mut(&index) {
                        slot.1[mark as usize] = false;
                    }
                }
                Op::Next(from, last) if from <= last => {
                    let found = model.range(from..=last).next().map(|(&index, slot)| (index, entry(slot.0)));
                    prop_assert_eq!(tree.next(&machine, from, last), found);
                    prop_assert_eq!(tree.next_unlocked(&machine, from, last), Ok(found));
                }
                Op::NextMarked(mark, from, last) if from <= last => {
                    let found = model.range(from..=last).find(|(_, slot)| slot.1[mark as usize]);
                    let found = found.map(|(&index, slot)| (index, entry(slot.0)));
                    prop_assert_eq!(tree.next_marked(&machine, mark, from, last), found);
                }
                Op::Next(from, last) => prop_assert_eq!(tree.next(&machine, from, last), None),
                Op::NextMarked(mark, from, last) => {
                    prop_assert_eq!(tree.next_marked(&machine, mark, from, last), None);
                }
            }
            let mut all = Vec::new();
            tree.audit(&machine, |index, entry| all.push((index, entry))).unwrap();
            let expected: Vec<_> = model.iter().map(|(&index, slot)| (index, entry(slot.0))).collect();
            prop_assert_eq!(&all, &expected);
            for (&index, &(value, marks)) in &model {
                prop_assert_eq!(tree.load(&machine, index), entry(value));
                prop_assert_eq!(tree.load_unlocked(&machine, index), Some(entry(value)));
                for mark in Mark::ALL {
                    prop_assert_eq!(tree.mark(&machine, index, mark), marks[mark as usize]);
                }
            }
            for mark in Mark::ALL {
                let any = model.values().any(|slot| slot.1[mark as usize]);
                prop_assert_eq!(tree.is_marked(mark), any);
            }
        }
        for &index in model.keys() {
            tree.erase(&machine, index);
        }
        prop_assert!(tree.is_empty());
        prop_assert_eq!(machine.nodes.live(), 0, "nodes are left");
    }
}

#[test]
fn a_page_at_index_0_needs_no_node_and_a_tree_shrinks_to_it() {
    let machine = Machine::new();
    let tree = Tree::default();
    put(&machine, &tree, 0, Entry::Value(1));
    assert_eq!(machine.nodes.live(), 0);
    put(&machine, &tree, u64::MAX, Entry::Value(2));
    assert_eq!(machine.nodes.live(), 21, "a chain of 11 levels, and one of 10 beside it");
    tree.set_mark(&machine, 0, Mark::Dirty);
    tree.erase(&machine, u64::MAX);
    assert_eq!(machine.nodes.live(), 0);
    assert!(tree.mark(&machine, 0, Mark::Dirty), "the mark went with the entry");
    assert_eq!(tree.load(&machine, 0), Entry::Value(1));
}

#[test]
fn nothing_is_found_beyond_what_the_tree_holds() {
    let machine = Machine::new();
    let tree = Tree::default();
    for index in [0, 63] {
        put(&machine, &tree, index, Entry::Value(index));
        for beyond in [64, 128, 4096, 1 << 62, u64::MAX] {
            assert_eq!(tree.load(&machine, beyond), Entry::Empty);
            assert_eq!(tree.next(&machine, beyond, u64::MAX), None);
        }
    }
}
