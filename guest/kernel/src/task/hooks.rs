//! What other parts of the kernel keep of a process. Each part fills in its own type; here are the moments at which it is asked.

use core::sync::atomic::AtomicU64;

use mm_vma::Errno;

use super::{CloneFlags, Process};

pub use crate::fs::Files;

/// What the tasks of a process share of signals (Linux: `signal_struct`, `sighand_struct`).
#[derive(Debug, Default)]
pub struct Signals;

/// What each task has of signals.
#[derive(Debug, Default)]
pub struct TaskSignals {
    /// Blocked signals, a bit each from bit 0 for signal 1.
    pub blocked: AtomicU64,
}

impl Signals {
    /// For a new process (Linux: `copy_sighand`, `copy_signal`).
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn fork(&self, _flags: CloneFlags) -> Result<Signals, Errno> {
        Ok(Signals)
    }

    /// `child` of `parent` became a zombie. `true` if nobody wants to wait for it (Linux: `do_notify_parent`).
    pub fn child_ended(&self, _parent: &Process, _child: &Process) -> bool {
        false
    }
}

impl TaskSignals {
    /// For a new task: the same signals are blocked, none is pending.
    pub fn fork(&self) -> TaskSignals {
        let blocked = self.blocked.load(core::sync::atomic::Ordering::Relaxed);
        TaskSignals { blocked: AtomicU64::new(blocked) }
    }
}

/// The word at `address` of the current process became 0 because a task ended: wakes who waits for it (Linux: `do_futex`
/// with FUTEX_WAKE in `mm_release`).
pub(super) fn futex_wake(_address: u64) {}

/// Delivers signals before the current task goes on in ring 3 (Linux: `arch_do_signal_or_restart`).
pub(super) fn deliver_signals(_frame: &mut crate::arch::trap::TrapFrame) {}
