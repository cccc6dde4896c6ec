//! How much killing a process would help, and how much it is wanted (Linux: `oom_badness`).

/// Linux: the same name. Never killed.
pub const OOM_SCORE_ADJ_MIN: i16 = -1000;
/// Linux: the same name. Killed first.
pub const OOM_SCORE_ADJ_MAX: i16 = 1000;

/// Who a process is, to the OOM killer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Nothing special.
    Ordinary,
    /// Process 1, or a kernel thread (Linux: `oom_unkillable_task`).
    Unkillable,
    /// Runs in the address space of the process that made it, which waits for it (Linux: `in_vfork`).
    Vfork,
    /// Asked to be killed first, whatever it has (Linux: `oom_task_origin`; whoever is in swapoff).
    Origin,
}

/// A process, as the OOM killer sees it. Quantities are pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What it is called elsewhere.
    pub pid: u32,
    /// Who it is.
    pub role: Role,
    /// -1000 to 1000 (Linux: `signal->oom_score_adj`).
    pub oom_score_adj: i16,
    /// Resident pages of all kinds; `None` if it has no address space (any more).
    pub rss: Option<u64>,
    /// Pages in swap areas (Linux: `MM_SWAPENTS`).
    pub swapents: u64,
    /// Pages of page tables.
    pub table_pages: u64,
    /// It was chosen before, and is dying (Linux: `tsk_is_oom_victim`).
    pub is_victim: bool,
    /// Its memory was taken, or cannot be (Linux: `MMF_OOM_SKIP`).
    pub is_reaped: bool,
    /// Some of its memory is on the nodes that the allocation is bound to (Linux: `oom_cpuset_eligible`).
    pub is_eligible: bool,
}

/// Points of a process where `totalpages` could be used at all; `None` if it is not to be killed (Linux: `LONG_MIN`).
///
/// A point is a page; each unit of `oom_score_adj` is worth a thousandth of all pages.
/// ```
/// use mm_oom::{Candidate, Role, oom_badness};
/// let process = Candidate { pid: 7, role: Role::Ordinary, oom_score_adj: -100, rss: Some(5000), swapents: 20,
///     table_pages: 3, is_victim: false, is_reaped: false, is_eligible: true };
/// assert_eq!(oom_badness(&process, 10_000), Some(5023 - 1000));
/// ```
pub fn oom_badness(process: &Candidate, totalpages: u64) -> Option<i64> {
    let is_exempt = matches!(process.role, Role::Unkillable | Role::Vfork)
        || process.oom_score_adj <= OOM_SCORE_ADJ_MIN
        || process.is_reaped;
    let rss = process.rss.filter(|_| !is_exempt)?;
    let points = rss.saturating_add(process.swapents).saturating_add(process.table_pages);
    let points = i64::try_from(points).unwrap_or(i64::MAX);
    let unit = i64::try_from(totalpages / 1000).unwrap_or(i64::MAX);
    // `i64::MIN` is nobody's.
    Some(points.saturating_add(unit.saturating_mul(i64::from(process.oom_score_adj))))
}

/// What /proc/PID/oom_score shows: 0 to about 2000 (Linux: `proc_oom_score`).
/// ```
/// use mm_oom::oom_score;
/// assert_eq!([oom_score(None, 1000), oom_score(Some(0), 1000), oom_score(Some(500), 1000)], [0, 666, 1000]);
/// ```
pub fn oom_score(badness: Option<i64>, totalpages: u64) -> u64 {
    let total = i128::from(totalpages.max(1));
    let share = badness.map_or(0, |badness| (1000 + i128::from(badness) * 1000 / total) * 2 / 3);
    u64::try_from(share).unwrap_or(0)
}

/// The `oom_score_adj` for what was written to /proc/PID/oom_adj, -17 to 15 (Linux: `oom_adj_write`).
/// ```
/// use mm_oom::adj_of_oom_adj;
/// let written = [-17, -16, 0, 8, 15, 16];
/// assert_eq!(written.map(adj_of_oom_adj), [Some(-1000), Some(-941), Some(0), Some(470), Some(1000), None]);
/// ```
pub const fn adj_of_oom_adj(oom_adj: i16) -> Option<i16> {
    match oom_adj {
        15 => Some(OOM_SCORE_ADJ_MAX),
        // A product of at most 17000.
        -17..15 => Some(oom_adj * OOM_SCORE_ADJ_MAX / 17),
        _ => None,
    }
}
