//! Time: nanoseconds since boot from the time-stamp counter, and the periodic interrupt that ends slices and sleeps.
//!
//! A CPU's timer runs while it has something to do: user tasks that share CPUs, or anybody who sleeps for a time. It is measured
//! when it is needed first, on hardware by the PIT; a machine that runs one program and no timeout never does.
//!
//! Differs from Linux: one rate of 100 Hz, no one-shot timers; sleeps end at a tick.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use mm_core::MaySleep;

use super::{SCHED, WaitQueue, Woken};
use crate::arch::percpu::{self, PerCpu};
use crate::arch::{apic, cpu, regs};
use crate::drivers::pit;
use crate::println;
use crate::sync::Lock;

/// Ticks a second (Linux: `HZ`).
pub const HZ: u64 = 100;
/// PIT ticks of the measurement: 10 ms.
const MEASURE: u16 = 11_932;
/// Units of the counter's rate, for fixed-point arithmetic.
const SHIFT: u32 = 32;
/// Clock of the APIC's timer before it is divided, under hypervisors.
const APIC_BUS_HZ: u64 = 1_000_000_000;

/// Nanoseconds of a cycle, times 2^SHIFT; 0 until measured.
static MULT: AtomicU64 = AtomicU64::new(0);
/// Timer units of a tick.
static TICK_UNITS: AtomicU32 = AtomicU32::new(0);
/// Time-stamp counter at boot.
static BOOT: AtomicU64 = AtomicU64::new(0);
static MEASURING: Lock<()> = Lock::new(());
/// Tasks that sleep until a time.
static SLEEPERS: AtomicU32 = AtomicU32::new(0);
/// The first of their times.
static NEAREST: AtomicU64 = AtomicU64::new(u64::MAX);
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
    println!("clock: time-stamp counter {} kHz, APIC timer {} kHz", tsc_hz / 1000, apic_hz / 1000);
    TICK_UNITS.store(u32::try_from(apic_hz / HZ).unwrap_or(u32::MAX), Ordering::Relaxed);
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
        start(percpu);
    }
}

/// A user task ended.
pub(super) fn user_task_ended() {
    USER_TASKS.fetch_sub(1, Ordering::Relaxed);
}

/// This CPU is about to run a user task.
pub fn runs_user(percpu: &PerCpu) {
    if USER_TASKS.load(Ordering::Relaxed) > 1 {
        start(percpu);
    }
}

fn start(percpu: &PerCpu) {
    if percpu.tick.load(Ordering::Relaxed) != 0 {
        return;
    }
    if MULT.load(Ordering::Acquire) == 0 {
        measure();
    }
    let flags = regs::irq_save();
    percpu.tick.store(1, Ordering::Relaxed);
    apic::start_timer(TICK_UNITS.load(Ordering::Relaxed));
    regs::irq_restore(flags);
}

/// The timer's interrupt (Linux: `tick_handle_periodic`).
pub fn tick() {
    let Some(percpu) = percpu::current() else { return };
    let sleepers = SLEEPERS.load(Ordering::Acquire) > 0;
    if sleepers && now() >= NEAREST.load(Ordering::Acquire) {
        wake_sleepers(now());
    }
    let user = percpu.user.load(Ordering::Relaxed) != 0;
    if user {
        percpu.need_resched.store(1, Ordering::Relaxed);
    }
    if !sleepers && (!user || USER_TASKS.load(Ordering::Relaxed) <= 1) {
        percpu.tick.store(0, Ordering::Relaxed);
        apic::stop_timer();
    }
}

/// Wakes who has slept long enough at `now`, and finds out who is next. Whoever is woken counts as long as it keeps its deadline: its CPU's
/// clock may be behind this one's, so that it finds it too early and sleeps on.
pub fn wake_sleepers(now: u64) {
    // Who begins to sleep during the search lowers it again.
    NEAREST.store(u64::MAX, Ordering::SeqCst);
    let mut at = 0;
    let mut nearest = u64::MAX;
    while let Some((number, deadline)) = next_sleeper(at) {
        at = number + 1;
        nearest = nearest.min(deadline);
        if deadline <= now {
            super::wake(number);
        }
    }
    NEAREST.fetch_min(nearest, Ordering::SeqCst);
}

fn next_sleeper(from: usize) -> Option<(usize, u64)> {
    let sched = SCHED.lock();
    let slots = sched.slots.iter().enumerate().skip(from);
    slots.map(|(number, slot)| (number, slot.deadline)).find(|&(_, deadline)| deadline != 0)
}

/// The task `number` wants to be woken at `deadline`, in nanoseconds since boot, above 0.
pub(super) fn set_deadline(number: usize, deadline: u64) {
    SCHED.lock().slots[number].deadline = deadline;
    SLEEPERS.fetch_add(1, Ordering::AcqRel);
    NEAREST.fetch_min(deadline, Ordering::SeqCst);
    if let Some(percpu) = percpu::current() {
        start(percpu);
    }
}

/// It does not any more.
pub(super) fn clear_deadline(number: usize) {
    SCHED.lock().slots[number].deadline = 0;
    SLEEPERS.fetch_sub(1, Ordering::AcqRel);
}

/// Sleeps until `deadline`, in nanoseconds since boot, or until a signal comes (Linux: `schedule_hrtimeout` in TASK_INTERRUPTIBLE).
pub fn sleep_until(context: &MaySleep<'_>, deadline: u64) -> Woken {
    static NOBODY_WAKES: WaitQueue = WaitQueue::new();
    match NOBODY_WAKES.wait_interruptible(context, Some(deadline), || false) {
        Woken::Interrupted => Woken::Interrupted,
        Woken::Event | Woken::TimedOut => Woken::Event,
    }
}
