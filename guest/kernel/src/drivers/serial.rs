//! COM1, polled (16550).

use crate::arch::regs::{inb, outb};
use crate::sync::Lock;

const BASE: u16 = 0x3f8;
const LINE_STATUS: u16 = BASE + 5;
const DATA_READY: u8 = 1;
const THR_EMPTY: u8 = 1 << 5;

/// 115200 8n1, no interrupts.
pub fn init() {
    outb(BASE + 1, 0);
    outb(BASE + 3, 0x80);
    outb(BASE, 1);
    outb(BASE + 1, 0);
    outb(BASE + 3, 0x03);
    outb(BASE + 2, 0xc7);
    outb(BASE + 4, 0x03);
}

/// Whether anything answers at the port; a missing device reads as all ones.
fn present() -> bool {
    inb(LINE_STATUS) != 0xff
}

/// Writes bytes, with a carriage return before every line feed.
pub fn write(bytes: &[u8]) {
    if !present() {
        return;
    }
    for &byte in bytes {
        if byte == b'\n' {
            put(b'\r');
        }
        put(byte);
    }
}

fn put(byte: u8) {
    while inb(LINE_STATUS) & THR_EMPTY == 0 {
        core::hint::spin_loop();
    }
    outb(BASE, byte);
}

/// Whether the next byte is the answer that somebody waits for, and not for the terminal, whose thread runs on another CPU.
static ANSWER: Lock<bool> = Lock::new(false);

/// A byte from outside, if one is there.
pub fn read() -> Option<u8> {
    let answer = ANSWER.lock();
    (!*answer && present() && inb(LINE_STATUS) & DATA_READY != 0).then(|| inb(BASE))
}

/// Writes bytes as they are.
pub fn write_raw(bytes: &[u8]) {
    if present() {
        bytes.iter().for_each(|byte| put(*byte));
    }
}

/// From now on what comes is the answer to a question, which must be asked after this: it may be there before the next instruction runs.
pub fn expect_answer() {
    *ANSWER.lock() = true;
}

/// Waits for the answer from outside; returns at once if there is no port.
pub fn wait_for_answer() {
    while present() && inb(LINE_STATUS) & DATA_READY == 0 {
        core::hint::spin_loop();
    }
    inb(BASE);
    *ANSWER.lock() = false;
}
