//! The CMOS clock: an MC146818 that tells the host's time in UTC and keeps 114 bytes of RAM.
//!
//! It raises no interrupt, never updates while it is read, and cannot be set: writes to the time are
//! dropped. BCD and 24 hours, whatever the guest asks for, which register B tells it.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use super::{Device, Effect};

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
/// Where PCs keep the century.
const CENTURY: u8 = 0x32;
/// 32.768 kHz time base, 976 us rate; no update in progress.
const STATUS_A_VALUE: u8 = 0x26;
/// 24 hours, BCD, all interrupts off.
const STATUS_B_VALUE: u8 = 0x02;
/// RAM and time are valid.
const STATUS_D_VALUE: u8 = 0x80;
const RAM_START: u8 = 0x0e;

/// The clock; put it at [`crate::machine::layout::CMOS_INDEX`], length [`Cmos::LEN`].
pub struct Cmos {
    index: u8,
    ram: [u8; 128],
    /// Seconds since 1970.
    now: fn() -> u64,
}

impl fmt::Debug for Cmos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cmos").field("index", &self.index).finish_non_exhaustive()
    }
}

impl Default for Cmos {
    fn default() -> Cmos {
        Cmos { index: 0, ram: [0; 128], now: host_time }
    }
}

fn host_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl Cmos {
    /// Ports: index and data.
    pub const LEN: u64 = 2;

    fn register(&self) -> u8 {
        let time = Calendar::of((self.now)());
        match self.index {
            SECONDS => bcd(time.second),
            MINUTES => bcd(time.minute),
            HOURS => bcd(time.hour),
            WEEKDAY => bcd(time.weekday),
            DAY => bcd(time.day),
            MONTH => bcd(time.month),
            YEAR => bcd(time.year % 100),
            CENTURY => bcd(time.year / 100),
            STATUS_A => STATUS_A_VALUE,
            STATUS_B => STATUS_B_VALUE,
            STATUS_C => 0,
            STATUS_D => STATUS_D_VALUE,
            other => self.ram.get(usize::from(other)).copied().unwrap_or(0xff),
        }
    }
}

impl Device for Cmos {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // The index port cannot be read.
        for (at, byte) in (offset..).zip(data) {
            *byte = if at == 1 { self.register() } else { 0xff };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        for (at, byte) in (offset..).zip(data) {
            match at {
                // Bit 7 masks NMI; there is none.
                0 => self.index = byte & 0x7f,
                // The alarm's registers are kept too, but it never goes off.
                1 if self.index >= RAM_START || matches!(self.index, 1 | 3 | 5) => {
                    if let Some(slot) = self.ram.get_mut(usize::from(self.index)) {
                        *slot = *byte;
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// Two decimal digits.
fn bcd(value: u64) -> u8 {
    let digit = |value: u64| u8::try_from(value % 10).unwrap_or(0);
    digit(value / 10) << 4 | digit(value)
}

/// A point of time in UTC.
#[derive(Debug, PartialEq, Eq)]
struct Calendar {
    year: u64,
    month: u64,
    day: u64,
    /// 1 is Sunday.
    weekday: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Calendar {
    fn of(seconds: u64) -> Calendar {
        let is_leap =
            |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let mut days = seconds / 86_400;
        // 1 January 1970 was a Thursday.
        let weekday = (days + 4) % 7 + 1;
        // Every 400 years have the same number of days.
        let mut year = 1970 + days / 146_097 * 400;
        days %= 146_097;
        loop {
            let length = if is_leap(year) { 366 } else { 365 };
            if days < length {
                break;
            }
            days -= length;
            year += 1;
        }
        let february = if is_leap(year) { 29 } else { 28 };
        let mut month = 1;
        for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
            if days < length {
                break;
            }
            days -= length;
            month += 1;
        }
        Calendar {
            year,
            month,
            day: days + 1,
            weekday,
            hour: seconds / 3600 % 24,
            minute: seconds / 60 % 60,
            second: seconds % 60,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(cmos: &mut Cmos, index: u8) -> u8 {
        cmos.write(0, &[index]);
        let mut byte = [0];
        cmos.read(1, &mut byte);
        byte[0]
    }

    #[test]
    fn the_time_is_in_bcd_with_its_century() {
        // 29 February 2024, a Thursday, 23:59:58.
        let mut cmos = Cmos { now: || 1_709_251_198, ..Cmos::default() };
        let got = [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY].map(|at| read(&mut cmos, at));
        assert_eq!(got, [0x58, 0x59, 0x23, 0x05, 0x29, 0x02, 0x24, 0x20]);
        assert_eq!(read(&mut cmos, STATUS_A) & 0x80, 0, "no update in progress");
        assert_eq!(read(&mut cmos, STATUS_D), 0x80);
    }

    #[test]
    fn the_calendar_is_right_around_its_corners() {
        let date = |seconds| {
            let time = Calendar::of(seconds);
            (time.year, time.month, time.day, time.weekday)
        };
        assert_eq!(date(0), (1970, 1, 1, 5));
        assert_eq!(date(951_782_400), (2000, 2, 29, 3));
        assert_eq!(date(951_868_800), (2000, 3, 1, 4));
        assert_eq!(date(4_107_542_400), (2100, 3, 1, 2), "2100 is no leap year");
        assert_eq!(date(1_735_603_200), (2024, 12, 31, 3));
    }

    #[test]
    fn ram_is_kept_and_the_clock_cannot_be_set() {
        let mut cmos = Cmos { now: || 0, ..Cmos::default() };
        cmos.write(0, &[0x80 | 0x0f]);
        cmos.write(1, &[0x0a]);
        assert_eq!(read(&mut cmos, 0x0f), 0x0a);
        for index in [SECONDS, STATUS_B, STATUS_D] {
            let before = read(&mut cmos, index);
            cmos.write(1, &[0x55]);
            assert_eq!(read(&mut cmos, index), before);
        }
        let mut wide = [0; 4];
        cmos.read(0, &mut wide);
        assert_eq!((wide[0], wide[2]), (0xff, 0xff));
    }
}
