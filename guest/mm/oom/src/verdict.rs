//! What to do about an allocation that nothing could serve (Linux: `out_of_memory`).

use mm_core::Gfp;

use crate::{Candidate, Chosen, Constraint, OOM_SCORE_ADJ_MIN, OomControl, Role, select_bad_process};

/// `vm.panic_on_oom`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PanicOnOom {
    /// 0: kill.
    #[default]
    Never,
    /// 1: unless the allocation was bound to some nodes.
    Unbound,
    /// 2: whatever it was.
    Always,
}

impl PanicOnOom {
    /// What the number in /proc/sys/vm/panic_on_oom means.
    pub const fn from_raw(raw: u32) -> Option<PanicOnOom> {
        Some(match raw {
            0 => PanicOnOom::Never,
            1 => PanicOnOom::Unbound,
            2 => PanicOnOom::Always,
            _ => return None,
        })
    }
}

/// Files of /proc/sys/vm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OomSettings {
    /// `panic_on_oom`.
    pub panic_on_oom: PanicOnOom,
    /// `oom_kill_allocating_task`.
    pub oom_kill_allocating_task: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The caller is dying anyway: it may use the reserves, and its memory comes back (Linux: `task_will_free_mem`).
    CallerExits,
    /// Nothing: the allocation could not wait for what would help (Linux: without `__GFP_FS`). It is tried again.
    Wait,
    /// Panic: an administrator wants it, or the machine can never get on. The text is Linux's.
    Panic(&'static str),
    /// Kill this process and all who share its address space. The text begins the report.
    Kill(Candidate, &'static str),
    /// Somebody is dying already.
    Dying,
}

/// Decides. `caller` is the process that allocates, if it has an address space; `is_dying` if it exits or was killed; `processes` all.
pub fn out_of_memory(
    control: &OomControl,
    settings: OomSettings,
    (caller, is_dying): (Option<Candidate>, bool),
    processes: impl Iterator<Item = Candidate>,
) -> Verdict {
    if is_dying && caller.is_some() {
        return Verdict::CallerExits;
    }
    // File systems could have been asked for memory: whoever can ask them decides.
    if !control.gfp.contains(Gfp::FS) {
        return Verdict::Wait;
    }
    match settings.panic_on_oom {
        PanicOnOom::Always => {
            return Verdict::Panic("Out of memory: compulsory panic_on_oom is enabled");
        }
        PanicOnOom::Unbound if control.constraint == Constraint::None => {
            return Verdict::Panic("Out of memory: system-wide panic_on_oom is enabled");
        }
        PanicOnOom::Unbound | PanicOnOom::Never => {}
    }
    if settings.oom_kill_allocating_task
        && let Some(caller) = caller.filter(|caller| may_kill_caller(control, caller))
    {
        return Verdict::Kill(caller, "Out of memory (oom_kill_allocating_task)");
    }
    match select_bad_process(control, processes) {
        Chosen::Process(process, _) => Verdict::Kill(process, "Out of memory"),
        Chosen::Dying => Verdict::Dying,
        Chosen::Nobody => Verdict::Panic("System is deadlocked on memory"),
    }
}

fn may_kill_caller(control: &OomControl, caller: &Candidate) -> bool {
    let is_bound = control.constraint != Constraint::None;
    caller.role != Role::Unkillable
        && caller.oom_score_adj > OOM_SCORE_ADJ_MIN
        && (caller.is_eligible || !is_bound)
}
