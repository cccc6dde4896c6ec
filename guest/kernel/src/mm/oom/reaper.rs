//! The OOM reaper: a thread that takes a victim's memory when the victim cannot give it back itself, because it waits for
//! somebody who waits for memory (Linux: `oom_reaper`).

use mm_core::MaySleep;
use mm_vma::{RssKind, oom_reap};

use super::victims::{self, VICTIMS, Victim};
use super::with_state;
use crate::mm::space::{self, Spaces};
use crate::sched::{self, WaitQueue, clock};
use crate::{pr_err, pr_info, task};

/// How long a victim has to end by itself (Linux: `OOM_REAPER_DELAY`).
pub(super) const DELAY_NS: u64 = 2_000_000_000;
/// From one attempt to the next.
const RETRY_NS: u64 = 100_000_000;

static WORK: WaitQueue = WaitQueue::new();

/// Starts the thread (Linux: `oom_init`).
pub fn init(context: &MaySleep<'_>) {
    if let Err(error) = sched::spawn_daemon("oom_reaper", run, 0, context) {
        pr_err!("oom_reaper: no thread: {error:?}");
    }
}

/// There is a new victim (Linux: `queue_oom_reaper`).
pub(super) fn wake() {
    WORK.wake_up_all();
}

/// Who is to be looked at next.
fn next() -> Option<Victim> {
    VICTIMS.lock().iter().flatten().min_by_key(|victim| victim.reap_at).copied()
}

fn run(_: u64) {
    let context = sched::task_context();
    loop {
        WORK.wait_event(&context, || next().is_some());
        let Some(victim) = next() else { continue };
        WORK.wait_timeout(&context, victim.reap_at, || {
            next().is_none_or(|next| next.reap_at < victim.reap_at)
        });
        if next().is_some_and(|next| next.mm == victim.mm) && clock::now() >= victim.reap_at {
            reap(victim);
        }
    }
}

/// Linux: `oom_reap_task`.
fn reap(victim: Victim) {
    // Its last user may go at any time, and its object with it.
    if !hold(victim) {
        return;
    }
    let mm = space::mm_of(victim.mm);
    let comm = core::str::from_utf8(&victim.comm).unwrap_or("?").trim_end_matches('\0');
    let is_reaped = space::mm_tryget(victim.mm) && {
        let is_reaped = oom_reap(&Spaces, mm);
        if is_reaped {
            pr_info!(
                "oom_reaper: reaped process {} ({comm}), now anon-rss:{}kB, file-rss:{}kB, shmem-rss:0kB",
                victim.pid,
                mm.rss(RssKind::Anon) * 4,
                mm.rss(RssKind::File) * 4,
            );
        }
        space::mm_put(victim.mm);
        is_reaped
    };
    let left = mm.rss(RssKind::Anon) + mm.rss(RssKind::File);
    if is_reaped {
        with_state(|state| state.reaped += 1);
        victims::forget(victim.mm, true);
    } else if let Some(patience) = victim.patience.after_failure(left) {
        postpone(Victim { patience, ..victim });
    } else {
        pr_info!("oom_reaper: unable to reap pid:{} ({comm})", victim.pid);
        victims::forget(victim.mm, false);
    }
    space::mm_drop(victim.mm);
}

/// Keeps the object of a victim that is still one.
fn hold(victim: Victim) -> bool {
    let victims = VICTIMS.lock();
    let is_there = victims.iter().flatten().any(|other| other.mm == victim.mm && other.since == victim.since);
    if is_there {
        space::mm_grab(victim.mm);
    }
    is_there
}

fn postpone(victim: Victim) {
    let mut victims = VICTIMS.lock();
    if let Some(entry) = victims.iter_mut().flatten().find(|other| other.mm == victim.mm) {
        *entry = Victim { reap_at: clock::now() + RETRY_NS, ..victim };
    }
}

/// Whether a process may be reaped though others use its memory: not if one of them cannot be killed.
pub(super) fn is_pinned_by(mm: mm_vma::Id<mm_vma::Mm>) -> Option<u32> {
    task::with_relations(|_, tasks| {
        tasks.iter().find(|task| task.mm() == Some(mm) && task.process.pid == 1).map(|task| task.process.pid)
    })
}
