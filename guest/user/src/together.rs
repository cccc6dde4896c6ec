//! Threads that change an address space under each other, and processes that end at any moment: what was taken away is gone for
//! every CPU when the call returns, and nothing is left of who ended.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use crate::copies::stop;
use crate::memory::{BYTES, PRIVATE, Pages, READ, READ_WRITE, SHARED};
use crate::processes::{ANY, MAX_THREADS, child, join, thread, wait};
use crate::program::Checks;
use crate::signals::{KILL, NODEFER, SEGV, SIGINFO, action, suspend};
use crate::sys;

/// Where threads work: start and pages.
static START: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);
/// The number of the latest contents; threads may see it or later ones, and zero.
static EPOCH: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);
/// Faults that the handler passed over.
static PASSED: AtomicU64 = AtomicU64::new(0);
static STARTED: AtomicU64 = AtomicU64::new(0);
/// Words that threads wrote, by thread.
static WROTE: [AtomicU64; MAX_THREADS] = [const { AtomicU64::new(0) }; MAX_THREADS];

const RIP: usize = 5 + 16;

/// Goes on behind the two bytes of a load or store.
extern "C" fn pass_over(_: u64, _: *const u64, context: *mut u64) {
    PASSED.fetch_add(1, SeqCst);
    // SAFETY: the kernel's context: 38 words.
    let context = unsafe { core::slice::from_raw_parts_mut(context, 38) };
    context[RIP] += 2;
}

fn pages() -> Pages {
    Pages { start: START.load(SeqCst), count: COUNT.load(SeqCst) }
}

/// Threads that the machine's CPUs give something to do: one more than there are, up to 6.
fn nr_threads() -> usize {
    let mut mask = [0_u64; 4];
    sys::sched_getaffinity(0, &mut mask);
    let cpus = mask.iter().map(|word| word.count_ones()).sum::<u32>();
    usize::try_from(cpus).unwrap_or(1).clamp(1, 5) + 1
}

/// Passes time. Not by the CPU's pause, which software CPUs make a switch of.
fn busy(turns: u64) {
    (0..turns).for_each(|turn| {
        core::hint::black_box(turn);
    });
}

/// Rounds, fewer where the threads share one CPU and every round is a switch.
const fn rounds(threads: usize) -> u64 {
    if threads <= 2 { 8 } else { 12 }
}

/// Lets the other threads get on: those on this CPU if they have no other.
fn wait_a_while(threads: usize) {
    if threads > 2 {
        busy(2000);
    }
    sys::sched_yield();
}

/// After a refusal: the next try need not come at once, and whoever changes the mappings gets on.
fn rest() {
    busy(500);
}

/// Begins threads on pages of their own, calls `f`, and ends them.
fn beside(area: Pages, threads: usize, work: extern "C" fn(u64) -> !, f: impl FnOnce()) {
    START.store(area.start, SeqCst);
    COUNT.store(area.count, SeqCst);
    STOP.store(false, SeqCst);
    STARTED.store(0, SeqCst);
    for number in 0..threads {
        thread(number, work);
    }
    while STARTED.load(SeqCst) < threads as u64 {
        sys::sched_yield();
    }
    f();
    STOP.store(true, SeqCst);
    (0..threads).for_each(join);
}

/// All of it.
pub fn run(checks: &mut Checks) {
    action(SEGV, pass_over as *const () as u64, SIGINFO | NODEFER, 0);
    let threads = nr_threads();
    protect(checks, threads);
    replace(checks, threads);
    fork_beside_writers(checks, threads);
    own_mappings(checks, threads);
    first_touches(checks, threads);
    ends(checks, threads);
    parents(checks, threads);
    action(SEGV, 0, 0, 0);
}

/// Writes its number again and again, whether it may or not.
extern "C" fn write_on(number: u64) -> ! {
    STARTED.fetch_add(1, SeqCst);
    let area = pages();
    let mut turn = 0_u64;
    while !STOP.load(SeqCst) {
        turn += 1;
        let refused = PASSED.load(SeqCst);
        sys::store(area.at(turn % area.count) + 8 * number, turn);
        if PASSED.load(SeqCst) != refused {
            rest();
        }
        WROTE[usize::try_from(number).unwrap_or(0) % MAX_THREADS].store(turn, SeqCst);
    }
    sys::exit(0)
}

/// Waits for the others before it goes on without them: a host with fewer CPUs runs them when it likes.
const TRIES: u32 = 5000;

/// After mprotect nobody writes any more, though all try.
fn protect(checks: &mut Checks, threads: usize) {
    let area = Pages::map(4, READ_WRITE, PRIVATE);
    let (mut changed, mut writes) = (0, 0);
    beside(area, threads, write_on, || {
        for _ in 0..rounds(threads) {
            area.protect(READ);
            let words = || -> [u64; 4 * MAX_THREADS] {
                core::array::from_fn(|n| {
                    area.word_at(n as u64 / MAX_THREADS as u64, n as u64 % MAX_THREADS as u64).load(SeqCst)
                })
            };
            let before = words();
            // Long enough for every other thread to try.
            let tried = PASSED.load(SeqCst);
            for _ in 0..TRIES {
                if PASSED.load(SeqCst) > tried + 4 {
                    break;
                }
                wait_a_while(threads);
            }
            changed += u64::from(words() != before);
            area.protect(READ_WRITE);
            let from = WROTE[0].load(SeqCst);
            for _ in 0..TRIES {
                if WROTE[0].load(SeqCst) > from + 4 {
                    break;
                }
                wait_a_while(threads);
            }
            writes += u64::from(WROTE[0].load(SeqCst) > from);
        }
    });
    checks.check("no write comes after mprotect has taken the right", changed == 0);
    checks.check("threads did write in between, and were refused", writes > 0 && PASSED.load(SeqCst) > 0);
    area.unmap();
}

/// Reads and compares with what may be there.
extern "C" fn read_on(_: u64) -> ! {
    STARTED.fetch_add(1, SeqCst);
    let area = pages();
    let mut turn = 0_u64;
    while !STOP.load(SeqCst) {
        turn += 1;
        let least = EPOCH.load(SeqCst);
        // All ones where nothing was mapped.
        let value = sys::load(area.at(turn % area.count), u64::MAX);
        if value == u64::MAX {
            rest();
        } else if value != 0 && value < least {
            WRONG.fetch_add(1, SeqCst);
        }
    }
    sys::exit(0)
}

/// Once pages were replaced, nobody sees the old ones.
fn replace(checks: &mut Checks, threads: usize) {
    let area = Pages::map(4, READ_WRITE, PRIVATE);
    WRONG.store(0, SeqCst);
    EPOCH.store(0, SeqCst);
    let mut fresh = true;
    beside(area, threads, read_on, || {
        for epoch in 1..=rounds(threads) {
            if epoch.is_multiple_of(3) {
                fresh &= area.unmap();
            } else if epoch % 3 == 1 {
                fresh &= sys::madvise(area.start, area.count * BYTES, 4) == 0;
            }
            fresh &= area.replace();
            // From here on what earlier rounds wrote is gone.
            EPOCH.store(epoch, SeqCst);
            for page in 0..area.count {
                fresh &= area.word(page).load(SeqCst) == 0;
                area.word(page).store(epoch, SeqCst);
            }
            wait_a_while(threads);
        }
    });
    checks.check("what replaces is fresh", fresh);
    checks.check("no thread reads a page of the past", WRONG.load(SeqCst) == 0);
    area.unmap();
}

/// A child's memory is that of one moment, though the parent's threads write all the time.
fn fork_beside_writers(checks: &mut Checks, threads: usize) {
    let area = Pages::map(4, READ_WRITE, PRIVATE);
    let mut still = true;
    beside(area, threads, write_on, || {
        for _ in 0..4 {
            let pid = child(|| {
                let sum =
                    || (0..4 * 8).map(|n| area.word_at(n / 8, n % 8).load(SeqCst)).fold(0, u64::wrapping_add);
                let before = sum();
                (0..10).for_each(|_| wait_a_while(threads));
                u64::from(sum() != before)
            });
            still &= wait(pid, 0) == (pid, 0);
        }
    });
    checks.check("the parent's writes do not reach a child after the fork", still);
    area.unmap();
}

/// Maps, writes, looks and unmaps for itself.
extern "C" fn map_on(number: u64) -> ! {
    STARTED.fetch_add(1, SeqCst);
    for round in 0..16 {
        let mine = Pages::map(1 + (number + round) % 5, READ_WRITE, PRIVATE);
        mine.fill(number << 16 | round);
        let grown = sys::call(25, [mine.start, mine.count * BYTES, 8 * BYTES, 1, 0, 0]);
        let mine = Pages { start: grown, count: mine.count };
        if !mine.holds(number << 16 | round) {
            WRONG.fetch_add(1, SeqCst);
        }
        let all = Pages { start: grown, count: 8 };
        if round.is_multiple_of(4) {
            all.protect(READ);
        }
        if !all.unmap() {
            WRONG.fetch_add(1, SeqCst);
        }
    }
    sys::exit(0)
}

/// Threads with mappings of their own do not meet.
fn own_mappings(checks: &mut Checks, threads: usize) {
    WRONG.store(0, SeqCst);
    beside(Pages::map(1, READ, PRIVATE), threads, map_on, || {});
    checks.check("threads map and unmap beside each other", WRONG.load(SeqCst) == 0);
}

/// Adds to each page's word, with all others at once.
extern "C" fn add_on(_: u64) -> ! {
    STARTED.fetch_add(1, SeqCst);
    while STARTED.load(SeqCst) < COUNT.load(SeqCst) {
        core::hint::spin_loop();
    }
    let area = Pages { start: START.load(SeqCst), count: 64 };
    for page in 0..area.count {
        area.word(page).fetch_add(1, SeqCst);
    }
    sys::exit(0)
}

/// Several threads fault the same pages in: one frame comes of it, and nobody's write is lost.
fn first_touches(checks: &mut Checks, threads: usize) {
    for kind in [PRIVATE, SHARED, PRIVATE] {
        let area = Pages::map(64, READ_WRITE, kind);
        // COUNT is the number of threads that begin together.
        beside(Pages { start: area.start, count: threads as u64 }, threads, add_on, || {});
        let all = (0..64).all(|page| area.word(page).load(SeqCst) == threads as u64);
        checks.check("first touches of several threads meet in one frame", all);
        area.unmap();
    }
}

/// Works until somebody ends the process.
extern "C" fn churn(number: u64) -> ! {
    STARTED.fetch_add(1, SeqCst);
    let mut round = number;
    loop {
        round += 1;
        let mine = Pages::map(1 + round % 7, READ_WRITE, PRIVATE);
        mine.fill(round);
        if round.is_multiple_of(3) {
            mine.protect(READ);
        }
        mine.unmap();
    }
}

/// What a process does that somebody ends: threads at work, and perhaps an end of its own.
fn doomed(threads: usize, how: u64) -> u64 {
    for number in 0..threads {
        thread(number, churn);
    }
    while STARTED.load(SeqCst) == 0 {
        sys::sched_yield();
    }
    // A different moment each time.
    for _ in 0..how * 7 % 23 {
        sys::sched_yield();
    }
    match how % 4 {
        0 => 40 + how % 16,
        1 => {
            action(SEGV, 0, 0, 0);
            sys::trap(sys::Trap::Read(8));
            99
        }
        2 => {
            // The others go on, until somebody ends them.
            sys::exit(0)
        }
        _ => loop {
            suspend(0);
        },
    }
}

/// Processes with threads at work end at any moment, by themselves, by a fault and by SIGKILL.
fn ends(checks: &mut Checks, threads: usize) {
    let before = crate::program::free_pages();
    let mut right = true;
    for how in 0..12 {
        STARTED.store(0, SeqCst);
        let pid = child(|| doomed(threads, how));
        sys::nanosleep(0, 1_000_000 + how * 300_000);
        let wanted = match how % 4 {
            0 => u32::try_from(40 + how % 16).unwrap_or(0) << 8,
            1 => 11,
            _ => {
                sys::kill(pid, KILL);
                9
            }
        };
        let (who, status) = wait(pid, 0);
        right &= who == pid && status & !0x80 == wanted;
    }
    checks.check("a process ends as it shall, whatever its threads do", right);
    // Several at once, so that their ends meet on all CPUs.
    for round in 0..4 {
        let mut pids = [0; 4];
        for (how, pid) in pids.iter_mut().enumerate() {
            STARTED.store(0, SeqCst);
            *pid = child(|| doomed(2, 4 * round + 3 * (how as u64 & 1)));
        }
        if round == 1 {
            alive(threads);
        }
        for pid in pids {
            sys::kill(pid, KILL);
        }
        for _ in pids {
            wait(ANY, 0);
        }
    }
    // What waits for a flush, or to come back from the lists of up to 8 CPUs, is less than what the 28 processes had.
    const WAITS: u64 = 768;
    let after = crate::program::free_pages();
    checks.check("and leaves nothing behind", before == 0 || after + WAITS > before);
}

/// Children of one parent each that is at work beside others.
const CHILDREN: u64 = 60;

/// Several parents kill and reap children at the same time: the kernel's stack of each child is given back by whoever comes first.
fn parents(checks: &mut Checks, threads: usize) {
    let reap = || {
        let killed = |round: &u64| {
            let pid = child(|| {
                loop {
                    sys::getpid();
                }
            });
            busy(round * 331 % 2003);
            sys::kill(pid, KILL);
            wait(pid, 0) == (pid, 9)
        };
        CHILDREN - (0..CHILDREN).filter(killed).count() as u64
    };
    let mut right = true;
    let pids: [u64; MAX_THREADS] =
        core::array::from_fn(|number| if number < threads { child(reap) } else { 0 });
    for _ in pids.iter().filter(|pid| **pid != 0) {
        let (who, status) = wait(ANY, 0);
        right &= pids.contains(&who) && status == 0;
    }
    checks.check("who is killed in the middle of its work ends by that, whoever else is reaped", right);
}

/// A process whose threads sleep, for an audit of an address space that several tasks share.
fn alive(threads: usize) {
    extern "C" fn sleep(_: u64) -> ! {
        STARTED.fetch_add(1, SeqCst);
        loop {
            suspend(0);
        }
    }
    // Those at work elsewhere end first: nothing moves during an audit.
    sys::kill(u64::MAX, KILL);
    while wait(ANY, 0).0 < 1 << 20 {}
    STARTED.store(0, SeqCst);
    let pid = child(|| {
        for number in 0..threads.min(4) {
            thread(number, sleep);
        }
        loop {
            suspend(0);
        }
    });
    sys::nanosleep(0, 50_000_000);
    stop();
    sys::kill(pid, KILL);
    wait(pid, 0);
}
