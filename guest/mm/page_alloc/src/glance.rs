//! What an allocation wants to know of a zone before it takes the zone's lock.
//!
//! Linux reads watermarks and free counts without the lock, and so does this: a [`ZoneGlance`] is a copy in
//! atomics that whoever changed the zone refreshes before he lets go of its lock. A reader may be a moment behind,
//! which only moves the line between the fast and the slow path, as in Linux.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use memvisor_abi::{MAX_NR_ZONES, Watermark};
use mm_core::{Order, ZoneKind};

use crate::{AllocFlags, Zone};

/// The copy of one zone, on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ZoneGlance {
    free_pages: AtomicU64,
    /// Orders with free blocks, 16 bits each: ordinary types, highatomic, contiguous areas.
    orders: AtomicU64,
    nr_reserved_highatomic: AtomicU64,
    nr_free_cma: AtomicU64,
    /// Free pages that an ordinary request can use, without contiguous areas and with them.
    usable: [AtomicU64; 2],
    /// What must stay of them above the low mark, by highest zone: the mark and the zone's reserve.
    low: [AtomicU64; MAX_NR_ZONES],
    /// Boost included, as Linux's `wmark_pages` has it.
    watermark: [AtomicU64; 3],
    lowmem_reserve: [AtomicU64; MAX_NR_ZONES],
    managed_pages: AtomicU64,
    deferred_pages: AtomicU64,
    watermark_boost: AtomicU64,
}

const HIGHATOMIC_SHIFT: u32 = 16;
const CMA_SHIFT: u32 = 32;

impl ZoneGlance {
    /// A zone without frames.
    pub const fn new() -> ZoneGlance {
        ZoneGlance {
            free_pages: AtomicU64::new(0),
            orders: AtomicU64::new(0),
            nr_reserved_highatomic: AtomicU64::new(0),
            nr_free_cma: AtomicU64::new(0),
            usable: [const { AtomicU64::new(0) }; 2],
            low: [const { AtomicU64::new(0) }; MAX_NR_ZONES],
            watermark: [const { AtomicU64::new(0) }; 3],
            lowmem_reserve: [const { AtomicU64::new(0) }; MAX_NR_ZONES],
            managed_pages: AtomicU64::new(0),
            deferred_pages: AtomicU64::new(0),
            watermark_boost: AtomicU64::new(0),
        }
    }

    /// Copies what changed with blocks that came or went. The caller holds the zone's lock.
    #[inline]
    pub fn refresh_free(&self, zone: &Zone) {
        let info = zone.info();
        self.free_pages.store(info.free_pages, Relaxed);
        self.orders.store(orders(zone), Relaxed);
        self.nr_reserved_highatomic.store(info.nr_reserved_highatomic, Relaxed);
        self.nr_free_cma.store(info.nr_free_cma, Relaxed);
        let with_cma = info.free_pages.saturating_sub(info.nr_reserved_highatomic);
        self.usable[0].store(with_cma.saturating_sub(info.nr_free_cma), Relaxed);
        self.usable[1].store(with_cma, Relaxed);
    }

    /// Copies everything. The caller holds the zone's lock.
    pub fn refresh(&self, zone: &Zone) {
        self.refresh_free(zone);
        let info = zone.info();
        for (copy, mark) in self.watermark.iter().zip(info.watermark) {
            copy.store(mark.saturating_add(zone.info().watermark_boost), Relaxed);
        }
        let low = info.watermark[Watermark::Low as usize].saturating_add(info.watermark_boost);
        for ((copy, bar), reserve) in self.lowmem_reserve.iter().zip(&self.low).zip(info.lowmem_reserve) {
            copy.store(reserve, Relaxed);
            bar.store(low.saturating_add(reserve), Relaxed);
        }
        self.managed_pages.store(info.managed_pages, Relaxed);
        self.deferred_pages.store(info.deferred_pages, Relaxed);
        self.watermark_boost.store(zone.info().watermark_boost, Relaxed);
    }

    /// Free pages, those on per-CPU lists excluded.
    #[inline]
    pub fn free_pages(&self) -> u64 {
        self.free_pages.load(Relaxed)
    }

    /// Pages that are the allocator's.
    #[inline]
    pub fn managed_pages(&self) -> u64 {
        self.managed_pages.load(Relaxed)
    }

    /// Free pages whose descriptors do not exist yet.
    #[inline]
    pub fn deferred_pages(&self) -> u64 {
        self.deferred_pages.load(Relaxed)
    }

    /// The mark that `flags` name, boost included (Linux: `wmark_pages`).
    #[inline]
    pub fn mark(&self, flags: AllocFlags) -> u64 {
        // The index is 0 to 2.
        self.watermark[flags.watermark_index()].load(Relaxed)
    }

    /// What the zone keeps for requests that may not go as high as these (Linux: `lowmem_reserve`).
    pub(crate) fn lowmem_reserve(&self, highest: ZoneKind) -> u64 {
        self.lowmem_reserve[highest as usize].load(Relaxed)
    }

    /// The mark without its boost.
    pub(crate) fn unboosted(&self, flags: AllocFlags) -> u64 {
        self.mark(flags).saturating_sub(self.watermark_boost.load(Relaxed))
    }

    /// What fragmentation added to the marks (Linux: `watermark_boost`).
    pub fn watermark_boost(&self) -> u64 {
        self.watermark_boost.load(Relaxed)
    }

    pub(crate) fn is_boosted(&self) -> bool {
        self.watermark_boost.load(Relaxed) != 0
    }

    /// Whether an order-0 block may be taken without a closer look (Linux: the head of
    /// `zone_watermark_fast`).
    #[inline]
    pub(crate) fn is_far_above(&self, mark: u64, highest: ZoneKind, flags: AllocFlags) -> bool {
        let usable = self.free_pages().saturating_sub(self.unusable(Order::ZERO, flags));
        usable > mark + self.lowmem_reserve[highest as usize].load(Relaxed)
    }

    /// Whether an ordinary request leaves the zone above its low mark, and finds a block: [`ZoneGlance::watermark_ok`]
    /// for the low mark and no rights but contiguous areas (`cma`), as prepared by whoever last changed the zone.
    #[inline(always)]
    pub(crate) fn is_above_low(&self, order: Order, highest: ZoneKind, cma: bool) -> bool {
        let usable = self.usable[usize::from(cma)].load(Relaxed);
        let flags = if cma { AllocFlags::CMA } else { AllocFlags::empty() };
        usable > self.low[highest as usize].load(Relaxed) + (order.pages() - 1)
            && (order == Order::ZERO || self.has_block(order, flags))
    }

    /// Whether a block of `order` may be taken so that `mark` pages stay (Linux: `__zone_watermark_ok`), if
    /// `free_pages` were free.
    pub fn watermark_ok(
        &self,
        order: Order,
        mark: u64,
        highest: ZoneKind,
        flags: AllocFlags,
        free_pages: u64,
    ) -> bool {
        let min = lowered(mark, flags);
        let reserve = self.lowmem_reserve[highest as usize].load(Relaxed);
        // Linux's arithmetic is signed: what is unusable may exceed what is free.
        let usable = free_pages.saturating_sub(self.unusable(order, flags));
        if usable <= min + reserve {
            return false;
        }
        order == Order::ZERO || self.has_block(order, flags)
    }

    /// Whether a block of at least that order is on a list that `flags` open.
    #[inline]
    pub(crate) fn has_block(&self, order: Order, flags: AllocFlags) -> bool {
        let orders = self.orders.load(Relaxed);
        let mut open = orders & 0xffff;
        if flags.contains(AllocFlags::CMA) {
            open |= orders >> CMA_SHIFT & 0xffff;
        }
        if flags.intersects(AllocFlags::HARDER | AllocFlags::OOM) {
            open |= orders >> HIGHATOMIC_SHIFT & 0xffff;
        }
        open >> order.as_u8() != 0
    }

    /// Free pages that this attempt cannot use (Linux: `__zone_watermark_unusable_free`).
    #[inline]
    fn unusable(&self, order: Order, flags: AllocFlags) -> u64 {
        let mut unusable = order.pages() - 1;
        if !flags.intersects(AllocFlags::HARDER | AllocFlags::OOM) {
            unusable += self.nr_reserved_highatomic.load(Relaxed);
        }
        if !flags.contains(AllocFlags::CMA) {
            unusable += self.nr_free_cma.load(Relaxed);
        }
        unusable
    }
}

/// What is left of a mark for a request with these rights.
#[inline]
pub(crate) fn lowered(mark: u64, flags: AllocFlags) -> u64 {
    let mut min = mark;
    if flags.contains(AllocFlags::HIGH) {
        min -= min / 2;
    }
    if flags.contains(AllocFlags::OOM) {
        min -= min / 2;
    } else if flags.contains(AllocFlags::HARDER) {
        min -= min / 4;
    }
    min
}

/// What [`ZoneGlance::orders`] holds.
#[inline]
fn orders(zone: &Zone) -> u64 {
    let [unmovable, movable, reclaimable, highatomic, cma, ..] = zone.info().nonempty.map(u64::from);
    (unmovable | movable | reclaimable) | highatomic << HIGHATOMIC_SHIFT | cma << CMA_SHIFT
}
