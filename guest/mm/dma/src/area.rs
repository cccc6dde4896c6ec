//! Slots of a part of a pool (Linux 6.1: kernel/dma/swiotlb.c, `swiotlb_do_find_slots`, `swiotlb_release_slots`).
//!
//! A1  a slot is free, or part of exactly one mapping; a mapping's slots are consecutive and of one segment;
//! A2  a free slot's `list` is the number of free slots from it on, up to the end of its segment; a used one's is 0;
//! A3  `used` is the number of slots in use, `mapped - unmapped` that of mappings.

use core::fmt;

use memvisor_abi::{
    INVALID_PHYS_ADDR, IO_TLB_SEGSIZE, IO_TLB_SHIFT, IO_TLB_SIZE, PAGE_SHIFT, PAGE_SIZE, SwiotlbArea,
    SwiotlbSlot,
};
use mm_core::PhysAddr;

/// A part of a pool, for whoever holds its lock.
#[derive(Debug)]
pub struct Area<'a> {
    slots: &'a mut [SwiotlbSlot],
    info: &'a mut SwiotlbArea,
    /// Number of the first slot in the pool.
    first: u32,
    /// Physical address of the first slot.
    start: PhysAddr,
}

/// What slots are asked for.
#[derive(Clone, Copy, Debug)]
pub struct SlotRequest {
    /// The buffer that they stand for.
    pub original: PhysAddr,
    /// Its bytes, at least 1.
    pub len: u64,
    /// The device's minimal alignment: bits of an address that must be the same of the buffer and of what stands for it (Linux:
    /// `dma_get_min_align_mask`).
    pub min_align_mask: u64,
    /// Alignment mask of what is given, for those who want pages (Linux: `alloc_align_mask`).
    pub alloc_align_mask: u64,
}

impl SlotRequest {
    /// Bytes of the first slot before the buffer begins (Linux: `swiotlb_align_offset`).
    fn offset(&self) -> u32 {
        let offset = self.original.as_u64() & self.min_align_mask & (IO_TLB_SIZE - 1);
        u32::try_from(offset).unwrap_or(0)
    }
}

/// Why there are no slots, or none can be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AreaError {
    /// No run of free slots is as long.
    Full,
    /// No mapping begins at that slot.
    NotMapped,
}

/// What is wrong with an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditError {
    /// Number of the slot in its area.
    pub slot: usize,
    /// The invariant, and what is wrong.
    pub what: &'static str,
}

impl fmt::Display for AuditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {}: {}", self.slot, self.what)
    }
}

/// Slots of so many bytes (Linux: `nr_slots`).
fn nr_slots(bytes: u64) -> usize {
    usize::try_from(bytes.div_ceil(IO_TLB_SIZE)).unwrap_or(usize::MAX)
}

/// First slot of the segment of `index`, and the first behind it.
fn segment(index: usize) -> (usize, usize) {
    let size = IO_TLB_SEGSIZE as usize;
    let begin = index / size * size;
    (begin, begin + size)
}

impl<'a> Area<'a> {
    /// An area of free slots: as many as `slots` has, whole segments, from `start` on. Slot 0 has the number `first` in its pool.
    pub fn new(
        slots: &'a mut [SwiotlbSlot],
        info: &'a mut SwiotlbArea,
        first: u32,
        start: PhysAddr,
    ) -> Area<'a> {
        debug_assert!(slots.len().is_multiple_of(IO_TLB_SEGSIZE as usize));
        for (left, slot) in (1..=IO_TLB_SEGSIZE).rev().cycle().zip(slots.iter_mut()) {
            *slot = SwiotlbSlot::free(left);
        }
        *info = SwiotlbArea::default();
        Area { slots, info, first, start }
    }

    /// What is published of it.
    pub fn info(&self) -> &SwiotlbArea {
        self.info
    }

    /// Its slots.
    pub fn slots(&self) -> &[SwiotlbSlot] {
        self.slots
    }

    /// Its slots and counts, for seeded faults.
    pub fn parts_mut(&mut self) -> (&mut [SwiotlbSlot], &mut SwiotlbArea) {
        (self.slots, self.info)
    }

    fn address(&self, index: usize) -> u64 {
        self.start.as_u64() + ((index as u64) << IO_TLB_SHIFT)
    }

    /// Takes slots for a buffer; the physical address of its first byte among them, and the number of the first slot in the area.
    ///
    /// # Errors
    /// [`AreaError::Full`].
    pub fn map(&mut self, request: &SlotRequest) -> Result<(PhysAddr, usize), AreaError> {
        let offset = request.offset();
        let nslots = nr_slots(request.len.saturating_add(offset.into()));
        let index = self.find(request, nslots).ok_or(AreaError::Full)?;
        let head = self.first.wrapping_add(u32::try_from(index).unwrap_or(0));
        let mut done = 0_u64;
        for (at, slot) in self.slots.iter_mut().skip(index).take(nslots).enumerate() {
            let offset = if at == 0 { offset } else { 0 };
            *slot = SwiotlbSlot {
                orig_addr: request.original.as_u64().saturating_add(done),
                alloc_size: u32::try_from(request.len - done).unwrap_or(u32::MAX),
                list: 0,
                head,
                offset,
            };
            // Below the length but for the last slot.
            done += (IO_TLB_SIZE - u64::from(offset)).min(request.len - done);
        }
        self.count_before(index, 0);
        // The next search begins behind it (Linux: "update the indices to avoid searching in the next round").
        let next = index + nslots;
        let info = &mut self.info;
        info.index = u32::try_from(if next < self.slots.len() { next } else { 0 }).unwrap_or(0);
        info.used += u32::try_from(nslots).unwrap_or(0);
        info.used_hiwater = info.used_hiwater.max(info.used.into());
        info.mapped += 1;
        Ok((PhysAddr::new(self.address(index) + u64::from(offset)), index))
    }

    /// The first slot of a run of `nslots` free ones that suits.
    fn find(&self, request: &SlotRequest, nslots: usize) -> Option<usize> {
        let len = self.slots.len();
        if nslots == 0 || nslots > len - (self.info.used as usize).min(len) {
            return None;
        }
        let align_mask = request.min_align_mask & !(IO_TLB_SIZE - 1);
        // Buffers with an alignment are tried in its steps; those of a page or more begin at a page.
        let mut stride = (align_mask >> IO_TLB_SHIFT) + 1;
        if request.len.saturating_add(request.offset().into()) >= PAGE_SIZE {
            stride = stride.max(stride << (PAGE_SHIFT - IO_TLB_SHIFT));
        }
        stride = stride.max((request.alloc_align_mask >> IO_TLB_SHIFT) + 1);
        let stride = usize::try_from(stride).unwrap_or(usize::MAX);
        let wrap = |index: usize| if index < len { index } else { 0 };
        let mut index = wrap((self.info.index as usize).checked_next_multiple_of(stride)?);
        let mut checked = 0;
        while checked < len {
            let suits = self.address(index) & align_mask == request.original.as_u64() & align_mask;
            if !suits {
                index = wrap(index + 1);
                checked += 1;
                continue;
            }
            if self.slots.get(index).is_some_and(|slot| slot.list as usize >= nslots) {
                return Some(index);
            }
            index = wrap(index.saturating_add(stride));
            checked = checked.saturating_add(stride);
        }
        None
    }

    /// Counts the free slots of the segment before `index` anew, with `behind` free ones from `index` on.
    fn count_before(&mut self, index: usize, behind: u32) {
        let (begin, _) = segment(index);
        let mut count = behind;
        for slot in self.slots.get_mut(begin..index).unwrap_or(&mut []).iter_mut().rev() {
            if slot.list == 0 {
                break;
            }
            count += 1;
            slot.list = count;
        }
    }

    /// Gives the slots of the mapping that begins at slot `index` of the area back.
    ///
    /// # Errors
    /// [`AreaError::NotMapped`]; nothing changes.
    pub fn unmap(&mut self, index: usize) -> Result<(), AreaError> {
        let nslots = self.mapping_at(index).ok_or(AreaError::NotMapped)?;
        let (_, end) = segment(index);
        // What is free behind it in its segment joins it.
        let next = self.slots.get(index + nslots).filter(|_| index + nslots < end);
        let mut count = next.map_or(0, |slot| slot.list);
        for slot in self.slots.get_mut(index..index + nslots).unwrap_or(&mut []).iter_mut().rev() {
            count += 1;
            *slot = SwiotlbSlot::free(count);
        }
        self.count_before(index, count);
        self.info.used -= u32::try_from(nslots).unwrap_or(0).min(self.info.used);
        self.info.unmapped += 1;
        Ok(())
    }

    /// Slots of the mapping that begins at `index`.
    fn mapping_at(&self, index: usize) -> Option<usize> {
        let slot = self.slots.get(index)?;
        let number = self.first.wrapping_add(u32::try_from(index).ok()?);
        let begins = slot.orig_addr != INVALID_PHYS_ADDR && slot.head == number;
        begins.then(|| nr_slots(u64::from(slot.alloc_size) + u64::from(slot.offset)))
    }

    /// Checks A1 to A3.
    ///
    /// # Errors
    /// The first slot that is wrong.
    pub fn audit(&self) -> Result<(), AuditError> {
        let wrong = |slot, what| Err(AuditError { slot, what });
        let (mut used, mut mappings) = (0, 0);
        let mut index = 0;
        while let Some(slot) = self.slots.get(index) {
            let (_, end) = segment(index);
            if slot.orig_addr == INVALID_PHYS_ADDR {
                let rest = self.slots.get(index..end).unwrap_or(&[]);
                let run = rest.iter().take_while(|slot| slot.orig_addr == INVALID_PHYS_ADDR).count();
                if slot.list as usize != run || slot.alloc_size != 0 || slot.head != SwiotlbSlot::NO_HEAD {
                    return wrong(index, "A2: a free slot counts wrongly, or has a mapping");
                }
                index += 1;
                continue;
            }
            let Some(nslots) = self.mapping_at(index) else {
                return wrong(index, "A1: a used slot without mapping");
            };
            let mapping = self.slots.get(index..index + nslots);
            let Some(mapping) = mapping.filter(|_| nslots > 0 && index + nslots <= end) else {
                return wrong(index, "A1: a mapping leaves its segment");
            };
            if mapping.iter().any(|part| part.list != 0 || part.head != slot.head) {
                return wrong(index, "A1: a mapping's slots are not its own");
            }
            (used, mappings) = (used + nslots, mappings + 1);
            index += nslots;
        }
        match used == self.info.used as usize && self.info.mapped - self.info.unmapped == mappings {
            true => Ok(()),
            false => wrong(0, "A3: used slots or mappings are not counted"),
        }
    }
}
