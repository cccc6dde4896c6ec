//! What the OOM killer prints (Linux: `dump_header`, `dump_tasks`, `dump_stack`).

use mm_core::PAGE_SIZE;
use mm_oom::{Invoked, OomControl, TASKS_HEADER, TaskLine, Victim, VictimLine};
use mm_page_alloc::{GfpNames, NodeMask, Request};
use mm_vma::{Mm, RssKind};

use super::show_mem;
use crate::arch::{percpu, regs};
use crate::mm::page_alloc::nr_nodes;
use crate::mm::space;
use crate::printk::Level;
use crate::task::{self, Process, Task};
use crate::{panic, pr_err, pr_info, pr_warn, sched};

/// What the report begins with.
pub(super) struct Header<'a> {
    pub request: &'a Request,
    pub control: &'a OomControl,
    /// `vm.oom_dump_tasks`.
    pub dump_tasks: bool,
}

/// A name up to its zero.
fn text(comm: &[u8; 16]) -> &str {
    let len = comm.iter().position(|byte| *byte == 0).unwrap_or(comm.len());
    core::str::from_utf8(comm.get(..len).unwrap_or_default()).unwrap_or("?")
}

/// Calls `f` with the name of the task that runs here.
pub fn with_comm<R>(f: impl FnOnce(&str) -> R) -> R {
    f(text(&sched::comm(sched::current())))
}

/// Where the current task is (Linux: the same name).
pub fn dump_stack() {
    with_comm(|comm| {
        pr_warn!(
            "CPU: {} PID: {} Comm: {comm} Not tainted 6.1.0-memvisor #1",
            percpu::cpu(),
            task::current().map_or(0, |task| task.tid())
        );
    });
    panic::print_backtrace(Level::Warning, 0, regs::rbp());
}

impl Header<'_> {
    /// Who ran out of what, and what there is (Linux: `dump_header`).
    pub fn print(&self) {
        let &Request { gfp, order, highest, .. } = self.request;
        let oom_score_adj = task::current().map_or(0, |task| task.process.oom_score_adj());
        with_comm(|comm| {
            pr_warn!("{}", Invoked { comm, gfp, gfp_names: GfpNames(gfp), order, oom_score_adj });
        });
        dump_stack();
        show_mem::show_mem(highest);
        if self.dump_tasks {
            dump_tasks();
        }
    }
}

/// The table of processes, each under the registry's lock for itself.
fn dump_tasks() {
    pr_info!("{TASKS_HEADER}");
    let mut from = 0;
    while let Some((pid, row)) = task::with_next_process(from, |process, task| {
        (process.pid, task.and_then(|task| Row::of(process, task)))
    }) {
        if let Some(row) = row {
            pr_info!("{}", row.line());
        }
        from = pid + 1;
    }
}

/// A process in the table.
struct Row {
    pid: u32,
    tgid: u32,
    comm: [u8; 16],
    adj: i16,
    total_vm: u64,
    rss: [u64; 2],
    table_pages: u64,
    swapents: u64,
}

impl Row {
    fn of(process: &Process, task: &Task) -> Option<Row> {
        let mm: &Mm = space::mm_of(task.mm()?);
        Some(Row {
            pid: task.tid(),
            tgid: process.pid,
            comm: sched::comm(task.number()),
            adj: process.oom_score_adj(),
            total_vm: mm.total_vm(),
            rss: [mm.rss(RssKind::Anon), mm.rss(RssKind::File)],
            table_pages: mm.table_pages(),
            swapents: mm.swapents(),
        })
    }

    fn line(&self) -> TaskLine<'_> {
        TaskLine {
            pid: self.pid,
            uid: 0,
            tgid: self.tgid,
            total_vm: self.total_vm,
            rss: self.rss.iter().sum(),
            pgtables_bytes: self.table_pages * PAGE_SIZE,
            swapents: self.swapents,
            oom_score_adj: self.adj,
            comm: text(&self.comm),
        }
    }
}

/// Who goes, and what that gives back.
///
/// Differs from Linux: pages of shared memory are counted with those of files.
pub(super) fn print_victim(header: &Header<'_>, process: &Process, task: &Task, message: &str) {
    let Some(row) = Row::of(process, task) else { return };
    let line = row.line();
    let victim = Victim { pid: process.pid, comm: line.comm, uid: 0 };
    let nodes = header.request.nodes;
    let list = (nodes != NodeMask::ALL).then(|| {
        core::fmt::from_fn(move |f| {
            let mut comma = "";
            for node in (0..nr_nodes()).filter_map(|node| u32::try_from(node).ok()) {
                if nodes.contains(node) {
                    write!(f, "{comma}{node}")?;
                    comma = ",";
                }
            }
            Ok(())
        })
    });
    pr_info!("{}", VictimLine { constraint: header.control.constraint, nodes: list, victim });
    pr_err!("{}", victim.killed(message, row.total_vm, [row.rss[0], row.rss[1], 0], &line));
}
