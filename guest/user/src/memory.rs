//! Memory that checks map for themselves, word by word.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Release, SeqCst};

use crate::program::PAGE;
use crate::sys;

/// Bytes of a page.
pub const BYTES: u64 = PAGE as u64;
pub const NONE: u64 = 0;
pub const READ: u64 = 1;
pub const READ_WRITE: u64 = 3;
pub const READ_EXEC: u64 = 5;
pub const SHARED: u64 = 1;
pub const PRIVATE: u64 = 2;
pub const FIXED: u64 = 0x10;
const ANONYMOUS: u64 = 0x20;

/// Pages that were mapped just now; they stay until the process ends or [`Pages::unmap`].
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    pub start: u64,
    pub count: u64,
}

impl Pages {
    /// Anonymous memory; `kind` is [`PRIVATE`] or [`SHARED`].
    pub fn map(count: u64, prot: u64, kind: u64) -> Pages {
        let start = sys::mmap(0, count * BYTES, prot, kind | ANONYMOUS, u64::MAX);
        Pages { start, count }
    }

    /// Whether the kernel gave memory.
    pub fn is_mapped(&self) -> bool {
        self.start.is_multiple_of(BYTES)
    }

    /// Fresh private pages in the place of these.
    pub fn replace(&self) -> bool {
        let flags = PRIVATE | ANONYMOUS | FIXED;
        sys::mmap(self.start, self.count * BYTES, READ_WRITE, flags, u64::MAX) == self.start
    }

    pub fn protect(&self, prot: u64) -> bool {
        sys::mprotect(self.start, self.count * BYTES, prot) == 0
    }

    pub fn unmap(&self) -> bool {
        sys::munmap(self.start, self.count * BYTES) == 0
    }

    /// Address of a page.
    pub const fn at(&self, page: u64) -> u64 {
        self.start + page * BYTES
    }

    /// The first word of a page.
    pub fn word(&self, page: u64) -> &'static AtomicU64 {
        self.word_at(page, 0)
    }

    /// A word of a page, of 512.
    pub fn word_at(&self, page: u64, word: u64) -> &'static AtomicU64 {
        let address = self.at(page % self.count) + word % 512 * 8;
        // SAFETY: the kernel gave the range to whoever made this, as whole pages; nobody uses it but by atomic words.
        unsafe { &*(address as *const AtomicU64) }
    }

    /// Writes `value` plus the page's number to each page.
    pub fn fill(&self, value: u64) {
        for page in 0..self.count {
            // A plain store: of an exchange QEMU's software CPU makes a load and a store when it has one CPU only, which fault each.
            self.word(page).store(value + page, Release);
        }
    }

    /// Whether each page has what [`Pages::fill`] wrote.
    pub fn holds(&self, value: u64) -> bool {
        (0..self.count).all(|page| self.word(page).load(SeqCst) == value + page)
    }
}
