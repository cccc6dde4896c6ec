//! The log of the kernel (Linux: kernel/printk/printk.c, printk_ringbuffer.c).
//!
//! [`Log`] keeps records in a ring of bytes whose layout is [`memvisor_abi::KernelLog`]'s, so that it can be read from outside. What is said
//! comes in pieces; a line feed ends a record. The oldest records make room for new ones.
//!
//! [`text`] has the two ways in which programs read records: lines of `dmesg`, and records of /dev/kmsg.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod line;
mod ring;
pub mod text;

pub use line::Line;
pub use ring::{Cursor, Log, Record};

/// Default level of the console (Linux: `CONSOLE_LOGLEVEL_DEFAULT`): messages below it are shown.
pub const CONSOLE_LOGLEVEL_DEFAULT: u8 = 7;
/// With `quiet`.
pub const CONSOLE_LOGLEVEL_QUIET: u8 = 4;
/// With `debug`.
pub const CONSOLE_LOGLEVEL_DEBUG: u8 = 10;
/// With `ignore_loglevel`.
pub const IGNORE_LOGLEVEL: u8 = u8::MAX;

/// The level that the words of a command line ask for: of `quiet`, `debug` and `loglevel=N` the last one counts; `ignore_loglevel` wins.
pub fn console_loglevel<'a>(words: impl Iterator<Item = &'a str>) -> u8 {
    let mut level = CONSOLE_LOGLEVEL_DEFAULT;
    for word in words {
        match word {
            "quiet" => level = CONSOLE_LOGLEVEL_QUIET,
            "debug" => level = CONSOLE_LOGLEVEL_DEBUG,
            "ignore_loglevel" => return IGNORE_LOGLEVEL,
            _ => {
                let number = word.strip_prefix("loglevel=").and_then(|number| number.parse().ok());
                level = number.unwrap_or(level);
            }
        }
    }
    level
}

#[cfg(test)]
mod tests;
