//! /proc/zoneinfo, /proc/buddyinfo and /proc/pagetypeinfo.

use std::fmt::{self, Write};

use memvisor_abi::{Migratetype, NR_ORDERS, NumaEvent, PAGEBLOCK_ORDER, PAGEBLOCK_PAGES, Zone};

use super::counts::Counts;
use super::online;
use crate::views::events::{NumastatRow, NumastatView};
use crate::views::pcp::{PcpRow, PcpView};
use crate::views::zones::{ZoneRow, ZonesView, zone_name};
use crate::views::{BuddyView, PagetypesView};
use crate::{Guest, GuestError, MemorySource};

/// Free blocks of a list from which on /proc/pagetypeinfo stops counting.
const COUNTED: u64 = 100_000;

/// What /proc/zoneinfo is made of.
pub(super) struct Zoneinfo {
    /// All zones, empty ones too.
    zones: Vec<Zone>,
    online: Vec<u32>,
    rows: Vec<ZoneRow>,
    pagesets: Vec<PcpRow>,
    numa: Vec<NumastatRow>,
    counts: Option<Counts>,
}

impl Zoneinfo {
    pub(super) fn read<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<Zoneinfo, GuestError> {
        Ok(Zoneinfo {
            zones: guest.zones()?,
            online: online(guest)?,
            rows: ZonesView::new(guest)?.zones,
            pagesets: PcpView::new(guest)?.pagesets,
            numa: NumastatView::new(guest)?.zones,
            counts: Counts::read(guest)?,
        })
    }
}

/// Without `node_unreclaimable`: which kswapd gave up is not published.
pub(super) fn zoneinfo(text: &mut String, all: &Zoneinfo) -> fmt::Result {
    let mut told = None;
    for (index, zone) in all.zones.iter().enumerate().filter(|(_, zone)| all.online.contains(&zone.node)) {
        let name = zone_name(zone.kind);
        let is = |node: u32, zone_name: &str| node == zone.node && zone_name == name;
        writeln!(text, "Node {}, zone {name:>8}", zone.node)?;
        let row = all.rows.iter().find(|row| is(row.node, row.zone));
        if row.is_some_and(|row| row.present != 0) && told != Some(zone.node) {
            told = Some(zone.node);
            if let Some(counts) = &all.counts {
                writeln!(text, "  per-node stats")?;
                for (name, value) in counts.node(zone.node as usize) {
                    writeln!(text, "      {name:<12} {value}")?;
                }
            }
        }
        let count = |of: fn(&ZoneRow) -> u64| row.map_or(0, of);
        writeln!(text, "  pages free     {}", count(|row| row.free))?;
        writeln!(text, "        boost    {}", count(|row| row.boost))?;
        writeln!(text, "        min      {}", count(|row| row.min + row.boost))?;
        writeln!(text, "        low      {}", count(|row| row.low + row.boost))?;
        writeln!(text, "        high     {}", count(|row| row.high + row.boost))?;
        writeln!(text, "        spanned  {}", count(|row| row.spanned))?;
        writeln!(text, "        present  {}", count(|row| row.present))?;
        writeln!(text, "        managed  {}", count(|row| row.managed))?;
        writeln!(text, "        cma      {}", count(|row| row.cma))?;
        let protection = row.map_or_else(|| zone.lowmem_reserve.to_vec(), |row| row.lowmem_reserve.clone());
        let protection: Vec<String> = protection.iter().map(u64::to_string).collect();
        writeln!(text, "        protection: ({})", protection.join(", "))?;
        let Some(row) = row.filter(|row| row.present != 0) else { continue };
        writeln!(text, "      nr_free_pages {}", row.free)?;
        for (name, value) in all.counts.iter().flat_map(|counts| counts.zone(index)) {
            writeln!(text, "      {name:<12} {value}")?;
        }
        writeln!(text, "      nr_free_cma  {}", row.free_cma)?;
        let numa = all.numa.iter().find(|numa| is(numa.node, numa.zone));
        for (name, count) in NumaEvent::NAMES.iter().zip(numa.map_or([0; _], |numa| numa.events)) {
            writeln!(text, "      {name:<12} {count}")?;
        }
        writeln!(text, "  pagesets")?;
        for set in all.pagesets.iter().filter(|set| is(set.node, set.zone)) {
            writeln!(text, "    cpu: {}", set.cpu)?;
            writeln!(text, "              count: {}", set.found)?;
            writeln!(text, "              high:  {}", set.high)?;
            writeln!(text, "              batch: {}", set.batch)?;
        }
        writeln!(text, "  start_pfn:           {}", row.start_pfn)?;
    }
    Ok(())
}

pub(super) fn buddyinfo(text: &mut String, view: &BuddyView, online: &[u32]) -> fmt::Result {
    for row in view.zones.iter().filter(|row| online.contains(&row.node)) {
        write!(text, "Node {}, zone {:>8} ", row.node, row.zone)?;
        for blocks in &row.blocks {
            write!(text, "{blocks:>6} ")?;
        }
        writeln!(text)?;
    }
    Ok(())
}

pub(super) fn pagetypeinfo(text: &mut String, view: &PagetypesView, online: &[u32]) -> fmt::Result {
    for node in online {
        let rows = || view.zones.iter().filter(|row| row.node == *node);
        if rows().next().is_none() {
            continue;
        }
        writeln!(text, "Page block order: {PAGEBLOCK_ORDER}")?;
        writeln!(text, "Pages per block:  {PAGEBLOCK_PAGES}\n")?;
        write!(text, "{:<43} ", "Free pages count per migrate type at order")?;
        for order in 0..NR_ORDERS {
            write!(text, "{order:>6} ")?;
        }
        writeln!(text)?;
        for row in rows() {
            for of_type in &row.types {
                let name = of_type.migratetype;
                write!(text, "Node {node:>4}, zone {:>8}, type {name:>12} ", row.zone)?;
                for &blocks in &of_type.blocks {
                    let sign = if blocks >= COUNTED { ">" } else { "" };
                    write!(text, "{sign}{:>6} ", blocks.min(COUNTED))?;
                }
                writeln!(text)?;
            }
        }
        write!(text, "\n{:<23}", "Number of blocks type ")?;
        for migratetype in Migratetype::ALL {
            write!(text, "{:>12} ", migratetype.name())?;
        }
        writeln!(text)?;
        for row in rows() {
            write!(text, "Node {node}, zone {:>8} ", row.zone)?;
            for of_type in &row.types {
                write!(text, "{:>12} ", of_type.pageblocks)?;
            }
            writeln!(text)?;
        }
    }
    Ok(())
}
