//! Waiting for children (Linux: kernel/exit.c, `do_wait`).

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use guest_process::signal::Signal;
use guest_process::wait::{Child, Event, Exit, Look, Nothing, Options, State, Wait};
use mm_vma::Errno;

use super::registry::{REGISTRY, Registry};
use super::{Process, current, registry};
use crate::mm::space;
use crate::sched::{self, Woken};

/// [`Process::job`] after it went on.
pub(super) const CONTINUED: u32 = 0xffff;

/// A child that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waited {
    /// Its number.
    pub pid: u32,
    /// What it had to tell.
    pub event: Event,
    /// Its page faults and its children's, minor and major.
    pub faults: [u64; 2],
}

/// What a look at the children gave.
enum Found {
    Child(Arc<Process>, Waited),
    /// None has anything to tell; whether there are some.
    Nothing {
        any: bool,
    },
}

/// Waits for a child to end, stop or go on; `None` if none has and `NOHANG` is set.
///
/// # Errors
/// `ECHILD` if there is none to wait for, `ERESTARTSYS` if a signal came first.
pub fn do_wait(wait: &Wait) -> Result<Option<Waited>, Errno> {
    let task = current().ok_or(Errno::Echild)?;
    let process = &task.process;
    let keep = wait.options.contains(Options::NOWAIT);
    loop {
        match look(process, wait) {
            Found::Child(child, waited) => {
                let is_mine = match waited.event {
                    Event::Ended(_) => {
                        // It is on its way, and sleeps no more before that.
                        while !child.told.load(Ordering::Acquire) {
                            sched::yield_now(&sched::task_context());
                        }
                        keep || reap(process, &child)
                    }
                    event => keep || take_job(&child, event),
                };
                if is_mine {
                    return Ok(Some(waited));
                }
                // Another task of this process was faster.
                continue;
            }
            Found::Nothing { any } => match wait.nothing(any) {
                Ok(()) => {}
                Err(Nothing::NoChild) => return Err(Errno::Echild),
                Err(Nothing::NotYet) => return Ok(None),
            },
        }
        let woken = process.children.wait_interruptible(&sched::task_context(), None, || {
            !matches!(look(process, wait), Found::Nothing { any: true })
        });
        if woken != Woken::Event {
            return Err(Errno::Erestartsys);
        }
    }
}

/// The first child with something to tell.
fn look(process: &Process, wait: &Wait) -> Found {
    let registry = REGISTRY.lock();
    let mut any = false;
    for child in registry.children_of(process.pid).filter(|child| !child.is_unwanted_zombie()) {
        match wait.look(&describe(child)) {
            Look::Other => {}
            Look::Later => any = true,
            Look::Now(event) => {
                let waited = Waited { pid: child.pid, event, faults: faults(&registry, child) };
                return Found::Child(Arc::clone(child), waited);
            }
        }
    }
    Found::Nothing { any }
}

fn describe(child: &Process) -> Child {
    let state = if child.is_zombie() {
        State::Ended(Exit::from_status(child.status.load(Ordering::Acquire)))
    } else {
        match child.job.load(Ordering::Acquire) {
            CONTINUED => State::Continued,
            signal => Signal::new(signal).map_or(State::Alive, State::Stopped),
        }
    };
    Child {
        pid: child.pid,
        group: child.pgid(),
        uid: 0,
        exit_signal: Signal::new(child.exit_signal.load(Ordering::Relaxed)),
        // Which thread made it is not kept. Differs from Linux: __WNOTHREAD means nothing.
        own: true,
        state,
    }
}

/// Takes the news that a child stopped or goes on, which is told once; `false` if it is not the news any more (Linux:
/// `wait_task_stopped`, `wait_task_continued`).
fn take_job(child: &Process, event: Event) -> bool {
    let job = match event {
        Event::Stopped(signal) => signal.number(),
        _ => CONTINUED,
    };
    child.job.compare_exchange(job, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

fn faults(registry: &Registry, child: &Process) -> [u64; 2] {
    let mut faults = [0, 1].map(|kind| {
        let own = child.faults.get(kind).map_or(0, |faults| faults.load(Ordering::Relaxed));
        own + child.child_faults.get(kind).map_or(0, |faults| faults.load(Ordering::Relaxed))
    });
    let mm = registry.tasks_of(child.pid).find_map(|task| task.mm());
    if let Some(mm) = mm.map(space::mm_of) {
        faults = [faults[0] + mm.min_flt(), faults[1] + mm.maj_flt()];
    }
    faults
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
    if current().is_some_and(|task| task.tid() == process.pid) {
        // Nobody waits for it: its slot goes with its stack.
        process.released.store(true, Ordering::Release);
        return true;
    }
    // It is on its way off the CPU, with nothing to wait for.
    sched::wait_off_cpu(number, &sched::task_context());
    sched::release(number);
    drop(leader);
    true
}
