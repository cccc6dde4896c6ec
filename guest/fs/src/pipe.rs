//! Pipes (Linux: fs/pipe.c).
//!
//! A pipe holds up to 16 pages, each with the bytes of one write or of several small ones. The kernel copies a page's worth from
//! a program and gives it to [`Pipe::write`], which takes all of it or nothing: so a write of up to [`PIPE_BUF`] bytes is never torn.
//!
//! Invariants:
//! P1  no page is empty, none has more than a page's bytes;
//! P2  there are at most 16.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::poll::PollFlags;
use crate::{Errno, no_memory};

/// Bytes of a write that others never see in part.
pub const PIPE_BUF: usize = 4096;
const SLOTS: usize = 16;

/// Bytes, of which some were read.
#[derive(Debug)]
struct Page {
    bytes: Vec<u8>,
    start: usize,
}

/// A pipe.
#[derive(Debug, Default)]
pub struct Pipe {
    pages: VecDeque<Page>,
    readers: u32,
    writers: u32,
    /// Ends that were ever opened, for opens of a named pipe that wait for the other end.
    reader_opens: u64,
    writer_opens: u64,
}

/// Result of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PipeRead {
    /// So many bytes.
    Bytes(usize),
    /// Nothing more will come.
    End,
    /// Wait until something is written.
    Empty,
}

/// Result of a write.
#[derive(Debug, PartialEq, Eq)]
pub enum PipeWrite {
    /// All bytes are in the pipe.
    Done,
    /// Wait until something is read; the bytes come back.
    Full(Vec<u8>),
}

impl Pipe {
    /// A pipe without ends.
    pub const fn new() -> Pipe {
        Pipe { pages: VecDeque::new(), readers: 0, writers: 0, reader_opens: 0, writer_opens: 0 }
    }

    /// Room for all pages, so that writing allocates nothing.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn reserve(&mut self) -> Result<(), Errno> {
        self.pages.try_reserve_exact(SLOTS - self.pages.len().min(SLOTS)).map_err(no_memory)
    }

    /// Opens an end or both.
    pub fn open(&mut self, reads: bool, writes: bool) {
        self.readers += u32::from(reads);
        self.writers += u32::from(writes);
        self.reader_opens += u64::from(reads);
        self.writer_opens += u64::from(writes);
    }

    /// Closes what was opened; whether nobody has it open any more, and the bytes in it are gone.
    pub fn close(&mut self, reads: bool, writes: bool) -> bool {
        self.readers = self.readers.saturating_sub(u32::from(reads));
        self.writers = self.writers.saturating_sub(u32::from(writes));
        let unused = self.readers == 0 && self.writers == 0;
        if unused {
            self.pages.clear();
        }
        unused
    }

    /// Ends open for reading and for writing.
    pub const fn ends(&self) -> (u32, u32) {
        (self.readers, self.writers)
    }

    /// Opens so far of each end.
    pub const fn opens(&self) -> (u64, u64) {
        (self.reader_opens, self.writer_opens)
    }

    /// Bytes in it (FIONREAD).
    pub fn len(&self) -> usize {
        self.pages.iter().map(|page| page.bytes.len() - page.start).sum()
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Reads what is there.
    pub fn read(&mut self, buffer: &mut [u8]) -> PipeRead {
        let mut done = 0;
        while done < buffer.len() {
            let Some(page) = self.pages.front_mut() else { break };
            let (rest, slot) = (&page.bytes[page.start..], &mut buffer[done..]);
            let len = rest.len().min(slot.len());
            slot[..len].copy_from_slice(&rest[..len]);
            page.start += len;
            done += len;
            if page.start == page.bytes.len() {
                self.pages.pop_front();
            }
        }
        match done {
            0 if buffer.is_empty() => PipeRead::Bytes(0),
            0 if self.writers == 0 => PipeRead::End,
            0 => PipeRead::Empty,
            len => PipeRead::Bytes(len),
        }
    }

    fn merges(&self, len: usize) -> bool {
        // Where a page begins in memory does not change when its start is read, so what was read is not room.
        self.pages.back().is_some_and(|last| len < PIPE_BUF && last.bytes.len() + len <= PIPE_BUF)
    }

    /// Bytes that a write of `total` should give first: what exceeds whole pages if it goes into the last page, else a page.
    pub fn first_piece(&self, total: usize) -> usize {
        let odd = total % PIPE_BUF;
        if odd > 0 && self.merges(odd) { odd } else { total.min(PIPE_BUF) }
    }

    /// Writes at most a page's bytes: all or nothing.
    ///
    /// # Errors
    /// `EPIPE` if nobody can read it; `EINVAL` for more than a page; `ENOMEM`.
    pub fn write(&mut self, bytes: Vec<u8>) -> Result<PipeWrite, Errno> {
        if self.readers == 0 {
            return Err(Errno::Epipe);
        }
        if bytes.len() > PIPE_BUF {
            return Err(Errno::Einval);
        }
        if bytes.is_empty() {
            return Ok(PipeWrite::Done);
        }
        if self.merges(bytes.len())
            && let Some(last) = self.pages.back_mut()
        {
            last.bytes.try_reserve(bytes.len()).map_err(no_memory)?;
            last.bytes.extend_from_slice(&bytes);
            return Ok(PipeWrite::Done);
        }
        if self.pages.len() >= SLOTS {
            return Ok(PipeWrite::Full(bytes));
        }
        self.reserve()?;
        self.pages.push_back(Page { bytes, start: 0 });
        Ok(PipeWrite::Done)
    }

    /// What poll reports for an end (Linux: `pipe_poll`).
    pub fn poll(&self, reads: bool, writes: bool) -> PollFlags {
        let mut flags = PollFlags::empty();
        if reads {
            flags.set(PollFlags::IN | PollFlags::RDNORM, !self.pages.is_empty());
            flags.set(PollFlags::HUP, self.writers == 0 && self.writer_opens > 0);
        }
        if writes {
            flags.set(PollFlags::OUT | PollFlags::WRNORM, self.pages.len() < SLOTS);
            flags.set(PollFlags::ERR, self.readers == 0);
        }
        flags
    }
}
