//! From memblock to zones: extents, free frames, zonelists, the lengths of the CPUs' lists.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use memvisor_abi::{MAX_NUMNODES, Node, Watermark, Zonelist, ZonelistOrder};
use mm_core::{CpuLocal, Pfn, ZoneKind};
use mm_page_alloc::{
    NodeState, build_zonelist, fallback_order, set_high_and_batch, zone_batchsize, zone_extents,
    zone_highsize,
};

use super::zones::{NO_NODE, NODES, NR_NODES, ONLINE_NODES, ZONES, zone, zones};
use crate::drivers::memvisor;
use crate::mm::memmap::{self, Vmemmap};
use crate::mm::{cma, early, limits, pcp, sysctl, vmscan, vmstat};
use crate::{cmdline, pr_warn, topology};

/// One CPU at a time brings sections online.
static GROWING: AtomicU32 = AtomicU32::new(0);

/// Builds nodes and zones from memblock and the topology, and brings the sections online that are
/// needed at once (Linux: `free_area_init`, `memblock_free_all`).
pub fn init() {
    let count = topology::nr_nodes();
    NR_NODES.store(count, Ordering::Relaxed);
    decide_fresh_is_zero();
    limits::init_movable();
    for node in 0..u32::try_from(count).unwrap_or(0) {
        init_node(node);
    }
    pcp::init(count, build_zonelists);
    vmscan::init();
    vmstat::init(count);
    let fraction =
        cmdline::number("percpu_pagelist_high_fraction").and_then(|number| u32::try_from(number).ok());
    PCP_HIGH_FRACTION.store(fraction.unwrap_or(0), Ordering::Relaxed);
    cma::init();
    count_managed();
    sysctl::init();
    size_pcps();
    for index in 0..memmap::sections().len() {
        if memmap::is_needed(&memmap::sections()[index]) {
            memmap::bring_online(index);
        }
    }
    cma::bring_online();
}

fn init_node(node: u32) {
    let memblock = early::MEMBLOCK.lock();
    let extents = zone_extents(memblock.memory(), node, limits::of(node));
    let mut info = Node { id: node, ..NO_NODE };
    let ranges = || memblock.mem_pfn_ranges(Some(node));
    if let (Some(first), Some(end)) = (ranges().map(|r| r.0).min(), ranges().map(|r| r.1).max()) {
        info.start_pfn = first.as_u64();
        info.spanned_pages = end.as_u64() - first.as_u64();
        info.present_pages = ranges().map(|(start, end, _)| end.as_u64() - start.as_u64()).sum();
    }
    drop(memblock);
    info.online = u32::from(info.present_pages > 0 || topology::cpus_of(node) > 0);
    NODES.lock()[node as usize] = info;
    ONLINE_NODES.fetch_add(info.online as usize, Ordering::Relaxed);
    for (kind, extent) in ZoneKind::ALL.into_iter().zip(extents) {
        zone(node, kind).lock().set_extent(extent.start_pfn, extent.spanned, extent.present);
    }
}

/// Every free frame is managed, and deferred until its section is online.
fn count_managed() {
    memmap::for_each_free(Pfn::new(0), Pfn::new(u64::MAX), |first, last, node| {
        limits::of(node).for_each_part(first, last, |first, last, kind| {
            let pages = last.as_u64() - first.as_u64();
            let mut zone = zone(node, kind).lock();
            zone.add_managed(pages);
            zone.info_mut().deferred_pages += pages;
        });
    });
}

/// Whether RAM that nobody wrote to is zero. memvisor promises that of the RAM that it makes; what firmware or
/// another kernel left in a machine of others is unknown, unless `fresh_ram=zero` says so. `fresh_ram=unknown` turns it
/// off.
fn fresh_is_zero() -> bool {
    FRESH_IS_ZERO.load(Ordering::Relaxed)
}
static FRESH_IS_ZERO: AtomicBool = AtomicBool::new(false);

fn decide_fresh_is_zero() {
    let word = cmdline::value("fresh_ram", |value| match value {
        "zero" => Some(true),
        "unknown" => Some(false),
        _ => None,
    });
    if word == Some(None) {
        pr_warn!("page_alloc: fresh_ram= takes zero or unknown");
    }
    FRESH_IS_ZERO.store(word.flatten().unwrap_or_else(memvisor::present), Ordering::Relaxed);
}

/// Gives free frames to their zone.
pub fn hand_over(node: u32, kind: ZoneKind, start: Pfn, end: Pfn) {
    let mut zone = zone(node, kind).lock();
    let outcome = if fresh_is_zero() {
        zone.free_zero_range(&Vmemmap, start, end)
    } else {
        zone.free_range(&Vmemmap, start, end)
    };
    if let Err(error) = outcome {
        panic!("handing frames {start}..{end} to node {node} zone {}: {error}", kind.name());
    }
    zone.info_mut().deferred_pages -= end.as_u64() - start.as_u64();
}

/// Brings the next deferred section with frames of that zone online (Linux: `deferred_grow_zone`).
pub(super) fn grow(node: u32, kind: ZoneKind) -> bool {
    while GROWING.swap(1, Ordering::Acquire) == 1 {
        core::hint::spin_loop();
    }
    let (start, end) = {
        let zone = zone(node, kind).lock();
        (zone.info().start_pfn, zone.info().start_pfn + zone.info().spanned_pages)
    };
    let next = memmap::sections().iter().position(|section| {
        let (first, last) = memmap::span(section);
        !section.is_online() && first.as_u64() < end && last.as_u64() > start
    });
    if let Some(index) = next {
        memmap::bring_online(index);
    }
    GROWING.store(0, Ordering::Release);
    next.is_some()
}

/// Linux: `build_all_zonelists`, with `numa_zonelist_order=` of Linux before 4.14.
fn build_zonelists(lists: &mut [Zonelist]) {
    let count = lists.len();
    let order = cmdline::value("numa_zonelist_order", |value| match value {
        "zone" | "Zone" | "z" | "Z" => Some(ZonelistOrder::Zone),
        "node" | "Node" | "n" | "N" | "default" | "d" | "D" => Some(ZonelistOrder::Node),
        _ => None,
    });
    if order == Some(None) {
        pr_warn!("page_alloc: numa_zonelist_order= takes node or zone; node is used");
    }
    let order = order.flatten().unwrap_or_default();
    let mut states = [NodeState::default(); MAX_NUMNODES];
    for (node, state) in (0..).zip(&mut states[..count]) {
        state.has_memory = NODES.lock()[node as usize].present_pages > 0;
        state.has_cpus = topology::cpus_of(node) > 0;
    }
    for (node, list) in (0..).zip(lists) {
        let mut nodes = [0; MAX_NUMNODES];
        let len = topology::with_distances(|distances| {
            fallback_order(node, distances, count, &mut states[..count], &mut nodes)
        });
        build_zonelist(list, node, &nodes[..len], order, |zone| ZONES[zone].lock().info().present_pages > 0);
    }
}

/// Sizes every CPU's lists, before the other CPUs run (Linux: `setup_per_cpu_pageset`).
fn size_pcps() {
    for (index, _) in zones().enumerate() {
        if let Some((high, batch)) = pcp_limits(index) {
            pcp::for_each_at_boot(index, |pcp| set_high_and_batch(pcp, high, batch));
        }
    }
}

/// Sizes the lists of every CPU anew, each by its own CPU, because watermarks changed (Linux: `zone_pcp_update`). What is
/// too long then shrinks with the next free.
pub fn resize_pcps() {
    pcp::Local.for_each(|_, cpu| {
        for (index, pcp) in cpu.pcps.iter_mut().enumerate() {
            if let Some((high, batch)) = pcp_limits(index) {
                set_high_and_batch(pcp, high, batch);
            }
        }
    });
}

/// How many pages a CPU may keep of a zone, and how many it moves at once; `None` for an empty zone (Linux:
/// `zone_set_pageset_high_and_batch`).
fn pcp_limits(index: usize) -> Option<(u32, u32)> {
    let (node, managed, low) = {
        let zone = ZONES[index].lock();
        let info = zone.info();
        (info.node, info.managed_pages, info.watermark[Watermark::Low as usize])
    };
    let fraction = PCP_HIGH_FRACTION.load(Ordering::Relaxed);
    let near = topology::cpus_of(node);
    let cpus = u32::try_from(if near == 0 { topology::CPUS.lock().count } else { near }).unwrap_or(1);
    let batch = zone_batchsize(managed).max(1);
    (managed > 0).then(|| (zone_highsize(managed, low, batch, cpus, fraction), batch))
}

/// `percpu_pagelist_high_fraction=`.
static PCP_HIGH_FRACTION: AtomicU32 = AtomicU32::new(0);
