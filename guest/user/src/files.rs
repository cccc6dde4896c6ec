//! Files on a disk: /dev/vda has an ext2 file system without files. The host checks the disk afterwards, and what is in these files by the
//! same patterns (vmm/src/suite/images.rs).

use core::ffi::CStr;
use core::fmt::Write;

use crate::pressure::latency::now_ns;
use crate::proc::find_number as number;
use crate::processes::{child, wait};
use crate::program::Checks;
use crate::shared::{close, is_error, mount, open, pread, pwrite, unmount};
use crate::sys::{self, Out, call};

const PAGE: u64 = 4096;
const RDWR: u64 = 2;
const CREATE: u64 = RDWR | 0o100 | 0o1000;
const SHARED: u64 = 1;
const PRIVATE: u64 = 2;
const READ_WRITE: u64 = 3;
const MS_SYNC: u64 = 4;
const DONTNEED: u64 = 4;

/// Bytes of the file that two processes share.
const MAPPED: u64 = 64 * PAGE;

fn at(text: &CStr) -> u64 {
    text.as_ptr() as u64
}

/// A byte of the pattern `seed`, which the host computes, too.
fn pattern(seed: u64, offset: u64) -> u8 {
    let mixed = (offset ^ seed << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_le_bytes()[5]
}

fn fill(buffer: &mut [u8], seed: u64, offset: u64) {
    for (byte, at) in buffer.iter_mut().zip(offset..) {
        *byte = pattern(seed, at);
    }
}

fn holds(buffer: &[u8], seed: u64, offset: u64) -> bool {
    buffer.iter().zip(offset..).all(|(byte, at)| *byte == pattern(seed, at))
}

/// Writes `bytes` of a pattern into a new file; the open file.
fn write_file(checks: &mut Checks, path: &CStr, seed: u64, bytes: u64) -> u64 {
    let fd = open(path, CREATE);
    checks.check("a file is made", !is_error(fd));
    checks.check("all is written", write_pattern(fd, seed, bytes));
    fd
}

/// Writes `bytes` of a pattern to a file from its start; whether all of it was taken.
pub fn write_pattern(fd: u64, seed: u64, bytes: u64) -> bool {
    let mut buffer = [0; 10_000];
    let mut done = 0;
    while done < bytes {
        let len = (bytes - done).min(buffer.len() as u64);
        let Some(part) = buffer.get_mut(..usize::try_from(len).unwrap_or(0)) else { return false };
        fill(part, seed, done);
        let wrote = pwrite(fd, part, done);
        if wrote != len {
            let _ = writeln!(Out, "files: {} of {len} bytes written at {done}", wrote.cast_signed());
            return false;
        }
        done += len;
    }
    true
}

/// Whether a file has what [`write_pattern`] wrote.
pub fn has_pattern(fd: u64, seed: u64, bytes: u64) -> bool {
    let mut buffer = [0; 7000];
    let mut done = 0;
    while done < bytes {
        let len = (bytes - done).min(buffer.len() as u64);
        let Some(part) = buffer.get_mut(..usize::try_from(len).unwrap_or(0)) else { return false };
        let read = pread(fd, part, done);
        if read != len || !holds(part, seed, done) {
            let _ = writeln!(Out, "files: {} of {len} bytes read at {done}", read.cast_signed());
            return false;
        }
        done += len;
    }
    true
}

fn mount_disk(checks: &mut Checks) {
    mount(checks);
    let made = call(83, [at(c"/mnt"), 0o755, 0, 0, 0, 0]);
    checks.check("a place for the disk", made == 0 || made == 17_u64.wrapping_neg());
    let mounted = call(165, [at(c"/dev/vda"), at(c"/mnt"), at(c"ext2"), 0, 0, 0]);
    checks.check("the disk is mounted", mounted == 0);
}

fn unmount_disk(checks: &mut Checks) {
    checks.check("the disk is unmounted", call(166, [at(c"/mnt"), 0, 0, 0, 0, 0]) == 0);
    unmount(checks);
}

fn map(fd: u64, bytes: u64, flags: u64) -> u64 {
    call(9, [0, bytes, READ_WRITE, flags, fd, 0])
}

fn load(address: u64) -> u8 {
    sys::load(address & !3, 0).to_le_bytes()[(address & 3) as usize]
}

/// Four bytes of a pattern, as one access has them.
fn word(seed: u64, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    if let Some(low) = bytes.get_mut(..4) {
        fill(low, seed, offset);
    }
    u64::from_le_bytes(bytes)
}

fn fsync(fd: u64) -> u64 {
    call(74, [fd, 0, 0, 0, 0, 0])
}

/// Files are written, read, cut, mapped by two processes and removed; the disk is unmounted and mounted again, and has them still.
pub fn shared_file(checks: &mut Checks) {
    mount_disk(checks);
    let fd = write_file(checks, c"/mnt/plain", 1, 300_000);
    checks.check("it is read back", has_pattern(fd, 1, 300_000));
    checks.check("it is synced", fsync(fd) == 0);
    checks.check("its pages may go", call(221, [fd, 0, 0, DONTNEED, 0, 0]) == 0);
    checks.check("and come back from the disk", has_pattern(fd, 1, 300_000));
    close(fd);
    two_processes(checks);
    private(checks);
    cut(checks);
    holes(checks);
    synced_and_removed(checks);
    let gone = write_file(checks, c"/mnt/gone", 9, 100_000);
    checks.check("a file without a name", call(87, [at(c"/mnt/gone"), 0, 0, 0, 0, 0]) == 0);
    checks.check("is there while it is open", has_pattern(gone, 9, 100_000));
    close(gone);
    unmount_disk(checks);
    mount_disk(checks);
    for (path, seed, bytes) in
        [(c"/mnt/plain", 1, 300_000), (c"/mnt/shared", 2, MAPPED), (c"/mnt/cut", 4, 5000)]
    {
        let fd = open(path, 0);
        checks.check("it is there after another mount", has_pattern(fd, seed, bytes));
        close(fd);
    }
    unmount_disk(checks);
}

/// Each writes every second page; both see all of it, and so does the disk after msync.
fn two_processes(checks: &mut Checks) {
    let fd = open(c"/mnt/shared", CREATE);
    checks.check("a file grows without blocks", call(77, [fd, MAPPED, 0, 0, 0, 0]) == 0);
    let memory = map(fd, MAPPED, SHARED);
    checks.check("it is mapped", !is_error(memory));
    let write = |odd: u64| {
        for page in (odd..MAPPED / PAGE).step_by(2) {
            for offset in (page * PAGE..(page + 1) * PAGE).step_by(4) {
                sys::store(memory + offset, word(2, offset));
            }
        }
    };
    let pid = child(|| {
        write(1);
        0
    });
    write(0);
    checks.check("another process writes, too", wait(pid, 0) == (pid, 0));
    checks.check("read sees what both wrote", has_pattern(fd, 2, MAPPED));
    checks.check("msync", call(26, [memory, MAPPED, MS_SYNC, 0, 0, 0]) == 0);
    checks.check("nothing is dirty then", number(c"/proc/meminfo", b"Dirty:") == Some(0));
    // A page that was written back tells of the next write.
    sys::store(memory, 0);
    checks.check("a write after that makes a page dirty", number(c"/proc/meminfo", b"Dirty:") == Some(4));
    let mut bytes = [0; 8];
    fill(&mut bytes, 2, 0);
    checks.check("a call writes where it is mapped", pwrite(fd, &bytes, 0) == 8);
    checks.check("and the mapping has it", sys::load(memory, 0) == word(2, 0));
    checks.check("it is unmapped", sys::munmap(memory, MAPPED) == 0);
    close(fd);
}

fn private(checks: &mut Checks) {
    let fd = write_file(checks, c"/mnt/private", 3, 2 * PAGE);
    let memory = map(fd, 2 * PAGE, PRIVATE);
    sys::store(memory, 77);
    checks.check("a private write is nobody else's", has_pattern(fd, 3, 2 * PAGE));
    checks.check("but its own", sys::load(memory, 0) == 77);
    checks.check("it is unmapped", sys::munmap(memory, 2 * PAGE) == 0);
    close(fd);
}

/// A file that is mapped becomes shorter.
fn cut(checks: &mut Checks) {
    let fd = write_file(checks, c"/mnt/cut", 4, 6 * PAGE);
    let memory = map(fd, 6 * PAGE, SHARED);
    checks.check("all of it is there", load(memory + 5 * PAGE) == pattern(4, 5 * PAGE));
    checks.check("it is cut", call(77, [fd, 5000, 0, 0, 0, 0]) == 0);
    checks.check("what is left is there", load(memory + 4999) == pattern(4, 4999));
    checks.check("behind it is nothing", load(memory + 5000) == 0);
    let pid = child(|| {
        sys::load(memory + 2 * PAGE, 0);
        0
    });
    checks.check("a page past the end is SIGBUS", wait(pid, 0).1 & 0x7f == 7);
    checks.check("it grows again", call(77, [fd, 3 * PAGE, 0, 0, 0, 0]) == 0);
    checks.check("with zeroes", load(memory + 5000) == 0 && load(memory + 2 * PAGE) == 0);
    checks.check("it is unmapped", sys::munmap(memory, 6 * PAGE) == 0);
    close(fd);
}

/// A file with holes, written in their middle by calls and by a mapping.
fn holes(checks: &mut Checks) {
    let fd = open(c"/mnt/holes", CREATE);
    let far = 3_000_000;
    checks.check("a byte far away", pwrite(fd, b"x", far) == 1);
    let mut back = [1; 100];
    checks.check("before it are zeroes", pread(fd, &mut back, far - 100) == 100 && back == [0; 100]);
    let memory = map(fd, far, SHARED);
    sys::store(memory + 500 * PAGE, 5);
    checks.check("a hole is written by a mapping", fsync(fd) == 0);
    checks.check("and read", pread(fd, &mut back[..1], 500 * PAGE) == 1 && back[0] == 5);
    checks.check("it is unmapped", sys::munmap(memory, far) == 0);
    close(fd);
}

/// Files are written by a mapping, closed and removed while another process syncs all the time: who removes a file waits for pages that are
/// being written, who writes asks the file system where pages go that were holes. Neither may wait for the other for ever.
fn synced_and_removed(checks: &mut Checks) {
    const ROUNDS: u64 = 300;
    const BYTES: u64 = 48 * PAGE;
    let ended = map_word();
    let pid = child(|| {
        while sys::load(ended, 0) == 0 {
            call(162, [0; 6]);
        }
        0
    });
    let end = now_ns() + 20_000_000_000;
    // On a slow machine as many as it can.
    let removed = (0..ROUNDS).take_while(|_| now_ns() < end).all(|_| {
        let fd = open(c"/mnt/raced", CREATE);
        let grown = call(77, [fd, BYTES, 0, 0, 0, 0]) == 0;
        let memory = map(fd, BYTES, SHARED);
        for page in 0..BYTES / PAGE {
            sys::store(memory + page * PAGE, 1);
        }
        let unmapped = sys::munmap(memory, BYTES) == 0;
        close(fd);
        grown && unmapped && call(87, [at(c"/mnt/raced"), 0, 0, 0, 0, 0]) == 0
    });
    sys::store(ended, 1);
    checks.check("files are removed while they are synced", removed);
    checks.check("and synced while they are removed", wait(pid, 0) == (pid, 0));
    checks.check("the word is unmapped", sys::munmap(ended, PAGE) == 0);
}

/// A word that processes share.
fn map_word() -> u64 {
    const ANONYMOUS: u64 = 0x20;
    call(9, [0, PAGE, READ_WRITE, SHARED | ANONYMOUS, u64::MAX, 0])
}

/// A file as large as the kernel's command line does not say: 24 MiB, read in order, backwards and by a mapping.
pub fn file_cache(checks: &mut Checks) {
    const BYTES: u64 = 24 << 20;
    mount_disk(checks);
    let fd = write_file(checks, c"/mnt/large", 5, BYTES);
    checks.check("fsync", fsync(fd) == 0);
    let reads = || number(c"/proc/vmstat", b"pgpgin ");
    for _ in 0..2 {
        checks.check("its pages may go", call(221, [fd, 0, 0, DONTNEED, 0, 0]) == 0);
        let before = reads();
        checks.check("it is read in order", has_pattern(fd, 5, BYTES));
        let after = reads();
        let told = before.zip(after).map(|(before, after)| after - before);
        let _ = writeln!(Out, "file-cache: {} KiB read for {} KiB", told.unwrap_or(0), BYTES >> 10);
        checks.check(
            "each page once",
            told.is_some_and(|kib| (BYTES >> 10..(BYTES >> 10) * 5 / 4).contains(&kib)),
        );
    }
    let mut page = [0; 4096];
    let backwards = (0..BYTES / PAGE)
        .rev()
        .step_by(7)
        .all(|index| pread(fd, &mut page, index * PAGE) == PAGE && holds(&page, 5, index * PAGE));
    checks.check("backwards", backwards);
    checks.check("its pages may go", call(221, [fd, 0, 0, DONTNEED, 0, 0]) == 0);
    let memory = map(fd, BYTES, SHARED);
    let mapped = (0..BYTES / PAGE).all(|index| {
        let offset = index * PAGE + index % 512 * 8;
        sys::load(memory + offset, 0) == word(5, offset)
    });
    checks.check("by a mapping", mapped);
    checks.check("it is unmapped", sys::munmap(memory, BYTES) == 0);
    close(fd);
    unmount_disk(checks);
}

/// A writer who is faster than the disk waits: what is dirty stays below the limit.
pub fn dirty_throttle(checks: &mut Checks) {
    mount_disk(checks);
    let fd = open(c"/mnt/written", CREATE);
    let mut buffer = [0; 4096];
    let (mut most, pages) = (0, 6000);
    for index in 0..pages {
        fill(&mut buffer, 6, index * PAGE);
        if pwrite(fd, &buffer, index * PAGE) != PAGE {
            checks.check("all is written", false);
            break;
        }
        if index % 16 == 0 {
            let dirty = number(c"/proc/meminfo", b"Dirty:").unwrap_or(u64::MAX);
            let writeback = number(c"/proc/meminfo", b"Writeback:").unwrap_or(u64::MAX);
            most = most.max(dirty.saturating_add(writeback));
        }
    }
    let limit = number(c"/proc/vmstat", b"nr_dirty_threshold ").unwrap_or(0) * 4;
    let _ = writeln!(Out, "dirty-throttle: at most {most} KiB dirty of {} KiB, limit {limit} KiB", pages * 4);
    checks.check("there is a limit", limit > 0 && limit < pages * 4);
    // The limit moves with what is free.
    checks.check("what is dirty stays below it", most <= limit * 5 / 4);
    checks.check("fsync", fsync(fd) == 0);
    checks.check("nothing is dirty then", number(c"/proc/meminfo", b"Dirty:") == Some(0));
    checks.check("all is there", has_pattern(fd, 6, pages * PAGE));
    close(fd);
    unmount_disk(checks);
}

/// The machine stops without a word to the file system: what fsync promised is on the disk.
pub fn power_cut(checks: &mut Checks) {
    mount_disk(checks);
    let fd = write_file(checks, c"/mnt/promised", 7, 500_000);
    // The disk holds other bytes there until the store by the mapping comes to it.
    checks.check("other bytes", pwrite(fd, &[0; 4], 8 * PAGE) == 4);
    checks.check("fsync of them", fsync(fd) == 0);
    let memory = map(fd, 500_000, SHARED);
    sys::store(memory + 8 * PAGE, word(7, 8 * PAGE));
    checks.check("fsync", fsync(fd) == 0);
    let lost = write_file(checks, c"/mnt/lost", 8, 200_000);
    checks.check("nobody promised anything of another", !is_error(lost));
    // Neither is closed, nothing is unmounted.
}
