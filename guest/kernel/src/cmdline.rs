//! The kernel command line.

use crate::sync::Lock;

const MAX: usize = guest_firmware::MAX_COMMAND_LINE;

struct Line {
    text: [u8; MAX],
    len: usize,
}

static LINE: Lock<Line> = Lock::new(Line { text: [0; MAX], len: 0 });

/// Keeps the command line, cut at [`MAX`] bytes and at the first byte that is not ASCII.
pub fn set(bytes: impl Iterator<Item = u8>) {
    let mut line = LINE.lock();
    let mut len = 0;
    for byte in bytes.take(MAX).take_while(u8::is_ascii) {
        line.text[len] = byte;
        len += 1;
    }
    line.len = len;
}

/// Calls `f` with the whole line.
pub fn with<T>(f: impl FnOnce(&str) -> T) -> T {
    let line = LINE.lock();
    // `set` keeps ASCII only.
    f(core::str::from_utf8(&line.text[..line.len]).unwrap_or(""))
}

/// Whether the flag `name` is given as a word of its own.
pub fn flag(name: &str) -> bool {
    with(|line| line.split_ascii_whitespace().any(|word| word == name))
}

/// Calls `f` with the value of the last `name=value`.
pub fn value<T>(name: &str, f: impl FnOnce(&str) -> T) -> Option<T> {
    with(|line| {
        let value = line
            .split_ascii_whitespace()
            .filter_map(|word| word.split_once('=').filter(|(key, _)| *key == name))
            .next_back()?;
        Some(f(value.1))
    })
}

/// The number in the last `name=NUMBER`, decimal or 0x-prefixed, with Linux's suffixes K, M, G.
pub fn number(name: &str) -> Option<u64> {
    value(name, |text| {
        let (digits, shift) = match text.as_bytes().last()? {
            b'K' | b'k' => (&text[..text.len() - 1], 10),
            b'M' | b'm' => (&text[..text.len() - 1], 20),
            b'G' | b'g' => (&text[..text.len() - 1], 30),
            _ => (text, 0),
        };
        let number = match digits.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => digits.parse(),
        };
        number.ok()?.checked_shl(shift)
    })?
}
