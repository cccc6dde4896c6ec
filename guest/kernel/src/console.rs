//! The console: the memvisor device when it is there, else COM1.
//!
//! Output is gathered by line, because every port access is an exit and exits dominate.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::drivers::{memvisor, serial};
use crate::sync::Lock;

const BUFFER: usize = 1024;

struct Console {
    buffer: [u8; BUFFER],
    len: usize,
}

static CONSOLE: Lock<Console> = Lock::new(Console { buffer: [0; BUFFER], len: 0 });
static DEVICE: AtomicBool = AtomicBool::new(false);

/// Finds the best output.
pub fn init() {
    serial::init();
    DEVICE.store(memvisor::present(), Ordering::Relaxed);
}

impl Console {
    fn flush(&mut self) {
        let bytes = &self.buffer[..self.len];
        if DEVICE.load(Ordering::Relaxed) {
            memvisor::write(bytes);
        } else {
            serial::write(bytes);
        }
        self.len = 0;
    }

    fn write(&mut self, text: &str) {
        for &byte in text.as_bytes() {
            if self.len == BUFFER {
                self.flush();
            }
            self.buffer[self.len] = byte;
            self.len += 1;
            if byte == b'\n' {
                self.flush();
            }
        }
    }
}

/// Writes text; complete lines reach the outside at once.
pub fn write(text: &str) {
    CONSOLE.lock().write(text);
}

/// Writes a program's bytes as they are, at once. The memvisor device makes lines itself: for it carriage returns before line feeds are
/// left out.
pub fn write_raw(bytes: &[u8]) {
    let mut console = CONSOLE.lock();
    console.flush();
    if !DEVICE.load(Ordering::Relaxed) {
        return serial::write_raw(bytes);
    }
    let mut rest = bytes.iter().peekable();
    while let Some(&byte) = rest.next() {
        if byte == b'\r' && rest.peek() == Some(&&b'\n') {
            continue;
        }
        // The device takes bytes of the kernel's image only.
        if console.len == BUFFER {
            console.flush();
        }
        let at = console.len;
        console.buffer[at] = byte;
        console.len += 1;
    }
    console.flush();
}

/// Writes out what is gathered.
pub fn flush() {
    CONSOLE.lock().flush();
}

/// For the panic path: the holder of the lock may be dead.
pub fn break_lock() {
    CONSOLE.break_open();
}
