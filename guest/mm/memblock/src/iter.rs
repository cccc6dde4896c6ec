//! Iterators over memory, and over memory that is not reserved.

use memvisor_abi::{MemblockRegion, PAGE_SHIFT, PAGE_SIZE};
use mm_core::{Pfn, PhysAddr};

use crate::regions::end_of;

/// Memory minus reservations inside a range, ascending: start, end and node (Linux:
/// `for_each_free_mem_range`). A range ends where its memory region does, so it has one node.
#[derive(Clone, Debug)]
pub struct FreeRanges<'a> {
    memory: &'a [MemblockRegion],
    reserved: &'a [MemblockRegion],
    at: u64,
    max: u64,
}

impl<'a> FreeRanges<'a> {
    pub(crate) fn new(
        memory: &'a [MemblockRegion],
        reserved: &'a [MemblockRegion],
        min: u64,
        max: u64,
    ) -> Self {
        let after = |regions: &'a [MemblockRegion]| {
            let first = regions.partition_point(|region| end_of(region) <= min);
            regions.get(first..).unwrap_or(&[])
        };
        FreeRanges { memory: after(memory), reserved: after(reserved), at: min, max }
    }
}

impl Iterator for FreeRanges<'_> {
    type Item = (PhysAddr, PhysAddr, u32);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (region, memory) = self.memory.split_first()?;
            self.at = self.at.max(region.base);
            if self.at >= self.max {
                return None;
            }
            if self.at >= end_of(region) {
                self.memory = memory;
                continue;
            }
            let mut end = end_of(region).min(self.max);
            if let Some((taken, reserved)) = self.reserved.split_first() {
                if end_of(taken) <= self.at {
                    self.reserved = reserved;
                    continue;
                }
                if taken.base <= self.at {
                    self.at = end_of(taken);
                    continue;
                }
                end = end.min(taken.base);
            }
            let start = core::mem::replace(&mut self.at, end);
            return Some((PhysAddr::new(start), PhysAddr::new(end), region.node));
        }
    }
}

/// What [`FreeRanges`] gives, descending (Linux: `for_each_free_mem_range_reverse`).
#[derive(Clone, Debug)]
pub(crate) struct FreeRangesRev<'a> {
    memory: &'a [MemblockRegion],
    reserved: &'a [MemblockRegion],
    min: u64,
    at: u64,
}

impl<'a> FreeRangesRev<'a> {
    pub(crate) fn new(
        memory: &'a [MemblockRegion],
        reserved: &'a [MemblockRegion],
        min: u64,
        max: u64,
    ) -> Self {
        let before = |regions: &'a [MemblockRegion]| {
            let end = regions.partition_point(|region| region.base < max);
            regions.get(..end).unwrap_or(&[])
        };
        FreeRangesRev { memory: before(memory), reserved: before(reserved), min, at: max }
    }
}

impl Iterator for FreeRangesRev<'_> {
    type Item = (u64, u64, u32);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (region, memory) = self.memory.split_last()?;
            self.at = self.at.min(end_of(region));
            if self.at <= self.min {
                return None;
            }
            if self.at <= region.base {
                self.memory = memory;
                continue;
            }
            let mut start = region.base.max(self.min);
            if let Some((taken, reserved)) = self.reserved.split_last() {
                if taken.base >= self.at {
                    self.reserved = reserved;
                    continue;
                }
                if end_of(taken) >= self.at {
                    self.at = taken.base;
                    continue;
                }
                start = start.max(end_of(taken));
            }
            let end = core::mem::replace(&mut self.at, start);
            return Some((start, end, region.node));
        }
    }
}

/// Whole frames of memory regions: first, one past the last, node (Linux: `for_each_mem_pfn_range`).
#[derive(Clone, Debug)]
pub struct MemPfnRanges<'a> {
    regions: core::slice::Iter<'a, MemblockRegion>,
    node: Option<u32>,
}

/// The frames that lie wholly inside `regions`: `PFN_UP` of the start, `PFN_DOWN` of the end. Regions
/// without a whole frame are left out, as are those of other nodes if `node` is given.
pub fn mem_pfn_ranges(regions: &[MemblockRegion], node: Option<u32>) -> MemPfnRanges<'_> {
    MemPfnRanges { regions: regions.iter(), node }
}

impl Iterator for MemPfnRanges<'_> {
    type Item = (Pfn, Pfn, u32);

    fn next(&mut self) -> Option<Self::Item> {
        let wanted = self.node;
        self.regions.by_ref().filter(|region| wanted.is_none_or(|node| node == region.node)).find_map(
            |region| {
                let start = region.base.div_ceil(PAGE_SIZE);
                let end = end_of(region) >> PAGE_SHIFT;
                (start < end).then_some((Pfn::new(start), Pfn::new(end), region.node))
            },
        )
    }
}
