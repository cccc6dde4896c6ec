//! memfd, its seals, holes, and files of a tmpfs that are mapped.

use super::{
    BYTES, CREAT, EACCES, EBUSY, EEXIST, EINVAL, ENOENT, ENXIO, EPERM, PRIVATE, RDWR, READ, READ_WRITE,
    SHARED, close, get, is_error, map, map_at, maps_have, mount, open, pread, pwrite, set, unmap,
};
use crate::processes::{child, wait};
use crate::program::Checks;
use crate::sys::{self, call};

const ALLOW_SEALING: u64 = 2;
const SEAL: u64 = 1;
const SHRINK: u64 = 2;
const GROW: u64 = 4;
const WRITE: u64 = 8;
const FUTURE_WRITE: u64 = 0x10;

fn memfd(flags: u64) -> u64 {
    call(319, [c"ours".as_ptr() as u64, flags, 0, 0, 0, 0])
}

fn ftruncate(fd: u64, len: u64) -> u64 {
    call(77, [fd, len, 0, 0, 0, 0])
}

fn fallocate(fd: u64, mode: u64, offset: u64, len: u64) -> u64 {
    call(285, [fd, mode, offset, len, 0, 0])
}

fn lseek(fd: u64, offset: u64, whence: u64) -> u64 {
    call(8, [fd, offset, whence, 0, 0, 0])
}

fn add_seals(fd: u64, seals: u64) -> u64 {
    call(72, [fd, 1033, seals, 0, 0, 0])
}

fn seals(fd: u64) -> u64 {
    call(72, [fd, 1034, 0, 0, 0, 0])
}

pub fn run(checks: &mut Checks) {
    mount(checks);
    as_a_file(checks);
    holes(checks);
    sealed(checks);
    mapped_and_sealed(checks);
    posix(checks);
}

/// What is written by a call is read through mappings, and the other way round, by parent and child.
fn as_a_file(checks: &mut Checks) {
    let fd = memfd(0);
    checks.check("a memfd has a number", !is_error(fd));
    checks.check("no more flags than there are", memfd(0x40) == EINVAL);
    checks.check("it is empty", lseek(fd, 0, 2) == 0);
    checks.check(
        "a write makes it longer",
        pwrite(fd, b"memfd", BYTES - 2) == 5 && lseek(fd, 0, 2) == BYTES + 3,
    );
    let (shared, private) =
        (map_at(fd, 2 * BYTES, READ_WRITE, SHARED, 0), map_at(fd, 2 * BYTES, READ_WRITE, PRIVATE, 0));
    checks.check("both mappings have its bytes", get(shared + BYTES) == b'm' && get(private + BYTES) == b'm');
    checks.check("its name is in maps", maps_have(b"/memfd:ours (deleted)"));
    set(private + BYTES, b'P');
    set(shared + BYTES, b'S');
    let mut byte = [0];
    checks.check("a shared write reaches the file", pread(fd, &mut byte, BYTES) == 1 && byte == *b"S");
    checks.check("a private one does not", get(private + BYTES) == b'P');
    let pid = child(|| {
        let seen = get(shared + BYTES) == b'S' && get(private + BYTES) == b'P';
        set(shared + BYTES, b'C');
        set(private + BYTES, b'c');
        u64::from(!seen)
    });
    checks.check("a child has both", wait(pid, 0) == (pid, 0));
    checks.check("and shares one of them", get(shared + BYTES) == b'C' && get(private + BYTES) == b'P');
    checks.check("the mapping outlives the number", close(fd) == 0 && get(shared + BYTES) == b'C');
    checks.check("its name stays in maps", maps_have(b"/memfd:ours (deleted)"));
    checks.check("both can be unmapped", unmap(shared, 2) && unmap(private, 2));
    let zero = map_at(u64::MAX, BYTES, READ_WRITE, SHARED | 0x20, 0);
    checks.check(
        "shared memory without a file has a name, too",
        maps_have(b"/dev/zero (deleted)") && unmap(zero, 1),
    );
}

fn holes(checks: &mut Checks) {
    const KEEP: u64 = 1;
    const PUNCH: u64 = 2;
    const DATA: u64 = 3;
    const HOLE: u64 = 4;
    let fd = memfd(0);
    checks.check("pages in the middle", pwrite(fd, b"x", 2 * BYTES) == 1 && ftruncate(fd, 6 * BYTES) == 0);
    checks.check("data begins there", lseek(fd, 0, DATA) == 2 * BYTES && lseek(fd, 0, HOLE) == 0);
    checks.check(
        "and ends",
        lseek(fd, 2 * BYTES + 5, HOLE) == 3 * BYTES && lseek(fd, 3 * BYTES, DATA) == ENXIO,
    );
    checks.check(
        "the end is a hole",
        lseek(fd, 6 * BYTES - 1, HOLE) == 6 * BYTES - 1 && lseek(fd, 6 * BYTES, HOLE) == ENXIO,
    );
    checks.check(
        "allocating keeps the size if asked",
        fallocate(fd, KEEP, 6 * BYTES, BYTES) == 0 && lseek(fd, 0, 2) == 6 * BYTES,
    );
    checks.check("else it grows", fallocate(fd, 0, 6 * BYTES, BYTES) == 0 && lseek(fd, 0, 2) == 7 * BYTES);
    let shared = map_at(fd, 7 * BYTES, READ_WRITE, SHARED, 0);
    set(shared + 2 * BYTES, 7);
    checks.check(
        "a hole is punched",
        fallocate(fd, PUNCH | KEEP, 2 * BYTES, BYTES) == 0 && get(shared + 2 * BYTES) == 0,
    );
    checks.check("a hole needs its size kept", fallocate(fd, PUNCH, 0, BYTES) == 95_u64.wrapping_neg());
    checks.check("all can be given back", unmap(shared, 7) && close(fd) == 0);
}

fn sealed(checks: &mut Checks) {
    let plain = memfd(0);
    checks.check("who did not ask cannot seal", seals(plain) == SEAL && add_seals(plain, GROW) == EPERM);
    close(plain);
    let fd = memfd(ALLOW_SEALING);
    checks.check("no seals yet", seals(fd) == 0 && ftruncate(fd, 2 * BYTES) == 0);
    checks.check("unknown seals are refused", add_seals(fd, 0x40) == EINVAL);
    checks.check("sealed against shrinking", add_seals(fd, SHRINK) == 0 && ftruncate(fd, BYTES) == EPERM);
    checks.check("it may grow", ftruncate(fd, 3 * BYTES) == 0);
    checks.check("sealed against growing", add_seals(fd, GROW) == 0 && ftruncate(fd, 4 * BYTES) == EPERM);
    checks.check("a write past the end is refused", pwrite(fd, b"xy", 3 * BYTES) == EPERM);
    checks.check("one across it ends there", pwrite(fd, &[1; 200], 3 * BYTES - 100) == 100);
    checks.check("allocating past the end is refused", fallocate(fd, 1, 3 * BYTES, BYTES) == EPERM);
    checks.check("writing inside is not", pwrite(fd, b"in", 0) == 2);
    checks.check("seals add up", seals(fd) == SHRINK | GROW);
    checks.check("no more seals", add_seals(fd, SEAL) == 0 && add_seals(fd, WRITE) == EPERM);
    close(fd);
    let file = open(c"/dev/shm/plain", RDWR | CREAT);
    checks.check("a file of tmpfs cannot be sealed", seals(file) == SEAL && add_seals(file, WRITE) == EPERM);
    checks.check(
        "it goes",
        close(file) == 0 && call(87, [c"/dev/shm/plain".as_ptr() as u64, 0, 0, 0, 0, 0]) == 0,
    );
}

fn mapped_and_sealed(checks: &mut Checks) {
    let fd = memfd(ALLOW_SEALING);
    ftruncate(fd, BYTES);
    let shared = map(fd, READ_WRITE, SHARED);
    set(shared, 1);
    checks.check("what is mapped writably is busy", add_seals(fd, WRITE) == EBUSY);
    checks.check("future writes can be sealed off", add_seals(fd, FUTURE_WRITE) == 0);
    set(shared, 2);
    checks.check("who has it writes on", get(shared) == 2 && pwrite(fd, b"x", 0) == EPERM);
    checks.check("nobody else comes", map(fd, READ_WRITE, SHARED) == EPERM);
    let reader = map(fd, READ, SHARED);
    checks.check(
        "but to read, for ever",
        get(reader) == 2 && sys::mprotect(reader, BYTES, READ_WRITE) == EACCES,
    );
    let own = map(fd, READ_WRITE, PRIVATE);
    set(own, 3);
    checks.check("or privately", get(own) == 3 && get(shared) == 2);
    checks.check("unmapped, it can be sealed", unmap(shared, 1) && add_seals(fd, WRITE) == 0);
    checks.check("a hole is a write", fallocate(fd, 3, 0, BYTES) == EPERM);
    checks.check("readers stay", get(reader) == 2 && unmap(reader, 1) && unmap(own, 1) && close(fd) == 0);
}

/// As shm_open and shm_unlink do.
fn posix(checks: &mut Checks) {
    const EXCL: u64 = 0o200;
    let name = c"/dev/shm/posix";
    let unlink = || call(87, [name.as_ptr() as u64, 0, 0, 0, 0, 0]);
    checks.check("nothing is there", open(name, RDWR) == ENOENT);
    let fd = open(name, RDWR | CREAT | EXCL);
    checks.check("shared memory by a name", !is_error(fd) && open(name, RDWR | CREAT | EXCL) == EEXIST);
    checks.check("of a size", ftruncate(fd, BYTES) == 0);
    let shared = map(fd, READ_WRITE, SHARED);
    let pid = child(|| {
        // As an unrelated process would.
        let other = open(name, RDWR);
        let there = map(other, READ_WRITE, SHARED);
        set(there + 9, 99);
        u64::from(there == shared || is_error(there))
    });
    checks.check("another opens it", wait(pid, 0) == (pid, 0) && get(shared + 9) == 99);
    checks.check("its name is in maps", maps_have(b"/dev/shm/posix"));
    checks.check("without a name it lives on", unlink() == 0 && close(fd) == 0 && get(shared + 9) == 99);
    checks.check("maps says that it is gone", maps_have(b"/dev/shm/posix (deleted)"));
    checks.check("until it is unmapped", unmap(shared, 1) && open(name, RDWR) == ENOENT);
}
