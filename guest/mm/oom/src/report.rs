//! The report in Linux's words (Linux: `dump_header`, `dump_tasks`, `dump_oom_summary`, `__oom_kill_process`).

use core::fmt;

use mm_core::{Gfp, Order, PAGE_SHIFT};

use crate::Constraint;

/// First line: who ran out of memory.
#[derive(Clone, Copy, Debug)]
pub struct Invoked<'a, N> {
    /// Name of the task.
    pub comm: &'a str,
    /// Flags of the allocation.
    pub gfp: Gfp,
    /// Their names, as Linux prints them.
    pub gfp_names: N,
    /// Order of the allocation.
    pub order: Order,
    /// The task's `oom_score_adj`.
    pub oom_score_adj: i16,
}

impl<N: fmt::Display> fmt::Display for Invoked<'_, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Invoked { comm, gfp, gfp_names, order, oom_score_adj } = self;
        let (mask, order) = (gfp.bits(), order.as_u8());
        write!(
            f,
            "{comm} invoked oom-killer: gfp_mask={mask:#x}({gfp_names}), order={order}, oom_score_adj={oom_score_adj}"
        )
    }
}

/// The two lines above those of the processes.
pub const TASKS_HEADER: &str = "Tasks state (memory values in pages):\n\
    [  pid  ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name";

/// A process in the table. Quantities are pages, but for `pgtables_bytes`.
#[derive(Clone, Copy, Debug)]
pub struct TaskLine<'a> {
    /// Number of the task.
    pub pid: u32,
    /// User.
    pub uid: u32,
    /// Number of the process.
    pub tgid: u32,
    /// Pages of all VMAs.
    pub total_vm: u64,
    /// Resident pages.
    pub rss: u64,
    /// Bytes of page tables.
    pub pgtables_bytes: u64,
    /// Pages in swap areas.
    pub swapents: u64,
    /// See [`crate::Candidate::oom_score_adj`].
    pub oom_score_adj: i16,
    /// Name.
    pub comm: &'a str,
}

impl fmt::Display for TaskLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TaskLine { pid, uid, tgid, total_vm, rss, pgtables_bytes, swapents, oom_score_adj, comm } = self;
        write!(
            f,
            "[{pid:7}] {uid:5} {tgid:5} {total_vm:8} {rss:8} {pgtables_bytes:8} {swapents:8}         {oom_score_adj:5} {comm}"
        )
    }
}

/// Who is to be killed.
#[derive(Clone, Copy, Debug)]
pub struct Victim<'a> {
    /// Number of the process.
    pub pid: u32,
    /// Name.
    pub comm: &'a str,
    /// User.
    pub uid: u32,
}

/// The line that sums it up; `nodes` are the nodes of the allocation's policy, if it has one, as a list.
#[derive(Debug)]
pub struct VictimLine<'a, N> {
    /// What the allocation is bound to.
    pub constraint: Constraint,
    /// The nodes.
    pub nodes: Option<N>,
    /// Who is killed.
    pub victim: Victim<'a>,
}

impl<N: fmt::Display> fmt::Display for VictimLine<'_, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "oom-kill:constraint={},nodemask=", self.constraint.text())?;
        match &self.nodes {
            Some(nodes) => write!(f, "{nodes}")?,
            None => f.write_str("(null)")?,
        }
        let Victim { pid, comm, uid } = self.victim;
        write!(f, ",global_oom,task={comm},pid={pid},uid={uid}")
    }
}

impl Victim<'_> {
    /// The last line: what its death gives back. `rss` is anonymous, of files and of shared memory, in pages; `message` as in
    /// [`crate::Verdict::Kill`].
    pub fn killed(
        &self,
        message: &str,
        total_vm: u64,
        rss: [u64; 3],
        line: &TaskLine<'_>,
    ) -> impl fmt::Display {
        let kib = |pages: u64| pages << (PAGE_SHIFT - 10);
        let ([anon, file, shmem], total) = (rss.map(kib), kib(total_vm));
        let (pgtables, adj) = (line.pgtables_bytes >> 10, line.oom_score_adj);
        let Victim { pid, comm, uid } = *self;
        core::fmt::from_fn(move |f| {
            write!(
                f,
                "{message}: Killed process {pid} ({comm}) total-vm:{total}kB, anon-rss:{anon}kB, file-rss:{file}kB, \
                 shmem-rss:{shmem}kB, UID:{uid} pgtables:{pgtables}kB oom_score_adj:{adj}"
            )
        })
    }
}
