//! Programs that use more than there is.

use memvisor_abi::LruKind;

use super::machine::{Kind, Machine};
use mm_core::{Gfp, Order, PageFlags, ZoneKind};

use crate::{ScanControl, Who, lru_add_drain, mark_page_lazyfree, shrink_node};

#[test]
fn reading_a_large_file_once_does_not_evict_what_is_used() {
    let m = Machine::new(1, 2048, 0);
    // Read three times: active.
    (0..3).for_each(|_| m.touch_all(0..400, Kind::Cached));
    m.touch_all(10_000..30_000, Kind::Cached);
    assert_eq!(m.present(0..400), 400);
    m.audit();
}

#[test]
fn a_mapped_working_set_survives_a_mapped_scan() {
    let m = Machine::new(1, 2048, 0);
    let mut late = 0;
    for round in 0..200 {
        // At first all look used. Once reclaim has asked twice, it knows.
        late += if round > 50 { 400 - m.present(0..400) } else { 0 };
        m.touch_all(0..400, Kind::Mapped);
        m.touch_all(10_000 + round * 100..10_100 + round * 100, Kind::Mapped);
    }
    assert_eq!(late, 0);
    m.audit();
}

#[test]
fn pages_of_a_mapping_that_is_read_from_end_to_end_are_flushed_together() {
    for m in [Machine::new(1, 2048, 0), Machine::with_generations(1, 2048, 0)] {
        m.touch_all(0..8000, Kind::Mapped);
        let counts = *m.counts.borrow();
        assert!(counts.unmapped > 5900, "{counts:?}");
        assert!(counts.flushes * 8 < counts.unmapped, "{counts:?}");
        m.audit();
    }
}

#[test]
fn anonymous_pages_in_use_stay_and_others_are_swapped() {
    let m = Machine::new(1, 1024, 8192);
    let mut late = 0;
    for round in 0..100 {
        late += if round > 50 { 300 - m.present(0..300) } else { 0 };
        m.touch_all(0..300, Kind::Anon);
        m.touch_all(10_000 + round * 50..10_050 + round * 50, Kind::Anon);
    }
    assert_eq!(late, 0);
    assert!(m.counts.borrow().swap_outs > 3500);
    m.audit();
}

#[test]
fn what_is_swapped_out_comes_back() {
    let m = Machine::new(1, 512, 2048);
    for _ in 0..4 {
        m.touch_all(0..1000, Kind::Anon);
    }
    assert!(m.counts.borrow().refaults > 500);
    let here = m.present(0..1000) as u64;
    // Each page is in one place.
    assert_eq!(m.swap.get().0, 1000 - here);
    m.audit();
}

#[test]
fn a_new_working_set_takes_the_place_of_a_stale_one() {
    let m = Machine::new(1, 2048, 0);
    (0..3).for_each(|_| m.touch_all(0..1400, Kind::Cached));
    lru_add_drain(&m);
    assert!(m.list(LruKind::ActiveFile) >= 1300);
    // Larger than what is inactive: without refaults it would never fit.
    for _ in 0..12 {
        m.touch_all(10_000..11_200, Kind::Cached);
    }
    assert!(m.counts.borrow().activated > 0);
    assert!(m.present(10_000..11_200) > 1100, "{} of 1200", m.present(10_000..11_200));
    m.audit();
}

#[test]
fn what_was_given_away_goes_without_swap_and_what_was_written_since_is_like_others() {
    for m in [Machine::new(1, 512, 0), Machine::with_generations(1, 512, 0)] {
        m.touch_all(0..300, Kind::Anon);
        lru_add_drain(&m);
        // Neither a page given away nor its entry says that it was used or written.
        for id in 0..200 {
            m.edit(id, |page| page.accessed = false);
            let page = m.descriptor(m.frame(id));
            page.remove(PageFlags::DIRTY);
            mark_page_lazyfree(&m, m.frame(id), page);
        }
        lru_add_drain(&m);
        (0..50).for_each(|id| m.edit(id, |page| page.held = true));
        m.touch_all(1000..1300, Kind::Anon);
        assert_eq!((m.present(0..50), m.present(200..300)), (50, 100));
        assert!(m.present(50..200) < 100, "{}", m.present(50..200));
        let back = (0..50).filter(|id| m.descriptor(m.frame(*id)).has(PageFlags::SWAPBACKED)).count();
        assert!(back > 0);
        assert_eq!(m.counts.borrow().swap_outs, 0);
        m.audit();
    }
}

#[test]
fn swappiness_says_who_bears_the_pressure() {
    let swapped = |swappiness| {
        let m = Machine::new(1, 2048, 8192);
        m.swappiness.set(swappiness);
        m.touch_all(0..900, Kind::Anon);
        m.pages.borrow_mut().values_mut().for_each(|page| page.accessed = false);
        // Both kinds are cold, and neither may be trimmed for the other: the file's are active.
        for _ in 0..2 {
            m.touch_all(10_000..14_000, Kind::Mapped);
        }
        m.counts.borrow().swap_outs
    };
    let [never, some, most] = [0, 60, 200].map(swapped);
    assert_eq!(never, 0);
    assert!(some <= most && most > 0, "{never} {some} {most}");
}

#[test]
fn used_code_outlives_used_data() {
    let m = Machine::new(1, 1024, 0);
    let misses = |kind: Kind, base: u64| {
        let mut misses = 0;
        for round in 0..60 {
            misses += 200 - m.present(base..base + 200);
            m.touch_all(base..base + 200, kind);
            m.touch_all(50_000 + base + round * 300..50_300 + base + round * 300, Kind::Mapped);
        }
        misses
    };
    let code = misses(Kind::Code, 0);
    let data = misses(Kind::Mapped, 1_000_000);
    assert!(code <= data, "{code} {data}");
    m.audit();
}

#[test]
fn a_mapped_page_is_active_once_it_was_used_in_two_rounds() {
    let m = Machine::new(1, 1024, 0);
    let active = |used_again: bool| {
        m.touch_all(0..100, Kind::Mapped);
        lru_add_drain(&m);
        let mut sc = ScanControl::new(Who::Direct, Gfp::KERNEL, Order::ZERO, ZoneKind::Normal);
        sc.priority = 0;
        shrink_node(&m, 0, &mut sc);
        if used_again {
            m.touch_all(0..100, Kind::Mapped);
        }
        shrink_node(&m, 0, &mut sc);
        (m.list(LruKind::ActiveFile), m.present(0..100))
    };
    assert_eq!(active(true), (100, 100));
    (0..100).for_each(|id| m.drop_page(id));
    // A cluster of 32 is enough.
    assert_eq!(active(false), (0, 68));
    m.audit();
}
