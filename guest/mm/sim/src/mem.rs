//! Descriptors and contents of simulated frames.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mm_core::{
    MemMap, Migratetype, PAGE_SIZE, PAGEBLOCK_ORDER, Page, PageKind, Pageblock, Pfn, PhysAddr, PhysMem,
    Trace, ZoneKind,
};

/// What a word of a frame reads that nobody wrote: RAM is not zero at power-on, and code that
/// relies on that must fail here.
pub const POISON: u64 = 0x5a5a_5a5a_5a5a_5a5a;

const WORDS: usize = (PAGE_SIZE / 8) as usize;

/// RAM made of arbitrary frame ranges. Frames outside the ranges are holes: they have no
/// descriptor, and touching their contents panics, as [`PhysMem`] demands.
///
/// ```
/// use mm_core::{MemMap, Pfn, PhysAddr, PhysMem};
/// use mm_sim::{POISON, SimMem};
/// let mem = SimMem::new(&[Pfn::new(0)..Pfn::new(4), Pfn::new(8)..Pfn::new(9)]);
/// assert!(mem.page(Pfn::new(8)).is_some() && mem.page(Pfn::new(4)).is_none());
/// assert_eq!(mem.read_u64(PhysAddr::new(0x8000)), POISON);
/// mem.zero_frame(Pfn::new(8));
/// assert_eq!(mem.read_u64(PhysAddr::new(0x8000)), 0);
/// ```
#[derive(Debug)]
pub struct SimMem {
    /// Ascending, disjoint, not adjacent.
    ranges: Vec<SimRange>,
    /// Pageblocks that hold RAM, ascending by number.
    blocks: Vec<(u64, Pageblock)>,
    /// Frames that were written, by number.
    frames: Mutex<HashMap<u64, Box<[u64; WORDS]>>>,
    tracing: AtomicBool,
}

#[derive(Debug)]
struct SimRange {
    start: u64,
    pages: Vec<Page>,
}

impl SimMem {
    /// RAM at `ranges` (any order; overlaps and neighbours are merged) with all-zero descriptors,
    /// as in a section whose memmap was just allocated.
    pub fn new(ranges: &[Range<Pfn>]) -> SimMem {
        let mut sorted: Vec<(u64, u64)> = ranges
            .iter()
            .map(|range| (range.start.as_u64(), range.end.as_u64()))
            .filter(|(start, end)| start < end)
            .collect();
        sorted.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (start, end) in sorted {
            match merged.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        let mut numbers: Vec<u64> = merged
            .iter()
            .flat_map(|(start, end)| start >> PAGEBLOCK_ORDER..=(end - 1) >> PAGEBLOCK_ORDER)
            .collect();
        numbers.dedup();
        let blocks =
            numbers.into_iter().map(|number| (number, Pageblock::new(Migratetype::Movable))).collect();
        let ranges = merged
            .into_iter()
            .map(|(start, end)| SimRange { start, pages: (start..end).map(|_| Page::default()).collect() })
            .collect();
        SimMem { ranges, blocks, frames: Mutex::new(HashMap::new()), tracing: AtomicBool::new(false) }
    }

    /// From now on the machine says that it traces, though it records nothing: code with short paths for machines
    /// that do not takes the whole ones.
    pub fn pretend_tracing(&self) {
        self.tracing.store(true, Ordering::Relaxed);
    }

    /// RAM from address 0 to `bytes`, a multiple of the page size.
    pub fn flat(bytes: u64) -> SimMem {
        SimMem::new(&[Pfn::new(0)..PhysAddr::new(bytes).pfn()])
    }

    /// Initialises the descriptors that exist in `range`.
    pub fn init(&self, range: Range<Pfn>, node: u32, zone: ZoneKind, kind: PageKind) {
        for pfn in range.start.as_u64()..range.end.as_u64() {
            if let Some(page) = self.page(Pfn::new(pfn)) {
                page.init(node, zone, kind);
            }
        }
    }

    /// The frame ranges of RAM, ascending and merged.
    pub fn ranges(&self) -> impl Iterator<Item = Range<Pfn>> {
        self.ranges
            .iter()
            .map(|range| Pfn::new(range.start)..Pfn::new(range.start).offset(range.pages.len() as u64))
    }

    /// Frames whose contents were written or zeroed, ascending.
    pub fn touched_frames(&self) -> Vec<Pfn> {
        let mut touched: Vec<Pfn> = self.contents().keys().map(|&pfn| Pfn::new(pfn)).collect();
        touched.sort_unstable();
        touched
    }

    fn contents(&self) -> MutexGuard<'_, HashMap<u64, Box<[u64; WORDS]>>> {
        // A test that panicked elsewhere leaves only whole words behind.
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The frame number and word index of an address that may be accessed.
    fn locate(&self, addr: PhysAddr) -> (u64, usize) {
        assert!(addr.is_aligned(8), "word access at {addr}, which is not a multiple of 8");
        assert!(!self.pages(addr.pfn()).is_empty(), "access at {addr}, which is outside RAM");
        (addr.pfn().as_u64(), (addr.page_offset() / 8) as usize)
    }
}

impl Trace for SimMem {
    fn is_tracing(&self) -> bool {
        self.tracing.load(Ordering::Relaxed)
    }
}

impl MemMap for SimMem {
    fn page(&self, pfn: Pfn) -> Option<&Page> {
        self.pages(pfn).first()
    }

    fn pages(&self, pfn: Pfn) -> &[Page] {
        let pfn = pfn.as_u64();
        let after = self.ranges.partition_point(|range| range.start <= pfn);
        let Some(range) = after.checked_sub(1).and_then(|index| self.ranges.get(index)) else { return &[] };
        usize::try_from(pfn - range.start).ok().and_then(|first| range.pages.get(first..)).unwrap_or(&[])
    }

    fn pageblock(&self, pfn: Pfn) -> Option<&Pageblock> {
        let number = pfn.as_u64() >> PAGEBLOCK_ORDER;
        let index = self.blocks.binary_search_by_key(&number, |block| block.0).ok()?;
        self.blocks.get(index).map(|block| &block.1)
    }
}

impl PhysMem for SimMem {
    fn read_u64(&self, addr: PhysAddr) -> u64 {
        let (pfn, word) = self.locate(addr);
        self.contents().get(&pfn).map_or(POISON, |frame| frame[word])
    }

    fn write_u64(&self, addr: PhysAddr, value: u64) {
        let (pfn, word) = self.locate(addr);
        self.contents().entry(pfn).or_insert_with(|| Box::new([POISON; WORDS]))[word] = value;
    }

    fn zero_frame(&self, pfn: Pfn) {
        let (pfn, _) = self.locate(pfn.phys());
        self.contents().insert(pfn, Box::new([0; WORDS]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pfns(start: u64, end: u64) -> Range<Pfn> {
        Pfn::new(start)..Pfn::new(end)
    }

    #[test]
    fn ranges_are_sorted_and_merged() {
        let mem = SimMem::new(&[pfns(8, 12), pfns(0, 4), pfns(4, 5), pfns(10, 14), pfns(20, 20)]);
        assert_eq!(mem.ranges().collect::<Vec<_>>(), [pfns(0, 5), pfns(8, 14)]);
        assert_eq!(mem.pages(Pfn::new(9)).len(), 5);
        assert!(mem.pages(Pfn::new(14)).is_empty());
    }

    #[test]
    fn init_skips_holes_and_sets_links() {
        let mem = SimMem::new(&[pfns(0, 2), pfns(4, 6)]);
        mem.init(pfns(0, 6), 3, ZoneKind::Dma32, PageKind::Tail);
        let page = mem.page(Pfn::new(5)).expect("frame 5 is RAM");
        assert_eq!((page.node(), page.zone(), page.kind()), (3, ZoneKind::Dma32, PageKind::Tail));
        assert!(mem.page(Pfn::new(3)).is_none());
    }

    #[test]
    fn words_keep_what_was_written_and_neighbours_stay_poisoned() {
        let mem = SimMem::flat(2 * PAGE_SIZE);
        mem.write_u64(PhysAddr::new(0x1008), 7);
        assert_eq!(mem.read_u64(PhysAddr::new(0x1008)), 7);
        assert_eq!(mem.read_u64(PhysAddr::new(0x1000)), POISON);
        assert_eq!(mem.touched_frames(), [Pfn::new(1)]);
    }

    #[test]
    #[should_panic(expected = "outside RAM")]
    fn a_hole_cannot_be_read() {
        SimMem::flat(PAGE_SIZE).read_u64(PhysAddr::new(PAGE_SIZE));
    }

    #[test]
    #[should_panic(expected = "not a multiple of 8")]
    fn a_misaligned_word_cannot_be_written() {
        SimMem::flat(PAGE_SIZE).write_u64(PhysAddr::new(4), 0);
    }
}
