//! Interval timers: setitimer and alarm (Linux: kernel/time/itimer.c).

use super::{FOREVER, NSEC_PER_SEC, Timeval};
use crate::Errno;
use crate::bytes::{array, put};
use crate::signal::Signal;

/// Which of a process's three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Time that passes.
    Real,
    /// Time in the program.
    Virtual,
    /// Time in program and kernel.
    Prof,
}

impl Which {
    /// # Errors
    /// EINVAL for a number that is none.
    pub const fn new(number: i32) -> Result<Which, Errno> {
        match number {
            0 => Ok(Which::Real),
            1 => Ok(Which::Virtual),
            2 => Ok(Which::Prof),
            _ => Err(Errno::Einval),
        }
    }

    /// What it sends.
    pub const fn signal(self) -> Signal {
        match self {
            Which::Real => Signal::ALRM,
            Which::Virtual => Signal::VTALRM,
            Which::Prof => Signal::PROF,
        }
    }
}

/// `struct itimerval`, checked; nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Itimerval {
    /// From one signal to the next; 0 for one signal only.
    pub interval: u64,
    /// To the next signal; 0 for none.
    pub value: u64,
}

impl Itimerval {
    /// Size.
    pub const LEN: usize = 32;

    /// Reads it.
    ///
    /// # Errors
    /// EINVAL for a time that is none.
    pub fn from_bytes(bytes: &[u8; Itimerval::LEN]) -> Result<Itimerval, Errno> {
        let time = |at| Timeval::from_bytes(&array(bytes, at).unwrap_or_default()).to_ns();
        Ok(Itimerval { interval: time(0)?, value: time(16)? })
    }

    /// Writes it.
    pub fn to_bytes(self) -> [u8; Itimerval::LEN] {
        let mut bytes = [0; Itimerval::LEN];
        put(&mut bytes, 0, &Timeval::from_ns(self.interval).to_bytes());
        put(&mut bytes, 16, &Timeval::from_ns(self.value).to_bytes());
        bytes
    }
}

/// A timer that fires once or again and again. Times are those of one clock, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IntervalTimer {
    expires: Option<u64>,
    interval: u64,
}

impl IntervalTimer {
    /// Not armed.
    pub const OFF: IntervalTimer = IntervalTimer { expires: None, interval: 0 };

    /// Sets it, and says what was left.
    pub fn set(&mut self, now: u64, new: Itimerval) -> Itimerval {
        let old = self.left(now);
        let expires = (new.value > 0).then(|| now.saturating_add(new.value).min(FOREVER));
        *self = IntervalTimer { expires, interval: if expires.is_some() { new.interval } else { 0 } };
        old
    }

    /// What is left. A timer that has not fired yet though its time came has a microsecond left, so that it does not look like
    /// one that is off (Linux: `itimer_get_remtime`).
    pub fn left(&self, now: u64) -> Itimerval {
        let value = self.expires.map_or(0, |expires| expires.saturating_sub(now).max(1000));
        Itimerval { interval: self.interval, value }
    }

    /// When it fires next.
    pub const fn expires(&self) -> Option<u64> {
        self.expires
    }

    /// Its time may have come: says how often it fired, and sets it for the next time that is to come (Linux:
    /// `hrtimer_forward`).
    pub fn fire(&mut self, now: u64) -> u64 {
        let Some(expires) = self.expires.filter(|&expires| expires <= now) else { return 0 };
        if self.interval == 0 {
            self.expires = None;
            return 1;
        }
        let missed = (now - expires) / self.interval;
        self.expires = Some(expires.saturating_add((missed + 1).saturating_mul(self.interval)).min(FOREVER));
        missed + 1
    }

    /// `alarm`: the same in seconds. Says what was left, rounded, but at least a second while it was set.
    pub fn alarm(&mut self, now: u64, seconds: u32) -> u32 {
        let new = Itimerval { interval: 0, value: u64::from(seconds) * NSEC_PER_SEC };
        let old = self.set(now, new).value;
        let (sec, rest) = (old / NSEC_PER_SEC, old % NSEC_PER_SEC);
        let rounded = sec + u64::from(sec == 0 && rest > 0 || rest >= NSEC_PER_SEC / 2);
        u32::try_from(rounded).unwrap_or(u32::MAX)
    }
}
