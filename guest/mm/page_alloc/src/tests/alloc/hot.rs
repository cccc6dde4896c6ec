//! The short paths do what the whole ones do.

use memvisor_abi::{MAX_NR_ZONES, NR_VM_EVENTS, PerCpuPages};
use mm_core::{Gfp, MaySleep, MemMap, Migratetype, Order, Pfn, ZoneKind};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::machine::{TestMachine, order, start, two_nodes};
use crate::gfp::plain;
use crate::{Context, FreeError, PageAllocator};

type Pages = PageAllocator<&'static TestMachine>;

#[derive(Clone, Copy, Debug)]
enum Step {
    Alloc { gfp: Gfp, order: u8, node: Option<u32> },
    Free { pick: usize },
    FreeTwice { pick: usize },
    FreeWrongly { pick: usize, order: u8 },
    Share { pick: usize },
    Cpu(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let kinds = [
        Gfp::NOWAIT,
        Gfp::ATOMIC,
        Gfp::KERNEL,
        Gfp::NOWAIT | Gfp::DMA32,
        Gfp::NOWAIT | Gfp::RECLAIMABLE,
        Gfp::NOWAIT | Gfp::MOVABLE | Gfp::RECLAIMABLE,
        Gfp::NOWAIT | Gfp::HIGHMEM | Gfp::MOVABLE,
        Gfp::NOWAIT | Gfp::THISNODE,
        Gfp::NOWAIT | Gfp::COMP,
        Gfp::NOWAIT | Gfp::ZERO,
    ];
    let alloc = (prop::sample::select(kinds.to_vec()), 0_u8..=10, prop::option::of(0_u32..2));
    prop_oneof![
        12 => alloc.prop_map(|(gfp, order, node)| Step::Alloc { gfp, order, node }),
        8 => any::<usize>().prop_map(|pick| Step::Free { pick }),
        1 => any::<usize>().prop_map(|pick| Step::FreeTwice { pick }),
        1 => (any::<usize>(), 0_u8..=10).prop_map(|(pick, order)| Step::FreeWrongly { pick, order }),
        2 => any::<usize>().prop_map(|pick| Step::Share { pick }),
        1 => (0_usize..2).prop_map(Step::Cpu),
    ]
}

/// What a step gave: a block, or how its free ended.
type Given = (Option<Pfn>, Option<Result<(), FreeError>>);

fn run(pages: &Pages, live: &mut Vec<(Pfn, Order)>, step: Step) -> Given {
    let index = |pick: usize, live: &[(Pfn, Order)]| (!live.is_empty()).then(|| pick % live.len());
    match step {
        Step::Alloc { gfp, order: raw, node } => {
            let pfn = pages.alloc_pages(Context::ATOMIC, gfp | Gfp::NOWARN, order(raw), node);
            live.extend(pfn.map(|pfn| (pfn, order(raw))));
            (pfn, None)
        }
        Step::Free { pick } => {
            let block = index(pick, live).map(|at| live.swap_remove(at));
            (None, block.map(|(pfn, order)| pages.free_pages(pfn, order)))
        }
        Step::FreeTwice { pick } => {
            let block = index(pick, live).map(|at| live.swap_remove(at));
            let outcome = block.map(|(pfn, order)| {
                let first = pages.free_pages(pfn, order);
                // One that was shared is still somebody's.
                if pages.machine().mem.page(pfn).is_some_and(|page| page.refcount() > 0) {
                    live.push((pfn, if order == Order::ZERO { order } else { Order::ZERO }));
                    return first;
                }
                first.and(pages.free_pages(pfn, order))
            });
            (None, outcome)
        }
        Step::FreeWrongly { pick, order: raw } => {
            let wrong = index(pick, live).map(|at| live[at]).filter(|(_, right)| *right != order(raw));
            (None, wrong.map(|(pfn, _)| pages.free_pages(pfn, order(raw))))
        }
        Step::Share { pick } => {
            // A reference more: the next free only drops it, for single pages.
            let block = index(pick, live).map(|at| live[at]).filter(|(_, order)| *order == Order::ZERO);
            if let Some((pfn, order)) = block
                && pages.get_page(pfn).is_ok()
            {
                live.push((pfn, order));
            }
            (None, None)
        }
        Step::Cpu(cpu) => {
            pages.machine().run_on(cpu);
            (None, None)
        }
    }
}

fn counted(machine: &TestMachine) -> (Vec<PerCpuPages>, Vec<[u64; NR_VM_EVENTS]>) {
    let pcps = |cpu| {
        machine.run_on(cpu);
        mm_core::CpuLocal::with(&machine.cpus, |_, pages| (pages.pcps.to_vec(), pages.events.events))
    };
    let (mut lists, mut events) = (Vec::new(), Vec::new());
    for cpu in 0..2 {
        let (pcps, counts) = pcps(cpu);
        assert_eq!(pcps.len(), 2 * MAX_NR_ZONES);
        lists.extend(pcps);
        events.push(counts);
    }
    (lists, events)
}

#[test]
fn ordinary_requests_are_plain_and_others_are_not() {
    let token = MaySleep::checked_by_scheduler();
    let task = Context::task(&token);
    assert_eq!(plain(task, Gfp::KERNEL), Some((ZoneKind::Normal, Migratetype::Unmovable)));
    assert_eq!(plain(task, Gfp::HIGHUSER_MOVABLE), Some((ZoneKind::Movable, Migratetype::Movable)));
    assert_eq!(plain(task, Gfp::KERNEL | Gfp::ZERO), Some((ZoneKind::Normal, Migratetype::Unmovable)));
    assert_eq!(
        plain(Context::ATOMIC, Gfp::ATOMIC | Gfp::DMA32),
        Some((ZoneKind::Dma32, Migratetype::Unmovable))
    );
    for special in [Gfp::KERNEL | Gfp::COMP, Gfp::DMA | Gfp::DMA32, Gfp::MOVABLE | Gfp::RECLAIMABLE] {
        assert_eq!(plain(task, special), None, "{special:?}");
    }
    assert_eq!(plain(Context::ATOMIC, Gfp::KERNEL), None, "it may not sleep");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, rng_seed: RngSeed::Fixed(0x686f_7421), ..ProptestConfig::default() })]

    #[test]
    fn a_machine_that_traces_gives_the_same_blocks_and_counts(steps in prop::collection::vec(step(), 1..400)) {
        let (short, whole) = (start(&two_nodes(), &[0, 1]), start(&two_nodes(), &[0, 1]));
        whole.machine().mem.pretend_tracing();
        for machine in [short.machine(), whole.machine()] {
            machine.may_report.set(false);
        }
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for step in steps {
            prop_assert_eq!(run(&short, &mut a, step), run(&whole, &mut b, step), "{:?}", step);
        }
        prop_assert_eq!(counted(short.machine()), counted(whole.machine()));
        short.machine().audit();
        whole.machine().audit();
    }
}
