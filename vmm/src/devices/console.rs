//! Where guest output goes: a ring of its tail, a copy for reports, and a stream for a person.
//!
//! The stream is written a line at a time; the event loop flushes partial lines. When the stream's
//! reader goes away the guest is not disturbed: [`Console::stream_closed`] tells the run loop.

use std::{
    collections::VecDeque,
    fmt,
    io::{self, Write},
};

/// Bytes of the tail that `GET /vm/console` returns.
pub const RING_BYTES: usize = 64 << 10;
/// Most bytes kept for the run's report. More is dropped from the front, and the report says so.
const TRANSCRIPT_BYTES: usize = 16 << 20;

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
    stream: Box<dyn Write + Send>,
    line: Vec<u8>,
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
            ConsoleTarget::Stdout => Console::with_stream(Box::new(io::stdout())),
            ConsoleTarget::Stderr => Console::with_stream(Box::new(io::stderr())),
            ConsoleTarget::Null => Console::with_stream(Box::new(io::sink())),
        }
    }

    fn with_stream(stream: Box<dyn Write + Send>) -> Console {
        Console {
            stream,
            line: Vec::new(),
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
    }

    /// Writes what the guest has not ended with a newline yet.
    pub fn flush_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() || self.closed {
            return;
        }
        if self.stream.write_all(&line).and_then(|()| self.stream.flush()).is_err() {
            self.closed = true;
        }
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
    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
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
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut console = Console::with_stream(Box::new(Gone));
        console.put(b"x\n");
        assert!(console.stream_closed());
        console.put(b"y\n");
        assert_eq!(console.transcript(), "x\ny\n");
    }
}
