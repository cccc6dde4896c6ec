//! How much a CPU's lists take and give back at once, by hand-computed numbers.

use memvisor_abi::PerCpuPages;
use mm_core::Order;

use super::order;
use crate::pcp::{refill_size, set_high_and_batch, surplus};

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
    assert_eq!(surplus(&mut lists(20, 10, 20), Order::ZERO, false), Some(10));
}
