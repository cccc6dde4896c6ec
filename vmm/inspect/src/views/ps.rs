//! Tasks and processes (ps; Linux: /proc/PID/stat and statm).

use std::fmt;

use memvisor_abi::TaskState;
use serde::Serialize;

use super::stacks::name;
use crate::{Guest, GuestError, MemorySource, MmSpace};

/// `inspect ps`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PsView {
    /// Processes, then tasks of the kernel.
    pub tasks: Vec<PsRow>,
}

/// A task, or an address space that no task names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PsRow {
    /// Number.
    pub pid: u32,
    /// Process that it is a thread of; 0 for tasks of the kernel.
    pub tgid: u32,
    /// Process that made it; 0 if the kernel did.
    pub ppid: u32,
    /// Name; of a task of the kernel in brackets.
    pub name: String,
    /// State in words; `None` if only the address space is published.
    pub state: Option<&'static str>,
    /// CPU that it runs on or ran on last.
    pub cpu: Option<u32>,
    /// Address of its `mm_struct`; 0 for tasks of the kernel.
    #[serde(serialize_with = "crate::hex")]
    pub mm: u64,
    /// KiB of its address space; 0 without one.
    pub vsz_kib: u64,
    /// KiB resident, as the guest counts.
    pub rss_kib: u64,
    /// KiB in swap areas, as the guest counts.
    pub swap_kib: u64,
    /// KiB of page tables.
    pub tables_kib: u64,
    /// Faults without I/O.
    pub min_flt: u64,
    /// Faults that read from a device.
    pub maj_flt: u64,
}

impl PsView {
    /// Reads tasks and address spaces.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<PsView, GuestError> {
        let (tasks, spaces) = (guest.tasks()?, guest.mm_spaces()?);
        let mut rows = Vec::new();
        for task in &tasks {
            let space = spaces.iter().find(|space| task.mm != 0 && space.space.mm == task.mm);
            let plain = name(task);
            rows.push(PsRow {
                pid: task.pid,
                tgid: task.tgid,
                ppid: task.ppid,
                name: if task.tgid == 0 { format!("[{plain}]") } else { plain },
                state: Some(TaskState::from_raw(task.state).map_or("undefined", TaskState::name)),
                cpu: Some(task.cpu),
                ..of_space(task.mm, space)
            });
        }
        // Whoever runs without being in the table of tasks.
        for space in spaces.iter().filter(|space| !tasks.iter().any(|task| task.mm == space.space.mm)) {
            let pid = space.space.pid;
            rows.push(PsRow { pid, tgid: pid, name: "?".into(), ..of_space(space.space.mm, Some(space)) });
        }
        rows.sort_by_key(|row| (row.tgid == 0 && row.mm == 0, row.tgid, row.pid));
        Ok(PsView { tasks: rows })
    }
}

fn of_space(mm: u64, space: Option<&MmSpace>) -> PsRow {
    let kib = |pages: u64| pages.saturating_mul(4);
    let read = space.map(|space| space.mm).unwrap_or_default();
    PsRow {
        pid: 0,
        tgid: 0,
        ppid: 0,
        name: String::new(),
        state: None,
        cpu: None,
        mm,
        vsz_kib: kib(read.total_vm),
        rss_kib: kib(read.rss.iter().fold(0, |sum: u64, pages| sum.saturating_add(*pages))),
        swap_kib: kib(read.swapents),
        tables_kib: kib(read.table_pages),
        min_flt: read.min_flt,
        maj_flt: read.maj_flt,
    }
}

impl fmt::Display for PsView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let processes = self.tasks.iter().filter(|row| row.mm != 0).count();
        let kernel = self.tasks.iter().filter(|row| row.mm == 0 && row.tgid == 0).count();
        let ended = match self.tasks.len() - processes - kernel {
            0 => String::new(),
            count => format!(", {count} that ended"),
        };
        writeln!(f, "{processes} with an address space, {kernel} tasks of the kernel{ended}")?;
        writeln!(
            f,
            "  PID  TGID  PPID STATE     CPU        VSZ        RSS       SWAP     TABLES   MINFLT   MAJFLT NAME"
        )?;
        for row in &self.tasks {
            let cpu = row.cpu.map_or("-".to_owned(), |cpu| cpu.to_string());
            writeln!(
                f,
                "{:>5} {:>5} {:>5} {:<8} {cpu:>4} {:>10} {:>10} {:>10} {:>10} {:>8} {:>8} {}",
                row.pid,
                row.tgid,
                row.ppid,
                row.state.unwrap_or("-"),
                row.vsz_kib,
                row.rss_kib,
                row.swap_kib,
                row.tables_kib,
                row.min_flt,
                row.maj_flt,
                row.name
            )?;
        }
        Ok(())
    }
}
