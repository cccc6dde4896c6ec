//! Requests for memory that fail on purpose, to see what those who ask do then (Linux 6.1: mm/failslab.c, mm/page_alloc.c,
//! lib/fault-inject.c).
//!
//! As on Linux, only requests that cannot wait for memory fail, unless one says otherwise: the others do not fail where there is memory. Which
//! ones says `failslab=INTERVAL,PROBABILITY,SPACE,TIMES` on the command line for objects of all of the kernel, `fail_page_alloc=` for pages,
//! and /proc/PID/fail-nth for both of a task.
//!
//! Differs from Linux: there is no debugfs, so that nothing can be changed later, and what is in its directory fail_page_alloc is said on the
//! command line, too; SLOB's caches fail, too.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use mm_core::{FaultAttr, Gfp, Order};
use mm_page_alloc::Machine as _;
use mm_slab::CacheId;

use crate::arch::percpu;
use crate::mm::slab::KMEM;
use crate::mm::{oom, page_alloc};
use crate::{cmdline, pr_info, pr_warn, task};

static FAILSLAB: FaultAttr = FaultAttr::new();
static FAIL_PAGE_ALLOC: FaultAttr = FaultAttr::new();
/// Requests for smaller blocks do not fail.
static MIN_ORDER: AtomicU8 = AtomicU8::new(1);
/// Requests that may wait do not (Linux: `ignore_gfp_reclaim`).
static IGNORE_GFP_WAIT: AtomicBool = AtomicBool::new(true);
/// Nor do those for pages that the kernel need not reach.
static IGNORE_GFP_HIGHMEM: AtomicBool = AtomicBool::new(true);
/// Something is to fail, or was.
static ENABLED: AtomicBool = AtomicBool::new(false);

/// Reads the command line. What is wrong is said, and that word does nothing.
pub fn init() {
    read("failslab", |text| FAILSLAB.setup(text).then(enable));
    read("fail_page_alloc", |text| FAIL_PAGE_ALLOC.setup(text).then(enable));
    read("fail_page_alloc.min-order", |text| {
        let order = text.parse().ok().and_then(Order::new)?;
        MIN_ORDER.store(order.as_u8(), Ordering::Relaxed);
        Some(())
    });
    let truths = [
        ("fail_page_alloc.ignore-gfp-wait", &IGNORE_GFP_WAIT),
        ("fail_page_alloc.ignore-gfp-highmem", &IGNORE_GFP_HIGHMEM),
    ];
    for (name, place) in truths {
        read(name, |text| {
            let holds = match text {
                "Y" => true,
                "N" => false,
                _ => return None,
            };
            place.store(holds, Ordering::Relaxed);
            Some(())
        });
    }
}

fn read(name: &str, f: impl FnOnce(&str) -> Option<()>) {
    if cmdline::value(name, f) == Some(None) {
        pr_warn!("FAULT_INJECTION: failed to parse arguments of {name}=");
    }
}

/// From now on somebody may be meant.
pub fn enable() {
    ENABLED.store(true, Ordering::Relaxed);
}

/// Whether somebody may be.
#[inline(always)]
pub fn is_enabled() -> bool {
    ENABLED.load(Ordering::Relaxed)
}

/// Whether the request for an object is to fail (Linux: the same name).
#[inline]
pub fn should_failslab(cache: CacheId, gfp: Gfp) -> bool {
    is_enabled()
        && !gfp.intersects(Gfp::DIRECT_RECLAIM | Gfp::NOFAIL)
        && should_fail("failslab", &FAILSLAB, KMEM.cache(cache).object_size().into())
}

/// Whether the request for a block of frames is to fail (Linux: the same name).
#[cold]
pub fn should_fail_alloc_page(gfp: Gfp, order: Order) -> bool {
    let ignored = order.as_u8() < MIN_ORDER.load(Ordering::Relaxed)
        || gfp.contains(Gfp::NOFAIL)
        || gfp.contains(Gfp::HIGHMEM) && IGNORE_GFP_HIGHMEM.load(Ordering::Relaxed)
        || gfp.contains(Gfp::DIRECT_RECLAIM) && IGNORE_GFP_WAIT.load(Ordering::Relaxed);
    !ignored && should_fail("fail_page_alloc", &FAIL_PAGE_ALLOC, order.pages())
}

/// Linux: the same name. A task that counts its own requests is asked first. Requests that are to fail silently are told, too: they print nothing
/// themselves, and whoever wants failures wants to know of them.
#[cold]
fn should_fail(name: &str, attr: &FaultAttr, size: u64) -> bool {
    let in_task = percpu::current().is_some_and(|percpu| percpu.hardirq.load(Ordering::Relaxed) == 0);
    let counted = if in_task { task::current().and_then(|task| task.count_to_failure()) } else { None };
    let fails = counted.unwrap_or_else(|| attr.should_fail(size, percent));
    if fails && page_alloc::Kernel.may_report() {
        pr_info!("FAULT_INJECTION: forcing a failure. name {name}, {attr}");
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
