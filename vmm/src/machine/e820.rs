//! The E820 map without overlaps, independent of the guest's way to it.
//!
//! The rules are Linux's (arch/x86/kernel/e820.c), stated as a property: the type of a byte is the
//! largest type among the entries that cover it, and a run of bytes of one type is one entry.
//! - An entry of 0 bytes covers nothing (`e820__update_table`).
//! - An entry that passes 2^64 is ignored (`__append_e820_table`).
//! - Type 0 covers nothing (`e820__update_table` starts from type 0 as "no entry").

use memvisor_inspect::FactE820;

/// The type of usable RAM.
pub(super) const RAM: u32 = 1;

/// The map of `raw`, ascending, disjoint, neighbours of one type merged. The end of the last
/// possible entry, 2^64, is handled.
pub(super) fn resolve(raw: &[FactE820]) -> Vec<FactE820> {
    let entries: Vec<(u128, u128, u32)> = raw
        .iter()
        .filter(|entry| entry.kind != 0 && entry.size != 0)
        .map(|entry| (u128::from(entry.addr), u128::from(entry.addr) + u128::from(entry.size), entry.kind))
        .filter(|(_, end, _)| *end <= 1 << 64)
        .collect();

    let mut borders: Vec<u128> = entries.iter().flat_map(|(start, end, _)| [*start, *end]).collect();
    borders.sort_unstable();
    borders.dedup();

    let mut map: Vec<(u128, u128, u32)> = Vec::new();
    for pair in borders.windows(2) {
        let &[start, end] = pair else { continue };
        let covering = entries.iter().filter(|(from, to, _)| *from <= start && end <= *to);
        let Some(kind) = covering.map(|(_, _, kind)| *kind).max() else { continue };
        match map.last_mut() {
            Some((_, last_end, last_kind)) if *last_end == start && *last_kind == kind => *last_end = end,
            _ => map.push((start, end, kind)),
        }
    }
    // An entry over all of the 2^64 bytes has no size in 64 bits; nobody can mean it, and cutting
    // its last byte off changes nothing that could be RAM.
    map.into_iter()
        .map(|(start, end, kind)| FactE820 {
            addr: u64::try_from(start).unwrap_or(u64::MAX),
            size: u64::try_from(end - start).unwrap_or(u64::MAX),
            kind,
        })
        .collect()
}
