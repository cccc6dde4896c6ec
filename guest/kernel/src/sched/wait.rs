//! Wait queues (Linux: include/linux/wait.h).

use core::sync::atomic::{AtomicU64, Ordering};

use mm_core::MaySleep;

use super::{MAX_TASKS, SCHED, current, run_others, schedule, wake};

const WORDS: usize = MAX_TASKS.div_ceil(64);

/// Tasks that wait for a condition, a bit each.
#[derive(Debug)]
pub struct WaitQueue {
    waiters: [AtomicU64; WORDS],
}

impl WaitQueue {
    /// Nobody waits.
    pub const fn new() -> WaitQueue {
        WaitQueue { waiters: [const { AtomicU64::new(0) }; WORDS] }
    }

    /// Sleeps until `condition` holds; it is looked at first, and after every wake-up (Linux: `wait_event`). It must not
    /// sleep.
    pub fn wait_event(&self, _context: &MaySleep<'_>, mut condition: impl FnMut() -> bool) {
        while !condition() {
            let number = current();
            let idle = SCHED.lock().tasks[number].info.idle == 1;
            if idle {
                run_others();
                continue;
            }
            // First the queue and the intention, then the condition: a wake-up in between is not lost.
            SCHED.lock().tasks[number].sleeps = true;
            self.waiters[number / 64].fetch_or(1 << (number % 64), Ordering::AcqRel);
            let holds = condition();
            if holds {
                SCHED.lock().tasks[number].sleeps = false;
            } else {
                schedule();
            }
            self.waiters[number / 64].fetch_and(!(1 << (number % 64)), Ordering::AcqRel);
            if holds {
                return;
            }
        }
    }

    /// Wakes every waiter (Linux: `wake_up_all`). Also for interrupts.
    pub fn wake_up_all(&self) {
        while self.wake_up() {}
    }

    /// Wakes one waiter; false if there is none (Linux: `wake_up` with exclusive waiters).
    pub fn wake_up(&self) -> bool {
        for (word, waiters) in self.waiters.iter().enumerate() {
            loop {
                let set = waiters.load(Ordering::Acquire);
                if set == 0 {
                    break;
                }
                // trailing_zeros of a word is below 64.
                let bit = set.trailing_zeros();
                waiters.fetch_and(!(1 << bit), Ordering::AcqRel);
                if wake(word * 64 + bit as usize) {
                    return true;
                }
            }
        }
        false
    }
}
