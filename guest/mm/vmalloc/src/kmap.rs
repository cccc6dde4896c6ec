//! The blocking window: slots that map one frame each until nobody uses them and the window is full (Linux: mm/highmem.c,
//! `kmap_high`, `flush_all_zero_pkmaps`, `page_address_htable`).
//!
//! Invariants:
//! K1  a slot with count 0 maps nothing and has no frame; any other maps its frame;
//! K2  a frame is in at most one slot, and is found through the hash exactly if its slot's count is not 0;
//! K3  count is one more than the number of users: 1 means that the mapping waits for the next flush.
//!
//! This module decides; its caller writes the page-table entries and flushes.

use memvisor_abi::{KmapSlot, LAST_PKMAP};
use mm_core::{PFN_NONE, Pfn};

use crate::KmapError;

/// Buckets of the hash (Linux: `1 << PA_HASH_ORDER`).
const BUCKETS: usize = 128;

/// The window's slots.
#[derive(Debug)]
pub struct Pkmap {
    slots: [KmapSlot; LAST_PKMAP],
    /// First slot of each bucket's chain, plus 1.
    buckets: [u32; BUCKETS],
    /// Where the last free slot was found (Linux: `last_pkmap_nr`).
    last: usize,
}

/// Where a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PkmapHit {
    /// It was mapped already.
    Mapped(usize),
    /// The caller must map it in this slot.
    New(usize),
}

impl Pkmap {
    /// All slots empty.
    pub const fn new() -> Pkmap {
        let empty = KmapSlot { pfn: PFN_NONE, count: 0, next: 0 };
        Pkmap { slots: [empty; LAST_PKMAP], buckets: [0; BUCKETS], last: 0 }
    }

    /// The slots, for outside readers.
    pub const fn slots(&self) -> &[KmapSlot; LAST_PKMAP] {
        &self.slots
    }

    /// The slots for tests that damage them.
    pub const fn slots_mut(&mut self) -> &mut [KmapSlot; LAST_PKMAP] {
        &mut self.slots
    }

    /// The slot that maps a frame (Linux: `page_address` of a highmem page).
    pub fn find(&self, frame: Pfn) -> Option<usize> {
        let mut next = self.buckets[bucket(frame)];
        // A chain cannot be longer than the window, whatever damaged it.
        for _ in 0..LAST_PKMAP {
            let index = usize::try_from(next.checked_sub(1)?).ok()?;
            let slot = self.slots.get(index)?;
            if slot.pfn == frame.as_u64() {
                return Some(index);
            }
            next = slot.next;
        }
        None
    }

    /// Adds a user of the frame's slot. When a search for a free slot wraps around, `flush` is called with the slots that
    /// nobody uses: it unmaps each and flushes every CPU once, at the end.
    ///
    /// # Errors
    /// [`KmapError::Full`]: wait for an unmap and try again. [`KmapError::TooManyUsers`].
    pub fn kmap(&mut self, frame: Pfn, flush: impl FnMut(&[usize])) -> Result<PkmapHit, KmapError> {
        if let Some(index) = self.find(frame) {
            let count = &mut self.slots[index].count;
            *count = count.checked_add(1).ok_or(KmapError::TooManyUsers)?;
            return Ok(PkmapHit::Mapped(index));
        }
        let index = self.free_slot(flush).ok_or(KmapError::Full)?;
        let bucket = bucket(frame);
        self.slots[index] = KmapSlot { pfn: frame.as_u64(), count: 2, next: self.buckets[bucket] };
        // LAST_PKMAP fits.
        self.buckets[bucket] = u32::try_from(index + 1).unwrap_or(0);
        Ok(PkmapHit::New(index))
    }

    /// Drops a user; true if it was the last, and so somebody who waits may try again.
    ///
    /// # Errors
    /// [`KmapError::NotMapped`] if the frame has no user.
    pub fn kunmap(&mut self, frame: Pfn) -> Result<bool, KmapError> {
        let index = self.find(frame).ok_or(KmapError::NotMapped)?;
        let count = &mut self.slots[index].count;
        if *count < 2 {
            return Err(KmapError::NotMapped);
        }
        *count -= 1;
        Ok(*count == 1)
    }

    /// Empties every slot that nobody uses (Linux: `kmap_flush_unused`).
    pub fn flush_unused(&mut self, mut flush: impl FnMut(&[usize])) {
        let mut unused = [0; LAST_PKMAP];
        let mut len = 0;
        for index in 0..LAST_PKMAP {
            if self.slots[index].count == 1 {
                self.forget(index);
                unused[len] = index;
                len += 1;
            }
        }
        if len > 0 {
            flush(&unused[..len]);
        }
    }

    fn free_slot(&mut self, mut flush: impl FnMut(&[usize])) -> Option<usize> {
        let (mut left, mut flushed) = (LAST_PKMAP, false);
        while left > 0 {
            left -= 1;
            self.last = (self.last + 1) % LAST_PKMAP;
            if self.last == 0 && !flushed {
                self.flush_unused(&mut flush);
                // A whole round more: slots that were passed may be free now.
                (left, flushed) = (LAST_PKMAP, true);
            }
            if self.slots[self.last].count == 0 {
                return Some(self.last);
            }
        }
        None
    }

    fn forget(&mut self, index: usize) {
        let slot = self.slots[index];
        let bucket = bucket(Pfn::new(slot.pfn));
        let number = u32::try_from(index + 1).unwrap_or(0);
        if self.buckets[bucket] == number {
            self.buckets[bucket] = slot.next;
        } else if let Some(before) = self.slots.iter_mut().find(|slot| slot.count != 0 && slot.next == number)
        {
            before.next = slot.next;
        }
        self.slots[index] = KmapSlot { pfn: PFN_NONE, count: 0, next: 0 };
    }
}

impl Default for Pkmap {
    fn default() -> Self {
        Pkmap::new()
    }
}

/// Linux: `hash_ptr` by the golden ratio.
const fn bucket(frame: Pfn) -> usize {
    (frame.as_u64().wrapping_mul(0x61c8_8646_80b5_83eb) >> 57) as usize
}
