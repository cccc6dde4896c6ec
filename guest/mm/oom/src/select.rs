//! Whom to kill (Linux: `constrained_alloc`, `oom_evaluate_task`, `select_bad_process`).

use mm_core::Gfp;

use crate::{Candidate, Role, oom_badness};

/// What the allocation is bound to (Linux: `enum oom_constraint`, without cgroups and cpusets).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Constraint {
    /// Nothing: the machine is out of memory.
    None,
    /// Some nodes, by a policy.
    MemoryPolicy,
}

impl Constraint {
    /// Linux's text in the report.
    pub const fn text(self) -> &'static str {
        match self {
            Constraint::None => "CONSTRAINT_NONE",
            Constraint::MemoryPolicy => "CONSTRAINT_MEMORY_POLICY",
        }
    }
}

/// The allocation that cannot be served (Linux: `struct oom_control`).
#[derive(Clone, Copy, Debug)]
pub struct OomControl {
    /// Its flags.
    pub gfp: Gfp,
    /// What it is bound to.
    pub constraint: Constraint,
    /// Pages that it could have been served from, swap included.
    pub totalpages: u64,
}

/// What an allocation is bound to, and what it could have been served from. `nodes` has of each node with memory its pages, and whether
/// the allocation's policy allows it.
pub fn constrained_alloc(
    gfp: Gfp,
    total_swap_pages: u64,
    nodes: impl Iterator<Item = (u64, bool)>,
) -> OomControl {
    let (mut all, mut allowed, mut bound) = (total_swap_pages, total_swap_pages, false);
    for (pages, is_allowed) in nodes {
        all = all.saturating_add(pages);
        if is_allowed {
            allowed = allowed.saturating_add(pages);
        }
        bound |= !is_allowed;
    }
    // Killing does not free a node that one allocation insists on.
    if bound && !gfp.contains(Gfp::THISNODE) {
        OomControl { gfp, constraint: Constraint::MemoryPolicy, totalpages: allowed }
    } else {
        OomControl { gfp, constraint: Constraint::None, totalpages: all }
    }
}

/// Whom the OOM killer chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// This process, with these points.
    Process(Candidate, i64),
    /// Nobody: one that was chosen before is still dying.
    Dying,
    /// Nobody: there is none who may be killed.
    Nobody,
}

/// The worst of the processes, the last of equals.
pub fn select_bad_process(control: &OomControl, processes: impl Iterator<Item = Candidate>) -> Chosen {
    let mut worst: Option<(Candidate, i64)> = None;
    for process in processes {
        let is_bound = control.constraint != Constraint::None;
        if process.role == Role::Unkillable || is_bound && !process.is_eligible {
            continue;
        }
        if process.is_victim {
            match process.is_reaped {
                true => continue,
                false => return Chosen::Dying,
            }
        }
        let points = match process.role {
            Role::Origin => Some(i64::MAX),
            _ => oom_badness(&process, control.totalpages),
        };
        if let Some(points) = points
            && worst.is_none_or(|(_, most)| points >= most)
        {
            worst = Some((process, points));
        }
    }
    worst.map_or(Chosen::Nobody, |(process, points)| Chosen::Process(process, points))
}
