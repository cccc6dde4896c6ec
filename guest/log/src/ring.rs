//! The ring of records.

use core::sync::atomic::{AtomicU64, Ordering};

use memvisor_abi::{KernelLog, LOG_LINE_MAX, LogHeader, LogState};
use zerocopy::{FromBytes, IntoBytes};

/// A log in `N` bytes, a power of two that has room for the longest record.
///
/// It begins with a [`KernelLog`], so that the address of the whole is that of what is published.
#[derive(Debug)]
#[repr(C)]
pub struct Log<const N: usize> {
    version: AtomicU64,
    state: LogState,
    bytes: [u8; N],
}

/// Where a reader is: at the record `seq`, which begins at `place`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Number of the record that is read next.
    pub seq: u64,
    /// Where it begins.
    pub place: u64,
}

/// A record, copied out of the ring.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// What it begins with.
    pub header: LogHeader,
    text: [u8; LOG_LINE_MAX],
}

impl Record {
    /// Its text.
    pub fn text(&self) -> &[u8] {
        self.text.get(..self.header.text_len.into()).unwrap_or(&self.text)
    }

    /// What programs see of facility and level (Linux: `LOG_FACILITY`, `LOG_LEVEL`).
    pub const fn priority(&self) -> u32 {
        (self.header.facility as u32) << 3 | self.header.level as u32
    }
}

impl<const N: usize> Log<N> {
    /// An empty log.
    pub const fn new() -> Log<N> {
        assert!(N.is_power_of_two() && N > LogHeader::SIZE + LOG_LINE_MAX + 8, "no room for a record");
        let state = LogState {
            buffer_gpa: 0,
            len: N as u64,
            tail: 0,
            head: 0,
            first_seq: 0,
            next_seq: 0,
            clear_seq: 0,
        };
        Log { version: AtomicU64::new(0), state, bytes: [0; N] }
    }

    /// What the log says of itself.
    pub const fn state(&self) -> &LogState {
        &self.state
    }

    /// Says where the log is, of which `gpa` is the guest-physical address.
    pub const fn locate(&mut self, gpa: u64) {
        self.state.buffer_gpa = gpa + size_of::<KernelLog>() as u64;
    }

    /// Appends a record; of a text that is too long the end is lost. The oldest records go if there is no room for it.
    pub fn push(&mut self, facility: u8, level: u8, ts_nsec: u64, text: &[u8]) {
        let text = text.get(..LOG_LINE_MAX).unwrap_or(text);
        let header = LogHeader {
            seq: self.state.next_seq,
            ts_nsec,
            text_len: u16::try_from(text.len()).unwrap_or(0),
            facility,
            level,
            reserved: 0,
        };
        // Acquire and release: nothing of the change is seen before the first step, nothing is missing after the last.
        self.version.swap(self.version.load(Ordering::Relaxed) | 1, Ordering::AcqRel);
        while self.state.head + header.record_len() - self.state.tail > N as u64 {
            let oldest = self.header(self.state.tail);
            self.state.tail += oldest.record_len();
            self.state.first_seq = oldest.seq + 1;
        }
        let at = self.state.head;
        self.put(at, header.as_bytes());
        self.put(at + LogHeader::SIZE as u64, text);
        self.state.next_seq += 1;
        self.state.head = at + header.record_len();
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// The oldest record that is left, if `at` is older; else `at`.
    pub const fn catch_up(&self, at: Cursor) -> Cursor {
        if at.seq < self.state.first_seq {
            Cursor { seq: self.state.first_seq, place: self.state.tail }
        } else {
            at
        }
    }

    /// The end: what comes next will be there.
    pub const fn end(&self) -> Cursor {
        Cursor { seq: self.state.next_seq, place: self.state.head }
    }

    /// The first record since somebody cleared the log.
    pub fn since_clear(&self) -> Cursor {
        self.find(Cursor::default(), self.state.clear_seq)
    }

    /// The record `seq`, or the oldest one behind it that is left, or the end. `from` is where a reader was: if that is not behind the
    /// record, it need not be looked for from the oldest on.
    pub fn find(&self, from: Cursor, seq: u64) -> Cursor {
        let mut at = self.catch_up(if from.seq <= seq { from } else { Cursor::default() });
        while at.seq < seq.min(self.state.next_seq) {
            at = self.after(at);
        }
        at
    }

    /// Clears the log for those who ask for what came since (Linux: SYSLOG_ACTION_CLEAR).
    pub const fn clear(&mut self) {
        self.state.clear_seq = self.state.next_seq;
    }

    /// The record at `at`, or the oldest one behind it that is left, and where the next one is; `None` at the end.
    pub fn read(&self, at: Cursor) -> Option<(Record, Cursor)> {
        let at = self.catch_up(at);
        if at.seq >= self.state.next_seq {
            return None;
        }
        let mut record = Record { header: self.header(at.place), text: [0; LOG_LINE_MAX] };
        let len = usize::from(record.header.text_len).min(LOG_LINE_MAX);
        self.get(at.place + LogHeader::SIZE as u64, record.text.get_mut(..len).unwrap_or_default());
        Some((record, self.after(at)))
    }

    fn after(&self, at: Cursor) -> Cursor {
        Cursor { seq: at.seq + 1, place: at.place + self.header(at.place).record_len() }
    }

    fn header(&self, place: u64) -> LogHeader {
        let mut bytes = [0; LogHeader::SIZE];
        self.get(place, &mut bytes);
        LogHeader::read_from_bytes(&bytes).unwrap_or_default()
    }

    fn index(place: u64) -> usize {
        usize::try_from(place % N as u64).unwrap_or(0)
    }

    /// Copies from the ring.
    fn get(&self, place: u64, to: &mut [u8]) {
        let from = self.bytes.get(Self::index(place)..).unwrap_or_default();
        let (first, rest) = to.split_at_mut(to.len().min(from.len()));
        first.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        rest.iter_mut().zip(&self.bytes).for_each(|(to, from)| *to = *from);
    }

    /// Copies to the ring.
    fn put(&mut self, place: u64, from: &[u8]) {
        let to = self.bytes.get_mut(Self::index(place)..).unwrap_or_default();
        let (first, rest) = from.split_at(from.len().min(to.len()));
        to.iter_mut().zip(first).for_each(|(to, from)| *to = *from);
        self.bytes.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    }
}

impl<const N: usize> Default for Log<N> {
    fn default() -> Self {
        Log::new()
    }
}
