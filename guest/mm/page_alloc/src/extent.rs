//! Which frames a zone spans (Linux: `free_area_init`, mm/mm_init.c).

use memvisor_abi::{MAX_NR_ZONES, MemblockRegion, PAGE_SHIFT, PAGE_SIZE};
use mm_core::{Pfn, ZoneKind};

/// The frames of a zone. Empty: all 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// First frame.
    pub start_pfn: Pfn,
    /// Frames from first to last, holes included.
    pub spanned: u64,
    /// Frames that exist and belong to the node.
    pub present: u64,
}

/// Where zones end (Linux: `arch_zone_highest_possible_pfn`, `zone_movable_pfn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneLimits {
    /// One past the last frame of DMA.
    pub dma_end: Pfn,
    /// One past the last frame of DMA32.
    pub dma32_end: Pfn,
    /// First frame of HIGHMEM, which the direct map does not reach; the other zones but MOVABLE end here (Linux:
    /// `max_low_pfn`). Beyond all RAM without HIGHMEM.
    pub lowmem_end: Pfn,
    /// First frame of MOVABLE on the node in question, as [`crate::find_zone_movable_pfns`] computes
    /// it; frame 0 without MOVABLE.
    pub movable_start: Pfn,
}

impl ZoneLimits {
    /// x86-64: DMA below 16 MiB, DMA32 below 4 GiB, no HIGHMEM, no MOVABLE.
    pub const X86_64: ZoneLimits = ZoneLimits {
        dma_end: Pfn::new(1 << 12),
        dma32_end: Pfn::new(1 << 20),
        lowmem_end: Pfn::new(u64::MAX),
        movable_start: Pfn::new(0),
    };

    /// The frames that may be in a zone other than MOVABLE, if RAM ends at `max_pfn`.
    pub(crate) fn possible(&self, kind: ZoneKind, max_pfn: u64) -> (u64, u64) {
        let low_end = self.lowmem_end.as_u64();
        let (dma_end, dma32_end) = (self.dma_end.as_u64().min(low_end), self.dma32_end.as_u64().min(low_end));
        let (low, high) = match kind {
            ZoneKind::Dma => (0, dma_end),
            ZoneKind::Dma32 => (dma_end, dma32_end),
            ZoneKind::Normal => (dma32_end, low_end),
            ZoneKind::HighMem => (low_end, u64::MAX),
            ZoneKind::Movable => (0, 0),
        };
        (low, high.min(max_pfn).max(low))
    }

    /// Splits frames of one node at the zones' borders: calls `f(first, end, kind)` for each part, ascending. The limits are
    /// that node's.
    pub fn for_each_part(&self, start: Pfn, end: Pfn, mut f: impl FnMut(Pfn, Pfn, ZoneKind)) {
        let movable = match self.movable_start {
            none if none == Pfn::new(0) => Pfn::new(u64::MAX),
            first => first,
        };
        for kind in [ZoneKind::Dma, ZoneKind::Dma32, ZoneKind::Normal, ZoneKind::HighMem] {
            let (low, high) = self.possible(kind, u64::MAX);
            let (first, last) = (start.max(Pfn::new(low)), end.min(Pfn::new(high)).min(movable));
            if first < last {
                f(first, last, kind);
            }
        }
        // MOVABLE is the end of the highest zone in use, so nothing of the node lies above it.
        if start.max(movable) < end {
            f(start.max(movable), end, ZoneKind::Movable);
        }
    }

    /// The highest zone that has room below `max_pfn`: MOVABLE takes its frames (Linux:
    /// `find_usable_zone_for_movable`).
    pub(crate) fn movable_zone(&self, max_pfn: u64) -> (u64, u64) {
        [ZoneKind::HighMem, ZoneKind::Normal, ZoneKind::Dma32, ZoneKind::Dma]
            .into_iter()
            .map(|kind| self.possible(kind, max_pfn))
            .find(|(low, high)| low < high)
            .unwrap_or((0, 0))
    }
}

impl Default for ZoneLimits {
    fn default() -> ZoneLimits {
        ZoneLimits::X86_64
    }
}

/// The zones of `node`, indexed by [`ZoneKind`], from all of RAM (`memory`, ascending; of other nodes too).
///
/// A node spans everything from its first to its last frame, whoever owns what lies between; a
/// zone is the part of that between the zone's limits. So a zone reaches up to its limit when
/// the node has memory above, even if a hole ends it earlier, and zones of interleaved nodes
/// overlap: only `present` counts the node's own frames.
pub fn zone_extents(memory: &[MemblockRegion], node: u32, limits: ZoneLimits) -> [Extent; MAX_NR_ZONES] {
    let Some((node_start, node_end)) = node_span(memory, node) else { return Default::default() };
    let max_pfn = max_pfn(memory);
    ZoneKind::ALL.map(|kind| {
        let (low, high) = limits.possible(kind, max_pfn);
        let (start, end) = (node_start.clamp(low, high), node_end.clamp(low, high));
        let (start, end) = match limits.movable_start.as_u64() {
            0 => (start, end),
            movable if kind == ZoneKind::Movable => (movable, node_end.min(limits.movable_zone(max_pfn).1)),
            movable => (start.min(movable), end.min(movable)),
        };
        let (start, end) = (start.max(node_start), end.min(node_end));
        if start >= end {
            return Extent::default();
        }
        let present =
            frames(memory, node).map(|(first, last)| last.min(end).saturating_sub(first.max(start))).sum();
        Extent { start_pfn: Pfn::new(start), spanned: end - start, present }
    })
}

/// First frame and one past the last of a node; `None` without memory (Linux:
/// `get_pfn_range_for_nid`).
pub(crate) fn node_span(memory: &[MemblockRegion], node: u32) -> Option<(u64, u64)> {
    frames(memory, node).reduce(|(start, end), (first, last)| (start.min(first), end.max(last)))
}

/// The whole frames of a node's regions.
pub(crate) fn frames(memory: &[MemblockRegion], node: u32) -> impl Iterator<Item = (u64, u64)> + '_ {
    memory.iter().filter(move |region| region.node == node).map(frames_of).filter(|(start, end)| start < end)
}

/// One past the last frame of RAM.
pub(crate) fn max_pfn(memory: &[MemblockRegion]) -> u64 {
    memory.iter().map(|region| frames_of(region).1).max().unwrap_or(0)
}

fn frames_of(region: &MemblockRegion) -> (u64, u64) {
    (region.base.div_ceil(PAGE_SIZE), region.base.saturating_add(region.size) >> PAGE_SHIFT)
}
