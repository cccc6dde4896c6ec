//! everything-at-once: who eats, who writes files, who shares a mapping of one, who swaps, who forks and who sends signals, all at the same
//! time on one machine. Again and again all are stopped for an audit.
//!
//! Workers count what they find wrong, and end with 0 if that is nothing. Only eaters may be killed by the OOM killer.

use core::fmt::Write;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::disks::Disks;
use super::latency::{self, now_ns};
use super::vmstat::Events;
use super::{at, holds_page, is_small, ram, write_page};
use crate::files::{has_pattern, write_pattern};
use crate::memory::{BYTES, PRIVATE, Pages, READ_WRITE, SHARED};
use crate::processes::{ANY, child, wait};
use crate::program::{Checks, free_pages};
use crate::promises::put;
use crate::shared::{close, is_error, open};
use crate::signals::{self, USR1, action};
use crate::sys::{self, Out, call};

const ADJ: &core::ffi::CStr = c"/proc/self/oom_score_adj";
const STOP: u64 = 19;
const CONT: u64 = 18;
const KILLED: u32 = 9;
const UNTRACED: u64 = 2;
const NORESERVE: u64 = 0x4000;

/// Words of the page that all share.
const ENOUGH: u64 = 0;
/// Nobody begins a child: who audits stops workers, and knows nothing of theirs.
const HOLD: u64 = 1;
/// Workers that have a child.
const PARENTS: u64 = 2;
const ROUNDS: u64 = 8;

/// What everybody has.
#[derive(Clone, Copy)]
struct World {
    /// The shared page.
    board: Pages,
    /// Pages of memory.
    ram: u64,
    /// The shared mapping of a file; its start is 0 without a disk.
    file: Pages,
}

impl World {
    fn is_over(&self) -> bool {
        self.board.word_at(0, ENOUGH).load(SeqCst) != 0
    }

    /// Does what begins children and waits for them; not while there is an audit.
    fn with_children(&self, work: impl FnOnce() -> u64) -> u64 {
        let parents = self.board.word_at(0, PARENTS);
        parents.fetch_add(1, SeqCst);
        while self.board.word_at(0, HOLD).load(SeqCst) != 0 {
            parents.fetch_sub(1, SeqCst);
            sys::nanosleep(0, 10_000_000);
            parents.fetch_add(1, SeqCst);
        }
        let result = work();
        parents.fetch_sub(1, SeqCst);
        result
    }

    fn round(&self, worker: u64) {
        self.board.word_at(0, ROUNDS + worker).fetch_add(1, SeqCst);
    }

    fn rounds(&self, worker: u64) -> u64 {
        self.board.word_at(0, ROUNDS + worker).load(SeqCst)
    }
}

/// Name, how many of them, and what one does until it is over; what it found wrong.
type Worker = (&'static str, u64, fn(&World, u64) -> u64);

const WORKERS: [Worker; 7] = [
    ("swapper", 2, swapper),
    ("writer", 2, writer),
    ("sharer", 2, sharer),
    ("forker", 1, forker),
    ("signaller", 1, signaller),
    ("shmem", 1, shmem),
    ("mapper", 1, mapper),
];

/// 60 seconds; a few on a small machine.
pub fn short(checks: &mut Checks) {
    run(checks, if is_small() { 8 } else { 60 });
}

/// 15 minutes.
pub fn long(checks: &mut Checks) {
    run(checks, 15 * 60);
}

fn run(checks: &mut Checks, seconds: u64) {
    let disks = Disks::begin(checks);
    let (ram, before) = (ram(), free_pages());
    let board = Pages::map(1, READ_WRITE, SHARED);
    board.word(0).store(0, SeqCst);
    let file = if disks.mounted { shared_file(checks) } else { Pages { start: 0, count: 0 } };
    let world = World { board, ram, file };
    let since = Events::now();
    let mut pids = [0_u64; 32];
    let mut places = pids.iter_mut();
    for (number, (_, count, work)) in (0_u64..).zip(WORKERS) {
        for which in 0..count {
            let pid = child(|| {
                put(ADJ, b"-500\n");
                work(&world, number << 8 | which)
            });
            if let Some(place) = places.next() {
                *place = pid;
            }
        }
    }
    let began: u64 = WORKERS.iter().map(|(_, count, _)| count).sum();
    let mut eater = child(|| eat(&world));
    let (mut kills, mut audits, mut ended, mut bad) = (0, 0, 0, 0_u64);
    let begin = now_ns();
    let mut next = begin + seconds * 1_000_000_000 / 4;
    let lasted = |times: u64| now_ns() - begin >= times * seconds * 1_000_000_000;
    let was_short = || {
        let now = Events::now();
        now.of("pageoutrun") + now.of("allocstall") > since.of("pageoutrun") + since.of("allocstall")
    };
    let all_got_on = || (0..).zip(WORKERS).all(|(number, _)| world.rounds(number) > 0);
    // On a slow machine all get the time that they need.
    while !lasted(1) || !lasted(20) && !(all_got_on() && was_short() && (kills > 0 || disks.swap.is_some())) {
        sys::nanosleep(0, 50_000_000);
        match wait(ANY, 1) {
            (0, _) => {}
            (who, KILLED) if who == eater => {
                kills += 1;
                eater = child(|| eat(&world));
            }
            (who, status) if who == eater => {
                let _ = writeln!(Out, "everything: the eater ended by itself: {status:#x}");
                bad += 1;
                eater = child(|| eat(&world));
            }
            (who, status) => {
                let name = name_of(&pids, who);
                let _ = writeln!(Out, "everything: {name} {who} ended early: {status:#x}");
                ended += 1;
                bad += 1;
            }
        }
        if now_ns() >= next && audits < 3 {
            next = now_ns() + seconds * 1_000_000_000 / 4;
            audits += 1;
            audit(&world, &pids, eater);
        }
    }
    board.word_at(0, ENOUGH).store(1, SeqCst);
    sys::kill(eater, 9);
    while ended < began + 1 {
        let (who, status) = wait(ANY, 0);
        if is_error(who) {
            break;
        }
        ended += 1;
        if status != 0 && who != eater {
            bad += 1;
            let _ = writeln!(Out, "everything: {} {who} ended with {status:#x}", name_of(&pids, who));
        }
    }
    let now = Events::now();
    for (number, (name, count, _)) in (0_u64..).zip(WORKERS) {
        let _ = write!(
            Out,
            "{}{count} {name} {} rounds",
            if number == 0 { "everything: " } else { ", " },
            world.rounds(number)
        );
        checks.check("every kind of worker got on", world.rounds(number) > 0);
    }
    let _ = writeln!(
        Out,
        "\neverything: RAM {ram} pages, {seconds} s, {kills} eaters killed, {audits} audits under way, {bad} wrong; {} out to swap, {} in, {} stalls",
        now.of("pswpout") - since.of("pswpout"),
        now.of("pswpin") - since.of("pswpin"),
        now.of("allocstall") - since.of("allocstall")
    );
    checks.check("nobody finds anything wrong, and only eaters are killed", bad == 0);
    checks.check("eaters were killed, or swap was large enough", kills > 0 || disks.swap.is_some());
    checks.check("memory was short", was_short());
    if file.start != 0 {
        checks.check("the shared file is unmapped", file.unmap());
        checks.check("and goes", call(87, [at(c"/mnt/shared"), 0, 0, 0, 0, 0]) == 0);
    }
    board.unmap();
    disks.end(checks);
    // The cache is what stays; what is dropped is free.
    let free = free_pages();
    checks.check("memory is free again", free + before / 4 > before);
}

/// What a process is.
fn name_of(pids: &[u64; 32], pid: u64) -> &'static str {
    let names = WORKERS.iter().flat_map(|(name, count, _)| (0..*count).map(move |_| *name));
    pids.iter().zip(names).find(|(known, _)| **known == pid).map_or("process", |(_, name)| name)
}

/// Stops everybody, lets those outside look, and lets all go on.
fn audit(world: &World, pids: &[u64; 32], eater: u64) {
    let hold = world.board.word_at(0, HOLD);
    hold.store(1, SeqCst);
    while world.board.word_at(0, PARENTS).load(SeqCst) != 0 {
        sys::nanosleep(0, 10_000_000);
    }
    let all = || pids.iter().copied().filter(|pid| *pid != 0).chain([eater]);
    for pid in all() {
        sys::kill(pid, STOP);
        // It has stopped, or is being killed, which the next wait tells.
        let mut info = [0_u32; 32];
        sys::waitid(1, pid, &mut info, UNTRACED | 4 | 0x0100_0000);
    }
    sys::pause();
    all().for_each(|pid| {
        sys::kill(pid, CONT);
    });
    hold.store(0, SeqCst);
}

/// Takes memory to the end of it, slowly enough that others get some.
fn eat(world: &World) -> u64 {
    put(ADJ, b"1000\n");
    loop {
        let pages = Pages::map(256, READ_WRITE, PRIVATE | NORESERVE);
        if !pages.is_mapped() {
            return 1;
        }
        (0..256).for_each(|page| sys::store(pages.at(page), page));
        if world.is_over() {
            sys::nanosleep(0, 10_000_000);
        }
    }
}

/// An area of its own, written and looked at in an order that nobody foresees.
fn swapper(world: &World, me: u64) -> u64 {
    let mine = Pages::map(world.ram / 6, READ_WRITE, PRIVATE);
    let (mut wrong, mut state) = (0, me + 1);
    let owner = |page: u64| (me << 8) + page % 256;
    (0..mine.count).for_each(|page| write_page(&mine, page, owner(page)));
    while !world.is_over() {
        for _ in 0..64 {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(me | 1);
            let page = (state >> 33) % mine.count;
            let holds = latency::time(|| holds_page(&mine, page, owner(page)));
            if !holds {
                let has = mine.word(page).load(SeqCst);
                let _ = writeln!(Out, "everything: page {page} of swapper {me} has {has:#x}");
                wrong += 1;
            }
            write_page(&mine, page, owner(page));
        }
        world.round(me >> 8);
    }
    wrong += (0..mine.count).filter(|page| !holds_page(&mine, *page, owner(*page))).count() as u64;
    wrong.min(100)
}

/// Writes files, syncs some, reads them back from the cache and from the disk, and removes them.
fn writer(world: &World, me: u64) -> u64 {
    let path = if me & 1 == 0 { c"/mnt/first" } else { c"/mnt/second" };
    let path = match (world.file.start, me & 1) {
        (0, 0) => c"/dev/shm/first",
        (0, _) => c"/dev/shm/second",
        _ => path,
    };
    let (mut wrong, mut round) = (0, 0);
    while !world.is_over() {
        let (seed, bytes) = ((me << 16) + round % 1000, 200_000 + round % 7 * 90_001);
        let mut expect = |what: &str, holds: bool| {
            if !holds {
                let _ = writeln!(Out, "everything: round {round} of writer {me}, {bytes} bytes: {what}");
                wrong += 1;
            }
        };
        let fd = open(path, 2 | 0o100 | 0o1000);
        expect("not written", !is_error(fd) && write_pattern(fd, seed, bytes));
        expect("not read back", has_pattern(fd, seed, bytes));
        if round % 2 == 0 {
            expect("no fsync", call(74, [fd, 0, 0, 0, 0, 0]) == 0);
            call(221, [fd, 0, 0, 4, 0, 0]);
            expect("not read from the disk", has_pattern(fd, seed, bytes));
        }
        close(fd);
        expect("not removed", call(87, [at(path), 0, 0, 0, 0, 0]) == 0);
        round += 1;
        world.round(me >> 8);
    }
    wrong.min(100)
}

/// A file of 256 pages that all map.
fn shared_file(checks: &mut Checks) -> Pages {
    let fd = open(c"/mnt/shared", 2 | 0o100 | 0o1000);
    let count = 256;
    let made = !is_error(fd) && call(77, [fd, count * BYTES, 0, 0, 0, 0]) == 0;
    let start = call(9, [0, count * BYTES, READ_WRITE, SHARED, fd, 0]);
    checks.check("a file that all map", made && !is_error(start));
    close(fd);
    Pages { start, count }
}

/// Two processes count up words of a shared file: one counts, the other sees no word go back.
fn sharer(world: &World, me: u64) -> u64 {
    let file = if world.file.start == 0 { Pages::map(1, READ_WRITE, SHARED) } else { world.file };
    let (mut wrong, mut turn) = (0, 0_u64);
    let mut seen = [0_u64; 256];
    while !world.is_over() {
        for (page, last) in (0..file.count).zip(&mut seen) {
            let word: &AtomicU64 = file.word_at(page, 5);
            if me & 1 == 0 {
                word.store(turn, SeqCst);
            } else {
                let now = word.load(SeqCst);
                if now < *last {
                    let _ =
                        writeln!(Out, "everything: page {page} of the shared file has {now} after {last}");
                    wrong += 1;
                }
                *last = now;
            }
        }
        turn += 1;
        if turn % 16 == 0 && world.file.start != 0 {
            wrong += u64::from(call(26, [file.start, file.count * BYTES, 4, 0, 0, 0]) != 0);
        }
        world.round(me >> 8);
        sys::sched_yield();
    }
    wrong.min(100)
}

/// Children that see their parent's pages, write their own, and end in several ways.
fn forker(world: &World, me: u64) -> u64 {
    let mine = Pages::map(200, READ_WRITE, PRIVATE);
    (0..mine.count).for_each(|page| write_page(&mine, page, me));
    let (mut wrong, mut round) = (0, 0);
    while !world.is_over() {
        wrong += world.with_children(|| fork_round(&mine, me, round));
        round += 1;
        if round % 8 == 0 {
            wrong += (0..mine.count).filter(|page| !holds_page(&mine, *page, me)).count() as u64;
        }
        world.round(me >> 8);
    }
    wrong.min(100)
}

/// A child that has a child; what they found wrong.
fn fork_round(mine: &Pages, me: u64, round: u64) -> u64 {
    let kid = child(|| {
        put(ADJ, b"-500\n");
        let before = (0..mine.count).filter(|page| !holds_page(mine, *page, me)).count();
        (0..mine.count).step_by(3).for_each(|page| write_page(mine, page, me + 1));
        let after = (0..mine.count).step_by(3).filter(|page| !holds_page(mine, *page, me + 1)).count();
        let inner = child(|| 7);
        let told = wait(inner, 0) == (inner, 7 << 8);
        u64::from(before + after > 0 || !told)
    });
    let told = wait(kid, 0);
    if told != (kid, 0) {
        let _ = writeln!(
            Out,
            "everything: fork {round}: {}, wait4 {}, {:#x}",
            kid.cast_signed(),
            told.0.cast_signed(),
            told.1
        );
    }
    u64::from(told != (kid, 0))
}

static CAUGHT: AtomicU64 = AtomicU64::new(0);

extern "C" fn caught(_: u64, _: *const u64, _: *mut u64) {
    CAUGHT.fetch_add(1, SeqCst);
}

/// Signals to itself, whose handler runs before the call returns, and to a child that ends by one.
fn signaller(world: &World, me: u64) -> u64 {
    action(USR1, caught as *const () as u64, signals::SIGINFO, 0);
    let (mut wrong, mut sent) = (0, 0);
    while !world.is_over() {
        for _ in 0..50 {
            let told = sys::kill(sys::getpid(), USR1);
            sent += 1;
            let caught = CAUGHT.load(SeqCst);
            if caught != sent {
                let _ = writeln!(
                    Out,
                    "everything: {caught} of {sent} signals were handled, kill said {}",
                    told.cast_signed()
                );
                wrong += 1;
            }
        }
        wrong += world.with_children(signal_round);
        world.round(me >> 8);
    }
    wrong.min(100)
}

/// A child that ends by a signal; what was found wrong.
fn signal_round() -> u64 {
    let kid = child(|| {
        loop {
            sys::pause();
        }
    });
    if is_error(kid) {
        let _ = writeln!(Out, "everything: the signaller's fork: {}", kid.cast_signed());
        return 1;
    }
    let sent = sys::kill(kid, 9);
    let told = wait(kid, 0);
    if told != (kid, KILLED) {
        let _ = writeln!(
            Out,
            "everything: kill of {kid}: {}, wait4 {}, {:#x}",
            sent.cast_signed(),
            told.0.cast_signed(),
            told.1
        );
    }
    u64::from(told != (kid, KILLED))
}

/// Files in memory, which go to swap as anonymous pages do.
fn shmem(world: &World, me: u64) -> u64 {
    let (mut wrong, mut round) = (0, 0);
    while !world.is_over() {
        let bytes = 400_000 + round % 5 * 30_000;
        let mut expect = |what: &str, holds: bool| {
            if !holds {
                let _ = writeln!(Out, "everything: round {round} of shared memory, {bytes} bytes: {what}");
                wrong += 1;
            }
        };
        let fd = open(c"/dev/shm/file", 2 | 0o100 | 0o1000);
        expect("not made", !is_error(fd));
        expect("not written", write_pattern(fd, me + round % 100, bytes));
        sys::nanosleep(0, 20_000_000);
        expect("not read back", has_pattern(fd, me + round % 100, bytes));
        close(fd);
        expect("not removed", call(87, [at(c"/dev/shm/file"), 0, 0, 0, 0, 0]) == 0);
        round += 1;
        world.round(me >> 8);
    }
    wrong.min(100)
}

/// Areas come, move, lose pages and go.
fn mapper(world: &World, me: u64) -> u64 {
    let (mut wrong, mut round) = (0, 0);
    while !world.is_over() {
        let count = 16 + round % 48;
        let area = Pages::map(count, READ_WRITE, PRIVATE);
        (0..count).for_each(|page| write_page(&area, page, me));
        sys::madvise(area.at(count / 4), count / 4 * BYTES, 4);
        let start = sys::mremap(area.start, count * BYTES, 2 * count * BYTES, 1);
        let moved = Pages { start, count: 2 * count };
        wrong += u64::from(!moved.is_mapped());
        if moved.is_mapped() {
            let gone = count / 4..count / 4 * 2;
            let holds = |page: &u64| {
                if gone.contains(page) {
                    moved.word(*page).load(SeqCst) == 0
                } else {
                    holds_page(&moved, *page, me)
                }
            };
            wrong += (0..count).filter(|page| !holds(page)).count() as u64;
            wrong += (count..2 * count).filter(|page| moved.word(*page).load(SeqCst) != 0).count() as u64;
            sys::munmap(moved.at(count / 2), BYTES);
            moved.unmap();
        }
        round += 1;
        world.round(me >> 8);
    }
    wrong.min(100)
}
