//! Killing the process that was chosen, and all who share its memory (Linux: `oom_kill_process`).

use alloc::sync::Arc;

use guest_process::signal::{SigInfo, Signal, Target};
use memvisor_abi::{OomKill, VmEvent};
use mm_core::{Event, Trace};
use mm_oom::Candidate;
use mm_vma::{Id, Mm, RssKind};

use super::report::{self, Header};
use super::{reaper, victims, with_state};
use crate::mm::page_alloc::PAGES;
use crate::mm::space;
use crate::sched::{self, clock};
use crate::task::{self, Process, Task};
use crate::trace::KernelTrace;
use crate::{pr_info, signal};

/// Reports and kills, unless the process is on its way out already.
pub(super) fn oom_kill_process(candidate: &Candidate, message: &str, header: &Header<'_>) {
    let Some((task, mm)) = hold(candidate.pid) else { return };
    if task.process.is_ending() {
        // It has what it needs (Linux: `task_will_free_mem`).
        victims::mark(mm, candidate.pid, sched::comm(task.number()), clock::now() + reaper::DELAY_NS);
        reaper::wake();
        space::mm_put(mm);
        return;
    }
    header.print();
    kill(&task, mm, candidate, message, header);
    space::mm_put(mm);
}

/// A task of the process with an address space, and a reference of that.
fn hold(pid: u32) -> Option<(Arc<Task>, Id<Mm>)> {
    task::with_next_process(pid, |process, task| {
        let task = task.filter(|_| process.pid == pid)?;
        let mm = task.mm()?;
        // Of the same one: it is another's as soon as its last user is gone.
        (space::mm_tryget(mm)).then(|| (Arc::clone(task), mm))
    })?
    .and_then(|(task, mm)| {
        let is_same = task.mm() == Some(mm);
        if !is_same {
            space::mm_put(mm);
        }
        is_same.then_some((task, mm))
    })
}

/// Linux: `__oom_kill_process`.
fn kill(task: &Arc<Task>, mm: Id<Mm>, candidate: &Candidate, message: &str, header: &Header<'_>) {
    let process = &task.process;
    let comm = sched::comm(task.number());
    report::print_victim(header, process, task, message);
    record(process, comm, mm, candidate, header);
    PAGES.count(VmEvent::OomKill, 1);
    KernelTrace.emit(Event::MarkVictim { pid: process.pid });
    // Marked first: from its next allocation on it may use the reserve.
    victims::mark(mm, process.pid, comm, clock::now() + reaper::DELAY_NS);
    send_kill(process);
    kill_sharers(process.pid, mm);
    if let Some(pinned_by) = reaper::is_pinned_by(mm) {
        pr_info!("oom killer {} has mm pinned by {pinned_by}", process.pid);
        victims::forget(mm, false);
    }
    reaper::wake();
}

fn send_kill(process: &Process) {
    // One that ends meanwhile needs none.
    let _ = signal::send(process, Target::Process, SigInfo::kernel(Signal::KILL));
}

/// Other processes with the same memory keep it: they are killed too, but for init.
fn kill_sharers(victim: u32, mm: Id<Mm>) {
    let mut from = 2;
    while let Some((process, shares)) = task::with_next_process(from, |process, task| {
        let shares = task.is_some_and(|task| task.mm() == Some(mm)) && process.pid != victim;
        (Arc::clone(process), shares)
    }) {
        if shares {
            send_kill(&process);
        }
        from = process.pid + 1;
    }
}

fn record(process: &Process, comm: [u8; 16], mm: Id<Mm>, candidate: &Candidate, header: &Header<'_>) {
    let mm = space::mm_of(mm);
    let totalpages = header.control.totalpages;
    with_state(|state| {
        state.kills += 1;
        state.last = OomKill {
            pid: process.pid,
            oom_score_adj: process.oom_score_adj().into(),
            comm,
            points: mm_oom::oom_badness(candidate, totalpages).unwrap_or(0),
            totalpages,
            total_vm: mm.total_vm(),
            rss: [mm.rss(RssKind::Anon), mm.rss(RssKind::File)],
            table_pages: mm.table_pages(),
            caller: task::current_pid(),
            order: header.request.order.as_u8().into(),
            gfp: header.request.gfp.bits(),
            is_reaped: 0,
            at_ns: clock::now(),
            freed_after_ns: 0,
        };
    });
}
