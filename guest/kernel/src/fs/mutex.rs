//! A lock whose holder may sleep, and which lets others run while it is waited for (Linux: `struct mutex`).

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::sched::{self, WaitQueue};

/// A value behind a lock. Not for interrupts.
pub struct Mutex<T> {
    held: AtomicBool,
    waiters: WaitQueue,
    value: UnsafeCell<T>,
}

impl<T> core::fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Mutex").field("held", &self.held).finish_non_exhaustive()
    }
}

// SAFETY: the value is reached by its holder only, of whom there is one; it goes from one thread to the next with the lock.
unsafe impl<T: Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    /// Not held.
    pub const fn new(value: T) -> Mutex<T> {
        Mutex { held: AtomicBool::new(false), waiters: WaitQueue::new(), value: UnsafeCell::new(value) }
    }

    /// Calls `f` with the value while nobody else has it.
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let take = || !self.held.swap(true, Ordering::Acquire);
        if !take() {
            self.waiters.wait_event_midway(&sched::task_context(), take);
        }
        // SAFETY: `held` was false and is true: no other holder is between here and the store below.
        let result = f(unsafe { &mut *self.value.get() });
        self.held.store(false, Ordering::Release);
        self.waiters.wake_up();
        result
    }
}
