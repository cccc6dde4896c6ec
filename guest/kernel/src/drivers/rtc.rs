//! The clock of the PC's CMOS (Motorola MC146818), which is asked for the time once (Linux: drivers/rtc/rtc-mc146818-lib.c).

use crate::arch::regs::{inb, outb};

const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const CENTURY: u8 = 0x32;
/// In status A: the time changes right now.
const UPDATES: u8 = 0x80;
/// In status B: numbers are binary, not BCD.
const BINARY: u8 = 0x04;
/// In status B: hours are 0 to 23.
const HOURS_24: u8 = 0x02;
/// Reads after which a clock that always updates is none: an open bus reads as ones.
const MAX_READS: u32 = 10_000;

fn read(register: u8) -> u8 {
    // Bit 7 of the index would turn NMIs off.
    outb(INDEX, register);
    inb(DATA)
}

/// Seconds, minutes, hours, day, month, year of the century, century: as they stand there.
fn fields() -> Option<[u8; 7]> {
    (0..MAX_READS).find(|_| read(STATUS_A) & UPDATES == 0)?;
    Some([0x00, 0x02, 0x04, 0x07, 0x08, 0x09, CENTURY].map(read))
}

/// Seconds since 1970; `None` if there is no clock.
pub fn read_time() -> Option<u64> {
    let mut seen = fields()?;
    // Twice the same: no update in between.
    loop {
        let again = fields()?;
        if again == seen {
            break;
        }
        seen = again;
    }
    let status = read(STATUS_B);
    let number =
        |value: u8| u64::from(if status & BINARY != 0 { value } else { (value >> 4) * 10 + (value & 0xf) });
    let [seconds, minutes, hours, day, month, year, century] = seen;
    let mut hour = number(hours & 0x7f);
    if status & HOURS_24 == 0 {
        hour = hour % 12 + if hours & 0x80 != 0 { 12 } else { 0 };
    }
    let century = match number(century) {
        century @ 19..=99 => century,
        // Not every machine keeps it.
        _ => 20,
    };
    let (month, day) = (number(month), number(day));
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let days = days_since_1970(century * 100 + number(year), month, day)?;
    Some(((days * 24 + hour) * 60 + number(minutes)) * 60 + number(seconds))
}

/// Linux: `mktime64`: years begin with March, so that the leap day is the last.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    const TO_1970: u64 = 719_499;
    let (year, month) = if month > 2 { (year, month - 2) } else { (year - 1, month + 10) };
    (year / 4 - year / 100 + year / 400 + 367 * month / 12 + day + year * 365).checked_sub(TO_1970)
}
