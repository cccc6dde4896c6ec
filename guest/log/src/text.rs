//! How programs read and write records.

use core::fmt::{self, Write};

use crate::Record;

/// Linux: `LOG_USER`, what programs say.
pub const FACILITY_USER: u8 = 1;
/// Linux: `MESSAGE_LOGLEVEL_DEFAULT`, of a text without a level.
pub const DEFAULT_MESSAGE_LOGLEVEL: u8 = 4;

const NSEC_PER_USEC: u64 = 1000;
const USEC_PER_SEC: u64 = 1_000_000;

/// Writes a record as `dmesg` shows it, `<6>[    0.123456] text` (Linux: `record_print_text`, `print_syslog`, `print_time`).
///
/// # Errors
/// Those of `out`.
pub fn syslog(record: &Record, out: &mut impl Write) -> fmt::Result {
    let micros = record.header.ts_nsec / NSEC_PER_USEC;
    let (seconds, rest) = (micros / USEC_PER_SEC, micros % USEC_PER_SEC);
    write!(out, "<{}>[{seconds:5}.{rest:06}] ", record.priority())?;
    lossy(record.text(), out)?;
    out.write_char('\n')
}

/// Writes a record as /dev/kmsg gives it, `6,12,123456,-;text` (Linux: `info_print_ext_header`, `msg_add_ext_text`).
///
/// # Errors
/// Those of `out`.
pub fn kmsg(record: &Record, out: &mut impl Write) -> fmt::Result {
    let micros = record.header.ts_nsec / NSEC_PER_USEC;
    write!(out, "{},{},{micros},-;", record.priority(), record.header.seq)?;
    for &byte in record.text() {
        match byte {
            b' '..=b'~' if byte != b'\\' => out.write_char(char::from(byte))?,
            _ => write!(out, "\\x{byte:02x}")?,
        }
    }
    out.write_char('\n')
}

fn lossy(text: &[u8], out: &mut impl Write) -> fmt::Result {
    text.utf8_chunks().try_for_each(|chunk| {
        out.write_str(chunk.valid())?;
        if chunk.invalid().is_empty() { Ok(()) } else { out.write_char('?') }
    })
}

/// Facility, level and text of what a program writes to /dev/kmsg: `<N>text`, or text alone (Linux: `devkmsg_write`). The facility is never
/// the kernel's. A line feed at the end does not count.
pub fn written(bytes: &[u8]) -> (u8, u8, &[u8]) {
    let prefix = || {
        let rest = bytes.strip_prefix(b"<")?;
        let end = rest.iter().position(|byte| *byte == b'>')?;
        let number: u32 = core::str::from_utf8(rest.get(..end)?).ok()?.parse().ok()?;
        let facility = u8::try_from(number >> 3 & 0xff).ok()?;
        Some((
            if facility == 0 { FACILITY_USER } else { facility },
            u8::try_from(number & 7).ok()?,
            rest.get(end + 1..)?,
        ))
    };
    let (facility, level, text) = prefix().unwrap_or((FACILITY_USER, DEFAULT_MESSAGE_LOGLEVEL, bytes));
    (facility, level, text.strip_suffix(b"\n").unwrap_or(text))
}
