//! How much a CPU's lists take and give back at once, by hand-computed numbers.

use memvisor_abi::{PFN_NONE, PerCpuPages};
use mm_core::{MemMap, Migratetype, Order, Pfn};

use super::{order, zone};
use crate::pcp::{give_back, list_index, push, refill_size, retire, set_high_and_batch, surplus};
use crate::{zone_batchsize, zone_highsize};

fn lists(high: u32, batch: u32, count: u32) -> PerCpuPages {
    let mut pcp = PerCpuPages { count, ..PerCpuPages::EMPTY };
    set_high_and_batch(&mut pcp, high, batch);
    pcp
}

#[test]
fn a_refill_is_a_batch_of_pages_and_at_least_two_blocks() {
    let blocks = |batch, raw| refill_size(&lists(100, batch, 0), order(raw));
    assert_eq!([0, 1, 2, 3, 9].map(|raw| blocks(63, raw)), [63, 31, 15, 7, 2]);
    // A batch of one page turns batching off.
    assert_eq!([0, 3].map(|raw| blocks(1, raw)), [1, 1]);
    assert_eq!([0, 3].map(|raw| blocks(2, raw)), [2, 2]);
}

#[test]
fn nothing_is_given_back_below_the_high_mark() {
    assert_eq!(surplus(&mut lists(100, 10, 99), Order::ZERO, false), None);
    assert_eq!(surplus(&mut lists(100, 10, 100), Order::ZERO, false), Some(10));
}

#[test]
fn the_batch_doubles_while_frees_go_on_and_leaves_one_batch_behind() {
    let mut pcp = lists(100, 10, 100);
    let given: Vec<_> = (0..6).map(|_| surplus(&mut pcp, Order::ZERO, false)).collect();
    assert_eq!(given, [10, 20, 40, 80, 90, 90].map(Some));
    assert_eq!(pcp.free_factor, 4);
}

#[test]
fn a_cpu_keeps_four_batches_while_somebody_reclaims() {
    assert_eq!(surplus(&mut lists(100, 10, 39), Order::ZERO, true), None);
    assert_eq!(surplus(&mut lists(100, 10, 40), Order::ZERO, true), Some(10));
    // Never more than without.
    assert_eq!(surplus(&mut lists(30, 10, 30), Order::ZERO, true), Some(10));
    assert_eq!(surplus(&mut lists(30, 10, 29), Order::ZERO, true), None);
}

#[test]
fn high_orders_of_a_cpu_that_only_frees_go_back_at_once() {
    for (raw, factor, given) in [
        (1, 1, Some(12)),
        (3, 1, Some(12)),
        (3, 0, None),
        // Single pages and huge ones are what lists are for.
        (0, 1, None),
        (9, 1, None),
    ] {
        let mut pcp = lists(100, 10, 12);
        pcp.free_factor = factor;
        assert_eq!(surplus(&mut pcp, order(raw), false), given, "order {raw}, factor {factor}");
    }
}

#[test]
fn short_lists_give_back_a_page_or_a_batch() {
    // Lists that are turned off.
    assert_eq!(surplus(&mut lists(0, 10, 1), Order::ZERO, false), Some(1));
    assert_eq!(surplus(&mut lists(5, 10, 5), Order::ZERO, false), Some(1));
    assert_eq!(surplus(&mut lists(10, 10, 10), Order::ZERO, false), Some(10));
    assert_eq!(surplus(&mut lists(15, 10, 15), Order::ZERO, false), Some(10));
    let mut pcp = lists(20, 10, 20);
    assert_eq!(surplus(&mut pcp, Order::ZERO, false), Some(10));
    assert_eq!(pcp.free_factor, 0, "a batch that is all there is does not double");
}

#[test]
fn as_much_as_asked_for_goes_back_coldest_first_and_list_by_list() {
    let mut zone = zone("................");
    let mut pcp = lists(100, 10, 0);
    let index = |raw| list_index(order(raw), Migratetype::Movable).expect("lists keep these");
    for raw in [0, 0, 0, 0, 1, 1] {
        let at = Pfn::new(zone.alloc(raw).expect("there is more"));
        let page = zone.mem.page(at).expect("RAM");
        page.set_refcount(0);
        retire(page, order(raw), Migratetype::Movable, false);
        push(&mut pcp, &zone.mem, (at, page), index(raw), order(raw), false);
    }
    let kept = |pcp: &PerCpuPages, raw| pcp.lists[index(raw)];
    let (hot, cold) = (kept(&pcp, 0).head, kept(&pcp, 0).tail);
    assert_eq!((pcp.count, zone.zone.info().free_pages), (8, 8));
    give_back(&mut pcp, &mut zone.zone, &zone.mem, 2, index(0));
    assert_eq!((pcp.count, zone.zone.info().free_pages), (6, 10));
    assert_eq!(kept(&pcp, 0).head, hot);
    assert_ne!(kept(&pcp, 0).tail, cold);
    // A block is not split: three pages are two blocks of two, from the list that comes first.
    give_back(&mut pcp, &mut zone.zone, &zone.mem, 3, index(1));
    assert_eq!((pcp.count, zone.zone.info().free_pages), (2, 14));
    assert_eq!((kept(&pcp, 1).head, kept(&pcp, 1).tail, kept(&pcp, 0).head), (PFN_NONE, PFN_NONE, hot));
    give_back(&mut pcp, &mut zone.zone, &zone.mem, u32::MAX, 0);
    assert_eq!((pcp.count, zone.zone.info().free_pages), (0, 16));
    zone.zone.audit(&zone.mem).expect("all is free again");
}

#[test]
fn batches_are_linuxs() {
    // A thousandth of the zone over four, times one and a half, down to one less than a power of two.
    let sizes = [0, 1023, 4096, 8192, 12_288, 65_536, 131_072, 262_144, 1 << 30].map(zone_batchsize);
    assert_eq!(sizes, [0, 0, 0, 1, 3, 15, 31, 63, 63]);
}

#[test]
fn cpus_share_the_low_mark_or_a_fraction_of_the_zone() {
    assert_eq!(zone_highsize(1 << 20, 1000, 63, 2, 0), 500);
    assert_eq!(zone_highsize(1 << 20, 1000, 63, 0, 0), 1000);
    // Four batches at least.
    assert_eq!(zone_highsize(1 << 20, 1000, 63, 4, 0), 252);
    assert_eq!(zone_highsize(1 << 20, 1000, 63, 4, 8), (1 << 20) / 8 / 4);
    assert_eq!(zone_highsize(1 << 20, 1 << 40, 63, 1, 0), 1 << 30);
    assert_eq!(zone_highsize(1 << 20, (1 << 30) - 1, 63, 1, 0), (1 << 30) - 1);
}
