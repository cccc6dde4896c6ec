//! Disks of a suite: the largest one without a file system is for swapping, the first one with ext2 is mounted at /mnt. So a
//! suite runs on machines whose disks come in any order.

use core::ffi::CStr;

use super::at;
use crate::program::Checks;
use crate::shared::{close, is_error, mount, open, pread, unmount};
use crate::swaps::{mkswap, swapoff, swapon};
use crate::sys::call;

const PATHS: [&CStr; 8] =
    [c"/dev/vda", c"/dev/vdb", c"/dev/vdc", c"/dev/vdd", c"/dev/vde", c"/dev/vdf", c"/dev/vdg", c"/dev/vdh"];
/// Slots of a swap area; no disk here has more but that of suite fragmentation.
const SLOTS: u64 = 65_536;

/// What is in use. All of it is given back by [`Disks::end`].
#[derive(Debug)]
pub struct Disks {
    /// The swap area's disk, and its slots.
    pub swap: Option<(&'static CStr, u64)>,
    /// Whether a disk is mounted at /mnt.
    pub mounted: bool,
}

/// Bytes of a disk that can be written, and whether it has ext2.
fn look(path: &CStr) -> Option<(u64, bool)> {
    let fd = open(path, 2);
    if is_error(fd) {
        return None;
    }
    let bytes = call(8, [fd, 0, 2, 0, 0, 0]);
    let mut magic = [0; 2];
    let read = pread(fd, &mut magic, 1024 + 56) == 2;
    close(fd);
    Some((bytes, read && magic == [0x53, 0xef]))
}

/// The disk for swapping, and its size in pages.
pub fn largest() -> Option<(&'static CStr, u64)> {
    let blank = PATHS.into_iter().filter_map(|path| {
        let (bytes, has_files) = look(path)?;
        (!has_files).then_some((path, bytes / 4096))
    });
    blank.max_by_key(|(_, pages)| *pages)
}

impl Disks {
    /// Mounts /proc, /dev and what disks there are.
    pub fn begin(checks: &mut Checks) -> Disks {
        mount(checks);
        let swap = largest().map(|(path, pages)| (path, pages.min(SLOTS)));
        if let Some((path, pages)) = swap {
            checks.check("swapon", mkswap(path, pages) && swapon(path, 0) == 0);
        }
        call(83, [at(c"/mnt"), 0o755, 0, 0, 0, 0]);
        let mounted = PATHS.into_iter().any(|path| {
            look(path).is_some_and(|(_, has_files)| has_files)
                && call(165, [at(path), at(c"/mnt"), at(c"ext2"), 0, 0, 0]) == 0
        });
        Disks { swap, mounted }
    }

    /// Gives all back.
    pub fn end(self, checks: &mut Checks) {
        if self.mounted {
            checks.check("the disk is unmounted", call(166, [at(c"/mnt"), 0, 0, 0, 0, 0]) == 0);
        }
        if let Some((path, _)) = self.swap {
            checks.check("swapoff", swapoff(path) == 0);
        }
        unmount(checks);
    }
}

/// A new file of that many pages without a block: every page of it is read as zeroes and lies in the page cache.
pub fn sparse(checks: &mut Checks, path: &CStr, pages: u64) -> u64 {
    let fd = open(path, 2 | 0o100 | 0o1000);
    checks.check("a file without blocks", !is_error(fd) && call(77, [fd, pages * 4096, 0, 0, 0, 0]) == 0);
    fd
}

/// Takes a file away.
pub fn remove(path: &CStr) -> bool {
    call(87, [at(path), 0, 0, 0, 0, 0]) == 0
}

/// Reads a word in each page of a range of a file without blocks; how many were not zero or could not be read.
pub fn read_through(fd: u64, pages: core::ops::Range<u64>) -> u64 {
    let mut word = [0_u8; 8];
    let mut wrong = 0;
    for page in pages {
        let got = pread(fd, &mut word, page * 4096 + 8 * (page % 512));
        wrong += u64::from(got != 8 || word != [0; 8]);
    }
    wrong
}
