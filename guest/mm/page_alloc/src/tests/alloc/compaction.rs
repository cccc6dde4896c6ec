//! Compaction of whole zones.

use memvisor_abi::VmEvent;
use mm_core::{Gfp, MaySleep, MemMap, MigrateError, Order, Pfn, ZoneKind};
use proptest::prelude::*;

use super::machine::{Call, ZoneSpec, one_zone, order, start};
use super::movable::{Pages, add, drop_page, verify};
use crate::{CompactPriority, Context, KcompactdWork};

const NORMAL: usize = ZoneKind::Normal as usize;

/// Fills memory with movable pages, and drops those that `keep` does not want. The numbers of those that stay.
fn fill(pages: &Pages, keep: impl Fn(u64) -> bool) -> Vec<u64> {
    let mut count = 0;
    while add(pages, count) {
        count += 1;
    }
    (0..count).filter(|number| !keep(*number)).for_each(|number| drop_page(pages, number));
    pages.drain_all_pages();
    (0..count).filter(|number| keep(*number)).collect()
}

fn huge(pages: &Pages) -> Option<Pfn> {
    let token = MaySleep::checked_by_scheduler();
    pages.alloc_pages(Context::task(&token), Gfp::KERNEL | Gfp::NOWARN, order(9), None)
}

fn huge_at_once(pages: &Pages) -> Option<Pfn> {
    pages.alloc_pages(Context::ATOMIC, Gfp::NOWAIT | Gfp::NOWARN, order(9), None)
}

fn sieve(blocks: u64) -> Pages {
    let pages = start(&one_zone(blocks * 512), &[0]);
    pages.machine().script.compacts.set(true);
    fill(&pages, |number| number % 4 == 1);
    pages
}

#[test]
fn a_huge_page_comes_of_a_sieve() {
    let pages = sieve(8);
    let free = pages.machine().free_pages();
    assert_eq!(huge_at_once(&pages), None);
    let pfn = huge(&pages).expect("compaction makes a block");
    let machine = pages.machine();
    verify(machine);
    assert_eq!(machine.event(VmEvent::CompactSuccess), 1);
    assert!(
        machine.event(VmEvent::CompactMigrateScanned) > 0 && machine.event(VmEvent::CompactFreeScanned) > 0
    );
    assert!(machine.event(VmEvent::CompactIsolated) >= 2 * machine.event(VmEvent::PgmigrateSuccess));
    pages.free_pages(pfn, order(9)).expect("the block is whole");
    assert_eq!(machine.free_pages(), free);
    machine.audit();
}

#[test]
fn compaction_stops_when_there_is_a_block() {
    let pages = sieve(16);
    huge(&pages).expect("compaction makes a block");
    let scanned = pages.machine().event(VmEvent::CompactMigrateScanned);
    assert!(scanned <= 2 * 512, "{scanned} frames for one block");
}

#[test]
fn a_node_is_compacted_as_far_as_it_goes() {
    let pages = sieve(8);
    let free = pages.machine().free_pages();
    pages.compact_node(&MaySleep::checked_by_scheduler(), 0);
    let machine = pages.machine();
    verify(machine);
    machine.audit();
    assert_eq!(machine.free_pages(), free);
    let info = machine.zones[NORMAL].borrow().contig_page_info(order(9));
    assert!(info.free_blocks_suitable >= 5, "three quarters of eight are free: {info:?}");
}

#[test]
fn pinned_pages_in_every_block_defer_the_next_compaction() {
    let pages = start(&one_zone(8 * 512), &[0]);
    pages.machine().script.compacts.set(true);
    // Where the samples are that decide whether a hint is forgotten: every eighth frame.
    fill(&pages, |number| number % 4 == 0);
    let machine = pages.machine();
    let all: Vec<u64> = machine.movable.pages.borrow().keys().copied().collect();
    machine.movable.pinned.borrow_mut().extend(all.iter().step_by(16));
    assert_eq!(huge(&pages), None);
    verify(machine);
    machine.audit();
    {
        let zone = machine.zones[NORMAL].borrow();
        assert!(zone.info().compact_defer_shift >= 1 && zone.info().compact_order_failed <= 9);
        assert_eq!(zone.info().compact_blockskip_flush, 1);
    }
    let first = machine.event(VmEvent::CompactMigrateScanned);
    assert_eq!(huge(&pages), None);
    // The asynchronous attempt is turned away, the other finds hints.
    let second = machine.event(VmEvent::CompactMigrateScanned) - first;
    assert!(second < first, "{second} frames after {first}");
    assert!(machine.event(VmEvent::CompactFail) > 0);
    // Hints and deferral pass: unpinned, the next that is let through succeeds.
    machine.movable.pinned.borrow_mut().clear();
    let served = (0..70).any(|_| {
        pages.reset_isolation_suitable(0);
        huge(&pages).is_some()
    });
    assert!(served, "deferral has an end");
    verify(machine);
}

#[test]
fn asynchronous_compaction_gives_a_block_up_at_the_first_page_that_stays() {
    let pages = sieve(8);
    let machine = pages.machine();
    // The first page of each quarter of a block.
    let all: Vec<u64> = machine.movable.pages.borrow().keys().copied().collect();
    machine.movable.pinned.borrow_mut().extend(all.iter().step_by(32));
    let token = MaySleep::checked_by_scheduler();
    // For a movable request: others skip movable blocks while they do not wait.
    let gfp = Gfp::KERNEL | Gfp::MOVABLE | Gfp::NORETRY | Gfp::NOWARN;
    assert_eq!(pages.alloc_pages(Context::task(&token), gfp, order(9), None), None);
    let tried = |call: &Call| *call == Call::Compact(CompactPriority::Async);
    assert!(machine.script.calls.borrow().iter().any(tried));
    assert_eq!(machine.event(VmEvent::PgmigrateSuccess), 0, "nothing was moved in vain");
    verify(machine);
    machine.audit();
}

#[test]
fn asynchronous_compaction_leaves_a_block_when_a_page_in_it_refuses() {
    let pages = sieve(8);
    let machine = pages.machine();
    // One page of each block, so that none becomes free whatever else moves.
    let first: Vec<u64> = machine.movable.pages.borrow().keys().copied().step_by(128).collect();
    machine
        .movable
        .stubborn
        .borrow_mut()
        .extend(first.into_iter().map(|number| (number, MigrateError::Busy)));
    let token = MaySleep::checked_by_scheduler();
    // For a movable request: others skip movable blocks while they do not wait.
    let gfp = Gfp::KERNEL | Gfp::MOVABLE | Gfp::NORETRY | Gfp::NOWARN;
    assert_eq!(pages.alloc_pages(Context::task(&token), gfp, order(9), None), None);
    let (failed, moved) = (machine.event(VmEvent::PgmigrateFail), machine.event(VmEvent::PgmigrateSuccess));
    // A pass meets each of the eight pages that refuse once, and leaves its block; a request makes a few passes.
    assert!(moved > 0 && (1..=4 * 8).contains(&failed), "{moved} moved, {failed} refused");
    verify(machine);
    machine.audit();
}

#[test]
fn pages_that_refuse_to_move_stay_and_the_others_move() {
    let pages = sieve(8);
    let machine = pages.machine();
    machine.movable.stubborn.borrow_mut().insert(1, MigrateError::Busy);
    machine.movable.stubborn.borrow_mut().insert(5, MigrateError::Again);
    pages.compact_node(&MaySleep::checked_by_scheduler(), 0);
    verify(machine);
    machine.audit();
    assert!(machine.event(VmEvent::PgmigrateFail) >= 2 && machine.event(VmEvent::PgmigrateSuccess) > 400);
}

#[test]
fn a_full_zone_is_not_compacted() {
    let pages = start(&one_zone(2048), &[0]);
    pages.machine().script.compacts.set(true);
    fill(&pages, |_| true);
    assert_eq!(huge(&pages), None);
    assert_eq!(pages.machine().event(VmEvent::CompactMigrateScanned), 0);
    assert_eq!(pages.machine().event(VmEvent::CompactStall), 0);
}

#[test]
fn kcompactd_makes_a_block_for_the_next_request() {
    let pages = sieve(8);
    let mut work = KcompactdWork::NONE;
    work.ask(order(9), ZoneKind::Normal);
    assert!(pages.is_kcompactd_node_suitable(0, work));
    pages.kcompactd_do_work(&MaySleep::checked_by_scheduler(), 0, work);
    let machine = pages.machine();
    assert_eq!(machine.event(VmEvent::KcompactdWake), 1);
    assert!(machine.event(VmEvent::KcompactdMigrateScanned) > 0);
    assert!(!pages.is_kcompactd_node_suitable(0, work), "there is a block now");
    huge_at_once(&pages).expect("a block waits");
    verify(machine);
    machine.audit();
}

#[test]
fn two_zones_of_a_node_stay_apart() {
    // Neither zone ends at a pageblock.
    let specs: Vec<ZoneSpec> = vec![(0, ZoneKind::Dma32, 0x410..0xf30), (0, ZoneKind::Normal, 0xf30..0x2010)];
    let pages = start(&specs, &[0]);
    pages.machine().script.compacts.set(true);
    fill(&pages, |number| number % 3 == 0);
    let count = |kind: ZoneKind| {
        let machine = *pages.machine();
        let pages = machine.movable.pages.borrow();
        pages.values().filter(|pfn| machine.mem.page(**pfn).is_some_and(|page| page.zone() == kind)).count()
    };
    let before = [count(ZoneKind::Dma32), count(ZoneKind::Normal)];
    pages.compact_node(&MaySleep::checked_by_scheduler(), 0);
    assert_eq!([count(ZoneKind::Dma32), count(ZoneKind::Normal)], before);
    verify(pages.machine());
    pages.machine().audit();
}

#[derive(Clone, Debug)]
enum Step {
    Add(u8),
    Drop(u16),
    Unmovable(u8),
    Free(u16),
    Pin(u16),
    Unpin,
    Huge,
    Node,
    Kcompactd,
    Reset,
    Drain,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1_u8..).prop_map(Step::Add),
        6 => any::<u16>().prop_map(Step::Drop),
        2 => (0_u8..4).prop_map(Step::Unmovable),
        2 => any::<u16>().prop_map(Step::Free),
        1 => any::<u16>().prop_map(Step::Pin),
        1 => Just(Step::Unpin),
        2 => Just(Step::Huge),
        1 => Just(Step::Node),
        1 => Just(Step::Kcompactd),
        1 => Just(Step::Reset),
        1 => Just(Step::Drain),
    ];
    proptest::collection::vec(step, 1..60)
}

/// Which of the numbers a step means.
fn choose<T: Copy>(from: &[T], raw: u16) -> Option<T> {
    from.get(usize::from(raw) % from.len().max(1)).copied()
}

fn apply(pages: &Pages, step: &Step, next: &mut u64, blocks: &mut Vec<(Pfn, Order)>) {
    let machine = *pages.machine();
    let token = MaySleep::checked_by_scheduler();
    let numbers: Vec<u64> = machine.movable.pages.borrow().keys().copied().collect();
    match *step {
        Step::Add(count) => {
            for _ in 0..u64::from(count) * 8 {
                if !add(pages, *next) {
                    break;
                }
                *next += 1;
            }
        }
        Step::Drop(seed) => {
            for (index, number) in numbers.iter().enumerate() {
                if (index as u64 ^ u64::from(seed)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 62 != 0 {
                    drop_page(pages, *number);
                }
            }
        }
        Step::Unmovable(raw) => {
            let gfp = Gfp::NOWAIT | Gfp::NOWARN;
            blocks.extend(
                pages.alloc_pages(Context::ATOMIC, gfp, order(raw), None).map(|pfn| (pfn, order(raw))),
            );
        }
        Step::Free(raw) => {
            if !blocks.is_empty() {
                let (pfn, order) = blocks.swap_remove(usize::from(raw) % blocks.len());
                pages.free_pages(pfn, order).expect("an allocated block");
            }
        }
        Step::Pin(raw) => machine.movable.pinned.borrow_mut().extend(choose(&numbers, raw)),
        Step::Unpin => machine.movable.pinned.borrow_mut().clear(),
        Step::Huge => blocks.extend(huge(pages).map(|pfn| (pfn, order(9)))),
        Step::Node => pages.compact_node(&token, 0),
        Step::Kcompactd => {
            let mut work = KcompactdWork::NONE;
            work.ask(order(9), ZoneKind::Normal);
            pages.kcompactd_do_work(&token, 0, work);
        }
        Step::Reset => pages.reset_isolation_suitable(0),
        Step::Drain => pages.drain_all_pages(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever happens, every page keeps its contents and every frame is somewhere; and with nothing in the way, what
    /// is free can be had as huge pages in the end.
    #[test]
    fn nothing_is_lost(steps in steps(), start_at in 0_u64..600) {
        let frames = 8 * 512;
        let specs: Vec<ZoneSpec> = vec![(0, ZoneKind::Normal, 0x1000 + start_at..0x1000 + frames)];
        let pages = start(&specs, &[0, 0]);
        let machine = *pages.machine();
        machine.script.compacts.set(true);
        let (mut next, mut blocks) = (0, Vec::new());
        for step in &steps {
            apply(&pages, step, &mut next, &mut blocks);
            verify(machine);
            machine.audit();
            let used: u64 = blocks.iter().map(|(_, order)| order.pages()).sum();
            let held = machine.movable.pages.borrow().len() as u64;
            prop_assert_eq!(machine.free_pages() + used + held, frames - start_at);
        }
        for (pfn, order) in blocks.drain(..) {
            pages.free_pages(pfn, order).expect("an allocated block");
        }
        machine.movable.pinned.borrow_mut().clear();
        pages.compact_node(&MaySleep::checked_by_scheduler(), 0);
        verify(machine);
        machine.audit();
        // The zone's ends, and the block where the scanners meet, need not come free; and compaction leaves the reserve.
        let free = machine.free_pages();
        let info = machine.zones[NORMAL].borrow().contig_page_info(order(9));
        prop_assert!(free < 4 * 512 || info.free_blocks_suitable >= free / 512 - 3, "{} free, {:?}", free, info);
    }
}
