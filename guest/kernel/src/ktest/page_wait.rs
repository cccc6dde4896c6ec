//! The page lock and the end of writes, among threads that sleep with them.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use mm_core::{Gfp, MemMap, Order, Page, PageFlags, Pfn};

use super::{Failure, Test, check};
use crate::mm::memmap::Vmemmap;
use crate::mm::{page_alloc, page_wait};
use crate::sched;

pub const TESTS: [(&str, Test); 2] = [
    ("the_lock_of_a_page_admits_one_sleeper", the_lock_of_a_page_admits_one_sleeper),
    ("waiters_go_on_when_a_write_has_ended", waiters_go_on_when_a_write_has_ended),
];

const THREADS: usize = 4;
const ROUNDS: u32 = 50;

static FRAME: AtomicU64 = AtomicU64::new(0);
static INSIDE: AtomicU32 = AtomicU32::new(0);
static MOST: AtomicU32 = AtomicU32::new(0);
static EARLY: AtomicU32 = AtomicU32::new(0);

fn page() -> (Pfn, &'static Page) {
    let pfn = Pfn::new(FRAME.load(Ordering::Relaxed));
    (pfn, Vmemmap.page(pfn).expect("a frame that was allocated"))
}

fn with_page(f: impl FnOnce(Pfn, &Page) -> Result<(), Failure>) -> Result<(), Failure> {
    let pfn = page_alloc::alloc_here(Gfp::KERNEL, Order::ZERO, None).ok_or(Failure::Wrong("no memory"))?;
    FRAME.store(pfn.as_u64(), Ordering::Relaxed);
    let (pfn, page) = page();
    let done = f(pfn, page);
    page_alloc::free_pages(pfn, Order::ZERO);
    done
}

/// Runs `entry` in threads and waits for them.
fn in_threads(entry: fn(u64)) -> Result<[sched::Thread; THREADS], Failure> {
    let context = sched::task_context();
    let spawn = |number| sched::spawn("page-wait", entry, number, &context).ok();
    let threads = [0, 1, 2, 3].map(spawn);
    let [Some(a), Some(b), Some(c), Some(d)] = threads else { return Err(Failure::Wrong("no thread")) };
    Ok([a, b, c, d])
}

fn lock_often(_: u64) {
    let ((pfn, page), context) = (page(), sched::task_context());
    for _ in 0..ROUNDS {
        page_wait::lock_page(pfn, page, &context);
        MOST.fetch_max(INSIDE.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        sched::yield_now(&context);
        INSIDE.fetch_sub(1, Ordering::SeqCst);
        page_wait::unlock_page(pfn, page);
    }
}

fn the_lock_of_a_page_admits_one_sleeper() -> Result<(), Failure> {
    with_page(|pfn, page| {
        let context = sched::task_context();
        let threads = in_threads(lock_often)?;
        threads.into_iter().for_each(|thread| thread.join(&context));
        page_wait::wait_on_page_locked(pfn, page, &context);
        check(MOST.load(Ordering::SeqCst) == 1, "two had the page locked")?;
        check(page_wait::trylock_page(page), "the lock stayed closed")?;
        page_wait::unlock_page(pfn, page);
        Ok(())
    })
}

fn wait_for_write(_: u64) {
    let (pfn, page) = page();
    page_wait::wait_on_page_writeback(pfn, page, &sched::task_context());
    EARLY.fetch_add(u32::from(page.has(PageFlags::WRITEBACK)), Ordering::SeqCst);
}

fn waiters_go_on_when_a_write_has_ended() -> Result<(), Failure> {
    with_page(|pfn, page| {
        let context = sched::task_context();
        check(!page_wait::set_page_writeback(page), "a fresh page is being written")?;
        let threads = in_threads(wait_for_write)?;
        (0..ROUNDS).for_each(|_| sched::yield_now(&context));
        page_wait::end_page_writeback(pfn, page);
        threads.into_iter().for_each(|thread| thread.join(&context));
        check(EARLY.load(Ordering::SeqCst) == 0, "a waiter went on before the end")
    })
}
