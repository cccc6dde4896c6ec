//! Per-CPU page lists: what makes the common allocation and free cheap (Linux 6.1: `struct per_cpu_pages`).
//!
//! A CPU keeps, for each zone, free blocks of orders 0 to 3 by type and of order 9. They are taken from the zone, and
//! given back to it, in batches, so that most allocations and frees take no lock. All functions here work on the
//! lists of the CPU that runs them, inside [`mm_core::CpuLocal`]; only draining reaches another CPU's.
//!
//! Invariants, verified from outside under the same numbers:
//! P1  `count` is the sum of the pages of the blocks on all lists;
//! P2  a block on a list is headed by a frame of kind `Pcp` with the list's order and type, refcount 0;
//! P3  a list links back as it links forward, and ends at `tail`;
//! P4  a block on a list is on no other list, the zone's included, and lies in the list's zone.

use memvisor_abi::{
    MIGRATE_PCPTYPES, NR_PCP_LISTS, NumaEvent, PCP_HUGE_ORDER, PCP_MAX_ORDER, PFN_NONE, PcpList, PerCpuPages,
    VmEvent,
};
use mm_core::{Event, MemMap, Migratetype, Order, Page, PageKind, PageState, Pfn};

use crate::free::pageblock_type;
use crate::free_list::linked;
use crate::{AllocFlags, Zone};

/// What a CPU has of its own: lists of every zone, by zone index, and events.
#[derive(Debug)]
pub struct CpuPages {
    /// Lists by zone index.
    pub pcps: &'static mut [PerCpuPages],
    /// Events counted on this CPU.
    pub events: &'static mut memvisor_abi::CpuEvents,
}

impl CpuPages {
    /// Counts `delta` events.
    #[inline]
    pub fn count(&mut self, event: VmEvent, delta: u64) {
        // The enum's numbers are the array's indices.
        self.events.events[event as usize] = self.events.events[event as usize].wrapping_add(delta);
    }
}

/// Counts a NUMA event of a zone on this CPU.
#[inline]
pub(crate) fn count_numa(pcp: &mut PerCpuPages, event: NumaEvent) {
    pcp.numa[event as usize] = pcp.numa[event as usize].wrapping_add(1);
}

/// The list for a block; `None` for orders that no list holds (Linux: `order_to_pindex`,
/// `pcp_allowed_order`).
#[inline]
pub(crate) const fn list_index(order: Order, migratetype: Migratetype) -> Option<usize> {
    if order.index() <= PCP_MAX_ORDER {
        Some(order.index() * MIGRATE_PCPTYPES + migratetype as usize)
    } else if order.index() == PCP_HUGE_ORDER {
        Some(NR_PCP_LISTS - 1)
    } else {
        None
    }
}

/// Order of the blocks on a list.
fn order_of(index: usize) -> Order {
    u8::try_from(PerCpuPages::order_of(index)).ok().and_then(Order::new).unwrap_or(Order::ZERO)
}

/// Takes the hottest block of a list.
#[inline(always)]
pub(crate) fn pop<'m, M: MemMap + ?Sized>(
    pcp: &mut PerCpuPages,
    map: &'m M,
    index: usize,
    order: Order,
) -> Option<(Pfn, &'m Page)> {
    let list = &mut pcp.lists[index];
    let pfn = list.head;
    if pfn == PFN_NONE {
        return None;
    }
    let page = linked(map, pfn);
    let next = page.next();
    list.head = next;
    if next == PFN_NONE {
        list.tail = PFN_NONE;
    } else {
        linked(map, next).set_prev(PFN_NONE);
    }
    pcp.count = pcp.count.wrapping_sub(pages(order));
    Some((Pfn::new(pfn), page))
}

/// Puts a block on a list, to be taken next or last.
#[inline]
pub(crate) fn push<M: MemMap + ?Sized>(
    pcp: &mut PerCpuPages,
    map: &M,
    (pfn, page): (Pfn, &Page),
    index: usize,
    order: Order,
    cold: bool,
) {
    let list = &mut pcp.lists[index];
    if list.head == PFN_NONE {
        *list = PcpList { head: pfn.as_u64(), tail: pfn.as_u64() };
        page.set_next(PFN_NONE);
        page.set_prev(PFN_NONE);
    } else if cold {
        let last = core::mem::replace(&mut list.tail, pfn.as_u64());
        page.set_next(PFN_NONE);
        page.set_prev(last);
        linked(map, last).set_next(pfn.as_u64());
    } else {
        let first = core::mem::replace(&mut list.head, pfn.as_u64());
        page.set_next(first);
        page.set_prev(PFN_NONE);
        linked(map, first).set_prev(pfn.as_u64());
    }
    pcp.count = pcp.count.wrapping_add(pages(order));
}

fn pop_cold<'m, M: MemMap + ?Sized>(list: &mut PcpList, map: &'m M) -> Option<(Pfn, &'m Page)> {
    let pfn = list.tail;
    if pfn == PFN_NONE {
        return None;
    }
    let page = linked(map, pfn);
    let prev = page.prev();
    list.tail = prev;
    if prev == PFN_NONE {
        list.head = PFN_NONE;
    } else {
        linked(map, prev).set_next(PFN_NONE);
    }
    Some((Pfn::new(pfn), page))
}

/// Says that `page` heads a free block of a per-CPU list, whether or not it is known to be `zero`.
#[inline]
pub(crate) fn retire(page: &Page, order: Order, migratetype: Migratetype, zero: bool) {
    let state = PageState::new(PageKind::Pcp, order).with_migratetype(migratetype);
    page.set_state(state.with_known_zero(zero));
}

/// Blocks that one refill of a list brings (Linux: `rmqueue_pcplist`).
pub(crate) fn refill_size(pcp: &PerCpuPages, order: Order) -> u32 {
    if pcp.batch > 1 { (pcp.batch >> order.as_u8()).max(2) } else { pcp.batch }
}

/// Fills an empty list from its zone, whose lock the caller holds. Returns how many blocks came.
pub(crate) fn refill<M: MemMap + ?Sized>(
    pcp: &mut PerCpuPages,
    zone: &mut Zone,
    map: &M,
    index: usize,
    (order, migratetype): (Order, Migratetype),
    flags: AllocFlags,
) -> u32 {
    let count = refill_size(pcp, order);
    zone.rmqueue_bulk(map, order, count, migratetype, flags, |pfn, page| {
        // The list's type: a block that came from a contiguous area goes back there by its pageblock.
        page.set_state(page.state().with_kind(PageKind::Pcp).with_migratetype(migratetype));
        // In the order of the zone: consecutive blocks are handed out in ascending order.
        push(pcp, map, (pfn, page), index, order, true);
    })
}

/// Pages that this CPU keeps before it gives some back (Linux: `nr_pcp_high`).
fn keeps(pcp: &PerCpuPages, reclaiming: bool, free_high: bool) -> u32 {
    if pcp.high == 0 || free_high {
        0
    } else if reclaiming {
        // While somebody reclaims in the zone, free pages belong where he finds them.
        (pcp.batch << 2).min(pcp.high)
    } else {
        pcp.high
    }
}

/// How many pages to give back now, if any (Linux: `free_unref_page_commit`, `nr_pcp_free`). The batch
/// doubles while frees come without allocations.
#[inline]
pub(crate) fn surplus(pcp: &mut PerCpuPages, order: Order, reclaiming: bool) -> Option<u32> {
    // High orders on the lists of a CPU that only frees are wanted elsewhere.
    let free_high = pcp.free_factor != 0 && order > Order::ZERO && order.index() <= PCP_MAX_ORDER;
    let high = keeps(pcp, reclaiming, free_high);
    if pcp.count < high {
        return None;
    }
    Some(give_back_size(pcp, high, free_high))
}

fn give_back_size(pcp: &mut PerCpuPages, high: u32, free_high: bool) -> u32 {
    if free_high {
        return pcp.count;
    }
    if high < pcp.batch {
        return 1;
    }
    let (min, max) = (pcp.batch, high - pcp.batch);
    let batch = pcp.batch.checked_shl(pcp.free_factor).unwrap_or(u32::MAX);
    if batch < max {
        pcp.free_factor += 1;
    }
    // Linux's `clamp` with `min > max` gives `max` or `min`, whatever comes first; the minimum moves pages.
    if max < min { min } else { batch.clamp(min, max) }
}

/// Gives at least `count` pages, or all, back to the zone, whose lock the caller holds; the coldest blocks first,
/// list by list in turn beginning with `first` (Linux: `free_pcppages_bulk`).
pub(crate) fn give_back<M: MemMap + ?Sized>(
    pcp: &mut PerCpuPages,
    zone: &mut Zone,
    map: &M,
    count: u32,
    first: usize,
) {
    let mut left = count.min(pcp.count);
    let mut index = first;
    let mut empty = 0;
    while left > 0 && empty < NR_PCP_LISTS {
        let order = order_of(index);
        empty += 1;
        while left > 0 {
            let Some((pfn, _)) = pop_cold(&mut pcp.lists[index], map) else { break };
            pcp.count = pcp.count.wrapping_sub(pages(order));
            left = left.saturating_sub(pages(order));
            // The pageblock may have changed its type since, by stealing or isolation.
            let migratetype = pageblock_type(map, pfn);
            map.emit(Event::MmPagePcpuDrain { pfn, order, migratetype: migratetype as u8 });
            zone.free_one_page(map, pfn, order, migratetype);
            empty = 0;
        }
        index = if index + 1 == NR_PCP_LISTS { 0 } else { index + 1 };
    }
}

/// Pages of a block, as `count` has them.
#[inline]
pub(crate) const fn pages(order: Order) -> u32 {
    1 << order.as_u8()
}

/// Pages moved at once: a thousandth of the zone, at most 1 MiB, over four, one less than a power of two so that
/// batches do not beat with colours (Linux: `zone_batchsize`).
/// ```
/// assert_eq!(mm_page_alloc::zone_batchsize(1 << 20), 63);
/// assert_eq!(mm_page_alloc::zone_batchsize(3840), 0);
/// ```
pub const fn zone_batchsize(managed: u64) -> u32 {
    let mut batch = managed >> 10;
    if batch > 256 {
        batch = 256;
    }
    batch /= 4;
    if batch < 1 {
        batch = 1;
    }
    batch += batch / 2;
    // At most 96.
    (1 << batch.ilog2()) - 1
}

/// Pages that one CPU may keep: together the node's CPUs keep no more than the low watermark, or a fraction of the
/// zone (`vm.percpu_pagelist_high_fraction`, 0 for none); at least four batches (Linux: `zone_highsize`).
#[expect(clippy::cast_possible_truncation, reason = "clamped")]
pub const fn zone_highsize(managed: u64, low_wmark: u64, batch: u32, cpus: u32, high_fraction: u32) -> u32 {
    let total = if high_fraction == 0 { low_wmark } else { managed / high_fraction as u64 };
    let share = total / if cpus == 0 { 1 } else { cpus as u64 };
    let least = (batch as u64) << 2;
    let high = if share > least { share } else { least };
    // Counters have 32 bits, and a list must never hold that much.
    if high > 1 << 30 { 1 << 30 } else { high as u32 }
}

/// Sets the size of one CPU's lists (Linux: `pageset_update`). `batch` and `high` come from
/// [`zone_batchsize`], at least 1, and [`zone_highsize`].
pub const fn set_high_and_batch(pcp: &mut PerCpuPages, high: u32, batch: u32) {
    pcp.batch = if batch == 0 { 1 } else { batch };
    pcp.high = high;
}
