//! The log of the kernel: what it said, in a ring of bytes (Linux: `printk_ringbuffer`).
//!
//! Records lie one behind the other, each a [`LogHeader`] with its text, which is filled up to 8 bytes. Places are counted from the first
//! byte ever written: place `n` is byte `n % len` of the buffer, so a record may go on at the buffer's start. [`LogState::tail`]
//! is where the oldest one is, [`LogState::head`] where the next one will be.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most bytes of a record's text (Linux: `LOG_LINE_MAX` is 1024 with the prefix).
pub const LOG_LINE_MAX: usize = 976;

/// The log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct KernelLog {
    /// Odd while somebody writes: what the rest says may not fit together then.
    pub version: u64,
    /// Where the records are.
    pub state: LogState,
}

/// What a log says of its records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LogState {
    /// Guest-physical address of the buffer.
    pub buffer_gpa: u64,
    /// Bytes of the buffer, a power of two.
    pub len: u64,
    /// Place of the oldest record, a multiple of 8.
    pub tail: u64,
    /// Place of the next one, at most `len` beyond `tail`.
    pub head: u64,
    /// Number of the oldest record: as many were overwritten.
    pub first_seq: u64,
    /// Number of the next one (Linux: `prb_next_seq`).
    pub next_seq: u64,
    /// Number of the first one since somebody cleared the log (Linux: `clear_seq`).
    pub clear_seq: u64,
}

/// What a record begins with (Linux: `struct printk_info`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LogHeader {
    /// Number of the record, from 0.
    pub seq: u64,
    /// Nanoseconds since boot.
    pub ts_nsec: u64,
    /// Bytes of text, at most [`LOG_LINE_MAX`], without a line feed.
    pub text_len: u16,
    /// 0 for the kernel, 1 for programs (`LOG_USER`).
    pub facility: u8,
    /// 0 (emergency) to 7 (debugging).
    pub level: u8,
    /// Zero.
    pub reserved: u32,
}

impl LogHeader {
    /// Bytes of the header.
    pub const SIZE: usize = size_of::<LogHeader>();

    /// Bytes that the record takes in the ring.
    pub const fn record_len(&self) -> u64 {
        (LogHeader::SIZE as u64 + self.text_len as u64).next_multiple_of(8)
    }
}

const _: () = assert!(size_of::<KernelLog>() == 64 && size_of::<LogHeader>() == 24);
