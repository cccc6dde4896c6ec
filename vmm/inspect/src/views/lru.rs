//! The LRU lists of each node, walked from outside.

use std::fmt;

use memvisor_abi::{LruKind, MAX_NR_ZONES, PageFlags, VmEvent, ZoneKind};
use serde::Serialize;

use super::lrugen::Generations;
use crate::{Guest, GuestError, LruWalk, MemorySource};

/// `inspect lru`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LruView {
    /// Nodes whose lists were published.
    pub nodes: Vec<LruNode>,
    /// Pages that wait in batches of CPUs to be added; a page may be noted twice, or gone.
    pub in_batches: u64,
    /// Events of reclaim so far, as /proc/vmstat names them.
    pub events: Vec<(&'static str, u64)>,
}

/// The lists of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LruNode {
    /// Node.
    pub node: usize,
    /// Its lists.
    pub lists: Vec<LruRow>,
    /// Pages in reclaim's hands: anonymous, of files.
    pub isolated: [u64; 2],
    /// What reclaim of either cost lately, in pages of I/O.
    pub cost: [u64; 2],
    /// Evictions and activations so far.
    pub nonresident_age: u64,
    /// Generations, if that is the policy.
    pub generations: Option<Generations>,
}

/// A list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LruRow {
    /// Linux's name, after `nr_`.
    pub list: &'static str,
    /// Pages that the list counts.
    pub count: u64,
    /// Pages of each zone that it counts, those with none left out.
    pub zones: Vec<(&'static str, u64)>,
    /// Pages found by following the links.
    pub found: u64,
    /// Of those, marked as used.
    pub referenced: u64,
    /// Mapped by a program.
    pub mapped: u64,
    /// To be written before they can go.
    pub dirty: u64,
    /// Being written.
    pub writeback: u64,
    /// The frame that is reclaimed next.
    pub next: Option<u64>,
    /// What is wrong with the links, if anything.
    pub problem: Option<String>,
}

/// Events that are shown.
const EVENTS: [VmEvent; 10] = [
    VmEvent::Pageoutrun,
    VmEvent::PgscanKswapd,
    VmEvent::PgstealKswapd,
    VmEvent::PgscanDirect,
    VmEvent::PgstealDirect,
    VmEvent::Pgrefill,
    VmEvent::Pgactivate,
    VmEvent::Pgdeactivate,
    VmEvent::WorkingsetRefaultAnon,
    VmEvent::WorkingsetRefaultFile,
];

impl LruView {
    /// Walks the lists of all nodes.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<LruView, GuestError> {
        let mut nodes = Vec::new();
        for (node, lruvec) in guest.lruvecs()?.iter().enumerate() {
            let mut lists = Vec::new();
            for walk in guest.lru_lists(node, lruvec)? {
                lists.push(row(guest, lruvec.zone_pages, &walk)?);
            }
            nodes.push(LruNode {
                node,
                lists,
                isolated: lruvec.isolated,
                cost: lruvec.cost,
                nonresident_age: lruvec.nonresident_age,
                generations: Generations::new(guest, node, lruvec)?,
            });
        }
        let in_batches = guest
            .lru_batches()?
            .iter()
            .filter_map(|cpu| cpu.first())
            .fold(0_u64, |sum, batch| sum.saturating_add(batch.len));
        let counts = guest.vm_events()?;
        let event = |event: VmEvent| {
            let count = counts.and_then(|counts| counts.get(event as usize).copied());
            VmEvent::NAMES.get(event as usize).copied().zip(count)
        };
        Ok(LruView { nodes, in_batches, events: EVENTS.into_iter().filter_map(event).collect() })
    }
}

fn row<S: MemorySource + ?Sized>(
    guest: &Guest<'_, S>,
    zone_pages: [[u64; memvisor_abi::NR_LRU_LISTS]; MAX_NR_ZONES],
    walk: &LruWalk,
) -> Result<LruRow, GuestError> {
    let kind: LruKind = walk.kind;
    let zones = ZoneKind::ALL.into_iter().zip(zone_pages).filter_map(|(zone, counts)| {
        let count = counts.get(kind as usize).copied().unwrap_or(0);
        (count > 0).then(|| (zone.name(), count))
    });
    let mut row = LruRow {
        list: kind.name(),
        count: walk.list.count,
        zones: zones.collect(),
        found: walk.pfns.len() as u64,
        referenced: 0,
        mapped: 0,
        dirty: 0,
        writeback: 0,
        next: walk.pfns.last().copied(),
        problem: walk.problem.as_ref().map(ToString::to_string),
    };
    for pfn in &walk.pfns {
        let Some(page) = guest.page(*pfn)? else { continue };
        let flags = page.page_flags();
        row.referenced += u64::from(flags.contains(PageFlags::REFERENCED));
        row.dirty += u64::from(flags.contains(PageFlags::DIRTY));
        row.writeback += u64::from(flags.contains(PageFlags::WRITEBACK));
        row.mapped += u64::from(page.mapcount >= 0);
    }
    Ok(row)
}

impl fmt::Display for LruView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "LRU lists of {} nodes; {} pages wait in batches", self.nodes.len(), self.in_batches)?;
        writeln!(
            f,
            "node list               count    found   mapped  referenced    dirty  writeback  next        by zone"
        )?;
        for node in &self.nodes {
            for row in &node.lists {
                let zones: Vec<String> =
                    row.zones.iter().map(|(zone, count)| format!("{zone} {count}")).collect();
                let next = row.next.map_or_else(|| "-".to_owned(), |pfn| format!("{pfn:#x}"));
                writeln!(
                    f,
                    "{:>4} {:<15} {:>9} {:>8} {:>8} {:>11} {:>8} {:>10}  {next:<10}  {}",
                    node.node,
                    row.list,
                    row.count,
                    row.found,
                    row.mapped,
                    row.referenced,
                    row.dirty,
                    row.writeback,
                    zones.join(", ")
                )?;
                if let Some(problem) = &row.problem {
                    writeln!(f, "     {problem}")?;
                }
            }
            let ([anon, file], [anon_cost, file_cost]) = (node.isolated, node.cost);
            writeln!(
                f,
                "     isolated: anonymous {anon}, of files {file}; cost: anonymous {anon_cost}, of files {file_cost}; age {}",
                node.nonresident_age
            )?;
            if let Some(generations) = &node.generations {
                write!(f, "{generations}")?;
            }
        }
        self.events.iter().try_for_each(|(name, count)| writeln!(f, "{name} {count}"))
    }
}
