//! Time of day, and timers that send signals (Linux: kernel/time/timekeeping.c, kernel/time/itimer.c).
//!
//! Timers of processes are looked after by one thread of the kernel, which begins with the first of them and sleeps until the
//! next is due.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guest_process::signal::{SigInfo, Target};
use guest_process::time::{FOREVER, NSEC_PER_SEC, Which};
use mm_vma::Errno;

use crate::drivers::rtc;
use crate::sched::{self, WaitQueue, clock};
use crate::sync::Lock;
use crate::task::{self, Process};
use crate::{pr_warn, signal};

/// Time of day at boot, nanoseconds since 1970; 0 until somebody asks.
static BOOT: AtomicU64 = AtomicU64::new(0);
/// Time of the next timer, nanoseconds since boot.
static NEXT: AtomicU64 = AtomicU64::new(FOREVER);
static CHANGED: WaitQueue = WaitQueue::new();
static STARTED: Lock<bool> = Lock::new(false);
static LOOK: AtomicBool = AtomicBool::new(false);

/// Time of day at boot, nanoseconds since 1970: what CLOCK_REALTIME is ahead of CLOCK_MONOTONIC.
pub fn boot_realtime() -> u64 {
    match BOOT.load(Ordering::Acquire) {
        0 => {
            let seconds = rtc::read_time().unwrap_or_else(|| {
                pr_warn!("rtc: no clock answers: it is 1970");
                0
            });
            let boot = (seconds * NSEC_PER_SEC).saturating_sub(clock::now()).max(1);
            // Whoever was first set it for all.
            BOOT.compare_exchange(0, boot, Ordering::AcqRel, Ordering::Acquire)
                .map_or_else(|known| known, |_| boot)
        }
        boot => boot,
    }
}

/// Time of day, nanoseconds since 1970.
pub fn realtime() -> u64 {
    boot_realtime().saturating_add(clock::now())
}

/// Sets the time of day (Linux: `do_settimeofday64`).
pub fn set_realtime(ns: u64) {
    BOOT.store(ns.saturating_sub(clock::now()).max(1), Ordering::Release);
}

/// A real timer was set for a time, nanoseconds since boot: it will fire.
///
/// # Errors
/// ENOMEM if there is no thread for it.
pub fn timer_set(expires: u64) -> Result<(), Errno> {
    start()?;
    NEXT.fetch_min(expires, Ordering::AcqRel);
    LOOK.store(true, Ordering::Release);
    CHANGED.wake_up_all();
    Ok(())
}

fn start() -> Result<(), Errno> {
    // Held until the thread is there, so that there is one; making it may sleep, so the lock is not held while it is made.
    if core::mem::replace(&mut *STARTED.lock(), true) {
        return Ok(());
    }
    sched::spawn_daemon("ktimers", run, 0, &sched::task_context()).map_err(|_| {
        *STARTED.lock() = false;
        Errno::Enomem
    })
}

fn run(_: u64) {
    let context = sched::task_context();
    loop {
        let next = NEXT.load(Ordering::Acquire);
        let due = || LOOK.swap(false, Ordering::AcqRel) || clock::now() >= NEXT.load(Ordering::Acquire);
        if next == FOREVER {
            CHANGED.wait_event(&context, due);
        } else {
            CHANGED.wait_timeout(&context, next, due);
        }
        if clock::now() >= NEXT.load(Ordering::Acquire) {
            fire();
        }
    }
}

/// Fires what is due, and finds out what is next.
fn fire() {
    // Whoever sets one meanwhile lowers it again.
    NEXT.store(FOREVER, Ordering::Release);
    let now = clock::now();
    let mut after = 0;
    while let Some(process) = next_process(after) {
        after = process.pid;
        let mut timer = process.signals.real_timer.lock();
        if timer.fire(now) > 0 {
            // Sent before the lock is free: who switches the timer off meets no signal afterwards (Linux: `hrtimer_cancel`). A process
            // that ends needs none.
            let _ = signal::send(&process, Target::Process, SigInfo::kernel(Which::Real.signal()));
        }
        NEXT.fetch_min(timer.expires().unwrap_or(FOREVER), Ordering::AcqRel);
    }
}

/// The living process of the least number above `after`.
fn next_process(after: u32) -> Option<Arc<Process>> {
    task::with_relations(|processes, _| {
        let above = processes.partition_point(|process| process.pid <= after);
        processes.get(above..)?.iter().find(|process| !process.is_zombie()).cloned()
    })
}
