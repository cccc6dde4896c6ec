//! Contiguous areas (Linux 6.1: mm/cma.c): a bitmap of what is handed out, and [`PageAllocator::alloc_contig_range`] to make room.
//!
//! Invariant:
//! C1  a bit is set from before its frames are taken until after they are given back, so two requests never try for the same
//!     frames.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use memvisor_abi::CmaArea;
use mm_core::{Event, Migratetype, Order, Pfn, Trace};

use crate::alloc::{Machine, PageAllocator};
use crate::contig::ContigError;
use crate::gfp::Context;

/// An area, with its bitmap where the machine keeps it.
#[derive(Clone, Copy, Debug)]
pub struct Cma<'a> {
    /// Place and size. `bitmap_gpa` and the counters are for readers.
    pub area: CmaArea,
    /// Number among the machine's areas, for events.
    pub number: u8,
    /// At least [`CmaArea::bits`] bits.
    pub bitmap: &'a [AtomicU64],
    /// Taken while the bitmap is looked at (Linux: `cma->lock`).
    pub lock: &'a AtomicBool,
}

impl Cma<'_> {
    /// Whether a bit is set; bits that do not exist are.
    fn is_set(&self, bit: u64) -> bool {
        let word = usize::try_from(bit / 64).ok().and_then(|index| self.bitmap.get(index));
        bit >= self.area.bits() || word.is_none_or(|word| word.load(Ordering::Relaxed) >> (bit % 64) & 1 == 1)
    }

    fn set(&self, first: u64, bits: u64, to: bool) {
        for bit in first..first.saturating_add(bits).min(self.area.bits()) {
            let Some(word) = usize::try_from(bit / 64).ok().and_then(|index| self.bitmap.get(index)) else {
                return;
            };
            let mask = 1 << (bit % 64);
            if to {
                word.fetch_or(mask, Ordering::Relaxed);
            } else {
                word.fetch_and(!mask, Ordering::Relaxed);
            }
        }
    }

    fn locked<R>(&self, f: impl FnOnce() -> R) -> R {
        while self.lock.swap(true, Ordering::Acquire) {
            core::hint::spin_loop();
        }
        let result = f();
        self.lock.store(false, Ordering::Release);
        result
    }

    /// Bits for that many frames.
    fn bits_for(&self, count: u64) -> u64 {
        count.div_ceil(1 << self.area.order_per_bit)
    }

    /// The first run of `bits` clear bits from `from` on, whose first frame is a multiple of `2^align` (Linux:
    /// `bitmap_find_next_zero_area_off`).
    fn find(&self, from: u64, bits: u64, align: Order) -> Option<u64> {
        let frame_of = |bit: u64| self.area.base_pfn + (bit << self.area.order_per_bit);
        let mut first = from;
        loop {
            let aligned =
                frame_of(first).checked_next_multiple_of(align.pages().max(1 << self.area.order_per_bit))?;
            first = (aligned - self.area.base_pfn) >> self.area.order_per_bit;
            let end = first.checked_add(bits).filter(|end| *end <= self.area.bits())?;
            match (first..end).rev().find(|bit| self.is_set(*bit)) {
                None => return Some(first),
                Some(taken) => first = taken + 1,
            }
        }
    }

    /// Frames that are handed out.
    pub fn used(&self) -> u64 {
        let set = (0..self.area.bits()).filter(|bit| self.is_set(*bit)).count() as u64;
        set << self.area.order_per_bit
    }
}

impl<M: Machine> PageAllocator<M> {
    /// `count` frames of an area in one piece, the first a multiple of `2^align`, each with one reference (Linux: `cma_alloc`). Where
    /// somebody's frames cannot be moved, the next place is tried. `None` if there is no place; 0 frames are none.
    ///
    /// The caller lets one request at a time in (Linux: `cma_mutex`): a second one in the same pageblock would find no place.
    pub fn cma_alloc(&self, context: Context<'_>, cma: &Cma<'_>, count: u64, align: Order) -> Option<Pfn> {
        let map = self.machine.map();
        map.emit(Event::CmaAllocStart { area: cma.number, count, align });
        let bits = cma.bits_for(count);
        let (mut from, mut errno) = (0, ContigError::NoMemory.errno());
        let mut found = None;
        while count > 0 && found.is_none() {
            let place = cma.locked(|| {
                let first = cma.find(from, bits, align)?;
                cma.set(first, bits, true);
                Some(first)
            });
            let Some(first) = place else { break };
            let pfn = Pfn::new(cma.area.base_pfn + (first << cma.area.order_per_bit));
            match self.alloc_contig_range(context, pfn, pfn.offset(count), Migratetype::Cma) {
                Ok(()) => (found, errno) = (Some(pfn), 0),
                Err(error) => {
                    cma.locked(|| cma.set(first, bits, false));
                    errno = error.errno();
                    if !matches!(error, ContigError::Busy { .. }) {
                        break;
                    }
                    from = first + (align.pages() >> cma.area.order_per_bit).max(1);
                }
            }
        }
        map.emit(Event::CmaAllocFinish { pfn: found, area: cma.number, errorno: errno, count });
        found
    }

    /// Gives frames back that [`PageAllocator::cma_alloc`] gave; `false`, and nothing changes, if they are not the area's or not
    /// all handed out (Linux: `cma_release`, which trusts the bitmap).
    pub fn cma_release(&self, cma: &Cma<'_>, pfn: Pfn, count: u64) -> bool {
        let offset = pfn.as_u64().checked_sub(cma.area.base_pfn);
        let inside =
            offset.filter(|offset| offset.checked_add(count).is_some_and(|end| end <= cma.area.count));
        let Some(offset) = inside.filter(|_| count > 0) else { return false };
        let (first, bits) = (offset >> cma.area.order_per_bit, cma.bits_for(count));
        if !cma.locked(|| (first..first + bits).all(|bit| cma.is_set(bit))) {
            return false;
        }
        self.machine.map().emit(Event::CmaRelease { pfn, count, area: cma.number });
        self.free_contig_range(pfn, count);
        cma.locked(|| cma.set(first, bits, false));
        true
    }
}
