//! Corruptions of what was promised, and of what the OOM killer keeps.

use core::mem::offset_of;

use memvisor_abi as abi;

use super::victim::{Outcome, add_u32, victim};
use crate::mm::oom::promises;
use crate::{sched, task};

/// A page is promised to nobody.
pub fn committed() -> Outcome {
    let [all, _] = promises::counts();
    all.acct(1);
    Ok(())
}

/// More is promised for shared memory than in all.
pub fn committed_shmem() -> Outcome {
    let [all, shmem] = promises::counts();
    shmem.acct(all.pages() + 1);
    Ok(())
}

/// An address space is marked as one that the reaper was at, and nobody was killed.
pub fn unstable() -> Outcome {
    add_u32(victim()?.mm(), offset_of!(abi::Mm, oom), abi::mm_flags::UNSTABLE.cast_signed());
    Ok(())
}

/// A task with an `oom_score_adj` that there is not.
pub fn score_adj() -> Outcome {
    let (number, _) = task::living().ok_or("no process is alive")?;
    sched::set_oom_score_adj(number, 1001);
    Ok(())
}
