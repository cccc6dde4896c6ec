//! /proc/zoneinfo of a stock Linux against the machine and the formulas that audit our own guest (docs/zones.md).

use memvisor_abi::{PAGE_SIZE, ZoneKind};
use memvisor_check::{LINUX_DEFAULTS, ZoneNumbers, linux_min_free_kbytes, zone_numbers};
use memvisor_inspect::{FactE820, FactNodeMemory, Facts};

use super::said::{Said, SaidZone};
use crate::machine::Range;

/// Linux's zones in its order, and the fifth of its protection: ours has HighMem where Linux has none.
const LINUX_ZONES: [ZoneKind; 4] = [ZoneKind::Dma, ZoneKind::Dma32, ZoneKind::Normal, ZoneKind::Movable];

/// Compares every zone's start, span, present pages, watermarks and protection. What the zones manage is taken from Linux
/// itself: how much it reserves at boot depends on its build, and [`super::compare_memory`] accounts for that to the KiB.
pub(super) fn compare(ranges: &[(u32, Range)], said: &Said) -> Vec<String> {
    let mut problems = settings(said);
    let Some(&kbytes) = said.vm.get("min_free_kbytes") else { return problems };
    let managed = |node: u32, kind: ZoneKind| {
        let zone = said.zones.iter().find(|zone| zone.node == node && zone.name == kind.name());
        zone.map_or(0, |zone| zone.pages[3])
    };
    let wanted = zone_numbers(&facts(ranges), kbytes, managed);
    for zone in &wanted {
        let name = ZoneKind::ALL.get(zone.kind).map_or("?", |kind| kind.name());
        let place = format!("zone {name} of node {}", zone.node);
        let Some(seen) = said.zones.iter().find(|seen| seen.node == zone.node && seen.name == name) else {
            problems.push(format!("{place}: Linux has none"));
            continue;
        };
        let (built, linux) = (numbers(zone), seen_numbers(seen));
        if built != linux {
            problems.push(format!("{place}: computed {built}; Linux says {linux}"));
        }
    }
    if said.zones.len() != wanted.len() {
        problems.push(format!("{} zones have memory, Linux has {}", wanted.len(), said.zones.len()));
    }
    problems
}

/// The settings are Linux's defaults, and the minimum is computed from the size of memory: at boot, before the memory was given
/// back that only boot needed.
fn settings(said: &Said) -> Vec<String> {
    let mut problems = Vec::new();
    let defaults = [
        ("watermark_scale_factor", LINUX_DEFAULTS.watermark_scale_factor),
        ("lowmem_reserve_ratio", LINUX_DEFAULTS.lowmem_reserve_ratio[0]),
    ];
    for (name, default) in defaults {
        let seen = said.vm.get(name).copied();
        if seen != Some(default.into()) {
            problems.push(format!("vm.{name}: {default} expected, Linux has {seen:?}"));
        }
    }
    let pages: u64 = said.zones.iter().map(|zone| zone.pages[3]).sum();
    let high: u64 = said.zones.iter().map(|zone| zone.pages[6]).sum();
    let zones = said.zones.len() as u64;
    let freed = said.freed_kib * 1024 / PAGE_SIZE;
    let least = linux_min_free_kbytes(pages.saturating_sub(freed + high), zones);
    let most = linux_min_free_kbytes(pages, zones);
    match said.vm.get("min_free_kbytes") {
        Some(kbytes) if (least..=most).contains(kbytes) => {}
        seen => problems.push(format!("vm.min_free_kbytes: {least} to {most} expected, Linux has {seen:?}")),
    }
    problems
}

/// A machine of just these ranges, as Linux uses its memory.
fn facts(ranges: &[(u32, Range)]) -> Facts {
    let ram = |range: &Range| FactE820 { addr: range.base, size: range.len, kind: 1 };
    Facts {
        e820: ranges.iter().map(|(_, range)| ram(range)).collect(),
        node_memory: ranges
            .iter()
            .map(|(node, range)| FactNodeMemory { node: *node, base: range.base, len: range.len })
            .collect(),
        ..Facts::default()
    }
}

fn text(extent: [u64; 3], marks: [u64; 3], protection: [u64; 4]) -> String {
    let [start, spanned, present] = extent;
    let [min, low, high] = marks;
    format!(
        "start {start:#x} spanned {spanned} present {present} min {min} low {low} high {high} protection {protection:?}"
    )
}

fn numbers(zone: &ZoneNumbers) -> String {
    let reserve = |kind: ZoneKind| zone.lowmem_reserve.get(kind as usize).copied().unwrap_or(0);
    text([zone.start_pfn, zone.spanned, zone.present], zone.watermark, LINUX_ZONES.map(reserve))
}

fn seen_numbers(zone: &SaidZone) -> String {
    let [start, spanned, present, _, min, low, high] = zone.pages;
    let mut protection = [0; 4];
    for (cell, pages) in protection.iter_mut().zip(&zone.protection) {
        *cell = *pages;
    }
    text([start, spanned, present], [min, low, high], protection)
}
