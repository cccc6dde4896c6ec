//! The tree against an ordinary map.

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use common::kernel::TestKernel;
use mm_vma::{FANOUT, GapQuery, Id, Tree, Vma};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
enum Op {
    Insert(u64, u64),
    /// Of the VMA with that number, modulo how many there are.
    Remove(usize),
    /// Moves the bounds towards the neighbours, or away.
    Resize(usize, u64, u64),
    /// Searches correct what the tree says of gaps.
    Search(GapQuery),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (1..4000_u64, 1..6_u64).prop_map(|(start, len)| Op::Insert(start, len)),
        3 => any::<usize>().prop_map(Op::Remove),
        2 => (any::<usize>(), 0..4_u64, 0..4_u64).prop_map(|(i, down, up)| Op::Resize(i, down, up)),
        2 => query().prop_map(Op::Search),
    ]
}

fn query() -> impl Strategy<Value = GapQuery> {
    (0..4010_u64, 1..30_u64, 0..4010_u64).prop_map(|(low, len, high)| GapQuery {
        len,
        low: low.min(high),
        high: low.max(high),
    })
}

fn id(start: u64) -> Id<Vma> {
    Id::new(start * 64).unwrap()
}

/// Start, end and number of every VMA.
type Model = BTreeMap<u64, (u64, Id<Vma>)>;

fn apply(k: &TestKernel, tree: &Tree, model: &mut Model, op: Op) {
    let nth = |i: usize, model: &Model| model.keys().nth(i % model.len().max(1)).copied();
    match op {
        Op::Insert(start, len) => {
            let end = start + len;
            if model.range(..end).next_back().is_none_or(|(_, (before, _))| *before <= start) {
                tree.reserve(k, 1).unwrap();
                tree.insert(k, start, end, id(start));
                model.insert(start, (end, id(start)));
            }
        }
        Op::Remove(i) => {
            let Some(start) = nth(i, model) else { return };
            assert!(tree.remove(k, start));
            assert!(!tree.remove(k, start));
            model.remove(&start);
        }
        Op::Resize(i, down, up) => {
            let Some(start) = nth(i, model) else { return };
            let (end, vma) = model[&start];
            let low = model.range(..start).next_back().map_or(0, |(_, (end, _))| *end);
            let high = model.range(end..).next().map_or(u64::MAX, |(start, _)| *start);
            let new_start = start.saturating_sub(down).max(low);
            let new_end = (end + up).min(high);
            assert!(tree.resize(k, start, new_start, new_end));
            model.remove(&start);
            model.insert(new_start, (new_end, vma));
        }
        Op::Search(query) => search(k, tree, model, query),
    }
}

fn search(k: &TestKernel, tree: &Tree, model: &Model, query: GapQuery) {
    let highest = gaps(model).iter().rev().find_map(|gap| fits(gap, query)).map(|(_, end)| end - query.len);
    assert_eq!(tree.highest_gap(k, query), highest, "{query:?}");
    let lowest = gaps(model).iter().find_map(|gap| fits(gap, query)).map(|(start, _)| start);
    assert_eq!(tree.lowest_gap(k, query), lowest, "{query:?}");
}

/// All gaps between 0 and the end, ascending.
fn gaps(model: &Model) -> Vec<(u64, u64)> {
    let mut before = 0;
    let mut gaps = Vec::new();
    for (&start, &(end, _)) in model {
        gaps.push((before, start));
        before = end;
    }
    gaps.push((before, u64::MAX));
    gaps
}

fn fits(&(start, end): &(u64, u64), query: GapQuery) -> Option<(u64, u64)> {
    let (start, end) = (start.max(query.low), end.min(query.high));
    (end > start && end - start >= query.len).then_some((start, end))
}

fn same(k: &TestKernel, tree: &Tree, model: &Model) {
    let mut all = Vec::new();
    tree.audit(k, |start, end, vma| all.push((start, end, vma.unwrap()))).unwrap();
    let expect: Vec<_> = model.iter().map(|(&start, &(end, vma))| (start, end, vma)).collect();
    assert_eq!(all, expect);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_tree_finds_what_a_map_finds(
        ops in proptest::collection::vec(op(), 1..400),
        addresses in proptest::collection::vec(0..4010_u64, 40),
        queries in proptest::collection::vec(query(), 40),
    ) {
        let (k, tree, mut model) = (TestKernel::new(), Tree::default(), Model::new());
        for &op in &ops {
            apply(&k, &tree, &mut model, op);
        }
        same(&k, &tree, &model);
        for &addr in &addresses {
            let found = model.values().find(|(end, _)| *end > addr).map(|(_, vma)| *vma);
            prop_assert_eq!(tree.find(&k, addr), found);
            let before = model.range(..addr).next_back().map(|(_, (_, vma))| *vma);
            prop_assert_eq!(tree.find_before(&k, addr), before);
        }
        for &query in &queries {
            search(&k, &tree, &model, query);
        }
        same(&k, &tree, &model);
        while let Some((&start, _)) = model.iter().next() {
            assert!(tree.remove(&k, start));
            model.remove(&start);
            same(&k, &tree, &model);
        }
        tree.destroy(&k);
        prop_assert_eq!(k.nodes.live(), 0);
    }
}

#[test]
fn insertions_in_order_fill_the_nodes() {
    for descending in [false, true] {
        let (k, tree) = (TestKernel::new(), Tree::default());
        for i in 1..=2000_u64 {
            let start = if descending { 2001 - i } else { i };
            tree.reserve(&k, 1).unwrap();
            tree.insert(&k, 2 * start, 2 * start + 1, id(start));
        }
        tree.audit(&k, |_, _, _| {}).unwrap();
        // Ten of fifteen entries a node, and the nodes above them.
        assert!(k.nodes.live() < 2000 / 10 * 5 / 4, "{} nodes of {FANOUT}", k.nodes.live());
    }
}

/// What a reader without locks finds is a VMA, whatever a writer does to the nodes: the tree gets and loses levels, and nodes that were leaves
/// come back as others.
#[test]
fn a_reader_beside_a_writer_finds_nothing_but_vmas() {
    const VMAS: u64 = 300;
    const ROUNDS: usize = 200;
    let (k, tree, done) = (TestKernel::new(), Tree::default(), AtomicBool::new(false));
    let vma = |start: u64| Id::<Vma>::new(1 << 40 | start).unwrap();
    let found = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut found = 0;
            while !done.load(Relaxed) {
                for id in (0..2 * VMAS).filter_map(|addr| tree.find(&k, addr)) {
                    assert_eq!(id.as_u64() >> 40, 1, "{id:?} is no VMA");
                    found += 1;
                }
            }
            found
        });
        for _ in 0..ROUNDS {
            for start in 1..VMAS {
                tree.reserve(&k, 1).unwrap();
                tree.insert(&k, 2 * start, 2 * start + 1, vma(start));
            }
            for start in (1..VMAS).rev() {
                assert!(tree.remove(&k, 2 * start));
            }
        }
        done.store(true, Relaxed);
        reader.join().unwrap()
    });
    assert!(found > 0);
    tree.destroy(&k);
}

/// Insertions leave behind that there were gaps; the first search that looks for one corrects that, everywhere it went.
#[test]
fn a_search_pays_once_for_gaps_that_were_filled() {
    let (k, tree) = (TestKernel::new(), Tree::default());
    let add = |start: u64, end: u64| {
        tree.reserve(&k, 1).unwrap();
        tree.insert(&k, start, end, id(start));
    };
    (1..1000).for_each(|i| add(10 * i, 10 * i + 1));
    (1..999).for_each(|i| add(10 * i + 1, 10 * i + 10));
    let query = GapQuery { len: 2, low: 0, high: 9991 };
    let looks = || {
        k.nodes.looks.store(0, Relaxed);
        assert_eq!(tree.highest_gap(&k, query), Some(8));
        k.nodes.looks.load(Relaxed)
    };
    assert!(looks() > 100, "all leaves promised a gap");
    let again = looks();
    assert!(
        again < 10,
        "{again} nodes were looked at, although nothing below the root promises anything any more"
    );
}

#[test]
fn a_reservation_without_memory_changes_nothing() {
    let (k, tree) = (TestKernel::new(), Tree::default());
    k.ram.budget.store(1, Relaxed);
    assert!(tree.reserve(&k, 1).is_err());
    tree.audit(&k, |_, _, _| panic!("the tree is empty")).unwrap();
    tree.destroy(&k);
    assert_eq!(k.nodes.live(), 0);
}
