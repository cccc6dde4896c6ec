//! Generations: what comes where, what ages, what goes.

use memvisor_abi::{LruKind, MIN_NR_GENS};
use mm_core::{Gfp, Order, PageFlags, ZoneKind, refcount};
use proptest::prelude::*;

use super::machine::{Kind, Machine};
use crate::{
    KswapdState, ScanControl, Who, balance_pgdat, folio_isolate_lru, folio_putback_lru, lru_add_drain,
    shrink_node,
};

/// kswapd's work on node 0 with so little free that it has some.
fn kswapd(m: &Machine) {
    balance_pgdat(m, (0, &mut KswapdState::default()), Order::ZERO, ZoneKind::Normal, || {});
    m.audit();
}

/// One pass of somebody who allocates, hard.
fn reclaim(m: &Machine, pages: u64) -> u64 {
    let mut sc = ScanControl::new(Who::Direct, Gfp::KERNEL, Order::ZERO, ZoneKind::Normal);
    (sc.priority, sc.nr_to_reclaim) = (0, pages);
    shrink_node(m, 0, &mut sc);
    m.audit();
    sc.nr_reclaimed
}

#[test]
fn what_is_faulted_in_is_young_and_what_is_read_is_old() {
    let m = Machine::with_generations(1, 256, 0);
    m.touch(1, Kind::Mapped);
    m.touch(2, Kind::Anon);
    m.touch(3, Kind::Cached);
    lru_add_drain(&m);
    assert_eq!([1, 2, 3].map(|id| m.age_of(id)), [Some(0), Some(0), Some(3)]);
    assert_eq!(LruKind::ALL.map(|kind| m.list(kind)), [0, 1, 1, 1, 0]);
    m.audit();
}

#[test]
fn a_page_that_is_used_stays_young_and_one_that_is_not_grows_old() {
    let m = Machine::with_generations(1, 1024, 4096);
    m.touch_all(0..900, Kind::Anon);
    lru_add_drain(&m);
    m.pages.borrow_mut().values_mut().for_each(|page| page.accessed = false);
    crate::lrugen::begin_generation(&m, 0);
    m.touch_all(0..200, Kind::Anon);
    crate::lrugen::begin_generation(&m, 0);
    assert!((0..200).all(|id| m.age_of(id) == Some(1)) && (200..900).all(|id| m.age_of(id) == Some(2)));
    assert!(reclaim(&m, 64) >= 64);
    assert_eq!(m.present(0..200), 200);
    assert!(m.present(200..900) < 700);
}

#[test]
fn reclaim_leaves_the_two_youngest_generations_alone() {
    let m = Machine::with_generations(1, 1024, 4096);
    m.touch_all(0..600, Kind::Anon);
    lru_add_drain(&m);
    // At its first priority nobody begins a generation, so there is nothing old.
    let mut sc = ScanControl::new(Who::Direct, Gfp::KERNEL, Order::ZERO, ZoneKind::Normal);
    shrink_node(&m, 0, &mut sc);
    assert_eq!((sc.nr_reclaimed, m.present(0..600)), (0, 600));
    m.audit();
}

#[test]
fn a_page_that_somebody_holds_is_tried_twice_and_comes_to_the_youngest_generation() {
    let m = Machine::with_generations(1, 1024, 0);
    m.touch_all(0..40, Kind::Cached);
    lru_add_drain(&m);
    let page = m.descriptor(m.frame(7));
    refcount::get(page.references());
    let mut sc = ScanControl::new(Who::Direct, Gfp::KERNEL, Order::ZERO, ZoneKind::Normal);
    (sc.priority, sc.nr_to_reclaim) = (0, 1000);
    shrink_node(&m, 0, &mut sc);
    assert_eq!((sc.nr_reclaimed, m.present(0..40), m.age_of(7)), (39, 1, Some(0)));
    // As Linux counts: what is tried again is not counted.
    assert_eq!(sc.nr_scanned, 39);
    assert!(refcount::put_unless_last(page.references()));
    m.audit();
}

#[test]
fn anonymous_pages_are_left_alone_with_hardly_a_slot_free() {
    let m = Machine::with_generations(1, 1024, 63);
    m.touch_all(0..600, Kind::Anon);
    lru_add_drain(&m);
    m.pages.borrow_mut().values_mut().for_each(|page| page.accessed = false);
    (0..2).for_each(|_| crate::lrugen::begin_generation(&m, 0));
    assert_eq!(reclaim(&m, 100), 0);
    assert_eq!(m.counts.borrow().swap_outs, 0);
}

#[test]
fn a_neighbour_that_was_used_is_found_by_the_look_around_and_kept() {
    let m = Machine::with_generations(1, 1024, 4096);
    m.touch_all(0..640, Kind::Anon);
    lru_add_drain(&m);
    m.pages.borrow_mut().values_mut().for_each(|page| page.accessed = false);
    // They are in the oldest that is left now.
    (0..2).for_each(|_| crate::lrugen::begin_generation(&m, 0));
    let here: Vec<u64> = (0..640).filter(|id| m.present(*id..id + 1) == 1).collect();
    here.iter().for_each(|id| m.edit(*id, |page| page.accessed = true));
    // No walk at this priority: it is rmap that finds them.
    let mut sc = ScanControl::new(Who::Kswapd, Gfp::KERNEL, Order::ZERO, ZoneKind::Normal);
    sc.priority = 0;
    shrink_node(&m, 0, &mut sc);
    m.audit();
    assert!(here.iter().all(|id| m.present(*id..id + 1) == 1), "every one was used");
    let promoted = here.iter().filter(|id| m.age_of(**id) == Some(0)).count();
    assert!(promoted >= 64, "{promoted} of {}", here.len());
}

#[test]
fn uses_through_descriptors_make_tiers_and_move_nothing() {
    let m = Machine::with_generations(1, 256, 0);
    m.touch(1, Kind::Cached);
    lru_add_drain(&m);
    let age = m.age_of(1);
    let tiers: Vec<usize> = (0..8)
        .map(|_| {
            m.touch(1, Kind::Cached);
            PageFlags::lru_tier(m.descriptor(m.frame(1)).flags().lru_refs())
        })
        .collect();
    // The page was made by a use, too.
    assert_eq!(tiers, [1, 2, 2, 3, 3, 3, 3, 3]);
    assert_eq!(m.age_of(1), age);
    m.audit();
}

#[test]
fn a_tier_that_comes_back_is_protected() {
    let m = Machine::with_generations(1, 1024, 0);
    // Files that are read three times over at once, again and again, beside a stream that is read once.
    let mut late = 0;
    for round in 0..120 {
        late += if round > 60 { 300 - m.present(0..300) } else { 0 };
        (0..3).for_each(|_| m.touch_all(0..300, Kind::Cached));
        m.touch_all(10_000 + round * 500..10_500 + round * 500, Kind::Cached);
    }
    m.audit();
    let refaults = m.counts.borrow().refaults;
    assert!(late < 60 * 300 / 10, "{late} misses of 17700, {refaults} refaults");
}

#[test]
fn reading_a_large_file_once_does_not_evict_what_is_mapped_and_used() {
    let m = Machine::with_generations(1, 2048, 0);
    for round in 0..60 {
        m.touch_all(0..400, Kind::Mapped);
        m.touch_all(10_000 + round * 500..10_500 + round * 500, Kind::Cached);
    }
    assert_eq!(m.present(0..400), 400);
    m.audit();
}

#[test]
fn anonymous_pages_in_use_stay_and_others_are_swapped() {
    let m = Machine::with_generations(1, 1024, 8192);
    let mut late = 0;
    for round in 0..100 {
        late += if round > 50 { 300 - m.present(0..300) } else { 0 };
        m.touch_all(0..300, Kind::Anon);
        m.touch_all(10_000 + round * 50..10_050 + round * 50, Kind::Anon);
    }
    assert!(late <= 300, "{late} of 14700");
    assert!(m.counts.borrow().swap_outs > 3500);
    m.audit();
}

#[test]
fn without_swap_only_files_go() {
    let m = Machine::with_generations(1, 1024, 0);
    m.touch_all(0..500, Kind::Anon);
    m.touch_all(10_000..16_000, Kind::Mapped);
    assert_eq!(m.present(0..500), 500);
    assert!(m.lrugen(0).max_seq > MIN_NR_GENS + 1);
    m.audit();
}

#[test]
fn with_nothing_that_can_go_reclaim_ends_and_says_so() {
    let m = Machine::with_generations(1, 512, 0);
    m.touch_all(0..400, Kind::Anon);
    assert_eq!(reclaim(&m, 32), 0);
}

#[test]
fn locked_pages_come_to_the_unevictable_list() {
    let m = Machine::with_generations(1, 512, 1024);
    m.touch_all(0..300, Kind::Anon);
    (0..50).for_each(|id| m.edit(id, |page| page.locked = true));
    m.pages.borrow_mut().values_mut().for_each(|page| page.accessed = false);
    (0..8).for_each(|_| {
        reclaim(&m, 1000);
    });
    assert_eq!(m.present(0..50), 50);
    assert_eq!(m.list(LruKind::Unevictable), 50);
}

#[test]
fn kswapd_rests_above_high() {
    let m = Machine::with_generations(1, 1024, 4096);
    m.touch_all(0..1005, Kind::Anon);
    m.pages.borrow_mut().values_mut().for_each(|page| page.accessed = false);
    kswapd(&m);
    assert!(m.free_on(0) > 48, "{}", m.free_on(0));
    assert!(m.free_on(0) < 48 + 200, "{}", m.free_on(0));
}

#[test]
fn a_page_that_is_moved_keeps_its_age() {
    let m = Machine::with_generations(1, 256, 0);
    m.touch(1, Kind::Mapped);
    m.touch(2, Kind::Cached);
    lru_add_drain(&m);
    for (id, age) in [(1, Some(0)), (2, Some(3))] {
        let (pfn, page) = (m.frame(id), m.descriptor(m.frame(id)));
        assert!(folio_isolate_lru(&m, page));
        assert_eq!(m.age_of(id), None);
        folio_putback_lru(&m, pfn, page);
        assert_eq!(m.age_of(id), age);
    }
    m.audit();
}

/// A step of a program that uses pages of one kind.
#[derive(Clone, Debug)]
enum Step {
    Touch(u64),
    Age,
    Evict(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..300u64).prop_map(Step::Touch),
        2 => Just(Step::Age),
        1 => (1..80u64).prop_map(Step::Evict),
    ]
}

/// What was used at which time, and nothing else: the simplest thing that knows what may go.
#[derive(Default)]
struct LastUse {
    now: u64,
    used: std::collections::BTreeMap<u64, u64>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A page used since the last but one generation began is never evicted while others are there that were not.
    #[test]
    fn what_was_used_since_a_generation_began_outlives_what_was_not(
        steps in prop::collection::vec(step(), 1..300),
    ) {
        // Nobody has to reclaim but who is asked to.
        let m = Machine::with_generations(1, 512, 4096);
        let mut model = LastUse::default();
        for step in &steps {
            match *step {
                Step::Touch(id) => {
                    m.touch(id, Kind::Anon);
                    model.used.insert(id, model.now);
                }
                Step::Age => {
                    lru_add_drain(&m);
                    crate::lrugen::begin_generation(&m, 0);
                    model.now += 1;
                }
                Step::Evict(pages) => {
                    let before: Vec<u64> = (0..300).filter(|id| m.present(*id..id + 1) == 1).collect();
                    let seq = m.lrugen(0).max_seq;
                    reclaim(&m, pages);
                    // Others may begin, too: then the model's times are theirs.
                    model.now += m.lrugen(0).max_seq - seq;
                    for id in before.iter().filter(|id| m.present(**id..**id + 1) == 0) {
                        let idle = model.now - model.used[id];
                        prop_assert!(idle >= 1, "page {} went and was used in this generation", id);
                    }
                }
            }
            m.audit();
        }
    }
}
