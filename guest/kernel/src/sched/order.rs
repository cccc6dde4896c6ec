//! Whose turn it is (Linux: kernel/sched/fair.c, rt.c; the logic is `guest_process::priority`).
//!
//! Times are cycles of the time-stamp counter, so that nothing has to be measured first. Who sleeps does not save up time: it comes
//! back at most [`CREDIT`] before the others.

use guest_process::priority::{Place, Priority};

use super::{NOBODY, Reason, SCHED, Sched, resched};
use crate::arch::percpu;
use core::sync::atomic::Ordering;

/// By how many cycles who slept goes before others: some ms (Linux: half of `sysctl_sched_latency`).
const CREDIT: u64 = 8_000_000;
/// By how much who wakes must be behind in time to take the CPU from another (Linux: `sysctl_sched_wakeup_granularity`).
const WAKE_GRANULARITY: u64 = 3_000_000;

/// When a task's turn is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    priority: Priority,
    /// Virtual time, or the arrival's number of a real-time task.
    at: u64,
    /// Counter when it came to its CPU.
    since: u64,
}

impl Turn {
    /// Of a thread of the kernel.
    pub const NEW: Turn = Turn { priority: Priority::NORMAL, at: 0, since: 0 };

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

    const fn place(self) -> Place {
        self.priority.place(self.at)
    }
}

impl Sched {
    /// A task that was not ready is: it is put among the others in time, or behind those of its priority.
    pub(super) fn arrives(&mut self, number: usize) {
        if self.slots[number].turn.priority.policy.is_real_time() {
            self.go_to_end(number);
            return;
        }
        let turn = &mut self.slots[number].turn;
        turn.at = turn.at.max(self.virtual_time.saturating_sub(CREDIT));
    }

    fn go_to_end(&mut self, number: usize) {
        self.arrivals += 1;
        self.slots[number].turn.at = self.arrivals;
    }

    /// The turn of a task that could go on is over: of real-time tasks, who yields and who takes turns goes behind its equals.
    pub(super) fn turn_is_over(&mut self, number: usize, reason: Reason) {
        use guest_process::priority::Policy;
        let policy = self.slots[number].turn.priority.policy;
        if policy == Policy::Rr || (policy == Policy::Fifo && reason != Reason::Preempted) {
            self.go_to_end(number);
        }
    }

    /// Takes out of the queue who goes first of those that may run on `cpu`; `None` if `keeps`, who runs, goes before all of them.
    pub(super) fn take_first(&mut self, cpu: u32, keeps: Option<usize>) -> Option<usize> {
        let (mut before, mut at) = (NOBODY, self.first);
        let mut first: Option<(Place, usize, usize)> = None;
        while at != NOBODY {
            let slot = &self.slots[at];
            let place = slot.turn.place();
            if slot.may_run_on(cpu) && first.is_none_or(|(least, ..)| place < least) {
                first = Some((place, before, at));
            }
            (before, at) = (at, slot.next);
        }
        let (place, before, at) = first?;
        if keeps.is_some_and(|me| self.slots[me].turn.place() <= place) {
            return None;
        }
        self.unlink(before, at);
        let turn = self.slots[at].turn;
        if !turn.priority.policy.is_real_time() {
            self.virtual_time = self.virtual_time.max(turn.at);
        }
        Some(at)
    }

    /// Whether a task that woke goes before the one that runs on a CPU, which it may take (Linux: `check_preempt_curr`).
    pub(super) fn goes_before_current_of(&self, cpu: u32, number: usize) -> bool {
        let running = percpu::of(cpu).current.load(Ordering::Relaxed) as usize;
        let (Some(new), Some(old)) = (self.slots.get(number), self.slots.get(running)) else { return false };
        if old.info.idle == 1 || !new.may_run_on(cpu) {
            return false;
        }
        let needed = if new.turn.priority.policy.is_real_time() { 0 } else { WAKE_GRANULARITY };
        new.turn.priority.place(new.turn.at.saturating_add(needed)) < old.turn.place()
    }
}

/// Priority of a task.
pub fn priority(number: usize) -> Priority {
    SCHED.lock().slots[number].turn.priority
}

/// Gives a task another priority, of which it feels something at the next tick (Linux: `__sched_setscheduler`).
pub fn set_priority(number: usize, priority: Priority) {
    let cpu = {
        let mut sched = SCHED.lock();
        let was = sched.slots[number].turn.priority;
        sched.slots[number].turn.priority = priority;
        match (was.policy.is_real_time(), priority.policy.is_real_time()) {
            (false, true) => sched.go_to_end(number),
            // From the number of an arrival to a time.
            (true, false) => sched.slots[number].turn.at = sched.virtual_time,
            _ => {}
        }
        sched.slots[number].info.cpu
    };
    resched(cpu);
}
