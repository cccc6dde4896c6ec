//! System V segments: keys, attachments through fork and exit, removal, and what is told of them.

use super::{
    BYTES, EACCES, EEXIST, EFAULT, EINVAL, ENOENT, READ, READ_WRITE, file_has, get, is_error, maps_have, set,
    unmap,
};
use crate::processes::{child, wait};
use crate::program::Checks;
use crate::sys::{self, call};

const IPC_RMID: u64 = 0;
const IPC_SET: u64 = 1;
const IPC_STAT: u64 = 2;
const IPC_INFO: u64 = 3;
const SHM_STAT: u64 = 13;
const SHM_INFO: u64 = 14;
const CREAT: u64 = 0o1000;
const EXCL: u64 = 0o2000;
const RDONLY: u64 = 0o1_0000;
const RND: u64 = 0o2_0000;
const REMAP: u64 = 0o4_0000;
const KEY: u64 = 0x4d56_5348;

fn shmget(key: u64, size: u64, flags: u64) -> u64 {
    call(29, [key, size, flags, 0, 0, 0])
}

fn shmat(id: u64, address: u64, flags: u64) -> u64 {
    call(30, [id, address, flags, 0, 0, 0])
}

fn shmctl(id: u64, command: u64, buffer: &mut [u64; 14]) -> u64 {
    call(31, [id, command, buffer.as_mut_ptr() as u64, 0, 0, 0])
}

fn shmdt(address: u64) -> u64 {
    call(67, [address, 0, 0, 0, 0, 0])
}

fn remove(id: u64) -> u64 {
    shmctl(id, IPC_RMID, &mut [0; 14])
}

/// Attachments and mode.
fn stat(id: u64) -> (u64, u64) {
    let mut words = [0; 14];
    let result = shmctl(id, IPC_STAT, &mut words);
    // The mode is the upper half of the third word.
    if result == 0 { (words[11], words[2] >> 32) } else { (result, 0) }
}

pub fn run(checks: &mut Checks) {
    keys(checks);
    attachments(checks);
    places(checks);
    told(checks);
}

fn keys(checks: &mut Checks) {
    checks.check("no such key", shmget(KEY, BYTES, 0) == ENOENT);
    checks.check("no bytes", shmget(KEY, 0, CREAT | 0o600) == EINVAL);
    let id = shmget(KEY, 3 * BYTES - 10, CREAT | EXCL | 0o640);
    checks.check("a segment", !is_error(id) && shmget(KEY, BYTES, 0) == id);
    checks.check("it is there", shmget(KEY, BYTES, CREAT | EXCL) == EEXIST);
    checks.check("it is not larger", shmget(KEY, 4 * BYTES, 0) == EINVAL);
    let other = shmget(0, BYTES, 0o600);
    checks.check("a private one is another", !is_error(other) && other != id);
    checks.check("both go", remove(other) == 0 && remove(id) == 0 && remove(id) == EINVAL);
}

/// Counted by VMAs, through fork, exit, execve of a child and partial unmapping.
fn attachments(checks: &mut Checks) {
    let id = shmget(KEY, 3 * BYTES, CREAT | 0o600);
    let at = shmat(id, 0, 0);
    checks.check("attached", !is_error(at) && stat(id) == (1, 0o600));
    checks.check("its name is in maps", maps_have(b"/SYSV4d565348 (deleted)"));
    set(at + BYTES, 5);
    let second = shmat(id, 0, RDONLY);
    checks.check("attached twice", get(second + BYTES) == 5 && stat(id).0 == 2);
    checks.check("read only stays so", sys::mprotect(second, BYTES, READ_WRITE) == EACCES);
    let pid = child(|| {
        let attached = stat(id).0 == 4;
        set(at + BYTES, 6);
        u64::from(!attached)
    });
    checks.check("a child has both, until it ends", wait(pid, 0) == (pid, 0) && stat(id).0 == 2);
    checks.check("and wrote there", get(second + BYTES) == 6);
    checks.check("a piece in the middle is unmapped", unmap(at + BYTES, 1) && stat(id).0 == 3);
    checks.check(
        "one attachment ends with all its pieces",
        shmdt(at) == 0 && stat(id).0 == 1 && shmdt(at) == EINVAL,
    );
    checks.check(
        "removed, it lives on",
        remove(id) == 0 && get(second + BYTES) == 6 && stat(id) == (1, 0o1600),
    );
    checks.check("nobody finds it by its key", shmget(KEY, BYTES, 0) == ENOENT);
    let third = shmat(id, 0, 0);
    checks.check("but by its number", get(third + BYTES) == 6 && shmdt(third) == 0);
    checks.check("until the last one goes", shmdt(second) == 0 && stat(id).0 == EINVAL);
}

fn places(checks: &mut Checks) {
    let id = shmget(0, 2 * BYTES, 0o600);
    let room = sys::mmap(0, 4 * BYTES, READ, 0x22, u64::MAX);
    checks.check("what is in the way stays", shmat(id, room, 0) == EINVAL);
    checks.check("an odd address", shmat(id, room + 5, 0) == EINVAL && shmat(id, 0, REMAP) == EINVAL);
    checks.check("unless it is to go", shmat(id, room + 5, RND | REMAP) == room && stat(id).0 == 1);
    set(room, 1);
    // A neighbour of the same segment is no piece of the first attachment.
    checks.check(
        "side by side",
        shmat(id, room + 2 * BYTES, REMAP) == room + 2 * BYTES && get(room + 2 * BYTES) == 1,
    );
    let split = sys::mprotect(room, BYTES, READ) == 0 && stat(id).0 == 3;
    let joined = sys::mprotect(room, BYTES, READ_WRITE) == 0 && stat(id).0 == 3;
    checks.check("pieces do not merge again", split && joined);
    checks.check("one goes", shmdt(room) == 0 && stat(id).0 == 1 && get(room + 2 * BYTES) == 1);
    checks.check("then the other", shmdt(room + 2 * BYTES) == 0 && remove(id) == 0);
    checks.check("an address with nothing", shmdt(room) == EINVAL);
}

fn told(checks: &mut Checks) {
    let id = shmget(KEY, BYTES, CREAT | 0o604);
    let mut words = [0; 14];
    checks.check(
        "limits",
        !is_error(shmctl(0, IPC_INFO, &mut words)) && words[0] == u64::MAX - (1 << 24) && words[2] == 4096,
    );
    checks.check(
        "sums",
        !is_error(shmctl(0, SHM_INFO, &mut words)) && words[0] & 0xffff_ffff == 1 && words[1] == 1,
    );
    checks.check("by its index", shmctl(id & 0x7fff, SHM_STAT, &mut words) == id && words[6] == BYTES);
    words = [0; 14];
    words[2] = 0o640 << 32;
    checks.check("other rights", shmctl(id, IPC_SET, &mut words) == 0 && stat(id).1 == 0o640);
    checks.check("a bad buffer", call(31, [id, IPC_STAT, 16, 0, 0, 0]) == EFAULT);
    checks.check("a bad command", shmctl(id, 99, &mut words) == EINVAL);
    // 0x4d565348 in decimal.
    checks.check("/proc/sysvipc/shm has it", file_has(c"/proc/sysvipc/shm", b"1297503048"));
    checks.check("it goes", remove(id) == 0);
    checks.check("from there, too", !file_has(c"/proc/sysvipc/shm", b"1297503048"));
}
