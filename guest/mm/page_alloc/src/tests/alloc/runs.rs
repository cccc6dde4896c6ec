//! Frames that follow each other are freed as blocks.

use memvisor_abi::VmEvent;
use mm_core::{Gfp, MemMap, Order, PageKind, Pfn};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::machine::{TestMachine, one_zone, start};
use crate::{Context, FreeError, PageAllocator};

type Pages = PageAllocator<&'static TestMachine>;

/// All memory, frame by frame, ascending.
fn take_all(pages: &Pages) -> Vec<u64> {
    let gfp = (Gfp::HIGHUSER_MOVABLE - Gfp::DIRECT_RECLAIM) | Gfp::NOWARN;
    let mut all: Vec<u64> =
        core::iter::from_fn(|| pages.alloc_pages(Context::ATOMIC, gfp, Order::ZERO, None).map(Pfn::as_u64))
            .collect();
    all.sort_unstable();
    all
}

/// Longest stretches without a gap.
fn runs(frames: &[u64]) -> impl Iterator<Item = (Pfn, u64)> {
    frames.chunk_by(|one, next| one + 1 == *next).map(|run| (Pfn::new(run[0]), run.len() as u64))
}

#[test]
fn a_long_run_goes_to_the_zone_and_a_short_one_to_the_cpu() {
    let pages = start(&one_zone(4096), &[0]);
    let machine = pages.machine();
    let (free, freed) = (machine.free_pages(), machine.event(VmEvent::Pgfree));
    let all = take_all(&pages);
    let kept = machine.kept();
    let (first, _) = runs(&all).max_by_key(|(_, count)| *count).expect("a run");
    // No 16 of them are a block.
    let start = first.as_u64().next_multiple_of(32) + 7;
    assert_eq!(pages.free_run(Pfn::new(start), 15), Ok(()));
    assert_eq!(machine.kept() - kept, 15, "they are hot");
    assert_eq!(pages.free_run(Pfn::new(start - 7), 7), Ok(()));
    let zone = machine.free_pages();
    assert_eq!(pages.free_run(Pfn::new(start + 25), 32), Ok(()));
    assert_eq!(machine.free_pages() - zone, 32, "one block");
    assert!(machine.mem.page(Pfn::new(start + 25)).is_some_and(|page| page.kind() == PageKind::Buddy));
    for frame in all.iter().filter(|frame| !(start - 7..start + 15).contains(*frame)) {
        if !(start + 25..start + 57).contains(frame) {
            assert_eq!(pages.free_pages(Pfn::new(*frame), Order::ZERO), Ok(()));
        }
    }
    pages.drain_all_pages();
    assert_eq!(machine.free_pages(), free);
    assert_eq!(machine.event(VmEvent::Pgfree) - freed, all.len() as u64);
    machine.audit();
}

#[test]
fn what_cannot_be_freed_is_named_and_the_others_are_free() {
    let pages = start(&one_zone(4096), &[0]);
    let machine = pages.machine();
    machine.may_report.set(false);
    let all = take_all(&pages);
    let (first, count) = runs(&all).max_by_key(|(_, count)| *count).expect("a run");
    assert!(count >= 256, "{count}");
    let bad = first.offset(100);
    machine.mem.page(bad).expect("a frame").set_mapcount(0);
    assert_eq!(pages.free_run(first, count), Err(FreeError::Mapped { pfn: bad, mapcount: 0 }));
    let in_use = |pfn: Pfn| machine.mem.page(pfn).is_some_and(|page| page.kind() == PageKind::Allocated);
    let left: Vec<u64> = (0..count).filter(|index| in_use(first.offset(*index))).collect();
    assert_eq!(left, [100]);
    machine.mem.page(bad).expect("a frame").set_mapcount(-1);
    machine.audit();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, rng_seed: RngSeed::Fixed(0x7275_6e73), ..ProptestConfig::default() })]

    /// With frames that somebody else holds, and holes that were freed before.
    #[test]
    fn runs_free_what_single_frees_do(
        held in prop::collection::hash_set(0_usize..4096, 0..12),
        gone in prop::collection::hash_set(0_usize..4096, 0..12),
        cuts in prop::collection::hash_set(0_u64..4096, 0..12),
    ) {
        let (together, single) = (start(&one_zone(4096), &[0]), start(&one_zone(4096), &[0]));
        let mut left = Vec::new();
        for (pages, is_run) in [(&together, true), (&single, false)] {
            let all = take_all(pages);
            let at = |index: &usize| all[index % all.len()];
            let (held, gone): (Vec<u64>, Vec<u64>) = (held.iter().map(at).collect(), gone.iter().map(at).collect());
            for frame in &held {
                prop_assert_eq!(pages.get_page(Pfn::new(*frame)), Ok(()));
            }
            let rest: Vec<u64> = all.iter().copied().filter(|frame| !gone.contains(frame)).collect();
            for frame in rest.chunk_by(|one, next| one + 1 == *next && !cuts.contains(next)) {
                let (first, count) = (Pfn::new(frame[0]), frame.len() as u64);
                if is_run {
                    prop_assert_eq!(pages.free_run(first, count), Ok(()));
                } else {
                    for frame in frame {
                        prop_assert_eq!(pages.free_pages(Pfn::new(*frame), Order::ZERO), Ok(()));
                    }
                }
            }
            pages.machine().audit();
            let references: Vec<i32> =
                all.iter().map(|frame| pages.machine().mem.page(Pfn::new(*frame)).map_or(0, |page| page.refcount())).collect();
            let freed = pages.machine().event(VmEvent::Pgfree);
            left.push((references, freed));
            pages.drain_all_pages();
            pages.machine().audit();
            left.last_mut().expect("pushed").1 += pages.machine().free_pages() << 32;
        }
        prop_assert_eq!(&left[0], &left[1]);
    }
}
