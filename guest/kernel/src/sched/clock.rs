//! Time: nanoseconds since boot from the time-stamp counter, and the tick that ends slices.
//!
//! A CPU ticks while it runs a user task and others may want it; who sleeps is woken by an interrupt of its own (`timer.rs`). Both
//! are set for a moment, as a value of the time-stamp counter where the APIC compares with it, else as a count of its own units. The
//! rates are measured when they are needed first, on hardware by the PIT; a machine that runs one program and no timeout never does.
//!
//! Differs from Linux: one rate of 100 Hz.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use mm_core::MaySleep;

use super::{WaitQueue, Woken, runqueue, timer};
use crate::arch::percpu::{self, PerCpu};
use crate::arch::{apic, cpu, regs};
use crate::drivers::pit;
use crate::sync::Lock;
use crate::{ktest, pr_info};

/// Ticks a second (Linux: `HZ`).
pub const HZ: u64 = 100;
/// Nanoseconds between ticks.
const PERIOD: u64 = 1_000_000_000 / HZ;
/// Nanoseconds for which the rate of the APIC's timer is exact enough.
const FAR: u64 = 100_000_000;
/// PIT ticks of the measurement: 10 ms.
const MEASURE: u16 = 11_932;
/// Units of the counter's rate, for fixed-point arithmetic.
const SHIFT: u32 = 32;
/// Clock of the APIC's timer before it is divided, under hypervisors.
const APIC_BUS_HZ: u64 = 1_000_000_000;

/// Nanoseconds of a cycle, times 2^SHIFT; 0 until measured.
static MULT: AtomicU64 = AtomicU64::new(0);
/// Cycles of a nanosecond, times 2^SHIFT.
static CYCLES: AtomicU64 = AtomicU64::new(0);
/// Units of the APIC's timer in a nanosecond, times 2^SHIFT; 0 where it compares with the time-stamp counter.
static UNITS: AtomicU64 = AtomicU64::new(0);
/// Time-stamp counter at boot.
static BOOT: AtomicU64 = AtomicU64::new(0);
static MEASURING: Lock<()> = Lock::new(());
/// User tasks that exist.
static USER_TASKS: AtomicU32 = AtomicU32::new(0);

pub(super) fn init() {
    BOOT.store(regs::rdtsc(), Ordering::Relaxed);
}

/// Measures the counters, once.
fn measure() -> u64 {
    let _held = MEASURING.lock();
    let known = MULT.load(Ordering::Acquire);
    if known != 0 {
        return known;
    }
    let (tsc_hz, apic_hz) = match cpu::has_hypervisor() {
        true => by_apic(),
        false => by_pit().unwrap_or_else(by_apic),
    };
    let by_tsc = apic::has_tsc_deadline();
    let timer = if by_tsc { ", which sets it" } else { "" };
    pr_info!("clock: time-stamp counter {} kHz{timer}, APIC timer {} kHz", tsc_hz / 1000, apic_hz / 1000);
    let shifted = |hz: u64| u64::try_from((u128::from(hz) << SHIFT) / 1_000_000_000).unwrap_or(u64::MAX);
    CYCLES.store(shifted(tsc_hz), Ordering::Relaxed);
    UNITS.store(if by_tsc { 0 } else { shifted(apic_hz) }, Ordering::Relaxed);
    let mult = (1_000_000_000 << SHIFT) / u128::from(tsc_hz);
    let mult = u64::try_from(mult).unwrap_or(u64::MAX).max(1);
    MULT.store(mult, Ordering::Release);
    mult
}

/// Rates of the time-stamp counter and of the APIC's timer, measured by the PIT; `None` on a machine without one.
fn by_pit() -> Option<(u64, u64)> {
    let mut cycles = None;
    let units = apic::count_timer(|| cycles = pit::count_down(MEASURE));
    let rate = |count: u64| count * pit::TICK_RATE / u64::from(MEASURE);
    Some((rate(cycles?).max(1), rate(u64::from(units)).max(HZ)))
}

/// The same by the APIC's timer alone: its clock is [`APIC_BUS_HZ`] under KVM (`APIC_BUS_CYCLE_NS`) and under QEMU, which both may lack
/// a PIT.
fn by_apic() -> (u64, u64) {
    const APIC_HZ: u64 = APIC_BUS_HZ / 16;
    let wanted = u32::try_from(APIC_HZ / HZ).unwrap_or(u32::MAX);
    let mut cycles = 0;
    let units = apic::count_timer(|| {
        let begin = regs::rdtsc();
        while apic::timer_units() < wanted {
            core::hint::spin_loop();
        }
        cycles = regs::rdtsc() - begin;
    });
    (cycles.saturating_mul(APIC_HZ) / u64::from(units.max(1)), APIC_HZ)
}

/// Nanoseconds since boot; never goes back on one CPU, but another's clock may be a little behind or ahead (Linux: `ktime_get`, of an
/// unstable time-stamp counter).
pub fn now() -> u64 {
    ns_of(regs::rdtsc().saturating_sub(BOOT.load(Ordering::Relaxed)))
}

/// [`now`], or 0 as long as nobody knows how fast the time-stamp counter is. For messages: measuring takes a while, and has something to say.
pub fn now_if_known() -> u64 {
    if MULT.load(Ordering::Acquire) == 0 { 0 } else { now() }
}

/// Rate of the time-stamp counter.
pub fn tsc_khz() -> u64 {
    // Nanoseconds of a million cycles.
    let ns = ns_of(1_000_000).max(1);
    1_000_000_000_000 / ns
}

/// Nanoseconds of so many cycles of the time-stamp counter.
pub fn ns_of(cycles: u64) -> u64 {
    let mult = match MULT.load(Ordering::Acquire) {
        0 => measure(),
        mult => mult,
    };
    u64::try_from((u128::from(cycles) * u128::from(mult)) >> SHIFT).unwrap_or(u64::MAX)
}

/// A user task begins: from the second on they take turns.
pub(super) fn user_task_begins() {
    if USER_TASKS.fetch_add(1, Ordering::Relaxed) > 0
        && let Some(percpu) = percpu::current()
    {
        runs_user(percpu);
    }
}

/// A user task ended.
pub(super) fn user_task_ended() {
    USER_TASKS.fetch_sub(1, Ordering::Relaxed);
}

/// This CPU is about to run a user task, or goes on with it: it ticks if others want it (Linux: `sched_update_tick_dependency`).
pub fn runs_user(percpu: &PerCpu) {
    if percpu.tick.load(Ordering::Relaxed) == 0 && is_wanted(percpu) {
        measure_once();
        timer::begin_ticks(percpu, PERIOD);
    }
}

/// Whether there may be others for this CPU: user tasks, or who waits in its queue.
fn is_wanted(percpu: &PerCpu) -> bool {
    USER_TASKS.load(Ordering::Relaxed) > 1 || runqueue::waits(percpu.cpu.load(Ordering::Relaxed))
}

/// Measures the rates unless they are known, which must not wait until they are needed in an interrupt.
pub(super) fn measure_once() {
    if MULT.load(Ordering::Acquire) == 0 {
        measure();
    }
}

/// Lets this CPU's timer interrupt at `deadline` or as soon as it can afterwards; it may come earlier if that is far away. Interrupts
/// are off, and the rates known.
pub(super) fn set_apic_timer(deadline: u64, now: u64) {
    let scaled = |ns: u64, rate: &AtomicU64| {
        let product = u128::from(ns) * u128::from(rate.load(Ordering::Relaxed));
        u64::try_from(product >> SHIFT).unwrap_or(u64::MAX)
    };
    if UNITS.load(Ordering::Relaxed) == 0 {
        // Rounded up, so that it is not too early.
        let cycles = scaled(deadline, &CYCLES).saturating_add(2);
        apic::set_tsc_deadline(BOOT.load(Ordering::Relaxed).saturating_add(cycles).max(1));
    } else {
        let left = deadline.saturating_sub(now);
        // The two rates were measured, so a long time is approached in steps.
        let step = if left > FAR { left - left / 16 } else { left };
        let units = scaled(step, &UNITS).saturating_add(1);
        apic::set_timer(u32::try_from(units).unwrap_or(u32::MAX));
    }
}

/// The timer's interrupt (Linux: `hrtimer_interrupt`, `tick_sched_timer`).
pub fn tick() {
    let Some(percpu) = percpu::current() else { return };
    ktest::atomic::tick();
    let user = percpu.user.load(Ordering::Relaxed) != 0;
    timer::interrupt(percpu, PERIOD, || {
        if user {
            percpu.need_resched.store(1, Ordering::Relaxed);
        }
        user && is_wanted(percpu)
    });
    if user {
        // Who came meanwhile was told that it ticks.
        runs_user(percpu);
    }
}

/// Sleeps until `deadline`, in nanoseconds since boot, or until a signal comes (Linux: `schedule_hrtimeout` in TASK_INTERRUPTIBLE).
pub fn sleep_until(context: &MaySleep<'_>, deadline: u64) -> Woken {
    static NOBODY_WAKES: WaitQueue = WaitQueue::new();
    match NOBODY_WAKES.wait_interruptible(context, Some(deadline), || false) {
        Woken::Interrupted => Woken::Interrupted,
        Woken::Event | Woken::TimedOut => Woken::Event,
    }
}
