//! References under every interleaving of two or three threads, in a model checker.

use core::sync::atomic::Ordering;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicI32};

use crate::refcount::{self, Counter};

struct Modelled(AtomicI32);

impl Counter for Modelled {
    fn load(&self, order: Ordering) -> i32 {
        self.0.load(order)
    }

    fn fetch_add(&self, value: i32, order: Ordering) -> i32 {
        self.0.fetch_add(value, order)
    }

    fn compare_exchange(
        &self,
        current: i32,
        new: i32,
        success: Ordering,
        failure: Ordering,
    ) -> Result<i32, i32> {
        self.0.compare_exchange(current, new, success, failure)
    }
}

/// A page with contents: freed exactly once, by one who sees what the others wrote.
struct Shared {
    references: Modelled,
    freed: AtomicBool,
}

fn release(page: &Shared) {
    if refcount::put(&page.references) == Some(true) {
        assert!(!page.freed.swap(true, Ordering::Relaxed), "freed twice");
    }
}

#[test]
fn the_last_of_two_holders_frees_once() {
    loom::model(|| {
        let page =
            Arc::new(Shared { references: Modelled(AtomicI32::new(2)), freed: AtomicBool::new(false) });
        let other = page.clone();
        let thread = loom::thread::spawn(move || release(&other));
        release(&page);
        thread.join().expect("no panic");
        assert!(page.freed.load(Ordering::Relaxed), "nobody freed it");
        assert_eq!(refcount::put(&page.references), None);
    });
}

#[test]
fn a_page_found_by_number_is_had_or_free_never_both() {
    loom::model(|| {
        let page =
            Arc::new(Shared { references: Modelled(AtomicI32::new(1)), freed: AtomicBool::new(false) });
        let other = page.clone();
        let thread = loom::thread::spawn(move || {
            if refcount::try_get(&other.references) {
                assert!(!other.freed.load(Ordering::Relaxed), "had and freed");
                release(&other);
            }
        });
        release(&page);
        thread.join().expect("no panic");
        assert!(page.freed.load(Ordering::Relaxed), "nobody freed it");
    });
}

#[test]
fn references_are_added_and_dropped_without_loss() {
    loom::model(|| {
        let page = Arc::new(Modelled(AtomicI32::new(2)));
        let other = page.clone();
        let thread = loom::thread::spawn(move || {
            refcount::get(&*other);
            (refcount::put(&*other), refcount::put(&*other))
        });
        let here = refcount::put(&*page);
        let there = thread.join().expect("no panic");
        let last = [here, there.0, there.1].into_iter().filter(|put| *put == Some(true)).count();
        assert_eq!(last, 1);
    });
}
