//! What happens when memory ends, and what is promised before (Linux: mm/oom_kill.c, mm/util.c).
//!
//! Pure rules: the kernel shows its processes as [`Candidate`]s and does what comes out. [`out_of_memory`] decides what to do about an
//! allocation that cannot be served; [`select_bad_process`] whom to kill; `report` says it in Linux's words;
//! [`vm_enough_memory`] decides what may be promised.
//!
//! Invariants, held by the rules for any input:
//! O1  init, kernel threads, and processes with an `oom_score_adj` of -1000 are never chosen;
//! O2  nobody is chosen while somebody who was chosen before still has memory to give back;
//! O3  of those who may be chosen nobody has more points than the one who is.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod badness;
mod overcommit;
mod patience;
mod report;
mod select;
mod verdict;

#[cfg(test)]
mod tests;

pub use badness::{
    Candidate, OOM_SCORE_ADJ_MAX, OOM_SCORE_ADJ_MIN, Role, adj_of_oom_adj, oom_badness, oom_score,
};
pub use overcommit::{
    Committed, Overcommit, OvercommitMemory, Promise, accountable_mapping, admin_reserve_kbytes,
    user_reserve_kbytes, vm_commit_limit, vm_enough_memory,
};
pub use patience::Patience;
pub use report::{Invoked, TASKS_HEADER, TaskLine, Victim, VictimLine};
pub use select::{Chosen, Constraint, OomControl, constrained_alloc, select_bad_process};
pub use verdict::{OomSettings, PanicOnOom, Verdict, out_of_memory};
