//! Walkthroughs of files: the data disk, read and written through the page cache.

use super::{DATA, part, read_data};
use crate::memory::{PRIVATE, Pages, READ_WRITE};
use crate::program::Checks;
use crate::shared::{close, is_error, open, pread, pwrite};
use crate::sys::{self, call};

const PAGE: u64 = 4096;
const BYTES: usize = 4096;
const RDWR: u64 = 2;
/// Pages that are more than may be dirty.
const MUCH: u64 = 48;
/// POSIX_FADV_DONTNEED.
const DONTNEED: u64 = 4;
const EXT2: &core::ffi::CStr = c"/mnt";

fn fsync(fd: u64) -> u64 {
    call(74, [fd, 0, 0, 0, 0, 0])
}

/// Writes to files are writes to memory; the disk gets them later, or when somebody asks.
pub fn writeback(checks: &mut Checks) {
    let fd = open(DATA, RDWR);
    let bytes = [0x5a; 4 * BYTES];
    let written = part(|| pwrite(fd, &bytes, 0));
    checks.check("the write is taken", written == 4 * PAGE);
    let synced = part(|| fsync(fd));
    checks.check("the disk has it", synced == 0);
    // More than may be dirty: who writes is held up, and the flusher works.
    let limit = open(c"/proc/sys/vm/dirty_background_bytes", 1);
    checks.check("the background limit is low", pwrite(limit, b"32768\n", 0) == 6);
    close(limit);
    let limit = open(c"/proc/sys/vm/dirty_bytes", 1);
    checks.check("the limit is low", pwrite(limit, b"36864\n", 0) == 6);
    close(limit);
    let much = Pages::map(MUCH, READ_WRITE, PRIVATE);
    much.fill(1);
    // A disk that answers at once would keep up with who fills its pages one by one: none has to be read before it is written.
    read_data(0, MUCH);
    let written = part(|| call(18, [fd, much.start, MUCH * PAGE, 0, 0, 0]));
    checks.check("all of it is taken", written == MUCH * PAGE);
    checks.check("all is on the disk at the end", fsync(fd) == 0);
    close(fd);
}

/// A file is read: from the disk with what follows, ahead of the reader, and from memory.
pub fn read(checks: &mut Checks) {
    let fd = open(DATA, 0);
    let mut buffer = [0; BYTES];
    let mut get = |page: u64| pread(fd, &mut buffer, page * PAGE) == PAGE;
    checks.check("the first page", part(|| get(0)));
    checks.check("the second, which was read with it", part(|| get(1)));
    checks.check("the pages behind it", part(|| (2..8).all(&mut get)));
    checks.check("the first once more", part(|| get(0)));
    close(fd);
}

/// The same pages by read and by mmap.
pub fn mmap_vs_read(checks: &mut Checks) {
    const COUNT: u64 = 8;
    const NAME: &core::ffi::CStr = c"/mnt/file";
    let at = |text: &core::ffi::CStr| text.as_ptr() as u64;
    call(83, [at(EXT2), 0o755, 0, 0, 0, 0]);
    let mounted = call(165, [at(c"none"), at(EXT2), at(c"tmpfs"), 0, 0, 0]);
    checks.check("a file system in memory", mounted == 0);
    let fd = open(NAME, RDWR | 0o100);
    checks.check("a file", !is_error(fd));
    let mut buffer = [0; BYTES];
    for page in 0..COUNT {
        buffer[0] = page.to_le_bytes()[0] + 1;
        pwrite(fd, &buffer, page * PAGE);
    }
    let sum = part(|| {
        let mut sum = 0;
        for page in 0..COUNT {
            pread(fd, &mut buffer, page * PAGE);
            sum += u64::from(buffer[0]);
        }
        sum
    });
    checks.check("read has what was written", sum == COUNT * (COUNT + 1) / 2);
    let (sum, map) = part(|| {
        let map = call(9, [0, COUNT * PAGE, 1, 1, fd, 0]);
        let sum = (0..COUNT).map(|page| sys::load(map + page * PAGE, 0) & 0xff).sum::<u64>();
        (sum, map)
    });
    checks.check("so has the mapping", sum == COUNT * (COUNT + 1) / 2);
    let again = part(|| (0..COUNT).map(|page| sys::load(map + page * PAGE, 0) & 0xff).sum::<u64>());
    checks.check("and a second look costs nothing", again == sum);
    sys::munmap(map, COUNT * PAGE);
    call(221, [fd, 0, 0, DONTNEED, 0, 0]);
    close(fd);
}
