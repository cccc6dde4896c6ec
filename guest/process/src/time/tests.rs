use core::mem::offset_of;

use proptest::prelude::*;

use super::*;

const SEC: u64 = NSEC_PER_SEC;

#[test]
fn times_that_are_none_are_einval() {
    let spec = |sec, nsec| Timespec { sec, nsec }.to_ns();
    assert_eq!(spec(1, 5), Ok(SEC + 5));
    assert_eq!(spec(-1, 0), Err(Errno::Einval));
    assert_eq!(spec(0, -1), Err(Errno::Einval));
    assert_eq!(spec(0, 1_000_000_000), Err(Errno::Einval));
    assert_eq!(spec(i64::MAX, 999_999_999), Ok(FOREVER));
    let val = |sec, usec| Timeval { sec, usec }.to_ns();
    assert_eq!(val(1, 5), Ok(SEC + 5000));
    assert_eq!(val(0, 1_000_000), Err(Errno::Einval));
    assert_eq!(val(-1, 0), Err(Errno::Einval));
}

#[test]
fn clocks_are_linuxs() {
    assert_eq!(Clock::new(libc::CLOCK_MONOTONIC_COARSE), Ok(Clock::MonotonicCoarse));
    assert_eq!(Clock::new(libc::CLOCK_BOOTTIME), Ok(Clock::Boottime));
    assert_eq!(Clock::new(libc::CLOCK_TAI), Ok(Clock::Tai));
    assert_eq!(Clock::new(10), Err(Errno::Einval));
    assert_eq!(Clock::new(99), Err(Errno::Einval));
    // glibc's clock_getcpuclockid(5), pthread_getcpuclockid of thread 5, a descriptor's clock.
    assert_eq!(Clock::new(!5 << 3 | 2), Ok(Clock::Process(Some(5))));
    assert_eq!(Clock::new(!5 << 3 | 6), Ok(Clock::Thread(Some(5))));
    assert_eq!(Clock::new(!5 << 3 | 3), Err(Errno::Einval));
    assert_eq!(Clock::MonotonicRaw.sleeps(), Err(Errno::Eopnotsupp));
    assert_eq!(Clock::Thread(None).sleeps(), Err(Errno::Einval));
}

#[test]
fn a_timer_fires_and_is_set_again_for_a_time_to_come() {
    let mut timer = IntervalTimer::OFF;
    assert_eq!(timer.set(100, Itimerval { value: 50, interval: 10 }), Itimerval::default());
    assert_eq!((timer.fire(149), timer.expires()), (0, Some(150)));
    assert_eq!((timer.fire(150), timer.expires()), (1, Some(160)));
    assert_eq!((timer.fire(185), timer.expires()), (3, Some(190)));
    assert_eq!(timer.left(180), Itimerval { value: 1000, interval: 10 });
    timer.set(200, Itimerval { value: 0, interval: 10 });
    assert_eq!((timer.expires(), timer.left(300)), (None, Itimerval::default()));
}

#[test]
fn alarm_counts_in_seconds() {
    let mut timer = IntervalTimer::OFF;
    assert_eq!(timer.alarm(0, 10), 0);
    assert_eq!(timer.alarm(SEC * 7 / 2, 3), 7, "6.5 seconds are left");
    assert_eq!(timer.alarm(SEC * 6, 0), 1, "half a second is left");
    assert_eq!(timer.alarm(SEC * 7, 0), 0);
}

#[test]
fn structures_have_the_layout_of_libc() {
    assert_eq!(size_of::<libc::itimerval>(), Itimerval::LEN);
    assert_eq!(size_of::<libc::rusage>(), Usage::LEN);
    assert_eq!(size_of::<libc::sysinfo>(), MemoryFacts::LEN);
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let usage = Usage {
        user_ns: 3 * SEC,
        system_ns: SEC / 2,
        max_rss_kib: 4,
        minor_faults: 5,
        major_faults: 6,
        voluntary_switches: 7,
        involuntary_switches: 8,
    };
    let bytes = usage.to_bytes();
    assert_eq!(word(&bytes, offset_of!(libc::rusage, ru_utime)), 3);
    assert_eq!(word(&bytes, offset_of!(libc::rusage, ru_stime) + 8), 500_000);
    assert_eq!(word(&bytes, offset_of!(libc::rusage, ru_maxrss)), 4);
    assert_eq!(word(&bytes, offset_of!(libc::rusage, ru_minflt)), 5);
    assert_eq!(word(&bytes, offset_of!(libc::rusage, ru_majflt)), 6);
    assert_eq!(word(&bytes, offset_of!(libc::rusage, ru_nvcsw)), 7);
    assert_eq!(word(&bytes, offset_of!(libc::rusage, ru_nivcsw)), 8);
    assert_eq!([0, 8, 16].map(|at| word(&usage.tms(&usage), at)), [300, 50, 300]);
    let facts =
        MemoryFacts { uptime_ns: 1, ram: [1, 2, 3, 4], swap: [5, 6], threads: 7, ..MemoryFacts::default() };
    let bytes = facts.to_bytes();
    assert_eq!(word(&bytes, offset_of!(libc::sysinfo, uptime)), 1);
    assert_eq!(word(&bytes, offset_of!(libc::sysinfo, totalram)), 1);
    assert_eq!(word(&bytes, offset_of!(libc::sysinfo, bufferram)), 4);
    assert_eq!(word(&bytes, offset_of!(libc::sysinfo, freeswap)), 6);
    assert_eq!(bytes[offset_of!(libc::sysinfo, procs)], 7);
    assert_eq!(bytes[offset_of!(libc::sysinfo, mem_unit)], 1);
}

proptest! {
    #[test]
    fn times_survive_both_ways(ns in 0..=FOREVER) {
        prop_assert_eq!(Timespec::from_ns(ns).to_ns(), Ok(ns));
        prop_assert_eq!(Timeval::from_ns(ns).to_ns(), Ok(ns / 1000 * 1000));
        prop_assert_eq!(Timespec::from_bytes(&Timespec::from_ns(ns).to_bytes()), Timespec::from_ns(ns));
    }

    #[test]
    fn any_time_is_a_number_or_an_error(sec in any::<i64>(), part in any::<i64>(), now in any::<u64>()) {
        let spec = Timespec { sec, nsec: part }.to_ns();
        prop_assert!(spec.is_ok_and(|ns| ns <= FOREVER) || sec < 0 || !(0..1_000_000_000).contains(&part));
        let mut timer = IntervalTimer::OFF;
        timer.set(now, Itimerval { value: sec.unsigned_abs(), interval: part.unsigned_abs() });
        timer.fire(u64::MAX);
        timer.left(now);
    }

    /// As counting tick by tick.
    #[test]
    fn a_timer_never_fires_early_late_or_twice(value in 1..50_u64, interval in 0..20_u64, steps in prop::collection::vec(0..30_u64, 1..20)) {
        let mut timer = IntervalTimer::OFF;
        timer.set(0, Itimerval { value, interval });
        let (mut now, mut fired) = (0, 0);
        for step in steps {
            now += step;
            fired += timer.fire(now);
            let again = |late: u64| late.checked_div(interval).unwrap_or(0);
            let due = now.checked_sub(value).map_or(0, |late| 1 + again(late));
            prop_assert_eq!(fired, due);
        }
    }
}
