//! kswapd and direct reclaim against watermarks.

use memvisor_abi::LruKind;
use mm_core::{Gfp, Order, PageFlags, ZoneKind};

use super::machine::{Kind, Machine};
use crate::{
    KswapdState, MAX_RECLAIM_RETRIES, Mark, Pages, Zones, allow_direct_reclaim, balance_pgdat, lru_add_drain,
    pgdat_balanced, set_unevictable, try_to_free_pages,
};

const NORMAL: ZoneKind = ZoneKind::Normal;

fn kswapd(m: &Machine, state: &mut KswapdState) -> u64 {
    balance_pgdat(m, (0, state), Order::ZERO, NORMAL, || {}).nr_reclaimed
}

/// All but `left` frames of node 0 in use.
fn filled(m: &Machine, kind: Kind, left: u64) {
    let pages = m.free_on(0) - left;
    m.touch_all(0..pages, kind);
    lru_add_drain(m);
    // What was made is not in use any more.
    m.pages.borrow_mut().values_mut().for_each(|page| page.accessed = false);
}

#[test]
fn kswapd_rests_just_above_high() {
    for kind in [Kind::Cached, Kind::Mapped, Kind::Anon] {
        let m = Machine::new(1, 4096, 8192);
        filled(&m, kind, 70);
        let high = m.watermark(0, NORMAL, Mark::High);
        assert!(!pgdat_balanced(&m, 0, Order::ZERO, NORMAL));
        let mut state = KswapdState::default();
        assert!(kswapd(&m, &mut state) > 0);
        assert!(pgdat_balanced(&m, 0, Order::ZERO, NORMAL));
        // A pass frees what high is, at most, more than was missing.
        assert!(m.free_on(0) > high && m.free_on(0) <= 70 + high * 2, "{} free", m.free_on(0));
        assert_eq!(state.failures, 0);
        m.audit();
    }
}

#[test]
fn kswapd_does_nothing_for_a_balanced_node() {
    let m = Machine::new(1, 1024, 0);
    filled(&m, Kind::Cached, 100);
    assert_eq!(kswapd(&m, &mut KswapdState::default()), 0);
    assert_eq!(m.free_on(0), 100);
}

#[test]
fn kswapd_that_never_frees_anything_is_hopeless_after_16_runs() {
    let m = Machine::new(1, 1024, 0);
    // Anonymous pages, and no swap.
    filled(&m, Kind::Anon, 17);
    let mut state = KswapdState::default();
    for run in 1..=MAX_RECLAIM_RETRIES {
        assert!(!state.is_hopeless());
        assert_eq!(kswapd(&m, &mut state), 0);
        assert_eq!(state.failures, run);
    }
    assert!(state.is_hopeless() && allow_direct_reclaim(&m, 0, &state));
    assert_eq!(m.present(0..2000), 1024 - 17);
    m.audit();
}

#[test]
fn an_empty_swap_leaves_anonymous_pages_alone_and_takes_files() {
    let m = Machine::new(1, 1024, 0);
    m.touch_all(0..500, Kind::Anon);
    m.touch_all(500..1000, Kind::Cached);
    m.pages.borrow_mut().values_mut().for_each(|page| page.accessed = false);
    assert!(kswapd(&m, &mut KswapdState::default()) > 0);
    assert_eq!((m.present(0..500), m.counts.borrow().swap_outs), (500, 0));
    assert!(m.present(500..1000) < 500);
    m.audit();
}

#[test]
fn locked_pages_stay_whatever_happens() {
    let m = Machine::new(1, 512, 4096);
    m.touch_all(0..100, Kind::Anon);
    m.touch_all(100..150, Kind::Mapped);
    // Of those, some are known to be locked, and of others reclaim finds out.
    (0..150).for_each(|id| m.edit(id, |page| page.locked = true));
    (0..50).for_each(|id| set_unevictable(&m, m.frame(id), m.descriptor(m.frame(id)), true));
    for round in 0..5 {
        m.touch_all(1000 + round * 1000..1400 + round * 1000, Kind::Anon);
    }
    assert_eq!(m.present(0..150), 150);
    // Reclaim looked at all lists often enough to find them.
    assert_eq!(m.list(LruKind::Unevictable), 150);
    m.audit();
}

#[test]
fn a_page_that_others_still_map_is_flushed_before_it_is_unlocked() {
    let m = Machine::new(1, 512, 4096);
    m.touch_all(0..100, Kind::Anon);
    m.touch_all(100..150, Kind::Mapped);
    (0..150).step_by(3).for_each(|id| m.edit(id, |page| page.held = true));
    for round in 0..5 {
        m.touch_all(1000 + round * 1000..1400 + round * 1000, Kind::Anon);
    }
    assert!((0..150).step_by(3).all(|id| m.present(id..id + 1) == 1));
    assert_eq!(m.present(0..150), 50, "the others went");
    m.audit();
}

#[test]
fn a_boost_is_worked_off_without_swapping() {
    let m = Machine::new(1, 1 << 15, 4096);
    m.touch_all(0..5000, Kind::Anon);
    m.touch_all(5000..30_000, Kind::Cached);
    m.pages.borrow_mut().values_mut().for_each(|page| page.accessed = false);
    assert!(pgdat_balanced(&m, 0, Order::ZERO, NORMAL));
    m.boost.set(200);
    let freed = kswapd(&m, &mut KswapdState::default());
    assert!(freed >= 200);
    assert_eq!((m.boost.get(), m.counts.borrow().swap_outs, m.counts.borrow().kcompactd), (0, 0, 1));
    assert_eq!(m.present(0..5000), 5000);
}

#[test]
fn direct_reclaim_frees_a_cluster_and_not_the_world() {
    let m = Machine::new(1, 4096, 0);
    filled(&m, Kind::Cached, 64);
    let freed = try_to_free_pages(&m, &|| [(0, NORMAL)].into_iter(), (Gfp::KERNEL, Order::ZERO, NORMAL));
    assert!((32..=256).contains(&freed), "{freed}");
    assert_eq!(m.free_on(0), 64 + freed);
    m.audit();
}

#[test]
fn nearer_nodes_are_reclaimed_from_as_well_as_farther_ones_once_each() {
    let m = Machine::new(3, 1024, 0);
    for node in 0..3u32 {
        (0..900).for_each(|page| m.touch_on(node, u64::from(node) * 1000 + page, Kind::Cached));
    }
    lru_add_drain(&m);
    let zones = [(1, ZoneKind::Normal), (1, ZoneKind::Dma32), (0, ZoneKind::Normal)];
    try_to_free_pages(&m, &|| zones.into_iter(), (Gfp::KERNEL, Order::ZERO, NORMAL));
    assert!(m.free_on(1) > 124 && m.free_on(0) >= 124);
    assert_eq!(m.free_on(2), 124, "its zones were not asked for");
}

#[test]
fn pages_of_zones_that_do_not_help_stay() {
    let m = Machine::new(1, 1024, 0);
    filled(&m, Kind::Cached, 64);
    assert_eq!(
        try_to_free_pages(
            &m,
            &|| [(0, ZoneKind::Dma32)].into_iter(),
            (Gfp::KERNEL, Order::ZERO, ZoneKind::Dma32)
        ),
        0
    );
    assert_eq!(m.free_on(0), 64);
    m.audit();
}

#[test]
fn direct_reclaim_writes_no_files_but_asks_for_it() {
    let m = Machine::new(1, 1024, 0);
    filled(&m, Kind::Cached, 64);
    for id in 0..960 {
        m.descriptor(m.frame(id)).insert(PageFlags::DIRTY);
    }
    assert_eq!(try_to_free_pages(&m, &|| [(0, NORMAL)].into_iter(), (Gfp::KERNEL, Order::ZERO, NORMAL)), 0);
    assert_eq!((m.counts.borrow().swap_outs, m.present(0..960)), (0, 960));
    assert!(m.counts.borrow().flusher > 0);
    m.audit();
}

#[test]
fn without_io_nothing_is_swapped() {
    let m = Machine::new(1, 1024, 4096);
    filled(&m, Kind::Anon, 64);
    assert_eq!(try_to_free_pages(&m, &|| [(0, NORMAL)].into_iter(), (Gfp::NOIO, Order::ZERO, NORMAL)), 0);
    assert_eq!(m.nr_swap_pages(), 4096);
    assert!(try_to_free_pages(&m, &|| [(0, NORMAL)].into_iter(), (Gfp::NOFS, Order::ZERO, NORMAL)) > 0);
    m.audit();
}

#[test]
fn direct_reclaim_waits_for_kswapd_below_half_of_the_reserve() {
    let m = Machine::new(1, 1024, 0);
    let state = KswapdState::default();
    filled(&m, Kind::Cached, 17);
    assert!(allow_direct_reclaim(&m, 0, &state));
    // 17 are free.
    m.min.set(33);
    assert!(allow_direct_reclaim(&m, 0, &state));
    m.min.set(34);
    assert!(!allow_direct_reclaim(&m, 0, &state));
    assert!(allow_direct_reclaim(&m, 0, &KswapdState { failures: MAX_RECLAIM_RETRIES }));
}
