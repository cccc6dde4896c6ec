//! kcompactd: compaction in the background, one thread a node (Linux: `wakeup_kcompactd`, `kcompactd_do_work`).

use memvisor_abi::VmEvent;
use mm_core::{Event, MaySleep, MigrateMode, Migratetype, Order, Trace, ZoneKind};

use super::{Goal, Status};
use crate::AllocFlags;
use crate::alloc::{Machine, PageAllocator};

/// What a node's kcompactd was asked for (Linux: `kcompactd_max_order`, `kcompactd_highest_zoneidx`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KcompactdWork {
    /// Largest order asked for; `None` for nothing to do.
    pub max_order: Option<Order>,
    /// Lowest of the highest zones asked for.
    pub highest: ZoneKind,
}

impl KcompactdWork {
    /// Nothing to do.
    pub const NONE: KcompactdWork = KcompactdWork { max_order: None, highest: ZoneKind::Movable };

    /// Adds a wish; `false` for order 0, which needs no compaction.
    pub fn ask(&mut self, order: Order, highest: ZoneKind) -> bool {
        if order == Order::ZERO {
            return false;
        }
        self.max_order = self.max_order.max(Some(order));
        self.highest = self.highest.min(highest);
        true
    }

    /// Takes off what `done` asked for; a wish that came meanwhile and is larger stays.
    pub fn finish(&mut self, done: KcompactdWork) {
        if self.max_order <= done.max_order {
            self.max_order = None;
        }
        if self.highest >= done.highest {
            self.highest = ZoneKind::Movable;
        }
    }
}

impl<M: Machine> PageAllocator<M> {
    /// Whether compaction makes sense in any zone of the node, so that its thread is worth waking (Linux:
    /// `kcompactd_node_suitable`).
    pub fn is_kcompactd_node_suitable(&self, node: u32, work: KcompactdWork) -> bool {
        let Some(order) = work.max_order else { return false };
        let flags = AllocFlags::empty();
        self.zones_of(node, work.highest)
            .any(|zone| self.compaction_suitable(zone, order, flags, work.highest) == Status::Continue)
    }

    /// Compacts the zones of a node for one wish (Linux: `kcompactd_do_work`).
    pub fn kcompactd_do_work(&self, token: &MaySleep<'_>, node: u32, work: KcompactdWork) {
        let Some(order) = work.max_order else { return };
        let map = self.machine.map();
        map.emit(Event::MmCompactionKcompactdWake {
            nid: Some(node),
            order: Some(order),
            highest_zoneidx: work.highest,
        });
        self.count(VmEvent::KcompactdWake, 1);
        for zone in self.zones_of(node, work.highest) {
            let deferred = self.machine.with_zone(zone, |zone| zone.is_compaction_deferred(map, order));
            let highest = ZoneKind::ALL[zone % ZoneKind::ALL.len()];
            let flags = AllocFlags::empty();
            if deferred || self.compaction_suitable(zone, order, flags, highest) != Status::Continue {
                continue;
            }
            let goal = Goal {
                zone,
                order: Some(order),
                migratetype: Migratetype::Unmovable,
                flags,
                highest: work.highest,
                mode: MigrateMode::SyncLight,
                whole_zone: false,
                ignore_skip_hint: false,
                ignore_block_suitable: false,
                direct: false,
            };
            let run = self.compact_zone(token, goal);
            match run.status {
                Status::Success => {
                    self.machine.with_zone(zone, |zone| zone.reset_compaction_defer(map, order, false));
                }
                Status::Complete | Status::PartialSkipped => {
                    // Free pages on CPUs' lists may be what is missing.
                    self.drain_all_pages();
                    self.machine.with_zone(zone, |zone| zone.defer_compaction(map, order));
                }
                _ => {}
            }
            self.count(VmEvent::KcompactdMigrateScanned, run.migrate_scanned);
            self.count(VmEvent::KcompactdFreeScanned, run.free_scanned);
        }
    }
}
