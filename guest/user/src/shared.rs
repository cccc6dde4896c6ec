//! Shared memory as a program sees it: memfd with its seals, files of a tmpfs, System V segments, and frames of devices.

mod devices;
mod files;
mod sysv;

use core::ffi::CStr;

use crate::proc::file_has;
use crate::program::Checks;
use crate::sys::{self, call};

const BYTES: u64 = 4096;
const READ: u64 = 1;
const READ_WRITE: u64 = 3;
const SHARED: u64 = 1;
const PRIVATE: u64 = 2;
const RDWR: u64 = 2;
const CREAT: u64 = 0o100;

const EPERM: u64 = 1_u64.wrapping_neg();
const ENOENT: u64 = 2_u64.wrapping_neg();
const ENXIO: u64 = 6_u64.wrapping_neg();
const EACCES: u64 = 13_u64.wrapping_neg();
const EFAULT: u64 = 14_u64.wrapping_neg();
const EBUSY: u64 = 16_u64.wrapping_neg();
const EEXIST: u64 = 17_u64.wrapping_neg();
const EINVAL: u64 = 22_u64.wrapping_neg();
const ENOSPC: u64 = 28_u64.wrapping_neg();

/// All of it.
pub fn run(checks: &mut Checks) {
    files::run(checks);
    sysv::run(checks);
    devices::run(checks);
}

pub fn open(path: &CStr, flags: u64) -> u64 {
    call(2, [path.as_ptr() as u64, flags, 0o600, 0, 0, 0])
}

pub fn close(fd: u64) -> u64 {
    call(3, [fd, 0, 0, 0, 0, 0])
}

fn map_at(fd: u64, len: u64, prot: u64, flags: u64, offset: u64) -> u64 {
    call(9, [0, len, prot, flags, fd, offset])
}

fn map(fd: u64, prot: u64, flags: u64) -> u64 {
    map_at(fd, BYTES, prot, flags, 0)
}

pub fn is_error(result: u64) -> bool {
    result > u64::MAX - 4096
}

/// A byte of a mapping; 0 where nothing is mapped.
fn get(address: u64) -> u8 {
    if is_error(address) {
        return 0;
    }
    // SAFETY: the caller mapped it, and all bytes are numbers.
    unsafe { (address as *const u8).read_volatile() }
}

fn set(address: u64, value: u8) {
    if !is_error(address) {
        // SAFETY: the caller mapped it for writing, and no object of Rust is there.
        unsafe { (address as *mut u8).write_volatile(value) };
    }
}

pub fn pread(fd: u64, buffer: &mut [u8], offset: u64) -> u64 {
    call(17, [fd, buffer.as_mut_ptr() as u64, buffer.len() as u64, offset, 0, 0])
}

pub fn pwrite(fd: u64, bytes: &[u8], offset: u64) -> u64 {
    call(18, [fd, bytes.as_ptr() as u64, bytes.len() as u64, offset, 0, 0])
}

/// Whether /proc/self/maps has the text.
fn maps_have(text: &[u8]) -> bool {
    file_has(c"/proc/self/maps", text)
}

/// /proc and /dev, where the tree is empty; what is there already stays.
pub fn mount(checks: &mut Checks) {
    let at = |text: &CStr| text.as_ptr() as u64;
    for (path, kind) in [(c"/proc", c"proc"), (c"/dev", c"devtmpfs"), (c"/dev/shm", c"tmpfs")] {
        let made = call(83, [at(path), 0o755, 0, 0, 0, 0]);
        let mounted = call(165, [at(c"none"), at(path), at(kind), 0, 0, 0]);
        checks.check("a place to mount", (made == 0 || made == EEXIST) && mounted == 0);
    }
}

/// Takes the mounts away again, so that nothing of them is left.
pub fn unmount(checks: &mut Checks) {
    for path in [c"/dev/shm", c"/dev", c"/proc"] {
        checks.check("unmounting", call(166, [path.as_ptr() as u64, 0, 0, 0, 0, 0]) == 0);
    }
}

/// Ends the program's part of a page at an address.
fn unmap(address: u64, pages: u64) -> bool {
    sys::munmap(address, pages * BYTES) == 0
}
