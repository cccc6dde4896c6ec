//! Random work on the whole machine against a set of blocks.

use std::collections::BTreeMap;

use memvisor_abi::VmEvent;
use mm_core::{Gfp, MemMap, Order, PageKind, Pfn, ZoneKind};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::machine::{order, start, two_nodes};
use crate::{Context, NodeMask, Policy, TaskPolicy};

#[derive(Clone, Copy, Debug)]
enum Step {
    Alloc { gfp: Gfp, order: u8, node: Option<u32> },
    Policy { pages: u8 },
    Bulk { count: usize },
    Free { pick: usize },
    FreeWrongly { pfn: u64, order: u8 },
    Cpu(usize),
    Drain,
}

fn gfp() -> impl Strategy<Value = Gfp> {
    let kinds = [
        Gfp::NOWAIT,
        Gfp::ATOMIC,
        Gfp::NOWAIT | Gfp::DMA32,
        Gfp::NOWAIT | Gfp::RECLAIMABLE,
        Gfp::NOWAIT | Gfp::HIGHMEM | Gfp::MOVABLE,
        Gfp::NOWAIT | Gfp::THISNODE,
        Gfp::NOWAIT | Gfp::COMP,
    ];
    prop::sample::select(kinds.to_vec())
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (gfp(), 0_u8..=10, prop::option::of(0_u32..2))
            .prop_map(|(gfp, order, node)| Step::Alloc { gfp, order: order.min(10), node }),
        6 => (gfp(), 0_u8..=3).prop_map(|(gfp, order)| Step::Alloc { gfp, order, node: None }),
        1 => (0_u8..8).prop_map(|pages| Step::Policy { pages }),
        1 => (0_usize..64).prop_map(|count| Step::Bulk { count }),
        10 => any::<usize>().prop_map(|pick| Step::Free { pick }),
        2 => (0x3f0_u64..0x5900, 0_u8..=10).prop_map(|(pfn, order)| Step::FreeWrongly { pfn, order }),
        2 => (0_usize..2).prop_map(Step::Cpu),
        1 => Just(Step::Drain),
    ]
}

fn highest(gfp: Gfp) -> ZoneKind {
    gfp.highest_zone().expect("the flags are right")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, rng_seed: RngSeed::Fixed(0x7061_6765), ..ProptestConfig::default() })]

    /// Blocks never overlap, lie where their request allows, and none is lost.
    #[test]
    fn the_machine_agrees_with_a_set_of_blocks(steps in prop::collection::vec(step(), 1..400)) {
        let pages = start(&two_nodes(), &[0, 1]);
        let machine = *pages.machine();
        machine.may_report.set(false);
        let total = machine.free_pages();
        let mut live: BTreeMap<u64, Order> = BTreeMap::new();
        let mut policy = TaskPolicy::default();
        let both = NodeMask::of([0, 1]);
        policy.set(Policy::Interleave(both), both).expect("both have memory");
        let take = |live: &mut BTreeMap<u64, Order>, pfn: Pfn, order: Order| {
            let start = pfn.as_u64();
            let before = live.range(..start + order.pages()).next_back();
            if let Some((&other, &size)) = before {
                prop_assert!(other + size.pages() <= start, "{:#x} and {:#x} overlap", other, start);
            }
            prop_assert_eq!(pfn.block(order), pfn);
            let page = machine.mem.page(pfn).expect("RAM");
            prop_assert_eq!((page.kind(), page.order(), page.refcount()), (PageKind::Allocated, order, 1));
            live.insert(start, order);
            Ok(())
        };
        for step in steps {
            match step {
                Step::Alloc { gfp, order: raw, node } => {
                    if let Some(pfn) = pages.alloc_pages(Context::ATOMIC, gfp, order(raw), node) {
                        take(&mut live, pfn, order(raw))?;
                        let page = machine.mem.page(pfn).expect("RAM");
                        prop_assert!(page.zone() <= highest(gfp));
                        if gfp.contains(Gfp::THISNODE) {
                            let wanted = node.unwrap_or_else(|| crate::Machine::local_node(&machine));
                            prop_assert_eq!(page.node(), wanted);
                        }
                    }
                }
                Step::Policy { pages: count } => {
                    for _ in 0..count {
                        let got = pages.alloc_pages_policy(Context::ATOMIC, Gfp::NOWAIT, Order::ZERO, &mut policy);
                        if let Some(pfn) = got {
                            take(&mut live, pfn, Order::ZERO)?;
                        }
                    }
                }
                Step::Bulk { count } => {
                    let mut got = Vec::new();
                    let done = pages.alloc_pages_bulk(Context::ATOMIC, Gfp::NOWAIT, None, count, |pfn| got.push(pfn));
                    prop_assert_eq!(done, got.len());
                    prop_assert!(done <= count);
                    for pfn in got {
                        take(&mut live, pfn, Order::ZERO)?;
                    }
                }
                Step::Free { pick } => {
                    let index = pick % live.len().max(1);
                    let Some((&pfn, &order)) = live.iter().nth(index) else { continue };
                    prop_assert_eq!(pages.free_pages(Pfn::new(pfn), order), Ok(()));
                    live.remove(&pfn);
                }
                Step::FreeWrongly { pfn, order: raw } => {
                    if live.get(&pfn) != Some(&order(raw)) {
                        prop_assert!(pages.free_pages(Pfn::new(pfn), order(raw)).is_err());
                    }
                }
                Step::Cpu(cpu) => machine.run_on(cpu),
                Step::Drain => pages.drain_all_pages(),
            }
            let held: u64 = live.values().map(|order| order.pages()).sum();
            prop_assert_eq!(machine.free_pages() + held, total);
        }
        machine.audit();
        for (pfn, order) in live {
            prop_assert_eq!(pages.free_pages(Pfn::new(pfn), order), Ok(()));
        }
        pages.drain_all_pages();
        prop_assert_eq!((machine.free_pages(), machine.kept()), (total, 0));
        let allocated: u64 = [VmEvent::PgallocDma32, VmEvent::PgallocNormal, VmEvent::PgallocMovable]
            .into_iter()
            .map(|event| machine.event(event))
            .sum();
        prop_assert_eq!(allocated, machine.event(VmEvent::Pgfree));
        machine.audit();
    }
}
