//! What the slow path tells of its steps.

use memvisor_abi::{MAX_NR_ZONES, Phase};
use mm_core::{Event, Gfp, MaySleep, Order, Pfn, ZoneId, ZoneKind};

use super::machine::{TestMachine, one_zone, order, start};
use crate::alloc::zone_id;
use crate::{CompactResult, Context, OomOutcome, PageAllocator};

type Pages = PageAllocator<&'static TestMachine>;

#[test]
fn a_zone_is_told_by_its_node_and_kind() {
    let zone = zone_id(MAX_NR_ZONES + ZoneKind::Normal as usize);
    assert_eq!(zone, ZoneId::new(1, ZoneKind::Normal as u32));
}

/// A machine of which nothing is left above the min watermark, that records from now on.
fn exhausted() -> (Pages, Vec<Pfn>) {
    let pages = start(&one_zone(1024), &[0]);
    pages.machine().size_pcps(28, 1);
    let gfp = Gfp::NOWAIT | Gfp::NOWARN;
    let taken = std::iter::from_fn(|| pages.alloc_pages(Context::ATOMIC, gfp, Order::ZERO, None)).collect();
    *pages.machine().mem.events.borrow_mut() = Some(Vec::new());
    (pages, taken)
}

/// Asks for a block and gives what was told of it.
fn told(pages: &Pages, gfp: Gfp, order: Order) -> (Option<Pfn>, Vec<Event>) {
    let token = MaySleep::checked_by_scheduler();
    let got = pages.alloc_pages(Context::task(&token), gfp, order, None);
    (got, pages.machine().mem.events.borrow_mut().take().expect("it records"))
}

/// The events of the slow path itself, by name.
fn steps(events: &[Event]) -> Vec<&'static str> {
    const OURS: [&str; 15] = [
        "__alloc_pages_slowpath",
        "mm_vmscan_wakeup_kswapd",
        "get_page_from_freelist",
        "__alloc_pages_direct_compact",
        "__alloc_pages_direct_reclaim",
        "mm_vmscan_direct_reclaim_begin",
        "mm_vmscan_direct_reclaim_end",
        "reclaim_retry_zone",
        "compact_retry",
        "alloc_pages_retry",
        "out_of_memory",
        "warn_alloc",
        "gfp_to_alloc_flags",
        "mark_victim",
        "mm_page_alloc",
    ];
    let info = |event: &Event| &memvisor_abi::EVENTS[event.id() as usize];
    let ours = events.iter().filter(|event| event.phase() != Phase::Exit).map(|event| info(event).name);
    ours.filter(|name| OURS.contains(name)).collect()
}

#[test]
fn every_step_of_a_failure_is_told_in_order() {
    let (pages, _) = exhausted();
    let (got, events) = told(&pages, Gfp::KERNEL, order(1));
    assert_eq!(got, None);
    let wanted = [
        "get_page_from_freelist",
        "__alloc_pages_slowpath",
        "gfp_to_alloc_flags",
        "mm_vmscan_wakeup_kswapd",
        "get_page_from_freelist",
        "__alloc_pages_direct_compact",
        "mm_vmscan_wakeup_kswapd",
        "get_page_from_freelist",
        "__alloc_pages_direct_reclaim",
        "mm_vmscan_direct_reclaim_begin",
        "mm_vmscan_direct_reclaim_end",
        "__alloc_pages_direct_compact",
        "reclaim_retry_zone",
        "get_page_from_freelist",
        "out_of_memory",
        "warn_alloc",
    ];
    assert_eq!(steps(&events), wanted);
    let last = Event::AllocPagesSlowpathRet { pfn: None, rounds: 1 };
    assert!(events.contains(&last), "{events:?}");
    assert!(events.contains(&Event::OutOfMemoryRet { progress: false }));
    assert!(events.contains(&Event::DirectCompactRet { pfn: None, result: 1 }));
}

#[test]
fn a_second_round_says_why_it_is_made_and_what_it_brings() {
    let (pages, taken) = exhausted();
    pages.machine().script.reclaimable.set(1000);
    let mut rounds = 0;
    *pages.machine().script.reclaim.borrow_mut() = Some(Box::new(move |machine| {
        rounds += 1;
        if rounds == 1 {
            return 0;
        }
        for pfn in &taken[..64] {
            PageAllocator::new(machine).free_pages(*pfn, Order::ZERO).expect("it was allocated");
        }
        64
    }));
    let (got, events) = told(&pages, Gfp::KERNEL, Order::ZERO);
    let pfn = got.expect("reclaim helped");
    let retry = Event::AllocPagesRetry { round: 1, reason: 1, no_progress_loops: 1, reclaimed: 0 };
    assert!(events.contains(&retry), "{events:?}");
    assert!(events.contains(&Event::DirectReclaimRet { pfn: Some(pfn), progress: 64 }));
    assert!(events.contains(&Event::AllocPagesSlowpathRet { pfn: Some(pfn), rounds: 2 }));
    let judged = events.iter().find_map(|event| match event {
        Event::ReclaimRetryZone { wmark_check, reclaimable, available, min_wmark, .. } => {
            Some((*wmark_check, *reclaimable, *available, *min_wmark))
        }
        _ => None,
    });
    assert_eq!(judged, Some((true, 1000, 1032, 32)));
}

#[test]
fn the_oom_killer_and_compaction_are_reasons_for_another_round() {
    let (pages, _) = exhausted();
    pages.machine().script.oom.set(Some(OomOutcome::Progress));
    let mut rounds = 0;
    *pages.machine().script.reclaim.borrow_mut() = Some(Box::new(move |machine| {
        rounds += 1;
        // From the third round on there is nobody left to kill.
        let outcome = if rounds < 3 { OomOutcome::Progress } else { OomOutcome::NoVictim };
        machine.script.oom.set(Some(outcome));
        0
    }));
    let (_, events) = told(&pages, Gfp::KERNEL, Order::ZERO);
    let reasons: Vec<(u64, u8)> = events.iter().filter_map(retry).collect();
    assert_eq!(reasons, [(1, 3), (2, 3)]);

    let (pages, _) = exhausted();
    pages.machine().script.compact.set(Some(CompactResult::Contended));
    *pages.machine().script.reclaim.borrow_mut() = Some(Box::new(|_| 1));
    let (_, events) = told(&pages, Gfp::KERNEL | Gfp::RETRY_MAYFAIL, order(4));
    let reasons: Vec<(u64, u8)> = events.iter().filter_map(retry).collect();
    assert!(reasons.iter().all(|(_, reason)| *reason == 1 || *reason == 2), "{reasons:?}");
    assert!(events.iter().any(|event| matches!(event, Event::CompactRetry { result: 7, .. })), "{events:?}");
}

fn retry(event: &Event) -> Option<(u64, u8)> {
    match event {
        Event::AllocPagesRetry { round, reason, .. } => Some((*round, *reason)),
        _ => None,
    }
}

#[test]
fn a_refused_request_is_told_as_refused() {
    let pages = start(&one_zone(1024), &[0]);
    *pages.machine().mem.events.borrow_mut() = Some(Vec::new());
    assert_eq!(pages.alloc_pages(Context::ATOMIC, Gfp::KERNEL, Order::ZERO, None), None);
    let events = pages.machine().mem.events.borrow_mut().take().expect("it records");
    assert!(
        matches!(
            events[..],
            [
                Event::AllocPages { .. },
                Event::PrepareAllocPages { .. },
                Event::PrepareAllocPagesRet { ok: false, .. },
                Event::AllocPagesRet { pfn: None }
            ]
        ),
        "{events:?}"
    );
}
