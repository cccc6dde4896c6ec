//! Allocations where nothing may sleep.

use core::sync::atomic::{AtomicU64, Ordering};

use memvisor_abi::PFN_NONE;
use mm_core::{Gfp, Order, Pfn};
use mm_page_alloc::Context;

use super::{Taken, part};
use crate::mm::page_alloc;
use crate::{sched, smp};

/// What the last handler got.
static GOT: AtomicU64 = AtomicU64::new(PFN_NONE);

fn alloc_in_handler(gfp: Gfp) {
    // A handler shows no right to sleep; the scheduler agrees.
    let token = sched::might_sleep();
    let context = token.as_ref().map_or(Context::ATOMIC, Context::task);
    let pfn = page_alloc::alloc_gfp(context, gfp, Order::ZERO, None);
    GOT.store(pfn.map_or(PFN_NONE, Pfn::as_u64), Ordering::Relaxed);
}

fn atomic() {
    alloc_in_handler(Gfp::ATOMIC);
}

fn nowait() {
    alloc_in_handler(Gfp::NOWAIT | Gfp::NOWARN);
}

fn kernel() {
    alloc_in_handler(Gfp::KERNEL | Gfp::NOWARN);
}

/// Runs an allocation in the handler of an interrupt that this CPU sends itself.
fn interrupted(handler: fn()) -> Option<Option<Pfn>> {
    GOT.store(PFN_NONE, Ordering::Relaxed);
    let came = smp::call_in_interrupt(handler);
    let got = GOT.swap(PFN_NONE, Ordering::Relaxed);
    came.then_some((got != PFN_NONE).then_some(Pfn::new(got)))
}

/// The same handler four times: with memory to spare; with flags that may sleep; and when every zone is down at its min
/// watermark, without and with the right to the reserve.
pub fn atomic_in_interrupt() -> Result<(), &'static str> {
    const NONE_CAME: &str = "interrupts are off";
    let first = part(c"before: GFP_ATOMIC in an interrupt", c"after: GFP_ATOMIC in an interrupt", || {
        interrupted(atomic)
    });
    let wrong = part(c"before: GFP_KERNEL in an interrupt", c"after: GFP_KERNEL in an interrupt", || {
        interrupted(kernel)
    });
    let mut taken = Taken::new();
    taken.take_all(Gfp::NOWAIT, |_| true);
    let refused = part(
        c"before: GFP_NOWAIT in an interrupt, memory low",
        c"after: GFP_NOWAIT in an interrupt, memory low",
        || interrupted(nowait),
    );
    let reserve = part(
        c"before: GFP_ATOMIC in an interrupt, memory low",
        c"after: GFP_ATOMIC in an interrupt, memory low",
        || interrupted(atomic),
    );
    taken.give_back();
    for pfn in [first, wrong, refused, reserve].into_iter().flatten().flatten() {
        page_alloc::free_pages(pfn, Order::ZERO);
    }
    match (first, wrong, refused, reserve) {
        (None, ..) | (_, None, ..) | (_, _, None, _) | (_, _, _, None) => Err(NONE_CAME),
        (Some(None), ..) => Err("no frame is free"),
        (_, Some(Some(_)), ..) => Err("a request that may sleep was served in an interrupt"),
        (_, _, _, Some(None)) => Err("its zones have no reserve"),
        _ => Ok(()),
    }
}
