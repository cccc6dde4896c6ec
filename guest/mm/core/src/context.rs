//! Where sleeping is allowed.

use core::marker::PhantomData;

/// Proof that the code runs in task context, holds no lock and may sleep (Linux checks the same at run time:
/// `might_sleep`).
///
/// What may sleep takes a reference to it. It can neither be copied nor sent to another CPU, and outlives nothing
/// that would end its promise. Only a scheduler makes it; in the guest kernel `sched::might_sleep` does, and refuses
/// in interrupts, with interrupts off and inside kmap_atomic.
#[derive(Debug)]
pub struct MaySleep<'a>(PhantomData<(&'a (), *const ())>);

impl MaySleep<'_> {
    /// The scheduler has checked that this is task context; on the host every test thread is.
    pub const fn checked_by_scheduler() -> Self {
        MaySleep(PhantomData)
    }
}
