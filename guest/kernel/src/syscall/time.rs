//! Calls on time (Linux: kernel/time/, kernel/sys.c).

use guest_process::futex::ANY;
use guest_process::time::{Clock, Itimerval, NSEC_PER_SEC, Timespec, Timeval, Which, ticks};
use mm_vma::Errno;

use super::{int, signed};
use crate::arch::trap::TrapFrame;
use crate::futex::{self, Wait};
use crate::sched::{self, Woken, clock};
use crate::signal::RestartBlock;
use crate::task::{self, current};
use crate::{time, uaccess};

/// The calls of this file.
pub fn call(number: u64, frame: &TrapFrame) -> Option<Result<u64, Errno>> {
    let [a, b, c, d, ..] = super::arguments(frame);
    Some(match number {
        35 => clock_nanosleep(Clock::Monotonic, false, a, b),
        36 => getitimer(signed(a), b),
        37 => alarm(int(a)),
        38 => setitimer(signed(a), b, c),
        96 => gettimeofday(a, b),
        100 => times(a),
        201 => time_of_day(a),
        219 => restart(),
        227 => clock_settime(signed(a), b),
        228 => clock_gettime(signed(a), b),
        229 => clock_getres(signed(a), b),
        230 => Clock::new(signed(a)).and_then(|clock| {
            clock.sleeps()?;
            clock_nanosleep(clock, int(b) & 1 != 0, c, d)
        }),
        _ => return None,
    })
}

/// What a clock says.
fn read(clock: Clock) -> Result<u64, Errno> {
    let task = current().ok_or(Errno::Esrch)?;
    Ok(match clock {
        // Differs from Linux: no leap seconds are known, so TAI is the time of day.
        Clock::Realtime | Clock::RealtimeCoarse | Clock::Tai => time::realtime(),
        Clock::Monotonic | Clock::MonotonicRaw | Clock::MonotonicCoarse | Clock::Boottime => clock::now(),
        Clock::Process(None) => task.process.cpu_time(),
        Clock::Thread(None) => task.cpu_time(),
        Clock::Process(Some(pid)) => task::find_process(pid).ok_or(Errno::Einval)?.cpu_time(),
        Clock::Thread(Some(tid)) => task::find_task(tid).ok_or(Errno::Einval)?.cpu_time(),
    })
}

fn clock_gettime(id: i32, address: u64) -> Result<u64, Errno> {
    let now = read(Clock::new(id)?)?;
    uaccess::put_user(address, Timespec::from_ns(now).to_bytes())?;
    Ok(0)
}

fn clock_settime(id: i32, address: u64) -> Result<u64, Errno> {
    if Clock::new(id)? != Clock::Realtime {
        return Err(Errno::Einval);
    }
    let wanted = Timespec::from_bytes(&uaccess::get_user(address)?).to_ns()?;
    // Linux: time of day is never before the machine's begin.
    if wanted < clock::now() {
        return Err(Errno::Einval);
    }
    time::set_realtime(wanted);
    Ok(0)
}

fn clock_getres(id: i32, address: u64) -> Result<u64, Errno> {
    let resolution = match Clock::new(id)? {
        Clock::RealtimeCoarse | Clock::MonotonicCoarse => NSEC_PER_SEC / clock::HZ,
        _ => 1,
    };
    if address != 0 {
        uaccess::put_user(address, Timespec::from_ns(resolution).to_bytes())?;
    }
    Ok(0)
}

fn gettimeofday(time: u64, zone: u64) -> Result<u64, Errno> {
    if time != 0 {
        uaccess::put_user(time, Timeval::from_ns(time::realtime()).to_bytes())?;
    }
    if zone != 0 {
        // Minutes west, kind of daylight saving: UTC.
        uaccess::put_user(zone, [0_u32; 2])?;
    }
    Ok(0)
}

fn time_of_day(address: u64) -> Result<u64, Errno> {
    let seconds = time::realtime() / NSEC_PER_SEC;
    if address != 0 {
        uaccess::put_user(address, seconds)?;
    }
    Ok(seconds)
}

fn times(address: u64) -> Result<u64, Errno> {
    let task = current().ok_or(Errno::Esrch)?;
    if address != 0 {
        uaccess::put_user(address, task.process.usage().tms(&task.process.child_usage()))?;
    }
    Ok(ticks(clock::now()))
}

/// nanosleep and clock_nanosleep.
fn clock_nanosleep(clock: Clock, absolute: bool, request: u64, rest: u64) -> Result<u64, Errno> {
    let wanted = Timespec::from_bytes(&uaccess::get_user(request)?).to_ns()?;
    let deadline = match clock {
        _ if !absolute => clock::now().saturating_add(wanted),
        Clock::Realtime | Clock::Tai => wanted.saturating_sub(time::boot_realtime()),
        Clock::Monotonic | Clock::Boottime => wanted,
        // Differs from Linux: nobody watches CPU time.
        _ => return Err(Errno::Eopnotsupp),
    };
    // What is left of a moment is not told: the call begins again as it was.
    let rest = (!absolute).then_some(rest);
    sleep(deadline, rest)
}

fn sleep(deadline: u64, rest: Option<u64>) -> Result<u64, Errno> {
    if sched::sleep_until(&sched::task_context(), deadline) != Woken::Interrupted {
        return Ok(0);
    }
    let Some(rest) = rest else { return Err(Errno::Erestartnohand) };
    let left = deadline.saturating_sub(clock::now());
    if left == 0 {
        return Ok(0);
    }
    if rest != 0 {
        uaccess::put_user(rest, Timespec::from_ns(left).to_bytes())?;
    }
    let task = current().ok_or(Errno::Eintr)?;
    Err(task.signals.restart_by(RestartBlock::Sleep { deadline, rest }))
}

/// restart_syscall: a call goes on that a signal without handler interrupted.
fn restart() -> Result<u64, Errno> {
    let task = current().ok_or(Errno::Eintr)?;
    match task.signals.take_restart().ok_or(Errno::Eintr)? {
        RestartBlock::Sleep { deadline, rest } => sleep(deadline, Some(rest)),
        RestartBlock::Futex { address, value, bitset, private, deadline } => futex::wait(&Wait {
            address,
            value,
            bitset: if bitset == 0 { ANY } else { bitset },
            private,
            deadline: Some(deadline),
            absolute: false,
        }),
    }
}

/// Only the timer of time that passes is there.
///
/// Differs from Linux: ITIMER_VIRTUAL and ITIMER_PROF are ENOSYS, as nobody watches CPU time.
fn which(number: i32) -> Result<(), Errno> {
    if Which::new(number)? == Which::Real { Ok(()) } else { Err(Errno::Enosys) }
}

fn getitimer(number: i32, address: u64) -> Result<u64, Errno> {
    which(number)?;
    let task = current().ok_or(Errno::Esrch)?;
    let left = task.process.signals.real_timer.lock().left(clock::now());
    uaccess::put_user(address, left.to_bytes())?;
    Ok(0)
}

fn setitimer(number: i32, new: u64, old: u64) -> Result<u64, Errno> {
    which(number)?;
    let wanted = match new {
        // Linux allows it, and says not to rely on it.
        0 => Itimerval::default(),
        new => Itimerval::from_bytes(&uaccess::get_user(new)?)?,
    };
    let task = current().ok_or(Errno::Esrch)?;
    let before = {
        let mut timer = task.process.signals.real_timer.lock();
        let before = timer.set(clock::now(), wanted);
        (before, timer.expires())
    };
    if let Some(expires) = before.1 {
        time::timer_set(expires)?;
    }
    if old != 0 {
        uaccess::put_user(old, before.0.to_bytes())?;
    }
    Ok(0)
}

fn alarm(seconds: u32) -> Result<u64, Errno> {
    let task = current().ok_or(Errno::Esrch)?;
    let (left, expires) = {
        let mut timer = task.process.signals.real_timer.lock();
        (timer.alarm(clock::now(), seconds), timer.expires())
    };
    if let Some(expires) = expires {
        time::timer_set(expires)?;
    }
    Ok(u64::from(left))
}
