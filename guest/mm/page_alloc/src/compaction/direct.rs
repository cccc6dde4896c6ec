//! Compaction for a request that waits for it, and by order of an administrator (Linux: `try_to_compact_pages`,
//! `compact_zone_order`, `compaction_zonelist_suitable`, `compact_node`).

use memvisor_abi::MAX_NR_ZONES;
use mm_core::{Event, Gfp, MaySleep, MemMap, MigrateMode, Migratetype, Order, Pfn, Trace, ZoneKind};

use super::{Goal, Status};
use crate::AllocFlags;
use crate::alloc::{CompactPriority, CompactResult, Machine, PageAllocator, Request};

impl<M: Machine> PageAllocator<M> {
    /// Compacts the zones of a request, one after the other, until one has a block (Linux: `try_to_compact_pages`).
    pub fn try_to_compact_pages(
        &self,
        token: &MaySleep<'_>,
        request: &Request,
        flags: AllocFlags,
        priority: CompactPriority,
    ) -> CompactResult {
        let &Request { gfp, order, .. } = request;
        // Writes may have to be waited for.
        if !gfp.contains(Gfp::IO) {
            return CompactResult::Skipped;
        }
        let map = self.machine.map();
        map.emit(Event::MmCompactionTryToCompactPages { order, gfp_mask: gfp, prio: priority as u8 });
        let mut best = Status::Skipped;
        for zone in request.zones(&self.machine) {
            let deferred = priority > CompactPriority::SyncFull
                && self.machine.with_zone(zone, |zone| zone.is_compaction_deferred(map, order));
            if deferred {
                best = best.max(Status::Deferred);
                continue;
            }
            let status = self.compact_zone(token, Goal::direct(zone, request, flags, priority)).status;
            best = best.max(status);
            if status == Status::Success {
                self.machine.with_zone(zone, |zone| zone.reset_compaction_defer(map, order, false));
                break;
            }
            if priority != CompactPriority::Async
                && matches!(status, Status::Complete | Status::PartialSkipped)
            {
                self.machine.with_zone(zone, |zone| zone.defer_compaction(map, order));
            }
        }
        best.result()
    }

    /// The block that compaction was for has been got: its zone is worth the next try (Linux: the end of
    /// `__alloc_pages_direct_compact`).
    pub(crate) fn note_compaction_success(&self, pfn: Pfn, order: Order) {
        let map = self.machine.map();
        let Some(page) = map.page(pfn) else { return };
        self.machine.with_zone(crate::alloc::zone_index(page), |zone| {
            zone.info_mut().compact_blockskip_flush = 0;
            zone.reset_compaction_defer(map, order, true);
        });
    }

    /// Whether compaction could work in some zone of the request if reclaim did its part (Linux:
    /// `compaction_zonelist_suitable`). `reclaimable` says how many pages of a zone could be freed.
    pub fn is_compaction_zonelist_suitable(
        &self,
        request: &Request,
        flags: AllocFlags,
        reclaimable: impl Fn(usize) -> u64,
    ) -> bool {
        request.zones(&self.machine).any(|zone| {
            // Not all of it will be freed for one request.
            let share = reclaimable(zone) / u64::from(request.order.as_u8()).max(1);
            let free = self.machine.glances().get(zone).map_or(0, |glance| glance.free_pages());
            let free = free.saturating_add(share);
            self.is_suitable_with(zone, request.order, flags, request.highest, free) == Status::Continue
        })
    }

    /// Compacts all of a node, whatever earlier runs found (Linux: `compact_node`, behind `vm.compact_memory`).
    pub fn compact_node(&self, token: &MaySleep<'_>, node: u32) {
        for zone in self.zones_of(node, ZoneKind::Movable) {
            self.compact_zone(
                token,
                Goal {
                    zone,
                    order: None,
                    migratetype: Migratetype::Unmovable,
                    flags: AllocFlags::empty(),
                    highest: ZoneKind::Movable,
                    mode: MigrateMode::Sync,
                    whole_zone: true,
                    ignore_skip_hint: true,
                    ignore_block_suitable: false,
                    direct: false,
                },
            );
        }
    }

    /// Forgets the hints of a node's zones where a request's compaction came to an end since the last time (Linux:
    /// `reset_isolation_suitable`, when kswapd goes to sleep).
    pub fn reset_isolation_suitable(&self, node: u32) {
        let map = self.machine.map();
        for zone in self.zones_of(node, ZoneKind::Movable) {
            self.machine.with_zone(zone, |zone| zone.reset_isolation_suitable(map));
        }
    }

    /// Zones of a node up to a kind that have pages.
    pub(super) fn zones_of(&self, node: u32, highest: ZoneKind) -> impl Iterator<Item = usize> + use<'_, M> {
        let first = node as usize * MAX_NR_ZONES;
        let glances = self.machine.glances();
        (first..=first + highest as usize)
            .filter(|zone| glances.get(*zone).is_some_and(|glance| glance.managed_pages() > 0))
    }
}

impl Goal {
    /// Linux: `compact_zone_order`.
    fn direct(zone: usize, request: &Request, flags: AllocFlags, priority: CompactPriority) -> Goal {
        let full = priority == CompactPriority::SyncFull;
        Goal {
            zone,
            order: Some(request.order),
            migratetype: request.migratetype,
            flags,
            highest: request.highest,
            mode: if priority == CompactPriority::Async {
                MigrateMode::Async
            } else {
                MigrateMode::SyncLight
            },
            whole_zone: full,
            ignore_skip_hint: full,
            ignore_block_suitable: full,
            direct: true,
        }
    }
}
