//! Where each range of each node goes, and the E820 map of a PC with that RAM.

use memvisor_inspect::FactE820;

use super::draft::{Draft, DraftMemory};
use super::error::Origin;
use super::{Backed, MachineError, Problem, Range, Shown, Size, e820, layout};

const MMIO_HOLE: Range = Range::new(layout::MMIO_HOLE_START, layout::MMIO_HOLE_END);
const FIRMWARE: Range = Range::new(layout::FIRMWARE_START, layout::FIRMWARE_END);

/// Addresses that a node's range takes. Not all of them need be RAM: PC holes are cut out later.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub node: usize,
    pub range: Range,
    pub origin: Origin,
}

/// An E820 entry and what asked for it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub fact: FactE820,
    pub origin: Origin,
}

/// Gives every range its addresses: those with `at` exactly there, the others the lowest free ones, in
/// order, stepping over what is taken and over the MMIO hole. The result is disjoint and ascending.
pub(super) fn place(draft: &Draft, bits: u32) -> Result<Vec<Placed>, MachineError> {
    let ranges = || {
        draft
            .nodes
            .iter()
            .enumerate()
            .flat_map(|(node, drafted)| drafted.memory.iter().map(move |memory| (node, memory)))
    };
    if ranges().next().is_none() {
        return Err(MachineError::at(&draft.origin, Problem::NoMemory));
    }
    let mut placed: Vec<Placed> = Vec::new();
    for (node, memory) in ranges() {
        check_frames(memory)?;
        if let Some(base) = memory.at {
            placed.push(Placed { node, range: fixed(base, memory, &placed)?, origin: memory.origin.clone() });
        }
    }
    for (node, memory) in ranges().filter(|(_, memory)| memory.at.is_none()) {
        for range in lowest_free(memory, &placed)? {
            placed.push(Placed { node, range, origin: memory.origin.clone() });
        }
    }
    let limit = Range::new(1 << bits, u64::MAX);
    if let Some(high) = placed.iter().find(|placed| !placed.range.intersection(&limit).is_empty()) {
        let problem = Problem::PastPhysBits { range: Shown(high.range), bits };
        return Err(MachineError::at(&high.origin, problem));
    }
    placed.sort_by_key(|placed| placed.range.base);
    Ok(placed)
}

/// The placed ranges whose node has a backing. Touching ranges of a node become one, as its slots do.
pub(super) fn backed(draft: &Draft, placed: &[Placed]) -> Result<Vec<Backed>, MachineError> {
    let mut joined: Vec<(usize, Backed)> = Vec::new();
    for placed in placed {
        let Some(backing) = draft.nodes.get(placed.node).and_then(|node| node.backing) else { continue };
        let whole = |number: u64| !backing.is_pooled() || number.is_multiple_of(backing.page_size());
        if !whole(placed.range.base) || !whole(placed.range.len) {
            let problem = Problem::NotHugePages { range: Shown(placed.range), backing };
            return Err(MachineError::at(&placed.origin, problem));
        }
        match joined.last_mut() {
            Some((node, last)) if *node == placed.node && last.range.end() == placed.range.base => {
                last.range.len += placed.range.len;
            }
            _ => joined.push((placed.node, Backed { range: placed.range, backing })),
        }
    }
    Ok(joined.into_iter().map(|(_, backed)| backed).collect())
}

fn check_frames(memory: &DraftMemory) -> Result<(), MachineError> {
    let numbers = [memory.at.unwrap_or(0), memory.size];
    let problem = match numbers.into_iter().find(|number| !number.is_multiple_of(layout::PAGE_SIZE)) {
        Some(number) => Problem::NotPages(Size::new(number)),
        None if memory.size == 0 => Problem::EmptyRange,
        None => return Ok(()),
    };
    Err(MachineError::at(&memory.origin, problem))
}

fn fixed(base: u64, memory: &DraftMemory, placed: &[Placed]) -> Result<Range, MachineError> {
    let refuse = |problem| Err(MachineError::at(&memory.origin, problem));
    if base.checked_add(memory.size).is_none() {
        return refuse(Problem::Wraps { base, len: Size::new(memory.size) });
    }
    let range = Range { base, len: memory.size };
    let in_hole = range.intersection(&MMIO_HOLE);
    if !in_hole.is_empty() {
        return refuse(Problem::InMmioHole(Shown(in_hole)));
    }
    for other in placed {
        let common = range.intersection(&other.range);
        if !common.is_empty() {
            return refuse(Problem::Overlap {
                range: Shown(range),
                other_range: Shown(other.range),
                other: other.origin.to_string(),
                common: Shown(common),
            });
        }
    }
    Ok(range)
}

fn lowest_free(memory: &DraftMemory, placed: &[Placed]) -> Result<Vec<Range>, MachineError> {
    let mut taken: Vec<Range> = placed.iter().map(|placed| placed.range).collect();
    taken.push(MMIO_HOLE);
    taken.push(Range { base: u64::MAX, len: 0 });
    taken.sort();
    let (mut found, mut free, mut left) = (Vec::new(), 0, memory.size);
    for taken in taken {
        let gap = Range::new(free, taken.base);
        let len = gap.len.min(left);
        if len > 0 {
            found.push(Range { base: free, len });
            left -= len;
        }
        free = taken.end();
    }
    match left {
        0 => Ok(found),
        _ => Err(MachineError::at(&memory.origin, Problem::Wraps { base: 0, len: Size::new(memory.size) })),
    }
}

/// The map that a PC's firmware gives for this RAM: sorted, without the legacy hole, with what the
/// firmware and the interrupt controllers keep.
pub(super) fn pc_map(placed: &[Placed]) -> Result<Vec<Entry>, MachineError> {
    let low = Range::new(0, layout::EBDA_START);
    let high = Range::new(layout::HIGH_RAM_START, u64::MAX);
    let mut map: Vec<Entry> = Vec::new();
    for placed in placed {
        let parts = [placed.range.intersection(&low), placed.range.intersection(&high)];
        if parts.iter().all(Range::is_empty) {
            return Err(MachineError::at(&placed.origin, Problem::AllLegacyHole(Shown(placed.range))));
        }
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            match map.last_mut() {
                Some(last) if last.fact.addr + last.fact.size == part.base => last.fact.size += part.len,
                _ => map.push(Entry {
                    fact: FactE820 { addr: part.base, size: part.len, kind: e820::RAM },
                    origin: placed.origin.clone(),
                }),
            }
        }
    }
    let Some(origin) = map.first().map(|entry| entry.origin.clone()) else { return Ok(map) };
    let firmware = [
        (layout::EBDA_START, layout::LEGACY_HOLE_START, e820::RESERVED),
        (layout::FIRMWARE_START, layout::ACPI_TABLES_END, e820::ACPI),
        (layout::ACPI_TABLES_END, layout::FIRMWARE_END, e820::RESERVED),
        (layout::IOAPIC, layout::IOAPIC + layout::IOAPIC_SIZE, e820::RESERVED),
        (layout::LAPIC, layout::LAPIC + layout::LAPIC_SIZE, e820::RESERVED),
    ];
    map.extend(firmware.into_iter().map(|(start, end, kind)| Entry {
        fact: FactE820 { addr: start, size: end - start, kind },
        origin: origin.clone(),
    }));
    map.sort_by_key(|entry| entry.fact.addr);
    Ok(map)
}

/// RAM of each node: what the effective map of `entries` leaves of the node's ranges. Refuses RAM
/// where none can be, and RAM or ranges that have no counterpart.
pub(super) fn node_memory(
    nodes: usize,
    placed: &[Placed],
    entries: &[Entry],
    bits: u32,
) -> Result<Vec<Vec<Range>>, MachineError> {
    let raw: Vec<FactE820> = entries.iter().map(|entry| entry.fact).collect();
    let ram: Vec<Range> = e820::resolve(&raw)
        .into_iter()
        .filter(|entry| entry.kind == e820::RAM)
        .map(|entry| Range { base: entry.addr, len: entry.size })
        .collect();

    for range in &ram {
        check_ram(*range, bits, entries)?;
    }
    let mut memory = vec![Vec::new(); nodes];
    for placed in placed {
        let parts: Vec<Range> =
            ram.iter().map(|ram| ram.intersection(&placed.range)).filter(|part| !part.is_empty()).collect();
        if parts.is_empty() {
            return Err(MachineError::at(&placed.origin, Problem::NoRamInRange));
        }
        if let Some(memory) = memory.get_mut(placed.node) {
            for part in parts {
                join(memory, part);
            }
        }
    }
    for range in &ram {
        if let Some(orphan) = first_gap(*range, placed.iter().map(|placed| placed.range)) {
            return Err(MachineError::at(
                &blame(entries, orphan.base),
                Problem::RamWithoutNode(Shown(orphan)),
            ));
        }
    }
    if let Some(missing) = first_gap(Range::new(0, layout::BOOT_DATA_END), ram.iter().copied()) {
        let taker = entries
            .iter()
            .rev()
            .find(|entry| entry.fact.kind != e820::RAM && covers(&entry.fact, missing.base));
        let origin = taker.map(|entry| &entry.origin).or(placed.first().map(|placed| &placed.origin));
        if let Some(origin) = origin {
            return Err(MachineError::at(origin, Problem::NoLowMemory { missing: Shown(missing) }));
        }
    }
    Ok(memory)
}

fn check_ram(range: Range, bits: u32, entries: &[Entry]) -> Result<(), MachineError> {
    let limit = Range::new(1 << bits, u64::MAX);
    let in_firmware = range.intersection(&FIRMWARE);
    let in_hole = range.intersection(&MMIO_HOLE);
    let past = range.intersection(&limit);
    if !in_firmware.is_empty() {
        Err(MachineError::at(&blame(entries, in_firmware.base), Problem::InFirmware(Shown(in_firmware))))
    } else if !in_hole.is_empty() {
        Err(MachineError::at(&blame(entries, in_hole.base), Problem::InMmioHole(Shown(in_hole))))
    } else if !past.is_empty() || range.base > limit.base {
        let problem = Problem::PastPhysBits { range: Shown(range), bits };
        Err(MachineError::at(&blame(entries, past.base), problem))
    } else {
        Ok(())
    }
}

/// The last entry that makes the byte at `addr` RAM.
fn blame(entries: &[Entry], addr: u64) -> Origin {
    let ram = |entry: &&Entry| entry.fact.kind == e820::RAM && covers(&entry.fact, addr);
    let entry = entries.iter().rev().find(ram).or(entries.first());
    entry.map_or_else(|| super::flags::origin("[[e820]]", ""), |entry| entry.origin.clone())
}

fn covers(fact: &FactE820, addr: u64) -> bool {
    fact.addr <= addr && addr - fact.addr < fact.size
}

/// Adds `part`, which lies past all of `ranges`, to its neighbour if they touch.
fn join(ranges: &mut Vec<Range>, part: Range) {
    match ranges.last_mut() {
        Some(last) if last.end() == part.base => last.len += part.len,
        _ => ranges.push(part),
    }
}

/// The first part of `range` that no range of `cover`, which is ascending and disjoint, covers.
fn first_gap(range: Range, cover: impl Iterator<Item = Range>) -> Option<Range> {
    let mut from = range.base;
    for cover in cover.filter(|cover| !cover.intersection(&range).is_empty()) {
        if cover.base > from {
            return Some(Range::new(from, cover.base));
        }
        from = cover.end();
    }
    (from < range.end()).then(|| Range::new(from, range.end()))
}
