//! The memory files of Linux's /proc as they must read, made from the other views: what a guest prints of itself can be
//! compared with it, line by line.
//!
//! Counters of what our kernel does not have are left out, as in its own text.

use std::fmt::{self, Write};

use memvisor_abi::{Migratetype, NR_ORDERS, NumaEvent, PAGEBLOCK_ORDER, PAGEBLOCK_PAGES, SlabKind, Zone};
use serde::Serialize;

use super::buddy::BuddyView;
use super::events::{NumastatRow, NumastatView, VmstatView};
use super::pagetypes::PagetypesView;
use super::pcp::{PcpRow, PcpView};
use super::vmalloc::VmallocView;
use super::zones::{ZoneRow, ZonesView, zone_name};
use crate::{Guest, GuestError, MemorySource, Slabs, cache_name};

/// Free blocks of a list from which on /proc/pagetypeinfo stops counting.
const COUNTED: u64 = 100_000;

/// `inspect proc NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProcView {
    /// Name in /proc.
    pub name: &'static str,
    /// Its text.
    pub text: String,
}

impl ProcView {
    /// The files that there are.
    pub const NAMES: [&'static str; 6] =
        ["zoneinfo", "buddyinfo", "pagetypeinfo", "vmstat", "slabinfo", "vmallocinfo"];

    /// Makes the file of that name; `None` if there is none.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(
        guest: &Guest<'_, S>,
        name: &str,
    ) -> Result<Option<ProcView>, GuestError> {
        let Some(name) = ProcView::NAMES.into_iter().find(|known| *known == name) else { return Ok(None) };
        let mut text = String::new();
        // A String takes all that is written to it.
        let _ = match name {
            "zoneinfo" => zoneinfo(&mut text, &Zoneinfo::read(guest)?),
            "buddyinfo" => buddyinfo(&mut text, &BuddyView::new(guest)?, &online(guest)?),
            "pagetypeinfo" => pagetypeinfo(&mut text, &PagetypesView::new(guest)?, &online(guest)?),
            "vmstat" => {
                let (numa, events) = (NumastatView::new(guest)?, VmstatView::new(guest)?);
                vmstat(&mut text, &ZonesView::new(guest)?, &numa, &events)
            }
            "slabinfo" => slabinfo(&mut text, &guest.slabs()?),
            _ => vmallocinfo(&mut text, &VmallocView::new(guest)?),
        };
        Ok(Some(ProcView { name, text }))
    }
}

impl fmt::Display for ProcView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Nodes that are online, whose zones the files list.
fn online<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<Vec<u32>, GuestError> {
    Ok(guest.nodes()?.iter().filter(|node| node.online == 1).map(|node| node.id).collect())
}

/// What /proc/zoneinfo is made of.
struct Zoneinfo {
    /// All zones, empty ones too.
    zones: Vec<Zone>,
    online: Vec<u32>,
    rows: Vec<ZoneRow>,
    pagesets: Vec<PcpRow>,
    numa: Vec<NumastatRow>,
}

impl Zoneinfo {
    fn read<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<Zoneinfo, GuestError> {
        Ok(Zoneinfo {
            zones: guest.zones()?,
            online: online(guest)?,
            rows: ZonesView::new(guest)?.zones,
            pagesets: PcpView::new(guest)?.pagesets,
            numa: NumastatView::new(guest)?.zones,
        })
    }
}

fn zoneinfo(text: &mut String, all: &Zoneinfo) -> fmt::Result {
    for zone in all.zones.iter().filter(|zone| all.online.contains(&zone.node)) {
        let name = zone_name(zone.kind);
        let is = |node: u32, zone_name: &str| node == zone.node && zone_name == name;
        writeln!(text, "Node {}, zone {name:>8}", zone.node)?;
        let row = all.rows.iter().find(|row| is(row.node, row.zone));
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

fn buddyinfo(text: &mut String, view: &BuddyView, online: &[u32]) -> fmt::Result {
    for row in view.zones.iter().filter(|row| online.contains(&row.node)) {
        write!(text, "Node {}, zone {:>8} ", row.node, row.zone)?;
        for blocks in &row.blocks {
            write!(text, "{blocks:>6} ")?;
        }
        writeln!(text)?;
    }
    Ok(())
}

fn pagetypeinfo(text: &mut String, view: &PagetypesView, online: &[u32]) -> fmt::Result {
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

fn vmstat(text: &mut String, zones: &ZonesView, numa: &NumastatView, events: &VmstatView) -> fmt::Result {
    writeln!(
        text,
        "nr_free_pages {}",
        zones.zones.iter().map(|zone| zone.free).fold(0, u64::saturating_add)
    )?;
    writeln!(
        text,
        "nr_free_cma {}",
        zones.zones.iter().map(|zone| zone.free_cma).fold(0, u64::saturating_add)
    )?;
    for (index, name) in NumaEvent::NAMES.iter().enumerate() {
        let count: u64 = numa
            .zones
            .iter()
            .filter_map(|zone| zone.events.get(index))
            .fold(0, |sum, &count| sum.saturating_add(count));
        writeln!(text, "{name} {count}")?;
    }
    events.events.iter().try_for_each(|event| writeln!(text, "{} {}", event.name, event.count))
}

/// What CPUs hold counts as active here, as in Linux, and unlike in `inspect slab`.
fn slabinfo(text: &mut String, all: &Slabs) -> fmt::Result {
    if all.kind() == Some(SlabKind::Slob) {
        return writeln!(text, "slob counts no objects");
    }
    writeln!(text, "slabinfo - version: 2.1")?;
    writeln!(
        text,
        "# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>"
    )?;
    for (index, cache) in all.used() {
        let slabs = || all.of(index);
        let objects: u64 = slabs().map(|slab| u64::from(slab.counters.objects)).sum();
        // A slab that a CPU owns is on no list of the node.
        let free: u64 = slabs()
            .filter(|slab| !slab.counters.frozen)
            .map(|slab| u64::from(slab.counters.objects.saturating_sub(slab.counters.inuse)))
            .sum();
        let all_slabs = slabs().count();
        let active_slabs = match all.kind() {
            Some(SlabKind::Slab) => slabs().filter(|slab| slab.counters.inuse != 0).count(),
            _ => all_slabs,
        };
        let nodes = all.nodes.iter().filter_map(|caches| caches.get(index));
        let shared: u64 = nodes.map(|node| u64::from(node.shared_avail)).sum();
        write!(text, "{:<17} {:>6} {objects:>6} ", cache_name(cache), objects - free)?;
        write!(text, "{:>6} {:>4} {:>4} : ", cache.size, cache.objects, 1_u64 << cache.order.min(10))?;
        write!(text, "tunables {:>4} {:>4} {:>4} : ", cache.limit, cache.batchcount, cache.shared)?;
        writeln!(text, "slabdata {active_slabs:>6} {all_slabs:>6} {shared:>6}")?;
    }
    Ok(())
}

fn vmallocinfo(text: &mut String, view: &VmallocView) -> fmt::Result {
    let (busy, lazy): (Vec<_>, Vec<_>) = view.areas.iter().partition(|area| area.state == "busy");
    for area in busy {
        let (start, end) = (area.start, area.end);
        write!(text, "{start:#018x}-{end:#018x} {:>7} {}", end.wrapping_sub(start), area.place)?;
        if area.pages != 0 {
            write!(text, " pages={}", area.pages)?;
        }
        if area.phys != 0 {
            write!(text, " phys={:#018x}", area.phys)?;
        }
        for word in ["ioremap", "vmalloc", "vmap", "user"] {
            if area.flags.contains(&word) {
                write!(text, " {word}")?;
            }
        }
        writeln!(text)?;
    }
    // The order of the purge list shows in no view: by address.
    for area in lazy {
        let (start, end) = (area.start, area.end);
        writeln!(text, "{start:#018x}-{end:#018x} {:>7} unpurged vm_area", end.wrapping_sub(start))?;
    }
    Ok(())
}
