//! Frames of devices: memory of a driver, and registers.

use super::{
    BYTES, EACCES, EFAULT, EINVAL, ENOSPC, EPERM, PRIVATE, RDWR, READ, READ_WRITE, SHARED, close, get,
    is_error, map, map_at, maps_have, open, pread, pwrite, set, unmap, unmount,
};
use crate::proc::file_has;
use crate::processes::{child, wait};
use crate::program::Checks;
use crate::sys::{self, call};

const FRAMES: u64 = 16;
const EIO: u64 = 5_u64.wrapping_neg();

pub fn run(checks: &mut Checks) {
    frames(checks);
    copies(checks);
    zero_copy(checks);
    registers(checks);
    unmount(checks);
}

fn frames(checks: &mut Checks) {
    let fd = open(c"/dev/frames", RDWR);
    let shared = map_at(fd, FRAMES * BYTES, READ_WRITE, SHARED, 0);
    checks.check("frames are mapped", !is_error(shared) && maps_have(b"/dev/frames"));
    checks.check(
        "smaps knows that they are a device's",
        file_has(c"/proc/self/smaps", b"VmFlags: rd wr sh mr mw me ms pf io de dd"),
    );
    checks
        .check("no more than there are", map_at(fd, 2 * BYTES, READ, SHARED, (FRAMES - 1) * BYTES) == EINVAL);
    checks.check("a write to the file", pwrite(fd, b"device", 3 * BYTES - 3) == 6);
    checks.check("is in the mapping", get(shared + 3 * BYTES) == b'i');
    set(shared + 3 * BYTES, b'I');
    let mut byte = [0];
    checks.check("and the other way round", pread(fd, &mut byte, 3 * BYTES) == 1 && byte == *b"I");
    checks.check(
        "the file ends",
        pwrite(fd, b"x", FRAMES * BYTES) == ENOSPC && pread(fd, &mut byte, FRAMES * BYTES) == 0,
    );
    let part = map_at(fd, BYTES, READ, SHARED, 3 * BYTES);
    checks.check("a part is the same frame", get(part) == b'I');
    let pid = child(|| {
        set(shared, 77);
        u64::from(get(part) != b'I')
    });
    checks.check("a child has the mapping", wait(pid, 0) == (pid, 0) && get(shared) == 77);
    checks.check(
        "rights can be taken",
        sys::mprotect(shared, BYTES, 0) == 0 && sys::write_raw(1, shared, 1) == EFAULT,
    );
    checks.check("and given back", sys::mprotect(shared, BYTES, READ_WRITE) == 0 && get(shared) == 77);
    set(shared, 78);
    let mut byte = [0];
    checks.check("with the right to write", pread(fd, &mut byte, 0) == 1 && byte == [78]);
    let moved = call(25, [part, BYTES, BYTES, 3, part - 0x1000_0000, 0]);
    checks.check("a mapping moves", get(moved) == b'I' && unmap(moved, 1));
    checks
        .check("it does not grow", call(25, [shared, FRAMES * BYTES, 2 * FRAMES * BYTES, 1, 0, 0]) == EFAULT);
    checks.check("nothing of it is dropped", sys::madvise(shared, BYTES, 4) == EINVAL);
    checks.check("it is unmapped", unmap(shared, FRAMES) && close(fd) == 0);
}

/// A private mapping copies what it writes.
fn copies(checks: &mut Checks) {
    let fd = open(c"/dev/frames", RDWR);
    checks.check("known bytes", pwrite(fd, b"abcd", 5 * BYTES) == 4);
    let private = map_at(fd, 2 * BYTES, READ_WRITE, PRIVATE, 5 * BYTES);
    checks.check("a private mapping has them", get(private) == b'a');
    set(private + 1, b'B');
    let mut bytes = [0; 4];
    checks.check(
        "a write does not reach the device",
        pread(fd, &mut bytes, 5 * BYTES) == 4 && bytes == *b"abcd",
    );
    checks.check("the copy has the rest", get(private) == b'a' && get(private + 1) == b'B');
    checks.check("the device goes on", pwrite(fd, b"AB", 5 * BYTES) == 2 && get(private) == b'a');
    checks.check(
        "untouched pages are the device's",
        pwrite(fd, b"z", 6 * BYTES) == 1 && get(private + BYTES) == b'z',
    );
    let pid = child(|| {
        let seen = get(private + 1) == b'B' && get(private + BYTES) == b'z';
        set(private + 1, b'C');
        set(private + BYTES, b'y');
        u64::from(!seen || get(private + 1) != b'C')
    });
    checks.check("a child copies, too", wait(pid, 0) == (pid, 0) && get(private + 1) == b'B');
    checks.check("and the parent has the device's still", get(private + BYTES) == b'z');
    checks.check("all goes", unmap(private, 2) && close(fd) == 0);
}

/// A file is read into the device's frames, and written from there, without a buffer in between.
fn zero_copy(checks: &mut Checks) {
    let (device, file) = (open(c"/dev/frames", RDWR), open(c"/dev/shm/data", RDWR | 0o100));
    checks.check("a file", pwrite(file, b"from a file", 100) == 11);
    let frames = map(device, READ_WRITE, SHARED);
    checks.check("read to the device", call(17, [file, frames + 8, 11, 100, 0, 0]) == 11);
    let mut bytes = [0; 11];
    checks.check("which has it", pread(device, &mut bytes, 8) == 11 && bytes == *b"from a file");
    checks.check("written from the device", call(18, [file, frames + 8, 11, 5000, 0, 0]) == 11);
    checks.check("to the file", pread(file, &mut bytes, 5000) == 11 && bytes == *b"from a file");
    checks.check("all goes", unmap(frames, 1) && close(device) == 0 && close(file) == 0);
    checks.check("and the file", call(87, [c"/dev/shm/data".as_ptr() as u64, 0, 0, 0, 0, 0]) == 0);
}

/// The local interrupt controller's page.
fn registers(checks: &mut Checks) {
    const VERSION: u64 = 0x30;
    let fd = open(c"/dev/lapic", 0);
    checks.check("registers are not written", map(fd, READ_WRITE, PRIVATE) == EPERM);
    let page = map(fd, READ, SHARED);
    checks.check("registers are mapped", !is_error(page) && maps_have(b"/dev/lapic"));
    checks.check("nor by mprotect", sys::mprotect(page, BYTES, READ_WRITE) == EACCES);
    // SAFETY: mapped just now; the register is read in one piece, and reading it changes nothing.
    let version = unsafe { ((page + VERSION) as *const u32).read_volatile() };
    // SDM 3A, 11.4.8: integrated controllers are version 0x10 to 0x15, with 4 to 7 local vectors.
    checks
        .check("the controller is there", matches!(version & 0xff, 0x10..=0x15) && version >> 16 & 0xff >= 3);
    checks.check("the kernel does not copy registers", sys::write_raw(1, page + VERSION, 4) == EFAULT);
    let mut byte = [0];
    checks.check("they are no file", matches!(pread(fd, &mut byte, 0), EINVAL | EIO));
    let pid = child(|| {
        // SAFETY: as above.
        u64::from(unsafe { ((page + VERSION) as *const u32).read_volatile() } != version)
    });
    checks.check("a child has them", wait(pid, 0) == (pid, 0));
    checks.check("all goes", unmap(page, 1) && close(fd) == 0);
}
