//! The short paths: a block of this CPU's lists to a caller and back, while nothing is out of the ordinary.
//!
//! What they do is what the whole paths would do. They decide before they change anything, so that whoever does not
//! fit (an empty list, a low zone, special flags, a shared page, events that are recorded) goes the whole way
//! from its beginning.

use memvisor_abi::{MAX_NR_ZONES, MIGRATE_PCPTYPES, NumaEvent, VmEvent};
use mm_core::{CpuLocal, Gfp, Order, Page, PageFlags, Pfn, Trace};

use super::freelist::node_of;
use super::prepare::allocated;
use super::{Machine, PageAllocator, pgalloc, zone_index};
use crate::free::pageblock_type;
use crate::gfp::{self, Context};
use crate::pcp::{self, count_numa};
use crate::refcount;

impl<M: Machine> PageAllocator<M> {
    /// A block of this CPU's list of the preferred zone, if that is all the request takes.
    #[inline(always)]
    pub(super) fn alloc_hot(&self, context: Context<'_>, gfp: Gfp, order: Order, node: u32) -> Option<Pfn> {
        let machine = &self.machine;
        let (highest, migratetype) = gfp::plain(context, gfp)?;
        let list = pcp::list_index(order, migratetype)?;
        if machine.map().is_tracing() || machine.is_injecting() {
            return None;
        }
        let here = machine.local_node();
        let zones = machine.zonelists().get(node as usize)?.zones(false);
        let kind = |zone: usize| zone % MAX_NR_ZONES;
        let zone =
            zones.iter().map(|zone| usize::from(*zone)).find(|zone| kind(*zone) <= highest as usize)?;
        if !machine.glances().get(zone)?.is_above_low(order, highest, gfp.contains(Gfp::MOVABLE)) {
            return None;
        }
        let (pfn, clear) = machine.local().with(|_, cpu| {
            let pcp = cpu.pcps.get_mut(zone)?;
            let (pfn, page) = pcp::pop(pcp, machine.map(), list, order)?;
            pcp.free_factor >>= 1;
            count_numa(pcp, NumaEvent::Hit);
            let near = node_of(zone) == here;
            count_numa(pcp, if near { NumaEvent::Local } else { NumaEvent::Other });
            cpu.count(pgalloc(kind(zone)), order.pages());
            page.set_refcount(1);
            let known_zero = page.state().is_known_zero();
            page.set_state(allocated(order, migratetype));
            let zero = gfp.contains(Gfp::ZERO);
            if zero {
                let event = if known_zero { VmEvent::PageKnownZero } else { VmEvent::PageZeroed };
                cpu.count(event, order.pages());
            }
            Some((pfn, zero && !known_zero))
        })?;
        // Outside of the CPU's own data, whose holder keeps interrupts off.
        if clear {
            machine.zero_frames(pfn, order.pages());
        }
        Some(pfn)
    }

    /// [`PageAllocator::alloc_pages`] as far as this CPU's list goes: nothing sleeps, nothing is reclaimed, and a request that takes
    /// more is refused. For callers that would first have to find out whether they may sleep.
    #[inline]
    pub fn alloc_from_lists(&self, gfp: Gfp, order: Order, node: Option<u32>) -> Option<Pfn> {
        let node = match node {
            Some(node) => node,
            None => self.machine.local_node(),
        };
        self.alloc_hot(Context::ATOMIC, gfp - Gfp::DIRECT_RECLAIM, order, node)
    }

    /// Whether the block, known to be `zero` or not, went to this CPU's list: it has no owner but the caller, and one reference.
    #[inline]
    pub(super) fn free_hot(&self, pfn: Pfn, page: &Page, order: Order, zero: bool) -> bool {
        let map = self.machine.map();
        let unusual = !page.state().is_allocated_block(order)
            | (page.mapcount() != -1)
            | page.has_any(PageFlags::RESERVED | PageFlags::HEAD)
            | (pfn.block(order) != pfn);
        if unusual || map.is_tracing() {
            return false;
        }
        let zone = zone_index(page);
        self.machine.local().with(|_, cpu| {
            let migratetype = pageblock_type(map, pfn);
            if migratetype as usize >= MIGRATE_PCPTYPES {
                return false;
            }
            let (Some(list), Some(pcp)) = (pcp::list_index(order, migratetype), cpu.pcps.get_mut(zone))
            else {
                return false;
            };
            if !refcount::put_only(page.references()) {
                return false;
            }
            page.set_mapping(0);
            pcp::retire(page, order, migratetype, zero);
            pcp::push(pcp, map, (pfn, page), list, order, false);
            let full = pcp.count >= pcp.high || pcp.free_factor != 0 && order > Order::ZERO;
            cpu.count(VmEvent::Pgfree, order.pages());
            if full || self.machine.is_reclaiming(zone) {
                self.flush(cpu, zone, list, order);
            }
            true
        })
    }
}
