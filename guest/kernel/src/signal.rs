//! Signals of processes (Linux: kernel/signal.c). What is right is decided by `guest_process::signal`; here are the locks, the
//! wake-ups, user memory, and who is told.
//!
//! A process's [`ThreadGroup`] is behind one lock (Linux: `siglock`). It is taken before `task::registry`'s, never while that is
//! held: waking a thread means finding it.

mod deliver;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guest_process::limits;
use guest_process::signal::{
    EndOfChild, Force, Keeps, Notice, SigInfo, SigSet, Signal, Target, ThreadGroup, Tid, Wake,
};
use guest_process::time::IntervalTimer;
use guest_process::wait::{Event, Exit};
use mm_vma::Errno;

use crate::mm::oom;
use crate::sync::Lock;
use crate::task::{self, CloneFlags, Current, Process, Task, current, find_process, find_task, work};

pub use deliver::{deliver, return_from_handler};

/// What the tasks of a process share of signals, and its limits and timers (Linux: `signal_struct`, `sighand_struct`).
#[derive(Debug)]
pub struct Signals {
    /// None before the first task, which `begin` or `fork` enters.
    group: Lock<Option<ThreadGroup>>,
    /// All limits; those of memory are copied to where faults look.
    pub limits: Lock<limits::Limits>,
    /// The timer of `alarm` and setitimer(ITIMER_REAL), by CLOCK_MONOTONIC. Its lock is taken before the group's.
    pub real_timer: Lock<IntervalTimer>,
}

/// What each task has of signals.
#[derive(Debug)]
pub struct TaskSignals {
    /// The last trap: error code, vector, address (Linux: `thread.error_code` and so on).
    trap: [AtomicU64; 3],
    /// How an interrupted call goes on: see [`RestartBlock`].
    restart: Lock<Option<RestartBlock>>,
    /// Somebody woke it from a futex.
    pub futex_woken: AtomicBool,
}

/// A call that goes on where it was interrupted, not from its begin (Linux: `restart_block`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartBlock {
    /// A sleep.
    Sleep {
        /// Its end, nanoseconds since boot.
        deadline: u64,
        /// Where the rest is stored; 0 for nowhere.
        rest: u64,
    },
    /// A wait for a futex.
    Futex {
        /// The word.
        address: u64,
        /// What it must be.
        value: u32,
        /// What wakes.
        bitset: u32,
        /// No other process shares it.
        private: bool,
        /// End, nanoseconds since boot.
        deadline: u64,
    },
}

impl Default for TaskSignals {
    fn default() -> Self {
        TaskSignals {
            trap: [const { AtomicU64::new(0) }; 3],
            restart: Lock::new(None),
            futex_woken: AtomicBool::new(false),
        }
    }
}

impl Default for Signals {
    fn default() -> Self {
        Signals {
            group: Lock::new(None),
            limits: Lock::new(limits::Limits::init(crate::sched::max_threads() as u64)),
            real_timer: Lock::new(IntervalTimer::OFF),
        }
    }
}

/// Makes a thread look at its signals. For [`ThreadGroup`]'s calls, under its lock.
fn wake(tid: Tid, how: Wake) {
    let Some(task) = find_task(tid) else { return };
    task.kick(match how {
        Wake::Kill => work::KILLED | work::SIGPENDING,
        Wake::Signal | Wake::Continue => work::SIGPENDING,
    });
}

impl Signals {
    /// For a process that the kernel starts; `init` is for the one that nothing may end by accident.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn begin(&self, pid: Tid, init: bool) -> Result<(), Errno> {
        *self.group.lock() = Some(ThreadGroup::new(pid, self.queue_limit(), init)?);
        Ok(())
    }

    fn queue_limit(&self) -> usize {
        let limit = self.limits.lock().soft(limits::Resource::Sigpending);
        usize::try_from(limit).unwrap_or(usize::MAX)
    }

    /// For a new process, whose first task is `child`, made by task `from` (Linux: `copy_sighand`, `copy_signal`).
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn fork(&self, from: Tid, child: Tid, flags: CloneFlags) -> Result<Signals, Errno> {
        let shares_memory = flags.contains(CloneFlags::VM) && !flags.contains(CloneFlags::VFORK);
        let keeps = Keeps { clear_handlers: false, shares_memory };
        // With the lock held nothing waits for memory.
        let group =
            oom::or_wait(|| self.with(|group| group.fork(from, child, keeps)).unwrap_or(Err(Errno::Esrch)))?;
        Ok(Signals {
            group: Lock::new(Some(group)),
            limits: Lock::new(self.limits.lock().clone()),
            // A child has no timers.
            real_timer: Lock::new(IntervalTimer::OFF),
        })
    }

    /// Enters another task of the same process.
    ///
    /// # Errors
    /// `ENOMEM`, or that a signal came first: the call begins again.
    pub fn add_task(&self, from: Tid, tid: Tid) -> Result<(), Errno> {
        oom::or_wait(|| self.with(|group| group.add_thread(from, tid)).unwrap_or(Err(Errno::Esrch)))
    }

    /// Takes out a task that never ran.
    pub fn forget_task(&self, tid: Tid) {
        self.with(|group| group.remove_thread(tid, &mut wake));
    }

    /// Calls `f` with the group locked.
    pub fn with<R>(&self, f: impl FnOnce(&mut ThreadGroup) -> R) -> Option<R> {
        self.group.lock().as_mut().map(f)
    }

    /// The current task executes a new program: see [`ThreadGroup::finish_exec`].
    pub fn exec(&self, tid: Tid, pid: Tid) {
        self.with(|group| group.finish_exec(tid, pid));
    }
}

impl TaskSignals {
    /// Remembers a trap for handlers that ask.
    pub fn set_trap(&self, error: u64, vector: u64, address: u64) {
        for (word, value) in self.trap.iter().zip([error, vector, address]) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Says how the call that is interrupted goes on; the call then returns what comes back.
    pub fn restart_by(&self, block: RestartBlock) -> Errno {
        *self.restart.lock() = Some(block);
        Errno::ErestartRestartblock
    }

    /// How the interrupted call goes on, once.
    pub fn take_restart(&self) -> Option<RestartBlock> {
        self.restart.lock().take()
    }
}

/// Calls `f` with the current task's group and number, and makes the task look if it must.
pub fn with_own<R>(f: impl FnOnce(&mut ThreadGroup, Tid) -> R) -> Result<R, Errno> {
    let task = current().ok_or(Errno::Esrch)?;
    let tid = task.tid();
    let result = task.process.signals.with(|group| {
        let result = f(group, tid);
        (result, group.has_pending(tid))
    });
    let (result, look) = result.ok_or(Errno::Esrch)?;
    if look {
        task.set_work(work::SIGPENDING);
    }
    Ok(result)
}

/// What a call in [`with_own`] wakes others by.
pub fn waker() -> impl FnMut(Tid, Wake) {
    wake
}

/// Sends a signal to a process or one of its threads.
///
/// # Errors
/// EAGAIN, ESRCH: see [`ThreadGroup::send`].
pub fn send(process: &Process, target: Target, info: SigInfo) -> Result<(), Errno> {
    let sent = process.signals.with(|group| {
        let sent = group.send(info, target, &mut wake);
        decide_exit(process, group);
        sent
    });
    sent.unwrap_or(Err(Errno::Esrch))
}

/// The processes that `which` says, without the registry's lock, so that one can send to them.
///
/// # Errors
/// ENOMEM where nothing may sleep, or for a task that is being ended.
pub fn choose(which: impl Fn(&Process) -> bool) -> Result<Vec<Arc<Process>>, Errno> {
    oom::or_wait(|| {
        task::with_relations(|processes, _| {
            let mut chosen = Vec::new();
            for process in processes.iter().filter(|process| which(process)) {
                chosen.try_reserve(1).map_err(|_| Errno::Enomem)?;
                chosen.push(Arc::clone(process));
            }
            Ok(chosen)
        })
    })
}

/// Sends a signal of the kernel's to every process of a group, as the terminal does for its keys (Linux: `kill_pgrp`). For
/// threads of the kernel, too, with no lock held.
///
/// # Errors
/// ESRCH if nobody is in the group; ENOMEM.
pub fn send_group(pgid: u32, signal: Signal) -> Result<(), Errno> {
    let mut result = Err(Errno::Esrch);
    for process in choose(|process| process.pgid() == pgid)? {
        result = result.or(send(&process, Target::Process, SigInfo::kernel(signal)));
    }
    result
}

/// The other tasks of the process are to end: see [`ThreadGroup::begin_exec`].
///
/// # Errors
/// EAGAIN.
pub fn begin_exec(task: &Task) -> Result<(), Errno> {
    let begun = task.process.signals.with(|group| group.begin_exec(task.tid(), &mut wake));
    begun.unwrap_or(Err(Errno::Eagain)).map(|_| ())
}

/// A signal that ends the process decides its status before any of its tasks can end.
fn decide_exit(process: &Process, group: &ThreadGroup) {
    if let Some(exit) = group.exiting() {
        process.decide_exit(exit.status());
    }
}

/// The process ends by its own wish or by a trap, with a status as wait4 gives it; no signal changes that any more.
pub fn group_exit(task: &Task, status: u32) {
    let process = &task.process;
    process.signals.with(|group| {
        group.exit(task.tid(), Exit::from_status(status), &mut wake);
        decide_exit(process, group);
    });
}

/// The last task of the process begins to end, with a status as wait4 gives it, which is the process's unless somebody ended that: who did so
/// may have woken the task and hold the lock still (Linux: `synchronize_group_exit`).
pub fn last_task_ends(process: &Process, status: u32) {
    process.signals.with(|group| decide_exit(process, group));
    process.decide_exit(status);
}

/// Sends the current task a signal that it caused itself and cannot ignore (Linux: `force_sig_fault`).
pub fn force(task: &Current, info: SigInfo) {
    task.process.signals.with(|group| {
        group.force(task.tid(), info, Force::Handler, &mut wake);
        decide_exit(&task.process, group);
    });
    task.set_work(work::SIGPENDING);
}

/// Whether the program would handle `signal` if it came now; otherwise it is worth a line (Linux: `unhandled_signal`).
pub fn is_handled(task: &Current, signal: Signal) -> bool {
    let handled = |group: &mut ThreadGroup| {
        group.ignored_and_handled().1.minus(group.blocked(task.tid())).contains(signal)
    };
    task.process.signals.with(handled).unwrap_or(false)
}

/// A task begins to run: what was sent before it could be found is not lost.
pub fn task_begins(task: &Task) {
    let (look, killed) = task
        .process
        .signals
        .with(|group| (group.has_pending(task.tid()), group.is_killed(task.tid())))
        .unwrap_or_default();
    task.set_work(if look { work::SIGPENDING } else { 0 } | if killed { work::KILLED } else { 0 });
}

/// A task ends: others get what only it was woken for, and a process that stops has one thread less to wait for.
pub fn task_ends(task: &Task) {
    let process = &task.process;
    let notice = process.signals.with(|group| {
        group.remove_thread(task.tid(), &mut wake);
        group.take_notice()
    });
    if let Some(notice) = notice.flatten() {
        tell_parent(process, notice);
    }
}

/// The parent hears that a process stopped or goes on (Linux: `do_notify_parent_cldstop`).
fn tell_parent(process: &Process, notice: Notice) {
    let event = match notice {
        Notice::Stopped(signal) => Event::Stopped(signal),
        Notice::Continued => Event::Continued,
    };
    if let Some(parent) = find_process(process.parent())
        && parent.signals.with(|group| group.wants_stops()) == Some(true)
    {
        // A parent that ends meanwhile need not know.
        let _ = send(&parent, Target::Process, event.info(process.pid, 0, [0; 2]));
    }
    process.report_stop(match notice {
        Notice::Stopped(signal) => signal.number(),
        Notice::Continued => 0,
    });
}

/// What the end of `child` will mean to `parent` (Linux: `do_notify_parent`).
pub fn end_of_child(parent: &Process, child: &Process) -> EndOfChild {
    let exit_signal = Signal::new(child.exit_signal.load(Ordering::Relaxed));
    let end = parent.signals.with(|group| group.end_of_child(exit_signal));
    end.unwrap_or(EndOfChild { reap: false, signal: None })
}

/// `child` of `parent` became a zombie with `status`.
pub fn child_ended(parent: &Process, child: &Process, status: u32, end: EndOfChild) {
    if let Some(signal) = end.signal {
        let info = Event::Ended(Exit::from_status(status)).info(child.pid, 0, [0; 2]);
        // A parent that ends meanwhile need not know.
        let _ = send(parent, Target::Process, info.with_signal(signal));
    }
}

/// Nobody outside its process group would continue the process (Linux: `will_become_orphaned_pgrp`).
fn is_orphaned(process: &Process) -> bool {
    task::with_relations(|processes, _| {
        let group = processes.iter().filter(|other| other.pgid() == process.pgid() && !other.is_zombie());
        !group.into_iter().any(|member| {
            let parent = processes.iter().find(|other| other.pid == member.parent());
            parent.is_some_and(|parent| parent.pgid() != member.pgid() && parent.sid() == member.sid())
        })
    })
}

/// What is blocked, pending, ignored and handled, as `/proc/PID/status` has it: SigPnd, ShdPnd, SigBlk, SigIgn, SigCgt.
pub fn sets(task: &Task) -> [SigSet; 5] {
    let sets = task.process.signals.with(|group| {
        let (own, shared) = group.all_pending(task.tid());
        let (ignored, handled) = group.ignored_and_handled();
        [own, shared, group.blocked(task.tid()), ignored, handled]
    });
    sets.unwrap_or_default()
}
