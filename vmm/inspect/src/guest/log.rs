//! The kernel's log.

use std::mem::size_of;

use memvisor_abi::{KernelLog, LOG_LINE_MAX, LogHeader, LogState};
use serde::Serialize;
use thiserror::Error;
use zerocopy::{FromZeros, IntoBytes};

use super::tables::Absent;
use super::{Guest, GuestError, TableName};
use crate::MemorySource;

/// Largest log that is read (Linux: `LOG_BUF_LEN_MAX` is 2 GiB; nobody wants to see that).
const LOG_MAX: u64 = 64 << 20;

/// A record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogLine {
    /// Its number since boot.
    pub seq: u64,
    /// Nanoseconds since boot; 0 before the kernel had a clock.
    pub ts_nsec: u64,
    /// Who said it: 0 for the kernel, others for programs.
    pub facility: u8,
    /// How grave it is: 0 (emergency) to 7 (debugging).
    pub level: u8,
    /// What was said. Bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// Where the log stops to make sense.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogProblem {
    /// The buffer cannot be one.
    #[error("its buffer, {len} bytes at {gpa:#x}, is not in RAM or not a power of two up to 64 MiB")]
    Buffer {
        /// Where it is said to be.
        #[serde(serialize_with = "crate::hex")]
        gpa: u64,
        /// Its size.
        len: u64,
    },
    /// The ends of what is there do not fit the buffer.
    #[error("records from place {tail} to place {head} cannot be in a buffer of {len} bytes")]
    Places {
        /// First.
        tail: u64,
        /// One behind the last.
        head: u64,
        /// Size of the buffer.
        len: u64,
    },
    /// A record has another number than its place among the others.
    #[error("the record at place {place} has number {says}, it should have {expected}")]
    Number {
        /// Where it begins.
        place: u64,
        /// Its number.
        says: u64,
        /// The number after the one before.
        expected: u64,
    },
    /// A record that goes on behind the end, is longer than records can be, or has a level that there is not.
    #[error("record {seq} at place {place} with {text_len} bytes of text and level {level} cannot be")]
    Record {
        /// Its number.
        seq: u64,
        /// Where it begins.
        place: u64,
        /// Bytes of its text.
        text_len: u16,
        /// Its level.
        level: u8,
    },
    /// The numbers at the end do not fit.
    #[error("after the last record comes number {last}, the next one is to have {next_seq}")]
    End {
        /// Number after that of the last record.
        last: u64,
        /// What the log says.
        next_seq: u64,
    },
}

/// The log as far as it makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogWalk {
    /// What it says of itself.
    pub state: LogState,
    /// Whether somebody was writing just then: a problem need not be one.
    pub is_busy: bool,
    /// The records, the oldest first.
    pub lines: Vec<LogLine>,
    /// Why there are no more.
    pub problem: Option<LogProblem>,
}

impl<S: MemorySource + ?Sized> Guest<'_, S> {
    /// What the kernel said; `None` if it publishes no log.
    ///
    /// # Errors
    /// [`GuestError`] if the log cannot be read at all.
    pub fn kernel_log(&self) -> Result<Option<LogWalk>, GuestError> {
        let table: Vec<KernelLog> = self.table(TableName::Log, self.root().log, 1, Absent::IsEmpty)?;
        let Some(&KernelLog { version, state }) = table.first() else { return Ok(None) };
        let mut lines = Vec::new();
        let problem = match self.ring(&state)? {
            Ok(ring) => ring.lines(&state, &mut lines).err(),
            Err(problem) => Some(problem),
        };
        Ok(Some(LogWalk { state, is_busy: version % 2 == 1, lines, problem }))
    }

    fn ring(&self, state: &LogState) -> Result<Result<Ring, LogProblem>, GuestError> {
        let LogState { buffer_gpa: gpa, len, tail, head, .. } = *state;
        if !len.is_power_of_two() || !(8..=LOG_MAX).contains(&len) || !self.source().is_ram(gpa, len) {
            return Ok(Err(LogProblem::Buffer { gpa, len }));
        }
        if tail > head || head - tail > len || !tail.is_multiple_of(8) || !head.is_multiple_of(8) {
            return Ok(Err(LogProblem::Places { tail, head, len }));
        }
        // At most LOG_MAX.
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.source().read(gpa, &mut bytes)?;
        Ok(Ok(Ring { bytes }))
    }
}

/// A copy of the buffer.
struct Ring {
    bytes: Vec<u8>,
}

impl Ring {
    fn lines(&self, state: &LogState, lines: &mut Vec<LogLine>) -> Result<(), LogProblem> {
        let (mut place, mut expected) = (state.tail, state.first_seq);
        while place < state.head {
            let mut header = LogHeader::new_zeroed();
            self.copy(place, header.as_mut_bytes());
            let LogHeader { seq, ts_nsec, text_len, facility, level, .. } = header;
            if seq != expected {
                return Err(LogProblem::Number { place, says: seq, expected });
            }
            let is_whole = header.record_len() <= state.head - place;
            if !is_whole || usize::from(text_len) > LOG_LINE_MAX || level > 7 {
                return Err(LogProblem::Record { seq, place, text_len, level });
            }
            let mut text = vec![0; text_len.into()];
            self.copy(place + size_of::<LogHeader>() as u64, &mut text);
            let text = String::from_utf8_lossy(&text).into_owned();
            lines.push(LogLine { seq, ts_nsec, facility, level, text });
            (place, expected) = (place + header.record_len(), expected.wrapping_add(1));
        }
        if expected != state.next_seq {
            return Err(LogProblem::End { last: expected, next_seq: state.next_seq });
        }
        Ok(())
    }

    /// Copies what begins at a place, and may go on at the start of the buffer.
    fn copy(&self, place: u64, to: &mut [u8]) {
        // The buffer's size is a `usize`.
        let at = usize::try_from(place % self.bytes.len() as u64).unwrap_or(0);
        let (first, second) = self.bytes.split_at(at);
        to.iter_mut().zip(second.iter().chain(first)).for_each(|(to, from)| *to = *from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 256;

    /// A buffer of records whose texts are given, from a place on.
    fn ring(tail: u64, texts: &[&str]) -> (LogState, Ring) {
        let mut state =
            LogState { len: LEN as u64, tail, head: tail, first_seq: 7, next_seq: 7, ..LogState::default() };
        let mut bytes = vec![0xee; LEN];
        for text in texts {
            let text_len = u16::try_from(text.len()).expect("short");
            let header =
                LogHeader { seq: state.next_seq, ts_nsec: 5, text_len, level: 6, ..LogHeader::default() };
            for (index, byte) in header.as_bytes().iter().chain(text.as_bytes()).enumerate() {
                bytes[(usize::try_from(state.head).expect("small") + index) % LEN] = *byte;
            }
            state.head += header.record_len();
            state.next_seq += 1;
        }
        (state, Ring { bytes })
    }

    fn texts(state: &LogState, ring: &Ring) -> (Vec<String>, Option<LogProblem>) {
        let mut lines = Vec::new();
        let problem = ring.lines(state, &mut lines).err();
        (lines.into_iter().map(|line| line.text).collect(), problem)
    }

    #[test]
    fn records_are_read_across_the_end_of_the_buffer() {
        for tail in (0..512).step_by(8) {
            let (state, ring) = ring(tail, &["first", "", "the third one of all"]);
            let (found, problem) = texts(&state, &ring);
            assert_eq!(found, ["first", "", "the third one of all"]);
            assert_eq!(problem, None);
        }
    }

    #[test]
    fn what_makes_no_sense_ends_the_log_and_is_named() {
        let (mut state, mut bad) = ring(0, &["one", "two"]);
        state.next_seq = 10;
        assert_eq!(texts(&state, &bad).1, Some(LogProblem::End { last: 9, next_seq: 10 }));
        bad.bytes[32] = 1;
        let (found, problem) = texts(&state, &bad);
        assert_eq!(found, ["one"]);
        assert_eq!(problem, Some(LogProblem::Number { place: 32, says: 1, expected: 8 }));
        let (state, mut bad) = ring(0, &["one"]);
        bad.bytes[17] = 0xff;
        assert!(matches!(texts(&state, &bad).1, Some(LogProblem::Record { seq: 7, place: 0, .. })));
        let (state, mut bad) = ring(0, &["one"]);
        bad.bytes[19] = 8;
        assert!(matches!(texts(&state, &bad).1, Some(LogProblem::Record { level: 8, .. })));
    }
}
