//! What the kernel promises (vm.overcommit_memory), what it keeps (vm.min_free_kbytes), and how many processes there can be.

use core::ffi::CStr;
use core::fmt::Write;

use crate::eaters::lock_program;
use crate::memory::{BYTES, NONE, PRIVATE, Pages, READ, READ_WRITE, SHARED};
use crate::proc::number;
use crate::processes::{ANY, child, wait};
use crate::program::{Checks, free_pages};
use crate::shared::{close, is_error, mount, open, unmount};
use crate::sys::{self, Out, call};

const ENOMEM: u64 = 12_u64.wrapping_neg();
const EINVAL: u64 = 22_u64.wrapping_neg();
const EAGAIN: u64 = 11_u64.wrapping_neg();
const NORESERVE: u64 = 0x4000;
const MODE: &CStr = c"/proc/sys/vm/overcommit_memory";
const THREADS: &CStr = c"/proc/sys/kernel/threads-max";
const RATIO: &CStr = c"/proc/sys/vm/overcommit_ratio";

/// Writes to a file of /proc.
pub fn put(path: &CStr, text: &[u8]) -> u64 {
    let fd = open(path, 1);
    let wrote = call(1, [fd, text.as_ptr() as u64, text.len() as u64, 0, 0, 0]);
    close(fd);
    wrote
}

fn meminfo(name: &[u8]) -> u64 {
    number(c"/proc/meminfo", name) / (BYTES / 1024)
}

fn committed() -> u64 {
    meminfo(b"Committed_AS:")
}

/// overcommit: the three modes, and that every call counts what it takes and gives back.
pub fn overcommit(checks: &mut Checks) {
    mount(checks);
    let (total, begin) = (meminfo(b"MemTotal:"), committed());
    counts(checks);
    checks.check("mode 0 refuses what could never be there", map(total * 2) == ENOMEM);
    let some = Pages::map(total / 4 * 3, READ_WRITE, PRIVATE);
    let more = Pages::map(total / 4 * 3, READ_WRITE, PRIVATE);
    checks.check("mode 0 promises more than there is, bit by bit", some.is_mapped() && more.is_mapped());
    checks.check("what was mapped is given back", some.unmap() && more.unmap() && committed() == begin);
    checks.check("mode 1 is set", put(MODE, b"1\n") == 2);
    let huge = Pages::map(total * 8, READ_WRITE, PRIVATE);
    checks.check("mode 1 promises anything", huge.is_mapped() && huge.unmap());
    checks.check("a mode that there is not is EINVAL", put(MODE, b"3") == EINVAL);
    checks.check("the ratio is set", put(RATIO, b"60\n") == 3 && put(MODE, b"2\n") == 2);
    never(checks, total);
    checks.check("all is as before", put(MODE, b"0\n") == 2 && put(RATIO, b"50\n") == 3);
    let end = committed();
    checks.check("nothing stays promised", end == begin);
    let _ =
        writeln!(Out, "overcommit: {begin} pages promised before, {end} afterwards, {total} pages of memory");
    unmount(checks);
}

fn map(pages: u64) -> u64 {
    Pages::map(pages, READ_WRITE, PRIVATE).start
}

/// What each call counts, in pages.
fn counts(checks: &mut Checks) {
    const N: u64 = 100;
    let begin = committed();
    let mut check = |what: &str, pages: u64| {
        let now = committed();
        if now != begin + pages {
            let _ = writeln!(Out, "overcommit: {what}: {now} pages, {begin} before");
        }
        checks.check(what, now == begin + pages);
    };
    let area = Pages::map(N, READ, PRIVATE);
    check("what is only read is not counted", 0);
    area.protect(READ_WRITE);
    check("mprotect counts what may be written", N);
    sys::mprotect(area.at(10), 20 * BYTES, READ);
    check("what loses the right before it has a page is not counted any more", N - 20);
    area.protect(READ_WRITE);
    sys::store(area.at(0), 1);
    area.protect(NONE);
    check("what has pages stays counted", N);
    let grown = sys::mremap(area.start, N * BYTES, 2 * N * BYTES, 1);
    check("mremap counts what is new", 2 * N);
    sys::munmap(grown, N * BYTES);
    check("munmap ends a promise", N);
    sys::munmap(grown + N * BYTES, N * BYTES);
    check("all of it", 0);
    let free = sys::mmap(0, N * BYTES, READ_WRITE, PRIVATE | 0x20 | NORESERVE, u64::MAX);
    check("MAP_NORESERVE is not counted", 0);
    sys::munmap(free, N * BYTES);
    let shared = Pages::map(N, READ_WRITE, SHARED);
    check("shared memory is counted when it is made", N);
    shared.unmap();
    check("and given back", 0);
    let heap = sys::brk(0);
    sys::brk(heap + N * BYTES);
    check("brk counts", N);
    let pipe = sys::pipe();
    let kid = child(|| {
        // It has what its parent has, once more.
        sys::read_raw(pipe[0], heap, 1);
        0
    });
    checks.check("fork counts the child's copies", committed() > begin + 2 * N);
    sys::write_raw(pipe[1], heap, 1);
    wait(kid, 0);
    pipe.into_iter().for_each(sys::close);
    sys::brk(heap);
    checks.check("all is given back", committed() == begin);
}

/// Mode 2: nothing beyond the limit.
fn never(checks: &mut Checks, total: u64) {
    let limit = meminfo(b"CommitLimit:");
    let swap = meminfo(b"SwapTotal:");
    checks.check("the limit is the ratio of memory, and swap", limit == total * 60 / 100 + swap);
    let left = limit.saturating_sub(committed());
    let _ = writeln!(Out, "overcommit: mode 2: limit {limit} pages, {left} left");
    checks.check("mode 2 refuses what is beyond the limit", map(left + 1) == ENOMEM);
    let most = Pages::map(left / 10 * 9, READ_WRITE, PRIVATE);
    checks.check("mode 2 promises what is below it", most.is_mapped());
    let rest = left / 5;
    checks.check("no more after that", map(rest) == ENOMEM);
    let read = Pages::map(rest, READ, PRIVATE);
    checks.check("what is only read is promised nothing", read.is_mapped());
    checks.check("mprotect is refused", sys::mprotect(read.start, rest * BYTES, READ_WRITE) == ENOMEM);
    let free = sys::mmap(0, rest * BYTES, READ_WRITE, PRIVATE | 0x20 | NORESERVE, u64::MAX);
    checks.check("MAP_NORESERVE means nothing", free == ENOMEM);
    let shared = Pages::map(rest, READ_WRITE, SHARED);
    checks.check("shared memory is refused", shared.start == ENOMEM);
    let heap = sys::brk(0);
    checks.check("brk does not grow", sys::brk(heap + rest * BYTES) == heap);
    let grown = sys::mremap(most.start, most.count * BYTES, (most.count + rest) * BYTES, 1);
    checks.check("mremap does not grow", grown == ENOMEM);
    checks.check("fork is refused", sys::fork() == ENOMEM);
    checks.check("what was promised can be given back", most.unmap() && read.unmap());
    let kid = child(|| 5);
    checks.check("then fork works", wait(kid, 0) == (kid, 5 << 8));
}

/// min-free: while a program eats everything, free memory stays at what is kept, but for what a victim may use.
pub fn min_free(checks: &mut Checks) {
    mount(checks);
    const FILE: &CStr = c"/proc/sys/vm/min_free_kbytes";
    let before = number(FILE, b"");
    let kept = 8 << 10;
    checks.check("min_free_kbytes is set", put(FILE, b"8192\n") == 5 && number(FILE, b"") == kept);
    let victims = number(c"/proc/vmstat", b"oom_kill ");
    let eater = child(|| {
        lock_program();
        loop {
            let pages = Pages::map(1024, READ_WRITE, PRIVATE);
            (0..1024).for_each(|page| sys::store(pages.at(page), 1));
        }
    });
    let (mut least, mut looks) = (u64::MAX, 0_u64);
    let status = loop {
        least = least.min(free_pages());
        looks += 1;
        let (who, status) = wait(eater, 1);
        if who == eater {
            break status;
        }
        sys::sched_yield();
    };
    checks.check("the eater is killed", status == 9);
    checks.check("one process was killed", number(c"/proc/vmstat", b"oom_kill ") == victims + 1);
    // A victim may use a half; pages on the lists of CPUs are not among the free ones.
    checks.check("what is kept is kept", least * 4 >= kept / 4);
    let _ = writeln!(Out, "min-free: {kept} KiB kept, least {} KiB free in {looks} looks", least * 4);
    let mut text = [0_u8; 20];
    checks.check("it is set back", put(FILE, decimal(before, &mut text)) > 0 && number(FILE, b"") == before);
    unmount(checks);
}

fn decimal(mut value: u64, buffer: &mut [u8; 20]) -> &[u8] {
    let mut at = buffer.len();
    loop {
        at -= 1;
        buffer[at] = b'0' + (value % 10).to_le_bytes()[0];
        value /= 10;
        if value == 0 {
            return &buffer[at..];
        }
    }
}

/// fork-bomb-limit: children that fork for ever fill the table of processes and nothing else; when they are gone all is as before.
///
/// RLIMIT_NPROC does not bind root, as on Linux, and there is nobody else: the bound is kernel.threads-max.
pub fn fork_bomb(checks: &mut Checks) {
    const NPROC: u64 = 6;
    mount(checks);
    let most = number(THREADS, b"");
    let eighth = number(c"/proc/meminfo", b"MemTotal:") / (16 * 8);
    checks.check("stacks may take an eighth of memory", most == eighth.clamp(20, 1024));
    let victims = number(c"/proc/vmstat", b"oom_kill ");
    // A CPU keeps slabs of what so many processes had, up to 4 MiB of each cache (docs/slab.md): on a small machine an eighth of memory.
    let unused = || (free_pages(), meminfo(b"Slab:"));
    let (before, slabs_before) = unused();
    let bomb = child(|| {
        sys::setsid();
        sys::set_limit(NPROC, 3);
        loop {
            if is_error(sys::fork()) {
                // Others fork meanwhile; a thousand that try again at once would leave no time for who counts refusals.
                sys::nanosleep(0, 300_000_000);
            }
        }
    });
    let mut refused = 0_u64;
    // Until the table is full for this process, too.
    for _ in 0..20_000 {
        match sys::fork() {
            0 => sys::exit_group(0),
            EAGAIN => {
                refused += 1;
                if refused > 3 {
                    break;
                }
            }
            pid => {
                wait(pid, 0);
            }
        }
        sys::sched_yield();
    }
    checks.check("at the limit fork is EAGAIN", refused > 0);
    // Those who are being made when the group is killed are killed in the next round.
    let (mut reaped, mut rounds) = (0_u64, 0);
    while rounds < 100 {
        sys::kill(bomb.wrapping_neg(), 9);
        while wait(ANY, 1).0.wrapping_sub(1) < 1 << 32 {
            reaped += 1;
        }
        if sys::kill(bomb.wrapping_neg(), 0) == 3_u64.wrapping_neg() {
            break;
        }
        sys::nanosleep(0, 10_000_000);
        rounds += 1;
    }
    while wait(ANY, 0).0 < 1 << 32 {
        reaped += 1;
    }
    checks.check("every one is killed and waited for", reaped > 10);
    let kid = child(|| 6);
    checks.check("fork works again", wait(kid, 0) == (kid, 6 << 8));
    checks.check("nobody was killed for memory", number(c"/proc/vmstat", b"oom_kill ") == victims);
    checks.check("threads-max is set", put(THREADS, b"1\n") == 2 && sys::fork() == EAGAIN);
    checks.check("it is at least 1", put(THREADS, b"0\n") == EINVAL);
    let mut text = [0_u8; 20];
    checks
        .check("it is set back", put(THREADS, decimal(most, &mut text)) > 0 && number(THREADS, b"") == most);
    let (after, slabs) = unused();
    checks.check(
        "their memory is free again, or in slabs",
        after + slabs + before / 16 > before + slabs_before,
    );
    unmount(checks);
    let _ = writeln!(
        Out,
        "fork-bomb-limit: {most} threads at most, {reaped} processes killed in {rounds} rounds; {before} pages free before, {after} afterwards, \
         {slabs_before} and {slabs} in slabs"
    );
}
