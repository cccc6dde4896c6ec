//! Memory under pressure, as programs make it and see it. Each suite runs in ring 3, sets up what it needs by system calls, checks
//! contents and counts, and its screen says what it did (`screen.rs`).
//!
//! Machines with less than 48 MiB run a short variant, so that a suite ends in time where a hypervisor emulates ring 0.

pub mod disks;
pub mod everything;
pub mod fragments;
pub mod given;
pub mod latency;
pub mod locked;
pub mod maps;
pub mod nodes;
pub mod patterns;
pub mod screen;
pub mod slabs;
pub mod vmstat;
pub mod waves;

use core::ffi::CStr;
use core::sync::atomic::Ordering::SeqCst;

use crate::memory::Pages;
use crate::shared::{close, is_error, open};
use crate::swaps::sizes;
use crate::sys;

/// Address of a text, for a system call.
pub fn at(text: &CStr) -> u64 {
    text.as_ptr() as u64
}

/// Whether a file can be opened.
pub fn is_there(path: &CStr) -> bool {
    let fd = open(path, 0);
    close(fd);
    !is_error(fd)
}

/// Pages of memory, without the kernel's.
pub fn ram() -> u64 {
    sizes()[0]
}

/// Whether this machine gets the short variant.
pub fn is_small() -> bool {
    ram() < (48 << 20) / 4096
}

/// CPUs that this process may use.
pub fn cpus() -> u64 {
    let mut mask = [0_u64; 4];
    sys::sched_getaffinity(0, &mut mask);
    mask.iter().map(|word| u64::from(word.count_ones())).sum::<u64>().max(1)
}

/// What belongs into a word of a page: of an owner, in a round.
pub const fn sum(owner: u64, page: u64, word: u64) -> u64 {
    (page ^ owner << 40 ^ word << 52).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

/// Words of a page that are written: the first, the last, and one of them between.
const WORDS: [u64; 3] = [0, 257, 511];

/// Writes an owner's words to a page.
pub fn write_page(pages: &Pages, page: u64, owner: u64) {
    for word in WORDS {
        pages.word_at(page, word).store(sum(owner, page, word), SeqCst);
    }
}

/// Whether a page has an owner's words.
pub fn holds_page(pages: &Pages, page: u64, owner: u64) -> bool {
    WORDS.iter().all(|word| pages.word_at(page, *word).load(SeqCst) == sum(owner, page, *word))
}

/// Pages of a range that are in memory, by mincore.
pub fn resident(pages: &Pages) -> u64 {
    let mut bytes = [0_u8; 256];
    let mut count = 0;
    for first in (0..pages.count).step_by(bytes.len()) {
        let len = (pages.count - first).min(bytes.len() as u64);
        sys::mincore(pages.at(first), len * 4096, &mut bytes);
        let seen = bytes.iter().take(usize::try_from(len).unwrap_or(0));
        count += seen.filter(|byte| **byte & 1 != 0).count() as u64;
    }
    count
}
