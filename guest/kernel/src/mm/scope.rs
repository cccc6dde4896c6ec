//! What the allocations of the current task may do for a while (Linux: `current->flags` with `PF_MEMALLOC` and the `memalloc_*_save` scopes).

use core::sync::atomic::{AtomicU32, Ordering};

use mm_page_alloc::TaskFlags;

use crate::sched::{self, MAX_TASKS};

/// By task. Only the task itself changes its own.
static FLAGS: [AtomicU32; MAX_TASKS] = [const { AtomicU32::new(0) }; MAX_TASKS];

/// The current task's.
pub fn current_flags() -> TaskFlags {
    let word = FLAGS.get(sched::current()).map_or(0, |word| word.load(Ordering::Relaxed));
    TaskFlags::from_bits_retain(word)
}

/// Calls `f` with these flags set for the current task; those that were set before stay (Linux: `memalloc_noreclaim_save` and others).
pub fn with_flags<R>(flags: TaskFlags, f: impl FnOnce() -> R) -> R {
    let Some(word) = FLAGS.get(sched::current()) else { return f() };
    let before = word.fetch_or(flags.bits(), Ordering::Relaxed);
    let result = f();
    word.store(before, Ordering::Relaxed);
    result
}
