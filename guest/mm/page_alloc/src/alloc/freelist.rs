//! One pass over a zonelist (Linux: `prepare_alloc_pages`, `get_page_from_freelist`, `rmqueue`).

use memvisor_abi::{EventId, MAX_NR_ZONES, NumaEvent, VmEvent};
use mm_core::{CpuLocal, Event, Gfp, Migratetype, NodeMask, Order, PageState, Pfn, Trace, ZoneKind};

use super::{Machine, PageAllocator, pgalloc, zone_id};
use crate::gfp::{cma, highest_zone, migratetype};
use crate::glance::lowered;
use crate::pcp::{self, count_numa};
use crate::policy::Placement;
use crate::{AllocFlags, Reclaim};

/// A request that was checked, and what follows from its flags (Linux: `struct alloc_context`).
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Flags, as they hold in the task's scopes.
    pub gfp: Gfp,
    /// Order.
    pub order: Order,
    /// Node whose zonelist is used.
    pub node: u32,
    /// Nodes that are allowed.
    pub nodes: NodeMask,
    /// Highest zone that is allowed (Linux: `highest_zoneidx`).
    pub highest: ZoneKind,
    /// Type of block.
    pub migratetype: Migratetype,
    /// First zone of the list that is allowed (Linux: `preferred_zoneref`).
    pub preferred: usize,
    interleaved: bool,
}

/// A block fresh from a list: what its descriptor said there is known, and is written over by
/// `prep_new_page`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub pfn: Pfn,
    pub state: PageState,
}

impl Request {
    /// Linux: `prepare_alloc_pages`. `None` if no zone is allowed at all.
    #[inline]
    pub(super) fn new<M: Machine>(
        machine: &M,
        gfp: Gfp,
        order: Order,
        placement: Placement,
    ) -> Option<Request> {
        let mut request = Request {
            gfp,
            order,
            node: placement.node,
            nodes: placement.nodes,
            highest: highest_zone(gfp),
            migratetype: migratetype(gfp),
            preferred: 0,
            interleaved: placement.interleaved,
        };
        request.preferred = request.zones(machine).next()?;
        Some(request)
    }

    /// The zones to try, best first (Linux: `for_next_zone_zonelist_nodemask`).
    #[inline]
    pub fn zones<'m, M: Machine>(&self, machine: &'m M) -> impl Iterator<Item = usize> + use<'m, M> {
        let (highest, nodes) = (self.highest as usize, self.nodes);
        let list = machine
            .zonelists()
            .get(self.node as usize)
            .map_or(&[][..], |list| list.zones(self.gfp.contains(Gfp::THISNODE)));
        list.iter().map(|&zone| usize::from(zone)).filter(move |zone| {
            zone % MAX_NR_ZONES <= highest && (nodes == NodeMask::ALL || nodes.contains(node_of(*zone)))
        })
    }

    /// The same without the policy's nodes, for requests that may ignore it.
    pub(super) fn unbound<M: Machine>(&self, machine: &M) -> Request {
        let mut request = Request { nodes: NodeMask::ALL, ..*self };
        request.preferred = request.zones(machine).next().unwrap_or(self.preferred);
        request
    }

    /// Rights of the fast path: the low watermark, contiguous areas for what is movable, and no mixing of types
    /// while another zone of the node could be used instead (Linux: `alloc_flags_nofragment`).
    #[inline]
    pub(super) fn fast_flags<M: Machine>(&self, machine: &M) -> AllocFlags {
        let mut flags = AllocFlags::WMARK_LOW | cma(self.gfp);
        if self.gfp.contains(Gfp::KSWAPD_RECLAIM) {
            flags |= AllocFlags::KSWAPD;
        }
        // ZONE_DMA32 below ZONE_NORMAL is the one worth falling back to. Without one on this node, falling back
        // would mean another node.
        let preferred = self.preferred;
        let is_normal = preferred % MAX_NR_ZONES == ZoneKind::Normal as usize;
        let below = || machine.glances().get(preferred - 1).is_some_and(|glance| glance.managed_pages() > 0);
        if is_normal && (machine.nr_online_nodes() <= 1 || below()) {
            flags |= AllocFlags::NOFRAGMENT;
        }
        flags
    }
}

/// Node of a zone index.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "there are at most 64 nodes")]
pub(super) const fn node_of(zone: usize) -> u32 {
    (zone / MAX_NR_ZONES) as u32
}

impl<M: Machine> PageAllocator<M> {
    /// Takes a block from the first zone that may give one (Linux: `get_page_from_freelist`).
    #[inline]
    pub(super) fn get_page_from_freelist(&self, request: &Request, flags: AllocFlags) -> Option<Block> {
        let map = self.machine.map();
        let &Request { gfp, order, .. } = request;
        map.emit(Event::GetPageFromFreelist { gfp, order, alloc_flags: flags.bits() });
        let block = self.find_block(request, flags);
        map.emit(Event::GetPageFromFreelistRet { pfn: block.map(|block| block.pfn) });
        block
    }

    #[inline]
    fn find_block(&self, request: &Request, flags: AllocFlags) -> Option<Block> {
        // Nearly always the first zone of the list has enough.
        let zone = request.preferred;
        let glance = self.machine.glances().get(zone)?;
        if request.order == Order::ZERO
            && glance.is_far_above(glance.mark(flags), request.highest, flags)
            && !self.machine.map().wants(EventId::ZoneWatermarkOk)
            && let Some(block) = self.rmqueue(request, zone, flags)
        {
            return Some(block);
        }
        self.search_zonelist(request, flags)
    }

    #[inline(never)]
    fn search_zonelist(&self, request: &Request, flags: AllocFlags) -> Option<Block> {
        let mut flags = flags;
        loop {
            let no_fallback = flags.contains(AllocFlags::NOFRAGMENT);
            let mut left_node = false;
            for zone in request.zones(&self.machine) {
                // Rather mix types here than use a remote node.
                if no_fallback && node_of(zone) != node_of(request.preferred) {
                    left_node = true;
                    self.machine.map().emit(Event::ZoneSkipped { zone: zone_id(zone), reason: 2 });
                    break;
                }
                if !self.may_take_from(request, zone, flags) {
                    continue;
                }
                loop {
                    if let Some(block) = self.rmqueue(request, zone, flags) {
                        self.reserve_highatomic(request, zone, flags, block.pfn);
                        return Some(block);
                    }
                    if !self.machine.grow(zone) {
                        break;
                    }
                }
            }
            if !no_fallback && !left_node {
                return None;
            }
            flags -= AllocFlags::NOFRAGMENT;
        }
    }

    /// Whether the zone stays above its watermark, after it grew as far as it can.
    fn may_take_from(&self, request: &Request, zone: usize, flags: AllocFlags) -> bool {
        while !self.is_above_mark(request, zone, flags) {
            if self.machine.grow(zone) {
                continue;
            }
            return flags.contains(AllocFlags::NO_WATERMARKS)
                || self.machine.reclaim().node_reclaim(zone, request)
                    && self.is_above_mark(request, zone, flags);
        }
        true
    }

    fn is_above_mark(&self, request: &Request, zone: usize, flags: AllocFlags) -> bool {
        let ok = self.zone_watermark_fast(request, zone, flags);
        if self.machine.map().wants(EventId::ZoneWatermarkOk) {
            self.tell_watermark(request, zone, flags, ok);
        }
        ok
    }

    #[cold]
    fn tell_watermark(&self, request: &Request, zone: usize, flags: AllocFlags, ok: bool) {
        let Some(glance) = self.machine.glances().get(zone) else { return };
        self.machine.map().emit(Event::ZoneWatermarkOk {
            zone: zone_id(zone),
            order: request.order,
            ok,
            alloc_flags: flags.bits(),
            free: glance.free_pages(),
            mark: glance.mark(flags),
            min: lowered(glance.mark(flags), flags),
            lowmem_reserve: glance.lowmem_reserve(request.highest),
        });
    }

    /// Linux: `zone_watermark_fast`.
    fn zone_watermark_fast(&self, request: &Request, zone: usize, flags: AllocFlags) -> bool {
        let Some(glance) = self.machine.glances().get(zone) else { return false };
        let mark = glance.mark(flags);
        let &Request { order, highest, gfp, .. } = request;
        if order == Order::ZERO && glance.is_far_above(mark, highest, flags) {
            return true;
        }
        let free = glance.free_pages();
        if glance.watermark_ok(order, mark, highest, flags, free) {
            return true;
        }
        // An atomic page may ignore the boost, which only serves against fragmentation.
        order == Order::ZERO
            && gfp.contains(Gfp::ATOMIC_CONTEXT)
            && glance.is_boosted()
            && flags.watermark_index() == 0
            && glance.watermark_ok(order, glance.unboosted(flags), highest, flags, free)
    }

    /// Takes a block of one zone: from this CPU's list if the order has one, else from the buddy (Linux:
    /// `rmqueue`).
    #[inline]
    fn rmqueue(&self, request: &Request, zone: usize, flags: AllocFlags) -> Option<Block> {
        let &Request { order, migratetype, .. } = request;
        let map = self.machine.map();
        map.emit(Event::Rmqueue { zone: zone_id(zone), order, migratetype: migratetype as u8 });
        let block = self.take_block(request, zone, flags);
        map.emit(Event::RmqueueRet { pfn: block.map(|block| block.pfn) });
        block
    }

    #[inline]
    fn take_block(&self, request: &Request, zone: usize, flags: AllocFlags) -> Option<Block> {
        let &Request { order, migratetype, preferred, interleaved, .. } = request;
        let map = self.machine.map();
        self.machine.local().with(|_, cpu| {
            let mut block = None;
            if let Some(list) = pcp::list_index(order, migratetype) {
                let pcp = cpu.pcps.get_mut(zone)?;
                // Allocations follow the frees: the next give-back is an ordinary batch again.
                pcp.free_factor >>= 1;
                let (zone_id, count) = (zone_id(zone), u64::from(pcp.count));
                map.emit(Event::RmqueuePcplist {
                    zone: zone_id,
                    order,
                    migratetype: migratetype as u8,
                    count,
                });
                block = pcp::pop(pcp, map, list, order);
                if block.is_none() {
                    let pcp = cpu.pcps.get_mut(zone)?;
                    self.refill(pcp, zone, list, request, flags);
                    block = pcp::pop(pcp, map, list, order);
                    cpu.count(VmEvent::PcpRefill, 1);
                }
                map.emit(Event::RmqueuePcplistRet { pfn: block.as_ref().map(|block| block.0) });
            }
            let block = match block {
                Some((pfn, page)) => Block { pfn, state: page.state() },
                None => self.rmqueue_buddy(request, zone, flags)?,
            };
            cpu.count(pgalloc(zone % MAX_NR_ZONES), order.pages());
            self.zone_statistics(cpu.pcps, preferred, zone, interleaved);
            Some(block)
        })
    }

    #[cold]
    fn refill(
        &self,
        pcp: &mut memvisor_abi::PerCpuPages,
        zone: usize,
        list: usize,
        request: &Request,
        flags: AllocFlags,
    ) {
        let map = self.machine.map();
        let (order, migratetype) = (request.order, request.migratetype);
        let count = u64::from(pcp::refill_size(pcp, order));
        map.emit(Event::RmqueueBulk { zone: zone_id(zone), order, migratetype: migratetype as u8, count });
        let kind = (order, migratetype);
        let count = self.with_zone(zone, |zone| pcp::refill(pcp, zone, map, list, kind, flags));
        map.emit(Event::RmqueueBulkRet { count: u64::from(count) });
    }

    /// Linux: `rmqueue_buddy`.
    fn rmqueue_buddy(&self, request: &Request, zone: usize, flags: AllocFlags) -> Option<Block> {
        let map = self.machine.map();
        let &Request { order, migratetype, .. } = request;
        let pfn = self.with_zone(zone, |zone| zone.rmqueue(map, order, migratetype, flags))?;
        Some(Block { pfn, state: crate::free_list::linked(map, pfn.as_u64()).state() })
    }

    /// Linux: `zone_statistics`.
    #[inline]
    pub(super) fn zone_statistics(
        &self,
        pcps: &mut [memvisor_abi::PerCpuPages],
        preferred: usize,
        zone: usize,
        interleaved: bool,
    ) {
        let here = self.machine.local_node();
        let (wanted, got) = (node_of(preferred), node_of(zone));
        if wanted != got
            && let Some(pcp) = pcps.get_mut(preferred)
        {
            count_numa(pcp, NumaEvent::Foreign);
        }
        let Some(pcp) = pcps.get_mut(zone) else { return };
        count_numa(pcp, if got == here { NumaEvent::Local } else { NumaEvent::Other });
        count_numa(pcp, if wanted == got { NumaEvent::Hit } else { NumaEvent::Miss });
        if interleaved && wanted == got {
            count_numa(pcp, NumaEvent::InterleaveHit);
        }
    }
}
