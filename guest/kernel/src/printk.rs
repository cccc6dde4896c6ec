//! Messages of the kernel. Each has a level, and the console shows those that are grave enough (Linux: kernel/printk/printk.c).
//!
//! [`println!`](crate::println) is for what somebody asked for and what cannot wait: results of tests, walkthroughs, a panic. It is always shown.

use core::fmt;
use core::sync::atomic::{AtomicU8, Ordering};

use crate::{cmdline, console};

/// How grave a message is (Linux: include/linux/kern_levels.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Level {
    /// The system is at its end.
    Emerg = 0,
    /// Somebody must act at once: data is lost.
    Alert = 1,
    /// Something failed.
    Err = 3,
    /// Something is not as it should be.
    Warning = 4,
    /// What is there and what is done.
    Info = 6,
}

/// Levels below it are shown (Linux: `CONSOLE_LOGLEVEL_DEFAULT`, `CONSOLE_LOGLEVEL_QUIET`, `CONSOLE_LOGLEVEL_DEBUG`).
const DEFAULT: u8 = 7;
const QUIET: u8 = 4;
const DEBUG: u8 = 10;

/// Linux: `console_loglevel`.
static CONSOLE_LOGLEVEL: AtomicU8 = AtomicU8::new(DEFAULT);

/// Reads `quiet`, `debug`, `loglevel=N` and `ignore_loglevel`; of the first three the last one counts.
pub fn init() {
    let level = cmdline::with(|line| level_of(line.split_ascii_whitespace()));
    CONSOLE_LOGLEVEL.store(level, Ordering::Relaxed);
}

fn level_of<'a>(words: impl Iterator<Item = &'a str>) -> u8 {
    let mut level = DEFAULT;
    for word in words {
        match word {
            "quiet" => level = QUIET,
            "debug" => level = DEBUG,
            "ignore_loglevel" => return u8::MAX,
            _ => {
                let number = word.strip_prefix("loglevel=").and_then(|number| number.parse().ok());
                level = number.unwrap_or(level);
            }
        }
    }
    level
}

/// Whether messages of `level` reach the console; what is costly to put together for others need not be.
pub fn is_shown(level: Level) -> bool {
    level == Level::Emerg || (level as u8) < CONSOLE_LOGLEVEL.load(Ordering::Relaxed)
}

/// Prints a message, or a piece of one.
pub fn print(level: Level, arguments: fmt::Arguments<'_>) {
    if is_shown(level) {
        console::print(arguments);
    }
}

/// Prints a piece of a message; the line feed is the caller's. `printk!(Warning, "...")`.
#[macro_export]
macro_rules! printk {
    ($level:ident, $($argument:tt)*) => {
        $crate::printk::print($crate::printk::Level::$level, format_args!($($argument)*))
    };
}

/// Prints a line at [`Level::Alert`].
#[macro_export]
macro_rules! pr_alert {
    ($($argument:tt)*) => { $crate::printk!(Alert, "{}\n", format_args!($($argument)*)) };
}

/// Prints a line at [`Level::Err`].
#[macro_export]
macro_rules! pr_err {
    ($($argument:tt)*) => { $crate::printk!(Err, "{}\n", format_args!($($argument)*)) };
}

/// Prints a line at [`Level::Warning`].
#[macro_export]
macro_rules! pr_warn {
    ($($argument:tt)*) => { $crate::printk!(Warning, "{}\n", format_args!($($argument)*)) };
}

/// Prints a line at [`Level::Info`].
#[macro_export]
macro_rules! pr_info {
    ($($argument:tt)*) => { $crate::printk!(Info, "{}\n", format_args!($($argument)*)) };
}
