//! Locks.

use core::cell::UnsafeCell;
use core::fmt;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::arch::{cpu, regs};

/// Locks are taken out of order, as suits CPUs that a host may stop.
static UNFAIR: AtomicBool = AtomicBool::new(false);

/// Finds out how CPUs wait for locks (Linux: `native_pv_lock_init`).
pub fn init() {
    UNFAIR.store(cpu::has_hypervisor(), Ordering::Relaxed);
}

/// A ticket lock that keeps interrupts off while held (Linux: `spin_lock_irqsave`). The data comes
/// first, so that a published array of locked structures is an array with a stride.
#[repr(C)]
pub struct Lock<T> {
    data: UnsafeCell<T>,
    next: AtomicU32,
    serving: AtomicU32,
}

// SAFETY: the ticket protocol gives one CPU at a time access to the data.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    /// An open lock.
    pub const fn new(data: T) -> Self {
        Self { data: UnsafeCell::new(data), next: AtomicU32::new(0), serving: AtomicU32::new(0) }
    }

    /// Takes the lock. On hardware in the order of asking; under a hypervisor whoever comes first, because the next in order may be
    /// a CPU that the host does not run just now (Linux: `virt_spin_lock`).
    #[inline]
    pub fn lock(&self) -> Guard<'_, T> {
        let flags = regs::irq_save();
        if !self.try_take() {
            self.wait();
        }
        Guard { lock: self, flags }
    }

    /// Takes the next ticket if it is its turn at once.
    #[inline]
    fn try_take(&self) -> bool {
        let serving = self.serving.load(Ordering::Relaxed);
        let next = serving.wrapping_add(1);
        self.next.compare_exchange(serving, next, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[cold]
    #[inline(never)]
    fn wait(&self) {
        let ticket = if UNFAIR.load(Ordering::Relaxed) {
            None
        } else {
            Some(self.next.fetch_add(1, Ordering::Relaxed))
        };
        loop {
            let taken = match ticket {
                Some(ticket) => self.serving.load(Ordering::Acquire) == ticket,
                // Reads only, until it may be free.
                None => {
                    self.next.load(Ordering::Relaxed) == self.serving.load(Ordering::Relaxed)
                        && self.try_take()
                }
            };
            if taken {
                return;
            }
            // The holder may wait for every CPU's flush, and this one does not take interrupts.
            crate::smp::answer_flush();
            core::hint::spin_loop();
        }
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
        self.serving.store(self.next.load(Ordering::Relaxed), Ordering::Release);
    }
}

impl<T> fmt::Debug for Lock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock")
            .field("next", &self.next)
            .field("serving", &self.serving)
            .finish_non_exhaustive()
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
        // SAFETY: the guard holds the ticket.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the ticket, and `&mut self` shows nobody else uses the guard.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.lock.serving.fetch_add(1, Ordering::Release);
        regs::irq_restore(self.flags);
    }
}
