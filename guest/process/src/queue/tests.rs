//! The queue against an ordered set.

use std::collections::BTreeSet;
use std::vec::Vec;

use proptest::prelude::*;

use super::{Key, Node, Queue};

const MEMBERS: u32 = 24;

fn nodes() -> Vec<Node> {
    (0..MEMBERS).map(|_| Node::new()).collect()
}

#[derive(Clone, Copy, Debug)]
enum Op {
    /// In if it is out, out if it is in.
    Toggle(u32, u64),
    Pop,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..MEMBERS, 0_u64..8).prop_map(|(number, key)| Op::Toggle(number, key)),
        1 => Just(Op::Pop),
    ]
}

#[test]
fn the_least_goes_first() {
    let nodes = nodes();
    let mut queue = Queue::new();
    for (number, key) in [(3, 30), (1, 10), (2, 20), (5, 50), (4, 40)] {
        queue.insert(nodes.as_slice(), number, [key, 0]);
    }
    let order: Vec<u32> =
        core::iter::from_fn(|| queue.pop(nodes.as_slice()).map(|(number, _)| number)).collect();
    assert_eq!(order, [1, 2, 3, 4, 5]);
}

#[test]
fn the_second_word_decides_between_equal_first_ones() {
    let nodes = nodes();
    let mut queue = Queue::new();
    queue.insert(nodes.as_slice(), 7, [1, 2]);
    queue.insert(nodes.as_slice(), 8, [1, 1]);
    assert_eq!(queue.first(nodes.as_slice()), Some((8, [1, 1])));
}

#[test]
fn a_search_looks_at_every_member_once() {
    let nodes = nodes();
    let mut queue = Queue::new();
    for number in 0..MEMBERS {
        queue.insert(nodes.as_slice(), number, [u64::from(number * 7 % 11), 0]);
    }
    // The heap gets some depth.
    queue.pop(nodes.as_slice());
    queue.pop(nodes.as_slice());
    let mut seen = Vec::new();
    let found = queue.find(nodes.as_slice(), |number| {
        seen.push(number);
        false
    });
    seen.sort_unstable();
    seen.dedup();
    assert_eq!((found, seen.len()), (None, MEMBERS as usize - 2));
}

proptest! {
    #[test]
    fn a_queue_obeys_an_ordered_set(ops in proptest::collection::vec(op(), 1..300)) {
        let nodes = nodes();
        let nodes = nodes.as_slice();
        let mut queue = Queue::new();
        let mut model: BTreeSet<(Key, u32)> = BTreeSet::new();
        for (serial, op) in (0_u64..).zip(ops) {
            match op {
                Op::Toggle(number, key) => match model.iter().copied().find(|entry| entry.1 == number) {
                    Some(entry) => {
                        model.remove(&entry);
                        queue.remove(nodes, number);
                    }
                    None => {
                        // Keys differ by the serial, so that there is one order.
                        model.insert(([key, serial], number));
                        queue.insert(nodes, number, [key, serial]);
                    }
                },
                Op::Pop => {
                    let popped = queue.pop(nodes).map(|(number, key)| (key, number));
                    prop_assert_eq!(popped, model.pop_first());
                }
            }
            prop_assert_eq!(queue.audit(nodes), Ok(()));
            prop_assert_eq!(queue.first(nodes).map(|(number, key)| (key, number)), model.first().copied());
            prop_assert_eq!(queue.len(), model.len());
            let mut found = Vec::new();
            queue.find(nodes, |number| { found.push(number); false });
            found.sort_unstable();
            let mut members: Vec<u32> = model.iter().map(|entry| entry.1).collect();
            members.sort_unstable();
            prop_assert_eq!(found, members);
        }
    }
}
