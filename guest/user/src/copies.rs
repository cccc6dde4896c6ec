//! Copy on write in trees of processes: everybody sees what was there at the fork and what it wrote itself, and nothing else.
//!
//! Twice all processes stop and the kernel has everything audited: while pages are shared by all, and after everybody wrote.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::memory::{PRIVATE, Pages, READ, READ_WRITE, SHARED};
use crate::processes::{ANY, ECHILD, child, wait};
use crate::program::Checks;
use crate::signals::{KILL, SIGINFO, USR1, action, bit, mask, suspend};
use crate::sys;

/// Pages that are written before the first fork, by the fork's child, and never but read.
const PAGES: u64 = 12;
/// Children of each process, and generations below the first.
const WIDTH: u64 = 2;
const DEPTH: u64 = 3;
/// Processes below the first: 2 + 4 + 8.
const PROCESSES: u64 = 14;

/// Memory that all processes of a tree share: who they are, how far they are, and what they found wrong.
struct Board(Pages);

impl Board {
    fn new() -> Board {
        Board(Pages::map(1, READ_WRITE, SHARED))
    }

    fn arrived(&self) -> &'static AtomicU64 {
        self.0.word_at(0, 0)
    }

    fn wrong(&self) -> &'static AtomicU64 {
        self.0.word_at(0, 1)
    }

    fn go(&self) -> &'static AtomicU64 {
        self.0.word_at(0, 2)
    }

    fn pid(&self, index: u64) -> &'static AtomicU64 {
        self.0.word_at(0, 16 + index)
    }

    /// Enters this process; its number, from 1.
    fn enter(&self) -> u64 {
        let number = self.arrived().fetch_add(1, SeqCst) + 1;
        self.pid(number).store(sys::getpid(), SeqCst);
        number
    }

    fn check(&self, holds: bool) {
        if !holds {
            self.wrong().fetch_add(1, SeqCst);
        }
    }

    fn wait_for(&self, word: &AtomicU64, value: u64) {
        while word.load(SeqCst) < value {
            sys::nanosleep(0, 1_000_000);
        }
    }

    /// Sleeps until [`Board::release`] says so; a signal that comes before the sleep ends it, too.
    fn wait_for_release(&self, step: u64) {
        while self.go().load(SeqCst) < step {
            suspend(0);
        }
    }

    /// Lets everybody who entered go on.
    fn release(&self, step: u64) {
        self.go().store(step, SeqCst);
        for number in 1..=self.arrived().load(SeqCst) {
            sys::kill(self.pid(number).load(SeqCst), USR1);
        }
    }

    /// Ends all processes that entered.
    fn kill_all(&self) {
        for number in 1..=self.arrived().load(SeqCst) {
            sys::kill(self.pid(number).load(SeqCst), KILL);
        }
        while wait(ANY, 0).0 != ECHILD {}
    }
}

/// Lets the kernel look at everything; everybody else sleeps. Only the first process is asked to go on.
pub fn stop() {
    if sys::getpid() == 1 {
        // Those who said that they are about to sleep do so.
        sys::nanosleep(0, 50_000_000);
        sys::pause();
    }
}

extern "C" fn nothing(_: u64, _: *const u64, _: *mut u64) {}

/// SIGUSR1 waits until somebody sleeps for it.
pub fn block_wake_ups() {
    action(USR1, nothing as *const () as u64, SIGINFO, 0);
    mask(0, bit(USR1));
}

/// All of it.
pub fn run(checks: &mut Checks) {
    block_wake_ups();
    tree(checks);
    last_one_keeps(checks);
    read_only_stays(checks);
    generations(checks);
    discards(checks);
}

/// What a process of the tree sees: `path` is the numbers of its ancestors below the first and its own, four bits each.
fn node(board: &Board, pages: &Pages, depth: u64, path: u64) -> u64 {
    let number = board.enter();
    // Pages 0..4 are the first process's, 4..8 each ancestor overwrites, 8..12 nobody ever wrote.
    board.check((0..4).all(|page| pages.word(page).load(SeqCst) == 1000 + page));
    board.check((4..8).all(|page| pages.word_at(page, 1).load(SeqCst) == path >> 4));
    board.check((8..PAGES).all(|page| pages.word(page).load(SeqCst) == 0));
    for page in 4..8 {
        pages.word_at(page, 1).store(path, SeqCst);
    }
    if depth < DEPTH {
        for index in 1..=WIDTH {
            child(|| node(board, pages, depth + 1, path << 4 | index));
        }
    }
    // All live, nobody wrote to the first pages or those of zeroes: they are one frame each.
    board.word_ready().fetch_add(1, SeqCst);
    board.wait_for_release(1);
    pages.word(number % 4).store(number, SeqCst);
    pages.word(8 + number % 4).store(number, SeqCst);
    board.wrong_unless_alone(pages, number, path);
    board.word_done().fetch_add(1, SeqCst);
    board.wait_for_release(2);
    // Everybody wrote by now.
    board.wrong_unless_alone(pages, number, path);
    board.word_done().fetch_add(1, SeqCst);
    loop {
        sys::pause();
    }
}

impl Board {
    fn word_ready(&self) -> &'static AtomicU64 {
        self.0.word_at(0, 4)
    }

    fn word_done(&self) -> &'static AtomicU64 {
        self.0.word_at(0, 3)
    }

    /// A process sees its own writes, and else what was there at its fork.
    fn wrong_unless_alone(&self, pages: &Pages, number: u64, path: u64) {
        for page in 0..4 {
            let first = if page == number % 4 { number } else { 1000 + page };
            let zero = if page == number % 4 { number } else { 0 };
            self.check(pages.word(page).load(SeqCst) == first);
            self.check(pages.word(8 + page).load(SeqCst) == zero);
            self.check(pages.word_at(4 + page, 1).load(SeqCst) == path);
        }
    }
}

fn tree(checks: &mut Checks) {
    let (board, pages) = (Board::new(), Pages::map(PAGES, READ_WRITE, PRIVATE));
    for page in 0..4 {
        pages.word(page).store(1000 + page, SeqCst);
    }
    for page in 4..8 {
        pages.word_at(page, 1).store(0, SeqCst);
    }
    let zero = (8..PAGES).all(|page| pages.word(page).load(SeqCst) == 0);
    checks.check("what nobody wrote is zero", zero);
    for index in 1..=WIDTH {
        child(|| node(&board, &pages, 1, index));
    }
    board.wait_for(board.word_ready(), PROCESSES);
    stop();
    board.release(1);
    board.wait_for(board.word_done(), PROCESSES);
    board.release(2);
    board.wait_for(board.word_done(), 2 * PROCESSES);
    checks.check(
        "everybody saw what was there at the fork, and its own writes only",
        board.wrong().load(SeqCst) == 0,
    );
    checks.check(
        "the first process saw nothing of it",
        (0..4).all(|page| pages.word(page).load(SeqCst) == 1000 + page),
    );
    stop();
    board.kill_all();
    let untouched = (4..8).all(|page| pages.word_at(page, 1).load(SeqCst) == 0)
        && (8..PAGES).all(|page| pages.word(page).load(SeqCst) == 0);
    checks.check("nor when they have gone", untouched);
    pages.unmap();
    board.0.unmap();
}

/// The last one that has a page writes to it without a copy: the frame's contents stay where they are, and nothing leaks.
fn last_one_keeps(checks: &mut Checks) {
    let pages = Pages::map(PAGES, READ_WRITE, PRIVATE);
    pages.fill(10);
    for round in 0..8 {
        let pid = child(|| u64::from(!pages.holds(10 + round)));
        checks.check("a child reads what the parent wrote last", wait(pid, 0) == (pid, 0));
        pages.fill(11 + round);
    }
    checks.check("the parent wrote last", pages.holds(18));
    pages.unmap();
}

/// A write to a page that both may only read ends the writer, whoever it is, and changes nothing.
fn read_only_stays(checks: &mut Checks) {
    let pages = Pages::map(2, READ_WRITE, PRIVATE);
    pages.fill(3);
    pages.protect(READ);
    let pid = child(|| {
        pages.word(0).store(4, SeqCst);
        0
    });
    checks.check("a child cannot write to what its parent may only read", wait(pid, 0).1 & 0x7f == 11);
    let pid = child(|| {
        pages.protect(READ_WRITE);
        pages.fill(5);
        u64::from(!pages.holds(5))
    });
    checks.check("with the right of its own it writes to a copy", wait(pid, 0) == (pid, 0));
    checks.check("the parent's is as it was", pages.holds(3));
    pages.unmap();
}

/// A line of descendants, each of which writes before it forks, and whose parent ends first.
fn generations(checks: &mut Checks) {
    const LINE: u64 = 12;
    let (board, pages) = (Board::new(), Pages::map(4, READ_WRITE, PRIVATE));
    fn descend(board: &Board, pages: &Pages, left: u64) -> u64 {
        board.check(pages.holds(left + 1));
        pages.fill(left);
        if left > 0 {
            child(|| descend(board, pages, left - 1));
        }
        board.arrived().fetch_add(1, SeqCst);
        0
    }
    pages.fill(LINE + 1);
    child(|| descend(&board, &pages, LINE));
    board.wait_for(board.arrived(), LINE + 1);
    while wait(ANY, 0).0 != ECHILD {}
    checks.check("each generation finds what the one before wrote", board.wrong().load(SeqCst) == 0);
    checks.check("and the first what it wrote", pages.holds(LINE + 1));
    pages.unmap();
    board.0.unmap();
}

/// What one side gives back or replaces, the other keeps.
fn discards(checks: &mut Checks) {
    let pages = Pages::map(4, READ_WRITE, PRIVATE);
    pages.fill(8);
    let pid = child(|| {
        sys::madvise(pages.start, 4 * crate::memory::BYTES, 4);
        let zero = (0..4).all(|page| pages.word(page).load(SeqCst) == 0);
        let replaced = pages.replace() && pages.word(0).load(SeqCst) == 0;
        u64::from(!zero || !replaced || !pages.unmap())
    });
    checks.check("a child gives its pages back", wait(pid, 0) == (pid, 0));
    checks.check("the parent has them still", pages.holds(8));
    let pid = child(|| {
        // The parent gives them back first.
        while sys::getpgid(0) != sys::getpid() {
            sys::nanosleep(0, 1_000_000);
        }
        u64::from(!pages.holds(8))
    });
    pages.unmap();
    sys::setpgid(pid, pid);
    checks.check("a child keeps what its parent unmapped", wait(pid, 0) == (pid, 0));
}
