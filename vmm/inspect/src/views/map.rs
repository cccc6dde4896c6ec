//! All frames at a glance: who has them, in blocks of what order, of what type, on which node.
//!
//! RAM is cut into cells of equally many frames, a power of two, so that there are at most as many cells as the
//! caller can draw. Frames are counted by what their descriptors say; `inspect page` tells whether that is true.

use std::fmt;

use memvisor_abi::{
    MIGRATE_TYPES, MemblockRegion, NODE_NONE, NR_ORDERS, PAGE_SHIFT, PAGEBLOCK_PAGES, PAGEBLOCK_TYPE_MASK,
    PAGES_PER_SECTION, Page, PageKind, SectionState,
};
use serde::Serialize;

use crate::{Guest, GuestError, MemorySource, section_start_pfn};

/// What a frame is used for, coarse enough for a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Use {
    /// On a zone's free list.
    Free,
    /// On a per-CPU list.
    PerCpuList,
    /// Free, descriptors not initialised.
    Deferred,
    /// User memory.
    User,
    /// A slab.
    Slab,
    /// Behind a vmalloc area.
    Vmalloc,
    /// A page table.
    PageTable,
    /// A kernel stack or a per-CPU area.
    PerCpu,
    /// Allocated by the kernel for anything else.
    Allocated,
    /// Holds descriptors.
    Memmap,
    /// Kernel image.
    Kernel,
    /// Reserved at boot.
    Reserved,
    /// RAM whose descriptor says nothing.
    Unknown,
}

impl Use {
    /// All uses, in the order of legends.
    pub const ALL: [Use; 13] = [
        Use::Free,
        Use::PerCpuList,
        Use::Deferred,
        Use::User,
        Use::Slab,
        Use::Vmalloc,
        Use::PageTable,
        Use::PerCpu,
        Use::Allocated,
        Use::Memmap,
        Use::Kernel,
        Use::Reserved,
        Use::Unknown,
    ];

    /// Name for legends.
    pub const fn name(self) -> &'static str {
        match self {
            Use::Free => "free",
            Use::PerCpuList => "per-CPU list",
            Use::Deferred => "deferred",
            Use::User => "user",
            Use::Slab => "slab",
            Use::Vmalloc => "vmalloc",
            Use::PageTable => "page table",
            Use::PerCpu => "per-CPU, stacks",
            Use::Allocated => "allocated",
            Use::Memmap => "memmap",
            Use::Kernel => "kernel image",
            Use::Reserved => "reserved",
            Use::Unknown => "unknown",
        }
    }

    fn of(kind: u8) -> Option<Use> {
        Some(match PageKind::from_raw(kind)? {
            PageKind::None => Use::Unknown,
            PageKind::Buddy => Use::Free,
            PageKind::Pcp => Use::PerCpuList,
            PageKind::Reserved => Use::Reserved,
            PageKind::Kernel => Use::Kernel,
            PageKind::Memmap => Use::Memmap,
            PageKind::Table => Use::PageTable,
            PageKind::PerCpu | PageKind::KernelStack => Use::PerCpu,
            PageKind::User => Use::User,
            PageKind::Allocated | PageKind::Zswap => Use::Allocated,
            PageKind::Slab => Use::Slab,
            PageKind::Vmalloc => Use::Vmalloc,
            // Its head speaks for it.
            PageKind::Tail => return None,
        })
    }
}

/// `inspect map`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapView {
    /// Frames of a cell.
    pub frames_per_cell: u64,
    /// RAM, ascending.
    pub regions: Vec<MapRegion>,
    /// Frames by use, those that there are.
    pub frames: Vec<(&'static str, u64)>,
    /// Free blocks by order, as headed by descriptors.
    pub free_blocks: Vec<u64>,
}

/// A range of RAM on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapRegion {
    /// First frame.
    pub start_pfn: u64,
    /// One past the last.
    pub end_pfn: u64,
    /// Node; `None` if nothing says.
    pub node: Option<u32>,
    /// Cells, ascending; the first and the last may be cut by the region.
    pub cells: Vec<MapCell>,
}

/// Some frames.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapCell {
    /// First frame.
    pub pfn: u64,
    /// Frames of it that are in the region.
    pub frames: u64,
    /// What most of them are used for; of equals, the first of [`Use::ALL`].
    pub mostly: Use,
    /// Free frames.
    pub free: u64,
    /// Largest order of a free block that covers any of them.
    pub free_order: Option<u8>,
    /// Migratetype of most frames' pageblocks; `None` if none is known.
    pub migratetype: Option<u8>,
    #[serde(skip)]
    types: [u64; MIGRATE_TYPES],
    #[serde(skip)]
    counts: [u64; Use::ALL.len()],
}

impl MapView {
    /// Counts all frames, into at most about `cells` cells (at least one a region).
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>, cells: usize) -> Result<MapView, GuestError> {
        let mut memory = guest.memblock_memory()?;
        memory.retain(|region| region.size >> PAGE_SHIFT != 0);
        memory.sort_by_key(|region| region.base);
        let ranges: Vec<_> = merge(&memory);
        let frames_per_cell = cell_size(&ranges, cells);
        let mut regions: Vec<MapRegion> = ranges
            .iter()
            .map(|&(start, end, node)| MapRegion::new(start, end, node, frames_per_cell))
            .collect();
        let mut frames = [0; Use::ALL.len()];
        let mut free_blocks = vec![0; NR_ORDERS];
        let mut pages = Vec::new();
        for section in guest.checked_sections()? {
            let first = section_start_pfn(section);
            let end = first + PAGES_PER_SECTION;
            let online = guest.read_section(section, &mut pages)?;
            let blocks = (0..).map(|number: u64| first + number * PAGEBLOCK_PAGES);
            let deferred = section.state == SectionState::Deferred as u32;
            // The block whose head was seen last.
            let mut block = Block { end: 0, usage: Use::Unknown, order: None };
            for region in regions.iter_mut().filter(|region| region.start_pfn < end && region.end_pfn > first)
            {
                let (from, to) = (region.start_pfn.max(first), region.end_pfn.min(end));
                for (block, byte) in blocks.clone().zip(section.pageblocks) {
                    region.count_type(block, byte & PAGEBLOCK_TYPE_MASK, frames_per_cell);
                }
                if !online {
                    let usage = if deferred { Use::Deferred } else { Use::Unknown };
                    region.count(from, to, usage, None, frames_per_cell);
                    *slot(&mut frames, usage) += to - from;
                    continue;
                }
                let skip = usize::try_from(from - first).unwrap_or(usize::MAX);
                // Runs of one use are counted at once.
                let mut run = from;
                let mut last = None;
                for (pfn, page) in (from..to).zip(pages.iter().skip(skip)) {
                    block.step(pfn, page, &mut free_blocks);
                    let now = (block.usage, block.order);
                    if let Some((usage, order)) = last.replace(now).filter(|last| *last != now) {
                        region.count(run, pfn, usage, order, frames_per_cell);
                        *slot(&mut frames, usage) += pfn - run;
                        run = pfn;
                    }
                }
                if let Some((usage, order)) = last {
                    region.count(run, to, usage, order, frames_per_cell);
                    *slot(&mut frames, usage) += to - run;
                }
            }
        }
        for cell in regions.iter_mut().flat_map(|region| &mut region.cells) {
            cell.settle();
        }
        let frames = Use::ALL.into_iter().zip(frames).filter(|(_, count)| *count != 0);
        let frames = frames.map(|(usage, count)| (usage.name(), count)).collect();
        Ok(MapView { frames_per_cell, regions, frames, free_blocks })
    }

    /// Frames in all.
    pub fn total(&self) -> u64 {
        self.regions.iter().map(|region| region.end_pfn - region.start_pfn).sum()
    }
}

/// Neighbours on one node are one range.
fn merge(memory: &[MemblockRegion]) -> Vec<(u64, u64, u32)> {
    let mut ranges: Vec<(u64, u64, u32)> = Vec::new();
    for region in memory {
        let end = region.base.saturating_add(region.size) >> PAGE_SHIFT;
        let mut start = region.base.div_ceil(1 << PAGE_SHIFT);
        if let Some(last) = ranges.last_mut() {
            // A guest that says RAM twice gets it drawn once.
            start = start.max(last.1);
            if start == last.1 && region.node == last.2 {
                last.1 = end.max(last.1);
                continue;
            }
        }
        if start < end {
            ranges.push((start, end, region.node));
        }
    }
    ranges
}

/// The smallest power of two that gives at most `cells` cells.
fn cell_size(ranges: &[(u64, u64, u32)], cells: usize) -> u64 {
    let count = |size: u64| {
        ranges
            .iter()
            .fold(0_u64, |sum, (start, end, _)| sum.saturating_add(end.div_ceil(size) - start / size))
    };
    let max = (cells as u64).max(ranges.len() as u64 * 2);
    (0..40).map(|shift| 1 << shift).find(|size| count(*size) <= max).unwrap_or(1 << 40)
}

/// Where a use is counted.
fn slot(counts: &mut [u64; Use::ALL.len()], usage: Use) -> &mut u64 {
    // `Use::ALL` has the variants in order.
    &mut counts[usage as usize]
}

/// The largest order.
#[expect(clippy::cast_possible_truncation, reason = "10 fits")]
const ORDER_MAX: u8 = NR_ORDERS as u8 - 1;

/// The block that a scan is in.
struct Block {
    end: u64,
    usage: Use,
    order: Option<u8>,
}

impl Block {
    /// Goes on to the frame `pfn`.
    fn step(&mut self, pfn: u64, page: &Page, free_blocks: &mut [u64]) {
        match Use::of(page.kind) {
            Some(usage) => {
                let order = page.order.min(ORDER_MAX);
                self.usage = usage;
                self.end = pfn + (1 << order);
                self.order = (usage == Use::Free).then_some(order);
                if usage == Use::Free
                    && let Some(count) = free_blocks.get_mut(usize::from(order))
                {
                    *count += 1;
                }
            }
            None if pfn < self.end => {}
            None => *self = Block { end: 0, usage: Use::Unknown, order: None },
        }
    }
}

impl MapRegion {
    fn new(start_pfn: u64, end_pfn: u64, node: u32, size: u64) -> MapRegion {
        let cells = (start_pfn / size..end_pfn.div_ceil(size))
            .map(|index| {
                let pfn = (index * size).max(start_pfn);
                let frames = ((index + 1) * size).min(end_pfn) - pfn;
                MapCell {
                    pfn,
                    frames,
                    mostly: Use::Unknown,
                    free: 0,
                    free_order: None,
                    migratetype: None,
                    types: [0; MIGRATE_TYPES],
                    counts: Default::default(),
                }
            })
            .collect();
        MapRegion { start_pfn, end_pfn, node: (node != NODE_NONE).then_some(node), cells }
    }

    /// Counts the frames of a pageblock that are in the region.
    fn count_type(&mut self, block: u64, raw: u8, size: u64) {
        let (mut at, end) = (block.max(self.start_pfn), (block + PAGEBLOCK_PAGES).min(self.end_pfn));
        while at < end {
            let to = ((at / size + 1) * size).min(end);
            let cell = usize::try_from(at / size - self.start_pfn / size);
            let cell = cell.ok().and_then(|index| self.cells.get_mut(index));
            if let Some(count) = cell.and_then(|cell| cell.types.get_mut(usize::from(raw))) {
                *count += to - at;
            }
            at = to;
        }
    }

    /// Counts the frames `from..to`, which are in the region.
    fn count(&mut self, from: u64, to: u64, usage: Use, order: Option<u8>, size: u64) {
        let base = self.start_pfn / size;
        let mut at = from;
        while at < to {
            let index = usize::try_from(at / size - base).unwrap_or(usize::MAX);
            let end = ((at / size + 1) * size).min(to);
            let Some(cell) = self.cells.get_mut(index) else { return };
            *slot(&mut cell.counts, usage) += end - at;
            cell.free_order = cell.free_order.max(order);
            at = end;
        }
    }
}

impl MapCell {
    fn settle(&mut self) {
        self.free = *slot(&mut self.counts, Use::Free) + *slot(&mut self.counts, Use::PerCpuList);
        let mut most = (0, Use::Unknown);
        for (usage, count) in Use::ALL.into_iter().zip(self.counts) {
            if count > most.0 {
                most = (count, usage);
            }
        }
        self.mostly = most.1;
        let mut most = 0;
        for (count, raw) in self.types.into_iter().zip(0..) {
            if count > most {
                (most, self.migratetype) = (count, Some(raw));
            }
        }
    }
}

/// The numbers; whoever draws has more to say.
impl fmt::Display for MapView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "frame map: {} frames of RAM, {} a cell", self.total(), self.frames_per_cell)?;
        for (name, count) in &self.frames {
            let tenths = u128::from(*count) * 1000 / u128::from(self.total().max(1));
            writeln!(f, "  {name:<16} {count:>12}  {:>3}.{} %", tenths / 10, tenths % 10)?;
        }
        let orders: Vec<_> = self.free_blocks.iter().map(u64::to_string).collect();
        writeln!(f, "  free blocks by order: {}", orders.join(" "))
    }
}
