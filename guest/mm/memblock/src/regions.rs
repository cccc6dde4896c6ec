//! A sorted array of regions (Linux: `struct memblock_type`).
//!
//! Invariants, verified by [`crate::Memblock::audit`] for both lists:
//! M1  no region is empty or reaches past the end of the address space;
//! M2  regions ascend and do not overlap;
//! M3  neighbours that touch differ in node.

use core::fmt;

use memvisor_abi::MemblockRegion;
use mm_core::PhysAddr;

/// One of the two lists of a memblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// RAM.
    Memory,
    /// In use.
    Reserved,
}

impl List {
    const fn name(self) -> &'static str {
        match self {
            List::Memory => "memory",
            List::Reserved => "reserved",
        }
    }
}

/// Why memblock refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemblockError {
    /// The list has no room for the regions that the change would leave; nothing was changed.
    Full {
        /// The list.
        list: List,
        /// First byte of the range.
        base: PhysAddr,
        /// Bytes of the range.
        size: u64,
        /// Regions the list holds at most.
        capacity: usize,
    },
}

impl fmt::Display for MemblockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MemblockError::Full { list, base, size, capacity } => write!(
                f,
                "memblock {} is full: no room for {size:#x} bytes at {base} among {capacity} regions; raise \
                 the capacity",
                list.name()
            ),
        }
    }
}

/// A broken invariant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule's number, such as `"M2"`.
    pub rule: &'static str,
    /// The list that breaks it.
    pub list: List,
    /// The first byte of the region at which it shows.
    pub base: PhysAddr,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} violated in memblock {} at {}", self.rule, self.list.name(), self.base)
    }
}

/// Bytes `start..end` of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    start: u64,
    end: u64,
    node: u32,
}

/// At most `N` regions that keep M1 to M3.
#[derive(Clone, Debug)]
pub(crate) struct Regions<const N: usize> {
    list: List,
    len: usize,
    regions: [MemblockRegion; N],
}

impl<const N: usize> Regions<N> {
    pub(crate) const fn new(list: List) -> Regions<N> {
        const EMPTY: MemblockRegion = MemblockRegion { base: 0, size: 0, node: 0, flags: 0 };
        Regions { list, len: 0, regions: [EMPTY; N] }
    }

    pub(crate) fn as_slice(&self) -> &[MemblockRegion] {
        self.regions.get(..self.len).unwrap_or(&[])
    }

    /// Adds what `base..base + size` does not hold yet; what it holds keeps its node (Linux:
    /// `memblock_add_range`).
    pub(crate) fn add(&mut self, base: PhysAddr, size: u64, node: u32) -> Result<(), MemblockError> {
        let (start, end) = cap(base, size);
        let mut needed = 0;
        let mut at = start;
        while let Some(piece) = self.next_gap(at, end, node) {
            needed += usize::from(!self.joins_neighbour(piece));
            at = piece.end;
        }
        self.check_room(needed, base, size)?;
        let mut at = start;
        while let Some(piece) = self.next_gap(at, end, node) {
            self.insert(piece);
            at = piece.end;
        }
        Ok(())
    }

    /// Removes `base..base + size` (Linux: `memblock_remove_range`).
    pub(crate) fn remove(&mut self, base: PhysAddr, size: u64) -> Result<(), MemblockError> {
        let (start, end) = cap(base, size);
        let first = self.first_ending_after(start);
        let splits_one = self
            .as_slice()
            .get(first)
            .is_some_and(|region| start < end && region.base < start && end < end_of(region));
        self.check_room(usize::from(splits_one), base, size)?;
        if start < end {
            self.cut(first, start, end, splits_one);
        }
        Ok(())
    }

    /// Gives what is in `base..base + size` to `node` (Linux: `memblock_set_node`). Needs room for
    /// two more regions at most, even if merging leaves fewer.
    pub(crate) fn set_node(&mut self, base: PhysAddr, size: u64, node: u32) -> Result<(), MemblockError> {
        let (start, end) = cap(base, size);
        if start == end {
            return Ok(());
        }
        let needed = [start, end].into_iter().filter(|edge| self.splits(*edge, node)).count();
        self.check_room(needed, base, size)?;
        for edge in [start, end] {
            if self.splits(edge, node) {
                self.split_at(edge);
            }
        }
        let first = self.first_ending_after(start);
        let last = self.first_starting_at(end);
        for region in self.regions.get_mut(first..last).unwrap_or(&mut []) {
            region.node = node;
        }
        self.merge(first, last);
        Ok(())
    }

    /// Moves the ends of a region inwards; removes it if nothing is left.
    pub(crate) fn resize(&mut self, index: usize, start: u64, end: u64) {
        if start >= end {
            self.drain(index, index + 1);
        } else if let Some(region) = self.regions.get_mut(index).filter(|_| index < self.len) {
            region.base = start;
            region.size = end - start;
        }
    }

    pub(crate) fn audit(&self) -> Result<(), Violation> {
        let fail = |rule, region: &MemblockRegion| {
            Err(Violation { rule, list: self.list, base: PhysAddr::new(region.base) })
        };
        for region in self.as_slice() {
            if region.size == 0 || region.base.checked_add(region.size).is_none() {
                return fail("M1", region);
            }
        }
        for pair in self.as_slice().windows(2) {
            if let [left, right] = pair {
                if end_of(left) > right.base {
                    return fail("M2", right);
                }
                if end_of(left) == right.base && left.node == right.node {
                    return fail("M3", right);
                }
            }
        }
        Ok(())
    }

    /// Index of the first region that ends after `addr`.
    pub(crate) fn first_ending_after(&self, addr: u64) -> usize {
        self.as_slice().partition_point(|region| end_of(region) <= addr)
    }

    /// Index of the first region that starts at `addr` or after.
    fn first_starting_at(&self, addr: u64) -> usize {
        self.as_slice().partition_point(|region| region.base < addr)
    }

    /// The first part of `start..end` that no region holds.
    fn next_gap(&self, mut start: u64, end: u64, node: u32) -> Option<Piece> {
        for region in self.as_slice().get(self.first_ending_after(start)..)? {
            if region.base > start {
                let end = region.base.min(end);
                return (start < end).then_some(Piece { start, end, node });
            }
            start = end_of(region);
        }
        (start < end).then_some(Piece { start, end, node })
    }

    fn joins_neighbour(&self, piece: Piece) -> bool {
        let next = self.first_starting_at(piece.start);
        let before = next.checked_sub(1).and_then(|index| self.as_slice().get(index));
        let after = self.as_slice().get(next);
        before.is_some_and(|region| end_of(region) == piece.start && region.node == piece.node)
            || after.is_some_and(|region| region.base == piece.end && region.node == piece.node)
    }

    /// Inserts a piece that overlaps nothing; [`Regions::add`] checked the room.
    fn insert(&mut self, piece: Piece) {
        let next = self.first_starting_at(piece.start);
        let size = piece.end - piece.start;
        if let Some(before) = next.checked_sub(1).and_then(|index| self.regions.get_mut(index))
            && before.base + before.size == piece.start
            && before.node == piece.node
        {
            before.size += size;
            self.merge(next, next);
        } else if let Some(after) = self.regions.get_mut(next).filter(|_| next < self.len)
            && after.base == piece.end
            && after.node == piece.node
        {
            after.base = piece.start;
            after.size += size;
        } else {
            self.insert_at(next, MemblockRegion { base: piece.start, size, node: piece.node, flags: 0 });
        }
    }

    /// Whether `edge` lies inside a region of another node than `node`.
    fn splits(&self, edge: u64, node: u32) -> bool {
        self.as_slice()
            .get(self.first_ending_after(edge))
            .is_some_and(|region| region.base < edge && region.node != node)
    }

    /// Cuts the region that holds `edge` and does not start there in two. The caller checked the room.
    fn split_at(&mut self, edge: u64) {
        let index = self.first_ending_after(edge);
        let Some(region) =
            self.regions.get_mut(index).filter(|region| index < self.len && region.base < edge)
        else {
            return;
        };
        let upper = MemblockRegion { base: edge, size: region.base + region.size - edge, ..*region };
        region.size = edge - region.base;
        self.insert_at(index + 1, upper);
    }

    fn insert_at(&mut self, index: usize, region: MemblockRegion) {
        debug_assert!(self.len < N, "room was checked");
        if let Some(tail) = self.regions.get_mut(index..=self.len) {
            tail.rotate_right(1);
            self.len += 1;
            if let Some(slot) = self.regions.get_mut(index) {
                *slot = region;
            }
        }
    }

    /// Takes `start..end` out of the regions from `first` on, the first that reaches past `start`.
    fn cut(&mut self, mut first: usize, start: u64, end: u64, splits_one: bool) {
        if splits_one {
            self.split_at(end);
        }
        let len = self.len;
        if let Some(region) = self.regions.get_mut(first).filter(|region| first < len && region.base < start)
        {
            region.size = start - region.base;
            first += 1;
        }
        let last = self.first_ending_after(end);
        if let Some(region) = self.regions.get_mut(last).filter(|region| last < len && region.base < end) {
            region.size -= end - region.base;
            region.base = end;
        }
        self.drain(first, last);
    }

    /// Removes regions `first..last`.
    fn drain(&mut self, first: usize, last: usize) {
        if first < last && last <= self.len {
            self.regions.copy_within(last..self.len, first);
            self.len -= last - first;
        }
    }

    /// Merges every region of `first..=last` with the one before it where M3 asks for it.
    fn merge(&mut self, first: usize, last: usize) {
        for index in (first.max(1)..=last).rev() {
            if let (Some(left), Some(right)) = (self.as_slice().get(index - 1), self.as_slice().get(index))
                && end_of(left) == right.base
                && left.node == right.node
            {
                let size = right.size;
                if let Some(left) = self.regions.get_mut(index - 1) {
                    left.size += size;
                }
                self.drain(index, index + 1);
            }
        }
    }

    fn check_room(&self, needed: usize, base: PhysAddr, size: u64) -> Result<(), MemblockError> {
        if self.len + needed <= N {
            Ok(())
        } else {
            Err(MemblockError::Full { list: self.list, base, size, capacity: N })
        }
    }
}

/// One past the last byte of a region, which M1 keeps from wrapping.
pub(crate) const fn end_of(region: &MemblockRegion) -> u64 {
    region.base.saturating_add(region.size)
}

/// The range, cut at the end of the address space (Linux: `memblock_cap_size`).
fn cap(base: PhysAddr, size: u64) -> (u64, u64) {
    (base.as_u64(), base.as_u64().saturating_add(size))
}
