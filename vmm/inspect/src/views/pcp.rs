//! Per-CPU page lists (Linux: the `pagesets` of /proc/zoneinfo).

use std::fmt;

use memvisor_abi::{MIGRATE_PCPTYPES, Migratetype, NR_PCP_LISTS, PerCpuPages};
use serde::Serialize;

use super::zones::zone_name;
use crate::{Guest, GuestError, MemorySource};

/// `inspect pcp`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PcpView {
    /// Zones with pages, by CPU and zone.
    pub pagesets: Vec<PcpRow>,
}

/// What a CPU keeps of a zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PcpRow {
    /// CPU.
    pub cpu: usize,
    /// Node of the zone.
    pub node: u32,
    /// Zone.
    pub zone: &'static str,
    /// Pages, as the guest counts them.
    pub count: u32,
    /// Pages found on the lists.
    pub found: u64,
    /// Pages from which on some are given back.
    pub high: u32,
    /// Pages moved at once.
    pub batch: u32,
    /// Doublings of the batch by frees without allocations.
    pub free_factor: u32,
    /// Lists with blocks.
    pub lists: Vec<PcpListRow>,
}

/// A list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PcpListRow {
    /// Order of the blocks.
    pub order: usize,
    /// Type; none for the list of huge blocks, which all share.
    pub migratetype: &'static str,
    /// Blocks.
    pub blocks: usize,
    /// What is wrong with the links, in words.
    pub problem: Option<String>,
}

impl PcpView {
    /// Reads the lists. On a running guest they change meanwhile.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<PcpView, GuestError> {
        let zones = guest.zones()?;
        let pcps = guest.pcps()?;
        let mut pagesets = Vec::new();
        for (cpu, of_cpu) in pcps.chunks(zones.len().max(1)).enumerate() {
            for (index, (pcp, zone)) in of_cpu.iter().zip(&zones).enumerate() {
                if zone.managed_pages == 0 {
                    continue;
                }
                pagesets.push(row(guest, pcp, cpu, index, (zone.node, zone_name(zone.kind)))?);
            }
        }
        Ok(PcpView { pagesets })
    }
}

/// Name of the type of list `list`; "any" for that of huge blocks.
pub(super) fn list_type(list: usize) -> &'static str {
    if list + 1 == NR_PCP_LISTS {
        return "any";
    }
    Migratetype::ALL.get(list % MIGRATE_PCPTYPES).map_or("?", |kind| kind.name())
}

fn row<S: MemorySource + ?Sized>(
    guest: &Guest<'_, S>,
    pcp: &PerCpuPages,
    cpu: usize,
    zone_index: usize,
    (node, zone): (u32, &'static str),
) -> Result<PcpRow, GuestError> {
    let lists = guest.pcp_lists(pcp, cpu, zone_index)?;
    let found = lists.iter().map(|list| (list.blocks.len() as u64) << list.order).sum();
    let lists = lists
        .into_iter()
        .map(|list| PcpListRow {
            order: list.order,
            migratetype: list_type(list.list),
            blocks: list.blocks.len(),
            problem: list.problem.map(|problem| problem.to_string()),
        })
        .collect();
    let &PerCpuPages { count, high, batch, free_factor, .. } = pcp;
    Ok(PcpRow { cpu, node, zone, count, found, high, batch, free_factor, lists })
}

impl fmt::Display for PcpView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "per-CPU page lists: {} of CPUs and zones (quantities in pages)", self.pagesets.len())?;
        writeln!(f, " cpu node zone      count  found   high  batch factor  blocks by order and type")?;
        for row in &self.pagesets {
            let lists: Vec<String> = row
                .lists
                .iter()
                .map(|list| {
                    let problem =
                        list.problem.as_ref().map_or(String::new(), |problem| format!(" ({problem})"));
                    format!("{} {}: {}{problem}", list.order, list.migratetype, list.blocks)
                })
                .collect();
            writeln!(
                f,
                "{:>4} {:>4} {:<8} {:>6} {:>6} {:>6} {:>6} {:>6}  {}",
                row.cpu,
                row.node,
                row.zone,
                row.count,
                row.found,
                row.high,
                row.batch,
                row.free_factor,
                lists.join(", ")
            )?;
        }
        Ok(())
    }
}
