//! Whom the OOM killer would choose, whom it chose last, and what is promised (Linux: `oom_badness`, `Committed_AS`).

use std::fmt;

use memvisor_abi::{OomKill, PAGE_SIZE};
use serde::Serialize;

use super::stacks::name;
use crate::{Guest, GuestError, MemorySource};

const KIB: u64 = PAGE_SIZE / 1024;

/// `inspect oom`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OomView {
    /// Frames that could be used at all, and slots of swap areas: what points are measured by.
    pub totalpages: u64,
    /// Processes that may be killed, the one that would be first.
    pub candidates: Vec<OomCandidate>,
    /// Pages promised, of them for shared memory; `None` if the guest does not say.
    pub committed: Option<[u64; 2]>,
    /// `vm.overcommit_memory`, `vm.panic_on_oom`, `vm.oom_kill_allocating_task`.
    pub settings: Option<[u32; 3]>,
    /// Processes killed so far, and address spaces that the reaper took memory from.
    pub kills: [u64; 2],
    /// The last kill.
    pub last: Option<OomLast>,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OomCandidate {
    /// Number.
    pub pid: u32,
    /// Name.
    pub name: String,
    /// Points; `None` if it is never killed.
    pub points: Option<i64>,
    /// What is added for it.
    pub oom_score_adj: i32,
    /// Resident pages.
    pub rss: u64,
    /// Pages in swap areas.
    pub swapents: u64,
    /// Pages of page tables.
    pub table_pages: u64,
}

/// A kill, as the guest noted it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OomLast {
    /// Process.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// Its points.
    pub points: i64,
    /// KiB that were resident.
    pub rss_kib: u64,
    /// Process that allocated; 0 for the kernel.
    pub caller: u32,
    /// Nanoseconds until its memory was free; `None` while it is not.
    pub freed_after_ns: Option<u64>,
    /// The reaper took it.
    pub is_reaped: bool,
}

impl OomLast {
    fn of(kill: &OomKill) -> Option<OomLast> {
        (kill.pid != 0).then(|| OomLast {
            pid: kill.pid,
            name: String::from_utf8_lossy(&kill.comm).trim_end_matches('\0').to_owned(),
            points: kill.points,
            rss_kib: kill.rss.iter().sum::<u64>().saturating_mul(KIB),
            caller: kill.caller,
            freed_after_ns: (kill.freed_after_ns != 0).then_some(kill.freed_after_ns),
            is_reaped: kill.is_reaped != 0,
        })
    }
}

impl OomView {
    /// Counts points as the guest does: pages, swap and tables, and a thousandth of the machine for each unit of `oom_score_adj`.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<OomView, GuestError> {
        let oom = guest.oom()?;
        let managed: u64 = guest.zones()?.iter().map(|zone| zone.managed_pages).sum();
        let swap: u64 = guest.swap_areas()?.iter().map(|area| area.pages).sum();
        let totalpages = managed.saturating_add(swap);
        let unit = i64::try_from(totalpages / 1000).unwrap_or(i64::MAX);
        let (tasks, spaces) = (guest.tasks()?, guest.mm_spaces()?);
        let mut candidates = Vec::new();
        for task in tasks.iter().filter(|task| task.tgid == task.pid && task.mm != 0) {
            let Some(space) = spaces.iter().find(|space| space.space.mm == task.mm) else { continue };
            let mm = &space.mm;
            let pages = mm.rss.iter().sum::<u64>().saturating_add(mm.swapents).saturating_add(mm.table_pages);
            let points = i64::try_from(pages).unwrap_or(i64::MAX);
            let adj = i64::from(task.oom_score_adj);
            let is_exempt = task.pid == 1 || adj <= -1000;
            candidates.push(OomCandidate {
                pid: task.pid,
                name: name(task),
                points: (!is_exempt).then(|| points.saturating_add(unit.saturating_mul(adj))),
                oom_score_adj: task.oom_score_adj,
                rss: mm.rss.iter().sum(),
                swapents: mm.swapents,
                table_pages: mm.table_pages,
            });
        }
        // Of equals the one with the highest number is killed.
        candidates.sort_by_key(|candidate| std::cmp::Reverse((candidate.points, candidate.pid)));
        let word = |gpa| guest.source().read_u64(gpa).ok();
        let committed = oom.and_then(|oom| Some([word(oom.committed)?, word(oom.committed_shmem)?]));
        Ok(OomView {
            totalpages,
            candidates,
            committed,
            settings: oom.map(|oom| [oom.overcommit_memory, oom.panic_on_oom, oom.oom_kill_allocating_task]),
            kills: oom.map_or([0; 2], |oom| [oom.kills, oom.reaped]),
            last: oom.and_then(|oom| OomLast::of(&oom.last)),
        })
    }
}

impl fmt::Display for OomView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} pages of memory and swap", self.totalpages)?;
        if let Some([committed, shmem]) = self.committed {
            writeln!(f, "promised: {} KiB, {} KiB of it for shared memory", committed * KIB, shmem * KIB)?;
        }
        if let Some([overcommit, panic, allocating]) = self.settings {
            writeln!(
                f,
                "overcommit_memory {overcommit}  panic_on_oom {panic}  oom_kill_allocating_task {allocating}"
            )?;
        }
        writeln!(f, "    PID     POINTS    ADJ        RSS   SWAPENTS TABLES  NAME")?;
        for row in &self.candidates {
            let points = row.points.map_or("never".to_owned(), |points| points.to_string());
            writeln!(
                f,
                "{:>7} {points:>10} {:>6} {:>10} {:>10} {:>6}  {}",
                row.pid, row.oom_score_adj, row.rss, row.swapents, row.table_pages, row.name
            )?;
        }
        let [kills, reaped] = self.kills;
        writeln!(f, "{kills} killed so far, {reaped} reaped")?;
        if let Some(last) = &self.last {
            let freed =
                last.freed_after_ns.map_or("not yet".to_owned(), |ns| format!("after {} us", ns / 1000));
            writeln!(
                f,
                "last: {} ({}), {} points, {} KiB resident, for an allocation of process {}; free {freed}{}",
                last.pid,
                last.name,
                last.points,
                last.rss_kib,
                last.caller,
                if last.is_reaped { " by the reaper" } else { "" }
            )?;
        }
        Ok(())
    }
}
