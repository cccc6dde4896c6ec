//! Waiting for children (Linux: kernel/exit.c, `do_wait`).

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use bitflags::bitflags;
use mm_vma::Errno;

use super::registry::{REGISTRY, Registry};
use super::{Process, SIGCHLD, current, registry};
use crate::mm::space;
use crate::sched::{self, Woken};

/// [`Process::job`] after it went on.
pub(super) const CONTINUED: u32 = 0xffff;
/// Status of a process that goes on, as wait4 gives it.
const STATUS_CONTINUED: u32 = 0xffff;

bitflags! {
    /// Options of wait4 and waitid (Linux: include/uapi/linux/wait.h).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct WaitFlags: u32 {
        /// Do not sleep.
        const NOHANG = 1;
        /// Children that stopped.
        const STOPPED = 2;
        /// Children that ended; wait4 always means them.
        const EXITED = 4;
        /// Children that go on.
        const CONTINUED = 8;
        /// Leave it as it is, so that one can wait for it again.
        const NOWAIT = 0x0100_0000;
        /// Children of this task only: the same here.
        const NOTHREAD = 0x2000_0000;
        /// Children of any kind.
        const ALL = 0x4000_0000;
        /// Children that end with another signal than SIGCHLD.
        const CLONE = 0x8000_0000;
    }
}

/// Which children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selector {
    /// All.
    Any,
    /// The one of that number.
    Pid(u32),
    /// Those of a process group.
    Group(u32),
}

/// A child that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waited {
    /// Its number.
    pub pid: u32,
    /// Status as wait4 gives it.
    pub status: u32,
    /// Its page faults and its children's, minor and major.
    pub faults: [u64; 2],
}

/// What a look at the children gave.
enum Found {
    Child(Arc<Process>, Waited, bool),
    /// There are some, but none has anything to tell.
    Nothing,
    /// There is none to wait for.
    NoChild,
}

/// Waits for a child to end, stop or go on; `None` if none has and `NOHANG` is set.
///
/// # Errors
/// `ECHILD` if there is none to wait for, `ERESTARTSYS` if a signal came first.
pub fn do_wait(which: Selector, flags: WaitFlags) -> Result<Option<Waited>, Errno> {
    let task = current().ok_or(Errno::Echild)?;
    let process = &task.process;
    loop {
        match look(process, which, flags) {
            Found::NoChild => return Err(Errno::Echild),
            Found::Child(child, waited, ended) => {
                // It is on its way, and sleeps no more before that.
                while ended && !child.told.load(Ordering::Acquire) {
                    sched::yield_now(&sched::task_context());
                }
                if !ended || flags.contains(WaitFlags::NOWAIT) || reap(process, &child) {
                    return Ok(Some(waited));
                }
                // Another task of this process was faster.
                continue;
            }
            Found::Nothing if flags.contains(WaitFlags::NOHANG) => return Ok(None),
            Found::Nothing => {}
        }
        let woken = process.children.wait_interruptible(&sched::task_context(), None, || {
            !matches!(look(process, which, flags | WaitFlags::NOWAIT), Found::Nothing)
        });
        if woken != Woken::Event {
            return Err(Errno::Erestartsys);
        }
    }
}

/// The first child with something to tell. What is told of stopping and going on is told once.
fn look(process: &Process, which: Selector, flags: WaitFlags) -> Found {
    let registry = REGISTRY.lock();
    let mut any = false;
    let found = |child: &&Arc<Process>| is_wanted(child, which, flags) && !child.is_unwanted_zombie();
    for child in registry.children_of(process.pid).filter(found) {
        any = true;
        if child.is_zombie() {
            if flags.contains(WaitFlags::EXITED) {
                let status = child.status.load(Ordering::Acquire);
                return Found::Child(Arc::clone(child), waited(&registry, child, status), true);
            }
            continue;
        }
        if let Some(status) = job(child, flags) {
            return Found::Child(Arc::clone(child), waited(&registry, child, status), false);
        }
    }
    if any { Found::Nothing } else { Found::NoChild }
}

/// Linux: `eligible_child`, `eligible_pid`.
fn is_wanted(child: &Process, which: Selector, flags: WaitFlags) -> bool {
    let named = match which {
        Selector::Any => true,
        Selector::Pid(pid) => child.pid == pid,
        Selector::Group(pgid) => child.pgid() == pgid,
    };
    let clone = child.exit_signal.load(Ordering::Relaxed) != SIGCHLD;
    named && (flags.contains(WaitFlags::ALL) || clone == flags.contains(WaitFlags::CLONE))
}

/// Status of a child that stopped or goes on, if that is wanted and was not told (Linux: `wait_task_stopped`, `wait_task_continued`).
fn job(child: &Process, flags: WaitFlags) -> Option<u32> {
    let job = child.job.load(Ordering::Acquire);
    let status = match job {
        0 => return None,
        CONTINUED if flags.contains(WaitFlags::CONTINUED) => STATUS_CONTINUED,
        signal if signal != CONTINUED && flags.contains(WaitFlags::STOPPED) => signal << 8 | 0x7f,
        _ => return None,
    };
    if !flags.contains(WaitFlags::NOWAIT) {
        child.job.store(0, Ordering::Release);
    }
    Some(status)
}

fn waited(registry: &Registry, child: &Process, status: u32) -> Waited {
    let mut faults = [0, 1].map(|kind| {
        let own = child.faults.get(kind).map_or(0, |faults| faults.load(Ordering::Relaxed));
        own + child.child_faults.get(kind).map_or(0, |faults| faults.load(Ordering::Relaxed))
    });
    let mm = registry.tasks_of(child.pid).find_map(|task| task.mm());
    if let Some(mm) = mm.map(space::mm_of) {
        faults = [faults[0] + mm.min_flt(), faults[1] + mm.maj_flt()];
    }
    Waited { pid: child.pid, status, faults }
}

/// Takes a zombie's last traces away; `false` if somebody else did (Linux: `wait_task_zombie`).
fn reap(parent: &Process, child: &Arc<Process>) -> bool {
    if !release(child) {
        return false;
    }
    parent.add_child(child);
    for (sum, (own, children)) in parent.child_faults.iter().zip(child.faults.iter().zip(&child.child_faults))
    {
        sum.fetch_add(own.load(Ordering::Relaxed) + children.load(Ordering::Relaxed), Ordering::Relaxed);
    }
    true
}

/// Forgets a zombie; `false` if somebody else did (Linux: `release_task`).
pub(super) fn release(process: &Arc<Process>) -> bool {
    if registry::forget_process(process.pid).is_none() {
        return false;
    }
    let leader = registry::forget_task(process.pid);
    let number = process.leader.load(Ordering::Acquire);
    if current().is_some_and(|task| task.tid == process.pid) {
        // Nobody waits for it: its slot goes with its stack.
        process.released.store(true, Ordering::Release);
        return true;
    }
    // It is on its way off the CPU, with nothing to wait for.
    while !sched::is_off_cpu(number) {
        sched::yield_now(&sched::task_context());
    }
    sched::release(number);
    drop(leader);
    true
}
