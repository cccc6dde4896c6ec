//! `shuffle` on the command line: a thread that moves the pages of programs about all the time, so that whatever programs do meets a
//! migration on its way. It takes turns:
//!
//! 1. every page goes to some other frame (Linux: what `migrate_pages(2)` does between nodes);
//! 2. all nodes are compacted, as by `vm.compact_memory`;
//! 3. a pageblock that pages were moved to is emptied by `alloc_contig_range`, and given back.
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
use crate::{cmdline, pr_err, pr_info};

/// Pages that must have moved for [`end`] to say so: more than suite rmap's program has at once.
const ENOUGH: u64 = 200;

/// Nanoseconds between two rounds.
const REST: u64 = 1_000_000;

static RUNS: AtomicBool = AtomicBool::new(false);
static ENDS: AtomicBool = AtomicBool::new(false);
/// Somebody wants it to stand still; it does.
static HELD: AtomicBool = AtomicBool::new(false);
static STANDS: AtomicBool = AtomicBool::new(false);
/// Pageblocks with pages of programs that were had in one piece, and how many such pages they had.
static TAKEN: AtomicU64 = AtomicU64::new(0);
static EMPTIED: AtomicU64 = AtomicU64::new(0);
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
        pr_err!("shuffle: no thread: {error:?}");
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
    let emptied = EMPTIED.load(Ordering::Relaxed);
    pr_info!("shuffle: {moved} pages moved, {stayed} stayed, {taken} pageblocks emptied of {emptied} pages");
    if emptied > 0 {
        pr_info!("shuffle: pageblocks were emptied while programs used their pages");
    }
    let verdict = if moved >= ENOUGH { "pages moved" } else { "too few pages moved" };
    pr_info!("shuffle: {verdict} while programs used them");
}

/// The thread.
fn run(_: u64) {
    let context = sched::task_context();
    while !ENDS.load(Ordering::Acquire) {
        move_pages(&context, u64::MAX, None);
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

/// Moves pages of programs to other frames, 32 at a time, until about `limit` were found, but for those in `except`.
fn move_pages(context: &MaySleep<'_>, limit: u64, except: Option<Pfn>) {
    let task = Context::task(context);
    let mut left = limit;
    for_each_pageblock(|start, end| {
        if except == Some(start) {
            return true;
        }
        let mut at = start;
        while at < end && left > 0 {
            stand_if_held(context);
            let mut found = PAGES.isolate_migratepages_range(at, end, MigrateMode::Sync);
            at = found.next;
            if found.pages.len == 0 {
                continue;
            }
            left = left.saturating_sub(found.pages.len as u64);
            let gfp = Gfp::HIGHUSER_MOVABLE | Gfp::NOWARN;
            let mut targets = AllocTarget { pages: &PAGES, context: task, gfp, node: None };
            PAGES.migrate_pages(&mut found.pages, MigrateMode::Sync, &mut targets);
            PAGES.putback_movable_pages(&mut found.pages);
            sched::yield_now(context);
        }
        left > 0
    });
}

/// Pages of programs that are moved into a pageblock before it is emptied.
const GUESTS: u64 = 32;
/// Pageblocks that are tried for one that can be had.
const TRIES: usize = 4;

/// Empties the next movable pageblock that can be had, after pages of programs were moved there, and gives its frames back.
///
/// Where pages of programs are anyway is of no use: allocations take the rests of pageblocks first, which are beside the kernel's image and
/// at the end of memory, and no range with frames that cannot move, or beyond the zone, can be had (as on Linux).
fn empty_pageblock(context: &MaySleep<'_>) {
    for _ in 0..TRIES {
        stand_if_held(context);
        let Some((start, end)) = next_pageblock() else { return };
        if take(context, start, end) {
            invite(context, start, end);
            let pages = pages_of_programs(start, end);
            stand_if_held(context);
            if pages > 0 && take(context, start, end) {
                TAKEN.fetch_add(1, Ordering::Relaxed);
                EMPTIED.fetch_add(pages, Ordering::Relaxed);
                PAGES.free_contig_range(start, end.as_u64() - start.as_u64());
            }
            return;
        }
    }
}

fn take(context: &MaySleep<'_>, start: Pfn, end: Pfn) -> bool {
    PAGES.alloc_contig_range(Context::task(context), start, end, Migratetype::Movable).is_ok()
}

/// The movable pageblock below the one of the last call, at first and after the lowest one the highest: programs get their pages from
/// the highest zone.
fn next_pageblock() -> Option<(Pfn, Pfn)> {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let last = match LAST.load(Ordering::Relaxed) {
        0 => u64::MAX,
        last => last,
    };
    let mut found = None;
    for_each_pageblock(|start, end| {
        let movable =
            Vmemmap.pageblock(start).is_some_and(|block| block.migratetype() == Migratetype::Movable);
        if movable && start.as_u64() < last && end == start.offset(PAGEBLOCK_PAGES) {
            found = Some((start, end));
        }
        start.as_u64() < last
    });
    LAST.store(found.map_or(0, |(start, _)| start.as_u64()), Ordering::Relaxed);
    found
}

/// Gives the frames of a pageblock back, a few first, which the next allocations get: those that pages of programs are moved to.
fn invite(context: &MaySleep<'_>, start: Pfn, end: Pfn) {
    PAGES.free_contig_range(start, GUESTS);
    move_pages(context, GUESTS, Some(start));
    PAGES.free_contig_range(start.offset(GUESTS), end.as_u64() - start.as_u64() - GUESTS);
}

fn pages_of_programs(start: Pfn, end: Pfn) -> u64 {
    let is_one = |pfn: Pfn| Vmemmap.page(pfn).is_some_and(|page| page.kind() == PageKind::User);
    (0..end.as_u64() - start.as_u64()).filter(|&index| is_one(start.offset(index))).count() as u64
}
