//! How a CPU that is about to halt and one that makes a task ready do not miss each other (Linux: `TIF_POLLING_NRFLAG`,
//! `nohz.idle_cpus_mask`).
//!
//! I1  whoever halts announced it before it looked for work, and whoever brings work counts it before it looks for who halts: one of
//!     the two sees the other;
//! I2  of those who bring work at once each gets another idle CPU, and knows whether it has to wake it.

use core::sync::atomic::{AtomicU32, Ordering, fence};

/// The CPU has work, or looks for some.
pub const BUSY: u32 = 0;
/// It is about to halt or halts.
pub const HALTS: u32 = 1;
/// Somebody has brought it work and interrupts it.
pub const CLAIMED: u32 = 2;

/// A word that several CPUs change.
pub trait Word {
    /// Its value.
    fn load(&self, order: Ordering) -> u32;
    /// Another value.
    fn store(&self, value: u32, order: Ordering);
    /// `new` if it is `old`; whether it was.
    fn exchange(&self, old: u32, new: u32) -> bool;
}

/// [`Word`] by the atomics of this program or of a model, which have the same methods.
macro_rules! impl_word {
    ($atomic:ty) => {
        impl $crate::idle::Word for $atomic {
            fn load(&self, order: Ordering) -> u32 {
                <$atomic>::load(self, order)
            }

            fn store(&self, value: u32, order: Ordering) {
                <$atomic>::store(self, value, order);
            }

            fn exchange(&self, old: u32, new: u32) -> bool {
                self.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            }
        }
    };
}

impl_word!(AtomicU32);

/// A barrier between what was written and what is read next, so that a model may have its own.
pub trait Barrier {
    /// As `fence(SeqCst)`.
    fn full();
}

/// The machine's.
#[derive(Debug)]
pub struct Machine;

impl Barrier for Machine {
    fn full() {
        fence(Ordering::SeqCst);
    }
}

/// This CPU is about to halt; `has_work` looks at the counts of ready tasks. False if it must not. [`wakes`] follows in either case.
pub fn may_halt<B: Barrier>(state: &impl Word, has_work: impl FnOnce() -> bool) -> bool {
    state.store(HALTS, Ordering::Relaxed);
    B::full();
    !has_work()
}

/// This CPU goes on.
pub fn wakes(state: &impl Word) {
    state.store(BUSY, Ordering::Release);
}

/// After a task was counted as ready: the first of `cpus` that halts and that nobody else claimed, which the caller interrupts.
pub fn claim<'a, B: Barrier, W: Word + 'a, T>(cpus: impl Iterator<Item = (T, &'a W)>) -> Option<T> {
    B::full();
    for (cpu, state) in cpus {
        if state.load(Ordering::Relaxed) == HALTS && state.exchange(HALTS, CLAIMED) {
            return Some(cpu);
        }
    }
    None
}

#[cfg(test)]
mod tests;
