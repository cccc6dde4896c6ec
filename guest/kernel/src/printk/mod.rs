//! Messages of the kernel (Linux: kernel/printk/printk.c). Each has a level and goes to the log; the console shows those that are grave enough.
//!
//! [`println!`](crate::println) is for what somebody asked for and what cannot wait: results of tests, walkthroughs, a panic. It is always shown.

pub mod reader;

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, Ordering};

use guest_log::text::DEFAULT_MESSAGE_LOGLEVEL;
use guest_log::{CONSOLE_LOGLEVEL_DEFAULT, Cursor, Line, Log, Record, console_loglevel};
use memvisor_abi::{KernelLog, TableRef};

use crate::mm::phys;
use crate::sched::clock;
use crate::sync::Lock;
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
    /// Somebody asked for it.
    Notice = 5,
    /// What is there and what is done.
    Info = 6,
}

/// Bytes of the log (Linux: `CONFIG_LOG_BUF_SHIFT`).
pub const LOG_BUF_LEN: usize = 64 << 10;

/// Least level of the console that a program can ask for (Linux: `CONSOLE_LOGLEVEL_MIN`).
pub const MINIMUM_CONSOLE_LOGLEVEL: u8 = 1;

/// Linux: `console_printk`, the levels of /proc/sys/kernel/printk: of the console, of messages without one, the least, and the console's default.
static LEVELS: [AtomicU8; 4] = [
    AtomicU8::new(CONSOLE_LOGLEVEL_DEFAULT),
    AtomicU8::new(DEFAULT_MESSAGE_LOGLEVEL),
    AtomicU8::new(MINIMUM_CONSOLE_LOGLEVEL),
    AtomicU8::new(CONSOLE_LOGLEVEL_DEFAULT),
];

/// The log comes first: its address is published.
#[repr(C)]
struct Printk {
    log: Log<LOG_BUF_LEN>,
    line: Line,
}

static PRINTK: Lock<Printk> = Lock::new(Printk { log: Log::new(), line: Line::new() });

/// Where the log is. From now on it can be read from outside.
pub fn table() -> TableRef {
    let gpa = phys::of_image(PRINTK.as_ptr() as u64).as_u64();
    PRINTK.lock().log.locate(gpa);
    TableRef { gpa, count: 1, stride: u32::try_from(size_of::<KernelLog>()).unwrap_or(0) }
}

/// Reads `quiet`, `debug`, `loglevel=N` and `ignore_loglevel`.
pub fn init() {
    set_level(0, cmdline::with(|line| console_loglevel(line.split_ascii_whitespace())));
}

/// For the panic path: the holder of the lock may be dead.
pub fn break_lock() {
    PRINTK.break_open();
}

/// A level of /proc/sys/kernel/printk, by its place there.
pub fn level(which: usize) -> u8 {
    LEVELS.get(which).map_or(0, |level| level.load(Ordering::Relaxed))
}

/// Changes it.
pub fn set_level(which: usize, level: u8) {
    if let Some(place) = LEVELS.get(which) {
        place.store(level, Ordering::Relaxed);
    }
}

/// Prints a message, or a piece of one.
pub fn print(level: Level, arguments: fmt::Arguments<'_>) {
    emit(level, level == Level::Emerg || (level as u8) < self::level(0), arguments);
}

/// Prints what is shown in any case.
pub fn print_always(arguments: fmt::Arguments<'_>) {
    emit(Level::Notice, true, arguments);
}

fn emit(level: Level, is_shown: bool, arguments: fmt::Arguments<'_>) {
    let now = clock::now_if_known();
    let mut printk = PRINTK.lock();
    // Pieces never fail, and a Display that does has nothing better to say.
    let _ = Pieces { printk: &mut printk, level: level as u8, is_shown, now }.write_fmt(arguments);
}

/// Takes the pieces of a message.
struct Pieces<'a> {
    printk: &'a mut Printk,
    level: u8,
    is_shown: bool,
    now: u64,
}

impl Write for Pieces<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let Printk { log, line } = &mut *self.printk;
        line.add(self.level, text.as_bytes(), |level, text| log.push(0, level, self.now, text));
        if self.is_shown {
            console::write(text);
        }
        Ok(())
    }
}

/// What a program says (Linux: `devkmsg_emit`).
pub fn say(bytes: &[u8]) {
    let (facility, level, text) = guest_log::text::written(bytes);
    let mut printk = PRINTK.lock();
    printk.log.push(facility, level, clock::now_if_known(), text);
    if level < self::level(0) {
        text.utf8_chunks().for_each(|chunk| console::write(chunk.valid()));
        console::write("\n");
    }
}

/// The record at `at`, or the oldest one behind it that is left, and where the next one is.
pub fn read(at: Cursor) -> Option<(Record, Cursor)> {
    PRINTK.lock().log.read(at)
}

/// Looks at the log itself, or changes what it remembers.
pub fn with_log<R>(f: impl FnOnce(&mut Log<LOG_BUF_LEN>) -> R) -> R {
    f(&mut PRINTK.lock().log)
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

/// Prints a line that is always shown.
#[macro_export]
macro_rules! println {
    () => { $crate::printk::print_always(format_args!("\n")) };
    ($($argument:tt)*) => { $crate::printk::print_always(format_args!("{}\n", format_args!($($argument)*))) };
}

/// Prints what is always shown, at the end of the line.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => { $crate::printk::print_always(format_args!($($argument)*)) };
}
