//! Requests for memory that fail on purpose, to see what those who ask do then (Linux 6.1: mm/failslab.c, lib/fault-inject.c).
//!
//! As on Linux, only requests that cannot wait for memory fail: the others do not fail where there is memory. Which ones says
//! `failslab=INTERVAL,PROBABILITY,SPACE,TIMES` on the command line for all of the kernel, and /proc/PID/fail-nth for a task.
//!
//! Differs from Linux: there is no debugfs, so that nothing can be changed later; SLOB's caches fail, too.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mm_core::{FaultAttr, Gfp};
use mm_page_alloc::Machine as _;
use mm_slab::CacheId;

use crate::arch::percpu;
use crate::mm::slab::KMEM;
use crate::mm::{oom, page_alloc};
use crate::{cmdline, println, task};

static FAILSLAB: FaultAttr = FaultAttr::new();
/// Something is to fail, or was.
static ENABLED: AtomicBool = AtomicBool::new(false);

/// Reads the command line. What is wrong is said, and nothing fails.
pub fn init() {
    match cmdline::value("failslab", |text| FAILSLAB.setup(text)) {
        Some(true) => enable(),
        Some(false) => println!("FAULT_INJECTION: failed to parse arguments of failslab="),
        None => {}
    }
}

/// From now on somebody may be meant.
pub fn enable() {
    ENABLED.store(true, Ordering::Relaxed);
}

/// Whether the request is to fail (Linux: `should_failslab`).
#[inline]
pub fn should_failslab(cache: CacheId, gfp: Gfp) -> bool {
    ENABLED.load(Ordering::Relaxed) && !gfp.intersects(Gfp::DIRECT_RECLAIM | Gfp::NOFAIL) && is_meant(cache)
}

#[cold]
fn is_meant(cache: CacheId) -> bool {
    let in_task = percpu::current().is_some_and(|percpu| percpu.hardirq.load(Ordering::Relaxed) == 0);
    let counted = if in_task { task::current().and_then(|task| task.count_to_failure()) } else { None };
    let fails =
        counted.unwrap_or_else(|| FAILSLAB.should_fail(KMEM.cache(cache).object_size().into(), percent));
    if fails && page_alloc::Kernel.may_report() {
        println!("FAULT_INJECTION: forcing a failure. name failslab, {FAILSLAB}");
        oom::dump_stack();
    }
    fails
}

/// A number from 0 to 99, the same ones from boot to boot (xorshift64).
fn percent() -> u64 {
    static STATE: AtomicU64 = AtomicU64::new(0x9e37_79b9_7f4a_7c15);
    let mut word = STATE.load(Ordering::Relaxed);
    word ^= word << 13;
    word ^= word >> 7;
    word ^= word << 17;
    STATE.store(word, Ordering::Relaxed);
    word % 100
}
