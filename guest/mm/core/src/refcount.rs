//! References of a page: the one thing about it that several CPUs change at once without a lock (Linux:
//! `get_page`, `put_page_testzero`, `get_page_unless_zero`).
//!
//! A reference can be added by whoever has one, or, by frame number alone, with [`try_get`], which fails
//! once the count is 0. Whoever drops the count to 0 frees the page; nobody else may. The functions are generic over the
//! counter so that the same lines run on `AtomicI32` and in a model checker.

use core::sync::atomic::{AtomicI32, Ordering};

/// An atomic counter.
pub trait Counter {
    /// The value.
    fn load(&self, order: Ordering) -> i32;
    /// Adds and returns the value before.
    fn fetch_add(&self, value: i32, order: Ordering) -> i32;
    /// Replaces `current`; the value found otherwise.
    ///
    /// # Errors
    /// The value found.
    fn compare_exchange(
        &self,
        current: i32,
        new: i32,
        success: Ordering,
        failure: Ordering,
    ) -> Result<i32, i32>;
}

impl Counter for AtomicI32 {
    #[inline]
    fn load(&self, order: Ordering) -> i32 {
        self.load(order)
    }

    #[inline]
    fn fetch_add(&self, value: i32, order: Ordering) -> i32 {
        self.fetch_add(value, order)
    }

    #[inline]
    fn compare_exchange(
        &self,
        current: i32,
        new: i32,
        success: Ordering,
        failure: Ordering,
    ) -> Result<i32, i32> {
        self.compare_exchange(current, new, success, failure)
    }
}

/// Adds a reference for a caller that has one already.
#[inline]
pub fn get<C: Counter>(count: &C) {
    // The caller's own reference orders everything.
    count.fetch_add(1, Ordering::Relaxed);
}

/// Adds a reference unless there is none left: for callers that found the page by its number.
pub fn try_get<C: Counter>(count: &C) -> bool {
    let mut seen = count.load(Ordering::Relaxed);
    while seen > 0 {
        match count.compare_exchange(seen, seen + 1, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => return true,
            Err(now) => seen = now,
        }
    }
    false
}

/// Drops the only reference. `false` if there are others, or none; then nothing was changed.
#[inline]
pub fn put_only<C: Counter>(count: &C) -> bool {
    count.compare_exchange(1, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

/// Drops a reference; `true` for the last one, whose owner frees the page and sees all that the others did to it.
/// `None` if there was none to drop: a bug of the caller, and the count stays.
#[inline]
pub fn put<C: Counter>(count: &C) -> Option<bool> {
    // The common case first: the only reference, dropped in one step.
    let mut seen = match count.compare_exchange(1, 0, Ordering::AcqRel, Ordering::Relaxed) {
        Ok(_) => return Some(true),
        Err(now) => now,
    };
    while seen > 0 {
        match count.compare_exchange(seen, seen - 1, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return Some(seen == 1),
            Err(now) => seen = now,
        }
    }
    None
}

/// Drops a reference unless it is the last one, which stays; false then.
pub fn put_unless_last<C: Counter>(count: &C) -> bool {
    let mut seen = count.load(Ordering::Relaxed);
    while seen > 1 {
        match count.compare_exchange(seen, seen - 1, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return true,
            Err(now) => seen = now,
        }
    }
    false
}

/// Takes all references at once if there are `expected`: until [`unfreeze`] nobody gets one (Linux:
/// `page_ref_freeze`).
pub fn freeze<C: Counter>(count: &C, expected: i32) -> bool {
    count.compare_exchange(expected, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

/// Ends [`freeze`] with `count` references (Linux: `page_ref_unfreeze`).
pub fn unfreeze<C: Counter>(references: &C, count: i32) {
    references.fetch_add(count, Ordering::Release);
}
