//! The same for calls that work on a disk: what is in the page cache is forgotten first, so that each needs pages.

use core::ffi::CStr;

use super::{Call, error, waits};
use crate::memory::{PRIVATE, Pages, READ_WRITE};
use crate::pressure::at;
use crate::promises::put;
use crate::shared::{close, is_error, open, pread, pwrite};
use crate::sys::{self, call};

/// Calls on files of the disk at /mnt.
pub(super) const FILES: &[Call] = &[
    waits("a file is written, synced and read", write_and_read),
    waits("a file is mapped", map),
    waits("a file becomes shorter and longer", truncate),
    waits("a directory with a file", directory),
    waits("files are listed", || super::read_directory(c"/mnt")),
    waits("statfs", statfs),
];

/// Calls that need a swap area.
pub(super) const SWAP: &[Call] = &[waits("pages go out and come back", swap)];

const FILE: &CStr = c"/mnt/f";
const PAGES: u64 = 20;
const SYNC: u64 = 4;

/// Nothing of files is in memory that need not be.
fn forget() {
    put(c"/proc/sys/vm/drop_caches", b"3\n");
}

fn unlink(path: &CStr) -> u64 {
    call(87, [at(path), 0, 0, 0, 0, 0])
}

/// Calls `f` with the file open, and takes it away.
fn with_file(f: impl FnOnce(u64) -> u64) -> u64 {
    forget();
    let fd = open(FILE, super::CREATE);
    if is_error(fd) {
        return fd;
    }
    let result = f(fd);
    close(fd);
    result | unlink(FILE)
}

/// Where the word of a page is in it, far from its beginning; a program that maps the file writes before it.
const WORD: u64 = 2000;

/// The word.
fn word(page: u64) -> [u8; 8] {
    (page * 0x0101 + 7).to_le_bytes()
}

/// Writes a word to each page of the file.
fn write(fd: u64) -> u64 {
    for page in 0..PAGES {
        let written = pwrite(fd, &word(page), page * 4096 + WORD);
        if written != 8 {
            return if is_error(written) { written } else { 3 };
        }
    }
    0
}

/// Whether the pages up to `pages` have their words at that place.
fn read(fd: u64, pages: u64, place: u64) -> u64 {
    for page in 0..pages {
        let mut found = [0; 8];
        let got = pread(fd, &mut found, page * 4096 + place);
        if got != 8 {
            return if is_error(got) { got } else { 4 };
        }
        if found != word(page) {
            return 5;
        }
    }
    0
}

fn fsync(fd: u64) -> u64 {
    call(74, [fd, 0, 0, 0, 0, 0])
}

fn first_error(steps: &[&dyn Fn() -> u64]) -> u64 {
    steps.iter().map(|step| step()).find(|result| *result != 0).unwrap_or(0)
}

fn write_and_read() -> u64 {
    with_file(|fd| {
        let dropped = || {
            forget();
            0
        };
        first_error(&[&|| write(fd), &|| fsync(fd), &dropped, &|| read(fd, PAGES, WORD)])
    })
}

fn map() -> u64 {
    with_file(|fd| {
        let result = first_error(&[&|| write(fd), &|| fsync(fd)]);
        if result != 0 {
            return result;
        }
        forget();
        let start = sys::mmap(0, PAGES * 4096, READ_WRITE, 1, fd);
        if is_error(start) {
            return start;
        }
        let mut result = 0;
        for page in 0..PAGES {
            let place = start + page * 4096 + WORD;
            if sys::load(place, 0) != u64::from_le_bytes(word(page)) {
                result = 6;
            }
            sys::store(place - 8, u64::from_le_bytes(word(page)));
        }
        let synced = call(26, [start, PAGES * 4096, SYNC, 0, 0, 0]);
        let gone = sys::munmap(start, PAGES * 4096);
        forget();
        let both = [WORD - 8, WORD].map(|place| move || read(fd, PAGES, place));
        first_error(&[&|| result, &|| error(synced), &|| gone, &both[0], &both[1]])
    })
}

fn truncate() -> u64 {
    with_file(|fd| {
        let to = |pages: u64| move || call(77, [fd, pages * 4096 + 2008, 0, 0, 0, 0]);
        first_error(&[&|| write(fd), &to(7), &|| read(fd, 8, WORD), &to(PAGES - 1), &|| fsync(fd), &|| {
            read(fd, 8, WORD)
        }])
    })
}

fn directory() -> u64 {
    forget();
    let (path, inside, renamed) = (c"/mnt/d", c"/mnt/d/x", c"/mnt/d/y");
    let made = call(83, [at(path), 0o755, 0, 0, 0, 0]);
    if is_error(made) {
        return made;
    }
    let fd = open(inside, super::CREATE);
    if is_error(fd) {
        return fd | call(84, [at(path), 0, 0, 0, 0, 0]);
    }
    close(fd);
    let moved = call(82, [at(inside), at(renamed), 0, 0, 0, 0]);
    let gone = unlink(if moved == 0 { renamed } else { inside });
    error(moved) | gone | call(84, [at(path), 0, 0, 0, 0, 0])
}

fn statfs() -> u64 {
    forget();
    let mut words = [0_u64; 15];
    error(call(137, [at(c"/mnt"), words.as_mut_ptr() as u64, 0, 0, 0, 0]))
}

fn swap() -> u64 {
    const PAGEOUT: u64 = 21;
    let pages = Pages::map(24, READ_WRITE, PRIVATE);
    super::with_pages(&pages, || {
        pages.fill(11);
        let out = sys::madvise(pages.start, 24 * 4096, PAGEOUT);
        error(out) | u64::from(!pages.holds(11))
    })
}
