//! What memvisor cannot build as it is on a real machine, and what is done about it. Every change is reported.
//!
//! F1  0..0x90000 is RAM: boot data and the start page of application processors lie there. Real firmware keeps
//!     pieces of it.
//! F2  0xe0000..0x100000 is not RAM, and the map says so: memvisor's ACPI tables lie there.
//! F3  The hole for devices below 4 GiB is fixed; RAM in it becomes reserved.
//! F4  RAM ends at 52 physical address bits, at 46 with 4 levels of paging.
//! F5  There are limits to the numbers of CPUs and nodes.

use memvisor_inspect::FactE820;

use super::claims::Remark;
use super::map::kind_at;
use super::shape::Shape;
use crate::machine::{Range, Size, e820, layout};

/// Applies F1 to F4 to a memory map.
pub(super) fn fit_map(map: Vec<FactE820>, remarks: &mut Vec<Remark>) -> Vec<FactE820> {
    let mut map = low_memory(map, remarks);
    let mut drop_ram = |range: Range, into: Option<u32>, why: &str| {
        let lost = retype(&mut map, range, into);
        if lost > 0 {
            remarks.push(Remark::Adapted(format!(
                "{} of RAM in {:#x}..{:#x} {why}",
                Size::new(lost),
                range.base,
                range.end()
            )));
        }
    };
    let firmware = Range::new(layout::FIRMWARE_START, layout::FIRMWARE_END);
    drop_ram(firmware, Some(e820::RESERVED), "became reserved: memvisor's ACPI tables lie there");
    let hole = Range::new(layout::MMIO_HOLE_START, layout::MMIO_HOLE_END);
    drop_ram(hole, Some(e820::RESERVED), "became reserved: memvisor keeps that hole for devices");
    let past = Range::new(1 << layout::PHYS_BITS_5_LEVEL, u64::MAX);
    drop_ram(past, None, "is past 52 physical address bits and was left out");
    let clear = e820::resolve(&map);
    let named = |page: u64| kind_at(&clear, firmware.base + page * layout::PAGE_SIZE) != 0;
    if !(0..firmware.len / layout::PAGE_SIZE).all(named) {
        let entry = FactE820 { addr: firmware.base, size: firmware.len, kind: e820::RESERVED };
        let behind = map.iter().position(|other| other.addr > entry.addr).unwrap_or(map.len());
        map.insert(behind, entry);
        remarks.push(Remark::Adapted(
            "0xe0000..0x100000 became reserved: memvisor's ACPI tables lie there".to_owned(),
        ));
    }
    map
}

/// F1.
fn low_memory(map: Vec<FactE820>, remarks: &mut Vec<Remark>) -> Vec<FactE820> {
    let low = Range::new(0, layout::BOOT_DATA_END);
    let clear = e820::resolve(&map);
    let missing: Vec<String> = clear
        .iter()
        .filter(|entry| entry.kind != e820::RAM)
        .map(|entry| Range { base: entry.addr, len: entry.size }.intersection(&low))
        .filter(|part| !part.is_empty())
        .map(|part| format!("{:#x}..{:#x}", part.base, part.end()))
        .collect();
    let all = clear
        .first()
        .is_some_and(|first| first.kind == e820::RAM && first.addr == 0 && first.size >= low.len);
    if all {
        return map;
    }
    let what = if missing.is_empty() { "a hole".to_owned() } else { missing.join(", ") };
    remarks.push(Remark::Adapted(format!(
        "0..{:#x} became RAM throughout, {what} in it included: memvisor's boot data lies there",
        low.end()
    )));
    let mut first = FactE820 { addr: 0, size: low.len, kind: e820::RAM };
    let mut rest = Vec::new();
    for entry in map {
        let end = entry.addr.saturating_add(entry.size);
        if entry.addr >= low.end() {
            rest.push(entry);
        } else if end > low.end() && entry.kind == e820::RAM {
            first.size = first.size.max(end);
        } else if end > low.end() {
            rest.push(FactE820 { addr: low.end(), size: end - low.end(), kind: entry.kind });
        }
    }
    rest.insert(0, first);
    rest
}

/// Makes RAM entries inside `range` another type, or drops that part. Returns how many bytes it were.
fn retype(map: &mut Vec<FactE820>, range: Range, into: Option<u32>) -> u64 {
    let mut changed = 0_u64;
    let mut result = Vec::new();
    for entry in map.drain(..) {
        let whole = Range::new(entry.addr, entry.addr.saturating_add(entry.size));
        let inside = whole.intersection(&range);
        if entry.kind != e820::RAM || inside.is_empty() {
            result.push(entry);
            continue;
        }
        // Entries of a broken map may overlap and sum to more than there are addresses.
        changed = changed.saturating_add(inside.len);
        let before = (Range::new(whole.base, inside.base), Some(e820::RAM));
        let behind = (Range::new(inside.end(), whole.end()), Some(e820::RAM));
        for (part, kind) in [before, (inside, into), behind] {
            if let (false, Some(kind)) = (part.is_empty(), kind) {
                result.push(FactE820 { addr: part.base, size: part.len, kind });
            }
        }
    }
    *map = result;
    changed
}

/// F5 for CPUs: those past the limit go. Too many nodes are refused later, by name.
pub(super) fn fit_cpus(shape: &mut Shape, remarks: &mut Vec<Remark>) {
    let mut lost = 0;
    for node in &mut shape.nodes {
        let before = node.cpus.len();
        node.cpus.retain(|cpu| *cpu < layout::MAX_CPUS);
        lost += before - node.cpus.len();
    }
    if lost > 0 {
        remarks.push(Remark::Adapted(format!("{lost} CPUs past {} were left out", layout::MAX_CPUS)));
    }
}
