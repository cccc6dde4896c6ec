//! Lookups of a slot while its page is evicted, comes back in another frame, and the frame is given to others.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;
use std::time::Duration;

use mm_core::{Pfn, refcount};

use super::machine::Machine;
use crate::{
    Lookup, SwapEntry, add_to_swap_cache, delete_from_swap_cache, folio_alloc_swap, folio_swap_entry,
    remove_from_swap_cache, swap_cache_get_folio, swap_duplicate, swap_free,
};

/// Locks and asks, as a fault does; false if the page was no longer the slot's.
fn look(m: &Machine, entry: SwapEntry) -> Option<bool> {
    let Lookup::Page(pfn) = swap_cache_get_folio(m, entry) else { return None };
    let page = m.descriptor(pfn.as_u64());
    // Whoever waited here with a reference would keep the page in memory for ever.
    if !page.try_lock() {
        refcount::put(page.references());
        return None;
    }
    let is_its = folio_swap_entry(page) == Some(entry);
    if is_its {
        // Locked and with a reference, it is not evicted.
        assert_eq!(folio_swap_entry(page), Some(entry));
        assert!(page.refcount() >= 2, "the cache has one too");
    }
    page.unlock();
    refcount::put(page.references());
    Some(is_its)
}

/// Evicts the page of a frame, and waits for those who look at it.
fn evict(m: &Machine, frame: u64, shadow: u64) {
    let page = m.descriptor(frame);
    loop {
        page.lock();
        let gone = remove_from_swap_cache(m, Pfn::new(frame), || shadow);
        page.unlock();
        if gone {
            return;
        }
        thread::yield_now();
    }
}

#[test]
fn a_lookup_gets_the_page_of_the_slot_or_none() {
    let m = Machine::one(4, 64);
    let entry = folio_alloc_swap(&m, Pfn::new(1)).expect("a slot");
    swap_duplicate(&m, entry).expect("it is in use");
    let done = AtomicBool::new(false);
    let found = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Acquire) {
                    found.fetch_add(u64::from(look(&m, entry) == Some(true)), Relaxed);
                    // Evictions have their turn.
                    thread::sleep(Duration::from_micros(20));
                }
            });
        }
        let mut frame = 1;
        let mut round = 0;
        while round < 500 || found.load(Relaxed) < 50 {
            round += 1;
            evict(&m, frame, round);
            // The frame is another slot's for a while.
            m.descriptor(frame).set_refcount(1);
            let other = folio_alloc_swap(&m, Pfn::new(frame)).expect("a slot");
            assert_ne!(other, entry);
            m.descriptor(frame).lock();
            delete_from_swap_cache(&m, Pfn::new(frame), 0).expect("it is cached");
            m.descriptor(frame).unlock();
            // The page comes back in the next frame.
            frame = frame % 3 + 1;
            while m.descriptor(frame).refcount() > 1 {
                thread::yield_now();
            }
            m.descriptor(frame).set_refcount(1);
            m.descriptor(frame).lock();
            assert_eq!(add_to_swap_cache(&m, entry, Pfn::new(frame)), Ok(round));
            m.descriptor(frame).unlock();
            thread::sleep(Duration::from_micros(20));
        }
        done.store(true, Release);
        evict(&m, frame, 0);
    });
    swap_free(&m, entry).expect("it is named");
    assert_eq!(m.inuse(0), 0);
    m.audit();
}
