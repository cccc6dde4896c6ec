//! syslog (Linux: kernel/printk/printk.c, `do_syslog`).

use core::sync::atomic::{AtomicU8, Ordering};

use guest_log::{Cursor, text};
use mm_vma::Errno;

use super::{int, signed};
use crate::arch::trap::TrapFrame;
use crate::printk::reader::{line, wait};
use crate::printk::{self, LOG_BUF_LEN, MINIMUM_CONSOLE_LOGLEVEL};
use crate::sync::Lock;
use crate::uaccess;

/// The call of this file.
pub fn call(number: u64, frame: &TrapFrame) -> Option<Result<u64, Errno>> {
    let [a, b, c, ..] = super::arguments(frame);
    (number == 103).then(|| syslog(int(a), b, signed(c)))
}

/// The one reader of SYSLOG_ACTION_READ: where it is, and how much of that record it has (Linux: `syslog_seq`, `syslog_partial`).
static READER: Lock<(Cursor, usize)> = Lock::new((Cursor { seq: 0, place: 0 }, 0));
/// The console's level from before SYSLOG_ACTION_CONSOLE_OFF; 0 for none (Linux: `saved_console_loglevel`).
static SAVED_LEVEL: AtomicU8 = AtomicU8::new(0);

fn syslog(action: u32, buffer: u64, len: i32) -> Result<u64, Errno> {
    let space = || match usize::try_from(len) {
        Ok(len) if buffer != 0 => Ok(len),
        _ => Err(Errno::Einval),
    };
    match action {
        // SYSLOG_ACTION_CLOSE, SYSLOG_ACTION_OPEN
        0 | 1 => Ok(0),
        // SYSLOG_ACTION_READ
        2 => read(buffer, space()?),
        // SYSLOG_ACTION_READ_ALL, SYSLOG_ACTION_READ_CLEAR
        3 | 4 => {
            let done = read_all(buffer, space()?)?;
            if action == 4 {
                clear();
            }
            Ok(done)
        }
        // SYSLOG_ACTION_CLEAR
        5 => {
            clear();
            Ok(0)
        }
        // SYSLOG_ACTION_CONSOLE_OFF
        6 => {
            let level = printk::level(0);
            let _ = SAVED_LEVEL.compare_exchange(0, level, Ordering::Relaxed, Ordering::Relaxed);
            printk::set_level(0, printk::level(2));
            Ok(0)
        }
        // SYSLOG_ACTION_CONSOLE_ON
        7 => {
            match SAVED_LEVEL.swap(0, Ordering::Relaxed) {
                0 => {}
                level => printk::set_level(0, level),
            }
            Ok(0)
        }
        // SYSLOG_ACTION_CONSOLE_LEVEL
        8 => {
            let level = u8::try_from(len).ok().filter(|level| (MINIMUM_CONSOLE_LOGLEVEL..=8).contains(level));
            SAVED_LEVEL.store(0, Ordering::Relaxed);
            printk::set_level(0, level.ok_or(Errno::Einval)?.max(printk::level(2)));
            Ok(0)
        }
        // SYSLOG_ACTION_SIZE_UNREAD
        9 => {
            let (at, partial) = *READER.lock();
            Ok((size_from(at)? - partial) as u64)
        }
        // SYSLOG_ACTION_SIZE_BUFFER
        10 => Ok(LOG_BUF_LEN as u64),
        _ => Err(Errno::Einval),
    }
}

fn clear() {
    printk::with_log(|log| log.clear());
}

/// Bytes of all lines from a record on.
#[inline(never)]
fn size_from(mut at: Cursor) -> Result<usize, Errno> {
    let mut size = 0;
    while let Some((record, next)) = printk::read(at) {
        size += line(&record, text::syslog)?.len();
        at = next;
    }
    Ok(size)
}

/// As many of the last lines as fit (Linux: `syslog_print_all`).
#[inline(never)]
fn read_all(buffer: u64, len: usize) -> Result<u64, Errno> {
    let mut at = printk::with_log(|log| log.since_clear());
    let mut size = size_from(at)?;
    let mut done = 0;
    while let Some((record, next)) = printk::read(at) {
        let line = line(&record, text::syslog)?;
        at = next;
        if size > len {
            size = size.saturating_sub(line.len());
        } else if done + line.len() <= len {
            uaccess::write(buffer + done as u64, line.as_bytes())?;
            done += line.len();
        } else {
            break;
        }
    }
    Ok(done as u64)
}

/// What is new, once for all readers; waits for it (Linux: `syslog_print`).
#[inline(never)]
fn read(buffer: u64, len: usize) -> Result<u64, Errno> {
    if len == 0 {
        return Ok(0);
    }
    let mut done = 0;
    wait(|| printk::with_log(|log| READER.lock().0.seq < log.end().seq))?;
    loop {
        let (at, partial) = *READER.lock();
        let Some((record, next)) = printk::read(at) else { break };
        let line = line(&record, text::syslog)?;
        // Of a record that was overwritten meanwhile nothing was read.
        let partial = if record.header.seq == at.seq { partial } else { 0 };
        let rest = line.as_bytes().get(partial..).unwrap_or_default();
        let piece = rest.get(..len - done).unwrap_or(rest);
        if piece.is_empty() {
            break;
        }
        uaccess::write(buffer + done as u64, piece)?;
        done += piece.len();
        let is_whole = piece.len() == rest.len();
        let here = Cursor { seq: record.header.seq, place: next.place - record.header.record_len() };
        *READER.lock() = if is_whole { (next, 0) } else { (here, partial + piece.len()) };
    }
    Ok(done as u64)
}
