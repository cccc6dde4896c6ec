//! What happens when no zone has enough.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use memvisor_abi::PFN_NONE;
use mm_core::{Gfp, MemMap, Order, Pfn};
use mm_page_alloc::Context;

use super::{Taken, part};
use crate::mm::memmap::Vmemmap;
use crate::mm::page_alloc;
use crate::mm::reclaim::{self, DEFAULT_SEEKS, Shrinker};
use crate::mm::sysctl;
use crate::mm::vmscan::kswapd;
use crate::sched;

/// Frames that the shrinker keeps, linked through their descriptors, and their number.
static KEPT: AtomicU64 = AtomicU64::new(PFN_NONE);
static COUNT: AtomicU64 = AtomicU64::new(0);
/// The frames were used since the shrinker last looked: they get a second chance, as Linux's caches of inodes and entries
/// give it.
static REFERENCED: AtomicBool = AtomicBool::new(true);

/// Frames that the shrinker takes.
const KEEP: u64 = 128;

fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// Frees up to `wanted` frames, none of those that were used, for whoever allocates: kswapd, which runs beside it, would take them first.
fn scan(wanted: u64) -> u64 {
    if kswapd::is_current() {
        return 0;
    }
    if REFERENCED.swap(false, Ordering::Relaxed) {
        return 0;
    }
    let mut freed = 0;
    while freed < wanted
        && let Some(pfn) = pop()
    {
        page_alloc::free_pages(pfn, Order::ZERO);
        freed += 1;
    }
    freed
}

fn push(pfn: Pfn) {
    if let Some(page) = Vmemmap.page(pfn) {
        page.set_next(KEPT.swap(pfn.as_u64(), Ordering::Relaxed));
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
}

fn pop() -> Option<Pfn> {
    let pfn = Pfn::new(KEPT.load(Ordering::Relaxed));
    let page = Vmemmap.page(pfn)?;
    KEPT.store(page.next(), Ordering::Relaxed);
    page.set_next(PFN_NONE);
    COUNT.fetch_sub(1, Ordering::Relaxed);
    Some(pfn)
}

/// Four frames when every zone is down at its min watermark: first with a shrinker that has something to give, though not
/// at once, then with nothing left to try.
pub fn slow_path() -> Result<(), &'static str> {
    let token = sched::task_context();
    let order = Order::covering(4).ok_or("there is no order 2")?;
    let alloc = || page_alloc::alloc_gfp(Context::task(&token), Gfp::KERNEL, order, None);
    for _ in 0..KEEP {
        let pfn = page_alloc::alloc_gfp(Context::task(&token), Gfp::KERNEL, Order::ZERO, None);
        push(pfn.ok_or("too little memory for a shrinker")?);
    }
    if !reclaim::register_shrinker(Shrinker {
        name: "explained",
        count,
        scan,
        seeks: DEFAULT_SEEKS,
        pages: 1,
    }) {
        return Err("there is no room for a shrinker");
    }
    // What takes all frames steals pageblocks, which would raise the marks until kswapd ran: a third matter.
    let boost = sysctl::settings().watermark_boost_factor;
    sysctl::set_watermark_boost_factor(0).map_err(|_| "the boost cannot be turned off")?;
    let mut taken = Taken::new();
    taken.take_all(Gfp::KERNEL, |_| true);
    let served = part(
        c"before: alloc_pages(GFP_KERNEL, 2), a shrinker can help",
        c"after: alloc_pages(GFP_KERNEL, 2), a shrinker can help",
        alloc,
    );
    reclaim::unregister_shrinker("explained");
    taken.take_all(Gfp::KERNEL, |_| true);
    let failed = part(
        c"before: alloc_pages(GFP_KERNEL, 2), nothing can help",
        c"after: alloc_pages(GFP_KERNEL, 2), nothing can help",
        alloc,
    );
    taken.give_back();
    sysctl::set_watermark_boost_factor(boost).map_err(|_| "the boost cannot be turned on again")?;
    while let Some(pfn) = pop() {
        page_alloc::free_pages(pfn, Order::ZERO);
    }
    for pfn in [served, failed].into_iter().flatten() {
        page_alloc::free_pages(pfn, order);
    }
    match (served, failed) {
        (None, _) => Err("the shrinker did not help"),
        (_, Some(_)) => Err("memory did not end"),
        _ => Ok(()),
    }
}
