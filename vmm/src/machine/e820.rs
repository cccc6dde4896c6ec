//! The E820 map without overlaps, independent of the guest's way to it.
//!
//! The rules are Linux's (arch/x86/kernel/e820.c), stated as a property: the type of a byte is the
//! largest type among the entries that cover it, and a run of bytes of one type is one entry.
//! - An entry of 0 bytes covers nothing (`e820__update_table`).
//! - An entry that passes 2^64 is ignored (`__append_e820_table`).
//! - Type 0 covers nothing (`e820__update_table` starts from type 0 as "no entry").

use std::collections::BTreeMap;

use memvisor_abi::E820Type;
use memvisor_inspect::FactE820;

/// The type of usable RAM.
pub(crate) const RAM: u32 = E820Type::Ram as u32;
/// The type of what firmware keeps.
pub(crate) const RESERVED: u32 = E820Type::Reserved as u32;
/// The type of ACPI tables.
pub(crate) const ACPI: u32 = E820Type::Acpi as u32;

/// The map of `raw`: ascending, disjoint, neighbours of one type merged.
pub(crate) fn resolve(raw: &[FactE820]) -> Vec<FactE820> {
    let mut borders: Vec<(u128, Border, u32)> = Vec::new();
    for entry in raw.iter().filter(|entry| entry.kind != 0 && entry.size != 0) {
        let start = u128::from(entry.addr);
        let end = start + u128::from(entry.size);
        if end <= 1 << 64 {
            borders.push((start, Border::Begin, entry.kind));
            borders.push((end, Border::End, entry.kind));
        }
    }
    borders.sort_unstable();

    let mut map: Vec<FactE820> = Vec::new();
    let mut open: BTreeMap<u32, usize> = BTreeMap::new();
    let mut from = 0;
    for (at, border, kind) in borders {
        if let Some((kind, _)) = open.last_key_value() {
            append(&mut map, from, at, *kind);
        }
        from = at;
        let count = open.entry(kind).or_default();
        match border {
            Border::Begin => *count += 1,
            Border::End => *count = count.saturating_sub(1),
        }
        if *count == 0 {
            open.remove(&kind);
        }
    }
    map
}

/// What happens to an entry at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Border {
    Begin,
    End,
}

/// Adds `from..to`, which is not below what the map has, merging it with a neighbour of its type.
fn append(map: &mut Vec<FactE820>, from: u128, to: u128, kind: u32) {
    // `from` is below 2^64, and so is the length: an entry's size is a u64.
    let (Ok(addr), Ok(size)) = (u64::try_from(from), u64::try_from(to - from)) else { return };
    if size == 0 {
        return;
    }
    match map.last_mut() {
        Some(last) if last.kind == kind && u128::from(last.addr) + u128::from(last.size) == from => {
            // Merging up to the whole of 2^64 bytes has no size in 64 bits; the last byte goes.
            last.size = last.size.saturating_add(size);
        }
        _ => map.push(FactE820 { addr, size, kind }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(addr: u64, size: u64, kind: u32) -> FactE820 {
        FactE820 { addr, size, kind }
    }

    #[test]
    fn the_higher_type_wins_where_entries_overlap() {
        let map = resolve(&[entry(0x4000, 0x1000, 2), entry(0, 0x8000, 1), entry(0x4800, 0x1000, 20)]);
        assert_eq!(
            map,
            [
                entry(0, 0x4000, 1),
                entry(0x4000, 0x800, 2),
                entry(0x4800, 0x1000, 20),
                entry(0x5800, 0x2800, 1)
            ]
        );
    }

    #[test]
    fn empty_wrapping_and_type_0_entries_cover_nothing() {
        let map = resolve(&[
            entry(0, 0x8000, 1),
            entry(0x1000, 0, 2),
            entry(0x2000, u64::MAX, 2),
            entry(0x3000, 0x1000, 0),
        ]);
        assert_eq!(map, [entry(0, 0x8000, 1)]);
    }

    #[test]
    fn an_entry_may_end_at_the_last_byte() {
        let last = entry(u64::MAX - 0xfff, 0x1000, 2);
        assert_eq!(resolve(&[last]), [last]);
    }

    proptest! {
        /// Over a small address space, byte by byte, the map says the largest covering type.
        #[test]
        fn every_byte_has_the_largest_type_that_covers_it(
            raw in proptest::collection::vec((0_u64..64, 0_u64..24, 0_u32..6), 0..24)
        ) {
            let raw: Vec<FactE820> = raw.into_iter().map(|(addr, size, kind)| entry(addr, size, kind)).collect();
            let covers = |fact: &FactE820, byte: u64| fact.addr <= byte && byte < fact.addr + fact.size;
            let map = resolve(&raw);
            for byte in 0..96 {
                let expected = raw.iter().filter(|fact| covers(fact, byte)).map(|fact| fact.kind).max().unwrap_or(0);
                let mut found = map.iter().filter(|fact| covers(fact, byte));
                prop_assert_eq!(found.next().map_or(0, |fact| fact.kind), expected, "byte {}", byte);
                prop_assert!(found.next().is_none());
            }
            for pair in map.windows(2) {
                let touch = pair[0].addr + pair[0].size == pair[1].addr;
                prop_assert!(pair[0].addr + pair[0].size <= pair[1].addr);
                prop_assert!(!(touch && pair[0].kind == pair[1].kind), "not merged");
            }
        }
    }
}
