//! `shuffle` on the command line: a thread that moves the pages of programs about all the time, so that whatever programs do meets a
//! migration on its way. It takes turns:
//!
//! 1. every page goes to some other frame (Linux: what `migrate_pages(2)` does between nodes);
//! 2. all nodes are compacted, as by `vm.compact_memory`;
//! 3. a pageblock of movable pages is emptied by `alloc_contig_range`, and given back.
//!
//! At checkpoints it stands still between two steps. At its end it says how many pages moved.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use memvisor_abi::VmEvent;
use mm_core::{Gfp, MaySleep, MemMap, MigrateMode, Migratetype, PAGEBLOCK_PAGES, PageKind, Pfn};
use mm_page_alloc::{AllocTarget, Context};

use crate::mm::memmap::{self, Vmemmap};
use crate::mm::page_alloc::{self, PAGES};
use crate::mm::pcp;
use crate::sched::{self, WaitQueue};
use crate::{cmdline, println};

/// Pages that must have moved for [`end`] to say so: more than suite rmap's program has at once.
const ENOUGH: u64 = 200;

/// Nanoseconds between two rounds.
const REST: u64 = 1_000_000;

static RUNS: AtomicBool = AtomicBool::new(false);
static ENDS: AtomicBool = AtomicBool::new(false);
/// Somebody wants it to stand still; it does.
static HELD: AtomicBool = AtomicBool::new(false);
static STANDS: AtomicBool = AtomicBool::new(false);
/// Pageblocks that were had in one piece.
static TAKEN: AtomicU64 = AtomicU64::new(0);
/// Woken when the thread stands, or may go on.
static CHANGED: WaitQueue = WaitQueue::new();

/// Starts the thread if the command line asks for it.
pub fn init(context: &MaySleep<'_>) {
    if !cmdline::flag("shuffle") {
        return;
    }
    RUNS.store(true, Ordering::Release);
    if let Err(error) = sched::spawn_daemon("shuffle", run, 0, context) {
        RUNS.store(false, Ordering::Release);
        println!("shuffle: no thread: {error:?}");
    }
}

/// Waits until the thread stands still between two steps. Without a thread it does.
pub fn hold(context: &MaySleep<'_>) {
    if RUNS.load(Ordering::Acquire) {
        HELD.store(true, Ordering::Release);
        CHANGED.wait_event(context, || STANDS.load(Ordering::Acquire) || !RUNS.load(Ordering::Acquire));
    }
}

/// Ends [`hold`].
pub fn go_on() {
    HELD.store(false, Ordering::Release);
    CHANGED.wake_up_all();
}

/// Ends the thread, and says what it did.
pub fn end(context: &MaySleep<'_>) {
    if !RUNS.load(Ordering::Acquire) {
        return;
    }
    ENDS.store(true, Ordering::Release);
    go_on();
    CHANGED.wait_event(context, || !RUNS.load(Ordering::Acquire));
    let events = pcp::sum_events();
    let (moved, stayed) =
        (events[VmEvent::PgmigrateSuccess as usize], events[VmEvent::PgmigrateFail as usize]);
    let taken = TAKEN.load(Ordering::Relaxed);
    println!("shuffle: {moved} pages moved, {stayed} stayed, {taken} pageblocks emptied");
    let verdict = if moved >= ENOUGH { "pages moved" } else { "too few pages moved" };
    println!("shuffle: {verdict} while programs used them");
}

/// The thread.
fn run(_: u64) {
    let context = sched::task_context();
    while !ENDS.load(Ordering::Acquire) {
        move_all(&context);
        for node in 0..u32::try_from(page_alloc::nr_nodes()).unwrap_or(0) {
            stand_if_held(&context);
            PAGES.compact_node(&context, node);
        }
        empty_pageblock(&context);
        // The boot CPU's thread runs only where nobody else wants to.
        let until = sched::clock::now() + REST;
        CHANGED
            .wait_timeout(&context, until, || ENDS.load(Ordering::Acquire) || HELD.load(Ordering::Acquire));
    }
    RUNS.store(false, Ordering::Release);
    CHANGED.wake_up_all();
}

fn stand_if_held(context: &MaySleep<'_>) {
    while HELD.load(Ordering::Acquire) {
        STANDS.store(true, Ordering::Release);
        CHANGED.wake_up_all();
        CHANGED.wait_event(context, || !HELD.load(Ordering::Acquire));
        STANDS.store(false, Ordering::Release);
    }
}

/// Calls `f` for each pageblock that is online; it stops when the thread is to end.
fn for_each_pageblock(mut f: impl FnMut(Pfn, Pfn) -> bool) {
    for section in memmap::sections().iter().filter(|section| section.is_online()) {
        let (mut at, end) = memmap::span(section);
        while at < end {
            let next = at.offset(PAGEBLOCK_PAGES).min(end);
            if ENDS.load(Ordering::Acquire) || !f(at, next) {
                return;
            }
            at = next;
        }
    }
}

/// Moves every page of programs to another frame, 32 at a time.
fn move_all(context: &MaySleep<'_>) {
    let task = Context::task(context);
    for_each_pageblock(|start, end| {
        let mut at = start;
        while at < end {
            stand_if_held(context);
            let mut found = PAGES.isolate_migratepages_range(at, end, MigrateMode::Sync);
            at = found.next;
            if found.pages.len == 0 {
                continue;
            }
            let gfp = Gfp::HIGHUSER_MOVABLE | Gfp::NOWARN;
            let mut targets = AllocTarget { pages: &PAGES, context: task, gfp, node: None };
            PAGES.migrate_pages(&mut found.pages, MigrateMode::Sync, &mut targets);
            PAGES.putback_movable_pages(&mut found.pages);
            sched::yield_now(context);
        }
        true
    });
}

/// Empties the next movable pageblock that has pages of programs, and gives its frames back.
fn empty_pageblock(context: &MaySleep<'_>) {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let last = LAST.swap(0, Ordering::Relaxed);
    let mut found = None;
    for_each_pageblock(|start, end| {
        if start.as_u64() <= last && last != 0 {
            return true;
        }
        let of_type =
            Vmemmap.pageblock(start).is_some_and(|block| block.migratetype() == Migratetype::Movable);
        let has_user = |pfn: Pfn| Vmemmap.page(pfn).is_some_and(|page| page.kind() == PageKind::User);
        let pages = end.as_u64() - start.as_u64();
        if of_type && (0..pages).any(|index| has_user(start.offset(index))) {
            found = Some((start, end));
        }
        found.is_none()
    });
    let Some((start, end)) = found else { return };
    stand_if_held(context);
    LAST.store(start.as_u64(), Ordering::Relaxed);
    if PAGES.alloc_contig_range(Context::task(context), start, end, Migratetype::Movable).is_ok() {
        TAKEN.fetch_add(1, Ordering::Relaxed);
        PAGES.free_contig_range(start, end.as_u64() - start.as_u64());
    }
}
