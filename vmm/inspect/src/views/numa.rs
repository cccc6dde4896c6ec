//! Nodes and distances (Linux: `numactl --hardware`).

use std::fmt;

use serde::Serialize;

use super::MemRange;
use crate::{Facts, Guest, GuestError, MemorySource};

/// `inspect numa`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NumaView {
    /// Nodes as the guest has them, offline ones included; empty if it publishes nothing.
    pub nodes: Vec<NodeRow>,
    /// Distances, row by row; empty if there is no table.
    pub distances: Vec<Vec<u8>>,
    /// Nodes as the VMM built them; `None` without its facts.
    pub built: Option<Vec<NodeRow>>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NodeRow {
    /// Number.
    pub id: u32,
    /// Has memory or CPUs.
    pub online: bool,
    /// CPU numbers.
    pub cpus: Vec<u32>,
    /// Memory ranges, as in memblock or the SRAT.
    pub memory: Vec<MemRange>,
    /// First frame; 0 without memory.
    pub start_pfn: u64,
    /// Frames from first to last.
    pub spanned_pages: u64,
    /// Frames that exist.
    pub present_pages: u64,
}

impl NumaView {
    /// Reads nodes, distances, CPUs and memblock.
    ///
    /// # Errors
    /// [`GuestError`]; CPUs and memblock are left out if they are not published.
    pub fn new<S: MemorySource + ?Sized>(
        guest: &Guest<'_, S>,
        facts: Option<&Facts>,
    ) -> Result<NumaView, GuestError> {
        let cpus = published(guest.cpus())?;
        let regions = published(guest.memblock_memory())?;
        let nodes = guest
            .nodes()?
            .iter()
            .map(|node| NodeRow {
                id: node.id,
                online: node.online != 0,
                cpus: (0..)
                    .zip(&cpus)
                    .filter(|(_, cpu)| cpu.node == node.id)
                    .map(|(index, _)| index)
                    .collect(),
                memory: regions
                    .iter()
                    .filter(|region| region.node == node.id)
                    .map(|region| MemRange::new(region.base, region.size))
                    .collect(),
                start_pfn: node.start_pfn,
                spanned_pages: node.spanned_pages,
                present_pages: node.present_pages,
            })
            .collect();
        Ok(NumaView { nodes, distances: guest.distances()?, built: facts.map(built) })
    }
}

impl NumaView {
    /// The nodes and distances of a guest that publishes none, as the VMM built them.
    pub fn from_facts(facts: &Facts) -> NumaView {
        NumaView { nodes: Vec::new(), distances: facts.distances.clone(), built: Some(built(facts)) }
    }
}

/// An unpublished table is an empty one here.
fn published<T>(table: Result<Vec<T>, GuestError>) -> Result<Vec<T>, GuestError> {
    match table {
        Err(error) if error.is_not_published() => Ok(Vec::new()),
        other => other,
    }
}

fn built(facts: &Facts) -> Vec<NodeRow> {
    let mut ids: Vec<_> = facts
        .node_memory
        .iter()
        .map(|range| range.node)
        .chain(facts.cpus.iter().map(|cpu| cpu.node))
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids.into_iter()
        .map(|id| {
            let ranges: Vec<_> = facts.node_memory.iter().filter(|range| range.node == id).collect();
            let first = ranges.iter().map(|range| range.base >> 12).min().unwrap_or(0);
            let end =
                ranges.iter().map(|range| range.base.saturating_add(range.len) >> 12).max().unwrap_or(0);
            NodeRow {
                id,
                online: true,
                cpus: (0..)
                    .zip(&facts.cpus)
                    .filter(|(_, cpu)| cpu.node == id)
                    .map(|(index, _)| index)
                    .collect(),
                memory: ranges.iter().map(|range| MemRange::new(range.base, range.len)).collect(),
                start_pfn: first,
                spanned_pages: end - first,
                present_pages: ranges.iter().fold(0, |sum: u64, range| sum.saturating_add(range.len >> 12)),
            }
        })
        .collect()
}

impl fmt::Display for NumaView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(built), true) = (&self.built, self.nodes.is_empty()) {
            writeln!(f, "NUMA nodes as the VMM built them (the guest publishes nothing): {}", built.len())?;
            write_nodes(f, built.iter())?;
            return self.write_distances(f);
        }
        let online = self.nodes.iter().filter(|node| node.online).count();
        writeln!(f, "NUMA nodes as the guest has them: {online} online")?;
        write_nodes(f, self.nodes.iter().filter(|node| node.online))?;
        self.write_distances(f)?;
        if let Some(built) = &self.built {
            writeln!(f, "as the VMM built them:")?;
            write_nodes(f, built.iter())?;
        }
        Ok(())
    }
}

impl NumaView {
    fn write_distances(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.distances.is_empty() {
            return Ok(());
        }
        write!(f, "node distances:\nnode")?;
        for column in 0..self.distances.len() {
            write!(f, " {column:>4}")?;
        }
        writeln!(f)?;
        for (row, distances) in self.distances.iter().enumerate() {
            write!(f, "{row:>4}")?;
            for distance in distances {
                write!(f, " {distance:>4}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

fn write_nodes<'a>(f: &mut fmt::Formatter<'_>, nodes: impl Iterator<Item = &'a NodeRow>) -> fmt::Result {
    for node in nodes {
        let cpus: Vec<_> = node.cpus.iter().map(u32::to_string).collect();
        let cpus = if cpus.is_empty() { "none".to_owned() } else { cpus.join(" ") };
        writeln!(
            f,
            "  node {:>2}: start pfn {:#x}, spanned {}, present {} pages; cpus {cpus}",
            node.id, node.start_pfn, node.spanned_pages, node.present_pages
        )?;
        for range in &node.memory {
            writeln!(f, "           {range}")?;
        }
    }
    Ok(())
}
