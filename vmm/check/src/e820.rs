//! The checker's own reading of an E820 map.
//!
//! Linux's answer (`e820__update_table`) by another way: a sweep over the edges of all entries that
//! keeps a count of open entries by type.
//!
//! Invariants of the result:
//! E1  ascending, without overlap, no empty entry;
//! E2  a byte has the highest type number among the entries that cover it;
//! E3  neighbours that touch differ in type, unless the type is soft-reserved memory, of which Linux
//!     keeps every piece apart (`e820_nomerge`);
//! E4  entries that are empty, have type 0 or whose end does not fit in 64 bits take no part;
//! E5  RAM ends at the last byte that a physical address can name.

use std::collections::BTreeMap;

use memvisor_abi::E820Type;

use crate::frames::{Frames, normalize};

/// Bytes `start..end` of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub start: u64,
    pub end: u64,
    pub kind: u32,
}

/// Linux's `E820_TYPE_SOFT_RESERVED`.
const SOFT_RESERVED: u32 = 0xefff_ffff;

/// Resolves raw entries `(addr, size, type)` for a CPU with `phys_bits` physical address bits.
pub(crate) fn resolve(raw: impl IntoIterator<Item = (u64, u64, u32)>, phys_bits: u32) -> Vec<Region> {
    let limit = 1_u64.checked_shl(phys_bits).unwrap_or(u64::MAX);
    let mut regions = sweep(raw);
    for region in regions.iter_mut().filter(|region| region.kind == E820Type::Ram as u32) {
        region.end = region.end.min(limit);
    }
    regions.retain(|region| region.start < region.end);
    regions
}

fn sweep(raw: impl IntoIterator<Item = (u64, u64, u32)>) -> Vec<Region> {
    // Edge address -> (type, +1 or -1), in order.
    let mut edges: BTreeMap<u64, Vec<(u32, bool)>> = BTreeMap::new();
    for (addr, size, kind) in raw {
        let Some(end) = addr.checked_add(size) else { continue };
        if size == 0 || kind == 0 {
            continue;
        }
        edges.entry(addr).or_default().push((kind, true));
        edges.entry(end).or_default().push((kind, false));
    }
    let mut open: BTreeMap<u32, usize> = BTreeMap::new();
    let mut regions: Vec<Region> = Vec::new();
    let mut from = 0;
    for (at, changes) in edges {
        if let Some((&kind, _)) = open.last_key_value() {
            match regions.last_mut() {
                Some(last) if last.end == from && last.kind == kind && kind != SOFT_RESERVED => last.end = at,
                _ => regions.push(Region { start: from, end: at, kind }),
            }
        }
        for (kind, opens) in changes {
            let count = open.entry(kind).or_default();
            *count = if opens { *count + 1 } else { count.saturating_sub(1) };
        }
        // An edge lists its closings and openings in any order, so a count may pass through zero.
        open.retain(|_, count| *count > 0);
        from = at;
    }
    regions
}

/// Whole frames of usable RAM in resolved regions.
pub(crate) fn ram(regions: &[Region]) -> Vec<Frames> {
    let usable = regions.iter().filter(|region| region.kind == E820Type::Ram as u32);
    normalize(usable.map(|region| Frames::inside(region.start, region.end)).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn region(start: u64, end: u64, kind: u32) -> Region {
        Region { start, end, kind }
    }

    #[test]
    fn the_higher_type_wins_where_entries_overlap() {
        assert_eq!(
            resolve([(0, 0x1000, 1), (0x400, 0x400, 2)], 46),
            [region(0, 0x400, 1), region(0x400, 0x800, 2), region(0x800, 0x1000, 1)]
        );
    }

    #[test]
    fn neighbours_of_one_type_are_merged_whatever_their_order() {
        assert_eq!(resolve([(0x1000, 0x1000, 1), (0, 0x1000, 1)], 46), [region(0, 0x2000, 1)]);
    }

    #[test]
    fn empty_wrapping_and_typeless_entries_take_no_part() {
        assert_eq!(
            resolve([(0, 0x1000, 1), (0x100, 0, 5), (u64::MAX, 2, 2), (0x200, 0x100, 0)], 46),
            [region(0, 0x1000, 1)]
        );
    }

    #[test]
    fn an_unknown_type_wins_over_ram() {
        assert_eq!(resolve([(0, 8, 1), (4, 4, 99)], 46), [region(0, 4, 1), region(4, 8, 99)]);
    }

    #[test]
    fn ram_ends_where_physical_addresses_end_and_other_types_do_not() {
        assert_eq!(
            resolve([(0, 0x2000, 1), (0x3000, 0x1000, 1), (0x4000, 0x1000, 2)], 12),
            [region(0, 0x1000, 1), region(0x4000, 0x5000, 2)]
        );
    }

    #[test]
    fn soft_reserved_pieces_stay_apart() {
        assert_eq!(
            resolve([(0, 8, SOFT_RESERVED), (8, 8, SOFT_RESERVED)], 46),
            [region(0, 8, SOFT_RESERVED), region(8, 16, SOFT_RESERVED)]
        );
    }

    #[test]
    fn ram_has_whole_frames_only() {
        assert_eq!(
            ram(&resolve([(0, 0x1800, 1), (0x1800, 0x800, 2), (0x2800, 0x1000, 1)], 46)),
            [Frames::new(0, 1)]
        );
    }

    proptest! {
        #[test]
        fn every_byte_has_the_highest_type_that_covers_it(
            raw in proptest::collection::vec((0_u64..64, 0_u64..20, 0_u32..6), 0..14),
        ) {
            let regions = resolve(raw.clone(), 46);
            prop_assert!(regions.iter().all(|region| region.start < region.end));
            for pair in regions.windows(2) {
                prop_assert!(pair[0].end <= pair[1].start);
                prop_assert!(pair[0].end < pair[1].start || pair[0].kind != pair[1].kind);
            }
            for byte in 0..96 {
                let wanted = raw
                    .iter()
                    .filter(|&&(addr, size, _)| addr <= byte && byte < addr + size)
                    .map(|&(_, _, kind)| kind)
                    .max()
                    .filter(|&kind| kind > 0);
                let got = regions.iter().find(|region| region.start <= byte && byte < region.end);
                prop_assert_eq!(got.map(|region| region.kind), wanted, "byte {}", byte);
            }
        }
    }
}
