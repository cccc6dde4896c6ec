//! Wait queues (Linux: include/linux/wait.h).

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use guest_firmware::acpi::MAX_CPUS;
use mm_core::MaySleep;

use super::{MAX_TASKS, Reason, SLOTS, clock, current, run_others, schedule, timer, wake};
use crate::task;

const WORDS: usize = MAX_TASKS.div_ceil(64);

/// Tasks that wait for a condition, a bit each.
#[derive(Debug)]
pub struct WaitQueue {
    waiters: [AtomicU64; WORDS],
    /// Words of `waiters` that somebody ever was in: low numbers are given first.
    words: AtomicU32,
    /// How many are about to be or are among them: whoever wakes nobody finds out by a look at one word.
    count: AtomicU32,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The condition holds.
    Event,
    /// The time came first.
    TimedOut,
    /// A signal came first, or the process is being ended.
    Interrupted,
}

impl WaitQueue {
    /// Nobody waits.
    pub const fn new() -> WaitQueue {
        WaitQueue {
            waiters: [const { AtomicU64::new(0) }; WORDS],
            words: AtomicU32::new(0),
            count: AtomicU32::new(0),
        }
    }

    /// Sleeps until `condition` holds; it is looked at first, and after every wake-up (Linux: `wait_event`). It must not
    /// sleep.
    pub fn wait_event(&self, _context: &MaySleep<'_>, condition: impl FnMut() -> bool) {
        self.wait(Reason::Rests, condition, || None);
    }

    /// [`WaitQueue::wait_event`] in the middle of something, which readers from outside must not take for whole.
    pub fn wait_event_midway(&self, _context: &MaySleep<'_>, condition: impl FnMut() -> bool) {
        self.wait(Reason::Yields, condition, || None);
    }

    /// [`WaitQueue::wait_event`] until `deadline` at most, in nanoseconds since boot (Linux: `wait_event_timeout`).
    pub fn wait_timeout(
        &self,
        _context: &MaySleep<'_>,
        deadline: u64,
        condition: impl FnMut() -> bool,
    ) -> Woken {
        self.wait_deadline(Some(deadline), condition, || None)
    }

    /// [`WaitQueue::wait_event_midway`] until `deadline`, if there is one.
    pub fn wait_midway(
        &self,
        _context: &MaySleep<'_>,
        deadline: Option<u64>,
        condition: impl FnMut() -> bool,
    ) -> Woken {
        wait_deadline(&[self], Reason::Yields, deadline, condition, || None)
    }

    /// [`WaitQueue::wait_timeout`] in the middle of something.
    pub fn wait_timeout_midway(
        &self,
        _context: &MaySleep<'_>,
        deadline: u64,
        condition: impl FnMut() -> bool,
    ) -> Woken {
        wait_deadline(&[self], Reason::Yields, Some(deadline), condition, || None)
    }

    /// [`WaitQueue::wait_event`] until a signal comes or `deadline`, if there is one, is over (Linux:
    /// `wait_event_interruptible_timeout`). A condition that holds wins over a signal.
    pub fn wait_interruptible(
        &self,
        _context: &MaySleep<'_>,
        deadline: Option<u64>,
        condition: impl FnMut() -> bool,
    ) -> Woken {
        self.wait_deadline(deadline, condition, || task::signal_pending().then_some(Woken::Interrupted))
    }

    /// [`WaitQueue::wait_event`] until the process is being ended (Linux: `wait_event_killable`).
    pub fn wait_killable(&self, _context: &MaySleep<'_>, condition: impl FnMut() -> bool) -> Woken {
        self.wait(Reason::Rests, condition, || task::fatal_signal_pending().then_some(Woken::Interrupted))
    }

    fn wait_deadline(
        &self,
        deadline: Option<u64>,
        condition: impl FnMut() -> bool,
        stop: impl FnMut() -> Option<Woken>,
    ) -> Woken {
        wait_deadline(&[self], Reason::Rests, deadline, condition, stop)
    }

    /// Sleeps until `condition` holds or `stop` says why not.
    fn wait(
        &self,
        reason: Reason,
        condition: impl FnMut() -> bool,
        stop: impl FnMut() -> Option<Woken>,
    ) -> Woken {
        wait(&[self], reason, condition, stop)
    }

    /// A task is about to sleep here. It is counted before it looks at its condition: a wake-up in between is not lost.
    fn enter(&self, number: usize) {
        self.count.fetch_add(1, Ordering::SeqCst);
        let words = u32::try_from(number / 64 + 1).unwrap_or(u32::MAX);
        if self.words.load(Ordering::Relaxed) < words {
            self.words.fetch_max(words, Ordering::AcqRel);
        }
        self.waiters[number / 64].fetch_or(1 << (number % 64), Ordering::AcqRel);
    }

    fn leave(&self, number: usize) {
        self.waiters[number / 64].fetch_and(!(1 << (number % 64)), Ordering::AcqRel);
        self.count.fetch_sub(1, Ordering::AcqRel);
    }

    /// Wakes every waiter (Linux: `wake_up_all`). Also for interrupts.
    pub fn wake_up_all(&self) {
        while self.wake_up() {}
    }

    /// Wakes one waiter; false if there is none (Linux: `wake_up` with exclusive waiters).
    pub fn wake_up(&self) -> bool {
        // What the condition looks at was changed before.
        fence(Ordering::SeqCst);
        if self.count.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let words = self.words.load(Ordering::Acquire) as usize;
        for (word, waiters) in self.waiters.iter().take(words).enumerate() {
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

/// Sleeps until `condition` holds, a signal comes or `deadline`, if there is one, is over; whoever wakes one of `queues` makes it look
/// again. For queues whose waiters are all woken (Linux: `poll_schedule_timeout`).
pub fn wait_any(
    _context: &MaySleep<'_>,
    queues: &[&WaitQueue],
    deadline: Option<u64>,
    condition: impl FnMut() -> bool,
) -> Woken {
    wait_deadline(queues, Reason::Rests, deadline, condition, || {
        task::signal_pending().then_some(Woken::Interrupted)
    })
}

fn wait_deadline(
    queues: &[&WaitQueue],
    reason: Reason,
    deadline: Option<u64>,
    condition: impl FnMut() -> bool,
    mut stop: impl FnMut() -> Option<Woken>,
) -> Woken {
    let Some(deadline) = deadline else { return wait(queues, reason, condition, stop) };
    let number = current();
    let woken = wait(queues, reason, condition, || {
        if let Some(woken) = stop() {
            return Some(woken);
        }
        if clock::now() >= deadline {
            return Some(Woken::TimedOut);
        }
        timer::arm(number, deadline);
        None
    });
    timer::disarm(number);
    woken
}

fn wait(
    queues: &[&WaitQueue],
    reason: Reason,
    mut condition: impl FnMut() -> bool,
    mut stop: impl FnMut() -> Option<Woken>,
) -> Woken {
    let mut look = || if condition() { Some(Woken::Event) } else { stop() };
    loop {
        if let Some(woken) = look() {
            return woken;
        }
        let number = current();
        if number < MAX_CPUS {
            run_others(reason);
            continue;
        }
        SLOTS[number].lock().sleeps = true;
        queues.iter().for_each(|queue| queue.enter(number));
        let woken = look();
        if woken.is_some() {
            SLOTS[number].lock().sleeps = false;
        } else {
            schedule(reason);
        }
        queues.iter().for_each(|queue| queue.leave(number));
        if let Some(woken) = woken {
            return woken;
        }
    }
}
