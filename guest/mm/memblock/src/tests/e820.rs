//! Sanitizing against a map of address units.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::{E820_MAX_ENTRIES, E820Entry, E820Full, E820Table};

const SOFT_RESERVED: u32 = 0xefff_ffff;

fn entry(addr: u64, size: u64, kind: u32) -> E820Entry {
    E820Entry { addr, size, kind, reserved: 0 }
}

fn table(entries: &[E820Entry]) -> E820Table {
    let mut table = E820Table::new();
    for entry in entries {
        table.push(*entry).expect("the test's map fits");
    }
    table
}

#[test]
fn higher_type_wins_where_entries_overlap() {
    let map = table(&[entry(0x2000, 0x2000, 2), entry(0, 0x10000, 1), entry(0x3000, 0x3000, 4)]).sanitize(46);
    assert_eq!(
        map.entries(),
        [entry(0, 0x2000, 1), entry(0x2000, 0x1000, 2), entry(0x3000, 0x3000, 4), entry(0x6000, 0xa000, 1)]
    );
}

#[test]
fn unknown_types_are_carried_and_count_by_number() {
    let map = table(&[entry(0, 0x4000, 5), entry(0x1000, 0x1000, 6), entry(0x2000, 0x1000, 77)]).sanitize(46);
    assert_eq!(
        map.entries(),
        [entry(0, 0x1000, 5), entry(0x1000, 0x1000, 6), entry(0x2000, 0x1000, 77), entry(0x3000, 0x1000, 5)]
    );
}

#[test]
fn neighbours_of_one_type_become_one_entry() {
    let map = table(&[entry(0x1000, 0x1000, 1), entry(0, 0x1000, 1), entry(0x2000, 0x1000, 2)]).sanitize(46);
    assert_eq!(map.entries(), [entry(0, 0x2000, 1), entry(0x2000, 0x1000, 2)]);
}

#[test]
fn soft_reserved_neighbours_stay_apart() {
    let raw = [entry(0, 0x1000, SOFT_RESERVED), entry(0x1000, 0x1000, SOFT_RESERVED)];
    assert_eq!(table(&raw).sanitize(46).entries(), raw);
}

#[test]
fn empty_wrapping_and_type_zero_entries_are_ignored() {
    let raw = [
        entry(0x5000, 0, 2),
        entry(0, 0x8000, 1),
        entry(u64::MAX - 0xfff, 0x2000, 2),
        entry(0x9000, 0x1000, 0),
        entry(0x1000, 0x1000, 0),
    ];
    assert_eq!(table(&raw).sanitize(46).entries(), [entry(0, 0x8000, 1)]);
}

#[test]
fn ram_past_the_address_width_is_cut_and_other_types_stay() {
    let raw = [entry(0xf000, 0x2000, 1), entry(0x1_2000, 0x1000, 1), entry(0x2_0000, 0x1000, 2)];
    assert_eq!(table(&raw).sanitize(16).entries(), [entry(0xf000, 0x1000, 1), entry(0x2_0000, 0x1000, 2)]);
    assert_eq!(table(&raw).sanitize(64).entries(), raw);
}

#[test]
fn end_of_ram_counts_whole_frames_of_ram_only() {
    let map = table(&[entry(0, 0x2800, 1), entry(0x4000, 0x1000, 2), entry(0x10_0000, 0x10_0000, 1)]);
    assert_eq!(map.end_of_ram_pfn(u64::MAX), 0x200);
    assert_eq!(map.end_of_ram_pfn(0x180), 0x180);
    assert_eq!(map.end_of_ram_pfn(0x100), 2);
    assert_eq!(E820Table::new().end_of_ram_pfn(u64::MAX), 0);
}

#[test]
fn a_full_table_refuses_and_keeps_what_it_has() {
    let mut full = E820Table::new();
    for index in 0..E820_MAX_ENTRIES as u64 {
        full.push(entry(index * 0x2000, 0x1000, 1)).expect("below the limit");
    }
    assert_eq!(full.push(entry(0, 1, 1)), Err(E820Full));
    assert_eq!(full.entries().len(), E820_MAX_ENTRIES);
    assert_eq!(full.sanitize(46).entries(), full.entries());
}

#[test]
fn pieces_past_the_capacity_are_lost_from_the_top() {
    // One big entry under 319 small ones makes 639 pieces.
    let mut raw = table(&[entry(0, 0x1000_0000, 1)]);
    for index in 0..E820_MAX_ENTRIES as u64 - 1 {
        raw.push(entry(0x1000 + index * 0x2000, 0x1000, 2)).expect("below the limit");
    }
    let map = raw.sanitize(46);
    assert_eq!(map.entries().len(), E820_MAX_ENTRIES);
    assert_eq!(map.entries()[0], entry(0, 0x1000, 1));
    assert_eq!(map.entries()[319], entry(319 * 0x1000, 0x1000, 2));
}

/// The type of every unit of a small address space, by trying all entries.
fn model(raw: &[E820Entry], units: u64) -> Vec<u32> {
    (0..units)
        .map(|unit| {
            raw.iter()
                .filter(|entry| entry.addr.checked_add(entry.size).is_some_and(|end| unit < end))
                .filter(|entry| entry.addr <= unit)
                .map(|entry| entry.kind)
                .max()
                .unwrap_or(0)
        })
        .collect()
}

fn hostile_entry() -> impl Strategy<Value = E820Entry> {
    let kind = prop_oneof![4 => 1u32..8, 1 => Just(0u32), 1 => Just(77u32), 1 => Just(u32::MAX)];
    let place = prop_oneof![
        8 => (0u64..60, 0u64..20),
        1 => (0u64..60, Just(u64::MAX)),
        1 => (u64::MAX - 4..=u64::MAX, 0u64..9),
    ];
    (place, kind).prop_map(|((addr, size), kind)| entry(addr, size, kind))
}

proptest! {
    #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(2), ..ProptestConfig::default() })]
    #[test]
    fn sanitizing_agrees_with_a_unit_map(mut raw in prop::collection::vec(hostile_entry(), 0..24), dup in any::<bool>()) {
        if dup {
            raw.extend_from_within(..);
        }
        let map = table(&raw).sanitize(64);
        prop_assert_eq!(model(map.entries(), 96), model(&raw, 96));
        for pair in map.entries().windows(2) {
            let end = pair[0].addr + pair[0].size;
            prop_assert!(end <= pair[1].addr, "sorted and disjoint: {:?}", pair);
            prop_assert!(end < pair[1].addr || pair[0].kind != pair[1].kind, "merged: {:?}", pair);
        }
        prop_assert!(map.entries().iter().all(|entry| entry.size != 0 && entry.kind != 0));
        let again = map.sanitize(64);
        prop_assert_eq!(again.entries(), map.entries(), "sanitizing twice changes nothing");
    }
}
