//! The page allocator's family, flags and nodes, in the kernel.

use core::sync::atomic::{AtomicU64, Ordering};

use memvisor_abi::{NumaEvent, PFN_NONE};
use mm_core::{CpuLocal, Gfp, MemMap, Order, PAGE_SIZE, Pfn, PhysMem};
use mm_page_alloc::{Context, FreeError, NodeMask, Policy, TaskPolicy};

use super::{Failure, Test, check};
use crate::mm::memmap::Vmemmap;
use crate::mm::page_alloc::{self, PAGES};
use crate::mm::pcp::Local;
use crate::mm::phys::DirectMap;
use crate::mm::reclaim::{self, Shrinker};
use crate::mm::vmscan::kswapd;
use crate::sched;

/// `ktest=alloc`.
pub const ALLOC: [(&str, Test); 6] = [
    ("a_freed_page_is_the_next_one", a_freed_page_is_the_next_one),
    ("zeroed_pages_are_zero", zeroed_pages_are_zero),
    ("exact_allocations_give_their_rest_back", exact_allocations_give_their_rest_back),
    ("compound_pages_are_freed_by_their_last_reference", compound_pages_are_freed_by_their_last_reference),
    ("wrong_frees_are_refused", wrong_frees_are_refused),
    ("bulk_pages_come_and_go", bulk_pages_come_and_go),
];

/// `ktest=gfp`.
pub const GFP: [(&str, Test); 4] = [
    ("contradictions_are_refused", contradictions_are_refused),
    ("zones_are_obeyed", zones_are_obeyed),
    ("reserves_open_by_flag", reserves_open_by_flag),
    ("a_shrinker_makes_room", a_shrinker_makes_room),
];

/// `ktest=numa-alloc`.
pub const NUMA: [(&str, Test); 3] = [
    ("each_node_serves_itself", each_node_serves_itself),
    ("interleaving_takes_turns", interleaving_takes_turns),
    ("drains_reach_every_cpu", drains_reach_every_cpu),
];

const NO_MEMORY: Failure = Failure::Wrong("no memory");

fn one(gfp: Gfp, node: Option<u32>) -> Result<Pfn, Failure> {
    page_alloc::alloc_gfp(Context::ATOMIC, gfp, Order::ZERO, node).ok_or(NO_MEMORY)
}

fn order(raw: u8) -> Order {
    Order::new(raw).unwrap_or(Order::ZERO)
}

fn a_freed_page_is_the_next_one() -> Result<(), Failure> {
    let pfn = one(Gfp::NOWAIT, None)?;
    page_alloc::free_pages(pfn, Order::ZERO);
    let again = one(Gfp::NOWAIT, None)?;
    page_alloc::free_pages(again, Order::ZERO);
    check(pfn == again, "a hot page was not used again")
}

fn zeroed_pages_are_zero() -> Result<(), Failure> {
    let dirty = one(Gfp::NOWAIT, None)?;
    DirectMap.write_u64(dirty.phys(), u64::MAX);
    page_alloc::free_pages(dirty, Order::ZERO);
    let addr = PAGES.get_zeroed_page(Context::ATOMIC, Gfp::NOWAIT).ok_or(NO_MEMORY)?;
    let word = DirectMap.read_u64(addr);
    page_alloc::free_pages(addr.pfn(), Order::ZERO);
    check(addr.pfn() == dirty && word == 0, "get_zeroed_page gave what its last owner left")
}

fn exact_allocations_give_their_rest_back() -> Result<(), Failure> {
    let before = super::buddy::free_pages();
    let bytes = 5 * PAGE_SIZE;
    let addr = PAGES.alloc_pages_exact(Context::ATOMIC, bytes, Gfp::NOWAIT).ok_or(NO_MEMORY)?;
    let held = before - super::buddy::free_pages();
    check(PAGES.free_pages_exact(addr, bytes).is_ok(), "the pages cannot be freed one by one")?;
    check(held == 5, "other than five pages were taken")?;
    check(super::buddy::free_pages() == before, "pages were lost")
}

fn compound_pages_are_freed_by_their_last_reference() -> Result<(), Failure> {
    let before = super::buddy::free_pages();
    let gfp = Gfp::NOWAIT | Gfp::COMP;
    let head = page_alloc::alloc_gfp(Context::ATOMIC, gfp, order(4), None).ok_or(NO_MEMORY)?;
    let got = PAGES.get_page(head.offset(9));
    let first = PAGES.put_page(head.offset(3));
    check(super::buddy::free_pages() == before - 16, "the page was freed while somebody had it")?;
    let last = PAGES.put_page(head);
    check(got.is_ok() && first.is_ok() && last.is_ok(), "a reference was refused")?;
    check(super::buddy::free_pages() == before, "pages were lost")
}

fn wrong_frees_are_refused() -> Result<(), Failure> {
    let pfn = page_alloc::alloc_gfp(Context::ATOMIC, Gfp::NOWAIT, order(1), None).ok_or(NO_MEMORY)?;
    let tail = page_alloc::try_free_pages(pfn.offset(1), Order::ZERO);
    let half = page_alloc::try_free_pages(pfn, Order::ZERO);
    page_alloc::free_pages(pfn, order(1));
    let twice = page_alloc::try_free_pages(pfn, order(1));
    let kernel = page_alloc::try_free_pages(Pfn::new(crate::mm::phys::image().phys / PAGE_SIZE), Order::ZERO);
    check(matches!(tail, Err(FreeError::DoubleFree { .. })), "an inner frame was freed")?;
    check(matches!(half, Err(FreeError::WrongOrder { .. })), "a block was freed by half")?;
    check(matches!(twice, Err(FreeError::DoubleFree { .. })), "a block was freed twice")?;
    check(matches!(kernel, Err(FreeError::Reserved { .. })), "the kernel was freed")
}

fn bulk_pages_come_and_go() -> Result<(), Failure> {
    let before = super::buddy::free_pages();
    let list = PAGES.alloc_pages_bulk_list(Context::ATOMIC, Gfp::NOWAIT, None, 100);
    let refused = PAGES.free_pages_list(list);
    check(list.len == 100, "fewer pages than there are")?;
    check(refused == 0 && super::buddy::free_pages() == before, "pages were lost")
}

fn contradictions_are_refused() -> Result<(), Failure> {
    let quiet = Gfp::NOWARN;
    let refused = |gfp| page_alloc::alloc_gfp(Context::ATOMIC, gfp | quiet, Order::ZERO, None).is_none();
    check(refused(Gfp::KERNEL), "a sleeping request was served in atomic context")?;
    check(refused(Gfp::NOWAIT | Gfp::DMA | Gfp::DMA32), "two zones at once")?;
    check(refused(Gfp::NOWAIT | Gfp::MOVABLE | Gfp::RECLAIMABLE), "two types at once")?;
    check(PAGES.alloc_pages_raw(Context::ATOMIC, Gfp::NOWAIT | quiet, 11, None).is_none(), "order 11")
}

fn zones_are_obeyed() -> Result<(), Failure> {
    for gfp in [Gfp::DMA, Gfp::DMA32, Gfp::NOWAIT] {
        let pfn = one(gfp | Gfp::NOWAIT, None)?;
        let zone = Vmemmap.page(pfn).map(mm_core::Page::zone);
        page_alloc::free_pages(pfn, Order::ZERO);
        check(zone <= gfp.highest_zone(), "a page from a higher zone than allowed")?;
    }
    Ok(())
}

/// Takes every block of the order that `gfp` opens, linked by `next`.
pub(super) fn take_all(gfp: Gfp, order: Order) -> (u64, u64) {
    let (mut list, mut count) = (PFN_NONE, 0);
    while let Some(pfn) = page_alloc::alloc_gfp(Context::ATOMIC, gfp | Gfp::NOWARN, order, None) {
        if let Some(page) = Vmemmap.page(pfn) {
            page.set_next(list);
        }
        (list, count) = (pfn.as_u64(), count + 1);
    }
    (list, count)
}

pub(super) fn give_all(mut list: u64, order: Order) {
    while let Some(page) = Vmemmap.page(Pfn::new(list)).filter(|_| list != PFN_NONE) {
        let pfn = Pfn::new(list);
        list = page.next();
        page_alloc::free_pages(pfn, order);
    }
}

fn reserves_open_by_flag() -> Result<(), Failure> {
    let before = super::buddy::free_pages();
    // The reserve is smaller than the largest block.
    let small = order(4);
    let (list, count) = take_all(Gfp::NOWAIT, Order::MAX);
    let (rest, _) = take_all(Gfp::NOWAIT, small);
    let (more, extra) = take_all(Gfp::NOWAIT | Gfp::MEMALLOC, small);
    give_all(list, Order::MAX);
    give_all(rest, small);
    give_all(more, small);
    check(count > 0 && extra > 0, "MEMALLOC opened nothing that NOWAIT had not")?;
    check(super::buddy::free_pages() == before, "pages were lost")
}

pub(super) static HOARD: AtomicU64 = AtomicU64::new(PFN_NONE);

pub(super) fn hoarded() -> u64 {
    if HOARD.load(Ordering::Relaxed) == PFN_NONE { 0 } else { Order::MAX.pages() }
}

/// For whoever allocates: kswapd, which an allocation wakes, runs beside it. One block alone may leave the zone a page below its mark.
pub(super) fn give_some(_: u64) -> u64 {
    if kswapd::is_current() {
        return 0;
    }
    let mut freed = 0;
    for _ in 0..2 {
        let pfn = Pfn::new(HOARD.load(Ordering::Relaxed));
        let Some(page) = Vmemmap.page(pfn).filter(|_| pfn.as_u64() != PFN_NONE) else { break };
        HOARD.store(page.next(), Ordering::Relaxed);
        page_alloc::free_pages(pfn, Order::MAX);
        freed += Order::MAX.pages();
    }
    freed
}

/// Orders of smaller blocks.
const SMALLER: [u8; 6] = [9, 8, 7, 6, 5, 4];

/// Takes the smaller blocks, too: where enough is free in them reclaim leaves an order to compaction (Linux: `compaction_ready`).
pub(super) fn take_smaller() -> [u64; 6] {
    SMALLER.map(|order| Order::new(order).map_or(PFN_NONE, |order| take_all(Gfp::NOWAIT, order).0))
}

pub(super) fn give_smaller(lists: [u64; 6]) {
    for (list, order) in lists.into_iter().zip(SMALLER) {
        if let Some(order) = Order::new(order) {
            give_all(list, order);
        }
    }
}

fn a_shrinker_makes_room() -> Result<(), Failure> {
    let before = super::buddy::free_pages();
    HOARD.store(take_all(Gfp::NOWAIT, Order::MAX).0, Ordering::Relaxed);
    let smaller = take_smaller();
    let shrinker =
        Shrinker { name: "hoard", count: hoarded, scan: give_some, seeks: reclaim::DEFAULT_SEEKS, pages: 1 };
    check(reclaim::register_shrinker(shrinker), "no room for a shrinker")?;
    let token = sched::task_context();
    let gfp = Gfp::KERNEL | Gfp::RETRY_MAYFAIL | Gfp::NOWARN;
    let got = page_alloc::alloc_gfp(Context::task(&token), gfp, Order::MAX, None);
    reclaim::unregister_shrinker("hoard");
    give_all(HOARD.swap(PFN_NONE, Ordering::Relaxed), Order::MAX);
    give_smaller(smaller);
    let served = got.map(|pfn| page_alloc::free_pages(pfn, Order::MAX)).is_some();
    check(served, "direct reclaim did not help")?;
    check(super::buddy::free_pages() == before, "pages were lost")
}

fn numa(zone: usize, event: NumaEvent) -> u64 {
    Local.with(|_, cpu| cpu.pcps.get(zone).map_or(0, |pcp| pcp.numa[event as usize]))
}

/// Nodes with a zone of their own in their list.
fn nodes_with_memory() -> impl Iterator<Item = u32> {
    let lists = crate::mm::pcp::zonelists();
    lists.iter().filter(|list| list.nofallback_count > 0).map(|list| list.node)
}

fn each_node_serves_itself() -> Result<(), Failure> {
    for node in nodes_with_memory() {
        let pfn = one(Gfp::NOWAIT | Gfp::THISNODE, Some(node))?;
        let page = Vmemmap.page(pfn).ok_or(NO_MEMORY)?;
        let zone = node as usize * memvisor_abi::MAX_NR_ZONES + page.zone() as usize;
        let (at, hits) = (page.node(), numa(zone, NumaEvent::Hit));
        page_alloc::free_pages(pfn, Order::ZERO);
        check(at == node && hits > 0, "a page for this node only came from another")?;
    }
    Ok(())
}

fn interleaving_takes_turns() -> Result<(), Failure> {
    let nodes = NodeMask::of(nodes_with_memory());
    if nodes.len() < 2 {
        return Err(Failure::Skip("one node has memory"));
    }
    let mut policy = TaskPolicy::default();
    check(policy.set(Policy::Interleave(nodes), nodes).is_ok(), "the nodes have memory")?;
    let mut last = None;
    for _ in 0..2 * nodes.len() {
        let pfn = PAGES.alloc_pages_policy(Context::ATOMIC, Gfp::NOWAIT, Order::ZERO, &mut policy);
        let pfn = pfn.ok_or(NO_MEMORY)?;
        let node = Vmemmap.page(pfn).map(mm_core::Page::node);
        page_alloc::free_pages(pfn, Order::ZERO);
        check(node != last, "the same node twice in a row")?;
        last = node;
    }
    Ok(())
}

fn drains_reach_every_cpu() -> Result<(), Failure> {
    PAGES.drain_all_pages();
    let mut kept = 0;
    Local.for_each(|_, cpu| kept += cpu.pcps.iter().map(|pcp| u64::from(pcp.count)).sum::<u64>());
    check(kept == 0, "a CPU still keeps pages")
}
