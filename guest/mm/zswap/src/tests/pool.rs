//! What goes where, and what is refused.

use memvisor_abi::ZBUD_MAX;

use super::machine::{Machine, PAGE, slot};
use crate::{Admission, Content, Count, Lacking, StoreError, fill, same_filled};

fn bytes(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| at.wrapping_mul(31).to_le_bytes()[0] ^ seed).collect()
}

#[test]
fn two_that_fit_share_a_frame() {
    let mut m = Machine::new(100, 1000);
    for (offset, len) in [(1, 2000), (2, 1900), (3, 3968), (4, 64), (5, 100)] {
        let packed = bytes(len, offset);
        assert_eq!(m.store(slot(0, offset.into()), Content::Packed(&packed)), Ok(()));
        m.audit();
    }
    // 1 with 2; 3 with 4, which is all that fits beside it; 5 alone.
    assert_eq!(m.zswap.state().pool.pages, 3);
    assert!(m.invalidate(slot(0, 2)) && m.invalidate(slot(0, 1)) && m.invalidate(slot(0, 5)));
    m.audit();
    assert_eq!(m.zswap.state().pool.pages, 1);
    assert!(!m.invalidate(slot(0, 5)), "nothing is kept of it any more");
    assert!(m.invalidate(slot(0, 3)) && m.invalidate(slot(0, 4)));
    assert_eq!(m.frames(), 0, "leaf and frame go with the last");
}

#[test]
fn one_byte_more_than_a_frame_takes_is_refused() {
    let mut m = Machine::new(100, 1000);
    let most = usize::try_from(ZBUD_MAX).expect("small");
    assert_eq!(m.store(slot(0, 1), Content::Packed(&bytes(most + 1, 0))), Err(StoreError::Poor));
    assert_eq!(m.store(slot(0, 1), Content::Packed(&bytes(most, 0))), Ok(()));
    m.audit();
}

#[test]
fn a_page_of_one_word_needs_no_room_in_the_pool() {
    let mut m = Machine::new(600, 1000);
    let mut page = vec![0; PAGE];
    fill(&mut page, 0xdead_beef_0bad_cafe);
    assert_eq!(same_filled(&page), Some(0xdead_beef_0bad_cafe));
    assert_eq!(m.store_page(slot(1, 599), &page), Ok(()));
    assert_eq!((m.zswap.state().pool.pages, m.zswap.state().same_filled_pages), (0, 1));
    assert_eq!(m.load_page(slot(1, 599)), Some(page.clone()));
    assert_eq!(m.load_page(slot(0, 599)), None, "the other area has nothing there");
    page[PAGE / 2] ^= 1;
    assert_eq!(same_filled(&page), None);
    m.audit();
}

#[test]
fn without_frames_nothing_changes() {
    let mut m = Machine::new(100, 1000);
    m.left = 1;
    let packed = bytes(500, 3);
    let lacks = Err(StoreError::Lacks(Lacking { pool: true, leaf: true }));
    assert_eq!(m.store(slot(0, 1), Content::Packed(&packed)), lacks);
    assert_eq!(m.frames(), 0);
    assert_eq!(m.store(slot(5, 1), Content::Packed(&packed)), Err(StoreError::NoArea));
    assert_eq!(m.store(slot(0, 256), Content::Packed(&packed)), Err(StoreError::NoArea), "it has 100 slots");
    m.audit();
}

#[test]
fn the_frame_used_longest_ago_is_emptied_first_and_then_comes_last() {
    let mut m = Machine::new(100, 1000);
    for offset in 1..=3 {
        assert_eq!(m.store(slot(0, offset), Content::Packed(&bytes(3000, 1))), Ok(()));
    }
    // The second user makes the first frame the latest.
    assert_eq!(m.store(slot(1, 9), Content::Packed(&bytes(900, 1))), Ok(()));
    let shared = m.zswap.oldest(&m.ram).expect("a frame");
    assert!(shared.contains(&Some(slot(0, 1))) || shared.contains(&Some(slot(0, 2))));
    let order: Vec<_> = (0..3).map(|_| m.zswap.oldest(&m.ram).expect("a frame")).collect();
    assert_eq!(order[2], shared, "each had its turn");
    m.audit();
}

#[test]
fn a_full_pool_refuses_until_it_has_come_down() {
    let mut m = Machine::new(100, 50);
    let mut offset = 0;
    while m.zswap.admit() == Admission::Granted {
        offset += 1;
        assert_eq!(m.store(slot(0, offset), Content::Packed(&bytes(3000, 1))), Ok(()));
    }
    // A fifth of 50 pages, and the one with which it went over that.
    assert_eq!((offset, m.zswap.state().pool_limit_hit), (11, 1));
    assert!(m.zswap.is_full() && !m.zswap.can_accept());
    while !m.zswap.can_accept() {
        assert_eq!(m.zswap.admit(), if offset == 11 { Admission::Full } else { Admission::NotYet });
        assert!(m.invalidate(slot(0, offset)));
        offset -= 1;
    }
    assert_eq!(offset, 8, "below nine tenths of ten");
    assert_eq!(m.zswap.admit(), Admission::Granted);
    assert_eq!(m.zswap.state().reached_full, 0);
}

#[test]
fn an_area_that_goes_gives_its_words_back() {
    let mut m = Machine::new(100, 50);
    assert!(m.zswap.remove_area(1).is_some());
    assert_eq!(m.zswap.remove_area(1), None);
    assert_eq!(m.store(slot(1, 1), Content::SameFilled(0)), Err(StoreError::NoArea));
}

#[test]
fn each_count_has_its_field() {
    let mut m = Machine::new(100, 50);
    for what in [
        Count::WrittenBack,
        Count::ReclaimFail,
        Count::AllocFail,
        Count::KmemcacheFail,
        Count::CompressPoor,
        Count::Duplicate,
    ] {
        m.zswap.count(what);
    }
    let state = m.zswap.state();
    let counts = [
        state.written_back_pages,
        state.reject_reclaim_fail,
        state.reject_alloc_fail,
        state.reject_kmemcache_fail,
        state.reject_compress_poor,
        state.duplicate_entry,
    ];
    assert_eq!(counts, [1; 6]);
}
