//! What other parts of the kernel keep of a process. Each part fills in its own type; here are the moments at which it is asked.

pub use crate::fs::Files;

/// The word at `address` of the current process became 0 because a task ended: wakes who waits for it (Linux: `do_futex`
/// with FUTEX_WAKE in `mm_release`).
pub(super) fn futex_wake(address: u64) {
    crate::futex::wake_one(address);
}
