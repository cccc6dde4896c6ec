//! /proc/zoneinfo, /proc/buddyinfo and /proc/pagetypeinfo (Linux: mm/vmstat.c).

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use guest_firmware::acpi::MAX_CPUS;
use memvisor_abi::{MIGRATE_TYPES, NR_NUMA_EVENTS, NR_ORDERS, NumaEvent, PAGEBLOCK_ORDER, PAGEBLOCK_PAGES};
use mm_core::{CpuLocal, MemMap, Migratetype, PageKind, ZoneKind};

use super::vmstat::{NodeState, ZoneState};
use super::{Out, line, put};
use crate::mm::memmap::{self, Vmemmap};
use crate::mm::page_alloc::{self, NODES, ZoneGuard, ZoneLock};
use crate::mm::pcp;
use crate::mm::vmscan::kswapd;

/// Free blocks of a list from which on /proc/pagetypeinfo stops counting.
const COUNTED: u64 = 100_000;

/// What a CPU says of its lists: count, high, batch. CPUs answer in any order, and this is too large for a stack.
struct Pageset {
    online: AtomicBool,
    words: [AtomicU32; 3],
}

static SETS: [Pageset; MAX_CPUS] =
    [const { Pageset { online: AtomicBool::new(false), words: [const { AtomicU32::new(0) }; 3] } }; MAX_CPUS];

/// The zones of a node that is online, with their indices (Linux: `walk_zones_in_node`); `populated` leaves out those
/// without frames.
fn zones(populated: bool) -> impl Iterator<Item = (usize, ZoneLock)> {
    page_alloc::zones().enumerate().filter(move |(_, lock)| {
        let (node, present) = {
            let zone = lock.lock();
            (zone.info().node, zone.info().present_pages)
        };
        NODES.lock()[node as usize].online == 1 && (!populated || present > 0)
    })
}

fn name(zone: &ZoneGuard) -> &'static str {
    ZoneKind::from_raw(zone.info().kind).map_or("?", ZoneKind::name)
}

/// Linux: `zoneinfo_show_print`.
pub fn zoneinfo(out: &mut Out<'_>) {
    let mut told = None;
    for (index, lock) in zones(false) {
        let (node, populated) = {
            let zone = lock.lock();
            line!(out, "Node {}, zone {:>8}", zone.info().node, name(&zone));
            (zone.info().node, zone.info().present_pages > 0)
        };
        // The first zone with pages speaks for the node, too (Linux: `is_zone_first_populated`).
        if populated && told != Some(node) {
            told = Some(node);
            line!(out, "  per-node stats");
            NodeState::of(node).lines(|name, value| line!(out, "      {name:<12} {value}"));
        }
        let Some(free_cma) = zone(out, &lock.lock()) else { continue };
        ZoneState::of(index).lines(|name, value| line!(out, "      {name:<12} {value}"));
        line!(out, "      nr_free_cma  {free_cma}");
        // Every CPU is asked, which must not happen under a zone's lock.
        pagesets(out, index);
        line!(out, "  node_unreclaimable:  {}", u32::from(kswapd::is_hopeless(node)));
        line!(out, "  start_pfn:           {}", lock.lock().info().start_pfn);
    }
}

/// What the zone itself says; its free pages in contiguous areas if it has any frames.
fn zone(out: &mut Out<'_>, zone: &ZoneGuard) -> Option<u64> {
    let info = zone.info();
    line!(out, "  pages free     {}", info.free_pages);
    line!(out, "        boost    {}", info.watermark_boost);
    for (name, mark) in ["min", "low", "high"].iter().zip(info.watermark) {
        line!(out, "        {name:<8} {}", mark + info.watermark_boost);
    }
    line!(out, "        spanned  {}", info.spanned_pages);
    line!(out, "        present  {}", info.present_pages);
    line!(out, "        managed  {}", info.managed_pages);
    line!(out, "        cma      {}", info.cma_pages);
    put!(out, "        protection: (");
    for (kind, pages) in info.lowmem_reserve.iter().enumerate() {
        put!(out, "{}{pages}", if kind == 0 { "" } else { ", " });
    }
    line!(out, ")");
    if info.present_pages == 0 {
        return None;
    }
    line!(out, "      nr_free_pages {}", info.free_pages);
    Some(info.nr_free_cma)
}

/// NUMA events and the lists of every CPU.
fn pagesets(out: &mut Out<'_>, index: usize) {
    let mut numa = [0_u64; NR_NUMA_EVENTS];
    for slot in &SETS {
        slot.online.store(false, Ordering::Relaxed);
    }
    pcp::Local.for_each(|number, cpu| {
        let Some(pcp) = cpu.pcps.get(index) else { return };
        if let Some(slot) = SETS.get(number as usize) {
            for (word, value) in slot.words.iter().zip([pcp.count, pcp.high, pcp.batch]) {
                word.store(value, Ordering::Relaxed);
            }
            slot.online.store(true, Ordering::Relaxed);
        }
        for (sum, count) in numa.iter_mut().zip(pcp.numa) {
            *sum = sum.wrapping_add(count);
        }
    });
    for (name, count) in NumaEvent::NAMES.iter().zip(numa) {
        line!(out, "      {name:<12} {count}");
    }
    line!(out, "  pagesets");
    for (number, slot) in SETS.iter().enumerate().filter(|(_, slot)| slot.online.load(Ordering::Relaxed)) {
        let [count, high, batch] = [0, 1, 2].map(|word: usize| slot.words[word].load(Ordering::Relaxed));
        line!(out, "    cpu: {number}");
        line!(out, "              count: {count}");
        line!(out, "              high:  {high}");
        line!(out, "              batch: {batch}");
    }
}

/// Linux: `frag_show_print`.
pub fn buddyinfo(out: &mut Out<'_>) {
    for (_, lock) in zones(true) {
        let zone = lock.lock();
        put!(out, "Node {}, zone {:>8} ", zone.info().node, name(&zone));
        for area in &zone.info().free_area {
            put!(out, "{:>6} ", area.nr_free());
        }
        line!(out);
    }
}

/// Linux: `pagetypeinfo_show`, once a node.
pub fn pagetypeinfo(out: &mut Out<'_>) {
    for node in (0..).take(page_alloc::nr_nodes()) {
        let of_node = || zones(true).map(|(_, lock)| lock).filter(|lock| lock.lock().info().node == node);
        if of_node().next().is_none() {
            continue;
        }
        line!(out, "Page block order: {PAGEBLOCK_ORDER}");
        line!(out, "Pages per block:  {PAGEBLOCK_PAGES}");
        line!(out);
        put!(out, "{:<43} ", "Free pages count per migrate type at order");
        for order in 0..NR_ORDERS {
            put!(out, "{order:>6} ");
        }
        line!(out);
        for lock in of_node() {
            free_blocks(out, &lock.lock());
        }
        put!(out, "\n{:<23}", "Number of blocks type ");
        for migratetype in Migratetype::ALL {
            put!(out, "{:>12} ", migratetype.name());
        }
        line!(out);
        for lock in of_node() {
            pageblocks(out, &lock.lock());
        }
    }
}

/// Linux: `pagetypeinfo_showfree_print`.
fn free_blocks(out: &mut Out<'_>, zone: &ZoneGuard) {
    for migratetype in Migratetype::ALL {
        put!(out, "Node {:>4}, zone {:>8}, type {:>12} ", zone.info().node, name(zone), migratetype.name());
        for area in &zone.info().free_area {
            let count = area.lists[migratetype as usize].nr_free;
            let sign = if count >= COUNTED { ">" } else { "" };
            put!(out, "{sign}{:>6} ", count.min(COUNTED));
        }
        line!(out);
    }
}

/// Linux: `pagetypeinfo_showblockcount_print`.
///
/// Differs from Linux: a pageblock belongs to the zone of its first frame that exists. Linux gives the descriptors of holes to
/// the zone around them; here they belong to none.
fn pageblocks(out: &mut Out<'_>, zone: &ZoneGuard) {
    let info = zone.info();
    let mut counts = [0_u64; MIGRATE_TYPES];
    let end = info.start_pfn + info.spanned_pages;
    // By section, not through the span: it may be holes for terabytes.
    for section in memmap::sections().iter().filter(|section| section.is_online()) {
        let (first, last) = memmap::span(section);
        if first.as_u64() >= end || last.as_u64() <= info.start_pfn {
            continue;
        }
        for number in 0..(last.as_u64() - first.as_u64()) / PAGEBLOCK_PAGES {
            let start = first.offset(number * PAGEBLOCK_PAGES);
            let frames = Vmemmap.pages(start).iter().zip(0..PAGEBLOCK_PAGES).map(|(page, _)| page);
            let page = frames.into_iter().find(|page| page.kind() != PageKind::None);
            let Some((page, block)) = page.zip(Vmemmap.pageblock(start)) else { continue };
            if (page.node(), page.zone() as u32) == (info.node, info.kind) {
                counts[block.migratetype() as usize] += 1;
            }
        }
    }
    put!(out, "Node {}, zone {:>8} ", info.node, name(zone));
    for count in counts {
        put!(out, "{count:>12} ");
    }
    line!(out);
}
