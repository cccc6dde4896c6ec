//! What the page allocator's slow path can ask for: kswapd, direct reclaim, compaction (Linux: mm/vmscan.c, `try_to_free_pages`).

use memvisor_abi::MAX_NR_ZONES;
use mm_core::{MaySleep, ZoneKind};
use mm_page_alloc::{AllocFlags, CompactPriority, CompactResult, OomOutcome, Reclaim, Request, TaskFlags};
use mm_vmscan::{Zones, try_to_free_pages};

use crate::mm::page_alloc::{Kernel, PAGES};
use crate::mm::space::Spaces;
use crate::mm::vmscan::kswapd;
use crate::mm::{oom, scope};
use crate::sched;

pub use crate::mm::vmscan::shrinker::{DEFAULT_SEEKS, Shrinker, register_shrinker, unregister_shrinker};

/// Reclaim of this kernel.
#[derive(Clone, Copy, Debug)]
pub struct KernelReclaim;

/// Node and kind of a zone.
fn node_and_kind(zone: usize) -> Option<(u32, ZoneKind)> {
    let kind = u32::try_from(zone % MAX_NR_ZONES).ok().and_then(ZoneKind::from_raw)?;
    Some((u32::try_from(zone / MAX_NR_ZONES).ok()?, kind))
}

impl Reclaim for KernelReclaim {
    fn wake_kswapd(&self, zone: usize, request: &Request) {
        if let Ok(node) = u32::try_from(zone / MAX_NR_ZONES) {
            kswapd::wake(node, request);
        }
    }

    fn direct_reclaim(&self, token: &MaySleep<'_>, request: &Request) -> u64 {
        let zones = || request.zones(&Kernel).filter_map(node_and_kind);
        if kswapd::throttle_direct_reclaim(token, request.gfp, zones()) {
            // It is being ended: it gets a page without, and gives back what it has (Linux: the same).
            return 1;
        }
        let freed = scope::with_flags(TaskFlags::MEMALLOC, || {
            try_to_free_pages(&Spaces, &zones, (request.gfp, request.order, request.highest))
        });
        if freed > 0 {
            zones().for_each(|(node, _)| kswapd::made_progress(node));
        }
        freed
    }

    fn reclaimable_pages(&self, zone: usize) -> u64 {
        node_and_kind(zone).map_or(0, |(node, kind)| Spaces.zone_reclaimable_pages(node, kind))
    }

    fn compact(
        &self,
        token: &MaySleep<'_>,
        request: &Request,
        flags: AllocFlags,
        priority: CompactPriority,
    ) -> CompactResult {
        scope::with_flags(TaskFlags::MEMALLOC, || PAGES.try_to_compact_pages(token, request, flags, priority))
    }

    fn is_compaction_suitable(&self, request: &Request, flags: AllocFlags) -> bool {
        PAGES.is_compaction_zonelist_suitable(request, flags, |zone| self.reclaimable_pages(zone))
    }

    fn out_of_memory(&self, token: &MaySleep<'_>, request: &Request) -> OomOutcome {
        oom::out_of_memory(token, request)
    }

    fn is_oom_victim(&self) -> bool {
        oom::is_victim()
    }

    fn throttle(&self, token: &MaySleep<'_>, _: &Request) {
        sched::yield_now(token);
    }
}
