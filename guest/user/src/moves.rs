//! Processes that share pages while the kernel moves the pages about (`shuffle` on its command line): nobody notices.
//!
//! Twice all stop for an audit: entries, counts and reverse mappings must be whole after every page went through several frames.

use core::sync::atomic::Ordering::SeqCst;

use crate::copies::{block_wake_ups, stop};
use crate::memory::{BYTES, PRIVATE, Pages, READ, READ_WRITE, SHARED};
use crate::processes::{ANY, ECHILD, child, wait};
use crate::program::Checks;
use crate::signals::{KILL, suspend};
use crate::sys;

const PAGES: u64 = 24;
const NR_CHILDREN: usize = 4;
const CHILDREN: u64 = NR_CHILDREN as u64;
const ROUNDS: u64 = 30;

/// What processes share: counters of who did how much, and what was found wrong.
struct Count {
    done: Pages,
}

impl Count {
    fn add(&self, word: u64) {
        self.done.word_at(0, word).fetch_add(1, SeqCst);
    }

    fn load(&self, word: u64) -> u64 {
        self.done.word_at(0, word).load(SeqCst)
    }

    fn wait_for(&self, word: u64, value: u64) {
        while self.load(word) < value {
            sys::nanosleep(0, 1_000_000);
        }
    }
}

const READY: u64 = 0;
const WRONG: u64 = 1;
/// Where the children count together.
const SUM: u64 = 2;

/// All of it.
pub fn run(checks: &mut Checks) {
    block_wake_ups();
    family(checks);
    comings_and_goings(checks);
    places(checks);
}

/// A process with copies of some pages, others that it only reads, and shared ones that all write.
fn worker(count: &Count, own: &Pages, read: &Pages, shared: &Pages, me: u64) -> u64 {
    let fail = |holds: bool| {
        if !holds {
            count.add(WRONG);
        }
    };
    for round in 1..=ROUNDS {
        for page in 0..PAGES {
            let word = own.word(page);
            // Each page in its turn gets its first write, so that copies are made all the time.
            if page < round {
                word.store(me << 32 | round << 8 | page, SeqCst);
                own.word_at(page, 511).store(me << 32 | round, SeqCst);
            } else {
                fail(word.load(SeqCst) == 7000 + page);
            }
            fail(read.word(page).load(SeqCst) == 9000 + page);
            shared.word_at(page, me).fetch_add(1, SeqCst);
            shared.word_at(page, 100).fetch_add(1, SeqCst);
        }
        count.add(SUM);
        for page in 0..PAGES.min(round) {
            fail(own.word(page).load(SeqCst) == me << 32 | round << 8 | page);
            fail(own.word_at(page, 511).load(SeqCst) == me << 32 | round);
        }
    }
    count.add(READY);
    loop {
        suspend(0);
    }
}

fn family(checks: &mut Checks) {
    let count = Count { done: Pages::map(1, READ_WRITE, SHARED) };
    let own = Pages::map(PAGES, READ_WRITE, PRIVATE);
    let read = Pages::map(PAGES, READ_WRITE, PRIVATE);
    let shared = Pages::map(PAGES, READ_WRITE, SHARED);
    own.fill(7000);
    read.fill(9000);
    read.protect(READ);
    let mut pids = [0; NR_CHILDREN];
    for (pid, me) in pids.iter_mut().zip(1..) {
        *pid = child(|| worker(&count, &own, &read, &shared, me));
    }
    count.wait_for(READY, CHILDREN);
    stop();
    checks.check("no process read anything but what was written there", count.load(WRONG) == 0);
    checks.check("all wrote all", count.load(SUM) == CHILDREN * ROUNDS);
    let each = (0..PAGES).all(|page| {
        (1..=CHILDREN).all(|me| shared.word_at(page, me).load(SeqCst) == ROUNDS)
            && shared.word_at(page, 100).load(SeqCst) == CHILDREN * ROUNDS
    });
    checks.check("no write to shared memory was lost", each);
    checks.check("the parent's are as they were", own.holds(7000) && read.holds(9000));
    own.fill(7100);
    stop();
    checks.check("and as it writes them", own.holds(7100));
    for pid in pids {
        sys::kill(pid, KILL);
        checks.check("a child ends", wait(pid, 0) == (pid, 9));
    }
    for pages in [own, read, shared, count.done] {
        pages.unmap();
    }
}

/// Processes that begin, write, unmap and end while their pages move.
fn comings_and_goings(checks: &mut Checks) {
    let pages = Pages::map(PAGES, READ_WRITE, PRIVATE);
    for round in 0..24 {
        pages.fill(round << 8);
        for _ in 0..3 {
            child(|| {
                let inherited = pages.holds(round << 8);
                let fresh = Pages::map(8, READ_WRITE, PRIVATE);
                fresh.fill(5);
                let inner = child(|| u64::from(!pages.holds(round << 8) || !fresh.holds(5)));
                pages.fill(1);
                sys::munmap(pages.at(3), 5 * BYTES);
                let kept = fresh.holds(5) && pages.word(2).load(SeqCst) == 3;
                let unmapped = fresh.unmap();
                u64::from(!inherited || !kept || !unmapped || wait(inner, 0) != (inner, 0))
            });
        }
        let mut wrong = 0;
        loop {
            let (pid, status) = wait(ANY, 0);
            if pid == ECHILD {
                break;
            }
            wrong += u64::from(status != 0);
        }
        checks.check("children find and leave what they shall", wrong == 0 && pages.holds(round << 8));
    }
    pages.unmap();
}

/// mremap and mprotect of pages on the move.
fn places(checks: &mut Checks) {
    let mut pages = Pages::map(PAGES, READ_WRITE, PRIVATE);
    pages.fill(60);
    for round in 0..60 {
        let to = Pages::map(PAGES, READ, PRIVATE);
        let moved = sys::call(25, [pages.start, PAGES * BYTES, PAGES * BYTES, 3, to.start, 0]);
        let arrived = moved == to.start;
        pages = Pages { start: to.start, count: PAGES };
        let found = pages.holds(60 + round);
        pages.protect(READ);
        let read = pages.holds(60 + round);
        pages.protect(READ_WRITE);
        pages.fill(61 + round);
        checks.check("pages go with their mapping and keep what is in them", arrived && found && read);
    }
    pages.unmap();
}
