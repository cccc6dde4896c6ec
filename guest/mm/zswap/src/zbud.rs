//! Frames that two compressed pages share (Linux: mm/zbud.c).
//!
//! A frame begins with a header of one chunk. One user lies behind it, the other at the end, and neither ever moves. A frame with
//! one user is on the list of those with so many chunks free between; all are on one list in the order in which they got a user last.
//!
//! Differs from Linux: a frame that is being emptied stays on its lists. Whoever empties it finds its users by slot, one by one, so that one
//! who comes meanwhile is in nobody's way.

use core::mem::offset_of;

use memvisor_abi::{PFN_NONE, ZBUD_CHUNK, ZBUD_CHUNKS, ZBUD_LISTS, ZBUD_MAX, ZbudHeader, ZbudPool};
use mm_core::{PAGE_SIZE, Pfn, PhysAddr, PhysMem};

use crate::spare::Spare;

const FIRST_CHUNKS: usize = offset_of!(ZbudHeader, first_chunks);
const LAST_CHUNKS: usize = offset_of!(ZbudHeader, last_chunks);
/// Where a frame's links on a list are.
#[derive(Clone, Copy)]
struct Links {
    next: usize,
    prev: usize,
}
const LRU: Links = Links { next: offset_of!(ZbudHeader, lru_next), prev: offset_of!(ZbudHeader, lru_prev) };
const BUDDY: Links =
    Links { next: offset_of!(ZbudHeader, buddy_next), prev: offset_of!(ZbudHeader, buddy_prev) };

/// A pool with the memory that it lies in.
pub(crate) struct Zbud<'a, M> {
    pub m: &'a M,
    pub pool: &'a mut ZbudPool,
}

/// No frame.
pub(crate) const EMPTY: ZbudPool =
    ZbudPool { pages: 0, lru_first: PFN_NONE, lru_last: PFN_NONE, unbuddied: [PFN_NONE; ZBUD_LISTS] };

fn chunks_of(len_bytes: u64) -> u64 {
    len_bytes.div_ceil(ZBUD_CHUNK)
}

fn field(frame: u64, offset: usize) -> PhysAddr {
    PhysAddr::new(Pfn::new(frame).phys().as_u64() + offset as u64)
}

/// Whether a place is the one behind the header.
pub(crate) fn is_first(place: PhysAddr) -> bool {
    place.page_offset() == ZBUD_CHUNK
}

impl<M: PhysMem> Zbud<'_, M> {
    fn read(&self, frame: u64, offset: usize) -> u64 {
        self.m.read_u64(field(frame, offset))
    }

    fn write(&self, frame: u64, offset: usize, value: u64) {
        self.m.write_u64(field(frame, offset), value);
    }

    fn free_chunks(&self, frame: u64) -> u64 {
        ZBUD_CHUNKS - self.read(frame, FIRST_CHUNKS) - self.read(frame, LAST_CHUNKS)
    }

    /// A frame with one user and room for so much, the one that fits best.
    fn with_room(&self, len_bytes: u64) -> Option<u64> {
        let least = usize::try_from(chunks_of(len_bytes)).ok()?;
        self.pool.unbuddied.iter().skip(least).copied().find(|frame| *frame != PFN_NONE)
    }

    /// Whether another frame is needed for so much.
    pub fn is_frame_needed(&self, len_bytes: u64) -> bool {
        self.with_room(len_bytes).is_none()
    }

    /// Room for so many bytes of a slot's page; a frame of `spare` joins the pool if none has any (Linux: `zbud_alloc`). `None` for what no
    /// frame takes, and without a frame.
    pub fn alloc(&mut self, len_bytes: u64, slot: u64, spare: &mut Spare) -> Option<PhysAddr> {
        if len_bytes == 0 || len_bytes > ZBUD_MAX {
            return None;
        }
        let chunks = chunks_of(len_bytes);
        let frame = match self.with_room(len_bytes) {
            Some(frame) => {
                self.unlist_buddy(frame);
                self.unlink(LRU, frame);
                frame
            }
            None => {
                let frame = spare.take()?.as_u64();
                self.write(frame, FIRST_CHUNKS, 0);
                self.write(frame, LAST_CHUNKS, 0);
                self.pool.pages += 1;
                frame
            }
        };
        let first = self.read(frame, FIRST_CHUNKS) == 0;
        let offset = if first { ZBUD_CHUNK } else { PAGE_SIZE - chunks * ZBUD_CHUNK };
        self.write(frame, if first { FIRST_CHUNKS } else { LAST_CHUNKS }, chunks);
        self.write(frame, slot_field(first), slot);
        self.list_buddy(frame);
        self.push(LRU, frame);
        Some(PhysAddr::new(Pfn::new(frame).phys().as_u64() + offset))
    }

    /// Gives room back; the frame that nobody uses then, which is no longer the pool's (Linux: `zbud_free`).
    pub fn free(&mut self, place: PhysAddr) -> Option<Pfn> {
        let frame = place.pfn().as_u64();
        self.unlist_buddy(frame);
        self.write(frame, if is_first(place) { FIRST_CHUNKS } else { LAST_CHUNKS }, 0);
        if self.free_chunks(frame) < ZBUD_CHUNKS {
            self.list_buddy(frame);
            return None;
        }
        self.unlink(LRU, frame);
        self.pool.pages -= 1;
        Some(Pfn::new(frame))
    }

    /// The slots whose pages are in the frame that got its last user longest ago; it comes last from now on. `None` of an empty pool (Linux:
    /// `zbud_reclaim_page`).
    pub fn oldest(&mut self) -> Option<[Option<u64>; 2]> {
        let frame = self.pool.lru_last;
        if frame == PFN_NONE {
            return None;
        }
        self.unlink(LRU, frame);
        self.push(LRU, frame);
        Some([true, false].map(|first| {
            let chunks = self.read(frame, if first { FIRST_CHUNKS } else { LAST_CHUNKS });
            (chunks > 0).then(|| self.read(frame, slot_field(first)))
        }))
    }

    /// A frame with one user is listed by what is free of it.
    fn list_buddy(&mut self, frame: u64) {
        if self.read(frame, FIRST_CHUNKS) == 0 || self.read(frame, LAST_CHUNKS) == 0 {
            self.push(BUDDY, frame);
        }
    }

    fn unlist_buddy(&mut self, frame: u64) {
        if self.read(frame, FIRST_CHUNKS) == 0 || self.read(frame, LAST_CHUNKS) == 0 {
            self.unlink(BUDDY, frame);
        }
    }

    /// The first frame of the list that a frame belongs to.
    fn first(&mut self, links: Links, frame: u64) -> &mut u64 {
        if links.next == LRU.next {
            return &mut self.pool.lru_first;
        }
        let free = usize::try_from(self.free_chunks(frame)).unwrap_or(0);
        // A frame with a user has fewer free chunks than there are lists.
        &mut self.pool.unbuddied[free]
    }

    fn push(&mut self, links: Links, frame: u64) {
        let next = core::mem::replace(self.first(links, frame), frame);
        self.write(frame, links.next, next);
        self.write(frame, links.prev, PFN_NONE);
        if next != PFN_NONE {
            self.write(next, links.prev, frame);
        } else if links.next == LRU.next {
            self.pool.lru_last = frame;
        }
    }

    fn unlink(&mut self, links: Links, frame: u64) {
        let (next, prev) = (self.read(frame, links.next), self.read(frame, links.prev));
        if prev == PFN_NONE {
            *self.first(links, frame) = next;
        } else {
            self.write(prev, links.next, next);
        }
        if next != PFN_NONE {
            self.write(next, links.prev, prev);
        } else if links.next == LRU.next {
            self.pool.lru_last = prev;
        }
    }
}

const fn slot_field(first: bool) -> usize {
    if first { offset_of!(ZbudHeader, first_slot) } else { offset_of!(ZbudHeader, last_slot) }
}
