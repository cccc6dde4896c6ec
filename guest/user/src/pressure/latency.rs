//! How long things took: one histogram that a program and its children share.
//!
//! A value falls into one of 512 buckets, eight to each power of two, so a percentile is known to an eighth of its value.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::memory::{Pages, READ_WRITE, SHARED};
use crate::sys;

/// Buckets of each power of two: 2^3.
const FINE: u32 = 3;
/// Words of the shared pages: the buckets, then how many values there were, and the largest.
const COUNT: u64 = 512;
const MOST: u64 = 513;

/// Where the histogram is; 0 before [`begin`].
static START: AtomicU64 = AtomicU64::new(0);

/// Nanoseconds of a clock that only goes on.
pub fn now_ns() -> u64 {
    let mut time = [0_u64; 2];
    sys::call(228, [1, time.as_mut_ptr() as u64, 0, 0, 0, 0]);
    time[0] * 1_000_000_000 + time[1]
}

/// Maps an empty histogram. Children that are made later write to the same one.
pub fn begin() {
    let pages = Pages::map(2, READ_WRITE, SHARED);
    if pages.is_mapped() {
        pages.word(0).store(0, Relaxed);
        START.store(pages.start, Relaxed);
    }
}

/// Takes it away.
pub fn end() {
    if let Some(pages) = pages() {
        pages.unmap();
    }
    START.store(0, Relaxed);
}

fn pages() -> Option<Pages> {
    let start = START.load(Relaxed);
    (start != 0).then_some(Pages { start, count: 2 })
}

fn word(pages: &Pages, index: u64) -> &'static AtomicU64 {
    pages.word_at(index / 512, index % 512)
}

fn bucket(ns: u64) -> u64 {
    let top = ns.max(1).ilog2();
    match top.checked_sub(FINE) {
        None => ns,
        Some(shift) => u64::from(shift + 1) << FINE | ns >> shift & 7,
    }
}

/// The largest value of a bucket.
fn largest(bucket: u64) -> u64 {
    match (bucket >> FINE).checked_sub(1) {
        None => bucket,
        Some(shift) => ((8 + (bucket & 7) + 1) << shift) - 1,
    }
}

/// Notes that something took that long.
pub fn record(ns: u64) {
    if let Some(pages) = pages() {
        word(&pages, bucket(ns)).fetch_add(1, Relaxed);
        word(&pages, COUNT).fetch_add(1, Relaxed);
        word(&pages, MOST).fetch_max(ns, Relaxed);
    }
}

/// Does something and notes how long it took.
pub fn time<R>(f: impl FnOnce() -> R) -> R {
    let begin = now_ns();
    let result = f();
    record(now_ns() - begin);
    result
}

/// What was noted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Values.
    pub count: u64,
    /// The median, in nanoseconds.
    pub p50: u64,
    /// Larger than 99 of 100.
    pub p99: u64,
    /// The largest.
    pub most: u64,
}

/// Sums it up; all zero if nothing was noted.
pub fn summary() -> Summary {
    let Some(pages) = pages() else { return Summary::default() };
    let (count, most) = (word(&pages, COUNT).load(Relaxed), word(&pages, MOST).load(Relaxed));
    let percentile = |percent: u64| {
        let (mut seen, wanted) = (0, (count * percent).div_ceil(100));
        let found = (0..COUNT).find(|index| {
            seen += word(&pages, *index).load(Relaxed);
            seen >= wanted
        });
        found.map_or(0, largest).min(most)
    };
    if count == 0 {
        Summary::default()
    } else {
        Summary { count, p50: percentile(50), p99: percentile(99), most }
    }
}
