//! Compaction: makes large free blocks by moving allocated pages together (Linux 6.1: mm/compaction.c).
//!
//! Two scanners work on one zone. The migration scanner goes up from the zone's start and isolates pages that can move;
//! the free scanner comes down from its end and isolates free pages to move them to. The run is over when a block of the
//! wanted order is free, or when they meet.
//!
//! ```text
//! suitable    room to copy, and fragmented rather than full                  (index.rs)
//! deferred    not after failures, more and more rarely                       (defer.rs)
//! compact_zone
//!   finished?            a block is free, or the scanners met                (mod.rs)
//!   isolate_migratepages up to 32 pages of the next pageblock                (migrate_scanner.rs)
//!   migrate_pages        into isolated free pages                            (../migrate.rs, free_scanner.rs)
//!   drain                what was freed leaves this CPU's lists and merges
//! who asks: an allocation (direct.rs), kcompactd (kcompactd.rs), an administrator (direct.rs)
//! ```
//!
//! Invariants, verified by [`Zone::audit_compaction`] and from outside under the same numbers:
//! C1  cached and initial scanner positions are 0 (never run) or inside the zone's span, at most at its end;
//! C2  `compact_defer_shift` is at most 6, `compact_considered` at most 2^shift, `compact_order_failed` at most 11;
//! C3  between runs no frame is isolated, and no page is held by a scanner.
//!
//! Differs from Linux: the scanners do not pick their next pageblock from the free lists (`fast_find_migrateblock`,
//! `fast_isolate_freepages`), a freed block is not captured for the task that compacts (`compact_capture`), nothing is
//! compacted proactively, and no zone counts its isolated pages, as Linux does for pages of the LRU lists only.

mod defer;
mod direct;
mod free_scanner;
mod index;
mod kcompactd;
mod migrate_scanner;

use memvisor_abi::VmEvent;
use mm_core::{
    Event, MaySleep, MemMap, MigrateMode, Migratetype, Order, PAGEBLOCK_PAGES, Pfn, Trace, ZoneKind,
};

pub use defer::COMPACT_MAX_DEFER_SHIFT;
pub use index::{ContigPageInfo, EXTFRAG_THRESHOLD};
pub use kcompactd::KcompactdWork;

use crate::alloc::{CompactResult, Machine, PageAllocator, PageList, zone_id};
use crate::audit::Violation;
use crate::pageblock::pageblock_start;
use crate::{AllocFlags, Zone};

/// Linux: `enum compact_result`, with its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Status {
    NotSuitableZone = 0,
    Skipped = 1,
    Deferred = 2,
    NoSuitablePage = 3,
    Continue = 4,
    Complete = 5,
    PartialSkipped = 6,
    Contended = 7,
    Success = 8,
}

impl Status {
    const fn result(self) -> CompactResult {
        match self {
            Status::NotSuitableZone | Status::Skipped => CompactResult::Skipped,
            Status::Deferred => CompactResult::Deferred,
            Status::NoSuitablePage | Status::Continue | Status::Complete => CompactResult::Complete,
            Status::PartialSkipped => CompactResult::PartialSkipped,
            Status::Contended => CompactResult::Contended,
            Status::Success => CompactResult::Success,
        }
    }
}

/// What a run is to do (Linux: `struct compact_control`, the part that callers fill in).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    /// Index of the zone.
    zone: usize,
    /// Until a block of that order is free; `None` for all of the zone (Linux: -1).
    order: Option<Order>,
    /// Type that the block must serve.
    migratetype: Migratetype,
    flags: AllocFlags,
    highest: ZoneKind,
    mode: MigrateMode,
    /// Begin at the zone's ends, whatever earlier runs saw.
    whole_zone: bool,
    ignore_skip_hint: bool,
    /// Move to pageblocks of any type.
    ignore_block_suitable: bool,
    /// For a task that waits.
    direct: bool,
}

/// A run on its way (Linux: the rest of `struct compact_control`).
#[derive(Debug)]
pub(crate) struct Control {
    goal: Goal,
    start: Pfn,
    end: Pfn,
    migrate_pfn: Pfn,
    free_pfn: Pfn,
    /// Isolated, to be moved.
    migrate_pages: PageList,
    /// Isolated order-0 pages to move to.
    free_pages: PageList,
    migrate_scanned: u64,
    free_scanned: u64,
    whole_zone: bool,
    /// The pageblock is scanned for a second time: take all of it.
    rescan: bool,
}

/// How a run ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    status: Status,
    migrate_scanned: u64,
    free_scanned: u64,
}

/// What the migration scanner found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isolated {
    Pages,
    Nothing,
}

impl<M: Machine> PageAllocator<M> {
    /// Runs both scanners on a zone (Linux: `compact_zone`).
    pub(crate) fn compact_zone(&self, token: &MaySleep<'_>, goal: Goal) -> Run {
        if let Some(order) = goal.order {
            let status = self.compaction_suitable(goal.zone, order, goal.flags, goal.highest);
            if status != Status::Continue {
                return Run { status, migrate_scanned: 0, free_scanned: 0 };
            }
        }
        let map = self.machine.map();
        let mut control = self.machine.with_zone(goal.zone, |zone| {
            if goal.order.is_some_and(|order| zone.is_compaction_restarting(order)) {
                zone.reset_isolation_suitable(map);
            }
            Control::begin(goal, zone)
        });
        let (zone, sync) = (zone_id(goal.zone), goal.mode.is_sync());
        map.emit(Event::MmCompactionBegin {
            zone,
            sync,
            zone_start: control.start,
            migrate_pfn: control.migrate_pfn,
            free_pfn: control.free_pfn,
            zone_end: control.end,
        });
        let status = self.scan(token, &mut control);
        self.end_compaction(&mut control);
        map.emit(Event::MmCompactionEnd {
            zone,
            sync,
            status: status as u8,
            migrate_pfn: control.migrate_pfn,
            free_pfn: control.free_pfn,
        });
        Run { status, migrate_scanned: control.migrate_scanned, free_scanned: control.free_scanned }
    }

    fn scan(&self, token: &MaySleep<'_>, control: &mut Control) -> Status {
        let map = self.machine.map();
        let goal = control.goal;
        // Positions of the two modes drift apart only by what was isolated here.
        let mut update_cached = !goal.mode.is_sync()
            && self.machine.with_zone(goal.zone, |zone| {
                let [asynchronous, synchronous] = zone.info().compact_cached_migrate_pfn;
                asynchronous == synchronous
            });
        // Where pages were freed since the last drain.
        let mut last_migrated = None;
        loop {
            let status = self.compact_finished(control);
            if status != Status::Continue {
                return status;
            }
            self.machine.cond_resched(token);
            let iteration_start = control.migrate_pfn;
            control.rescan =
                last_migrated.is_some_and(|pfn| pageblock_start(pfn) == pageblock_start(iteration_start));
            match self.isolate_migratepages(control) {
                Isolated::Nothing => {
                    if update_cached {
                        self.machine.with_zone(goal.zone, |zone| {
                            let cached = &mut zone.info_mut().compact_cached_migrate_pfn;
                            cached[1] = cached[0];
                        });
                    }
                }
                Isolated::Pages => {
                    update_cached = false;
                    last_migrated = Some(iteration_start);
                    let mut list = core::mem::replace(&mut control.migrate_pages, PageList::EMPTY);
                    let wanted = list.len;
                    let mut targets = free_scanner::FreePages::new(self, control, wanted);
                    let done = self.migrate_pages(&mut list, goal.mode, &mut targets);
                    map.emit(Event::MmCompactionMigratepages {
                        nr_migrated: done.succeeded,
                        nr_failed: done.failed,
                    });
                    if done.failed > 0 {
                        self.putback_movable_pages(&mut list);
                        if done.no_memory && !control.have_met() {
                            return Status::Contended;
                        }
                        // The block cannot become free any more: on to the next.
                        if let Some(order) = goal.order.filter(|_| goal.direct && !goal.mode.is_sync()) {
                            control.migrate_pfn = control.end.min(block_end(control.migrate_pfn, order));
                            last_migrated = None;
                        }
                    }
                }
            }
            if let Some((order, migrated)) = goal.order.zip(last_migrated)
                && order > Order::ZERO
                && migrated < control.migrate_pfn.block(order)
            {
                self.drain_local_pages();
                last_migrated = None;
            }
        }
    }

    /// Linux: the end of `compact_zone`.
    fn end_compaction(&self, control: &mut Control) {
        let zone = control.goal.zone;
        if let Some(highest) = self.release_freepages(control) {
            let from = pageblock_start(highest).as_u64();
            self.machine.with_zone(zone, |zone| {
                let cached = &mut zone.info_mut().compact_cached_free_pfn;
                *cached = (*cached).max(from);
            });
        }
        // What the last pages left behind, and the pages that were not used, merge with their neighbours.
        self.drain_local_pages();
        self.count(VmEvent::CompactMigrateScanned, control.migrate_scanned);
        self.count(VmEvent::CompactFreeScanned, control.free_scanned);
    }

    /// Whether to go on (Linux: `compact_finished`).
    fn compact_finished(&self, control: &Control) -> Status {
        let goal = &control.goal;
        let status = self.is_finished(control);
        let zone = zone_id(goal.zone);
        self.machine.map().emit(Event::MmCompactionFinished { zone, order: goal.order, ret: status as u8 });
        if status == Status::NoSuitablePage { Status::Continue } else { status }
    }

    fn is_finished(&self, control: &Control) -> Status {
        let goal = &control.goal;
        self.machine.with_zone(goal.zone, |zone| {
            if control.have_met() {
                zone.reset_cached_positions();
                // Hints are forgotten only for the sake of requests.
                if goal.direct {
                    zone.info_mut().compact_blockskip_flush = 1;
                }
                return if control.whole_zone { Status::Complete } else { Status::PartialSkipped };
            }
            let Some(order) = goal.order else { return Status::Continue };
            // A pageblock is always finished, against fallbacks to come.
            if !is_pageblock_start(control.migrate_pfn) {
                return Status::Continue;
            }
            let free =
                Order::all().skip(order.index()).any(|order| zone.has_block_for(order, goal.migratetype));
            if free { Status::Success } else { Status::NoSuitablePage }
        })
    }
}

impl Control {
    /// Where both scanners begin (Linux: the head of `compact_zone`).
    fn begin(goal: Goal, zone: &mut Zone) -> Control {
        let (start, end) = (Pfn::new(zone.info().start_pfn), zone.end_pfn());
        let last = zone.last_pageblock();
        let mut whole_zone = goal.whole_zone;
        let (mut migrate_pfn, mut free_pfn) = (start, last.max(start));
        if !whole_zone {
            let inside = |pfn: u64| start.as_u64() <= pfn && pfn < end.as_u64();
            let info = zone.info_mut();
            if inside(info.compact_cached_free_pfn) {
                free_pfn = Pfn::new(info.compact_cached_free_pfn);
            } else {
                info.compact_cached_free_pfn = free_pfn.as_u64();
            }
            let cached = info.compact_cached_migrate_pfn[usize::from(goal.mode.is_sync())];
            if inside(cached) {
                migrate_pfn = Pfn::new(cached);
            } else {
                info.compact_cached_migrate_pfn = [start.as_u64(); 2];
            }
            whole_zone = migrate_pfn.as_u64() <= info.compact_init_migrate_pfn;
        }
        Control {
            goal,
            start,
            end,
            migrate_pfn,
            free_pfn,
            migrate_pages: PageList::EMPTY,
            free_pages: PageList::EMPTY,
            migrate_scanned: 0,
            free_scanned: 0,
            whole_zone,
            rescan: false,
        }
    }

    /// Linux: `compact_scanners_met`.
    fn have_met(&self) -> bool {
        self.free_pfn.as_u64() / PAGEBLOCK_PAGES <= self.migrate_pfn.as_u64() / PAGEBLOCK_PAGES
    }

    /// Whether a pageblock may be worth a scan (Linux: `isolation_suitable`).
    fn is_worth_scanning<M: MemMap + ?Sized>(&self, map: &M, pfn: Pfn) -> bool {
        self.goal.ignore_skip_hint || map.pageblock(pfn).is_none_or(|block| !block.is_skipped())
    }
}

impl Zone {
    /// Whether a block of exactly `order` would serve a request of that type, stolen with its pageblock if need be.
    fn has_block_for(&self, order: Order, migratetype: Migratetype) -> bool {
        !self.is_empty(order, migratetype)
            || migratetype == Migratetype::Movable && !self.is_empty(order, Migratetype::Cma)
            || self.find_suitable_fallback(order, migratetype).is_some_and(|fallback| fallback.can_steal)
    }

    /// Invariants C1 and C2.
    ///
    /// # Errors
    /// The first that does not hold.
    pub fn audit_compaction(&self) -> Result<(), Violation> {
        let info = self.info();
        let inside = |pfn: u64| pfn == 0 || (info.start_pfn..=self.end_pfn().as_u64()).contains(&pfn);
        let [asynchronous, synchronous] = info.compact_cached_migrate_pfn;
        let positions = [
            asynchronous,
            synchronous,
            info.compact_cached_free_pfn,
            info.compact_init_migrate_pfn,
            info.compact_init_free_pfn,
        ];
        let fail = |rule| Err(Violation { rule, pfn: Pfn::new(info.start_pfn), order: None });
        if !positions.into_iter().all(inside) {
            return fail("C1");
        }
        let shift = info.compact_defer_shift;
        if shift > COMPACT_MAX_DEFER_SHIFT
            || info.compact_considered > 1 << shift
            || info.compact_order_failed > u32::from(Order::MAX.as_u8()) + 1
        {
            return fail("C2");
        }
        Ok(())
    }
}

/// Whether a pageblock begins here.
const fn is_pageblock_start(pfn: Pfn) -> bool {
    pfn.as_u64().is_multiple_of(PAGEBLOCK_PAGES)
}

/// The end of the block of `order` that holds the frame before `pfn`, or `pfn` if it is at such an end (Linux:
/// `block_end_pfn(pfn - 1)`).
const fn block_end(pfn: Pfn, order: Order) -> Pfn {
    Pfn::new(pfn.as_u64().next_multiple_of(order.pages()))
}
