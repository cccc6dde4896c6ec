//! Ranges of frames that somebody needs in one piece, whoever has them (Linux 6.1: `alloc_contig_range` and
//! `free_contig_range` in mm/page_alloc.c, mm/page_isolation.c).
//!
//! ```text
//! isolate     every pageblock of the range: what is free there is no longer handed out
//! drain       the CPUs' lists, so that free frames are on the zone's
//! migrate     what is allocated there goes elsewhere
//! take        all of the range is free and isolated: its blocks become single frames of the caller
//! undo        the pageblocks have their type again; what was taken beyond the range is freed
//! ```
//!
//! Invariants:
//! R1  after a failure every pageblock has its type again and every frame is as free as it was, but maybe elsewhere;
//! R2  after success each frame of the range is a block of order 0 with one reference, and no other frame changed hands.
//!
//! Nothing here sleeps but the migration; two ranges that share a pageblock exclude each other.

use mm_core::{
    Event, Gfp, MemMap, MigrateMode, Migratetype, Order, PAGEBLOCK_PAGES, PageKind, PageState, Pfn, Trace,
    is_movable_page,
};

use crate::alloc::{Machine, PageAllocator, PageList, zone_index};
use crate::free::{block_over, is_free};
use crate::free_list::linked;
use crate::gfp::Context;
use crate::migrate::AllocTarget;
use crate::{FreeError, Zone};

/// Why a range cannot be had (Linux: a negative errno).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContigError {
    /// A frame is somebody's who cannot give it up, or the range is being taken already: elsewhere may be better (Linux:
    /// `-EBUSY`).
    Busy {
        /// The frame.
        pfn: Pfn,
    },
    /// There is nowhere to move contents to (Linux: `-ENOMEM`).
    NoMemory,
    /// The range is empty, leaves its zone, or has frames without descriptor (Linux: `-EINVAL`).
    Invalid {
        /// The frame.
        pfn: Pfn,
    },
}

impl ContigError {
    /// Linux's number.
    pub const fn errno(self) -> i32 {
        match self {
            ContigError::Busy { .. } => -16,
            ContigError::NoMemory => -12,
            ContigError::Invalid { .. } => -22,
        }
    }
}

/// Migrations without progress after which a range is given up (Linux: 5 in `__alloc_contig_migrate_range`).
const TRIES: u32 = 5;

impl<M: Machine> PageAllocator<M> {
    /// Makes `start..end` the caller's, frame by frame with one reference each, moving away what is movable in it. `migratetype` is the
    /// type that all its pageblocks have and will have again: [`Migratetype::Cma`] for contiguous areas, which hold nothing that
    /// cannot move, or [`Migratetype::Movable`], where frames that cannot move are looked for first.
    ///
    /// # Errors
    /// [`ContigError`]; see invariant R1.
    pub fn alloc_contig_range(
        &self,
        context: Context<'_>,
        start: Pfn,
        end: Pfn,
        migratetype: Migratetype,
    ) -> Result<(), ContigError> {
        let map = self.machine.map();
        map.emit(Event::AllocContigRange { start_pfn: start, end_pfn: end, migratetype: migratetype as u8 });
        let outcome = self.take_contig_range(context, start, end, migratetype);
        map.emit(Event::AllocContigRangeRet { ret: outcome.err().map_or(0, ContigError::errno) });
        outcome
    }

    fn take_contig_range(
        &self,
        context: Context<'_>,
        start: Pfn,
        end: Pfn,
        migratetype: Migratetype,
    ) -> Result<(), ContigError> {
        let zone = self.zone_of_range(start, end)?;
        self.isolate_range(zone, start, end, migratetype)?;
        self.drain_all_pages();
        let outcome = self.empty_range(context, start, end).and_then(|()| {
            // What was freed meanwhile may be on this or that CPU.
            self.drain_all_pages();
            self.with_zone(zone, |zone| zone.take_isolated(map_of(self), start, end))
        });
        self.unisolate_range(zone, blocks_of(start, end), migratetype);
        let (first, last) = outcome?;
        // A block that reaches beyond the range goes back frame by frame.
        self.free_contig_range(first, start.as_u64() - first.as_u64());
        self.free_contig_range(end, last.as_u64() - end.as_u64());
        Ok(())
    }

    /// Gives frames back that [`PageAllocator::alloc_contig_range`] gave; how many were still in use by others, which Linux
    /// warns of.
    pub fn free_contig_range(&self, start: Pfn, pages: u64) -> u64 {
        let in_use = |index: &u64| {
            let pfn = start.offset(*index);
            let busy = self.machine.map().page(pfn).is_none_or(|page| page.refcount() != 1);
            let outcome: Result<(), FreeError> = self.free_pages(pfn, Order::ZERO);
            busy || outcome.is_err()
        };
        (0..pages).filter(in_use).count() as u64
    }

    /// The one zone that all pageblocks of a range lie in.
    fn zone_of_range(&self, start: Pfn, end: Pfn) -> Result<usize, ContigError> {
        if start >= end {
            return Err(ContigError::Invalid { pfn: start });
        }
        let map = self.machine.map();
        let mut zone = None;
        let (mut at, last) = blocks_of(start, end);
        while at < last {
            let of = map.page(at).filter(|page| page.kind() != PageKind::None).map(zone_index);
            if of.is_none() || zone.is_some_and(|zone| Some(zone) != of) {
                return Err(ContigError::Invalid { pfn: at });
            }
            (zone, at) = (of, at.offset(PAGEBLOCK_PAGES));
        }
        let zone = zone.ok_or(ContigError::Invalid { pfn: start })?;
        let spans = self.with_zone(zone, |zone| {
            let (first, last) = blocks_of(start, end);
            zone.spans(first, last.as_u64() - first.as_u64())
        });
        if spans { Ok(zone) } else { Err(ContigError::Invalid { pfn: start }) }
    }

    /// Isolates every pageblock of a range, or none (Linux: `start_isolate_page_range`).
    fn isolate_range(
        &self,
        zone: usize,
        start: Pfn,
        end: Pfn,
        migratetype: Migratetype,
    ) -> Result<(), ContigError> {
        let (first, last) = blocks_of(start, end);
        let mut at = first;
        while at < last {
            let stop = self.with_zone(zone, |zone| {
                let wanted = crate::free::pageblock_type(map_of(self), at) == migratetype;
                let fixed = match migratetype {
                    Migratetype::Cma => None,
                    _ => first_unmovable(map_of(self), at.max(start), at.offset(PAGEBLOCK_PAGES).min(end)),
                };
                match fixed {
                    None if wanted && zone.set_migratetype_isolate(map_of(self), at) => None,
                    None => Some(at),
                    fixed => fixed,
                }
            });
            if let Some(pfn) = stop {
                self.unisolate_range(zone, (first, at), migratetype);
                return Err(ContigError::Busy { pfn });
            }
            at = at.offset(PAGEBLOCK_PAGES);
        }
        Ok(())
    }

    /// Linux: `undo_isolate_page_range`.
    fn unisolate_range(&self, zone: usize, (first, last): (Pfn, Pfn), migratetype: Migratetype) {
        let mut at = first;
        while at < last {
            self.with_zone(zone, |zone| zone.unset_migratetype_isolate(map_of(self), at, migratetype));
            at = at.offset(PAGEBLOCK_PAGES);
        }
    }

    /// Moves all that is movable out of a range (Linux: `__alloc_contig_migrate_range`).
    fn empty_range(&self, context: Context<'_>, start: Pfn, end: Pfn) -> Result<(), ContigError> {
        // As `alloc_migration_target`: anywhere but in what is isolated, and only if that is easy.
        let gfp = Gfp::USER | Gfp::HIGHMEM | Gfp::MOVABLE | Gfp::RETRY_MAYFAIL | Gfp::NOWARN;
        let gfp = if context.may_sleep.is_some() { gfp } else { gfp - Gfp::DIRECT_RECLAIM };
        let mut targets = AllocTarget { pages: self, context, gfp, node: None };
        let (mut at, mut tries) = (start, 0);
        // The first frame of the range may be inside a block that begins before it.
        if let Some(head) = block_over(map_of(self), start, Order::ZERO, |page| !is_free(page)) {
            at = head;
        }
        while at < end {
            let mut found = self.isolate_migratepages_range(at, end, MigrateMode::Sync);
            if found.pages.len == 0 {
                (at, tries) = (found.next, 0);
                continue;
            }
            let done = self.migrate_pages(&mut found.pages, MigrateMode::Sync, &mut targets);
            let stuck = (found.pages != PageList::EMPTY).then(|| Pfn::new(found.pages.head));
            self.putback_movable_pages(&mut found.pages);
            match stuck {
                None => (at, tries) = (found.next, 0),
                Some(_) if done.no_memory => return Err(ContigError::NoMemory),
                Some(pfn) => {
                    tries += 1;
                    if tries == TRIES {
                        return Err(ContigError::Busy { pfn });
                    }
                }
            }
        }
        Ok(())
    }
}

fn map_of<M: Machine>(pages: &PageAllocator<M>) -> &M::Map {
    pages.machine.map()
}

/// The pageblocks that a range touches.
const fn blocks_of(start: Pfn, end: Pfn) -> (Pfn, Pfn) {
    let first = start.as_u64() & !(PAGEBLOCK_PAGES - 1);
    (Pfn::new(first), Pfn::new(end.as_u64().next_multiple_of(PAGEBLOCK_PAGES)))
}

/// The first frame that is neither free nor movable (Linux: `has_unmovable_pages`).
fn first_unmovable<T: MemMap + ?Sized>(map: &T, start: Pfn, end: Pfn) -> Option<Pfn> {
    let mut at = block_over(map, start, Order::ZERO, |_| true).unwrap_or(start);
    while at < end {
        let Some(page) = map.page(at) else { return Some(at) };
        let frames = match page.kind() {
            PageKind::None => return Some(at),
            PageKind::Tail => 1,
            _ => page.order().pages(),
        };
        // A frame that nobody refers to is on its way to a list.
        let free = matches!(page.kind(), PageKind::Buddy | PageKind::Pcp | PageKind::Tail);
        if !free && page.refcount() != 0 && !is_movable_page(page) {
            return Some(at.max(start));
        }
        at = at.offset(frames);
    }
    None
}

impl Zone {
    /// Takes every free block of `start..end` off the isolated lists and makes single frames of it, each with a reference (Linux:
    /// `isolate_freepages_range`). The frames taken, which may be more at both ends.
    fn take_isolated<T: MemMap + ?Sized>(
        &mut self,
        map: &T,
        start: Pfn,
        end: Pfn,
    ) -> Result<(Pfn, Pfn), ContigError> {
        self.test_pages_isolated(map, start, end).map_err(|pfn| ContigError::Busy { pfn })?;
        let first = block_over(map, start, Order::ZERO, is_free).unwrap_or(start);
        let mut at = first;
        while at < end {
            let page = linked(map, at.as_u64());
            let order = page.order();
            self.del_from_free_list(map, page, order, Migratetype::Isolate);
            for index in 0..order.pages() {
                let page = linked(map, at.offset(index).as_u64());
                page.set_state(PageState::new(PageKind::Allocated, Order::ZERO));
                page.set_refcount(1);
            }
            at = at.offset(order.pages());
        }
        Ok((first, at))
    }
}
