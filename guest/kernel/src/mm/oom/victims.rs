//! Those who were chosen and are not gone yet (Linux: `oom_victims`, `signal->oom_mm`, TIF_MEMDIE).

use core::sync::atomic::{AtomicU32, Ordering};

use memvisor_abi::mm_flags;
use mm_oom::{Candidate, Patience, Role};
use mm_vma::{Id, Mm};

use super::with_state;
use crate::mm::space;
use crate::sched::{WaitQueue, clock};
use crate::sync::Lock;
use crate::task::Task;

/// Victims at once. More than one is there only where processes that end anyway need memory for it.
const MAX: usize = 16;

/// An address space whose users are being killed. It stays an object until the entry goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Victim {
    pub mm: Id<Mm>,
    pub pid: u32,
    pub comm: [u8; 16],
    /// When it was chosen, nanoseconds since boot.
    pub since: u64,
    /// When the reaper tries next, nanoseconds since boot.
    pub reap_at: u64,
    /// What its attempts came to.
    pub patience: Patience,
}

pub(super) static VICTIMS: Lock<[Option<Victim>; MAX]> = Lock::new([None; MAX]);
/// How many there are, for those who only want to know whether.
static COUNT: AtomicU32 = AtomicU32::new(0);
/// Woken when a victim's memory is free, or what could be taken of it.
pub static FREED: WaitQueue = WaitQueue::new();

/// Whether anybody is dying.
#[inline]
pub fn any() -> bool {
    COUNT.load(Ordering::Acquire) != 0
}

/// Whether a task's process was chosen.
pub fn is_victim(task: &Task) -> bool {
    task.mm().is_some_and(|mm| space::mm_of(mm).oom() & mm_flags::OOM_VICTIM != 0)
}

/// The victims, for the choice of the next one: those who left their address space stand for what is still in it.
pub fn dying() -> impl Iterator<Item = Candidate> {
    let victims = *VICTIMS.lock();
    victims.into_iter().flatten().map(|victim| Candidate {
        pid: victim.pid,
        role: Role::Ordinary,
        oom_score_adj: 0,
        rss: Some(0),
        swapents: 0,
        table_pages: 0,
        is_victim: true,
        is_reaped: false,
        is_eligible: true,
    })
}

/// An address space is a victim's from now on; the caller is one of its users. The reaper looks after it from `reap_at` on (Linux:
/// `mark_oom_victim`).
pub(super) fn mark(mm: Id<Mm>, pid: u32, comm: [u8; 16], reap_at: u64) {
    if space::mm_of(mm).set_oom(mm_flags::OOM_VICTIM) & mm_flags::OOM_VICTIM != 0 {
        return;
    }
    let mut victims = VICTIMS.lock();
    // One that finds no room dies like the others; it is only not waited for once its tasks have left.
    if let Some(slot) = victims.iter_mut().find(|slot| slot.is_none()) {
        space::mm_grab(mm);
        *slot = Some(Victim { mm, pid, comm, since: clock::now(), reap_at, patience: Patience::NEW });
        COUNT.fetch_add(1, Ordering::AcqRel);
    }
}

/// The caller ends anyway, and may use the reserve for it.
pub(super) fn mark_caller(task: &Task) {
    if let Some(mm) = task.mm() {
        mark(mm, task.process.pid, crate::sched::comm(task.number()), clock::now() + super::reaper::DELAY_NS);
        super::reaper::wake();
    }
}

/// All pages of an address space are free: its last user is gone (Linux: MMF_OOM_SKIP in `exit_mmap`, `exit_oom_victim`).
pub fn mm_exited(mm: Id<Mm>) {
    if space::mm_of(mm).oom() & mm_flags::OOM_VICTIM != 0 {
        forget(mm, false);
    }
}

/// Nobody waits for this victim any more.
pub(super) fn forget(mm: Id<Mm>, is_reaped: bool) {
    space::mm_of(mm).set_oom(mm_flags::OOM_SKIP);
    let gone = {
        let mut victims = VICTIMS.lock();
        let slot = victims.iter_mut().find(|slot| slot.is_some_and(|victim| victim.mm == mm));
        slot.and_then(Option::take)
    };
    if let Some(victim) = gone {
        COUNT.fetch_sub(1, Ordering::AcqRel);
        with_state(|state| {
            if state.last.pid == victim.pid && state.last.freed_after_ns == 0 {
                state.last.freed_after_ns = clock::now().saturating_sub(state.last.at_ns).max(1);
                state.last.is_reaped = is_reaped.into();
            }
        });
        space::mm_drop(mm);
        FREED.wake_up_all();
    }
}
