//! COM1, polled (16550).

use core::sync::atomic::{AtomicBool, Ordering};

use crate::arch::regs::{inb, outb};

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

/// The next byte is the answer that somebody waits for, and not for the terminal, whose thread runs on another CPU.
static ANSWER: AtomicBool = AtomicBool::new(false);

/// A byte from outside, if one is there.
pub fn read() -> Option<u8> {
    if ANSWER.load(Ordering::Acquire) {
        return None;
    }
    (present() && inb(LINE_STATUS) & DATA_READY != 0).then(|| inb(BASE))
}

/// Writes bytes as they are.
pub fn write_raw(bytes: &[u8]) {
    if present() {
        bytes.iter().for_each(|byte| put(*byte));
    }
}

/// Waits for a byte from outside; returns at once if there is no port.
pub fn wait_for_byte() {
    ANSWER.store(true, Ordering::Release);
    while present() && inb(LINE_STATUS) & DATA_READY == 0 {
        core::hint::spin_loop();
    }
    inb(BASE);
    ANSWER.store(false, Ordering::Release);
}
