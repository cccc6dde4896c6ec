//! What /proc/self/maps says: how mappings split and merge, and limits.

use core::ffi::CStr;
use core::sync::atomic::Ordering::SeqCst;

use crate::memory::{BYTES, FIXED, NONE, PRIVATE, Pages, READ, READ_EXEC, READ_WRITE, SHARED};
use crate::processes::{child, wait};
use crate::program::Checks;
use crate::sys::{self, call};

const ENOMEM: u64 = 12_u64.wrapping_neg();
const EINVAL: u64 = 22_u64.wrapping_neg();
const AREA: u64 = 16;
const TEXT: usize = 8 << 10;

/// Lines of /proc/self/maps that lie in a range: first and last page from its start, and rights.
struct Lines {
    lines: [(u64, u64, [u8; 4]); 8],
    len: usize,
}

impl Lines {
    /// Whether the range has exactly these mappings.
    fn are(&self, wanted: &[(u64, u64, &[u8; 4])]) -> bool {
        self.len == wanted.len()
            && self
                .lines
                .iter()
                .zip(wanted)
                .all(|(have, want)| (have.0, have.1, &have.2) == (want.0, want.1, want.2))
    }
}

fn hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0_u64, |value, &digit| Some(value << 4 | u64::from((digit as char).to_digit(16)?)))
}

fn maps() -> Option<([u8; TEXT], usize)> {
    let path: &CStr = c"/proc/self/maps";
    let fd = call(2, [path.as_ptr() as u64, 0, 0, 0, 0, 0]);
    if fd > 1 << 16 {
        return None;
    }
    let (mut text, mut len) = ([0_u8; TEXT], 0);
    loop {
        let read = sys::read_raw(fd, text.as_mut_ptr() as u64 + len as u64, (TEXT - len) as u64);
        match usize::try_from(read).ok().filter(|read| (1..=TEXT - len).contains(read)) {
            Some(read) => len += read,
            None => break,
        }
    }
    sys::close(fd);
    Some((text, len))
}

/// What is mapped in the range.
fn lines(area: &Pages) -> Lines {
    let mut found = Lines { lines: [(0, 0, *b"????"); 8], len: 0 };
    let Some((text, len)) = maps() else { return found };
    for line in text[..len].split(|&byte| byte == b'\n') {
        let mut words = line.split(|&byte| byte == b' ');
        let (range, rights) = (words.next().unwrap_or(b""), words.next().unwrap_or(b""));
        let mut ends = range.split(|&byte| byte == b'-').map(hex);
        let (Some(Some(start)), Some(Some(end))) = (ends.next(), ends.next()) else { continue };
        if start >= area.start && end <= area.at(area.count) && found.len < 8 {
            let mut letters = *b"????";
            letters.iter_mut().zip(rights).for_each(|(to, from)| *to = *from);
            found.lines[found.len] = ((start - area.start) / BYTES, (end - area.start) / BYTES, letters);
            found.len += 1;
        }
    }
    found
}

/// All of it.
pub fn run(checks: &mut Checks) {
    call(83, [c"/proc".as_ptr() as u64, 0o755, 0, 0, 0, 0]);
    let mount =
        call(165, [c"proc".as_ptr() as u64, c"/proc".as_ptr() as u64, c"proc".as_ptr() as u64, 0, 0, 0]);
    checks.check("/proc can be mounted", mount == 0);
    splits(checks);
    kinds(checks);
    moves(checks);
    advice(checks);
    limits(checks);
}

/// A range with a page unmapped on both sides, so that nothing merges with it.
fn alone() -> Pages {
    let all = Pages::map(AREA + 2, READ_WRITE, PRIVATE);
    sys::munmap(all.at(0), BYTES);
    sys::munmap(all.at(AREA + 1), BYTES);
    Pages { start: all.at(1), count: AREA }
}

fn splits(checks: &mut Checks) {
    let area = alone();
    let mut shape =
        |what: &str, wanted: &[(u64, u64, &[u8; 4])]| checks.check(what, lines(&area).are(wanted));
    shape("one mapping is one line", &[(0, AREA, b"rw-p")]);
    sys::mprotect(area.at(4), 4 * BYTES, READ);
    shape(
        "mprotect in the middle makes three of one",
        &[(0, 4, b"rw-p"), (4, 8, b"r--p"), (8, AREA, b"rw-p")],
    );
    sys::mprotect(area.at(6), 4 * BYTES, NONE);
    shape(
        "over a border it makes a fourth",
        &[(0, 4, b"rw-p"), (4, 6, b"r--p"), (6, 10, b"---p"), (10, AREA, b"rw-p")],
    );
    sys::mprotect(area.at(4), 6 * BYTES, READ_WRITE);
    shape("with equal rights all merge", &[(0, AREA, b"rw-p")]);
    sys::munmap(area.at(7), 2 * BYTES);
    shape("munmap in the middle leaves two", &[(0, 7, b"rw-p"), (9, AREA, b"rw-p")]);
    Pages { start: area.at(7), count: 2 }.replace();
    shape("what fills the hole merges with both", &[(0, AREA, b"rw-p")]);
    sys::mprotect(area.at(0), BYTES, READ_EXEC);
    sys::mprotect(area.at(AREA - 1), BYTES, READ_EXEC);
    shape("ends split off, too", &[(0, 1, b"r-xp"), (1, AREA - 1, b"rw-p"), (AREA - 1, AREA, b"r-xp")]);
    area.unmap();
    shape("and all go at once", &[]);
}

/// What does not merge: shared memory with private, and two pieces of shared memory.
fn kinds(checks: &mut Checks) {
    let area = alone();
    let place = |page: u64, count: u64, prot: u64, flags: u64| {
        sys::mmap(area.at(page), count * BYTES, prot, flags | 0x20 | FIXED, u64::MAX) == area.at(page)
    };
    checks.check("shared memory in the middle", place(4, 4, READ_WRITE, SHARED));
    checks.check("does not merge", lines(&area).are(&[(0, 4, b"rw-p"), (4, 8, b"rw-s"), (8, AREA, b"rw-p")]));
    checks.check("another piece beside it", place(8, 2, READ_WRITE, SHARED));
    checks.check(
        "is another's memory",
        lines(&area).are(&[(0, 4, b"rw-p"), (4, 8, b"rw-s"), (8, 10, b"rw-s"), (10, AREA, b"rw-p")]),
    );
    // MAP_NORESERVE; MAP_POPULATE leaves no trace.
    checks.check("private memory that reserves nothing", place(4, 6, READ_WRITE, PRIVATE | 0x4000));
    checks.check(
        "is of another kind",
        lines(&area).are(&[(0, 4, b"rw-p"), (4, 10, b"rw-p"), (10, AREA, b"rw-p")]),
    );
    checks.check("memory that is touched at once", place(4, 6, READ_WRITE, PRIVATE | 0x8000));
    checks.check("is not", lines(&area).are(&[(0, AREA, b"rw-p")]));
    area.unmap();
}

/// mremap: in place, elsewhere, to a fixed place, leaving the old one.
fn moves(checks: &mut Checks) {
    const MAYMOVE: u64 = 1;
    const TO_FIXED: u64 = 2;
    const DONTUNMAP: u64 = 4;
    let area = alone();
    let mremap = |addr: u64, old: u64, new: u64, flags: u64, to: u64| {
        call(25, [addr, old * BYTES, new * BYTES, flags, to, 0])
    };
    area.fill(40);
    sys::munmap(area.at(8), 8 * BYTES);
    checks.check("it grows where it is", mremap(area.at(0), 8, 12, 0, 0) == area.start);
    checks.check("and is one mapping", lines(&area).are(&[(0, 12, b"rw-p")]));
    let (first, rest) = (area.word(7).load(SeqCst), area.word(8));
    checks.check("with its pages and fresh ones", first == 47 && rest.load(SeqCst) == 0);
    checks.check(
        "a part moves to a place of choice",
        mremap(area.at(2), 2, 2, MAYMOVE | TO_FIXED, area.at(13)) == area.at(13),
    );
    checks.check(
        "and leaves a hole",
        lines(&area).are(&[(0, 2, b"rw-p"), (4, 12, b"rw-p"), (13, 15, b"rw-p")]),
    );
    checks.check("with what was in it", area.word(13).load(SeqCst) == 42);
    let (from, to) = (area.at(4), area.at(12));
    checks.check(
        "places that overlap are EINVAL",
        mremap(from, 4, 4, MAYMOVE | TO_FIXED, from + BYTES) == EINVAL,
    );
    checks.check("a fixed place needs the right to move", mremap(from, 1, 1, TO_FIXED, to) == EINVAL);
    let moved = mremap(from, 2, 2, MAYMOVE | DONTUNMAP, 0);
    let left = Pages { start: from, count: 2 };
    checks.check("DONTUNMAP leaves fresh pages", moved != from && left.word(0).load(SeqCst) == 0);
    let moved = Pages { start: moved, count: 2 };
    checks.check("and takes the old ones along", moved.is_mapped() && moved.word(0).load(SeqCst) == 44);
    moved.unmap();
    area.unmap();
}

/// madvise: what is given back, what children get, and what is brought in.
fn advice(checks: &mut Checks) {
    const DONTNEED: u64 = 4;
    const FREE: u64 = 8;
    const DONTFORK: u64 = 10;
    const DOFORK: u64 = 11;
    const WIPEONFORK: u64 = 18;
    const POPULATE_READ: u64 = 22;
    const POPULATE_WRITE: u64 = 23;
    let area = alone();
    area.fill(70);
    let advise = |page: u64, count: u64, advice: u64| sys::madvise(area.at(page), count * BYTES, advice);
    checks.check("DONTNEED gives zeroes", advise(0, 2, DONTNEED) == 0 && area.word(1).load(SeqCst) == 0);
    checks.check("and nothing else", area.word(2).load(SeqCst) == 72);
    let freed = advise(2, 1, FREE) == 0;
    let word = area.word(2).load(SeqCst);
    checks.check("FREE gives what was there or zeroes", freed && (word == 72 || word == 0));
    checks.check("WIPEONFORK", advise(4, 1, WIPEONFORK) == 0);
    checks.check("DONTFORK", advise(6, 1, DONTFORK) == 0);
    let pid = child(|| {
        let wiped = area.word(4).load(SeqCst) == 0;
        let gone = sys::write_raw(1, area.at(6), 1) == crate::program::EFAULT;
        let kept = area.word(5).load(SeqCst) == 75;
        u64::from(!(wiped && gone && kept))
    });
    checks.check("a child gets what it shall", wait(pid, 0) == (pid, 0));
    checks.check("and back", advise(4, 1, 19) == 0 && advise(6, 1, DOFORK) == 0);
    checks.check("all is one mapping again", lines(&area).are(&[(0, AREA, b"rw-p")]));
    let fresh = Pages::map(4, READ_WRITE, PRIVATE);
    // With `shuffle` a page may be on the move just when it is touched, which is a fault on Linux, too: hardly so every time.
    let mut populated = true;
    let touches = (0..8).any(|_| {
        sys::madvise(fresh.start, 4 * BYTES, DONTNEED);
        let before = sys::faults()[0];
        populated &= sys::madvise(fresh.start, 4 * BYTES, POPULATE_WRITE) == 0;
        let during = sys::faults()[0];
        fresh.fill(1);
        sys::faults()[0] == during && during >= before + 4
    });
    checks.check("POPULATE_WRITE brings in", populated);
    checks.check("so that a touch is no fault", touches);
    sys::munmap(fresh.at(2), BYTES);
    checks.check(
        "POPULATE_READ stops at a hole",
        sys::madvise(fresh.start, 4 * BYTES, POPULATE_READ) == ENOMEM,
    );
    checks.check("advice that is none is EINVAL", advise(0, 1, 99) == EINVAL);
    fresh.unmap();
    area.unmap();
}

/// Each limit in a child, which has it to itself.
fn limits(checks: &mut Checks) {
    const AS: u64 = 9;
    const DATA: u64 = 2;
    let in_child = |f: &dyn Fn() -> bool| {
        let pid = child(|| u64::from(!f()));
        wait(pid, 0) == (pid, 0)
    };
    let map = |bytes: u64, prot: u64| sys::mmap(0, bytes, prot, PRIVATE | 0x20, u64::MAX);
    checks.check(
        "RLIMIT_AS counts all memory",
        in_child(&|| {
            sys::set_limit(AS, 64 << 20) == 0
                && map(80 << 20, READ) == ENOMEM
                && map(16 << 20, READ) < 1 << 47
        }),
    );
    checks.check(
        "RLIMIT_DATA counts what may be written",
        in_child(&|| {
            sys::set_limit(DATA, 16 << 20) == 0
                && map(32 << 20, READ_WRITE) == ENOMEM
                && map(32 << 20, READ) < 1 << 47
                && map(8 << 20, READ_WRITE) < 1 << 47
        }),
    );
    checks.check(
        "RLIMIT_DATA counts the heap",
        in_child(&|| {
            let now = sys::brk(0);
            sys::set_limit(DATA, 4 << 20) == 0
                && sys::brk(now + (8 << 20)) == now
                && sys::brk(now + BYTES) == now + BYTES
        }),
    );
}
