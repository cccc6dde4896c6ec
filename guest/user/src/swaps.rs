//! Swap areas as a program sees them: /dev/vdb, which is the disk `swap` of images/machines/disks.toml, and /dev/vda beside it.

pub mod errors;
pub mod thrash;
pub mod zswap;

use core::ffi::CStr;
use core::fmt::Write;
use core::sync::atomic::Ordering::SeqCst;

use crate::memory::{PRIVATE, Pages, READ, READ_WRITE, SHARED};
use crate::proc::{file_has, number};
use crate::processes::{child, wait};
use crate::program::Checks;
use crate::shared::{close, mount, open, pread, pwrite, unmount};
use crate::sys::{self, Out, call};

pub const PAGEOUT: u64 = 21;
pub const PREFER: u64 = 0x8000;
const ENOENT: u64 = 2_u64.wrapping_neg();
const EACCES: u64 = 13_u64.wrapping_neg();
const EBUSY: u64 = 16_u64.wrapping_neg();
const EINVAL: u64 = 22_u64.wrapping_neg();
/// Pages of the checks.
const PAGES: u64 = NR_PAGES as u64;
const NR_PAGES: usize = 200;
/// Slots of the areas here, without the header.
const SLOTS: u64 = 4000;

/// Writes a header for that many pages to a disk; whether it could (mkswap(8)).
pub fn mkswap(disk: &CStr, pages: u64) -> bool {
    let fd = open(disk, 2);
    let mut words = [0; 1024];
    let last = u32::try_from(pages - 1).unwrap_or(0);
    for (slot, word) in words.chunks_exact_mut(4).zip([1, last]) {
        slot.copy_from_slice(&u32::to_le_bytes(word));
    }
    let written = pwrite(fd, &words, 1024) == 1024 && pwrite(fd, b"SWAPSPACE2", 4086) == 10;
    close(fd);
    written
}

pub fn swapon(disk: &CStr, flags: u64) -> u64 {
    call(167, [disk.as_ptr() as u64, flags, 0, 0, 0, 0])
}

pub fn swapoff(disk: &CStr) -> u64 {
    call(168, [disk.as_ptr() as u64, 0, 0, 0, 0, 0])
}

/// Pages of memory, swap areas and of them free ones, as sysinfo tells them.
pub fn sizes() -> [u64; 3] {
    let mut info = [0_u64; 14];
    sys::call(99, [info.as_mut_ptr() as u64, 0, 0, 0, 0, 0]);
    [info[4], info[8], info[9]].map(|bytes| bytes / 4096)
}

/// Slots in use.
pub fn used() -> u64 {
    let [_, total, free] = sizes();
    total - free
}

pub fn pageout(pages: &Pages) -> u64 {
    sys::madvise(pages.start, pages.count * 4096, PAGEOUT)
}

/// Pages in memory.
fn resident(pages: &Pages) -> usize {
    let mut bytes = [0; NR_PAGES];
    sys::mincore(pages.start, pages.count * 4096, &mut bytes);
    bytes.iter().filter(|byte| **byte & 1 != 0).count()
}

pub fn run(checks: &mut Checks) {
    mount(checks);
    calls(checks);
    there_and_back(checks);
    families(checks);
    shared_memory(checks);
    off(checks);
    unmount(checks);
}

/// What swapon and swapoff refuse.
fn calls(checks: &mut Checks) {
    checks.check("no area is no area", swapoff(c"/dev/vdb") == EINVAL);
    checks.check("nor is what there is not", swapon(c"/dev/nothing", 0) == ENOENT);
    let fd = open(c"/dev/vdb", 2);
    checks.check(
        "a disk without a header",
        pwrite(fd, &[0; 4096], 0) == 4096 && swapon(c"/dev/vdb", 0) == EINVAL,
    );
    close(fd);
    checks.check("a file is no disk", swapon(c"/proc/swaps", 0) == EINVAL);
    checks.check("a disk that cannot be written", swapon(c"/dev/vdc", 0) == EACCES);
    checks.check("a header", mkswap(c"/dev/vdb", SLOTS + 1));
    checks.check("unknown flags", swapon(c"/dev/vdb", 0x8_0000) == EINVAL);
    checks.check("a header of more than the disk has", {
        let written = mkswap(c"/dev/vda", 5000);
        written && swapon(c"/dev/vda", 0) == EINVAL
    });
    checks.check("swapon", swapon(c"/dev/vdb", 0) == 0);
    checks.check("twice", swapon(c"/dev/vdb", 0) == EBUSY);
    checks.check("its slots are there", sizes()[1..] == [SLOTS, SLOTS]);
    let line = b"/dev/vdb                                partition\t16000\t\t0\t\t-2\n";
    checks.check("/proc/swaps", file_has(c"/proc/swaps", line));
    checks.check("a second one", mkswap(c"/dev/vda", 101) && swapon(c"/dev/vda", PREFER | 7) == 0);
    checks.check("/proc/swaps has both", file_has(c"/proc/swaps", b"\t400\t\t0\t\t7\n"));
    checks.check("swapoff", swapoff(c"/dev/vda") == 0 && sizes()[1] == SLOTS);
}

fn there_and_back(checks: &mut Checks) {
    let pages = Pages::map(PAGES, READ_WRITE, PRIVATE);
    pages.fill(5000);
    checks.check("MADV_PAGEOUT", pageout(&pages) == 0);
    let (out, gone) = (used(), resident(&pages));
    checks.check("all pages have slots", out == PAGES);
    checks.check("and are in no frame", gone == 0);
    checks.check("VmSwap", number(c"/proc/self/status", b"VmSwap:") == PAGES * 4);
    // From the disk, or from what is kept of them in memory.
    let reads = || number(c"/proc/vmstat", b"pswpin") + number(c"/proc/vmstat", b"zswpin");
    let [before, faults] = [reads(), sys::faults()[1]];
    checks.check("every page has what was written to it", pages.holds(5000));
    checks.check("pages were read", reads() >= before + PAGES);
    checks.check("by major faults, fewer than pages", {
        let major = sys::faults()[1] - faults;
        major > 0 && major < PAGES
    });
    checks.check("what is only read keeps its slot", used() == PAGES);
    pages.fill(6000);
    checks.check("what is written gives it up", used() == 0);
    pageout(&pages);
    checks.check("a write brings it back", {
        pages.word_at(3, 9).store(77, SeqCst);
        pages.word(3).load(SeqCst) == 6003 && pages.word_at(3, 9).load(SeqCst) == 77
    });
    checks.check("a call writes to it", {
        let fd = open(c"/proc/version", 0);
        let got = call(0, [fd, pages.at(4) + 64, 5, 0, 0, 0]);
        close(fd);
        got == 5 && pages.word_at(4, 8).load(SeqCst).to_le_bytes()[..5] == *b"Linux"
    });
    pages.protect(READ);
    checks.check("a right that goes leaves it there", pages.word(5).load(SeqCst) == 6005);
    checks.check(
        "mlock brings all back",
        sys::mlock(pages.start, PAGES * 4096) == 0 && resident(&pages) == NR_PAGES,
    );
    checks.check("and locked pages stay", pageout(&pages) == EINVAL);
    sys::munlock(pages.start, PAGES * 4096);
    pageout(&pages);
    pages.unmap();
    checks.check("what is unmapped gives its slots back", used() == 0);
}

/// Children have the same pages, in memory or not.
fn families(checks: &mut Checks) {
    let pages = Pages::map(PAGES, READ_WRITE, PRIVATE);
    pages.fill(100);
    pageout(&pages);
    let pid = child(|| {
        let same = pages.holds(100);
        pages.fill(200);
        pageout(&pages);
        u64::from(!same || !pages.holds(200))
    });
    checks.check("a child finds its parent's pages, and writes its own", wait(pid, 0) == (pid, 0));
    checks.check("which its parent's do not change", pages.holds(100));
    pageout(&pages);
    let pids = [(); 6].map(|()| child(|| u64::from(!pages.holds(100))));
    let held = pages.holds(100);
    checks.check("many read the same slots", pids.iter().all(|pid| wait(*pid, 0) == (*pid, 0)) && held);
    pageout(&pages);
    let moved = sys::mremap(pages.start, PAGES * 4096, 2 * PAGES * 4096, 1);
    let moved = Pages { start: moved, count: PAGES };
    checks.check("pages move while they are out", moved.is_mapped() && moved.holds(100));
    sys::munmap(moved.start, 2 * PAGES * 4096);
    checks.check("no slot is left", used() == 0);
}

/// Shared anonymous memory goes out, too, and comes back for everybody.
fn shared_memory(checks: &mut Checks) {
    let pages = Pages::map(PAGES, READ_WRITE, SHARED);
    pages.fill(300);
    checks.check("MADV_PAGEOUT of shared memory", pageout(&pages) == 0);
    let out = used();
    let pid = child(|| {
        let same = pages.holds(300);
        pages.fill(400);
        u64::from(!same)
    });
    checks.check("a child reads it", wait(pid, 0) == (pid, 0));
    checks.check("and its parent what the child wrote", pages.holds(400));
    let _ = writeln!(Out, "swap: {out} of {PAGES} shared pages had slots");
    checks.check("it goes out", out > 0);
    pageout(&pages);
    pages.unmap();
    checks.check("its slots come back with the last user", used() == 0);
}

fn off(checks: &mut Checks) {
    let pages = Pages::map(PAGES, READ_WRITE, PRIVATE);
    let shared = Pages::map(PAGES, READ_WRITE, SHARED);
    pages.fill(7000);
    shared.fill(8000);
    pageout(&pages);
    pageout(&shared);
    let pid = child(|| {
        sys::nanosleep(0, 200_000_000);
        u64::from(!pages.holds(7000) || !shared.holds(8000))
    });
    let before = used();
    checks.check("swapoff with pages of two processes in it", before >= PAGES && swapoff(c"/dev/vdb") == 0);
    checks.check("nothing is left of it", sizes()[1..] == [0, 0]);
    // What is on the disk now nobody reads.
    let fd = open(c"/dev/vdb", 2);
    let mut block = [0xaa; 4096];
    let wiped = (0..1000).all(|slot| pwrite(fd, &block, slot * 4096) == 4096);
    checks.check("the disk is the program's", wiped && pread(fd, &mut block, 0) == 4096);
    close(fd);
    checks.check("all pages are in memory", pages.holds(7000) && shared.holds(8000));
    checks.check("those of the child, too", wait(pid, 0) == (pid, 0));
    pages.unmap();
    shared.unmap();
    let _ = writeln!(Out, "swap: {before} slots came back");
}
