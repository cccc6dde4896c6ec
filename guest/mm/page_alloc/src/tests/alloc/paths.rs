//! The order of attempts, reserves, zonelists, policies and events.

use memvisor_abi::{NumaEvent, VmEvent, ZonelistOrder};
use mm_core::{Gfp, MaySleep, MemMap, Order, Pfn, PolicyAt, ZoneKind};

use super::machine::{Call, TestMachine, one_zone, order, start, start_by, two_nodes};
use crate::{
    CompactPriority, CompactResult, Context, NodeMask, OomOutcome, PageAllocator, Policy, PolicyError,
    TaskFlags, TaskPolicy,
};

type Pages = PageAllocator<&'static TestMachine>;

/// Allocates single pages until there are none.
fn exhaust(pages: &Pages, context: Context<'_>, gfp: Gfp) -> Vec<Pfn> {
    std::iter::from_fn(|| pages.alloc_pages(context, gfp | Gfp::NOWARN, Order::ZERO, None)).collect()
}

/// Pages that are free when nothing more can be had.
fn left_by(context: Context<'_>, gfp: Gfp) -> u64 {
    let pages = start(&one_zone(1024), &[0]);
    // What is on a list when the zone reaches its mark would stay there.
    pages.machine().size_pcps(28, 1);
    exhaust(&pages, context, gfp);
    pages.machine().audit();
    pages.machine().free_pages()
}

fn calls(pages: &Pages) -> Vec<Call> {
    pages.machine().script.calls.borrow().clone()
}

#[test]
fn each_kind_of_request_digs_as_deep_as_linux_lets_it() {
    // The min mark is 32: HIGH takes half of it, ATOMIC a quarter more, MEMALLOC all.
    assert_eq!(left_by(Context::ATOMIC, Gfp::NOWAIT), 32);
    assert_eq!(left_by(Context::ATOMIC, Gfp::NOWAIT | Gfp::HIGH), 16);
    assert_eq!(left_by(Context::ATOMIC, Gfp::ATOMIC), 12);
    assert_eq!(left_by(Context::ATOMIC, Gfp::ATOMIC | Gfp::NOMEMALLOC), 16);
    assert_eq!(left_by(Context::ATOMIC, Gfp::NOWAIT | Gfp::MEMALLOC), 0);
    assert_eq!(left_by(Context::ATOMIC, Gfp::NOWAIT | Gfp::MEMALLOC | Gfp::NOMEMALLOC), 32);
    let token = MaySleep::checked_by_scheduler();
    let reclaimer = Context { task: TaskFlags::MEMALLOC, ..Context::task(&token) };
    assert_eq!(left_by(reclaimer, Gfp::KERNEL), 0);
    let victim = Context { task: TaskFlags::OOM_VICTIM, ..Context::task(&token) };
    assert_eq!(left_by(victim, Gfp::KERNEL), 16);
}

#[test]
fn the_slow_path_goes_in_linuxs_order_and_fails_cleanly() {
    let pages = start(&one_zone(1024), &[0]);
    pages.machine().size_pcps(28, 1);
    exhaust(&pages, Context::ATOMIC, Gfp::NOWAIT);
    pages.machine().script.calls.borrow_mut().clear();
    let token = MaySleep::checked_by_scheduler();
    assert_eq!(pages.alloc_pages(Context::task(&token), Gfp::KERNEL, Order::ZERO, None), None);
    let zone = ZoneKind::Normal as usize;
    assert_eq!(
        calls(&pages),
        [Call::Kswapd(zone), Call::Kswapd(zone), Call::Reclaim, Call::Throttle, Call::Oom]
    );
    let lines = pages.machine().lines.borrow();
    assert!(lines[0].starts_with("page allocation failure: order:0, mode:0xcc0(GFP_KERNEL)"), "{}", lines[0]);
    assert_eq!(lines[1], "show_mem up to Normal");
}

#[test]
fn a_costly_block_is_compacted_for_first_and_given_up_early() {
    let pages = start(&one_zone(1024), &[0]);
    exhaust(&pages, Context::ATOMIC, Gfp::NOWAIT);
    pages.machine().script.calls.borrow_mut().clear();
    pages.machine().script.compact.set(Some(CompactResult::Complete));
    let token = MaySleep::checked_by_scheduler();
    assert_eq!(pages.alloc_pages(Context::task(&token), Gfp::KERNEL, order(4), None), None);
    let seen = calls(&pages);
    let compactions: Vec<Call> =
        seen.iter().copied().filter(|call| matches!(call, Call::Compact(_) | Call::Reclaim)).collect();
    assert_eq!(
        compactions,
        [Call::Compact(CompactPriority::Async), Call::Reclaim, Call::Compact(CompactPriority::SyncLight)]
    );
    assert!(!seen.contains(&Call::Oom));
    assert_eq!(pages.machine().event(VmEvent::CompactFail), 2);
}

#[test]
fn noretry_stops_after_one_round_and_retry_mayfail_never_kills() {
    let token = MaySleep::checked_by_scheduler();
    for (gfp, reclaims) in [(Gfp::NORETRY, 1), (Gfp::RETRY_MAYFAIL, 17)] {
        let pages = start(&one_zone(1024), &[0]);
        exhaust(&pages, Context::ATOMIC, Gfp::NOWAIT);
        pages.machine().script.calls.borrow_mut().clear();
        // Reclaim looks promising, and brings nothing.
        pages.machine().script.reclaimable.set(1000);
        let none = pages.alloc_pages(Context::task(&token), Gfp::KERNEL | gfp, Order::ZERO, None);
        assert_eq!(none, None);
        let seen = calls(&pages);
        assert_eq!(seen.iter().filter(|call| **call == Call::Reclaim).count(), reclaims, "{gfp:?}");
        assert!(!seen.contains(&Call::Oom), "{gfp:?}");
    }
}

#[test]
fn nofail_takes_the_reserve_and_then_waits_for_reclaim() {
    let pages = start(&one_zone(256), &[0]);
    let token = MaySleep::checked_by_scheduler();
    let task = Context::task(&token);
    exhaust(&pages, Context::ATOMIC, Gfp::NOWAIT | Gfp::MEMALLOC);
    let held = pages.machine().zones[2].borrow().info().start_pfn;
    let mut rounds = 0;
    *pages.machine().script.reclaim.borrow_mut() = Some(Box::new(move |machine| {
        rounds += 1;
        if rounds < 5 {
            return 0;
        }
        // The fifth round finds something.
        PageAllocator::new(machine).free_pages(Pfn::new(held), Order::ZERO).expect("it was allocated");
        1
    }));
    pages.machine().script.oom.set(Some(OomOutcome::NoVictim));
    let got = pages.alloc_pages(task, Gfp::KERNEL | Gfp::NOFAIL, Order::ZERO, None);
    assert_eq!(got, Some(Pfn::new(held)));
}

#[test]
fn who_is_chosen_to_die_while_it_waits_may_use_a_part_of_the_reserve() {
    let pages = start(&one_zone(256), &[0]);
    let token = MaySleep::checked_by_scheduler();
    exhaust(&pages, Context::ATOMIC, Gfp::NOWAIT);
    let script = &pages.machine().script;
    script.oom.set(Some(OomOutcome::Progress));
    script.kills_caller.set(true);
    let got = pages.alloc_pages(Context::task(&token), Gfp::KERNEL, Order::ZERO, None);
    assert!(got.is_some(), "half of the reserve is a victim's");
    // When that is used up as well, it fails, so that the victim can end.
    while pages.alloc_pages(Context::task(&token), Gfp::KERNEL, Order::ZERO, None).is_some() {}
}

#[test]
fn what_reclaim_frees_is_found_on_another_cpus_list() {
    let pages = start(&one_zone(1024), &[0, 0]);
    pages.machine().size_pcps(28, 1);
    let taken = exhaust(&pages, Context::ATOMIC, Gfp::NOWAIT);
    // The other CPU frees, and keeps what it freed.
    pages.machine().run_on(1);
    for pfn in &taken[..20] {
        pages.free_pages(*pfn, Order::ZERO).expect("allocated");
    }
    pages.machine().run_on(0);
    let zone_free = || pages.machine().zones[2].borrow().info().free_pages;
    assert_eq!(zone_free(), 32);
    *pages.machine().script.reclaim.borrow_mut() = Some(Box::new(|_| 1));
    let token = MaySleep::checked_by_scheduler();
    assert!(pages.alloc_pages(Context::task(&token), Gfp::KERNEL, Order::ZERO, None).is_some());
    assert_eq!(pages.machine().event(VmEvent::PcpDrain), 1);
    pages.machine().audit();
}

#[test]
fn per_cpu_lists_give_back_in_growing_batches_and_refill_by_one() {
    let pages = start(&one_zone(2048), &[0]);
    let taken = exhaust(&pages, Context::ATOMIC, Gfp::NOWAIT);
    assert_eq!(pages.machine().event(VmEvent::PcpRefill), (taken.len() as u64).div_ceil(7));
    for pfn in &taken {
        pages.free_pages(*pfn, Order::ZERO).expect("allocated");
        assert!(pages.machine().kept() < 28, "a CPU keeps less than high");
    }
    // 7, 14, then the most that leaves a batch: 21.
    assert!(pages.machine().event(VmEvent::PcpFlush) < taken.len() as u64 / 14);
    pages.drain_local_pages();
    assert_eq!((pages.machine().kept(), pages.machine().free_pages()), (0, 2048));
    pages.machine().audit();
}

#[test]
fn a_remote_free_goes_to_the_pages_own_zone() {
    let pages = start(&two_nodes(), &[0, 1]);
    let pfn = pages.alloc_pages(Context::ATOMIC, Gfp::ATOMIC, Order::ZERO, Some(0)).expect("memory");
    pages.drain_all_pages();
    pages.machine().run_on(1);
    pages.free_pages(pfn, Order::ZERO).expect("allocated");
    pages.machine().audit();
    // The same CPU gets it back when it asks for that node.
    assert_eq!(pages.alloc_pages(Context::ATOMIC, Gfp::ATOMIC, Order::ZERO, Some(0)), Some(pfn));
}

fn place_of(pages: &Pages, pfn: Pfn) -> (u32, ZoneKind) {
    let page = pages.machine().mem.page(pfn).expect("RAM");
    (page.node(), page.zone())
}

/// The zones in the order in which an allocation on node 0 finds them.
fn order_of_zones(order: ZonelistOrder, gfp: Gfp) -> Vec<(u32, ZoneKind)> {
    let pages = start_by(&two_nodes(), &[0, 1], order);
    let mut places: Vec<_> =
        exhaust(&pages, Context::ATOMIC, gfp).into_iter().map(|pfn| place_of(&pages, pfn)).collect();
    places.dedup();
    places.truncate(3);
    places
}

#[test]
fn zonelists_go_by_node_or_by_zone() {
    let (dma32, normal) = (ZoneKind::Dma32, ZoneKind::Normal);
    assert_eq!(order_of_zones(ZonelistOrder::Node, Gfp::NOWAIT), [(0, normal), (0, dma32), (1, normal)]);
    assert_eq!(order_of_zones(ZonelistOrder::Zone, Gfp::NOWAIT), [(0, normal), (1, normal), (0, dma32)]);
    let pages = start(&two_nodes(), &[0, 1]);
    let movable = Gfp::NOWAIT | Gfp::HIGHMEM | Gfp::MOVABLE;
    let pfn = pages.alloc_pages(Context::ATOMIC, movable, Order::ZERO, Some(1)).expect("memory");
    assert_eq!(place_of(&pages, pfn), (1, ZoneKind::Movable));
    let pfn =
        pages.alloc_pages(Context::ATOMIC, Gfp::NOWAIT | Gfp::DMA32, Order::ZERO, Some(1)).expect("memory");
    assert_eq!(place_of(&pages, pfn), (0, dma32));
}

#[test]
fn thisnode_stays() {
    let pages = start(&two_nodes(), &[0, 1]);
    let gfp = Gfp::NOWAIT | Gfp::THISNODE;
    for pfn in exhaust(&pages, Context::ATOMIC, gfp) {
        assert_eq!(place_of(&pages, pfn).0, 0);
    }
    assert!(pages.alloc_pages(Context::ATOMIC, Gfp::NOWAIT, Order::ZERO, None).is_some());
}

#[test]
fn events_say_where_pages_came_from() {
    let pages = start(&two_nodes(), &[0, 1]);
    let normal = ZoneKind::Normal;
    let numa = |node, event| pages.machine().numa(node, normal, event);
    pages.alloc_pages(Context::ATOMIC, Gfp::NOWAIT, Order::ZERO, None).expect("memory");
    assert_eq!((numa(0, NumaEvent::Hit), numa(0, NumaEvent::Local)), (1, 1));
    pages.alloc_pages(Context::ATOMIC, Gfp::NOWAIT, Order::ZERO, Some(1)).expect("memory");
    assert_eq!((numa(1, NumaEvent::Hit), numa(1, NumaEvent::Other)), (1, 1));
    exhaust(&pages, Context::ATOMIC, Gfp::NOWAIT);
    assert_eq!(numa(1, NumaEvent::Miss), numa(0, NumaEvent::Foreign));
    assert!(numa(1, NumaEvent::Miss) > 0);
}

#[test]
fn policies_choose_nodes() {
    let pages = start(&two_nodes(), &[0, 1]);
    let memory = NodeMask::of([0, 1]);
    let mut policy = TaskPolicy::default();
    let next = |policy: &mut TaskPolicy| {
        let pfn =
            pages.alloc_pages_policy(Context::ATOMIC, Gfp::NOWAIT, Order::ZERO, policy).expect("memory");
        place_of(&pages, pfn).0
    };
    assert_eq!(next(&mut policy), 0);
    policy.set(Policy::Interleave(memory), memory).expect("both have memory");
    assert_eq!([0; 4].map(|_| next(&mut policy)), [0, 1, 0, 1]);
    policy.set(Policy::Preferred(1), memory).expect("it has memory");
    assert_eq!(next(&mut policy), 1);
    policy.set(Policy::Bind(NodeMask::of([1])), memory).expect("it has memory");
    assert_eq!(next(&mut policy), 1);
    let none = NodeMask::of([7]);
    assert_eq!(policy.set(Policy::Bind(none), memory), Err(PolicyError::NoMemory { nodes: none }));
    assert_eq!(pages.machine().numa(1, ZoneKind::Normal, NumaEvent::InterleaveHit), 2);
    // In an area the page's place says whose turn it is, and the task's round goes on where it was.
    let at = |index| {
        let at = PolicyAt { policy: Policy::Interleave(memory), index };
        place_of(&pages, pages.alloc_page_at(Context::ATOMIC, Gfp::NOWAIT, at).expect("memory")).0
    };
    assert_eq!([7, 4, 5, 5].map(at), [1, 0, 1, 1]);
    // Many are preferred to all, and any is better than none.
    let near = PolicyAt { policy: Policy::PreferredMany(NodeMask::of([1])), index: 0 };
    let gfp = Gfp::NOWAIT | Gfp::NOWARN;
    let many = || pages.alloc_page_at(Context::ATOMIC, gfp, near).map(|pfn| place_of(&pages, pfn).0);
    let taken: Vec<u32> = std::iter::from_fn(many).collect();
    assert!(taken.is_sorted_by_key(|node| core::cmp::Reverse(*node)) && taken.last() == Some(&0));
}

#[test]
fn a_bound_request_stays_on_its_nodes() {
    let pages = start(&two_nodes(), &[0, 1]);
    let memory = NodeMask::of([0, 1]);
    // A bound request fails rather than leave its nodes.
    let mut bound = TaskPolicy::default();
    bound.set(Policy::Bind(NodeMask::of([1])), memory).expect("it has memory");
    let gfp = Gfp::NOWAIT | Gfp::NOWARN;
    while let Some(pfn) = pages.alloc_pages_policy(Context::ATOMIC, gfp, Order::ZERO, &mut bound) {
        assert_eq!(place_of(&pages, pfn).0, 1);
    }
    assert!(pages.alloc_pages(Context::ATOMIC, gfp, Order::ZERO, Some(0)).is_some());
}
