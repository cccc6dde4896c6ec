//! Memblock against arrays of units.

use mm_core::{Pfn, PhysAddr};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::{AllocRange, Direction, List, Memblock, MemblockError, MemblockRegion, NODE_NONE};

/// Bytes of a unit: two to a page, so that rounding to frames shows.
const UNIT: u64 = 0x800;
const UNITS: usize = 64;

fn at(unit: u64) -> PhysAddr {
    PhysAddr::new(unit * UNIT)
}

fn region(base: u64, size: u64, node: u32) -> MemblockRegion {
    MemblockRegion { base: base * UNIT, size: size * UNIT, node, flags: 0 }
}

#[test]
fn touching_regions_of_one_node_merge_and_others_do_not() {
    let mut memblock = Memblock::<4>::new();
    memblock.add(at(0), 4 * UNIT, 0).unwrap();
    memblock.add(at(8), 4 * UNIT, 1).unwrap();
    memblock.add(at(4), 4 * UNIT, 0).unwrap();
    assert_eq!(memblock.memory(), [region(0, 8, 0), region(8, 4, 1)]);
}

#[test]
fn adding_over_known_memory_keeps_its_node() {
    let mut memblock = Memblock::<4>::new();
    memblock.add(at(4), 4 * UNIT, 1).unwrap();
    memblock.add(at(0), 16 * UNIT, 0).unwrap();
    assert_eq!(memblock.memory(), [region(0, 4, 0), region(4, 4, 1), region(8, 8, 0)]);
}

#[test]
fn set_node_splits_at_both_ends() {
    let mut memblock = Memblock::<3>::new();
    memblock.add(at(0), 16 * UNIT, NODE_NONE).unwrap();
    memblock.set_node(at(4), 4 * UNIT, 2).unwrap();
    assert_eq!(memblock.memory(), [region(0, 4, NODE_NONE), region(4, 4, 2), region(8, 8, NODE_NONE)]);
    memblock.set_node(at(0), u64::MAX, 2).unwrap();
    assert_eq!(memblock.memory(), [region(0, 16, 2)]);
}

#[test]
fn a_full_list_refuses_whole_but_still_grows_in_place() {
    let mut memblock = Memblock::<2>::new();
    memblock.reserve(at(0), UNIT).unwrap();
    memblock.reserve(at(4), UNIT).unwrap();
    let before = memblock.reserved().to_vec();
    let full = MemblockError::Full { list: List::Reserved, base: at(8), size: UNIT, capacity: 2 };
    assert_eq!(memblock.reserve(at(8), UNIT), Err(full));
    assert_eq!(memblock.reserved(), before);
    memblock.reserve(at(1), 3 * UNIT).unwrap();
    assert_eq!(memblock.reserved(), [region(0, 5, NODE_NONE)]);
    memblock.reserve(at(8), UNIT).unwrap();
    assert!(memblock.free(at(1), UNIT).is_err(), "the second half has no room");
    assert_eq!(
        full.to_string(),
        "memblock reserved is full: no room for 0x800 bytes at 0x4000 among 2 regions; raise the capacity"
    );
}

#[test]
fn ranges_are_cut_at_the_end_of_the_address_space() {
    let mut memblock = Memblock::<2>::new();
    memblock.add(PhysAddr::new(u64::MAX - 0xfff), u64::MAX, 0).unwrap();
    assert_eq!(memblock.end_of_dram(), Some(PhysAddr::new(u64::MAX)));
    assert_eq!(memblock.audit(), Ok(()));
}

#[test]
fn allocation_honours_alignment_range_node_and_page_zero() {
    let mut memblock = Memblock::<8>::new();
    memblock.add(at(0), 16 * UNIT, 0).unwrap();
    memblock.add(at(16), 16 * UNIT, 1).unwrap();
    let mut up = |size, align, range, node| memblock.alloc(size, align, range, node, Direction::BottomUp);
    assert_eq!(up(UNIT, 1, AllocRange::ALL, None), Some(at(2)), "page 0 stays");
    assert_eq!(up(UNIT, 8 * UNIT, AllocRange::ALL, None), Some(at(8)));
    assert_eq!(up(UNIT, 1, AllocRange::ALL, Some(1)), Some(at(16)));
    assert_eq!(up(UNIT, 1, AllocRange { min: at(20), max: at(24) }, Some(0)), None);
    assert_eq!(up(64 * UNIT, 1, AllocRange::ALL, None), None);
    assert_eq!(up(UNIT, 3, AllocRange::ALL, None), None);
    let down = memblock.alloc(3 * UNIT, 2 * UNIT, AllocRange::below(at(32)), None, Direction::TopDown);
    assert_eq!(down, Some(at(28)));
}

#[test]
fn trimming_drops_partial_pages() {
    let mut memblock = Memblock::<4>::new();
    memblock.add(at(1), 4 * UNIT, 0).unwrap();
    memblock.add(at(7), UNIT, 0).unwrap();
    memblock.trim_memory(0x1000);
    assert_eq!(memblock.memory(), [region(2, 2, 0)]);
}

#[test]
fn frames_are_rounded_inwards() {
    let mut memblock = Memblock::<4>::new();
    memblock.add(at(1), 6 * UNIT, 0).unwrap();
    memblock.add(at(9), UNIT, 0).unwrap();
    memblock.add(at(12), 2 * UNIT, 3).unwrap();
    let frames: Vec<_> = memblock.mem_pfn_ranges(None).collect();
    assert_eq!(frames, [(Pfn::new(1), Pfn::new(3), 0), (Pfn::new(6), Pfn::new(7), 3)]);
    assert_eq!(memblock.mem_pfn_ranges(Some(3)).count(), 1);
}

/// A unit: node if it is memory, and whether it is reserved.
type Model = ([Option<u32>; UNITS], [bool; UNITS]);

#[derive(Clone, Debug)]
enum Op {
    Add(u64, u64, u32),
    Remove(u64, u64),
    Reserve(u64, u64),
    Free(u64, u64),
    SetNode(u64, u64, u32),
    Alloc { size: u64, align: u64, range: (u64, u64), node: Option<u32>, up: bool },
}

fn op() -> impl Strategy<Value = Op> {
    let place = || (0u64..UNITS as u64, 0u64..20);
    prop_oneof![
        (place(), 0u32..3).prop_map(|((unit, len), node)| Op::Add(unit, len, node)),
        place().prop_map(|(unit, len)| Op::Remove(unit, len)),
        place().prop_map(|(unit, len)| Op::Reserve(unit, len)),
        place().prop_map(|(unit, len)| Op::Free(unit, len)),
        (place(), 0u32..3).prop_map(|((unit, len), node)| Op::SetNode(unit, len, node)),
        (1u64..8, 0u32..4, (0u64..40, 20u64..70), prop::option::of(0u32..3), any::<bool>()).prop_map(
            |(size, align, range, node, up)| Op::Alloc { size, align: 1 << align, range, node, up }
        ),
    ]
}

fn units<T: Copy>(array: &mut [T; UNITS], unit: u64, len: u64, change: impl Fn(T) -> T) {
    for (index, slot) in (0u64..).zip(array.iter_mut()) {
        if index >= unit && index < unit + len {
            *slot = change(*slot);
        }
    }
}

fn allocate(
    model: &Model,
    size: u64,
    align: u64,
    range: (u64, u64),
    node: Option<u32>,
    up: bool,
) -> Option<u64> {
    let fits = |base: &u64| {
        let end = base + size;
        *base >= range.0.max(2) && end <= range.1.min(UNITS as u64) && base.is_multiple_of(align) && {
            let span = || (*base..end).map(|unit| usize::try_from(unit).expect("small"));
            let home = model.0[usize::try_from(*base).expect("small")];
            // One free range has one node, so an allocation never straddles nodes.
            home.is_some()
                && node.is_none_or(|node| home == Some(node))
                && span().all(|unit| model.0[unit] == home && !model.1[unit])
        }
    };
    let mut bases = 0..UNITS as u64;
    if up { bases.find(fits) } else { bases.rev().find(fits) }
}

/// The model's regions, merged, as memblock must show them.
fn regions_of(array: impl Iterator<Item = Option<u32>>) -> Vec<MemblockRegion> {
    let mut regions: Vec<MemblockRegion> = Vec::new();
    for (unit, node) in (0u64..).zip(array) {
        let Some(node) = node else { continue };
        match regions.last_mut() {
            Some(last) if last.node == node && last.base + last.size == unit * UNIT => last.size += UNIT,
            _ => regions.push(region(unit, 1, node)),
        }
    }
    regions
}

fn apply<const N: usize>(
    memblock: &mut Memblock<N>,
    model: &mut Model,
    op: &Op,
) -> Result<(), TestCaseError> {
    let before = (memblock.memory().to_vec(), memblock.reserved().to_vec());
    let mut next = *model;
    let cut = |unit: u64, len: u64| len.min(UNITS as u64 - unit);
    let result = match *op {
        Op::Add(unit, len, node) => {
            units(&mut next.0, unit, len, |old| old.or(Some(node)));
            memblock.add(at(unit), cut(unit, len) * UNIT, node)
        }
        Op::Remove(unit, len) => {
            units(&mut next.0, unit, len, |_| None);
            memblock.remove(at(unit), cut(unit, len) * UNIT)
        }
        Op::Reserve(unit, len) => {
            units(&mut next.1, unit, len, |_| true);
            memblock.reserve(at(unit), cut(unit, len) * UNIT)
        }
        Op::Free(unit, len) => {
            units(&mut next.1, unit, len, |_| false);
            memblock.free(at(unit), cut(unit, len) * UNIT)
        }
        Op::SetNode(unit, len, node) => {
            units(&mut next.0, unit, len, |old| old.map(|_| node));
            memblock.set_node(at(unit), cut(unit, len) * UNIT, node)
        }
        Op::Alloc { size, align, range, node, up } => {
            let direction = if up { Direction::BottomUp } else { Direction::TopDown };
            let limits = AllocRange { min: at(range.0), max: at(range.1) };
            let got = memblock.alloc(size * UNIT, align * UNIT, limits, node, direction);
            let want = allocate(model, size, align, range, node, up);
            if let (None, Some(_)) = (got, want) {
                // Only a full list of reservations may refuse what fits.
                prop_assert_eq!(memblock.reserved().len(), N);
                return Ok(());
            }
            prop_assert_eq!(got, want.map(at));
            if let Some(unit) = want {
                units(&mut next.1, unit, size, |_| true);
            }
            Ok(())
        }
    };
    match result {
        Ok(()) => *model = next,
        Err(_) => {
            prop_assert_eq!(before, (memblock.memory().to_vec(), memblock.reserved().to_vec()));
            prop_assert!(memblock.memory().len().max(memblock.reserved().len()) + 2 > N);
        }
    }
    Ok(())
}

fn compare<const N: usize>(memblock: &Memblock<N>, model: &Model) -> Result<(), TestCaseError> {
    prop_assert_eq!(memblock.audit(), Ok(()));
    prop_assert_eq!(memblock.memory(), regions_of(model.0.iter().copied()));
    prop_assert_eq!(memblock.reserved(), regions_of(model.1.iter().map(|used| used.then_some(NODE_NONE))));
    let free = regions_of(model.0.iter().zip(&model.1).map(|(node, used)| node.filter(|_| !used)));
    let ranges: Vec<_> = memblock
        .free_ranges()
        .map(|(start, end, node)| MemblockRegion {
            base: start.as_u64(),
            size: end.as_u64() - start.as_u64(),
            node,
            flags: 0,
        })
        .collect();
    prop_assert_eq!(ranges, free);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(3), ..ProptestConfig::default() })]
    #[test]
    fn memblock_obeys_unit_arrays(ops in prop::collection::vec(op(), 1..60)) {
        let mut memblock = Memblock::<64>::new();
        let mut model = ([None; UNITS], [false; UNITS]);
        for op in &ops {
            apply(&mut memblock, &mut model, op)?;
            compare(&memblock, &model)?;
        }
    }

    #[test]
    fn a_small_memblock_changes_all_or_nothing(ops in prop::collection::vec(op(), 1..60)) {
        let mut memblock = Memblock::<4>::new();
        let mut model = ([None; UNITS], [false; UNITS]);
        for op in &ops {
            apply(&mut memblock, &mut model, op)?;
            compare(&memblock, &model)?;
        }
    }

    #[test]
    fn free_ranges_in_a_window_are_the_free_ranges_cut(
        ops in prop::collection::vec(op(), 1..30), min in 0u64..70, max in 0u64..70,
    ) {
        let mut memblock = Memblock::<64>::new();
        let mut model = ([None; UNITS], [false; UNITS]);
        for op in &ops {
            apply(&mut memblock, &mut model, op)?;
        }
        let (min, max) = (at(min), at(max));
        let cut: Vec<_> = memblock
            .free_ranges()
            .map(|(start, end, node)| (start.max(min), end.min(max), node))
            .filter(|(start, end, _)| start < end)
            .collect();
        let window: Vec<_> = memblock.free_ranges_in(AllocRange { min, max }).collect();
        prop_assert_eq!(window, cut);
    }
}
