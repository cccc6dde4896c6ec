//! Where guest output goes: a ring of its tail, a copy for reports, and a stream for a person.
//!
//! The stream is written a line at a time; the event loop flushes partial lines. When the stream's
//! reader goes away the guest is not disturbed: [`Console::stream_closed`] tells the run loop. A
//! reader that does not read stops the guest at its next output, and nothing else: a signal to the
//! thread that waits ends the wait, what is left is kept for later, and [`Console::flush_ready`] never
//! waits.

use std::{
    collections::VecDeque,
    fmt,
    io::{self, Write},
    os::fd::BorrowedFd,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Bytes of the tail that `GET /vm/console` returns.
pub const RING_BYTES: usize = 64 << 10;
/// Most bytes kept for the run's report. More is dropped from the front, and the report says so.
const TRANSCRIPT_BYTES: usize = 16 << 20;

/// Most bytes that wait for a reader; older ones are not shown, and the stream says so.
const BACKLOG_BYTES: usize = 256 << 10;
/// What a terminal that can take output takes without a wait.
const READY_BYTES: usize = 64;

/// Where the stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleTarget {
    /// Standard output.
    Stdout,
    /// Standard error: standard output carries a JSON document.
    Stderr,
    /// Nowhere: tests and suites read the transcript.
    Null,
}

/// The guest's console.
pub struct Console {
    stream: Box<dyn Stream>,
    line: Vec<u8>,
    /// Bytes of the backlog that were given up.
    unseen: u64,
    ring: VecDeque<u8>,
    transcript: Vec<u8>,
    dropped: u64,
    closed: bool,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").field("bytes", &self.transcript.len()).finish_non_exhaustive()
    }
}

impl Console {
    /// A console that streams to `target`.
    pub fn new(target: ConsoleTarget) -> Console {
        match target {
            ConsoleTarget::Stdout => Console::with_stream(Box::new(Descriptor(rustix::stdio::stdout()))),
            ConsoleTarget::Stderr => Console::with_stream(Box::new(Descriptor(rustix::stdio::stderr()))),
            ConsoleTarget::Null => Console::with_stream(Box::new(Nowhere)),
        }
    }

    fn with_stream(stream: Box<dyn Stream>) -> Console {
        Console {
            stream,
            line: Vec::new(),
            unseen: 0,
            ring: VecDeque::new(),
            transcript: Vec::new(),
            dropped: 0,
            closed: false,
        }
    }

    /// Takes output of the guest.
    pub fn put(&mut self, bytes: &[u8]) {
        self.ring.extend(bytes);
        let excess = self.ring.len().saturating_sub(RING_BYTES);
        self.ring.drain(..excess);
        self.transcript.extend_from_slice(bytes);
        if self.transcript.len() > TRANSCRIPT_BYTES {
            let excess = self.transcript.len() - TRANSCRIPT_BYTES / 2;
            self.transcript.drain(..excess);
            self.dropped += excess as u64;
        }
        self.line.extend_from_slice(bytes);
        if self.line.len() >= RING_BYTES || bytes.contains(&b'\n') {
            self.flush_line();
        }
        let excess = self.line.len().saturating_sub(BACKLOG_BYTES);
        self.line.drain(..excess);
        self.unseen += excess as u64;
    }

    /// Writes what the guest has not ended with a newline yet. Waits for the reader, until a signal
    /// interrupts this thread.
    pub fn flush_line(&mut self) {
        while self.write_some(usize::MAX) {}
    }

    /// As [`Console::flush_line`], but writes only what the reader takes at once.
    pub fn flush_ready(&mut self) {
        while !self.line.is_empty() && self.stream.is_ready() && self.write_some(READY_BYTES) {}
    }

    /// Writes at most `most` bytes; whether there is more to write, and somebody to take it.
    fn write_some(&mut self, most: usize) -> bool {
        if self.closed {
            self.line.clear();
        }
        if self.line.is_empty() {
            return false;
        }
        let note = match self.unseen {
            0 => String::new(),
            unseen => format!("\n[{unseen} bytes that nobody read are left out]\n"),
        };
        let piece = if note.is_empty() { self.line.as_slice() } else { note.as_bytes() };
        match self.stream.write(piece.get(..most).unwrap_or(piece)) {
            Ok(0) => self.closed = true,
            Ok(written) if note.is_empty() => drop(self.line.drain(..written.min(self.line.len()))),
            Ok(written) => {
                self.unseen = 0;
                drop(self.line.splice(..0, note.bytes().skip(written)));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return false,
            Err(_) => self.closed = true,
        }
        true
    }

    /// Whether the reader of the stream is gone.
    pub fn stream_closed(&self) -> bool {
        self.closed
    }

    /// The last [`RING_BYTES`] of output.
    pub fn tail(&self) -> Vec<u8> {
        self.ring.iter().copied().collect()
    }

    /// All output, as text; says so if its beginning was dropped.
    pub fn transcript(&self) -> String {
        let text = String::from_utf8_lossy(&self.transcript);
        match self.dropped {
            0 => text.into_owned(),
            dropped => format!("[{dropped} earlier bytes dropped]\n{text}"),
        }
    }

    /// Whether the last byte of output ended a line (or there was none).
    pub fn at_line_start(&self) -> bool {
        self.transcript.last().is_none_or(|&byte| byte == b'\n')
    }
}

/// A stream whose writes a signal interrupts.
trait Stream: Send {
    /// Writes a part of `bytes`; waits if it must.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Whether a short write would not wait.
    fn is_ready(&self) -> bool {
        true
    }
}

struct Descriptor(BorrowedFd<'static>);

impl Stream for Descriptor {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Not the standard library's stdout: that begins an interrupted write again.
        Ok(rustix::io::write(self.0, bytes)?)
    }

    fn is_ready(&self) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::OUT)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }
}

struct Nowhere;

impl Stream for Nowhere {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }
}

/// Lets the serial port write to a shared console.
impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);
    impl Stream for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }
    }

    /// Takes nothing until it is let, as if a signal came each time.
    #[derive(Clone, Default)]
    struct Stuck(Shared, Arc<Mutex<bool>>);
    impl Stream for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if *self.1.lock().expect("not poisoned") {
                return self.0.write(bytes.get(..7).unwrap_or(bytes));
            }
            Err(io::ErrorKind::Interrupted.into())
        }
        fn is_ready(&self) -> bool {
            *self.1.lock().expect("not poisoned")
        }
    }

    #[test]
    fn an_interrupted_write_keeps_what_is_left_for_later() {
        let stuck = Stuck::default();
        let mut console = Console::with_stream(Box::new(stuck.clone()));
        console.put(b"first line\nsecond");
        console.flush_ready();
        *stuck.1.lock().expect("not poisoned") = true;
        console.put(b" line\n");
        assert_eq!(*stuck.0.0.lock().expect("not poisoned"), b"first line\nsecond line\n");
    }

    #[test]
    fn a_backlog_is_bounded_and_the_reader_is_told() {
        let stuck = Stuck::default();
        let mut console = Console::with_stream(Box::new(stuck.clone()));
        for _ in 0..100 {
            console.put(&[b'x'; 4000]);
        }
        assert!(console.line.len() <= BACKLOG_BYTES);
        *stuck.1.lock().expect("not poisoned") = true;
        console.flush_ready();
        let seen = String::from_utf8(stuck.0.0.lock().expect("not poisoned").clone()).expect("ASCII");
        let left_out = 100 * 4000 - BACKLOG_BYTES;
        assert!(
            seen.starts_with(&format!("\n[{left_out} bytes that nobody read are left out]\nxxx")),
            "{seen:.80}"
        );
        assert!(!console.stream_closed());
    }

    #[test]
    fn lines_are_streamed_whole() {
        let seen = Shared::default();
        let mut console = Console::with_stream(Box::new(seen.clone()));
        console.put(b"he");
        assert!(seen.0.lock().expect("not poisoned").is_empty());
        console.put(b"llo\nwor");
        assert_eq!(*seen.0.lock().expect("not poisoned"), b"hello\nwor");
        console.put(b"ld");
        console.flush_line();
        assert_eq!(*seen.0.lock().expect("not poisoned"), b"hello\nworld");
        assert_eq!(console.transcript(), "hello\nworld");
    }

    #[test]
    fn the_ring_keeps_the_tail() {
        let mut console = Console::new(ConsoleTarget::Null);
        console.put(&vec![b'a'; RING_BYTES]);
        console.put(b"tail");
        let tail = console.tail();
        assert_eq!(tail.len(), RING_BYTES);
        assert!(tail.ends_with(b"atail"));
    }

    #[test]
    fn a_reader_that_left_is_noticed_and_output_is_kept() {
        struct Gone;
        impl Stream for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let mut console = Console::with_stream(Box::new(Gone));
        console.put(b"x\n");
        assert!(console.stream_closed());
        console.put(b"y\n");
        assert_eq!(console.transcript(), "x\ny\n");
    }
}
