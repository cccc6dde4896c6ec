//! Where code runs, as far as allocations depend on it.

use core::marker::PhantomData;

/// Shows that whoever holds it may sleep: it runs as a task, with no lock held and no interrupt or CPU-local
/// section entered.
///
/// Only the place where task context begins makes one, and hands out references. The type can be neither
/// sent nor shared, so an interrupt handler, or another CPU, cannot come by a task's. What may sleep takes a
/// `&MaySleep`; what cannot give one gets no direct reclaim (Linux: `might_sleep()`, checked at run time).
#[derive(Debug)]
pub struct MaySleep {
    task: PhantomData<*mut ()>,
}

impl MaySleep {
    /// For the entry into task context, and for tests. Calling it anywhere else is a lie about the context.
    pub const fn in_task_context() -> MaySleep {
        MaySleep { task: PhantomData }
    }
}
