//! Locks.

use core::cell::UnsafeCell;
use core::fmt;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};

use crate::arch::regs;

/// A lock that keeps interrupts off while held (Linux: `spin_lock_irqsave`). The data comes
/// first, so that a published array of locked structures is an array with a stride.
///
/// Whoever finds it open takes it. Turns by ticket would be fair, but the host may have taken the CPU away from who is next,
/// and then all others wait too (Linux: `virt_spin_lock`).
#[repr(C)]
pub struct Lock<T> {
    data: UnsafeCell<T>,
    locked: AtomicU32,
}

// SAFETY: who sets `locked` is the only one with access to the data until it clears it.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    /// An open lock.
    pub const fn new(data: T) -> Self {
        Self { data: UnsafeCell::new(data), locked: AtomicU32::new(0) }
    }

    /// Takes the lock.
    pub fn lock(&self) -> Guard<'_, T> {
        let flags = regs::irq_save();
        while self.locked.swap(1, Ordering::Acquire) != 0 {
            while self.locked.load(Ordering::Relaxed) != 0 {
                // The holder may wait for every CPU's flush, and this one does not take interrupts.
                crate::smp::answer_flush();
                core::hint::spin_loop();
            }
        }
        Guard { lock: self, flags }
    }

    /// Address of the data, for descriptor tables and the root descriptor.
    pub const fn as_ptr(&self) -> *const T {
        self.data.get()
    }

    /// Takes over the lock whose guard was given to [`Guard::keep_locked`]; interrupts stay off when the guard goes.
    ///
    /// # Safety
    /// The caller got the lock, by a switch of stacks, from the code that kept it locked.
    pub unsafe fn adopt(&self) -> Guard<'_, T> {
        Guard { lock: self, flags: 0 }
    }

    /// Opens the lock whoever holds it. For the panic path, where the holder never comes back.
    pub fn break_open(&self) {
        self.locked.store(0, Ordering::Release);
    }
}

impl<T> fmt::Debug for Lock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock").field("locked", &self.locked).finish_non_exhaustive()
    }
}

/// Holds a [`Lock`].
#[must_use]
pub struct Guard<'a, T> {
    lock: &'a Lock<T>,
    flags: u64,
}

impl<T> Guard<'_, T> {
    /// Leaves the lock closed and interrupts off; returns the flags from before. Somebody must call [`Lock::adopt`].
    pub fn keep_locked(self) -> u64 {
        let flags = self.flags;
        core::mem::forget(self);
        flags
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock, and `&mut self` shows nobody else uses the guard.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.lock.locked.store(0, Ordering::Release);
        regs::irq_restore(self.flags);
    }
}
