//! Whose turn it is (Linux: kernel/sched/fair.c, rt.c; the logic is `guest_process::priority`).
//!
//! Times are cycles of the time-stamp counter, so that nothing has to be measured first. Who sleeps does not save up time: it comes
//! back at most [`CREDIT`] before the others.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_process::priority::{Place, Policy, Priority};

use super::runqueue::{self, Kind};
use super::{Reason, SLOTS, resched};

/// By how many cycles who slept goes before others: some ms (Linux: half of `sysctl_sched_latency`).
const CREDIT: u64 = 8_000_000;
/// By how much who wakes must be behind in time to take the CPU from another (Linux: `sysctl_sched_wakeup_granularity`).
const WAKE_GRANULARITY: u64 = 3_000_000;

/// Arrivals of real-time tasks so far, on all CPUs.
static ARRIVALS: AtomicU64 = AtomicU64::new(0);

/// When a task's turn is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    priority: Priority,
    /// Virtual time, or the arrival's number of a real-time task.
    at: u64,
    /// Counter when it came to its CPU.
    since: u64,
    /// The CPU among whose tasks `at` is meant.
    pub cpu: u32,
}

impl Turn {
    /// Of a thread of the kernel.
    pub const NEW: Turn = Turn { priority: Priority::NORMAL, at: 0, since: 0, cpu: 0 };

    /// Of a task that this task makes.
    pub fn child(self) -> Turn {
        Turn { priority: self.priority.of_child(), ..self }
    }

    /// It comes to a CPU.
    pub const fn runs_from(&mut self, now: u64) {
        self.since = now;
    }

    /// It has run until now.
    pub const fn ran_until(&mut self, now: u64) {
        if !self.priority.policy.is_real_time() {
            let ran = self.priority.virtual_time(now.saturating_sub(self.since));
            self.at = self.at.saturating_add(ran);
        }
        self.since = now;
    }

    pub const fn place(self) -> Place {
        self.priority.place(self.at)
    }

    /// Where it would stand if it had to be behind in time by enough to take the CPU from another.
    pub const fn place_of_intruder(self) -> Place {
        let needed = if self.priority.policy.is_real_time() { 0 } else { WAKE_GRANULARITY };
        self.priority.place(self.at.saturating_add(needed))
    }

    /// Virtual time, unless it is a real-time task.
    pub fn virtual_time(self) -> Option<u64> {
        (!self.priority.policy.is_real_time()).then_some(self.at)
    }

    /// It goes to the queue of a CPU: as far ahead of or behind those there as of those where it was.
    pub fn move_to(&mut self, cpu: u32) {
        if self.cpu != cpu && !self.priority.policy.is_real_time() {
            let (there, here) = (runqueue::virtual_time(self.cpu), runqueue::virtual_time(cpu));
            self.at = if self.at >= there {
                here.saturating_add(self.at - there)
            } else {
                here.saturating_sub(there - self.at)
            };
        }
        self.cpu = cpu;
    }

    /// A task that was not ready is: it is put among the others in time, or behind those of its priority.
    pub fn arrives(&mut self) {
        if self.priority.policy.is_real_time() {
            self.go_to_end();
        } else {
            self.at = self.at.max(runqueue::virtual_time(self.cpu).saturating_sub(CREDIT));
        }
    }

    fn go_to_end(&mut self) {
        self.at = ARRIVALS.fetch_add(1, Ordering::Relaxed) + 1;
    }

    /// The turn of a task that could go on is over: of real-time tasks, who yields and who takes turns goes behind its equals.
    pub fn is_over(&mut self, reason: Reason) {
        let policy = self.priority.policy;
        if policy == Policy::Rr || (policy == Policy::Fifo && reason != Reason::Preempted) {
            self.go_to_end();
        }
    }

    fn set_priority(&mut self, priority: Priority) {
        let was = core::mem::replace(&mut self.priority, priority);
        match (was.policy.is_real_time(), priority.policy.is_real_time()) {
            (false, true) => self.go_to_end(),
            // From the number of an arrival to a time.
            (true, false) => self.at = runqueue::virtual_time(self.cpu),
            _ => {}
        }
    }
}

/// Priority of a task.
pub fn priority(number: usize) -> Priority {
    SLOTS[number].lock().turn.priority
}

/// Gives a task another priority, of which it feels something at the next tick (Linux: `__sched_setscheduler`).
pub fn set_priority(number: usize, priority: Priority) {
    let cpu = {
        let mut slot = SLOTS[number].lock();
        let waited = runqueue::unqueue(number);
        slot.turn.set_priority(priority);
        if waited {
            let near = slot.turn.cpu;
            runqueue::place(number, &mut slot, near, Kind::Moved);
        }
        slot.info.cpu
    };
    resched(cpu);
}
