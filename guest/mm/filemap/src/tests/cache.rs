//! Adding, finding, taking out.

use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::vec::Vec;

use mm_core::{Id, MemMap, PAGE_SIZE, PageFlags, PageKind};

use super::machine::Machine;
use crate::{
    Bound, Cache, CacheError, Cows, Entry, Mapping, add_to_page_cache, clear_shadow_entries,
    clear_shadow_entry, delete_from_page_cache, find_get_page, has_page, next_page, put_page,
    read_cache_page, remove_mapping, truncate_inode_pages_range, truncate_pagecache,
};

pub fn fill(machine: &Machine, id: Id<Mapping>, pages: impl IntoIterator<Item = u64>) {
    for index in pages {
        let (pfn, added) = read_cache_page(machine, id, index, Bound::None, |pfn| {
            (0..PAGE_SIZE).for_each(|offset| machine.set_byte(pfn, offset, 7));
            Ok(())
        })
        .unwrap();
        assert!(added);
        put_page(machine, pfn);
    }
}

fn present(machine: &Machine, id: Id<Mapping>) -> Vec<u64> {
    let mut all = Vec::new();
    let mut from = 0;
    while let Some(index) = next_page(machine, id, from, u64::MAX) {
        all.push(index);
        from = index + 1;
    }
    Mapping::audit(machine, id).unwrap();
    assert_eq!(machine.mappings_nrpages(id), all.len() as u64);
    all
}

impl Machine {
    fn mappings_nrpages(&self, id: Id<Mapping>) -> u64 {
        mm_core::Arena::<Mapping>::at(self, id).nrpages()
    }
}

#[test]
fn a_page_is_added_once_and_found_with_a_reference() {
    let machine = Machine::new();
    let id = machine.mapping(10 * PAGE_SIZE);
    let pfn = machine.frame();
    let page = MemMap::page(&machine, pfn).unwrap();
    add_to_page_cache(&machine, id, 3, pfn, Bound::Size).unwrap();
    assert_eq!((page.refcount(), page.owner(), page.kind()), (2, (id.as_u64(), 3), PageKind::User));
    assert_eq!(find_get_page(&machine, id, 3), Some(pfn));
    assert_eq!(page.refcount(), 3);
    assert_eq!(find_get_page(&machine, id, 2), None);
    assert!(has_page(&machine, id, 3) && !has_page(&machine, id, 4));
    let second = machine.frame();
    assert_eq!(add_to_page_cache(&machine, id, 3, second, Bound::Size), Err(CacheError::Exists));
    assert_eq!(add_to_page_cache(&machine, id, 10, second, Bound::Size), Err(CacheError::PastEnd));
    let refused = MemMap::page(&machine, second).unwrap();
    assert_eq!((refused.refcount(), refused.mapping()), (1, 0));
    assert!(
        !delete_from_page_cache(&machine, id, 3, second) && !delete_from_page_cache(&machine, id, 2, pfn)
    );
    assert!(delete_from_page_cache(&machine, id, 3, pfn));
    assert_eq!((page.refcount(), page.mapping()), (2, 0));
    assert_eq!(machine.file_pages.load(Relaxed), 0);
    for pfn in [pfn, pfn, second] {
        put_page(&machine, pfn);
    }
    assert_eq!((machine.used(), machine.nodes.live()), (0, 0));
}

#[test]
fn whatever_fails_for_want_of_memory_leaves_nothing_behind() {
    let machine = Machine::new();
    let id = machine.mapping(u64::MAX >> 1);
    // A frame, and the nodes for a far index.
    for budget in 0..5 {
        machine.budget.store(budget, Relaxed);
        let got = read_cache_page(&machine, id, 1 << 20, Bound::Size, |_| Ok(()));
        assert_eq!(got, Err(CacheError::NoMemory), "{budget}");
        assert_eq!((machine.used(), machine.nodes.live()), (0, 0));
    }
    machine.budget.store(usize::MAX, Relaxed);
    let failed = read_cache_page(&machine, id, 1, Bound::Size, |_| Err(CacheError::Io));
    assert_eq!((failed, machine.used()), (Err(CacheError::Io), 0));
    fill(&machine, id, [1 << 20]);
    assert_eq!(present(&machine, id), [1 << 20]);
}

#[test]
fn truncation_takes_whole_pages_out_and_zeroes_the_rest() {
    let machine = Machine::new();
    let id = machine.mapping(100 * PAGE_SIZE);
    fill(&machine, id, 0..100);
    let removed = truncate_inode_pages_range(&machine, id, 10 * PAGE_SIZE + 5..20 * PAGE_SIZE + 9);
    assert_eq!(removed, 9);
    assert_eq!(present(&machine, id), (0..=10).chain(20..100).collect::<Vec<_>>());
    let byte = |index, offset| {
        let pfn = find_get_page(&machine, id, index).unwrap();
        let byte = machine.byte(pfn, offset);
        put_page(&machine, pfn);
        byte
    };
    assert_eq!((byte(10, 4), byte(10, 5), byte(10, PAGE_SIZE - 1)), (7, 0, 0));
    assert_eq!((byte(20, 0), byte(20, 8), byte(20, 9)), (0, 0, 7));
    // Inside one page.
    assert_eq!(truncate_inode_pages_range(&machine, id, 50 * PAGE_SIZE + 1..50 * PAGE_SIZE + 3), 0);
    assert_eq!([0, 1, 2, 3].map(|offset| byte(50, offset)), [7, 0, 0, 7]);
    assert!(machine.unmapped.lock().unwrap().is_empty());
    assert_eq!(truncate_pagecache(&machine, id, 3 * PAGE_SIZE + 1), 7 + 80);
    assert_eq!(*machine.unmapped.lock().unwrap(), [(4..u64::MAX, Cows::Unmap)]);
    assert_eq!(present(&machine, id), [0, 1, 2, 3]);
    assert_eq!((byte(3, 0), byte(3, 1)), (7, 0));
    assert_eq!(machine.file_pages.load(Relaxed), 4);
    assert_eq!(machine.used(), 4);
}

#[test]
fn a_value_gives_way_to_a_page_and_goes_with_the_range() {
    let machine = Machine::new();
    let id = machine.mapping(100 * PAGE_SIZE);
    let tree = mm_core::Arena::<Mapping>::at(&machine, id).i_pages();
    let mut spare = crate::Spare::default();
    for index in [4, 9] {
        spare.fill(&machine, tree.missing(&machine, index)).unwrap();
        machine.pages_lock(id, || tree.store(&machine, index, Entry::Value(77), &mut spare)).unwrap();
    }
    assert_eq!(find_get_page(&machine, id, 4), None);
    assert_eq!(crate::find_get_entry(&machine, id, 4), Entry::Value(77));
    fill(&machine, id, [4]);
    assert_eq!(present_pages(&machine, id), 1);
    assert_eq!(truncate_inode_pages_range(&machine, id, 0..u64::MAX), 1);
    assert_eq!((machine.used(), machine.nodes.live()), (0, 0));
}

fn present_pages(machine: &Machine, id: Id<Mapping>) -> u64 {
    Mapping::audit(machine, id).unwrap();
    machine.mappings_nrpages(id)
}

/// Threads that look up, fault in and truncate at once; what a lookup returns is what it looked for.
#[test]
fn many_threads_find_only_pages_of_their_mapping() {
    const ROUNDS: u64 = 3000;
    let machine = Machine::new();
    let ids = [machine.mapping(u64::MAX >> 1), machine.mapping(u64::MAX >> 1)];
    let stamp = |id: Id<Mapping>, index: u64| (id.as_u64() / 64 + index % 100).to_le_bytes()[0];
    thread::scope(|scope| {
        for worker in 0..4_u64 {
            let (machine, ids, stamp) = (&machine, &ids, &stamp);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let mixed = (round * 7 + worker * 13) % 97;
                    let (id, index) = (ids[(mixed % 2) as usize], [0, 1, 63, 64, 4096][(mixed % 5) as usize]);
                    if mixed % 11 == 0 {
                        truncate_inode_pages_range(machine, id, index * PAGE_SIZE..(index + 70) * PAGE_SIZE);
                        continue;
                    }
                    let (pfn, _) = read_cache_page(machine, id, index, Bound::Size, |pfn| {
                        (0..PAGE_SIZE).step_by(8).for_each(|at| machine.set_byte(pfn, at, stamp(id, index)));
                        Ok(())
                    })
                    .unwrap();
                    assert_eq!(machine.byte(pfn, 0), stamp(id, index));
                    assert_eq!(machine.byte(pfn, PAGE_SIZE - 8), stamp(id, index));
                    put_page(machine, pfn);
                }
            });
        }
    });
    for id in ids {
        Mapping::audit(&machine, id).unwrap();
        truncate_inode_pages_range(&machine, id, 0..u64::MAX);
    }
    assert_eq!((machine.used(), machine.nodes.live(), machine.file_pages.load(Relaxed)), (0, 0, 0));
}

#[test]
fn a_clean_page_that_nobody_holds_is_removed_and_leaves_its_shadow() {
    let machine = Machine::new();
    let id = machine.mapping(10 * PAGE_SIZE);
    fill(&machine, id, 0..4);
    let used = machine.used();
    for (index, shadow, left) in [(1, 0, Entry::Empty), (2, 77, Entry::Value(77))] {
        let pfn = find_get_page(&machine, id, index).unwrap();
        let page = MemMap::page(&machine, pfn).unwrap();
        assert!(remove_mapping(&machine, pfn, || shadow));
        assert_eq!((page.refcount(), page.mapping()), (0, 0));
        assert_eq!(crate::find_get_entry(&machine, id, index), left);
        page.set_refcount(1);
        put_page(&machine, pfn);
    }
    assert_eq!(machine.used(), used - 2);
    // A page that comes back takes the place of the shadow.
    fill(&machine, id, [2]);
    assert_eq!(present(&machine, id), [0, 2, 3]);
    assert_eq!(truncate_inode_pages_range(&machine, id, 0..u64::MAX), 3);
}

#[test]
fn the_shadows_of_a_range_go_and_no_page_does() {
    let machine = Machine::new();
    let id = machine.mapping(200 * PAGE_SIZE);
    fill(&machine, id, 0..150);
    for index in (0..150).step_by(3) {
        let pfn = find_get_page(&machine, id, index).unwrap();
        assert!(remove_mapping(&machine, pfn, || 77));
        MemMap::page(&machine, pfn).unwrap().set_refcount(1);
        put_page(&machine, pfn);
    }
    clear_shadow_entries(&machine, id, 3..147);
    let is_shadow = |index: &u64| crate::find_get_entry(&machine, id, *index) == Entry::Value(77);
    assert_eq!((0..150).filter(is_shadow).collect::<Vec<_>>(), [0, 147]);
    assert_eq!(present_pages(&machine, id), 100);
}

#[test]
fn a_shadow_is_taken_out_and_nothing_else() {
    let machine = Machine::new();
    let id = machine.mapping(10 * PAGE_SIZE);
    fill(&machine, id, 0..2);
    let pfn = find_get_page(&machine, id, 1).unwrap();
    assert!(remove_mapping(&machine, pfn, || 77));
    MemMap::page(&machine, pfn).unwrap().set_refcount(1);
    put_page(&machine, pfn);
    assert!(clear_shadow_entry(&machine, id, 1));
    assert_eq!(crate::find_get_entry(&machine, id, 1), Entry::Empty);
    assert_eq!([0, 1, 2].map(|index| clear_shadow_entry(&machine, id, index)), [false; 3]);
    assert_eq!(present(&machine, id), [0]);
    assert_eq!(truncate_inode_pages_range(&machine, id, 0..u64::MAX), 1);
}

#[test]
fn a_page_that_is_dirty_held_or_gone_is_not_removed() {
    let machine = Machine::new();
    let id = machine.mapping(10 * PAGE_SIZE);
    fill(&machine, id, 0..3);
    let [dirty, held, gone] = [0, 1, 2].map(|index| find_get_page(&machine, id, index).unwrap());
    MemMap::page(&machine, dirty).unwrap().insert(PageFlags::DIRTY);
    assert_eq!(find_get_page(&machine, id, 1), Some(held));
    assert!(delete_from_page_cache(&machine, id, 2, gone));
    for pfn in [dirty, held, gone] {
        let count = MemMap::page(&machine, pfn).unwrap().refcount();
        assert!(!remove_mapping(&machine, pfn, || unreachable!("nothing is to be remembered")));
        assert_eq!(MemMap::page(&machine, pfn).unwrap().refcount(), count);
    }
    [dirty, held, held, gone].into_iter().for_each(|pfn| put_page(&machine, pfn));
    assert_eq!(present(&machine, id), [0, 1]);
    assert_eq!(truncate_inode_pages_range(&machine, id, 0..u64::MAX), 2);
}
