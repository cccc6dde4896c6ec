//! Zones: extents, counters, watermarks.
//!
//! Z1  `zone.extent`: every node has its zones, and their start, spanned and present pages follow
//!     from the E820 map and the nodes' ranges (DMA below 16 MiB, DMA32 below 4 GiB, Normal above,
//!     HighMem from `lowmem=` on, Movable by `movablecore=`).
//!     As in Linux a zone spans its node's extent cut at the zone's borders.
//! Z2  `zone.managed`: managed pages are present pages without those that memblock reserves.
//! Z3  `zone.free_pages`: the counter is the sum of the blocks on the zone's free lists.
//! Z4  `zone.deferred`: the counter is the number of unreserved frames in deferred sections.
//! Z5  `zone.watermark`: min <= low <= high <= managed, and each is what Linux's formulas give for the settings that the
//!     guest publishes.
//! Z6  `zone.lowmem_reserve`: reserves are what the published ratios give.
//! Z7  `zone.sysctl`: those settings are in Linux's ranges, and what the command line or Linux's defaults say until somebody
//!     changes them; low memory ends where `lowmem=` says.

use memvisor_abi::{MAX_NR_ZONES, NR_ORDERS, VmSysctl, ZoneKind};

use crate::Rule;
use crate::context::Context;
use crate::frames::{Frames, clip, count};
use crate::ledger::{Ledger, finding};
use crate::machine::{Extent, zone_index};
use crate::watermark::{Sums, Tuning, lowmem_reserves, min_free_kbytes, watermarks};

pub(crate) const EXTENT: Rule = Rule {
    name: "zone.extent",
    invariant: "start, spanned, present follow from E820 and node ranges",
    reads: "zones; E820 map, Facts.node_memory",
    seeded: &["zone-present"],
    hint: "calculate_node_totalpages: zone borders, holes",
};
pub(crate) const MANAGED: Rule = Rule {
    name: "zone.managed",
    invariant: "managed = present - reserved in memblock",
    reads: "zones, memblock_reserved; E820 map",
    seeded: &[],
    hint: "hand-over from memblock to the buddy allocator",
};
pub(crate) const FREE_PAGES: Rule = Rule {
    name: "zone.free_pages",
    invariant: "free_pages = sum of the zone's free lists",
    reads: "zones, free lists",
    seeded: &["zone-free-pages"],
    hint: "the counter's update in the free and allocation paths",
};
pub(crate) const DEFERRED: Rule = Rule {
    name: "zone.deferred",
    invariant: "deferred_pages = unreserved frames of deferred sections",
    reads: "zones, sections, memblock_reserved; E820 map",
    seeded: &[],
    hint: "bringing a section online must move its frames from deferred to free",
};
pub(crate) const WATERMARK: Rule = Rule {
    name: "zone.watermark",
    invariant: "min <= low <= high <= managed, by Linux's formulas",
    reads: "zones, vm_sysctl",
    seeded: &["zone-watermark", "stale-watermark"],
    hint: "setup_per_zone_wmarks",
};
pub(crate) const LOWMEM_RESERVE: Rule = Rule {
    name: "zone.lowmem_reserve",
    invariant: "lowmem_reserve by the ratios in force",
    reads: "zones, vm_sysctl",
    seeded: &["zone-lowmem-reserve"],
    hint: "setup_per_zone_lowmem_reserve",
};
pub(crate) const SYSCTL: Rule = Rule {
    name: "zone.sysctl",
    invariant: "settings are in range, and as told until changed",
    reads: "vm_sysctl, zones; Facts.cmdline",
    seeded: &["sysctl-user-kbytes"],
    hint: "the sysctl handlers, parsing of the command line",
};

/// Runs Z1 to Z7.
pub(crate) fn run(context: &Context<'_>, ledger: &mut Ledger) {
    let rules = [&EXTENT, &MANAGED, &FREE_PAGES, &DEFERRED, &WATERMARK, &LOWMEM_RESERVE, &SYSCTL];
    if !context.needs_zones(ledger, &rules) {
        return;
    }
    extents(context, ledger);
    counters(context, ledger);
    watermark(context, ledger);
    lowmem_reserve(context, ledger);
    sysctl(context, ledger);
}

/// "node 0 DMA32", whatever the table says of itself.
pub(crate) fn zone_name(index: usize) -> String {
    format!("node {} {}", index / MAX_NR_ZONES, zone_kind(index).name())
}

/// Kind of a zone by its place in the table.
pub(crate) fn zone_kind(index: usize) -> ZoneKind {
    ZoneKind::ALL.get(index % MAX_NR_ZONES).copied().unwrap_or(ZoneKind::Movable)
}

/// Node of a zone by its place in the table.
pub(crate) fn zone_node(index: usize) -> u32 {
    u32::try_from(index / MAX_NR_ZONES).unwrap_or(u32::MAX)
}

fn extents(context: &Context<'_>, ledger: &mut Ledger) {
    for &node in &context.machine.nodes {
        let missing = zone_index(node, ZoneKind::Movable) >= context.zones.len();
        if missing && context.machine.node(node).present > 0 {
            let what = finding(&EXTENT, format_args!("node {node}"), "no zones", "it has memory");
            ledger.report(&EXTENT, what);
        }
    }
    for (index, zone) in context.zones.iter().enumerate() {
        ledger.checked(&EXTENT, 1);
        let (node, kind) = (zone_node(index), zone_kind(index));
        if (zone.node, zone.kind) != (node, kind as u32) {
            let claim = format!("node {} kind {}", zone.node, zone.kind);
            let what = finding(&EXTENT, zone_name(index), claim, format!("node {node} kind {}", kind as u32));
            ledger.report(&EXTENT, what);
        }
        let guest =
            Extent { start: zone.start_pfn, spanned: zone.spanned_pages, present: zone.present_pages };
        let wanted = context.machine.zone(node, kind);
        if guest != wanted {
            let text = |extent: Extent| {
                format!("start {:#x} spanned {} present {}", extent.start, extent.spanned, extent.present)
            };
            ledger.report(&EXTENT, finding(&EXTENT, zone_name(index), text(guest), text(wanted)));
        }
    }
}

/// Frames of `set` (normalized) that memblock does not reserve.
fn unreserved(context: &Context<'_>, set: &[Frames]) -> u64 {
    let reserved = |range: &Frames| clip(&context.reserved, *range).map(Frames::len).sum::<u64>();
    count(set) - set.iter().map(reserved).sum::<u64>()
}

fn counters(context: &Context<'_>, ledger: &mut Ledger) {
    let deferred = context.deferred();
    let mut listed = vec![0_u64; context.zones.len()];
    let mut torn = vec![false; context.zones.len()];
    for list in &context.free_lists {
        // What is isolated is on a list, but not free.
        let isolated = list.migratetype == memvisor_abi::Migratetype::Isolate;
        let pages = if isolated { 0 } else { (list.blocks.len() as u64) << list.order.min(NR_ORDERS) };
        if let (Some(sum), Some(torn)) = (listed.get_mut(list.zone_index), torn.get_mut(list.zone_index)) {
            *sum = sum.saturating_add(pages);
            *torn |= crate::buddy::breaks_the_walk(list);
        }
    }
    for (index, (zone, (&listed, &torn))) in context.zones.iter().zip(listed.iter().zip(&torn)).enumerate() {
        let ram = context.machine.zone_ram(zone_node(index), zone_kind(index));
        let name = zone_name(index);
        let managed = unreserved(context, &ram);
        ledger.expect_eq(&MANAGED, format_args!("{name}: managed pages"), zone.managed_pages, managed);
        let waiting: Vec<Frames> = ram.iter().flat_map(|&range| clip(&deferred, range)).collect();
        let waiting = unreserved(context, &waiting);
        ledger.expect_eq(&DEFERRED, format_args!("{name}: deferred pages"), zone.deferred_pages, waiting);
        // A list that cannot be walked to its end has no sum; buddy.list reports it.
        if !torn {
            ledger.expect_eq(&FREE_PAGES, format_args!("{name}: free pages"), zone.free_pages, listed);
        }
    }
}

/// What the guest says that watermarks follow from; what it was told, if it says nothing.
fn tuning(context: &Context<'_>) -> Tuning {
    let told = || context.facts.map(|facts| Tuning::of(&facts.cmdline)).unwrap_or_default();
    context.vm_sysctl.as_ref().map_or_else(told, Tuning::published)
}

/// Whether the direct map does not reach a zone.
fn is_high(context: &Context<'_>, index: usize) -> bool {
    let extent = context.machine.zone(zone_node(index), zone_kind(index));
    extent.spanned > 0 && extent.start >= context.machine.borders.lowmem_end
}

fn sums(context: &Context<'_>) -> Sums {
    let mut sums = Sums::default();
    for (index, zone) in context.zones.iter().enumerate() {
        if !is_high(context, index) {
            sums.low = sums.low.saturating_add(zone.managed_pages);
        }
        if zone_kind(index) <= ZoneKind::Normal {
            sums.buffer = sums.buffer.saturating_add(zone.managed_pages);
        }
    }
    sums
}

fn watermark(context: &Context<'_>, ledger: &mut Ledger) {
    let (tuning, sums) = (tuning(context), sums(context));
    for (index, zone) in context.zones.iter().enumerate() {
        ledger.checked(&WATERMARK, 1);
        let [min, low, high] = zone.watermark;
        let wanted = watermarks(zone.managed_pages, is_high(context, index), sums, &tuning);
        let text = |[min, low, high]: [u64; 3]| format!("min {min} low {low} high {high}");
        if zone.watermark != wanted {
            let what = finding(&WATERMARK, zone_name(index), text(zone.watermark), text(wanted));
            ledger.report(&WATERMARK, what);
        } else if !(min <= low && low <= high && high <= zone.managed_pages) {
            let claim = text(zone.watermark);
            let managed = format!("they must ascend up to {} managed pages", zone.managed_pages);
            ledger.report(&WATERMARK, finding(&WATERMARK, zone_name(index), claim, managed).warning());
        }
    }
}

fn lowmem_reserve(context: &Context<'_>, ledger: &mut Ledger) {
    let ratios = tuning(context).ratios;
    for (node, zones) in context.zones.chunks(MAX_NR_ZONES).enumerate() {
        let mut managed = [0; MAX_NR_ZONES];
        for (cell, zone) in managed.iter_mut().zip(zones) {
            *cell = zone.managed_pages;
        }
        for (kind, (zone, wanted)) in zones.iter().zip(lowmem_reserves(managed, ratios)).enumerate() {
            ledger.checked(&LOWMEM_RESERVE, 1);
            if zone.lowmem_reserve != wanted {
                let name = zone_name(node * MAX_NR_ZONES + kind);
                let (guest, wanted) = (format!("{:?}", zone.lowmem_reserve), format!("{wanted:?}"));
                ledger.report(&LOWMEM_RESERVE, finding(&LOWMEM_RESERVE, name, guest, wanted));
            }
        }
    }
}

fn sysctl(context: &Context<'_>, ledger: &mut Ledger) {
    let Some(sysctl) = &context.vm_sysctl else {
        ledger.skip(&SYSCTL, "the guest publishes no settings");
        return;
    };
    ledger.checked(&SYSCTL, 2);
    let mut report = |what: &str, claim: String, outside: String| {
        ledger.report(&SYSCTL, finding(&SYSCTL, what, claim, outside));
    };
    let published = Tuning::published(sysctl);
    if !published.is_possible() {
        report("settings", format!("{published:?}"), "no kernel can have these".to_owned());
    }
    let lowmem_end = context.machine.borders.lowmem_end;
    if sysctl.lowmem_end_pfn != lowmem_end {
        let (claim, outside) = (format!("{:#x}", sysctl.lowmem_end_pfn), format!("{lowmem_end:#x}"));
        report("the end of low memory", claim, outside);
    }
    let user = (sysctl.user_min_free_kbytes != VmSysctl::NOBODY).then_some(sysctl.user_min_free_kbytes);
    if user.is_some_and(|user| user != sysctl.min_free_kbytes) {
        let claim = format!("min_free_kbytes {}", sysctl.min_free_kbytes);
        report("settings", claim, format!("somebody asked for {}", sysctl.user_min_free_kbytes));
    }
    // Until somebody changes them they are what the guest was told.
    let Some(facts) = context.facts.filter(|_| sysctl.changes == 0) else { return };
    let mut told = Tuning::of(&facts.cmdline);
    told.min_free_kbytes =
        Some(told.min_free_kbytes.unwrap_or_else(|| min_free_kbytes(sums(context).buffer.saturating_mul(4))));
    if published != told {
        report("settings that nobody changed", format!("{published:?}"), format!("{told:?}"));
    }
}
