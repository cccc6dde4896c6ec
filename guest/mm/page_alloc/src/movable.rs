//! Where MOVABLE starts on every node (Linux: `find_zone_movable_pfns_for_nodes`).

use memvisor_abi::{MAX_NUMNODES, MemblockRegion};
use mm_core::{Order, Pfn};

use crate::ZoneLimits;
use crate::extent::{frames, max_pfn, node_span};

/// Computes the first MOVABLE frame of every node, indexed by node, for `movablecore` pages of
/// movable memory in total; frame 0 for a node without any.
///
/// What is not movable is spread over the nodes as evenly as they allow: a node that has less than its
/// share leaves the rest to the others. Only the highest zone in use can become MOVABLE, so memory
/// below it is never movable and counts towards the node's share. Starts are multiples of the
/// largest block. With 0, or with all of memory, there is no MOVABLE at all. Regions whose node
/// is [`memvisor_abi::NODE_NONE`] count for nobody.
pub fn find_zone_movable_pfns(
    memory: &[MemblockRegion],
    movablecore: u64,
    limits: ZoneLimits,
) -> [Pfn; MAX_NUMNODES] {
    let mut spread = Spread {
        memory,
        usable_start: limits.movable_zone(max_pfn(memory)).0,
        starts: [0; MAX_NUMNODES],
        kernelcore: 0,
    };
    let total: u64 =
        spread.nodes().flat_map(|node| frames(memory, node)).map(|(start, end)| end - start).sum();
    let movablecore = movablecore.checked_next_multiple_of(Order::MAX.pages()).unwrap_or(total).min(total);
    spread.kernelcore = total - movablecore;
    if spread.kernelcore == 0 || movablecore == 0 {
        return [Pfn::new(0); MAX_NUMNODES];
    }
    let mut sharers = spread.nodes().count() as u64;
    loop {
        spread.run(sharers);
        sharers = sharers.saturating_sub(1);
        // A remainder smaller than the nodes that could share it is rounding, and stays movable.
        if sharers == 0 || spread.kernelcore <= sharers {
            break;
        }
    }
    spread.align()
}

/// The distribution under way.
struct Spread<'a> {
    memory: &'a [MemblockRegion],
    /// First frame of the zone that MOVABLE is taken from.
    usable_start: u64,
    /// By node: one past the last frame that the kernel got so far.
    starts: [u64; MAX_NUMNODES],
    /// Pages the kernel still has to get.
    kernelcore: u64,
}

impl<'a> Spread<'a> {
    /// Nodes with memory.
    fn nodes(&self) -> impl Iterator<Item = u32> + use<'a> {
        let memory = self.memory;
        (0u32..).take(MAX_NUMNODES).filter(move |node| frames(memory, *node).next().is_some())
    }

    /// Gives every node its share, as far as the node's memory reaches.
    fn run(&mut self, sharers: u64) {
        let mut share = self.kernelcore / sharers;
        for node in self.nodes() {
            if self.kernelcore < share {
                share = self.kernelcore / sharers;
            }
            self.fill(node, share);
        }
    }

    /// Gives the kernel `share` more pages of `node`.
    fn fill(&mut self, node: u32, mut share: u64) {
        let Some(mut given) = usize::try_from(node).ok().and_then(|index| self.starts.get(index)).copied()
        else {
            return;
        };
        for (start, end) in frames(self.memory, node) {
            let mut start = start.max(given);
            if start >= end {
                continue;
            }
            if start < self.usable_start {
                let forced = end.min(self.usable_start) - start;
                share = share.saturating_sub(forced);
                self.kernelcore = self.kernelcore.saturating_sub(forced);
                given = end.min(self.usable_start);
                if end <= self.usable_start {
                    continue;
                }
                start = self.usable_start;
            }
            let pages = share.min(end - start);
            given = start + pages;
            self.kernelcore = self.kernelcore.saturating_sub(pages);
            share -= pages;
            if share == 0 {
                break;
            }
        }
        if let Some(slot) = usize::try_from(node).ok().and_then(|index| self.starts.get_mut(index)) {
            *slot = given;
        }
    }

    fn align(&self) -> [Pfn; MAX_NUMNODES] {
        let mut starts = [Pfn::new(0); MAX_NUMNODES];
        for node in self.nodes() {
            let Ok(index) = usize::try_from(node) else { continue };
            let raw = self.starts.get(index).copied().unwrap_or(0);
            let aligned = raw.checked_next_multiple_of(Order::MAX.pages()).unwrap_or(u64::MAX);
            let end = node_span(self.memory, node).map_or(0, |(_, end)| end);
            if let Some(slot) = starts.get_mut(index).filter(|_| aligned < end) {
                *slot = Pfn::new(aligned);
            }
        }
        starts
    }
}
