//! Pages on their way to the lists.

use memvisor_abi::LruKind;
use mm_core::PageFlags;

use super::machine::{Kind, Machine};
use crate::{
    BATCH_SIZE, deactivate_file_folio, deactivate_folio, folio_isolate_lru, folio_putback_lru,
    folio_rotate_reclaimable, folios_del_lru, lru_add_drain, mark_page_lazyfree, set_unevictable,
};

fn lists(m: &Machine) -> [u64; 5] {
    LruKind::ALL.map(|kind| m.list(kind))
}

#[test]
fn a_full_batch_comes_to_the_lists_at_once_and_the_rest_when_drained() {
    let m = Machine::new(1, 256, 0);
    let full = BATCH_SIZE as u64;
    m.touch_all(0..full - 1, Kind::Anon);
    assert_eq!(lists(&m), [0; 5]);
    m.touch(full, Kind::Mapped);
    assert_eq!(lists(&m), [full - 1, 0, 1, 0, 0]);
    m.touch(full + 1, Kind::Cached);
    lru_add_drain(&m);
    assert_eq!(lists(&m), [full - 1, 0, 2, 0, 0]);
    m.audit();
}

#[test]
fn a_page_freed_in_a_batch_never_comes_to_a_list() {
    let m = Machine::new(1, 64, 0);
    m.touch(1, Kind::Anon);
    m.drop_page(1);
    lru_add_drain(&m);
    assert_eq!(lists(&m), [0; 5]);
}

#[test]
fn a_frame_that_is_twice_in_a_batch_is_once_on_a_list() {
    let m = Machine::new(1, 64, 0);
    m.touch(1, Kind::Anon);
    let frame = m.frame(1);
    m.drop_page(1);
    m.touch(2, Kind::Mapped);
    assert_eq!(m.frame(2), frame);
    lru_add_drain(&m);
    assert_eq!(lists(&m), [0, 0, 1, 0, 0]);
    m.drop_page(2);
    assert_eq!(lists(&m), [0; 5]);
    m.audit();
}

#[test]
fn reading_a_page_twice_more_makes_it_active() {
    let m = Machine::new(1, 64, 0);
    m.touch(1, Kind::Cached);
    lru_add_drain(&m);
    let page = m.descriptor(m.frame(1));
    assert!(page.has(PageFlags::REFERENCED));
    m.touch(1, Kind::Cached);
    assert!(!page.has(PageFlags::REFERENCED));
    lru_add_drain(&m);
    assert_eq!(lists(&m), [0, 0, 0, 1, 0]);
    m.audit();
}

#[test]
fn a_page_used_twice_in_its_batch_comes_active() {
    let m = Machine::new(1, 64, 0);
    m.touch(1, Kind::Cached);
    m.touch(1, Kind::Cached);
    lru_add_drain(&m);
    assert_eq!(lists(&m), [0, 0, 0, 1, 0]);
}

#[test]
fn pages_that_are_not_needed_lose_their_rank() {
    let m = Machine::new(1, 64, 0);
    for id in 1..4 {
        m.touch(id, Kind::Cached);
        m.touch(id, Kind::Cached);
    }
    lru_add_drain(&m);
    let [cold, gone, dirty] = [1, 2, 3].map(|id| m.frame(id));
    m.descriptor(dirty).insert(PageFlags::DIRTY);
    deactivate_folio(&m, cold, m.descriptor(cold));
    deactivate_file_folio(&m, gone, m.descriptor(gone));
    deactivate_file_folio(&m, dirty, m.descriptor(dirty));
    lru_add_drain(&m);
    assert_eq!(lists(&m), [0, 0, 3, 0, 0]);
    // The clean one goes next, the dirty one once it is written.
    assert_eq!(m.descriptor(gone).next(), memvisor_abi::PFN_NONE);
    assert!(m.descriptor(dirty).has(PageFlags::RECLAIM));
    m.descriptor(dirty).remove(PageFlags::DIRTY);
    folio_rotate_reclaimable(&m, dirty, m.descriptor(dirty));
    lru_add_drain(&m);
    assert_eq!(m.descriptor(dirty).next(), memvisor_abi::PFN_NONE);
    m.audit();
}

#[test]
fn what_was_given_away_is_on_the_list_of_inactive_files() {
    let m = Machine::new(1, 64, 0);
    m.touch_all(1..4, Kind::Anon);
    m.touch(4, Kind::Mapped);
    let mark = |id| mark_page_lazyfree(&m, m.frame(id), m.descriptor(m.frame(id)));
    mark(1);
    lru_add_drain(&m);
    assert_eq!(lists(&m), [3, 0, 1, 0, 0], "who is in no list yet is noted by nobody");
    m.descriptor(m.frame(3)).insert(PageFlags::SWAPCACHE);
    (1..5).for_each(mark);
    // Between the note and the batch.
    set_unevictable(&m, m.frame(2), m.descriptor(m.frame(2)), true);
    lru_add_drain(&m);
    assert_eq!(lists(&m), [1, 0, 2, 0, 1], "neither what has a slot, nor what is locked, nor a file's");
    assert!(!m.descriptor(m.frame(1)).has(PageFlags::SWAPBACKED));
    m.audit();
}

#[test]
fn locked_memory_is_on_a_list_of_its_own() {
    let m = Machine::new(1, 64, 0);
    m.touch(1, Kind::Anon);
    let page = m.descriptor(m.frame(1));
    set_unevictable(&m, m.frame(1), page, true);
    lru_add_drain(&m);
    assert_eq!(lists(&m), [0, 0, 0, 0, 1]);
    set_unevictable(&m, m.frame(1), page, false);
    assert_eq!(lists(&m), [1, 0, 0, 0, 0]);
    m.audit();
}

#[test]
fn an_isolated_page_is_on_no_list() {
    let m = Machine::new(1, 64, 0);
    m.touch(1, Kind::Anon);
    let page = m.descriptor(m.frame(1));
    // From the batch, and then from the list.
    for _ in 0..2 {
        assert!(folio_isolate_lru(&m, page) && !folio_isolate_lru(&m, page));
        lru_add_drain(&m);
        assert_eq!(lists(&m), [0; 5]);
        folio_putback_lru(&m, m.frame(1), page);
        lru_add_drain(&m);
        assert_eq!(lists(&m), [1, 0, 0, 0, 0]);
        m.audit();
    }
}

#[test]
fn many_pages_leave_together_wherever_they_are() {
    let m = Machine::new(2, 128, 0);
    for id in 0..40 {
        m.touch_on(u32::from(id % 3 == 0), id, Kind::Anon);
    }
    let pfns: Vec<_> = (0..40).map(|id| m.frame(id)).collect();
    folios_del_lru(&m, &pfns);
    lru_add_drain(&m);
    assert_eq!(lists(&m), [0; 5]);
    assert!(pfns.iter().all(|pfn| !m.descriptor(*pfn).has_any(PageFlags::LRU | PageFlags::SWAPBACKED)));
    m.audit();
}
