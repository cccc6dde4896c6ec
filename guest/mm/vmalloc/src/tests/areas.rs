//! Areas against a model: a set of intervals.

use std::collections::BTreeMap;
use std::vec::Vec;

use mm_core::{Gfp, PAGE_SIZE, VirtAddr};
use proptest::prelude::*;

use super::machine::{START, Sim, task};
use crate::{Request, VmError};

const PAGES: u64 = 300;

#[derive(Clone, Debug)]
enum Op {
    /// Pages, log2 of the alignment in pages.
    Vmalloc(u64, u32),
    Vfree(prop::sample::Index),
    FreeWrong(u64),
    Purge,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (1..12_u64, 0..5_u32).prop_map(|(pages, align)| Op::Vmalloc(pages, align)),
        4 => any::<prop::sample::Index>().prop_map(Op::Vfree),
        1 => (0..PAGES).prop_map(Op::FreeWrong),
        1 => Just(Op::Purge),
    ]
}

/// Busy and lazy intervals by first page: end, guard included.
#[derive(Default)]
struct Model {
    busy: BTreeMap<u64, u64>,
    lazy: BTreeMap<u64, u64>,
}

impl Model {
    /// The lowest page where `pages` and a guard fit.
    fn lowest(&self, pages: u64, align: u64) -> Option<u64> {
        (0..PAGES).step_by(usize::try_from(align).unwrap()).find(|&first| {
            let end = first + pages + 1;
            let clear = |(&start, &stop): (&u64, &u64)| end <= start || stop <= first;
            end <= PAGES && self.busy.iter().chain(&self.lazy).all(clear)
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn areas_obey_a_set_of_intervals(ops in proptest::collection::vec(op(), 1..250), scatter: bool) {
        let sim = Sim::new(4096, PAGES);
        sim.scatter.set(scatter);
        let mut model = Model::default();
        let va = |page: u64| VirtAddr::new(START.as_u64() + page * PAGE_SIZE);
        for op in ops {
            match op {
                Op::Vmalloc(pages, align) => {
                    let align = 1 << align;
                    let request = Request { align: align * PAGE_SIZE, ..Request::new(pages * PAGE_SIZE) };
                    let mut expect = model.lowest(pages, align);
                    if expect.is_none() {
                        model.lazy.clear();
                        expect = model.lowest(pages, align);
                    }
                    let outcome = sim.vm().vmalloc(&request, &task());
                    match expect {
                        Some(first) => {
                            prop_assert_eq!(outcome, Ok(va(first)));
                            model.busy.insert(first, first + pages + 1);
                        }
                        None => prop_assert_eq!(outcome, Err(VmError::NoSpace { size: (pages + 1) * PAGE_SIZE })),
                    }
                }
                Op::Vfree(_) if model.busy.is_empty() => {}
                Op::Vfree(which) => {
                    let keys: Vec<u64> = model.busy.keys().copied().collect();
                    let first = *which.get(&keys);
                    prop_assert_eq!(sim.vm().vfree(va(first)), Ok(()));
                    let end = model.busy.remove(&first).unwrap();
                    model.lazy.insert(first, end);
                }
                Op::FreeWrong(page) if !model.busy.contains_key(&page) => {
                    prop_assert_eq!(sim.vm().vfree(va(page)), Err(VmError::NotMapped { va: va(page) }));
                }
                Op::FreeWrong(_) => {}
                Op::Purge => {
                    prop_assert_eq!(sim.vm().purge(), !model.lazy.is_empty());
                    model.lazy.clear();
                }
            }
            prop_assert_eq!(sim.areas.borrow().audit(&sim), Ok(()));
            let mapped: Vec<u64> = sim.mapped().iter().map(|leaf| leaf.0).collect();
            let expect: Vec<u64> = model.busy.iter().flat_map(|(&start, &end)| start..end - 1).collect();
            prop_assert_eq!(mapped, expect);
            let lazy: u64 = model.lazy.iter().map(|(start, end)| end - start).sum();
            prop_assert_eq!(sim.areas.borrow().lazy_pages(), lazy);
        }
    }
}

#[test]
fn ten_thousand_areas_stay_shallow_and_tile_the_space() {
    let sim = Sim::new(16384, 1 << 20);
    let mut areas = Vec::new();
    for n in 0..10_000 {
        let request = Request { gfp: Gfp::KERNEL, ..Request::new(1 + (n % 2) * PAGE_SIZE) };
        areas.extend(sim.vm().vmalloc(&request, &task()));
        if n % 3 == 2 {
            sim.vm().vfree(areas.swap_remove(areas.len() / 2)).unwrap();
        }
    }
    sim.audit();
    let areas = sim.areas.borrow();
    let depth = depth(&areas.nodes(&sim), areas.busy);
    assert!(depth < 50, "{depth} levels for {} areas", areas.nr_busy());
}

fn depth(nodes: &crate::node::Nodes<'_, Sim>, id: u32) -> u32 {
    if id == crate::node::NONE {
        return 0;
    }
    let (left, right) = nodes.children(id);
    1 + depth(nodes, left).max(depth(nodes, right))
}
