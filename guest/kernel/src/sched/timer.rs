//! Sleeping until a time: each CPU's sleepers, and the one-shot interrupt for the first of them or the next tick (Linux:
//! kernel/time/hrtimer.c, tick-sched.c).
//!
//! Invariants:
//! T1  a task is among the sleepers of at most one CPU, that on which it began to sleep; `of` says which, and only the task itself
//!     enters. Whoever wakes it for its time takes it out first;
//! T2  a CPU's timer is set to the least of its first sleeper and its next tick, or earlier;
//! T3  who comes back too early, because its CPU's clock is behind that of the CPU that woke it, enters anew.
//!
//! Lock order: a CPU's sleepers; nothing below. Who is woken is woken outside it.

use core::sync::atomic::{AtomicU32, Ordering};

use guest_firmware::acpi::MAX_CPUS;
use guest_process::queue::{Node, Queue};

use super::{MAX_TASKS, clock};
use crate::arch::apic;
use crate::arch::percpu::{self, PerCpu};
use crate::arch::regs;
use crate::sync::Lock;

/// A moment that never comes.
const NEVER: u64 = u64::MAX;
/// Among nobody's sleepers.
const NOWHERE: u32 = u32::MAX;

/// A CPU's sleepers, and what its timer is set for.
#[derive(Debug)]
struct Base {
    sleepers: Queue,
    /// The next tick, in nanoseconds since boot.
    tick: u64,
    /// When the timer interrupts.
    set: u64,
}

static BASES: [Lock<Base>; MAX_CPUS] =
    [const { Lock::new(Base { sleepers: Queue::new(), tick: NEVER, set: NEVER }) }; MAX_CPUS];
static NODES: [Node; MAX_TASKS] = [const { Node::new() }; MAX_TASKS];
/// The CPU whose sleepers a task is among.
static OF: [AtomicU32; MAX_TASKS] = [const { AtomicU32::new(NOWHERE) }; MAX_TASKS];

impl Base {
    /// T2. Of this CPU only.
    fn set_timer(&mut self, now: u64) {
        let sleeper = self.sleepers.first(NODES.as_slice()).map_or(NEVER, |(_, [deadline, _])| deadline);
        let first = sleeper.min(self.tick);
        if first == self.set {
            return;
        }
        self.set = first;
        if first == NEVER {
            apic::stop_timer();
        } else {
            clock::set_apic_timer(first, now);
        }
    }
}

/// The current task, `number`, wants to be woken at `deadline`, in nanoseconds since boot. Nothing happens if it has said so before and
/// was not woken since.
pub(super) fn arm(number: usize, deadline: u64) {
    let (Some(of), Ok(member)) = (OF.get(number), u32::try_from(number)) else { return };
    if of.load(Ordering::Acquire) != NOWHERE {
        return;
    }
    clock::measure_once();
    let flags = regs::irq_save();
    let cpu = percpu::cpu();
    let mut base = BASES[cpu as usize].lock();
    of.store(cpu, Ordering::Release);
    base.sleepers.insert(NODES.as_slice(), member, [deadline, 0]);
    base.set_timer(clock::now());
    drop(base);
    regs::irq_restore(flags);
}

/// It does not any more. An interrupt that was set for it may still come.
pub(super) fn disarm(number: usize) {
    let (Some(of), Ok(member)) = (OF.get(number), u32::try_from(number)) else { return };
    let cpu = of.load(Ordering::Acquire);
    let Some(base) = BASES.get(cpu as usize) else { return };
    let mut base = base.lock();
    // Whoever wakes it may have been faster.
    if of.swap(NOWHERE, Ordering::AcqRel) != NOWHERE {
        base.sleepers.remove(NODES.as_slice(), member);
    }
}

/// Ticks begin on this CPU, one every `period` nanoseconds, if they do not come already.
pub(super) fn begin_ticks(percpu: &PerCpu, period: u64) {
    let flags = regs::irq_save();
    let mut base = BASES[percpu.cpu.load(Ordering::Relaxed) as usize].lock();
    if base.tick == NEVER {
        let now = clock::now();
        base.tick = now.saturating_add(period);
        percpu.tick.store(1, Ordering::Relaxed);
        base.set_timer(now);
    }
    drop(base);
    regs::irq_restore(flags);
}

/// The timer's interrupt, or what was found to be due without one: wakes who slept long enough. `go_on` is asked at a tick whether there
/// is to be another after `period` nanoseconds (Linux: `hrtimer_interrupt`).
pub(super) fn interrupt(percpu: &PerCpu, period: u64, go_on: impl FnOnce() -> bool) {
    let cpu = percpu.cpu.load(Ordering::Relaxed);
    let now = clock::now();
    wake_due(cpu, now);
    let mut base = BASES[cpu as usize].lock();
    if base.tick <= now {
        let another = go_on();
        base.tick = if another { base.tick.saturating_add(period).max(now + period / 2) } else { NEVER };
        percpu.tick.store(u32::from(another), Ordering::Relaxed);
    }
    // One shot: it is not set any more.
    base.set = NEVER;
    base.set_timer(now);
}

/// Whether this CPU's timer should have interrupted by now: a hypervisor may lose an interrupt, and whoever is about to halt looks.
pub(super) fn is_overdue(cpu: u32) -> bool {
    let set = BASES.get(cpu as usize).map_or(NEVER, |base| base.lock().set);
    set != NEVER && set <= clock::now()
}

/// Wakes the sleepers of a CPU who have slept long enough at `now`.
pub fn wake_due(cpu: u32, now: u64) {
    while let Some(number) = take_due(cpu, now) {
        super::wake(number);
    }
}

fn take_due(cpu: u32, now: u64) -> Option<usize> {
    let mut base = BASES.get(cpu as usize)?.lock();
    let (member, _) = base.sleepers.first(NODES.as_slice()).filter(|(_, [deadline, _])| *deadline <= now)?;
    base.sleepers.remove(NODES.as_slice(), member);
    let number = member as usize;
    OF.get(number)?.store(NOWHERE, Ordering::Release);
    Some(number)
}
