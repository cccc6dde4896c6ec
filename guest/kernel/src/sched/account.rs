//! How each CPU spends its time, and how often it switches (Linux: kernel/sched/cputime.c, `kernel_cpustat`).
//!
//! Time is counted in cycles of the time-stamp counter from one switch to the next, on the CPU where they pass.
//!
//! Differs from Linux: what a program spends in the kernel counts as the program's; `system` is the kernel's own threads.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_firmware::acpi::MAX_CPUS;

use super::clock;
use crate::arch::regs;

/// Who has a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Runs {
    /// Nobody.
    Idle = 0,
    /// A program.
    User = 1,
    /// A thread of the kernel.
    Kernel = 2,
}

#[derive(Debug)]
struct Account {
    /// Since when, and who: a [`Runs`].
    since: AtomicU64,
    runs: AtomicU64,
    /// Cycles by [`Runs`]; those of idling are what is left.
    cycles: [AtomicU64; 3],
    switches: AtomicU64,
}

static ACCOUNTS: [Account; MAX_CPUS] = [const {
    Account {
        since: AtomicU64::new(0),
        runs: AtomicU64::new(Runs::Idle as u64),
        cycles: [const { AtomicU64::new(0) }; 3],
        switches: AtomicU64::new(0),
    }
}; MAX_CPUS];

/// This CPU goes over to somebody; interrupts are off.
pub(super) fn switch(cpu: u32, now: u64, to: Runs) {
    let Some(account) = ACCOUNTS.get(cpu as usize) else { return };
    let since = account.since.swap(now, Ordering::Relaxed);
    let ran = account.runs.swap(to as u64, Ordering::Relaxed);
    if let Some(cycles) = account.cycles.get(usize::try_from(ran).unwrap_or(0)) {
        cycles.fetch_add(now.saturating_sub(since), Ordering::Relaxed);
    }
    account.switches.fetch_add(1, Ordering::Relaxed);
}

/// Nanoseconds that a CPU gave to programs, to the kernel's threads, and to nobody.
pub fn times(cpu: u32) -> [u64; 3] {
    let Some(account) = ACCOUNTS.get(cpu as usize) else { return [0; 3] };
    let mut cycles = [Runs::Idle, Runs::User, Runs::Kernel]
        .map(|runs| account.cycles[runs as usize].load(Ordering::Relaxed));
    let since = account.since.load(Ordering::Relaxed);
    let runs = usize::try_from(account.runs.load(Ordering::Relaxed)).unwrap_or(0);
    if since != 0
        && let Some(cycles) = cycles.get_mut(runs)
    {
        *cycles += regs::rdtsc().saturating_sub(since);
    }
    let [_, user, kernel] = cycles.map(clock::ns_of);
    [user, kernel, clock::now().saturating_sub(user + kernel)]
}

/// Switches of all CPUs.
pub fn switches() -> u64 {
    ACCOUNTS.iter().map(|account| account.switches.load(Ordering::Relaxed)).sum()
}
