//! Who runs first: policies, priorities and fair shares (Linux: kernel/sched/syscalls.c, core.c, fair.c, rt.c).
//!
//! Ready tasks are ordered by [`Place`]: those with a real-time policy first, by priority and then by who came first; all others
//! by the virtual time they have run, which passes the slower the more weight a task has.

#[cfg(test)]
mod tests;

use crate::Errno;

/// Lowest and highest nice value; a higher one is the nicer to others.
pub const NICE: core::ops::RangeInclusive<i32> = -20..=19;
/// Weight of a task of nice 0 (Linux: `NICE_0_LOAD`).
pub const NICE_0_WEIGHT: u64 = 1024;
/// Weight of the policy that runs when nobody else wants to (Linux: `WEIGHT_IDLEPRIO`).
const IDLE_WEIGHT: u64 = 3;
/// Place of all policies but the real-time ones among the classes.
const FAIR: u8 = 100;
/// Flag of `sched_setscheduler` (Linux: `SCHED_RESET_ON_FORK`).
const RESET_ON_FORK: u32 = 0x4000_0000;

/// How a task shares its CPU (Linux: include/uapi/linux/sched.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Fair shares by nice.
    #[default]
    Normal,
    /// Real time: until it waits or yields.
    Fifo,
    /// Real time, taking turns with those of the same priority.
    Rr,
    /// As `Normal`, for work that nobody waits for.
    Batch,
    /// A very small share.
    Idle,
}

impl Policy {
    /// Its number.
    pub const fn number(self) -> u32 {
        match self {
            Policy::Normal => 0,
            Policy::Fifo => 1,
            Policy::Rr => 2,
            Policy::Batch => 3,
            Policy::Idle => 5,
        }
    }

    /// The policy of a number. SCHED_DEADLINE is not there.
    pub const fn from_number(number: u32) -> Option<Policy> {
        Some(match number {
            0 => Policy::Normal,
            1 => Policy::Fifo,
            2 => Policy::Rr,
            3 => Policy::Batch,
            5 => Policy::Idle,
            _ => return None,
        })
    }

    /// A task of it goes before all that have none of these.
    pub const fn is_real_time(self) -> bool {
        matches!(self, Policy::Fifo | Policy::Rr)
    }

    /// Lowest and highest priority that it takes.
    pub const fn priorities(self) -> (u8, u8) {
        if self.is_real_time() { (1, 99) } else { (0, 0) }
    }
}

/// What decides when a task runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Priority {
    /// How it shares its CPU.
    pub policy: Policy,
    /// 1 to 99 for a real-time policy, higher first; else 0.
    pub real_time: u8,
    /// -20 to 19.
    pub nice: i8,
    /// A child begins with the defaults.
    pub reset_on_fork: bool,
}

/// Where a ready task stands among others: the least runs first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    class: u8,
    at: u64,
}

impl Place {
    /// The same order as two words; of equal places those of the lower `serial` go first.
    pub const fn key(self, serial: u64) -> [u64; 2] {
        // The class is below 256; 2^56 tasks never become ready.
        [(self.class as u64) << 56 | self.at >> 8, self.at << 56 | serial & (u64::MAX >> 8)]
    }
}

impl Priority {
    /// The defaults.
    pub const NORMAL: Priority =
        Priority { policy: Policy::Normal, real_time: 0, nice: 0, reset_on_fork: false };

    /// Share of the CPU, in units of which nice 0 has [`NICE_0_WEIGHT`]: a quarter more or a fifth less a step, so that
    /// a step is about a tenth of the CPU (Linux: `sched_prio_to_weight`).
    pub const fn weight(self) -> u64 {
        // More bits than the result, so that twenty steps lose nothing.
        const BITS: u32 = 20;
        if matches!(self.policy, Policy::Idle) {
            return IDLE_WEIGHT;
        }
        let mut weight = NICE_0_WEIGHT << BITS;
        let mut step = 0;
        while step < self.nice.unsigned_abs() {
            weight = if self.nice < 0 { weight / 4 * 5 } else { weight / 5 * 4 };
            step += 1;
        }
        weight >> BITS
    }

    /// Virtual time that passes while the task runs for `time` (Linux: `calc_delta_fair`).
    pub const fn virtual_time(self, time: u64) -> u64 {
        time.saturating_mul(NICE_0_WEIGHT) / self.weight()
    }

    /// Where it stands; `at` is its virtual time, or for a real-time policy a number that grows with each arrival.
    pub const fn place(self, at: u64) -> Place {
        // Priorities are below 100.
        let class = if self.policy.is_real_time() { 99 - self.real_time } else { FAIR };
        Place { class, at }
    }

    /// A child's.
    #[must_use]
    pub fn of_child(self) -> Priority {
        if self.reset_on_fork {
            // Linux: `sched_fork`; a nice task stays nice.
            return Priority { nice: self.nice.max(0), ..Priority::NORMAL };
        }
        self
    }

    /// Takes another nice value, which is cut to what there is (Linux: `set_one_prio`).
    #[must_use]
    pub fn with_nice(self, nice: i32) -> Priority {
        let nice = nice.clamp(*NICE.start(), *NICE.end());
        Priority { nice: i8::try_from(nice).unwrap_or(0), ..self }
    }

    /// What `sched_setscheduler` asks for.
    ///
    /// # Errors
    /// EINVAL: no such policy, or a priority that it does not take.
    pub fn with_policy(self, policy: u32, priority: i32) -> Result<Priority, Errno> {
        let reset_on_fork = policy & RESET_ON_FORK != 0;
        let policy = Policy::from_number(policy & !RESET_ON_FORK).ok_or(Errno::Einval)?;
        let (least, most) = policy.priorities();
        let real_time = u8::try_from(priority).map_err(|_| Errno::Einval)?;
        if !(least..=most).contains(&real_time) {
            return Err(Errno::Einval);
        }
        Ok(Priority { policy, real_time, reset_on_fork, ..self })
    }

    /// What `sched_getscheduler` says.
    pub const fn policy_number(self) -> u32 {
        self.policy.number() | if self.reset_on_fork { RESET_ON_FORK } else { 0 }
    }

    /// As `getpriority` gives it, which must not be negative: 40 for -20 to 1 for 19.
    pub const fn nice_to_rlimit(self) -> u64 {
        (20 - self.nice as i64).cast_unsigned()
    }

    /// As /proc/PID/stat shows it: 20 + nice, or -1 - priority (Linux: `task_prio`).
    pub const fn shown(self) -> i32 {
        if self.policy.is_real_time() { -1 - self.real_time as i32 } else { 20 + self.nice as i32 }
    }
}
