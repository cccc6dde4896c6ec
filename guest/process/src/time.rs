//! Times, clocks and interval timers (Linux: include/linux/time64.h, kernel/time).
//!
//! Inside the kernel a time is a number of nanoseconds in 64 bits, enough for 584 years; what is longer counts as for ever
//! ([`FOREVER`]).

mod interval;
#[cfg(test)]
mod tests;
mod usage;

use crate::Errno;
use crate::bytes::{array, put};

pub use interval::{IntervalTimer, Itimerval, Which};
pub use usage::{MemoryFacts, Usage};

/// Nanoseconds in a second.
pub const NSEC_PER_SEC: u64 = 1_000_000_000;
/// Clock ticks that programs know, in a second (`USER_HZ`).
pub const USER_HZ: u64 = 100;
/// A time that never comes (Linux: `KTIME_MAX`).
pub const FOREVER: u64 = i64::MAX.cast_unsigned();

/// `struct timespec`, as a program has it: not yet checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timespec {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds.
    pub nsec: i64,
}

impl Timespec {
    /// Size.
    pub const LEN: usize = 16;

    /// Reads it.
    pub fn from_bytes(bytes: &[u8; Timespec::LEN]) -> Timespec {
        let [sec, nsec] = words(bytes);
        Timespec { sec, nsec }
    }

    /// Writes it.
    pub fn to_bytes(self) -> [u8; Timespec::LEN] {
        pair(self.sec, self.nsec)
    }

    /// From nanoseconds.
    pub const fn from_ns(ns: u64) -> Timespec {
        Timespec { sec: (ns / NSEC_PER_SEC).cast_signed(), nsec: (ns % NSEC_PER_SEC).cast_signed() }
    }

    /// Nanoseconds, at most [`FOREVER`].
    ///
    /// # Errors
    /// EINVAL for a time before 0 or nanoseconds that are a second or more (Linux: `timespec64_valid`).
    pub const fn to_ns(self) -> Result<u64, Errno> {
        let (sec, nsec) = (self.sec.cast_unsigned(), self.nsec.cast_unsigned());
        if self.sec < 0 || nsec >= NSEC_PER_SEC {
            return Err(Errno::Einval);
        }
        Ok(saturating(sec, nsec))
    }
}

/// `struct timeval`, as a program has it: not yet checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeval {
    /// Seconds.
    pub sec: i64,
    /// Microseconds.
    pub usec: i64,
}

impl Timeval {
    /// Size.
    pub const LEN: usize = 16;

    /// Reads it.
    pub fn from_bytes(bytes: &[u8; Timeval::LEN]) -> Timeval {
        let [sec, usec] = words(bytes);
        Timeval { sec, usec }
    }

    /// Writes it.
    pub fn to_bytes(self) -> [u8; Timeval::LEN] {
        pair(self.sec, self.usec)
    }

    /// From nanoseconds; what is less than a microsecond is dropped.
    pub const fn from_ns(ns: u64) -> Timeval {
        let Timespec { sec, nsec } = Timespec::from_ns(ns);
        Timeval { sec, usec: nsec / 1000 }
    }

    /// Nanoseconds, at most [`FOREVER`].
    ///
    /// # Errors
    /// EINVAL for a time before 0 or microseconds that are a second or more.
    pub const fn to_ns(self) -> Result<u64, Errno> {
        let (sec, usec) = (self.sec.cast_unsigned(), self.usec.cast_unsigned());
        if self.sec < 0 || usec >= 1_000_000 {
            return Err(Errno::Einval);
        }
        Ok(saturating(sec, usec * 1000))
    }
}

const fn saturating(sec: u64, nsec: u64) -> u64 {
    let ns = sec.saturating_mul(NSEC_PER_SEC).saturating_add(nsec);
    if ns > FOREVER { FOREVER } else { ns }
}

fn words(bytes: &[u8; 16]) -> [i64; 2] {
    [0, 8].map(|at| array(bytes, at).map_or(0, i64::from_le_bytes))
}

fn pair(first: i64, second: i64) -> [u8; 16] {
    let mut bytes = [0; 16];
    put(&mut bytes, 0, &first.to_le_bytes());
    put(&mut bytes, 8, &second.to_le_bytes());
    bytes
}

/// Clock ticks of a time, as `times` and `/proc/PID/stat` count (Linux: `nsec_to_clock_t`).
pub const fn ticks(ns: u64) -> u64 {
    ns / (NSEC_PER_SEC / USER_HZ)
}

/// A clock (Linux: kernel/time/posix-timers.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Time of day.
    Realtime,
    /// Time since boot; suspension, which there is none of, does not count.
    Monotonic,
    /// CPU time of a process: of this number, or the caller's own.
    Process(Option<u32>),
    /// CPU time of a thread: of this number, or the caller itself.
    Thread(Option<u32>),
    /// As `Monotonic`, never slewed.
    MonotonicRaw,
    /// As `Realtime`, as of the last tick.
    RealtimeCoarse,
    /// As `Monotonic`, as of the last tick.
    MonotonicCoarse,
    /// Time since boot, suspension included.
    Boottime,
    /// Time of day without leap seconds.
    Tai,
}

impl Clock {
    /// # Errors
    /// EINVAL for a number that is none, and for clocks of devices, which are not there.
    pub const fn new(id: i32) -> Result<Clock, Errno> {
        Ok(match id {
            0 => Clock::Realtime,
            1 => Clock::Monotonic,
            2 => Clock::Process(None),
            3 => Clock::Thread(None),
            4 => Clock::MonotonicRaw,
            5 => Clock::RealtimeCoarse,
            6 => Clock::MonotonicCoarse,
            7 => Clock::Boottime,
            11 => Clock::Tai,
            // A process's or thread's number, which kind of clock, which of the two (Linux: `CPUCLOCK_PID` and so on).
            ..0 if id & 3 != 3 => {
                let number = match !(id >> 3) {
                    0 => None,
                    number => Some(number.cast_unsigned()),
                };
                if id & 4 != 0 { Clock::Thread(number) } else { Clock::Process(number) }
            }
            _ => return Err(Errno::Einval),
        })
    }

    /// Whether `clock_nanosleep` takes it.
    ///
    /// # Errors
    /// EINVAL for the caller's own CPU time, which does not pass while it sleeps; EOPNOTSUPP for clocks without timers.
    pub const fn sleeps(self) -> Result<(), Errno> {
        match self {
            Clock::Realtime | Clock::Monotonic | Clock::Boottime | Clock::Tai | Clock::Process(_) => Ok(()),
            Clock::Thread(Some(_)) => Ok(()),
            Clock::Thread(None) => Err(Errno::Einval),
            Clock::MonotonicRaw | Clock::RealtimeCoarse | Clock::MonotonicCoarse => Err(Errno::Eopnotsupp),
        }
    }
}
