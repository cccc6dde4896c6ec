//! The thread that writes what is dirty (Linux: `wb_workfn`, `wb_do_writeback`).
//!
//! Differs from Linux: one thread for all disks, and it does not wait for what it began: the disks work side by side.

use core::sync::atomic::{AtomicBool, Ordering};

use mm_core::MaySleep;
use mm_vma::{Id, Mapping};

use super::settings::{Setting, read};
use super::{Sync, list, throttle, write_pages};
use crate::fs::disk_file;
use crate::mm::space::cache;
use crate::pr_err;
use crate::sched::{self, WaitQueue, clock};

/// Pages of one mapping at a time (Linux: `MAX_WRITEBACK_PAGES`).
const CHUNK: u64 = 1024;
const NS_PER_CENTISEC: u64 = 10_000_000;

static WORK: WaitQueue = WaitQueue::new();
static ASKED: AtomicBool = AtomicBool::new(false);

/// Starts the thread.
pub fn init(context: &MaySleep<'_>) {
    if let Err(error) = sched::spawn_daemon("kworker/flush", run, 0, context) {
        pr_err!("writeback: no thread: {error:?}");
    }
}

/// There is more dirty than there should be, or somebody wants it written soon (Linux: `wakeup_flusher_threads`). Any context.
pub fn wake() {
    if !ASKED.swap(true, Ordering::AcqRel) {
        WORK.wake_up_all();
    }
}

fn run(_: u64) {
    let context = sched::task_context();
    loop {
        let pause = read(Setting::WritebackCentisecs) * NS_PER_CENTISEC;
        if pause == 0 {
            WORK.wait_event(&context, || ASKED.load(Ordering::Acquire));
        } else {
            WORK.wait_timeout(&context, clock::now() + pause, || ASKED.load(Ordering::Acquire));
        }
        let asked = ASKED.swap(false, Ordering::AcqRel);
        // What is old (Linux: `wb_check_old_data_flush`).
        let old = clock::now().saturating_sub(read(Setting::ExpireCentisecs) * NS_PER_CENTISEC);
        write_before(old, &context);
        // What is too much, or wanted (Linux: `wb_check_background_flush`).
        if asked || throttle::is_over_background() {
            let now = clock::now();
            while throttle::is_over_background() && write_before(now, &context) > 0 {}
        }
    }
}

/// Writes some of each mapping that has been dirty since before `time`; how many pages.
fn write_before(time: u64, context: &MaySleep<'_>) -> u64 {
    let mut sum = 0;
    let mut first: Option<Id<Mapping>> = None;
    while let Some(id) = list::take(time) {
        let mut allocate = |index| disk_file::allocate(id, index);
        // An error is kept for those who sync the file; its pages stay dirty.
        sum += write_pages(id, 0..u64::MAX, (Sync::None, CHUNK), &mut allocate, context).unwrap_or(0);
        list::put_back(id);
        cache::release(id);
        // Once round: `put_back` makes it young, but the clock may stand still.
        if *first.get_or_insert(id) == id && sum == 0 {
            break;
        }
        sched::yield_now(context);
    }
    sum
}
