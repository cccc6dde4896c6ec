//! The thread that makes room in the pool (Linux: `shrink_worker`, `zswap_writeback_entry`).
//!
//! When the pool is full, the pages of the frames that were used longest ago are decompressed into pages of the swap cache and written to
//! their slots, until the pool is below the threshold. A page goes from the pool when it is in such a page, which is dirty until it is written: it is
//! in one of the two all the time.
//!
//! Between runs nothing is in its hands: [`hold`] keeps it there while somebody looks from outside.

use core::sync::atomic::{AtomicBool, Ordering};

use mm_core::{Gfp, MaySleep, MemMap, PageFlags};
use mm_swap::{SwapEntry, SwapInError, delete_from_swap_cache, read_swap_cache_async};
use mm_vma::{Kernel, put_page};
use mm_zswap::Count;

use super::{STATE, take};
use crate::mm::page_wait;
use crate::mm::space::Spaces;
use crate::mm::swap::Plug;
use crate::mm::swap::io::{alloc, write_to_slot};
use crate::sched::{self, WaitQueue};
use crate::sync::Lock;

/// Frames that cannot be emptied before the thread gives up (Linux: `MAX_RECLAIM_RETRIES`).
const MAX_RECLAIM_RETRIES: u32 = 14;
/// Differs from Linux, which has plain `GFP_KERNEL` here: nobody is killed so that a page leaves the pool.
const GFP: Gfp = Gfp::HIGHUSER_MOVABLE.union(Gfp::NORETRY).union(Gfp::NOWARN);

struct Wish {
    exists: bool,
    asked: bool,
    running: bool,
}

static WISH: Lock<Wish> = Lock::new(Wish { exists: false, asked: false, running: false });
/// Where the thread waits for work.
static WORK: WaitQueue = WaitQueue::new();
/// Woken when it ends a run, or may go on with one.
static DONE: WaitQueue = WaitQueue::new();
/// No run begins.
static HELD: AtomicBool = AtomicBool::new(false);

/// Starts the thread; false without memory for it.
pub(super) fn init(context: &MaySleep<'_>) -> bool {
    let exists = core::mem::replace(&mut WISH.lock().exists, true);
    exists || sched::spawn_daemon("zswap-shrink", run, 0, context).is_ok()
}

/// Asks for room. Any context without locks.
pub(super) fn ask() {
    let asked = core::mem::replace(&mut WISH.lock().asked, true);
    if !asked {
        WORK.wake_up_all();
    }
}

/// Lets no run begin, and waits until there is none.
pub fn hold(context: &MaySleep<'_>) {
    HELD.store(true, Ordering::SeqCst);
    DONE.wait_event(context, || !WISH.lock().running);
}

/// Ends [`hold`].
pub fn go_on() {
    HELD.store(false, Ordering::SeqCst);
    DONE.wake_up_all();
}

/// Begins a run, unless runs are held.
fn may_begin() -> bool {
    let mut wish = WISH.lock();
    // Under the lock that [`hold`] takes after it said so.
    wish.running = !HELD.load(Ordering::SeqCst);
    wish.asked &= !wish.running;
    wish.running
}

fn run(_: u64) {
    let context = sched::task_context();
    loop {
        WORK.wait_event(&context, || WISH.lock().asked);
        DONE.wait_event(&context, may_begin);
        shrink();
        WISH.lock().running = false;
        DONE.wake_up_all();
    }
}

/// Linux: `shrink_worker`.
fn shrink() {
    let mut failures = 0;
    while failures < MAX_RECLAIM_RETRIES {
        let oldest = STATE.lock().oldest(&Spaces);
        let Some(slots) = oldest else { return };
        let failed = slots.into_iter().flatten().filter(|slot| !write_back(*slot)).count();
        if failed > 0 {
            STATE.lock().count(Count::ReclaimFail);
            failures += 1;
        }
        if STATE.lock().can_accept() {
            return;
        }
        Kernel::relax(&Spaces);
    }
}

/// Writes the page of a slot to it, so that it is not kept any more; false if it is still kept (Linux: `zswap_writeback_entry`).
fn write_back(slot: SwapEntry) -> bool {
    let put = |pfn| put_page(&Spaces, pfn);
    let found = match read_swap_cache_async(&Spaces, slot, || alloc(GFP), put) {
        Ok(found) => found,
        // Nobody uses it, and with the last user what was kept went, too.
        Err(SwapInError::Gone) => return true,
        Err(SwapInError::NoMemory) => return false,
    };
    let pfn = found.pfn;
    let page = MemMap::page(&Spaces, pfn).filter(|_| found.major);
    // Somebody reads the page, or has read it: it is needed.
    let Some(page) = page else {
        put(pfn);
        return false;
    };
    // Locked, and the slot's in the swap cache: nobody else stores, loads or frees what is kept of it. But since somebody said that it was the
    // oldest, the slot may have been freed, given out again, and written.
    if take(slot, pfn) {
        STATE.lock().count(Count::WrittenBack);
        // Once it is written, it is reclaimed next.
        page.insert(PageFlags::UPTODATE | PageFlags::DIRTY | PageFlags::RECLAIM);
        write_to_slot(pfn, page, slot, &mut Plug::default());
    } else {
        // The slot's users read the device. It was in use when the page became its own.
        let _ = delete_from_swap_cache(&Spaces, pfn, 0);
        page_wait::unlock_page(pfn, page);
    }
    put(pfn);
    true
}
