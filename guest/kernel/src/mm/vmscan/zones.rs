//! What reclaim knows of the zones of this machine, and how it waits (Linux: mm/vmscan.c, mm/page_alloc.c).

use memvisor_abi::MAX_NR_ZONES;
use mm_core::{Gfp, Order, ZoneKind};
use mm_page_alloc::{AllocFlags, Machine, ZoneGlance};
use mm_vmscan::{Mark, Throttle, Zones};

use super::{shrinker, throttle};
use crate::mm::page_alloc::{self, Kernel, PAGES};
use crate::mm::space::Spaces;
use crate::mm::{kcompactd, writeback};
use crate::sched;

const PAGEBLOCK: Order = Order::MAX;

/// Index of a zone in tables of all zones.
const fn index(node: u32, zone: ZoneKind) -> usize {
    node as usize * MAX_NR_ZONES + zone as usize
}

/// What others see of a zone; `None` for a node that does not exist.
fn glance(node: u32, zone: ZoneKind) -> Option<&'static ZoneGlance> {
    static KERNEL: Kernel = Kernel;
    KERNEL.glances().get(index(node, zone))
}

const fn flags(mark: Mark) -> AllocFlags {
    match mark {
        Mark::Min => AllocFlags::WMARK_MIN,
        Mark::Low => AllocFlags::WMARK_LOW,
        Mark::High => AllocFlags::WMARK_HIGH,
    }
}

impl Zones for Spaces {
    fn managed_pages(&self, node: u32, zone: ZoneKind) -> u64 {
        glance(node, zone).map_or(0, ZoneGlance::managed_pages)
    }

    fn free_pages(&self, node: u32, zone: ZoneKind) -> u64 {
        glance(node, zone).map_or(0, ZoneGlance::free_pages)
    }

    fn watermark(&self, node: u32, zone: ZoneKind, mark: Mark) -> u64 {
        glance(node, zone).map_or(0, |glance| glance.mark(flags(mark)))
    }

    fn is_watermark_ok(
        &self,
        node: u32,
        zone: ZoneKind,
        order: Order,
        mark: Mark,
        highest: ZoneKind,
    ) -> bool {
        glance(node, zone).is_some_and(|glance| {
            glance.watermark_ok(
                order,
                glance.mark(flags(mark)),
                highest,
                AllocFlags::empty(),
                glance.free_pages(),
            )
        })
    }

    fn watermark_boost(&self, node: u32, zone: ZoneKind) -> u64 {
        glance(node, zone).map_or(0, ZoneGlance::watermark_boost)
    }

    fn lower_boost(&self, node: u32, zone: ZoneKind, by: u64) {
        let mut zone = page_alloc::zone(node, zone).lock();
        let boost = &mut zone.info_mut().watermark_boost;
        *boost = boost.saturating_sub(by);
    }

    fn is_compaction_ready(&self, node: u32, zone: ZoneKind, order: Order) -> bool {
        PAGES.is_compaction_ready(index(node, zone), order, zone)
    }

    fn shrink_slab(&self, node: u32, priority: u8) -> u64 {
        shrinker::shrink_slab(node, Gfp::KERNEL, priority)
    }

    fn reclaim_throttle(&self, node: u32, why: Throttle) {
        throttle::reclaim_throttle(node, why);
    }

    fn wakeup_flusher_threads(&self) {
        writeback::wake_flusher();
    }

    fn cond_resched(&self) {
        if let Some(token) = sched::might_sleep() {
            sched::yield_now(&token);
        }
    }

    fn wakeup_kcompactd(&self, node: u32, highest: ZoneKind) {
        kcompactd::wake(node, PAGEBLOCK, highest);
    }
}
