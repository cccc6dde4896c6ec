//! Requests for memory fail on purpose, one after the other (/proc/self/fail-nth): each call ends as if nothing had happened or says ENOMEM, and
//! nothing of it is left. Only requests that cannot wait fail, unless the kernel's command line says that all do; then every call may say ENOMEM.

mod disk;

use core::ffi::CStr;
use core::fmt::Write;

use crate::memory::{PRIVATE, Pages, READ_WRITE, SHARED};
use crate::pressure::disks::Disks;
use crate::processes::{child, join, thread, wait};
use crate::program::Checks;
use crate::shared::{close, is_error, open, pread, pwrite};
use crate::signals::{USR1, action};
use crate::sys::{self, Out, call};

const ENOMEM: u64 = 12_u64.wrapping_neg();
const EAGAIN: u64 = 11_u64.wrapping_neg();
/// Of a call whose write to the program's memory failed for want of it: Linux says that, too.
const EFAULT: u64 = 14_u64.wrapping_neg();
/// On the kernel's command line: requests that may wait fail, too.
const ALL_FAIL: &[u8] = b"fail_page_alloc.ignore-gfp-wait=N";
/// What a file of /proc is opened with, to read and write it.
const RDWR: u64 = 2;
const CREATE: u64 = 0o100 | RDWR;
/// No call asks more often than this.
const MOST: u64 = 10_000;
/// Times that everything is done where requests fail at random.
const ROUNDS: usize = 50;

/// A call: its name and what it does, which gives 0, or what the first call that failed gave. It leaves nothing behind.
struct Call {
    name: &'static str,
    run: fn() -> u64,
    /// It may be ENOMEM: as on Linux, where the request could not wait either.
    may_fail: bool,
}

const fn call_of(name: &'static str, run: fn() -> u64) -> Call {
    Call { name, run, may_fail: true }
}

/// A call that waits for memory where it is not to be had at once.
const fn waits(name: &'static str, run: fn() -> u64) -> Call {
    Call { name, run, may_fail: false }
}

const CALLS: &[Call] = &[
    waits("fork", fork),
    waits("a thread", a_thread),
    waits("vfork", vfork),
    waits("execve", execve),
    waits("mmap", private),
    waits("mmap of shared memory", shared),
    waits("mprotect", protect),
    waits("mremap", moved),
    waits("madvise", advise),
    waits("mlock", lock),
    waits("brk", heap),
    waits("a call that writes to memory nobody has touched", told),
    waits("memfd_create", memfd),
    waits("shmget", shm),
    waits("pipe", pipe),
    waits("open", file),
    waits("mkdir", directory),
    waits("/proc/self/maps", || read_all(c"/proc/self/maps")),
    waits("/proc/self/status", || read_all(c"/proc/self/status")),
    waits("/proc/vmstat", || read_all(c"/proc/vmstat")),
    waits("getdents64", || read_directory(c"/proc")),
    waits("kill of a group", kill_group),
    waits("getpriority of a group", priority),
    waits("dup", duplicate),
    waits("poll", poll),
    // The record of a signal of real time cannot wait; Linux: EAGAIN.
    call_of("sigqueue", queue),
    waits("nanosleep", || {
        sys::nanosleep(0, 1000);
        0
    }),
];

fn error(result: u64) -> u64 {
    if is_error(result) { result } else { 0 }
}

fn ended(pid: u64) -> u64 {
    if is_error(pid) {
        return pid;
    }
    if wait(pid, 0) == (pid, 0) { 0 } else { 1 }
}

fn fork() -> u64 {
    ended(child(|| 0))
}

extern "C" fn ends(_: u64) -> ! {
    sys::exit(0)
}

fn a_thread() -> u64 {
    let started = thread(0, ends);
    if !is_error(started) {
        join(0);
    }
    error(started)
}

fn vfork() -> u64 {
    let mut word = 0;
    let pid = sys::vfork_store(&raw mut word, 7, 0);
    if is_error(pid) { pid } else { ended(pid) }
}

fn execve() -> u64 {
    ended(child(crate::arguments::exec_self))
}

/// Unmaps what a call gave; 0 or its error.
fn with_pages(pages: &Pages, f: impl FnOnce() -> u64) -> u64 {
    if !pages.is_mapped() {
        return ENOMEM;
    }
    let result = f();
    if pages.unmap() { result } else { 2 }
}

fn touched(pages: &Pages) -> u64 {
    pages.fill(5);
    u64::from(!pages.holds(5))
}

fn private() -> u64 {
    let pages = Pages::map(40, READ_WRITE, PRIVATE);
    with_pages(&pages, || touched(&pages))
}

fn shared() -> u64 {
    let pages = Pages::map(40, READ_WRITE, SHARED);
    with_pages(&pages, || touched(&pages))
}

fn protect() -> u64 {
    let pages = Pages::map(9, READ_WRITE, PRIVATE);
    with_pages(&pages, || {
        let first = touched(&pages);
        let middle = sys::mprotect(pages.start + 3 * 4096, 4096, 1);
        let back = sys::mprotect(pages.start + 3 * 4096, 4096, READ_WRITE);
        first | error(middle) | error(back) | u64::from(!pages.holds(5))
    })
}

fn moved() -> u64 {
    let at = sys::mmap(0, 4 * 4096, READ_WRITE, 0x22, u64::MAX);
    if is_error(at) {
        return at;
    }
    sys::store(at, 77);
    let to = sys::mremap(at, 4 * 4096, 64 * 4096, 1);
    if is_error(to) {
        sys::munmap(at, 4 * 4096);
        return to;
    }
    let kept = sys::load(to, 0) == 77;
    sys::munmap(to, 64 * 4096) | u64::from(!kept)
}

fn advise() -> u64 {
    let pages = Pages::map(9, READ_WRITE, PRIVATE);
    with_pages(&pages, || {
        let first = touched(&pages);
        // DONTFORK splits the area, DOFORK and DONTNEED follow.
        let middle = |advice| error(sys::madvise(pages.start + 3 * 4096, 4096, advice));
        first | middle(10) | middle(11) | middle(4)
    })
}

fn lock() -> u64 {
    let pages = Pages::map(9, READ_WRITE, PRIVATE);
    with_pages(&pages, || {
        // Linux: `__mlock_posix_error_return`.
        let locked = match sys::mlock(pages.start + 4096, 3 * 4096) {
            EAGAIN => ENOMEM,
            locked => locked,
        };
        error(locked) | error(sys::munlock(pages.start, 9 * 4096))
    })
}

fn heap() -> u64 {
    let start = sys::brk(0);
    let grown = sys::brk(start + 64 * 4096);
    if grown != start + 64 * 4096 {
        return ENOMEM;
    }
    sys::store(start + 63 * 4096, 3);
    u64::from(sys::brk(start) != start)
}

/// uname into a page that is not there yet, of an area that had none: the kernel takes the fault.
fn told() -> u64 {
    let pages = Pages::map(2, READ_WRITE, PRIVATE);
    with_pages(&pages, || error(call(63, [pages.start, 0, 0, 0, 0, 0])))
}

fn memfd() -> u64 {
    let fd = call(319, [c"m".as_ptr() as u64, 0, 0, 0, 0, 0]);
    if is_error(fd) {
        return fd;
    }
    let sized = call(77, [fd, 16 * 4096, 0, 0, 0, 0]);
    let at = sys::mmap(0, 16 * 4096, READ_WRITE, 1, fd);
    close(fd);
    if is_error(at) {
        return at;
    }
    if sized == 0 {
        sys::store(at + 9 * 4096, 1);
    }
    error(sized) | sys::munmap(at, 16 * 4096)
}

fn shm() -> u64 {
    let id = call(29, [0, 8 * 4096, 0o1600, 0, 0, 0]);
    if is_error(id) {
        return id;
    }
    let at = call(30, [id, 0, 0, 0, 0, 0]);
    if !is_error(at) {
        sys::store(at + 4096, 9);
        call(67, [at, 0, 0, 0, 0, 0]);
    }
    error(at) | call(31, [id, 0, 0, 0, 0, 0])
}

fn pipe() -> u64 {
    let mut ends = [0_u32; 2];
    let made = call(293, [ends.as_mut_ptr() as u64, 0, 0, 0, 0, 0]);
    if is_error(made) {
        return made;
    }
    let mut bytes = [7_u8; 5000];
    let written = call(1, [ends[1].into(), bytes.as_ptr() as u64, 5000, 0, 0, 0]);
    let got = if is_error(written) {
        0
    } else {
        call(0, [ends[0].into(), bytes.as_mut_ptr() as u64, 5000, 0, 0, 0])
    };
    ends.iter().for_each(|&end| _ = close(end.into()));
    error(written) | error(got)
}

fn file() -> u64 {
    let path = c"/dev/shm/a";
    let fd = open(path, CREATE);
    if is_error(fd) {
        return fd;
    }
    let written = pwrite(fd, b"text", 5 * 4096);
    close(fd);
    error(written) | call(87, [path.as_ptr() as u64, 0, 0, 0, 0, 0])
}

fn directory() -> u64 {
    let path = c"/dev/shm/d";
    let made = call(83, [path.as_ptr() as u64, 0o755, 0, 0, 0, 0]);
    if is_error(made) {
        return made;
    }
    call(84, [path.as_ptr() as u64, 0, 0, 0, 0, 0])
}

fn read_all(path: &CStr) -> u64 {
    let fd = open(path, 0);
    if is_error(fd) {
        return fd;
    }
    let mut bytes = [0_u8; 1024];
    let mut at = 0;
    let result = loop {
        match pread(fd, &mut bytes, at) {
            0 => break 0,
            got if is_error(got) => break got,
            got => at += got,
        }
    };
    close(fd);
    result
}

fn read_directory(path: &CStr) -> u64 {
    let fd = open(path, 0);
    if is_error(fd) {
        return fd;
    }
    let mut bytes = [0_u64; 128];
    let result = loop {
        match call(217, [fd, bytes.as_mut_ptr() as u64, 1024, 0, 0, 0]) {
            0 => break 0,
            got if is_error(got) => break got,
            _ => {}
        }
    };
    close(fd);
    result
}

fn kill_group() -> u64 {
    sys::kill(0, USR1)
}

fn priority() -> u64 {
    let got = call(140, [1, 0, 0, 0, 0, 0]);
    error(got)
}

fn duplicate() -> u64 {
    // Beyond the table's length, so that it grows.
    let fd = call(33, [1, 200, 0, 0, 0, 0]);
    if !is_error(fd) {
        close(fd);
    }
    error(fd)
}

fn poll() -> u64 {
    let mut entries = [[1_u64 | 4 << 32; 1]; 16];
    error(call(7, [entries.as_mut_ptr() as u64, 16, 0, 0, 0, 0]))
}

fn queue() -> u64 {
    // SIGRTMIN with a value, blocked, so that the record is kept; then taken.
    let set = 1_u64 << 33;
    let mask = |how: u64, set: u64| call(14, [how, &raw const set as u64, 0, 8, 0, 0]);
    mask(0, set);
    let mut info = [0_u64; 16];
    info[0] = 34;
    info[1] = u64::from((-1_i32).cast_unsigned());
    let sent = call(129, [sys::getpid(), 34, info.as_ptr() as u64, 0, 0, 0]);
    let zero = [0_u64; 2];
    call(128, [&raw const set as u64, 0, zero.as_ptr() as u64, 8, 0, 0]);
    mask(1, set);
    if sent == EAGAIN { ENOMEM } else { error(sent) }
}

/// Every request of each call in turn, and everything again for whatever the kernel's command line lets fail.
pub fn run(checks: &mut Checks) {
    let disks = Disks::begin(checks);
    action(USR1, 1, 0, 0);
    let all_fail = command_line_has(ALL_FAIL);
    let files = if disks.mounted { disk::FILES } else { &[] };
    let swap = if disks.swap.is_some() { disk::SWAP } else { &[] };
    let calls = || CALLS.iter().chain(files).chain(swap);
    let fd = open(c"/proc/self/fail-nth", RDWR);
    checks.check("/proc/self/fail-nth", !is_error(fd));
    let failed: u64 = calls().map(|call| each_fails(checks, fd, call, all_fail)).sum();
    checks.check("requests failed", failed >= 10);
    for _ in 0..ROUNDS {
        for call in calls() {
            let result = (call.run)();
            checks.check(call.name, result == 0 || call.may_fail && result == ENOMEM);
        }
    }
    close(fd);
    action(USR1, 0, 0, 0);
    disks.end(checks);
}

/// Lets each request of a call fail once; how many there are.
fn each_fails(checks: &mut Checks, fd: u64, call: &Call, all_fail: bool) -> u64 {
    let (mut failed, mut errors) = (0, 0);
    for nth in 1..=MOST {
        let (result, has_failed) = with_failure(fd, nth, call.run);
        let refused = result == ENOMEM || all_fail && result == EFAULT;
        let right = result == 0 || refused && (call.may_fail || all_fail);
        if !right {
            let name = call.name;
            let _ = writeln!(Out, "failslab: {name}: request {nth} failed: {}", result.cast_signed());
        }
        checks.check(call.name, right);
        if !has_failed {
            break;
        }
        failed += 1;
        errors += u64::from(refused);
    }
    let _ = writeln!(Out, "failslab: {}: {failed} requests failed, {errors} times it was ENOMEM", call.name);
    failed
}

fn command_line_has(word: &[u8]) -> bool {
    let mut line = [0_u8; 512];
    let fd = open(c"/proc/cmdline", 0);
    pread(fd, &mut line, 0);
    close(fd);
    line.split(|byte| byte.is_ascii_whitespace()).any(|found| found == word)
}

/// Calls `f` with request number `nth` failing: what it gave, and whether a request failed.
fn with_failure(fd: u64, nth: u64, f: fn() -> u64) -> (u64, bool) {
    let mut text = [b'0'; 5];
    for (place, digit) in text.iter_mut().rev().enumerate() {
        *digit += (nth / 10_u64.pow(u32::try_from(place).unwrap_or(0)) % 10).to_le_bytes()[0];
    }
    pwrite(fd, &text, 0);
    let result = f();
    let mut left = [0_u8; 8];
    let got = pread(fd, &mut left, 0);
    pwrite(fd, b"0", 0);
    (result, got == 2 && left[0] == b'0')
}
