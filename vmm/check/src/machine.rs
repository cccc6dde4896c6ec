//! What the guest should have made of the machine, derived without the guest.
//!
//! From the E820 map and the nodes' ranges as the VMM built them. Without those (a dump of a
//! machine that nobody described) the guest's raw map and its memblock nodes stand in, and the
//! report says so.

use std::collections::{BTreeMap, BTreeSet};

use memvisor_abi::{MAX_NR_ZONES, ZoneKind};
use memvisor_inspect::Facts;

use crate::borders::Borders;
use crate::e820::{Region, ram, resolve};
use crate::frames::{Frames, clip, count, gaps, normalize};

/// Frames of one node and one zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub frames: Frames,
    pub node: u32,
    pub zone: ZoneKind,
}

/// First frame, frames with holes, frames without: of a node or a zone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    pub start: u64,
    pub spanned: u64,
    pub present: u64,
}

/// The machine as derived.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    /// The resolved E820 map.
    pub regions: Vec<Region>,
    /// Whole frames of E820 RAM, normalized.
    pub ram: Vec<Frames>,
    /// `ram` cut by node and zone, ascending.
    pub parts: Vec<Part>,
    /// Nodes that have memory or CPUs.
    pub nodes: BTreeSet<u32>,
    /// Where zones end.
    pub borders: Borders,
}

impl Machine {
    /// From what the VMM built, for a CPU with `phys_bits` physical address bits and a kernel that ends at `kernel_end`.
    pub fn from_facts(facts: &Facts, phys_bits: u32, kernel_end: u64) -> Machine {
        let entries = facts.e820.iter().map(|entry| (entry.addr, entry.size, entry.kind));
        let ranges = facts
            .node_memory
            .iter()
            .map(|range| (range.node, Frames::inside(range.base, range.base.saturating_add(range.len))));
        let borders = |nodes: &BTreeMap<u32, Vec<Frames>>| Borders::of(&facts.cmdline, nodes, kernel_end);
        let mut machine = Machine::derive(resolve(entries, phys_bits), &ranges.collect::<Vec<_>>(), borders);
        machine.nodes.extend(facts.cpus.iter().map(|cpu| cpu.node));
        machine
    }

    /// From regions and `(node, frames)` ranges; `borders` says where zones end, given each node's RAM. RAM outside all
    /// ranges belongs to the first node that has a range, or to node 0 (Linux: `first_online_node`).
    pub fn derive(
        regions: Vec<Region>,
        ranges: &[(u32, Frames)],
        borders: impl FnOnce(&BTreeMap<u32, Vec<Frames>>) -> Borders,
    ) -> Machine {
        let ram = ram(&regions);
        let claimed = normalize(ranges.iter().map(|&(_, frames)| frames).collect());
        let fallback = ranges.iter().map(|&(node, _)| node).min().unwrap_or(0);
        let mut nodes: BTreeMap<u32, Vec<Frames>> = BTreeMap::new();
        for &range in &ram {
            for gap in gaps(&claimed, range) {
                nodes.entry(fallback).or_default().push(gap);
            }
        }
        let mut taken: Vec<Frames> = Vec::new();
        for &(node, frames) in ranges {
            // Where ranges overlap the first one wins.
            for free in gaps(&taken, frames) {
                for part in clip(&ram, free) {
                    nodes.entry(node).or_default().push(part);
                }
            }
            taken.push(frames);
            taken = normalize(taken);
        }
        let nodes: BTreeMap<u32, Vec<Frames>> =
            nodes.into_iter().map(|(node, ram)| (node, normalize(ram))).collect();
        let borders = borders(&nodes);
        let mut parts = Vec::new();
        for (&node, ram) in &nodes {
            for &frames in ram {
                split_by_zone(frames, node, &borders, &mut parts);
            }
        }
        parts.sort_by_key(|part| part.frames.start);
        let nodes = parts.iter().map(|part| part.node).collect();
        Machine { regions, ram, parts, nodes, borders }
    }

    /// Nodes with RAM, bit by number.
    pub fn memory_nodes(&self) -> u64 {
        let bit = |node: u32| 1_u64.checked_shl(node).unwrap_or(0);
        self.parts.iter().fold(0, |nodes, part| nodes | bit(part.node))
    }

    /// A node from its first to its last frame (Linux: `get_pfn_range_for_nid`).
    pub fn node(&self, node: u32) -> Extent {
        let mut of_node =
            self.parts.iter().filter(|part| part.node == node).map(|part| part.frames).peekable();
        let Some(start) = of_node.peek().map(|first| first.start) else { return Extent::default() };
        let (mut end, mut present) = (start, 0);
        for frames in of_node {
            end = end.max(frames.end);
            present += frames.len();
        }
        Extent { start, spanned: end - start, present }
    }

    /// A zone: the node's extent cut at the zone's borders (Linux: `zone_spanned_pages_in_node`), Movable having the end of
    /// it; all zero if the cut is empty.
    pub fn zone(&self, node: u32, zone: ZoneKind) -> Extent {
        let whole = self.node(node);
        let whole = Frames::from_count(whole.start, whole.spanned);
        let movable = self.borders.movable.get(&node).copied().unwrap_or(u64::MAX);
        let span = match zone {
            ZoneKind::Movable => whole.and(Frames::new(movable, u64::MAX)),
            zone => whole.and(self.borders.zone(zone)).and(Frames::new(0, movable)),
        };
        if span.is_empty() {
            return Extent::default();
        }
        let set = self.zone_ram(node, zone);
        Extent { start: span.start, spanned: span.len(), present: count(&set) }
    }

    /// The RAM of a zone, normalized.
    pub fn zone_ram(&self, node: u32, zone: ZoneKind) -> Vec<Frames> {
        let of_zone = self.parts.iter().filter(|part| part.node == node && part.zone == zone);
        normalize(of_zone.map(|part| part.frames).collect())
    }

    /// The RAM of a node, normalized.
    pub fn node_ram(&self, node: u32) -> Vec<Frames> {
        let of_node = self.parts.iter().filter(|part| part.node == node);
        normalize(of_node.map(|part| part.frames).collect())
    }

    /// Nodes with memory or CPUs, plus those that only the highest number implies: 0..count.
    pub fn node_count(&self) -> u32 {
        self.nodes.last().map_or(0, |last| last + 1)
    }
}

fn split_by_zone(frames: Frames, node: u32, borders: &Borders, parts: &mut Vec<Part>) {
    let movable = borders.movable.get(&node).copied().unwrap_or(u64::MAX);
    for zone in ZoneKind::ALL {
        let cut = match zone {
            ZoneKind::Movable => frames.and(Frames::new(movable, u64::MAX)),
            zone => frames.and(borders.zone(zone)).and(Frames::new(0, movable)),
        };
        if !cut.is_empty() {
            parts.push(Part { frames: cut, node, zone });
        }
    }
}

/// Position of a zone in the guest's table.
pub(crate) fn zone_index(node: u32, zone: ZoneKind) -> usize {
    usize::try_from(node).unwrap_or(usize::MAX).saturating_mul(MAX_NR_ZONES).saturating_add(zone as usize)
}

#[cfg(test)]
mod tests {
    use memvisor_inspect::{FactCpu, FactE820, FactNodeMemory};

    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn machine(e820: &[(u64, u64)], nodes: &[(u32, u64, u64)]) -> Machine {
        Machine::from_facts(
            &Facts {
                e820: e820.iter().map(|&(addr, end)| FactE820 { addr, size: end - addr, kind: 1 }).collect(),
                node_memory: nodes
                    .iter()
                    .map(|&(node, base, end)| FactNodeMemory { node, base, len: end - base })
                    .collect(),
                cpus: vec![FactCpu { apic_id: 0, node: 5 }],
                ..Facts::default()
            },
            46,
            0,
        )
    }

    #[test]
    fn a_pc_has_three_zones_on_one_node() {
        let machine = machine(&[(0, 640 << 10), (MIB, 3 * GIB), (4 * GIB, 5 * GIB)], &[]);
        let dma = machine.zone(0, ZoneKind::Dma);
        assert_eq!(dma, Extent { start: 0, spanned: 4096, present: 4096 - 96 });
        let dma32 = machine.zone(0, ZoneKind::Dma32);
        assert_eq!(dma32, Extent { start: 4096, spanned: (1 << 20) - 4096, present: (3 << 18) - 4096 });
        let normal = machine.zone(0, ZoneKind::Normal);
        assert_eq!(normal, Extent { start: 1 << 20, spanned: 1 << 18, present: 1 << 18 });
        assert_eq!(machine.zone(0, ZoneKind::Movable), Extent::default());
    }

    #[test]
    fn interleaved_node_ranges_give_spans_that_overlap() {
        let machine = machine(
            &[(0, 128 * MIB)],
            &[(0, 0, 32 * MIB), (1, 32 * MIB, 64 * MIB), (0, 64 * MIB, 96 * MIB), (1, 96 * MIB, 128 * MIB)],
        );
        assert_eq!(machine.node(0), Extent { start: 0, spanned: 24576, present: 16384 });
        assert_eq!(machine.node(1), Extent { start: 8192, spanned: 24576, present: 16384 });
        let owners: Vec<_> = machine.parts.iter().map(|part| (part.frames.start, part.node)).collect();
        assert_eq!(owners, [(0, 0), (4096, 0), (8192, 1), (16384, 0), (24576, 1)]);
    }

    #[test]
    fn ram_without_a_node_goes_to_the_first_one_and_cpus_make_nodes_too() {
        let machine = machine(&[(0, 64 * MIB)], &[(2, 32 * MIB, 64 * MIB)]);
        assert_eq!(machine.node(2), Extent { start: 0, spanned: 16384, present: 16384 });
        assert_eq!(machine.nodes.iter().copied().collect::<Vec<_>>(), [2, 5]);
    }
}
