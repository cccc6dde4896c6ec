//! The processes, as the OOM killer sees them.

use alloc::sync::Arc;

use memvisor_abi::mm_flags;
use mm_oom::{Candidate, Role, oom_badness};
use mm_vma::{Mm, RssKind};

use crate::mm::space;
use crate::task::{self, Process, Task};

/// Number of the first process.
const INIT: u32 = 1;

/// All processes, one at a time.
pub struct Candidates {
    next: u32,
}

impl Candidates {
    /// From the first on.
    pub const fn all() -> Candidates {
        Candidates { next: 0 }
    }
}

impl Iterator for Candidates {
    type Item = Candidate;

    fn next(&mut self) -> Option<Candidate> {
        let found = task::with_next_process(self.next, |process, task| describe(process, task))?;
        self.next = found.pid.checked_add(1)?;
        Some(found)
    }
}

/// One process; `None` if it is gone or has no address space any more.
pub fn candidate(pid: u32) -> Option<Candidate> {
    task::with_next_process(pid, |process, task| {
        (process.pid == pid && task.is_some()).then(|| describe(process, task))
    })?
}

/// Its points; `None` if it is never killed (Linux: `oom_badness`).
pub fn badness(pid: u32, totalpages: u64) -> Option<i64> {
    oom_badness(&candidate(pid)?, totalpages)
}

fn describe(process: &Process, task: Option<&Arc<Task>>) -> Candidate {
    let mm = task.and_then(|task| task.mm()).map(space::mm_of);
    let oom = mm.map_or(0, Mm::oom);
    let role = match process.pid {
        INIT => Role::Unkillable,
        _ if task.is_some_and(|task| task.is_in_vfork()) => Role::Vfork,
        _ => Role::Ordinary,
    };
    Candidate {
        pid: process.pid,
        role,
        oom_score_adj: process.oom_score_adj(),
        rss: mm.map(|mm| mm.rss(RssKind::Anon) + mm.rss(RssKind::File)),
        swapents: mm.map_or(0, Mm::swapents),
        table_pages: mm.map_or(0, Mm::table_pages),
        is_victim: oom & mm_flags::OOM_VICTIM != 0,
        is_reaped: oom & mm_flags::OOM_SKIP != 0,
        // No process has a policy of its own.
        is_eligible: true,
    }
}
