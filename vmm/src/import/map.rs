//! Which memory map counts, and where others contradict it.

use memvisor_inspect::FactE820;

use super::claims::{Claim, Claims, MapClaim, MapSource};
use crate::machine::{Range, e820};

/// Differences that are reported of one pair of maps; the rest are counted.
const REPORTED: usize = 8;

/// The map to use: the first of firmware's, else the first of the kernel's. `None` without any.
pub(super) fn settle(claims: &mut Claims) -> Option<Vec<FactE820>> {
    let maps = std::mem::take(&mut claims.maps);
    let maps: Vec<MapClaim> = maps.into_iter().filter(|map| !map.entries.is_empty()).collect();
    let best =
        maps.iter().position(|map| map.source == MapSource::Firmware).or((!maps.is_empty()).then_some(0))?;
    let used = maps.get(best)?;
    for other in maps.iter().enumerate().filter(|(index, _)| *index != best).map(|(_, map)| map) {
        compare(used, other, claims);
    }
    if used.source == MapSource::Kernel {
        claims.note(
            "the memory map is the kernel's view (/proc/iomem), without what the kernel took away; firmware's own is in a dmesg or /sys/firmware/memmap",
        );
    }
    Some(used.entries.iter().map(|entry| entry.value).collect())
}

/// The type of each stretch of addresses on whose inside neither map changes.
fn stretches(one: &[FactE820], other: &[FactE820]) -> Vec<(Range, u32, u32)> {
    let (one, other) = (e820::resolve(one), e820::resolve(other));
    let mut borders: Vec<u64> = one
        .iter()
        .chain(&other)
        .flat_map(|entry| [entry.addr, entry.addr.saturating_add(entry.size)])
        .collect();
    borders.sort_unstable();
    borders.dedup();
    let pairs = borders.iter().zip(borders.iter().skip(1));
    pairs
        .map(|(start, end)| (Range::new(*start, *end), kind_at(&one, *start), kind_at(&other, *start)))
        .collect()
}

/// Type of the byte at `addr` of a map without overlaps; 0 for a gap.
pub(super) fn kind_at(map: &[FactE820], addr: u64) -> u32 {
    let index = map.partition_point(|entry| entry.addr <= addr);
    let entry = index.checked_sub(1).and_then(|index| map.get(index));
    entry.filter(|entry| addr - entry.addr < entry.size).map_or(0, |entry| entry.kind)
}

fn compare(used: &MapClaim, other: &MapClaim, claims: &mut Claims) {
    let values = |map: &MapClaim| map.entries.iter().map(|entry| entry.value).collect::<Vec<_>>();
    // A kernel takes RAM away for itself, so its view may lack some; it cannot have more.
    let kernel = other.source == MapSource::Kernel && used.source == MapSource::Firmware;
    let contradicts =
        |one: u32, other: u32| if kernel { other == e820::RAM && one != e820::RAM } else { one != other };
    let mut found = 0_usize;
    let mut taken = 0_u64;
    for (range, one, two) in stretches(&values(used), &values(other)) {
        if kernel && one == e820::RAM && two != e820::RAM {
            taken += range.len;
        }
        if !contradicts(one, two) {
            continue;
        }
        found += 1;
        if found <= REPORTED {
            let about = format!("{:#x}..{:#x}", range.base, range.end());
            claims.contradict(about, claim_of(used, range.base, one), claim_of(other, range.base, two));
        }
    }
    if let Some(more) = found.checked_sub(REPORTED).filter(|more| *more > 0) {
        claims.note(format!("the same two memory maps contradict each other in {more} more places"));
    }
    if taken > 0 {
        claims.note(format!("{} KiB of firmware's RAM are not System RAM to the kernel", taken >> 10));
    }
}

/// What `map` says of the byte at `addr`, whose type is `kind`, and where it says so.
fn claim_of(map: &MapClaim, addr: u64, kind: u32) -> (String, super::At) {
    let covers = |entry: &&Claim<FactE820>| {
        let FactE820 { addr: start, size, kind: of } = entry.value;
        of == kind && start <= addr && addr - start < size
    };
    let before = |entry: &&Claim<FactE820>| entry.value.addr <= addr;
    let place = map.entries.iter().find(covers).or_else(|| map.entries.iter().rfind(before));
    let at = place.or(map.entries.first()).map(|entry| entry.at.clone());
    let at = at.unwrap_or_else(|| super::At { file: "".into(), line: 0 });
    match kind {
        0 => ("nothing is there".to_owned(), at),
        kind => (format!("type {kind} {}", memvisor_abi::E820Type::name(kind)), at),
    }
}
