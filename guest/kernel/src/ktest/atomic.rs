//! GFP_ATOMIC from the timer's interrupt while programs eat everything: `atomic_from_tick` on the command line (catalog R9).
//!
//! Each tick takes a few pages and gives back those of the tick before, as a driver does with its buffers.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mm_core::{Gfp, Order, Pfn};
use mm_page_alloc::Context;

use crate::mm::page_alloc;
use crate::sync::Lock;
use crate::{cmdline, println};

/// Pages of a tick.
const PAGES: usize = 8;

static ENABLED: AtomicBool = AtomicBool::new(false);
static HELD: Lock<[u64; PAGES]> = Lock::new([0; PAGES]);
static TAKEN: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicU64 = AtomicU64::new(0);
/// Of those that were taken, while only the reserve was left.
static FROM_RESERVE: AtomicU64 = AtomicU64::new(0);
static LEAST_FREE: AtomicU64 = AtomicU64::new(u64::MAX);

/// Begins, if the command line says so.
pub fn begin() {
    ENABLED.store(cmdline::flag("atomic_from_tick"), Ordering::Release);
}

/// Frees what the last tick took.
fn give_back(held: &mut [u64; PAGES]) {
    for slot in held.iter_mut() {
        let old = core::mem::take(slot);
        if old != 0 {
            page_alloc::free_pages(Pfn::new(old), Order::ZERO);
        }
    }
}

/// In the timer's interrupt.
pub fn tick() {
    if !ENABLED.load(Ordering::Acquire) {
        return;
    }
    let mut held = HELD.lock();
    give_back(&mut held);
    let scarce = page_alloc::is_below_min();
    LEAST_FREE.fetch_min(page_alloc::managed_and_free().1, Ordering::Relaxed);
    for slot in held.iter_mut() {
        match page_alloc::alloc_gfp(Context::ATOMIC, Gfp::ATOMIC | Gfp::NOWARN, Order::ZERO, None) {
            Some(pfn) => {
                *slot = pfn.as_u64();
                TAKEN.fetch_add(1, Ordering::Relaxed);
                FROM_RESERVE.fetch_add(scarce.into(), Ordering::Relaxed);
            }
            None => {
                FAILED.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Gives everything back and tells how it went; false if a request failed, or none came while memory was scarce.
pub fn end() -> bool {
    if !ENABLED.swap(false, Ordering::AcqRel) {
        return true;
    }
    give_back(&mut HELD.lock());
    let counts = [&TAKEN, &FAILED, &FROM_RESERVE, &LEAST_FREE];
    let [taken, failed, scarce, least] = counts.map(|count| count.load(Ordering::Relaxed));
    println!(
        "oom-atomic: {taken} pages taken in interrupts, {scarce} of them from the reserve, {failed} refused, least {least} pages free"
    );
    failed == 0 && scarce > 0
}
