//! Requests for memory that fail on purpose: when (Linux 6.1: lib/fault-inject.c, Documentation/fault-injection).

use core::fmt;
use core::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Of the requests that it is asked about, those that are to fail (Linux: `struct fault_attr`). New, it lets all succeed.
///
/// Requests of several CPUs may count as one for the interval, as on Linux.
#[derive(Debug)]
pub struct FaultAttr {
    /// Every how many requests one may fail.
    interval: AtomicU64,
    /// How likely that one does, in percent.
    probability: AtomicU64,
    /// Bytes that may be had before any request fails.
    space: AtomicI64,
    /// How many may fail; -1 for any number.
    times: AtomicI64,
    count: AtomicU64,
}

impl Default for FaultAttr {
    fn default() -> FaultAttr {
        FaultAttr::new()
    }
}

impl FaultAttr {
    /// Nothing fails.
    pub const fn new() -> FaultAttr {
        FaultAttr {
            interval: AtomicU64::new(1),
            probability: AtomicU64::new(0),
            space: AtomicI64::new(0),
            times: AtomicI64::new(1),
            count: AtomicU64::new(0),
        }
    }

    /// Reads what the command line says, `INTERVAL,PROBABILITY,SPACE,TIMES` (Linux: `setup_fault_attr`). False, and nothing changed, if it
    /// is something else.
    pub fn setup(&self, text: &str) -> bool {
        let mut words = text.split(',');
        let mut unsigned = || words.next()?.parse::<u32>().ok();
        let Some((interval, probability)) = unsigned().zip(unsigned()) else { return false };
        let mut signed = || words.next()?.parse::<i32>().ok();
        let Some((space, times)) = signed().zip(signed()) else { return false };
        if words.next().is_some() {
            return false;
        }
        self.interval.store(interval.into(), Ordering::Relaxed);
        self.probability.store(probability.into(), Ordering::Relaxed);
        self.space.store(space.into(), Ordering::Relaxed);
        self.times.store(times.into(), Ordering::Relaxed);
        true
    }

    /// Whether the next request, of `size` bytes, fails; `percent` throws a number from 0 to 99 (Linux: `should_fail`).
    pub fn should_fail(&self, size: u64, percent: impl FnOnce() -> u64) -> bool {
        let probability = self.probability.load(Ordering::Relaxed);
        let times = self.times.load(Ordering::Relaxed);
        if probability == 0 || times == 0 {
            return false;
        }
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        if self.space.load(Ordering::Relaxed) > size {
            self.space.fetch_sub(size, Ordering::Relaxed);
            return false;
        }
        let interval = self.interval.load(Ordering::Relaxed);
        if interval > 1 && !(self.count.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(interval) {
            return false;
        }
        if probability <= percent() {
            return false;
        }
        let fewer = |times: i64| (times > 0).then(|| times - 1);
        times < 0 || self.times.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok()
    }
}

impl fmt::Display for FaultAttr {
    /// As Linux's report says it (`fail_dump`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "interval {}, probability {}, space {}, times {}",
            self.interval.load(Ordering::Relaxed),
            self.probability.load(Ordering::Relaxed),
            self.space.load(Ordering::Relaxed),
            self.times.load(Ordering::Relaxed),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::FaultAttr;

    fn with(text: &str) -> FaultAttr {
        let attr = FaultAttr::new();
        assert!(attr.setup(text), "{text}");
        attr
    }

    fn failures(attr: &FaultAttr, requests: usize) -> Vec<usize> {
        (1..=requests).filter(|_| attr.should_fail(64, || 50)).collect()
    }

    #[test]
    fn a_new_one_fails_nothing() {
        assert_eq!(failures(&FaultAttr::new(), 100), [0; 0]);
    }

    #[test]
    fn every_third_fails_twice() {
        assert_eq!(failures(&with("3,100,0,2"), 100), [3, 6]);
    }

    #[test]
    fn minus_one_is_for_ever() {
        assert_eq!(failures(&with("1,100,0,-1"), 100).len(), 100);
    }

    #[test]
    fn the_first_bytes_are_given() {
        // As long as more than the request is left of the space: 200, 136, 72.
        assert_eq!(failures(&with("1,100,200,1"), 100), [4]);
    }

    #[test]
    fn fewer_percent_than_thrown_let_it_succeed() {
        assert_eq!(failures(&with("1,50,0,-1"), 100).len(), 0);
        assert_eq!(failures(&with("1,51,0,-1"), 100).len(), 100);
    }

    #[test]
    fn what_is_not_four_numbers_changes_nothing() {
        let attr = with("2,3,4,5");
        for wrong in ["", "1", "1,2,3", "1,2,3,4,5", "-1,2,3,4", "1,2,3,x", "1 2 3 4"] {
            assert!(!attr.setup(wrong), "{wrong}");
        }
        assert_eq!(attr.to_string(), "interval 2, probability 3, space 4, times 5");
    }
}
