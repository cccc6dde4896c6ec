//! Futexes, clocks, limits, random bytes.

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use crate::processes::{self, EINVAL, child, join, thread};
use crate::program::{Checks, EFAULT};
use crate::sys::{self, call};

const EAGAIN: u64 = 11_u64.wrapping_neg();
const ENOSYS: u64 = 38_u64.wrapping_neg();
const ETIMEDOUT: u64 = 110_u64.wrapping_neg();
const WAIT: u64 = 128;
const WAKE: u64 = 129;
const CMP_REQUEUE: u64 = 132;
const WAKE_OP: u64 = 133;
const SECOND: u64 = 1_000_000_000;

static WORDS: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
static READY: AtomicU32 = AtomicU32::new(0);
static WOKEN: AtomicU32 = AtomicU32::new(0);
/// A lock: 0 is free, 1 is taken, 2 has waiters.
static MUTEX: AtomicU32 = AtomicU32::new(0);
static HELD: AtomicU32 = AtomicU32::new(0);

fn word(index: usize) -> u64 {
    WORDS[index].as_ptr() as u64
}

fn wait(word: &AtomicU32, value: u32) -> u64 {
    call(202, [word.as_ptr() as u64, WAIT, u64::from(value), 0, 0, 0])
}

fn wake(word: &AtomicU32, count: u64) -> u64 {
    call(202, [word.as_ptr() as u64, WAKE, count, 0, 0, 0])
}

/// All of them.
pub fn run(checks: &mut Checks) {
    errors(checks);
    waiters(checks);
    mutex(checks);
    robust(checks);
    clocks(checks);
    limits(checks);
}

fn errors(checks: &mut Checks) {
    let time = [0, 20_000_000_u64];
    let timed = |value: u64| call(202, [word(0), WAIT, value, time.as_ptr() as u64, 0, 0]);
    checks.check("another value is EAGAIN", timed(1) == EAGAIN);
    checks.check("a wait ends with its time", timed(0) == ETIMEDOUT);
    let bad = [0, SECOND];
    checks.check("a bad time is EINVAL", call(202, [word(0), WAIT, 0, bad.as_ptr() as u64, 0, 0]) == EINVAL);
    checks.check("an odd address is EINVAL", call(202, [word(0) + 1, WAIT, 0, 0, 0, 0]) == EINVAL);
    checks.check("an address of nothing is EFAULT", call(202, [0x1000, WAIT, 0, 0, 0, 0]) == EFAULT);
    checks.check("without bits it is EINVAL", call(202, [word(0), 138, 1, 0, 0, 0]) == EINVAL);
    checks.check("priority inheritance is not there", call(202, [word(0), 6, 0, 0, 0, 0]) == ENOSYS);
    checks.check("nobody waits", wake(&WORDS[0], 9) == 0);
}

extern "C" fn wait_once(_: u64) -> ! {
    READY.fetch_add(1, SeqCst);
    while WORDS[0].load(SeqCst) == 0 {
        if wait(&WORDS[0], 0) == 0 {
            WOKEN.fetch_add(1, SeqCst);
            break;
        }
    }
    sys::exit(0)
}

/// Lets others run until `f` holds.
fn until(mut f: impl FnMut() -> bool) {
    while !f() {
        sys::sched_yield();
    }
}

fn waiters(checks: &mut Checks) {
    for number in 0..3 {
        thread(number, wait_once);
    }
    until(|| READY.load(SeqCst) == 3);
    // They sleep soon. One is woken, one moved, and one stays.
    until(|| wake(&WORDS[0], 1) == 1);
    until(|| WOKEN.load(SeqCst) == 1);
    until(|| call(202, [word(0), CMP_REQUEUE, 0, 1, word(1), 0]) == 1);
    checks.check("another value moves nobody", call(202, [word(0), CMP_REQUEUE, 0, 1, word(1), 5]) == EAGAIN);
    checks.check("who was moved wakes there", wake(&WORDS[1], 9) == 1);
    until(|| WOKEN.load(SeqCst) == 2);
    // FUTEX_OP_ADD 3, wake if the second was 0: what is left wakes by the first word, and the second is 3.
    let op = 1 << 28 | 3 << 12;
    until(|| {
        WORDS[1].store(0, SeqCst);
        call(202, [word(0), WAKE_OP, 1, 1, word(1), op]) == 1
    });
    (0..3).for_each(join);
    checks.check("FUTEX_WAKE_OP changes the second word", WORDS[1].load(SeqCst) == 3);
}

fn lock() {
    if MUTEX.compare_exchange(0, 1, SeqCst, SeqCst).is_err() {
        while MUTEX.swap(2, SeqCst) != 0 {
            wait(&MUTEX, 2);
        }
    }
}

fn unlock() {
    if MUTEX.swap(0, SeqCst) == 2 {
        wake(&MUTEX, 1);
    }
}

extern "C" fn add(_: u64) -> ! {
    for _ in 0..200 {
        lock();
        let held = HELD.load(SeqCst);
        if held.is_multiple_of(16) {
            sys::sched_yield();
        }
        HELD.store(held + 1, SeqCst);
        unlock();
    }
    sys::exit(0)
}

fn mutex(checks: &mut Checks) {
    for number in 0..4 {
        thread(number, add);
    }
    (0..4).for_each(join);
    checks.check("a lock of futexes keeps others out", HELD.load(SeqCst) == 800 && MUTEX.load(SeqCst) == 0);
}

/// Head of a list with one lock in it, which lies 8 bytes behind its node.
static ROBUST: [core::sync::atomic::AtomicU64; 5] = [const { core::sync::atomic::AtomicU64::new(0) }; 5];

extern "C" fn die_with_lock(_: u64) -> ! {
    let at = |index: usize| ROBUST[index].as_ptr() as u64;
    ROBUST[0].store(at(3), SeqCst);
    ROBUST[1].store(8, SeqCst);
    ROBUST[3].store(at(0), SeqCst);
    ROBUST[4].store(sys::gettid(), SeqCst);
    call(273, [at(0), 24, 0, 0, 0, 0]);
    sys::exit(0)
}

fn robust(checks: &mut Checks) {
    thread(0, die_with_lock);
    join(0);
    checks.check("a lock says that its owner died", ROBUST[4].load(SeqCst) == 0x4000_0000);
    checks.check("a list's head has one size", call(273, [0, 16, 0, 0, 0, 0]) == EINVAL);
}

/// What a clock says, in nanoseconds, or its error.
pub fn clock(id: u64) -> u64 {
    let mut time = [0_u64; 2];
    let result = call(228, [id, time.as_mut_ptr() as u64, 0, 0, 0, 0]);
    if result == 0 && time[1] < SECOND { time[0] * SECOND + time[1] } else { result }
}

fn clocks(checks: &mut Checks) {
    let before = clock(1);
    sys::nanosleep(0, 30_000_000);
    let passed = clock(1).wrapping_sub(before);
    checks.check("nanosleep sleeps that long at least", (30_000_000..20 * SECOND).contains(&passed));
    // A tick comes every 10 ms: one after the other they would all end at one, 10 ms apart but for the first.
    sys::nanosleep(0, 100_000);
    // A slow machine gets many tries.
    let one_is_short = |sleep: &mut dyn FnMut()| {
        (0..2000).any(|_| {
            let before = clock(1);
            sleep();
            (100_000..8_000_000).contains(&clock(1).wrapping_sub(before))
        })
    };
    let short = one_is_short(&mut || sys::nanosleep(0, 100_000));
    checks.check("a short sleep does not wait for a tick", short);
    let limit = [0_u64, 100_000];
    let short = one_is_short(&mut || {
        call(271, [0, 0, limit.as_ptr() as u64, 0, 0, 0]);
    });
    checks.check("nor does the limit of ppoll", short);
    polled(checks);
    let year_2024 = 1_704_067_200 * SECOND;
    checks.check("it is later than 2024", clock(0) > year_2024 && clock(0) < 3 * year_2024);
    checks.check("a process has used some time", clock(2) > 0 && clock(2) >= clock(3) - clock(3).min(1));
    checks.check("there is no clock 10", clock(10) == EINVAL);
    let moment = {
        let end = clock(1) + 20_000_000;
        [end / SECOND, end % SECOND]
    };
    let result = call(230, [1, 1, moment.as_ptr() as u64, 0, 0, 0]);
    checks.check("clock_nanosleep until a moment", result == 0 && clock(1) >= moment[0] * SECOND + moment[1]);
    let mut seconds = 0_u64;
    let result = call(201, [&raw mut seconds as u64, 0, 0, 0, 0, 0]);
    checks.check("time", result == seconds && seconds.abs_diff(clock(0) / SECOND) <= 1);
}

/// A byte goes to a child and back, which both wait for it by poll without a limit: if nobody woke them, they would hang.
fn polled(checks: &mut Checks) {
    const IN: u64 = 1 << 32;
    const HUP: u64 = 0x10 << 48;
    let (there, back) = (sys::pipe(), sys::pipe());
    let wait_for = |fd: u64| {
        let mut entry = fd | IN;
        let found = call(7, [&raw mut entry as u64, 1, u64::MAX, 0, 0, 0]);
        if found == 1 { entry & 0xffff << 48 } else { 0 }
    };
    let mut byte = 0_u8;
    let pid = child(|| {
        sys::close(there[1]);
        let mut rounds = 0;
        // Until nobody writes any more.
        while wait_for(there[0]) == IN << 16 {
            call(0, [there[0], &raw mut byte as u64, 1, 0, 0, 0]);
            call(1, [back[1], &raw const byte as u64, 1, 0, 0, 0]);
            rounds += 1;
        }
        if wait_for(there[0]) == HUP { rounds } else { 99 }
    });
    let told = (0..20).filter(|_| {
        call(1, [there[1], &raw const byte as u64, 1, 0, 0, 0]);
        let told = wait_for(back[0]) == IN << 16;
        call(0, [back[0], &raw mut byte as u64, 1, 0, 0, 0]);
        told
    });
    checks.check("poll is woken by the other end of a pipe", told.count() == 20);
    [there[1], there[0], back[0], back[1]].into_iter().for_each(sys::close);
    checks.check("and by its end", processes::wait(pid, 0) == (pid, 20 << 8));
}

fn limits(checks: &mut Checks) {
    const NOFILE: u64 = 7;
    let (mut old, new) = ([0_u64; 2], [100_u64, 200]);
    let prlimit = |new: u64, old: u64| call(302, [0, NOFILE, new, old, 0, 0]);
    checks.check(
        "limits of descriptors are Linux's",
        prlimit(0, old.as_mut_ptr() as u64) == 0 && old == [1024, 4096],
    );
    checks.check("and can be changed", prlimit(new.as_ptr() as u64, 0) == 0);
    checks.check("which tells the old", prlimit(old.as_ptr() as u64, 0) == 0);
    let wrong = [200_u64, 100];
    checks.check("a soft limit above the hard one is EINVAL", prlimit(wrong.as_ptr() as u64, 0) == EINVAL);
    checks.check("there is no resource 16", call(302, [0, 16, 0, 0, 0, 0]) == EINVAL);
    let mut bytes = [[0_u64; 4]; 2];
    for half in &mut bytes {
        call(318, [half.as_mut_ptr() as u64, 32, 0, 0, 0, 0]);
    }
    checks.check("random bytes differ", bytes[0] != bytes[1] && bytes[0] != [0; 4]);
    checks.check(
        "getrandom checks its flags",
        call(318, [bytes.as_mut_ptr() as u64, 32, 8, 0, 0, 0]) == EINVAL,
    );
    let mut usage = [0_u64; 18];
    let result = call(98, [0, usage.as_mut_ptr() as u64, 0, 0, 0, 0]);
    checks.check("getrusage counts faults", result == 0 && usage[8] > 10);
    let mut info = [0_u64; 14];
    let result = call(99, [info.as_mut_ptr() as u64, 0, 0, 0, 0, 0]);
    checks.check("sysinfo knows the memory", result == 0 && info[4] > 8 << 20 && info[5] < info[4]);
}
