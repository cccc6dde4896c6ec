//! What a zone remembers between compactions: failures, where the scanners go on, which pageblocks are worth nothing.

use mm_core::{
    Event, MemMap, MigrateMode, Migratetype, Order, PAGEBLOCK_PAGES, PageKind, Pfn, is_movable_page,
};

use crate::Zone;
use crate::free::pageblock_type;
use crate::pageblock::pageblock_start;

/// At most 64 requests are turned away after failures (Linux: `COMPACT_MAX_DEFER_SHIFT`).
pub const COMPACT_MAX_DEFER_SHIFT: u32 = 6;

/// Frames between samples of a pageblock (Linux: `1 << PAGE_ALLOC_COSTLY_ORDER`).
const SAMPLE: u64 = 8;

impl Zone {
    /// After a failure at `order`: twice as many requests as last time are turned away (Linux: `defer_compaction`).
    pub fn defer_compaction<M: MemMap + ?Sized>(&mut self, map: &M, order: Order) {
        let info = self.info_mut();
        info.compact_considered = 0;
        info.compact_defer_shift = (info.compact_defer_shift + 1).min(COMPACT_MAX_DEFER_SHIFT);
        info.compact_order_failed = info.compact_order_failed.min(u32::from(order.as_u8()));
        let (zone, order_failed, considered, defer_shift) = self.deferral();
        map.emit(Event::MmCompactionDeferCompaction {
            zone,
            order: Some(order),
            order_failed,
            considered,
            defer_shift,
        });
    }

    /// Whether a request is turned away because of earlier failures; counts it (Linux: `compaction_deferred`).
    pub fn is_compaction_deferred<M: MemMap + ?Sized>(&mut self, map: &M, order: Order) -> bool {
        let info = self.info_mut();
        if u32::from(order.as_u8()) < info.compact_order_failed {
            return false;
        }
        let limit = 1 << info.compact_defer_shift.min(COMPACT_MAX_DEFER_SHIFT);
        info.compact_considered = info.compact_considered.saturating_add(1).min(limit);
        if info.compact_considered >= limit {
            return false;
        }
        let (zone, order_failed, considered, defer_shift) = self.deferral();
        map.emit(Event::MmCompactionDeferred {
            zone,
            order: Some(order),
            order_failed,
            considered,
            defer_shift,
        });
        true
    }

    /// After a success at `order`: orders up to it are believed in again, and if the request got its block, nobody is
    /// turned away any more (Linux: `compaction_defer_reset`).
    pub fn reset_compaction_defer<M: MemMap + ?Sized>(&mut self, map: &M, order: Order, allocated: bool) {
        let info = self.info_mut();
        if allocated {
            info.compact_considered = 0;
            info.compact_defer_shift = 0;
        }
        info.compact_order_failed = info.compact_order_failed.max(u32::from(order.as_u8()) + 1);
        let (zone, order_failed, considered, defer_shift) = self.deferral();
        map.emit(Event::MmCompactionDeferReset {
            zone,
            order: Some(order),
            order_failed,
            considered,
            defer_shift,
        });
    }

    /// Whether so many were turned away that hints are worth nothing any more (Linux: `compaction_restarting`).
    pub(super) fn is_compaction_restarting(&self, order: Order) -> bool {
        let info = self.info();
        u32::from(order.as_u8()) >= info.compact_order_failed
            && info.compact_defer_shift == COMPACT_MAX_DEFER_SHIFT
            && info.compact_considered >= 1 << COMPACT_MAX_DEFER_SHIFT
    }

    /// The zone's deferral as events have it; an order past the largest is the largest.
    fn deferral(&self) -> (mm_core::ZoneId, Order, u64, u64) {
        let info = self.info();
        let failed = u8::try_from(info.compact_order_failed).ok().and_then(Order::new).unwrap_or(Order::MAX);
        (self.id(), failed, info.compact_considered.into(), info.compact_defer_shift.into())
    }

    /// Puts both scanners back to where they begin (Linux: `reset_cached_positions`).
    pub(super) fn reset_cached_positions(&mut self) {
        let (start, last) = (self.info().start_pfn, self.last_pageblock());
        let info = self.info_mut();
        info.compact_cached_migrate_pfn = [start; 2];
        info.compact_cached_free_pfn = last.as_u64();
    }

    /// The pageblock of the last frame.
    pub(super) fn last_pageblock(&self) -> Pfn {
        pageblock_start(Pfn::new(self.end_pfn().as_u64().saturating_sub(1)))
    }

    /// The migration scanner is through with what lies below `pfn` (Linux: `update_cached_migrate`).
    pub(super) fn update_cached_migrate(&mut self, mode: MigrateMode, pfn: Pfn) {
        let [asynchronous, synchronous] = &mut self.info_mut().compact_cached_migrate_pfn;
        *asynchronous = (*asynchronous).max(pfn.as_u64());
        if mode.is_sync() {
            *synchronous = (*synchronous).max(pfn.as_u64());
        }
    }

    /// Sets a pageblock's hint. The caller has the lock.
    pub(super) fn skip_pageblock<M: MemMap + ?Sized>(&mut self, map: &M, pfn: Pfn) {
        if let Some(block) = map.pageblock(pfn) {
            block.set_skipped(true);
        }
    }

    /// If somebody's compaction met the scanners lately, clears the hints of pageblocks where a sample shows something
    /// to move or to move to, and lets the scanners begin there (Linux: `__reset_isolation_suitable`).
    ///
    /// Differs from Linux: the free scanner begins at the pageblock's first frame, not at its last.
    pub fn reset_isolation_suitable<M: MemMap + ?Sized>(&mut self, map: &M) {
        if self.info().compact_blockskip_flush == 0 || self.info().spanned_pages == 0 {
            return;
        }
        self.info_mut().compact_blockskip_flush = 0;
        let mut low = Pfn::new(self.info().start_pfn);
        let mut high = self.last_pageblock();
        let (mut source, mut target) = (None, None);
        while low < high {
            if self.reset_pageblock(map, low, true, source.is_some()) && source.is_none() {
                source = Some(low);
            }
            if self.reset_pageblock(map, high, target.is_some(), true) && target.is_none() {
                target = Some(high);
            }
            low = pageblock_start(low).offset(PAGEBLOCK_PAGES);
            high = Pfn::new(high.as_u64().saturating_sub(PAGEBLOCK_PAGES));
        }
        let (low, high) = (low.min(self.end_pfn()), high.max(Pfn::new(self.info().start_pfn)));
        let info = self.info_mut();
        if let Some(source) = source {
            info.compact_init_migrate_pfn = source.as_u64();
            info.compact_cached_migrate_pfn = [source.as_u64(); 2];
        }
        if let Some(target) = target {
            info.compact_init_free_pfn = target.as_u64();
            info.compact_cached_free_pfn = target.as_u64();
        }
        if source.is_none() || target.is_none() {
            // Nothing to gain: leave no distance between the scanners.
            info.compact_cached_migrate_pfn = [low.as_u64(); 2];
            info.compact_cached_free_pfn = high.as_u64();
        }
    }

    /// Whether the pageblock holds what a scanner looks for; then its hint is cleared (Linux:
    /// `__reset_isolation_pfn`).
    fn reset_pageblock<M: MemMap + ?Sized>(
        &self,
        map: &M,
        pfn: Pfn,
        as_source: bool,
        as_target: bool,
    ) -> bool {
        let Some(block) = map.pageblock(pfn) else { return false };
        if map.page(pfn).is_none_or(|page| !self.owns(page)) {
            return false;
        }
        // Once both ends are known only hints matter.
        if as_source && as_target && !block.is_skipped() {
            return true;
        }
        if !as_source && pageblock_type(map, pfn) != Migratetype::Movable {
            return false;
        }
        let end = pageblock_start(pfn).offset(PAGEBLOCK_PAGES).min(self.end_pfn());
        let mut at = pfn;
        while at < end {
            let useful = map.page(at).is_some_and(|page| {
                as_source && is_movable_page(page) || as_target && page.kind() == PageKind::Buddy
            });
            if useful {
                block.set_skipped(false);
                return true;
            }
            at = at.offset(SAMPLE);
        }
        false
    }
}
