//! Those who write faster than disks can take it wait (Linux: `balance_dirty_pages`).
//!
//! Differs from Linux: who is above the limit sleeps until writes have ended, at most a tenth of a second at a time, and looks again; how long is
//! not computed from the disk's speed.

use core::sync::atomic::Ordering::Relaxed;

use mm_core::{Event, EventId, MaySleep, PAGE_SIZE, Trace};

use super::settings::{Setting, read};
use super::{counts, wake_flusher};
use crate::mm::page_alloc;
use crate::mm::space::cache;
use crate::sched::{WaitQueue, clock};
use crate::trace::KernelTrace;

/// Longest sleep, in nanoseconds (Linux: `MAX_PAUSE` is 200 ms).
const PAUSE: u64 = 100_000_000;

/// Those above the limit.
static THROTTLED: WaitQueue = WaitQueue::new();

/// Limits, in pages (Linux: `global_dirty_limits`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Above it the flusher writes.
    pub background: u64,
    /// Above it writers wait.
    pub dirty: u64,
}

/// Memory that could be dirty: free pages and those of files (Linux: `global_dirtyable_memory`).
fn dirtyable() -> u64 {
    let (mut free, mut reserve) = (0, 0);
    for zone in page_alloc::zones() {
        let zone = zone.lock();
        free += zone.info().free_pages;
        // Linux: `totalreserve_pages`, the high watermarks.
        reserve += zone.info().watermark[2];
    }
    (free + cache::nr_file_pages().saturating_sub(cache::nr_shmem())).saturating_sub(reserve)
}

/// The limits now.
pub fn limits() -> Limits {
    let all = dirtyable();
    let limit = |bytes, ratio| match read(bytes) {
        0 => all * read(ratio) / 100,
        bytes => bytes.div_ceil(PAGE_SIZE),
    };
    let dirty = limit(Setting::Bytes, Setting::Ratio);
    let background = limit(Setting::BackgroundBytes, Setting::BackgroundRatio);
    // Linux: a background limit above the other makes no sense.
    Limits { background: if background >= dirty { dirty / 2 } else { background }, dirty }
}

/// Whether the flusher has to write.
pub(super) fn is_over_background() -> bool {
    counts().dirty > limits().background
}

/// Whoever has made pages dirty calls it: it returns when there are not too many. The caller holds nothing that a write needs.
pub fn balance_dirty_pages(context: &MaySleep<'_>) {
    let over = || {
        let counts = counts();
        let limits = limits();
        if counts.dirty > limits.background {
            wake_flusher();
        }
        // Linux: nobody waits below the middle of the two (`dirty_freerun_ceiling`), and all do above the upper.
        counts.dirty + counts.writeback > limits.dirty
    };
    while over() {
        let written = || super::NR_WRITTEN.load(Relaxed);
        let before = written();
        KernelTrace.emit_with(EventId::BalanceDirtyPages, || {
            let (counts, limits) = (counts(), limits());
            Event::BalanceDirtyPages {
                dirty: counts.dirty,
                writeback: counts.writeback,
                background_thresh: limits.background,
                limit: limits.dirty,
            }
        });
        THROTTLED.wait_timeout(context, clock::now() + PAUSE, || written() >= before + 32);
    }
}

/// A page was written.
pub(super) fn written() {
    if super::NR_WRITTEN.load(Relaxed).is_multiple_of(32) || super::counts().writeback == 0 {
        THROTTLED.wake_up_all();
    }
}
