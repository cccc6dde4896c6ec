//! Nodes and zones: where they are, their locks, and what is told of them.

use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicUsize, Ordering};

use memvisor_abi::{MAX_NR_ZONES, MAX_NUMNODES, Node};
use mm_core::{Order, ZoneKind};
use mm_page_alloc::{AllocFlags, Zone, ZoneGlance};

use crate::sync::{Guard, Lock};
use crate::{pr_info, printk};

/// Places for zones: those of nodes that do not exist stay empty.
pub const ZONES_MAX: usize = MAX_NUMNODES * MAX_NR_ZONES;

#[expect(clippy::cast_possible_truncation, reason = "the index is below 256")]
const fn new_zone(index: usize) -> Lock<Zone> {
    let kind = match index % MAX_NR_ZONES {
        0 => ZoneKind::Dma,
        1 => ZoneKind::Dma32,
        2 => ZoneKind::Normal,
        3 => ZoneKind::HighMem,
        _ => ZoneKind::Movable,
    };
    Lock::new(Zone::new((index / MAX_NR_ZONES) as u32, kind))
}

/// All zones, by node and kind.
pub static ZONES: [Lock<Zone>; ZONES_MAX] = {
    let mut zones = [const { new_zone(0) }; ZONES_MAX];
    let mut index = 0;
    while index < ZONES_MAX {
        zones[index] = new_zone(index);
        index += 1;
    }
    zones
};

pub(super) const NO_NODE: Node = Node { id: 0, online: 0, start_pfn: 0, spanned_pages: 0, present_pages: 0 };
/// All nodes, by number.
pub static NODES: Lock<[Node; MAX_NUMNODES]> = Lock::new([NO_NODE; MAX_NUMNODES]);
pub(super) static NR_NODES: AtomicUsize = AtomicUsize::new(0);
pub(super) static ONLINE_NODES: AtomicUsize = AtomicUsize::new(0);

/// What an allocation sees of the zones without their locks.
static GLANCES: [ZoneGlance; ZONES_MAX] = [const { ZoneGlance::new() }; ZONES_MAX];

/// Nodes of the machine.
pub fn nr_nodes() -> usize {
    NR_NODES.load(Ordering::Relaxed)
}

/// A zone that can be locked.
#[derive(Clone, Copy, Debug)]
pub struct ZoneLock(usize);

/// A locked zone. What others see of it is refreshed before the lock opens.
pub struct ZoneGuard {
    zone: Guard<'static, Zone>,
    index: usize,
}

impl ZoneLock {
    /// Takes the zone's lock.
    pub fn lock(self) -> ZoneGuard {
        ZoneGuard { zone: ZONES[self.0].lock(), index: self.0 }
    }
}

impl Deref for ZoneGuard {
    type Target = Zone;
    fn deref(&self) -> &Zone {
        &self.zone
    }
}

impl DerefMut for ZoneGuard {
    fn deref_mut(&mut self) -> &mut Zone {
        &mut self.zone
    }
}

impl Drop for ZoneGuard {
    fn drop(&mut self) {
        GLANCES[self.index].refresh(&self.zone);
    }
}

/// The zone of a node.
pub fn zone(node: u32, kind: ZoneKind) -> ZoneLock {
    ZoneLock(node as usize * MAX_NR_ZONES + kind as usize)
}

/// What an allocation sees of the zones of the nodes that exist.
pub(super) fn glances() -> &'static [ZoneGlance] {
    &GLANCES[..nr_nodes() * MAX_NR_ZONES]
}

/// Zones of the nodes that exist.
pub fn zones() -> impl Iterator<Item = ZoneLock> {
    (0..nr_nodes() * MAX_NR_ZONES).map(ZoneLock)
}

/// Whether only the reserve is left: no zone gives a request of the kernel a frame above its min watermark and what it keeps from requests
/// that higher zones could serve, `lowmem_reserve` (Linux: only `ALLOC_HARDER` and `ALLOC_HIGH` find any then).
pub fn is_below_min() -> bool {
    let flags = AllocFlags::WMARK_MIN;
    !glances().iter().filter(|glance| glance.managed_pages() > 0).any(|glance| {
        let free = glance.free_pages();
        glance.watermark_ok(Order::ZERO, glance.mark(flags), ZoneKind::Normal, flags, free)
    })
}

/// Frames of all zones, and how many of them are free, those on the CPUs' lists not counted.
pub fn managed_and_free() -> (u64, u64) {
    zones().fold((0, 0), |(managed, free), zone| {
        let zone = zone.lock();
        (managed + zone.info().managed_pages, free + zone.info().free_pages)
    })
}

/// Frames that the page allocator of a node was given (Linux: `node_managed_pages`).
pub fn managed_pages(node: u32) -> u64 {
    let first = node as usize * MAX_NR_ZONES;
    ZONES.iter().skip(first).take(MAX_NR_ZONES).map(|zone| zone.lock().info().managed_pages).sum()
}

/// Free pages of all zones, as they stand (Linux: `nr_free_pages`).
pub fn nr_free_pages() -> u64 {
    glances().iter().map(ZoneGlance::free_pages).sum()
}

/// Prints zones as Linux's boot log and /proc/zoneinfo do, and free blocks as /proc/buddyinfo.
pub fn print() {
    for zone in zones() {
        let zone = zone.lock();
        let info = zone.info();
        if info.present_pages == 0 {
            continue;
        }
        let name = ZoneKind::from_raw(info.kind).map_or("?", ZoneKind::name);
        pr_info!(
            "Node {}, zone {name:>8}: start_pfn {:#x} spanned {} present {} managed {} free {} deferred {} min {} low {} high {} protection {:?}",
            info.node,
            info.start_pfn,
            info.spanned_pages,
            info.present_pages,
            info.managed_pages,
            info.free_pages,
            info.deferred_pages,
            info.watermark[0],
            info.watermark[1],
            info.watermark[2],
            info.lowmem_reserve,
        );
        printk!(Info, "Node {}, zone {name:>8}: free blocks by order", info.node);
        for area in &info.free_area {
            printk!(Info, " {}", area.nr_free());
        }
        pr_info!("");
    }
}
