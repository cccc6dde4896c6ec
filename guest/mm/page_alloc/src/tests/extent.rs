//! Zones of whole machines.

use memvisor_abi::MemblockRegion;
use mm_core::{Pfn, ZoneKind};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::{Extent, ZoneLimits, find_zone_movable_pfns, zone_extents};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Frames.
const MI: u64 = 256;
const GI: u64 = 1 << 18;

fn ram(base: u64, end: u64, node: u32) -> MemblockRegion {
    MemblockRegion { base, size: end - base, node, flags: 0 }
}

fn extent(start: u64, spanned: u64, present: u64) -> Extent {
    Extent { start_pfn: Pfn::new(start), spanned, present }
}

const NONE: Extent = Extent { start_pfn: Pfn::new(0), spanned: 0, present: 0 };

#[test]
fn a_pc_has_holes_in_dma_and_dma32() {
    let memory = [ram(0x1000, 0x9_fc00, 0), ram(MIB, 3 * GIB, 0), ram(4 * GIB, 5 * GIB, 0)];
    // Linux on a PC says the same: DMA spans 4095 and has 3998 (158 below 640 KiB), DMA32 spans up to
    // 4 GiB although its memory ends at 3 GiB.
    assert_eq!(
        zone_extents(&memory, 0, ZoneLimits::X86_64),
        [
            extent(1, 4095, 158 + 15 * MI),
            extent(4096, GI * 4 - 4096, 3 * GI - 4096),
            extent(4 * GI, GI, GI),
            NONE,
            NONE
        ]
    );
}

#[test]
fn a_small_machine_ends_in_dma32() {
    let memory = [ram(0, 640 * 1024, 0), ram(MIB, 32 * MIB, 0)];
    let extents = zone_extents(&memory, 0, ZoneLimits::X86_64);
    assert_eq!(extents, [extent(0, 4096, 160 + 15 * MI), extent(4096, 4096, 4096), NONE, NONE, NONE]);
}

#[test]
fn interleaved_nodes_overlap_in_span_only() {
    let memory = [
        ram(0, 64 * MIB, 0),
        ram(64 * MIB, 128 * MIB, 1),
        ram(128 * MIB, 192 * MIB, 0),
        ram(192 * MIB, 256 * MIB, 1),
    ];
    assert_eq!(
        zone_extents(&memory, 0, ZoneLimits::X86_64),
        [extent(0, 4096, 4096), extent(4096, 176 * MI, 112 * MI), NONE, NONE, NONE]
    );
    assert_eq!(
        zone_extents(&memory, 1, ZoneLimits::X86_64),
        [NONE, extent(64 * MI, 192 * MI, 128 * MI), NONE, NONE, NONE]
    );
}

#[test]
fn nodes_without_memory_and_above_4_gib() {
    let memory = [ram(0, GIB, 0), ram(1 << 40, (1 << 40) + GIB, 2)];
    assert_eq!(zone_extents(&memory, 1, ZoneLimits::X86_64), [NONE; 5]);
    assert_eq!(
        zone_extents(&memory, 2, ZoneLimits::X86_64),
        [NONE, NONE, extent(1 << 28, GI, GI), NONE, NONE]
    );
    assert_eq!(zone_extents(&[], 0, ZoneLimits::X86_64), [NONE; 5]);
}

#[test]
fn a_hole_across_a_whole_zone_is_spanned_but_not_present() {
    let memory = [ram(0, 8 * MIB, 0), ram(8 * GIB, 9 * GIB, 0)];
    assert_eq!(
        zone_extents(&memory, 0, ZoneLimits::X86_64),
        [extent(0, 4096, 8 * MI), extent(4096, 4 * GI - 4096, 0), extent(4 * GI, 5 * GI, GI), NONE, NONE]
    );
}

#[test]
fn movablecore_is_taken_from_the_top_of_the_highest_zone() {
    let memory = [ram(0, 256 * MIB, 0)];
    let starts = find_zone_movable_pfns(&memory, 64 * MI, ZoneLimits::X86_64);
    assert_eq!(starts[0], Pfn::new(192 * MI));
    assert!(starts[1..].iter().all(|start| *start == Pfn::new(0)));
    let limits = ZoneLimits { movable_start: starts[0], ..ZoneLimits::X86_64 };
    assert_eq!(
        zone_extents(&memory, 0, limits),
        [
            extent(0, 4096, 4096),
            extent(4096, 176 * MI, 176 * MI),
            NONE,
            NONE,
            extent(192 * MI, 64 * MI, 64 * MI)
        ]
    );
}

#[test]
fn movablecore_leaves_every_node_an_even_share() {
    // 768 MiB, 256 movable: 512 for the kernel, 256 a node. Node 0 has exactly that.
    let memory = [ram(0, 256 * MIB, 0), ram(256 * MIB, 768 * MIB, 1)];
    let starts = find_zone_movable_pfns(&memory, 256 * MI, ZoneLimits::X86_64);
    assert_eq!((starts[0], starts[1]), (Pfn::new(0), Pfn::new(512 * MI)));
}

#[test]
fn a_small_node_leaves_its_rest_to_the_others() {
    // 640 MiB, 128 movable: 256 a node, of which node 0 has only 128; the second pass gives node 1 its rest.
    let memory = [ram(0, 128 * MIB, 0), ram(128 * MIB, 640 * MIB, 1)];
    let starts = find_zone_movable_pfns(&memory, 128 * MI, ZoneLimits::X86_64);
    assert_eq!((starts[0], starts[1]), (Pfn::new(0), Pfn::new(512 * MI)));
}

#[test]
fn memory_below_the_highest_zone_is_never_movable() {
    let memory = [ram(0, 3 * GIB, 0), ram(4 * GIB, 6 * GIB, 0)];
    let starts = find_zone_movable_pfns(&memory, 4 * GI, ZoneLimits::X86_64);
    // 1 GiB for the kernel was asked for, but all below 4 GiB is its anyway.
    assert_eq!(starts[0], Pfn::new(4 * GI));
}

#[test]
fn no_movable_zone_for_nothing_or_everything() {
    let memory = [ram(0, 256 * MIB, 0)];
    for movablecore in [0, 256 * MI, u64::MAX] {
        let starts = find_zone_movable_pfns(&memory, movablecore, ZoneLimits::X86_64);
        assert!(starts.iter().all(|start| *start == Pfn::new(0)), "{movablecore} pages");
    }
}

#[test]
fn highmem_begins_where_low_memory_ends_and_movable_is_taken_from_it() {
    let memory = [ram(0, 512 * MIB, 0)];
    let limits = ZoneLimits { lowmem_end: Pfn::new(96 * MI), ..ZoneLimits::X86_64 };
    assert_eq!(
        zone_extents(&memory, 0, limits),
        [
            extent(0, 4096, 4096),
            extent(4096, 80 * MI, 80 * MI),
            NONE,
            extent(96 * MI, 416 * MI, 416 * MI),
            NONE
        ]
    );
    let starts = find_zone_movable_pfns(&memory, 128 * MI, limits);
    assert_eq!(starts[0], Pfn::new(384 * MI));
    let limits = ZoneLimits { movable_start: starts[0], ..limits };
    let [_, _, _, high, movable] = zone_extents(&memory, 0, limits);
    assert_eq!(high, extent(96 * MI, 288 * MI, 288 * MI));
    assert_eq!(movable, extent(384 * MI, 128 * MI, 128 * MI));
    // More than HIGHMEM has: low memory is never movable.
    let starts = find_zone_movable_pfns(&memory, 500 * MI, limits);
    assert_eq!(starts[0], Pfn::new(96 * MI));
}

#[test]
fn low_memory_may_end_above_4_gib() {
    let memory = [ram(0, 3 * GIB, 0), ram(4 * GIB, 8 * GIB, 0)];
    let limits = ZoneLimits { lowmem_end: Pfn::new(6 * GI), ..ZoneLimits::X86_64 };
    let extents = zone_extents(&memory, 0, limits);
    assert_eq!(extents[2], extent(4 * GI, 2 * GI, 2 * GI));
    assert_eq!(extents[3], extent(6 * GI, 2 * GI, 2 * GI));
    let mut parts = Vec::new();
    limits.for_each_part(Pfn::new(0), Pfn::new(8 * GI), |first, end, kind| {
        parts.push((first.as_u64(), end.as_u64(), kind));
    });
    let high = (6 * GI, 8 * GI, ZoneKind::HighMem);
    assert_eq!(
        parts,
        [(0, 4096, ZoneKind::Dma), (4096, 4 * GI, ZoneKind::Dma32), (4 * GI, 6 * GI, ZoneKind::Normal), high]
    );
}

/// RAM in steps of 2 MiB over 0..40 MiB and around 4 GiB, three nodes.
fn memory() -> impl Strategy<Value = Vec<MemblockRegion>> {
    prop::collection::vec(prop::option::of(0u32..3), 40).prop_map(|units| {
        (0u64..)
            .zip(units)
            .filter_map(|(unit, node)| {
                let base = if unit < 20 { unit * 2 * MIB } else { 4 * GIB + unit * 2 * MIB - 60 * MIB };
                node.map(|node| ram(base, base + 2 * MIB, node))
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(4), ..ProptestConfig::default() })]
    #[test]
    fn every_frame_of_ram_is_present_in_one_zone(memory in memory(), movablecore in 0u64..20_000, low in prop::option::of(1u64..20)) {
        let lowmem_end = low.map_or(Pfn::new(u64::MAX), |blocks| Pfn::new(blocks * 1024));
        let limits = ZoneLimits { lowmem_end, ..ZoneLimits::X86_64 };
        let starts = find_zone_movable_pfns(&memory, movablecore, limits);
        for (node, start) in (0u32..3).zip(starts) {
            let limits = ZoneLimits { movable_start: start, ..limits };
            let extents = zone_extents(&memory, node, limits);
            // The parts of the node's RAM say the same.
            let mut parts = [0; 5];
            for region in memory.iter().filter(|region| region.node == node) {
                let (first, end) = (Pfn::new(region.base >> 12), Pfn::new((region.base + region.size) >> 12));
                limits.for_each_part(first, end, |first, end, kind| {
                    parts[kind as usize] += end.as_u64() - first.as_u64();
                });
            }
            prop_assert_eq!(parts, extents.map(|extent| extent.present));
            let total: u64 = memory.iter().filter(|region| region.node == node).map(|region| region.size >> 12).sum();
            prop_assert_eq!(extents.iter().map(|extent| extent.present).sum::<u64>(), total);
            let mut end = 0;
            for (extent, kind) in extents.iter().zip(ZoneKind::ALL) {
                prop_assert!(extent.present <= extent.spanned);
                if extent.spanned == 0 {
                    prop_assert_eq!(*extent, NONE);
                    continue;
                }
                prop_assert!(extent.start_pfn.as_u64() >= end, "zones of a node ascend without overlap");
                end = extent.start_pfn.as_u64() + extent.spanned;
                let limit = match kind {
                    ZoneKind::Dma => 1 << 12,
                    ZoneKind::Dma32 => 1 << 20,
                    _ => u64::MAX,
                };
                prop_assert!(end <= limit);
            }
        }
    }
}
