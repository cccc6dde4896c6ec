//! Waiting for a page: its lock, and the end of its write (Linux: `folio_wait_bit_common`, `folio_unlock`, `folio_end_writeback` in
//! mm/filemap.c).
//!
//! W1  Whoever holds the lock of a page of a file on a disk, or of swap, may sleep meanwhile: it is waited for here, and never by
//!     spinning ([`Page::lock`] is for pages whose holders do not sleep).
//! W2  A bit is cleared before the queue is woken, and looked at after a waiter has entered it: no wake-up is lost.
//! W3  Clearing and waking sleep nowhere and take no lock but the scheduler's: also in the interrupt that ends a request.
//! W4  Whoever waits has a reference of the page, and so does whoever has it locked; a page being written keeps the one that
//!     its writer got until [`end_page_writeback`] returns.
//!
//! Queues are few and shared by pages: a waiter looks at its own page after every wake-up (Linux: `folio_wait_table`).

use mm_core::{MaySleep, Page, PageFlags, Pfn};
use mm_vmscan::{Throttle, folio_rotate_reclaimable};

use crate::mm::space::Spaces;
use crate::mm::vmscan::throttle;
use crate::sched::WaitQueue;

/// Queues (Linux: `PAGE_WAIT_TABLE_BITS` is 8; a queue here has a bit for every task).
const QUEUES: usize = 64;
static TABLE: [WaitQueue; QUEUES] = [const { WaitQueue::new() }; QUEUES];

/// The queue of a page (Linux: `folio_waitqueue`).
#[expect(clippy::cast_possible_truncation, reason = "6 bits are left")]
fn queue(pfn: Pfn) -> &'static WaitQueue {
    // Linux: `GOLDEN_RATIO_64` in hash_long; neighbours are read together and should not meet.
    let hash = pfn.as_u64().wrapping_mul(0x61c8_8646_80b5_83eb) >> (u64::BITS - QUEUES.ilog2());
    &TABLE[hash as usize]
}

/// Locks the page unless it is locked already.
#[inline]
pub fn trylock_page(page: &Page) -> bool {
    page.try_lock()
}

/// Locks the page; sleeps while somebody else has it.
pub fn lock_page(pfn: Pfn, page: &Page, context: &MaySleep<'_>) {
    if !page.try_lock() {
        queue(pfn).wait_event_midway(context, || page.try_lock());
    }
}

/// Opens the page's lock and wakes who waits for it. Also for interrupts: a read that ends unlocks what it filled.
pub fn unlock_page(pfn: Pfn, page: &Page) {
    page.unlock();
    // All of them: waiters for other pages and for the end of writes are in the queue too.
    queue(pfn).wake_up_all();
}

/// Waits until nobody has the page locked; somebody may at once again (Linux: `folio_wait_locked`).
pub fn wait_on_page_locked(pfn: Pfn, page: &Page, context: &MaySleep<'_>) {
    if page.has(PageFlags::LOCKED) {
        queue(pfn).wait_event_midway(context, || !page.has(PageFlags::LOCKED));
    }
}

/// Marks the page, which the caller has locked, as being written; whether it was so before (Linux: `folio_start_writeback` without the
/// mapping's marks and counts, which are the owner's).
pub fn set_page_writeback(page: &Page) -> bool {
    let was = page.has(PageFlags::WRITEBACK);
    page.insert(PageFlags::WRITEBACK);
    was
}

/// The page's write has ended: wakes who waits for it. Also for interrupts. Whoever calls it still has a reference.
pub fn end_page_writeback(pfn: Pfn, page: &Page) {
    // From the moment on that the mark goes the page may be freed.
    if page.take(PageFlags::RECLAIM) {
        folio_rotate_reclaimable(&Spaces, pfn, page);
        throttle::wake(page.node(), Throttle::Writeback);
    }
    let was = page.take(PageFlags::WRITEBACK);
    assert!(was, "BUG: the write of frame {:#x} ended twice", pfn.as_u64());
    queue(pfn).wake_up_all();
}

/// Sleeps until the page is not being written.
pub fn wait_on_page_writeback(pfn: Pfn, page: &Page, context: &MaySleep<'_>) {
    if page.has(PageFlags::WRITEBACK) {
        queue(pfn).wait_event_midway(context, || !page.has(PageFlags::WRITEBACK));
    }
}
