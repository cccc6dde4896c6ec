//! The early allocator (Linux: mm/memblock.c).

use memvisor_abi::{MemblockRegion, NODE_NONE, PAGE_SIZE};
use mm_core::PhysAddr;

use crate::iter::{FreeRanges, FreeRangesRev, MemPfnRanges, mem_pfn_ranges};
use crate::regions::{List, MemblockError, Regions, Violation, end_of};

/// Where an allocation may lie: `min..max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocRange {
    /// Lowest first byte.
    pub min: PhysAddr,
    /// One past the highest last byte.
    pub max: PhysAddr,
}

impl AllocRange {
    /// Anywhere.
    pub const ALL: AllocRange = AllocRange { min: PhysAddr::new(0), max: PhysAddr::new(u64::MAX) };

    /// Below `max`, for memory that is mapped only so far (Linux: `memblock_set_current_limit`).
    pub const fn below(max: PhysAddr) -> AllocRange {
        AllocRange { min: PhysAddr::new(0), max }
    }
}

/// Which end of memory an allocation comes from (Linux: `memblock_set_bottom_up`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Highest address that fits.
    TopDown,
    /// Lowest address that fits.
    BottomUp,
}

/// RAM and reservations, `N` regions of each at most (Linux: `struct memblock`).
///
/// Ranges are cut at the end of the address space; empty ones change nothing. A change that finds
/// no room is refused whole.
///
/// ```
/// use mm_core::PhysAddr;
/// use mm_memblock::{AllocRange, Direction, Memblock};
/// let mut memblock = Memblock::<16>::new();
/// memblock.add(PhysAddr::new(0x10_0000), 0x10_0000, 0).unwrap();
/// let stack = memblock.alloc(0x4000, 0x1000, AllocRange::ALL, None, Direction::TopDown);
/// assert_eq!(stack, Some(PhysAddr::new(0x1f_c000)));
/// let free: Vec<_> = memblock.free_ranges().collect();
/// assert_eq!(free, [(PhysAddr::new(0x10_0000), PhysAddr::new(0x1f_c000), 0)]);
/// ```
#[derive(Clone, Debug)]
pub struct Memblock<const N: usize> {
    memory: Regions<N>,
    reserved: Regions<N>,
}

impl<const N: usize> Memblock<N> {
    /// No memory.
    pub const fn new() -> Self {
        Memblock { memory: Regions::new(List::Memory), reserved: Regions::new(List::Reserved) }
    }

    /// Adds RAM of `node` ([`NODE_NONE`] if it is not known yet). What is RAM already keeps its node
    /// (Linux: `memblock_add_node`).
    ///
    /// # Errors
    /// [`MemblockError::Full`].
    pub fn add(&mut self, base: PhysAddr, size: u64, node: u32) -> Result<(), MemblockError> {
        self.memory.add(base, size, node)
    }

    /// Takes RAM away again (Linux: `memblock_remove`).
    ///
    /// # Errors
    /// [`MemblockError::Full`] if a region would be split and there is no room for the second half.
    pub fn remove(&mut self, base: PhysAddr, size: u64) -> Result<(), MemblockError> {
        self.memory.remove(base, size)
    }

    /// Marks a range as in use, whether it is RAM or not, and whether it was in use before or not
    /// (Linux: `memblock_reserve`).
    ///
    /// # Errors
    /// [`MemblockError::Full`].
    pub fn reserve(&mut self, base: PhysAddr, size: u64) -> Result<(), MemblockError> {
        self.reserved.add(base, size, NODE_NONE)
    }

    /// Marks a range as no longer in use (Linux: `memblock_phys_free`).
    ///
    /// # Errors
    /// [`MemblockError::Full`] if a region would be split and there is no room for the second half.
    pub fn free(&mut self, base: PhysAddr, size: u64) -> Result<(), MemblockError> {
        self.reserved.remove(base, size)
    }

    /// Gives the RAM in a range to `node` (Linux: `memblock_set_node`).
    ///
    /// # Errors
    /// [`MemblockError::Full`] if the regions at the range's ends would be split and there is no room.
    pub fn set_node(&mut self, base: PhysAddr, size: u64, node: u32) -> Result<(), MemblockError> {
        self.memory.set_node(base, size, node)
    }

    /// Shrinks every memory region to multiples of `align`, a power of two, and drops those that hold
    /// none (Linux: `memblock_trim_memory`).
    pub fn trim_memory(&mut self, align: u64) {
        let mask = align.wrapping_sub(1);
        let mut index = 0;
        while let Some(region) = self.memory.as_slice().get(index).copied() {
            let start = region.base.checked_add(mask).map_or(u64::MAX, |up| up & !mask);
            let end = end_of(&region) & !mask;
            self.memory.resize(index, start, end);
            index += usize::from(start < end);
        }
    }

    /// Finds `size` bytes at a multiple of `align` (a power of two) inside `range`, on `node` only if
    /// one is given, and reserves them. `None` if nothing fits, if `size` is 0 or `align` no power of
    /// two, or if the reserved list is full. The first page of memory is never given out (Linux:
    /// `memblock_find_in_range_node`, with the node exact as in `memblock_alloc_exact_nid_raw`).
    pub fn alloc(
        &mut self,
        size: u64,
        align: u64,
        range: AllocRange,
        node: Option<u32>,
        direction: Direction,
    ) -> Option<PhysAddr> {
        if size == 0 || !align.is_power_of_two() {
            return None;
        }
        let min = range.min.as_u64().max(PAGE_SIZE);
        let max = range.max.as_u64();
        let (memory, reserved) = (self.memory(), self.reserved());
        let on_node = |have: u32| node.is_none_or(|node| node == have);
        let base = match direction {
            Direction::BottomUp => FreeRanges::new(memory, reserved, min, max)
                .filter(|(_, _, have)| on_node(*have))
                .find_map(|(start, end, _)| {
                    let base = start.align_up(align)?;
                    base.checked_add(size).filter(|last| *last <= end).map(|_| base)
                }),
            Direction::TopDown => FreeRangesRev::new(memory, reserved, min, max)
                .filter(|(_, _, have)| on_node(*have))
                .find_map(|(start, end, _)| {
                    let base = end.checked_sub(size)? & !(align - 1);
                    (base >= start).then(|| PhysAddr::new(base))
                }),
        }?;
        self.reserve(base, size).ok().map(|()| base)
    }

    /// RAM, ascending.
    pub fn memory(&self) -> &[MemblockRegion] {
        self.memory.as_slice()
    }

    /// Reservations, ascending. Their node is [`NODE_NONE`].
    pub fn reserved(&self) -> &[MemblockRegion] {
        self.reserved.as_slice()
    }

    /// RAM that is not reserved: start, end, node, ascending.
    pub fn free_ranges(&self) -> FreeRanges<'_> {
        self.free_ranges_in(AllocRange::ALL)
    }

    /// [`Memblock::free_ranges`] cut to `range`, without walking what lies below.
    pub fn free_ranges_in(&self, range: AllocRange) -> FreeRanges<'_> {
        FreeRanges::new(self.memory(), self.reserved(), range.min.as_u64(), range.max.as_u64())
    }

    /// Whole frames of RAM, of one node or all: first, one past the last, node.
    pub fn mem_pfn_ranges(&self, node: Option<u32>) -> MemPfnRanges<'_> {
        mem_pfn_ranges(self.memory(), node)
    }

    /// First byte of RAM (Linux: `memblock_start_of_DRAM`).
    pub fn start_of_dram(&self) -> Option<PhysAddr> {
        self.memory().first().map(|region| PhysAddr::new(region.base))
    }

    /// One past the last byte of RAM (Linux: `memblock_end_of_DRAM`).
    pub fn end_of_dram(&self) -> Option<PhysAddr> {
        self.memory().last().map(|region| PhysAddr::new(end_of(region)))
    }

    /// Verifies M1 to M3 of both lists.
    ///
    /// # Errors
    /// The first violation.
    pub fn audit(&self) -> Result<(), Violation> {
        self.memory.audit()?;
        self.reserved.audit()
    }
}

impl<const N: usize> Default for Memblock<N> {
    fn default() -> Self {
        Memblock::new()
    }
}
