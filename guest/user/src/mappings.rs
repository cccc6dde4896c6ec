//! Checks of the calls that change or describe mappings.

use core::hint::black_box;

use crate::program::{Checks, EBADF, EFAULT, PAGE};
use crate::sys;

const PAGES: usize = 8;
const BYTES: u64 = PAGE as u64;
const NONE: u64 = 0;
const READ: u64 = 1;
const READ_WRITE: u64 = 3;
const PRIVATE: u64 = 0x02;
const FIXED: u64 = 0x10;
const ANONYMOUS: u64 = 0x20;
const POPULATE: u64 = 0x8000;
const FIXED_NOREPLACE: u64 = 0x10_0000;

const ENOMEM: u64 = 12_u64.wrapping_neg();
const EEXIST: u64 = 17_u64.wrapping_neg();
const EINVAL: u64 = 22_u64.wrapping_neg();

/// No file.
const NO_FD: u64 = u64::MAX;

fn map(addr: u64, pages: usize, prot: u64, flags: u64) -> u64 {
    sys::mmap(addr, (pages * PAGE) as u64, prot, flags | PRIVATE | ANONYMOUS, NO_FD)
}

/// All of it.
pub fn run(checks: &mut Checks) {
    let area = map(0, PAGES, READ_WRITE, 0);
    checks.check("mmap finds a place", area.is_multiple_of(BYTES) && area < 1 << 47 && area > 1 << 32);
    // SAFETY: `mmap` just gave this range to the program, and nobody else has it.
    let memory = unsafe { core::slice::from_raw_parts_mut(area as *mut u8, PAGES * PAGE) };
    checks.memory("mapped memory is zero at first touch", memory);
    protect(checks, area, memory);
    punch(checks, area);
    errors(checks, area);
    let touched = map(0, 2, READ_WRITE, POPULATE);
    // SAFETY: as above.
    let memory = unsafe { core::slice::from_raw_parts_mut(touched as *mut u8, 2 * PAGE) };
    checks.memory("populated memory is zero", memory);
    checks.check("what was populated can be unmapped", sys::munmap(touched, 2 * BYTES) == 0);
    residence(checks);
    remap(checks);
    guard_gap(checks);
    checks.check("all can be unmapped at once", sys::munmap(area, PAGES as u64 * BYTES) == 0);
}

/// Rights come and go, and the bytes stay.
fn protect(checks: &mut Checks, area: u64, memory: &mut [u8]) {
    memory[0] = b'.';
    checks.check("mprotect takes all rights", sys::mprotect(area, BYTES, NONE) == 0);
    checks.check("memory without rights cannot be read", sys::write_raw(1, area, 1) == EFAULT);
    checks.check("mprotect gives the right to read", sys::mprotect(area, BYTES, READ) == 0);
    checks.check("bytes are still there", black_box(&*memory)[0] == b'.');
    checks.check("mprotect gives the right to write", sys::mprotect(area, BYTES, READ_WRITE) == 0);
    memory[0] = b'!';
    checks.check("bytes can be written again", black_box(&*memory)[0] == b'!');
}

/// A hole in the middle, and something new in it.
fn punch(checks: &mut Checks, area: u64) {
    let hole = area + 2 * BYTES;
    checks.check("munmap makes a hole", sys::munmap(hole, BYTES) == 0);
    checks.check("nothing is in the hole", sys::write_raw(1, hole, 1) == EFAULT);
    checks.check("mprotect stops at the hole", sys::mprotect(area, 4 * BYTES, READ_WRITE) == ENOMEM);
    checks.check("a hint is followed into the hole", map(hole, 1, READ_WRITE, 0) == hole);
    // SAFETY: mapped just now.
    let memory = unsafe { core::slice::from_raw_parts_mut(hole as *mut u8, PAGE) };
    checks.memory("the hole's page is fresh", memory);
    checks.check("MAP_FIXED_NOREPLACE refuses", map(hole, 1, READ_WRITE, FIXED_NOREPLACE) == EEXIST);
    checks.check("MAP_FIXED replaces", map(hole, 1, READ_WRITE, FIXED) == hole);
    checks.memory("what replaces is fresh", memory);
}

fn errors(checks: &mut Checks, area: u64) {
    checks.check("mmap of no bytes is EINVAL", map(0, 0, READ, 0) == EINVAL);
    checks.check("mmap without a type is EINVAL", sys::mmap(0, BYTES, READ, ANONYMOUS, NO_FD) == EINVAL);
    checks.check("mmap of a bad descriptor is EBADF", sys::mmap(0, BYTES, READ, PRIVATE, 99) == EBADF);
    checks.check("mmap beyond user space is ENOMEM", map(0, 1 << 46, READ, 0) == ENOMEM);
    checks.check("munmap of half a page is EINVAL", sys::munmap(area + 1, BYTES) == EINVAL);
    checks.check("munmap of the kernel is EINVAL", sys::munmap(0xffff_ffff_8100_0000, BYTES) == EINVAL);
    checks.check("mprotect with bad bits is EINVAL", sys::mprotect(area, BYTES, 0x100) == EINVAL);
}

/// mincore, mlock and madvise agree about what is in memory.
fn residence(checks: &mut Checks) {
    const DONTNEED: u64 = 4;
    let area = map(0, 4, READ_WRITE, 0);
    let len = 4 * BYTES;
    let mut seen = [9; 5];
    checks.check(
        "mincore of what nobody touched",
        sys::mincore(area, len, &mut seen) == 0 && seen == [0, 0, 0, 0, 9],
    );
    // SAFETY: mapped just now.
    let memory = unsafe { core::slice::from_raw_parts_mut(area as *mut u8, 4 * PAGE) };
    memory[PAGE] = 1;
    checks.check("mincore sees a touch", sys::mincore(area, len, &mut seen) == 0 && seen == [0, 1, 0, 0, 9]);
    checks.check("mlock brings all in", sys::mlock(area, len) == 0);
    checks.check(
        "what is locked is in memory",
        sys::mincore(area, len, &mut seen) == 0 && seen == [1, 1, 1, 1, 9],
    );
    checks.check("locked memory is needed", sys::madvise(area, len, DONTNEED) == EINVAL);
    checks.check("munlock", sys::munlock(area, len) == 0);
    checks.check("madvise(DONTNEED)", sys::madvise(area + BYTES, BYTES, DONTNEED) == 0);
    checks.check(
        "what is not needed is gone",
        sys::mincore(area, len, &mut seen) == 0 && seen == [1, 0, 1, 1, 9],
    );
    checks.memory("and comes back as zeroes", memory);
    checks.check(
        "mincore of a hole is ENOMEM",
        sys::munmap(area, len) == 0 && sys::mincore(area, len, &mut seen) == ENOMEM,
    );
}

/// A mapping that cannot grow where it is moves, and its bytes with it.
fn remap(checks: &mut Checks) {
    const MAYMOVE: u64 = 1;
    let area = map(0, 3, READ_WRITE, 0);
    let above = area + 2 * BYTES;
    checks.check("a part gets other rights", sys::mprotect(above, BYTES, READ) == 0);
    // SAFETY: mapped just now, and not used after the move.
    unsafe { (area as *mut u8).write_volatile(77) };
    checks.check("no room above", sys::mremap(area, 2 * BYTES, 4 * BYTES, 0) == ENOMEM);
    let moved = sys::mremap(area, 2 * BYTES, 4 * BYTES, MAYMOVE);
    checks.check("mremap moves", moved != area && moved.is_multiple_of(BYTES));
    // SAFETY: it was moved there.
    checks.check("bytes move along", unsafe { (moved as *const u8).read_volatile() } == 77);
    checks.check("nothing is left behind", sys::write_raw(1, area, 1) == EFAULT);
    checks.check("mremap shrinks", sys::mremap(moved, 4 * BYTES, BYTES, 0) == moved);
    checks.check("the rest is gone", sys::write_raw(1, moved + BYTES, 1) == EFAULT);
    checks.check("both can be unmapped", sys::munmap(moved, BYTES) == 0 && sys::munmap(above, BYTES) == 0);
}

/// Nothing is placed near the stack by itself, though a hint asks for it.
fn guard_gap(checks: &mut Checks) {
    let here = black_box(0_u8);
    // Below what the stack has, and less than the gap of 1 MiB away.
    let hint = (&raw const here as u64 & !(BYTES - 1)) - 150 * BYTES;
    let found = map(hint, 1, READ, 0);
    checks.check("the stack keeps its guard gap", found < hint && sys::munmap(found, BYTES) == 0);
}
