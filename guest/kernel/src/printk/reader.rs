//! Those who read the log: lines of text, and /dev/kmsg (Linux: `devkmsg_read`).

use alloc::string::String;
use core::fmt;

use guest_log::{Cursor, Record, text};
use mm_vma::Errno;

use crate::printk;
use crate::sched::{self, Woken, clock};
use crate::sync::Lock;
use crate::uaccess;

/// How often a reader looks for what is new.
const LOOK_NS: u64 = 50_000_000;

/// A record as a line of text.
pub fn line(record: &Record, write: fn(&Record, &mut Text) -> fmt::Result) -> Result<String, Errno> {
    let mut text = Text(String::new());
    write(record, &mut text).map_err(|_| Errno::Enomem)?;
    Ok(text.0)
}

/// Text that says when there is no memory for it.
pub struct Text(String);

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.try_reserve(text.len()).map_err(|_| fmt::Error)?;
        self.0.push_str(text);
        Ok(())
    }
}

/// Sleeps until there is something. Nobody wakes a reader: a message may come from where nothing may be woken (Linux: `wake_up_klogd` leaves it
/// to an interrupt).
pub fn wait(is_there: impl Fn() -> bool) -> Result<(), Errno> {
    while !is_there() {
        if clock::sleep_until(&sched::task_context(), clock::now() + LOOK_NS) == Woken::Interrupted {
            return Err(Errno::Erestartsys);
        }
    }
    Ok(())
}

/// Where the reader of /dev/kmsg was last: whoever reads on from there need not look for its place.
static LAST: Lock<Cursor> = Lock::new(Cursor { seq: 0, place: 0 });

/// A record of /dev/kmsg: its bytes. `seq` is where the file is; at 0 it is at the oldest that there is. It moves past a record that could not
/// be handed over, too, as Linux's does.
///
/// # Errors
/// `EAGAIN` if there is none and the file does not block, `EINVAL` if it does not fit, `EPIPE` once if records were overwritten before
/// somebody read them: `seq` is then the oldest.
pub fn read_kmsg(address: u64, len: usize, seq: &mut u64, nonblocking: bool) -> Result<usize, Errno> {
    let is_there = || printk::with_log(|log| *seq < log.end().seq);
    if nonblocking && !is_there() {
        return Err(Errno::Eagain);
    }
    wait(is_there)?;
    if *seq != 0 && *seq < first_seq() {
        *seq = first_seq();
        return Err(Errno::Epipe);
    }
    let last = *LAST.lock();
    let at = printk::with_log(|log| log.find(last, *seq));
    let (record, next) = printk::read(at).ok_or(Errno::Eagain)?;
    let line = line(&record, text::kmsg)?;
    *LAST.lock() = next;
    *seq = next.seq;
    if line.len() > len {
        return Err(Errno::Einval);
    }
    uaccess::write(address, line.as_bytes())?;
    Ok(line.len())
}

/// Number of the record that comes next.
pub fn end_seq() -> u64 {
    printk::with_log(|log| log.end().seq)
}

/// Number of the oldest record.
fn first_seq() -> u64 {
    printk::with_log(|log| log.state().first_seq)
}
