//! Is a zone fragmented, or just full? (Linux: mm/vmstat.c, `fill_contig_page_info`, `__fragmentation_index`,
//! `unusable_free_index`; mm/compaction.c, `compaction_suitable`.)

use mm_core::{Event, Order, Trace, ZoneKind};

use super::Status;
use crate::alloc::{Machine, PageAllocator, zone_id};
use crate::gfp::is_costly;
use crate::{AllocFlags, Zone};

/// Linux's default `vm.extfrag_threshold`: a costly request compacts only where the index is above it.
pub const EXTFRAG_THRESHOLD: i32 = 500;

/// What a zone's free blocks say about one order (Linux: `struct contig_page_info`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContigPageInfo {
    /// Free pages in blocks of any order.
    pub free_pages: u64,
    /// Free blocks of any order.
    pub free_blocks_total: u64,
    /// Blocks of the order that the larger ones hold.
    pub free_blocks_suitable: u64,
}

impl ContigPageInfo {
    /// Linux: `fill_contig_page_info`.
    pub fn of(zone: &memvisor_abi::Zone, order: Order) -> ContigPageInfo {
        let mut info = ContigPageInfo::default();
        for (area, have) in zone.free_area.iter().zip(Order::all()) {
            let blocks = area.nr_free();
            info.free_blocks_total = info.free_blocks_total.saturating_add(blocks);
            info.free_pages = info.free_pages.saturating_add(blocks.saturating_mul(have.pages()));
            if have >= order {
                let each = have.pages() / order.pages();
                info.free_blocks_suitable =
                    info.free_blocks_suitable.saturating_add(blocks.saturating_mul(each));
            }
        }
        info
    }

    /// Why an allocation of `order` would fail, in thousandths: towards 0 for lack of memory, towards 1000 for
    /// fragmentation, -1000 if it would not fail (Linux: `__fragmentation_index`).
    /// ```
    /// use mm_core::Order;
    /// use mm_page_alloc::ContigPageInfo;
    /// // Every other page of 1024 is free: no pair, though there are 512 pages.
    /// let sieve = ContigPageInfo { free_pages: 512, free_blocks_total: 512, free_blocks_suitable: 0 };
    /// let order = Order::new(4).expect("a small order");
    /// assert_eq!(sieve.fragmentation_index(order), 936);
    /// assert_eq!(sieve.unusable_free_index(order), 1000);
    /// ```
    pub fn fragmentation_index(&self, order: Order) -> i32 {
        if self.free_blocks_total == 0 {
            return 0;
        }
        if self.free_blocks_suitable > 0 {
            return -1000;
        }
        let per_order = self.free_pages.saturating_mul(1000) / order.pages();
        let lack = per_order.saturating_add(1000) / self.free_blocks_total;
        // Linux computes 64 bits and returns 32; a lack above 1000 needs more pages than blocks can hold.
        i32::try_from(lack).map_or(i32::MIN, |lack| 1000_i32.saturating_sub(lack))
    }

    /// The share of free memory that is useless for `order`, in thousandths (Linux: `unusable_free_index`).
    pub const fn unusable_free_index(&self, order: Order) -> u32 {
        if self.free_pages == 0 {
            return 1000;
        }
        let useful = self.free_blocks_suitable.saturating_mul(order.pages());
        let useless = self.free_pages.saturating_sub(useful);
        #[expect(clippy::cast_possible_truncation, reason = "at most 1000")]
        let share = (useless.saturating_mul(1000) / self.free_pages) as u32;
        share
    }
}

/// Free pages that compaction wants above a watermark: twice the block, for what is being copied (Linux:
/// `compact_gap`).
pub(super) const fn compact_gap(order: Order) -> u64 {
    2 * order.pages()
}

impl Zone {
    /// [`ContigPageInfo::of`] this zone.
    pub fn contig_page_info(&self, order: Order) -> ContigPageInfo {
        ContigPageInfo::of(self.info(), order)
    }
}

impl<M: Machine> PageAllocator<M> {
    /// Whether compaction of the zone makes sense: `Success` if a block is free already, `Skipped` without room to move
    /// pages or without fragmentation, else `Continue` (Linux: `compaction_suitable`).
    pub(super) fn compaction_suitable(
        &self,
        zone: usize,
        order: Order,
        flags: AllocFlags,
        highest: ZoneKind,
    ) -> Status {
        let free = self.machine.glances().get(zone).map_or(0, crate::ZoneGlance::free_pages);
        let mut status = self.is_suitable_with(zone, order, flags, highest, free);
        if status == Status::Continue && is_costly(order) {
            let index =
                self.machine.with_zone(zone, |zone| zone.contig_page_info(order).fragmentation_index(order));
            if (0..=EXTFRAG_THRESHOLD).contains(&index) {
                status = Status::NotSuitableZone;
            }
        }
        let (zone, order) = (zone_id(zone), Some(order));
        self.machine.map().emit(Event::MmCompactionSuitable { zone, order, ret: status as u8 });
        if status == Status::NotSuitableZone { Status::Skipped } else { status }
    }

    /// Whether compaction would work in a zone, or a block of the order is free already (Linux: `compaction_suitable` other than
    /// `COMPACT_SKIPPED`).
    pub fn is_compaction_ready(&self, zone: usize, order: Order, highest: ZoneKind) -> bool {
        self.compaction_suitable(zone, order, AllocFlags::empty(), highest) != Status::Skipped
    }

    /// Linux: `__compaction_suitable`, if `free` pages were free.
    pub(super) fn is_suitable_with(
        &self,
        zone: usize,
        order: Order,
        flags: AllocFlags,
        highest: ZoneKind,
        free: u64,
    ) -> Status {
        let Some(glance) = self.machine.glances().get(zone) else { return Status::Skipped };
        if glance.watermark_ok(order, glance.mark(flags), highest, flags, glance.free_pages()) {
            return Status::Success;
        }
        // Order-0 pages must be left for whoever else allocates while pages are copied.
        let mark = if is_costly(order) { AllocFlags::WMARK_LOW } else { AllocFlags::WMARK_MIN };
        let mark = glance.mark(mark).saturating_add(compact_gap(order));
        if glance.watermark_ok(Order::ZERO, mark, highest, AllocFlags::CMA, free) {
            Status::Continue
        } else {
            Status::Skipped
        }
    }
}
