//! Compaction: what zones remember of it, how fragmented they are, kcompactd and owners of movable pages (Linux:
//! /sys/kernel/debug/extfrag, and fields of `struct zone`).

use std::fmt;

use memvisor_abi::{NR_ORDERS, PAGEBLOCK_SKIP, Zone, ZoneKind};
use serde::Serialize;

use super::zones::zone_name;
use crate::{Guest, GuestError, MemorySource};

/// `inspect compaction`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CompactionView {
    /// Zones with pages.
    pub zones: Vec<CompactionRow>,
    /// Pageblocks with a skip hint, in the whole machine.
    pub skipped_pageblocks: u64,
    /// Nodes with a thread.
    pub kcompactd: Vec<KcompactdRow>,
    /// Owners of movable pages.
    pub owners: Vec<MovableOwnerRow>,
}

/// A zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CompactionRow {
    /// Node.
    pub node: u32,
    /// Zone.
    pub zone: &'static str,
    /// Where the migration scanner goes on: asynchronous, synchronous; 0 if it never ran.
    pub cached_migrate_pfn: [u64; 2],
    /// Where the free scanner goes on; 0 if it never ran.
    pub cached_free_pfn: u64,
    /// Requests since the last failure, at most 2^`defer_shift`.
    pub considered: u32,
    /// log2 of the requests that are turned away.
    pub defer_shift: u32,
    /// Smallest order that failed.
    pub order_failed: u32,
    /// Hints are forgotten before the next run.
    pub blockskip_flush: bool,
    /// By order, in thousandths: -1000 if an allocation would succeed, towards 0 it fails for lack of memory, towards
    /// 1000 for fragmentation.
    pub fragmentation_index: Vec<i64>,
    /// By order, in thousandths: the share of free memory that is in smaller blocks.
    pub unusable_index: Vec<u64>,
}

/// kcompactd of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KcompactdRow {
    /// Node.
    pub node: usize,
    /// It compacts now.
    pub running: bool,
    /// Largest order that it was asked for, 0 for nothing.
    pub max_order: u32,
    /// Lowest of the highest zones that it was asked for.
    pub highest: &'static str,
    /// How often it was woken.
    pub wakeups: u64,
}

/// An owner of movable pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MovableOwnerRow {
    /// Number, as its pages' `mapping` has it.
    pub number: usize,
    /// Name.
    pub name: String,
    /// Its movable blocks.
    pub pages: u64,
    /// Those that are isolated.
    pub isolated: u64,
    /// Blocks moved so far.
    pub moved: u64,
}

impl CompactionView {
    /// Reads zones, pageblocks and the tables of compaction.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<CompactionView, GuestError> {
        let zones = guest.zones()?;
        let zones = zones.iter().filter(|zone| zone.managed_pages != 0).map(CompactionRow::new).collect();
        let bytes = guest.sections()?;
        let bytes = bytes.iter().flat_map(|section| section.pageblocks);
        let skipped_pageblocks = bytes.filter(|byte| byte & PAGEBLOCK_SKIP != 0).count() as u64;
        let kcompactd = guest.kcompactds()?.into_iter().enumerate().filter(|(_, state)| state.exists != 0);
        let kcompactd = kcompactd.map(|(node, state)| KcompactdRow {
            node,
            running: state.running != 0,
            max_order: state.max_order,
            highest: ZoneKind::from_raw(state.highest).map_or("undefined", ZoneKind::name),
            wakeups: state.wakeups,
        });
        let owners = guest.movable_owners()?.into_iter().zip(1..).filter(|(owner, _)| owner.name != [0; 16]);
        let owners = owners.map(|(owner, number)| MovableOwnerRow {
            number,
            name: owner.name().to_owned(),
            pages: owner.pages,
            isolated: owner.isolated,
            moved: owner.moved,
        });
        Ok(CompactionView {
            zones,
            skipped_pageblocks,
            kcompactd: kcompactd.collect(),
            owners: owners.collect(),
        })
    }
}

impl CompactionRow {
    fn new(zone: &Zone) -> CompactionRow {
        let indices = (0..NR_ORDERS).map(|order| indices(zone, order));
        let (fragmentation_index, unusable_index) = indices.unzip();
        CompactionRow {
            node: zone.node,
            zone: zone_name(zone.kind),
            cached_migrate_pfn: zone.compact_cached_migrate_pfn,
            cached_free_pfn: zone.compact_cached_free_pfn,
            considered: zone.compact_considered,
            defer_shift: zone.compact_defer_shift,
            order_failed: zone.compact_order_failed,
            blockskip_flush: zone.compact_blockskip_flush != 0,
            fragmentation_index,
            unusable_index,
        }
    }
}

/// Linux's `extfrag_index` and `unusable_index` of an order, from the counters of the free lists. Hostile counters give
/// some number.
fn indices(zone: &Zone, order: usize) -> (i64, u64) {
    let (mut pages, mut blocks, mut suitable) = (0_i128, 0_i128, 0_i128);
    for (have, area) in zone.free_area.iter().enumerate() {
        let count = i128::from(area.nr_free());
        blocks += count;
        pages += count << have;
        if have >= order {
            suitable += count << (have - order);
        }
    }
    let fragmentation = match (blocks, suitable) {
        (0, _) => 0,
        (_, 1..) => -1000,
        _ => 1000 - (1000 + pages * 1000 / (1 << order)) / blocks,
    };
    let unusable = match pages {
        0 => 1000,
        _ => (pages - (suitable << order)) * 1000 / pages,
    };
    (i64::try_from(fragmentation).unwrap_or(i64::MIN), u64::try_from(unusable).unwrap_or(0))
}

/// Thousandths as Linux prints them.
fn thousandths(value: i128) -> String {
    let sign = if value < 0 { "-" } else { "" };
    format!("{sign}{}.{:03}", value.unsigned_abs() / 1000, value.unsigned_abs() % 1000)
}

impl fmt::Display for CompactionView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "compaction of {} zones; {} pageblocks are skipped",
            self.zones.len(),
            self.skipped_pageblocks
        )?;
        writeln!(
            f,
            "node zone      migrate (async)   (sync)       free   considered  shift  order failed  flush"
        )?;
        for row in &self.zones {
            let [asynchronous, synchronous] = row.cached_migrate_pfn;
            writeln!(
                f,
                "{:>4} {:<8} {asynchronous:>#16x} {synchronous:>#8x} {:>#10x} {:>12} {:>6} {:>13} {:>6}",
                row.node,
                row.zone,
                row.cached_free_pfn,
                row.considered,
                row.defer_shift,
                row.order_failed,
                if row.blockskip_flush { "yes" } else { "no" }
            )?;
        }
        let mut table = |title: &str, of: fn(&CompactionRow, usize) -> i128| {
            write!(f, "{title:<24}")?;
            (0..NR_ORDERS).try_for_each(|order| write!(f, " {order:>6}"))?;
            writeln!(f)?;
            for row in &self.zones {
                write!(f, "Node {}, zone {:>8}   ", row.node, row.zone)?;
                (0..NR_ORDERS).try_for_each(|order| write!(f, " {:>6}", thousandths(of(row, order))))?;
                writeln!(f)?;
            }
            Ok(())
        };
        table("extfrag_index", |row, order| {
            row.fragmentation_index.get(order).copied().unwrap_or_default().into()
        })?;
        table("unusable_index", |row, order| {
            row.unusable_index.get(order).copied().unwrap_or_default().into()
        })?;
        for row in &self.kcompactd {
            let state = if row.running { "runs" } else { "sleeps" };
            writeln!(
                f,
                "kcompactd{}: {state}, woken {} times, asked for order {} up to {}",
                row.node, row.wakeups, row.max_order, row.highest
            )?;
        }
        for owner in &self.owners {
            writeln!(
                f,
                "movable pages of {} (owner {}): {}, {} isolated, {} moved so far",
                owner.name, owner.number, owner.pages, owner.isolated, owner.moved
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use memvisor_abi::{FreeList, ZoneKind};

    use super::*;

    fn zone(blocks: &[(usize, u64)]) -> Zone {
        let mut zone = Zone::new(0, ZoneKind::Normal);
        for &(order, nr_free) in blocks {
            zone.free_area[order].lists[1] = FreeList { nr_free, ..FreeList::EMPTY };
        }
        zone
    }

    #[test]
    fn indices_are_linuxs() {
        // 512 single pages: order 4 would need 16 of them side by side.
        assert_eq!(indices(&zone(&[(0, 512)]), 4), (936, 1000));
        assert_eq!(indices(&zone(&[(0, 512)]), 0), (-1000, 0));
        assert_eq!(indices(&zone(&[]), 3), (0, 1000));
        assert_eq!(indices(&zone(&[(9, 1), (0, 512)]), 9), (-1000, 500));
        assert_eq!(thousandths(-1000), "-1.000");
        assert_eq!(thousandths(936), "0.936");
    }

    #[test]
    fn hostile_counters_give_some_number() {
        let wild = zone(&[(10, u64::MAX), (0, u64::MAX)]);
        assert_eq!(indices(&wild, 9).0, -1000);
    }
}
