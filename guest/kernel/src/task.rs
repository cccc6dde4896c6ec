//! Processes and their tasks (Linux: `task_struct`, `signal_struct`; kernel/fork.c, exit.c, pid.c).
//!
//! A [`Task`] is what a kernel thread (`crate::sched`) runs in ring 3; a [`Process`] is what the tasks of one thread group share. An
//! address space is shared by counting its users (`mm::space::mm_get`).
//!
//! Invariants:
//! T1  a task's `mm` is its own reference; only the task itself changes it, and it is gone when the task is dead;
//! T2  relations of processes (parent, group, session, who is a zombie) change under `registry::REGISTRY` only;
//! T3  a process is in the registry from fork until somebody waited for it; a task until it ended, a leader until its process goes;
//! T4  whoever made a zombie woke its parent afterwards.

mod exit;
mod fault;
mod fork;
mod hooks;
mod publish;
mod registry;
mod run;
mod switch;
mod usage;
mod wait;

use alloc::sync::Arc;
use core::fmt;
use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicI16, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use guest_process::limits;
use memvisor_abi::THREAD_SIZE;
use mm_page_alloc::TaskPolicy;
use mm_vma::{Id, Limits, Mm};

use crate::arch::fpu::{self, FpuState};
use crate::arch::percpu::{self, PerCpu};
use crate::arch::regs;
use crate::mm::{fault_inject, oom, space};
use crate::sched::{self, MAX_THREADS, WaitQueue};
use crate::signal::{Signals, TaskSignals};
use crate::sync::Lock;

pub use exit::{do_exit, do_group_exit, end_others};
pub use fault::{exit_to_user, page_fault, trap};
pub use fork::{CloneArgs, CloneFlags, clone};
pub use hooks::Files;
pub use publish::{audit_all, living, living_mm, user_table};
pub use registry::{
    PID_MAX, alloc_pid, find_process, find_task, has_processes, nr_forks, tasks_where, with_next_process,
    with_relations,
};
pub use run::{End, end_pause, enter, pause, run_file, run_init, wait_init};
pub use switch::switch_to;
pub use wait::{Waited, do_wait};

/// Bounds the number of threads by memory (Linux: `fork_init`).
pub fn init() {
    let threads = limits::max_threads(oom::totalram(), THREAD_SIZE, MAX_THREADS as u64);
    sched::set_max_threads(usize::try_from(threads).unwrap_or(MAX_THREADS));
}

/// Signal that tells a parent of its child's end unless clone asks for another.
pub const SIGCHLD: u32 = 17;

/// What a task shall do before it is in ring 3 again (Linux: thread_info's flags).
pub mod work {
    /// A signal waits to be delivered: `TIF_SIGPENDING`.
    pub const SIGPENDING: u32 = 1;
    /// The process is being ended, or another of its tasks runs execve: the task shall end.
    pub const KILLED: u32 = 2;
}

/// What one kernel thread runs in ring 3.
pub struct Task {
    /// Thread id; another one from execve on, if it was not its process's first task.
    tid: AtomicU32,
    /// Its thread group.
    pub process: Arc<Process>,
    /// Number of its thread in `sched`.
    number: AtomicUsize,
    mm: AtomicU64,
    work: AtomicU32,
    /// Base of FS in ring 3: the thread pointer.
    fs_base: AtomicU64,
    gs_base: AtomicU64,
    /// FPU and SSE registers.
    pub fpu: FpuState,
    /// Where a 0 is stored and a futex woken when the task ends; 0 for nowhere (Linux: `clear_child_tid`).
    pub clear_child_tid: AtomicU64,
    /// Where the new task stores its tid first; 0 for nowhere (Linux: `set_child_tid`).
    set_child_tid: AtomicU64,
    /// Where it keeps its list of robust futexes; 0 for nowhere.
    pub robust_list: AtomicU64,
    /// Where its memory comes from (Linux: `task->mempolicy`).
    pub mempolicy: Lock<TaskPolicy>,
    /// The how manieth of its requests for memory is to fail; 0 for none (Linux: the same name).
    fail_nth: AtomicU32,
    /// Somebody waits for the address space to be given back (Linux: `vfork_done`).
    vfork: AtomicBool,
    vfork_done: WaitQueue,
    /// The task has ended, its thread may still be on a CPU.
    dead: AtomicBool,
    /// Its descriptors, root and working directory.
    pub files: Files,
    /// What a signal's handler asks for, and how interrupted calls go on.
    pub signals: TaskSignals,
    /// CPU time.
    time: usage::TaskTime,
}

/// What the tasks of a thread group share.
pub struct Process {
    /// Number of the process: that of its first task.
    pub pid: u32,
    parent: AtomicU32,
    pgid: AtomicU32,
    sid: AtomicU32,
    /// Tasks that have not ended.
    live: AtomicU32,
    /// Tasks that have not begun to end: the last of them says how the process ends (Linux: the same name).
    quick_threads: AtomicU32,
    /// 0, or how all its tasks end: [`GROUP_EXIT`] and the status.
    group_exit: AtomicU64,
    /// Status as wait4 gives it.
    status: AtomicU32,
    zombie: AtomicBool,
    /// Its parent wants no word of its end: nobody finds the zombie (Linux: EXIT_DEAD).
    unwanted: AtomicBool,
    /// Its parent got the signal of its end: only then does a wait return, as on Linux.
    told: AtomicBool,
    /// Nobody waits for it.
    released: AtomicBool,
    /// Number of the thread of the first task, for as long as it has a slot.
    leader: AtomicUsize,
    /// Signal for the parent when it ends; 0 for none.
    pub exit_signal: AtomicU32,
    /// execve succeeded since fork (Linux: `!PF_FORKNOEXEC`).
    pub has_execed: AtomicBool,
    /// Adopts orphans among its descendants (Linux: `is_child_subreaper`).
    pub is_subreaper: AtomicBool,
    /// Signal that stopped it; 0 while it runs (Linux: `SIGNAL_STOP_STOPPED`, `group_exit_code`).
    pub stopped: AtomicU32,
    /// What wait4 tells of stopping and going on, until it is told: see [`Process::report_stop`].
    job: AtomicU32,
    /// Limits of memory; the others are with the signals.
    limits: Lock<Limits>,
    /// Where its tasks wait for children (Linux: `wait_chldexit`).
    children: WaitQueue,
    /// Where others wait for its end or its pause.
    ended: WaitQueue,
    /// One of its tasks is in `pause`.
    pub paused: AtomicBool,
    /// What is added to its points when somebody must be killed (Linux: `oom_score_adj`).
    oom_score_adj: AtomicI16,
    /// Page faults of its children that were waited for, minor and major (Linux: `cmin_flt`, `cmaj_flt`).
    child_faults: [AtomicU64; 2],
    /// Page faults of its address spaces that are gone.
    faults: [AtomicU64; 2],
    /// Cycles of its tasks that ended.
    dead_cycles: AtomicU64,
    /// Cycles of its children that were waited for.
    child_cycles: AtomicU64,
    /// Handlers, signals pending for all tasks, timers.
    pub signals: Signals,
}

/// Mark of [`Process::group_exit`].
const GROUP_EXIT: u64 = 1 << 32;

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("tid", &self.tid())
            .field("process", &self.process)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("pid", &self.pid).finish_non_exhaustive()
    }
}

impl Task {
    /// Thread id.
    pub fn tid(&self) -> u32 {
        self.tid.load(Ordering::Acquire)
    }

    /// Its address space; none while it ends.
    pub fn mm(&self) -> Option<Id<Mm>> {
        Id::new(self.mm.load(Ordering::Acquire))
    }

    /// The how manieth of its requests for memory from now on is to fail; 0 for none.
    pub fn fail_nth(&self) -> u32 {
        self.fail_nth.load(Ordering::Relaxed)
    }

    /// Says which of its requests for memory is to fail.
    pub fn set_fail_nth(&self, nth: u32) {
        self.fail_nth.store(nth, Ordering::Relaxed);
        fault_inject::enable();
    }

    /// Counts a request; whether it is the one that is to fail, and `None` if none is. For the task itself.
    pub fn count_to_failure(&self) -> Option<bool> {
        let nth = self.fail_nth().checked_sub(1)?;
        self.fail_nth.store(nth, Ordering::Relaxed);
        Some(nth == 0)
    }

    /// Number of its thread in `sched`.
    pub fn number(&self) -> usize {
        self.number.load(Ordering::Acquire)
    }

    /// Its process's limits of memory, with those of the system.
    pub fn limits(&self) -> Limits {
        Limits { max_map_count: space::max_map_count(), ..*self.process.limits.lock() }
    }

    /// Sets bits of [`work`] and makes the task look at them: it wakes if it sleeps interruptibly, and it leaves ring 3 (Linux:
    /// `set_tsk_thread_flag`, `signal_wake_up`).
    pub fn kick(&self, work: u32) {
        self.work.fetch_or(work, Ordering::SeqCst);
        crate::sched::poke(self.number());
    }

    /// Sets bits of [`work`] of the current task, or of one that does not run yet.
    pub fn set_work(&self, work: u32) {
        self.work.fetch_or(work, Ordering::SeqCst);
    }

    /// Clears bits of [`work`].
    pub fn clear_work(&self, work: u32) {
        self.work.fetch_and(!work, Ordering::SeqCst);
    }

    /// Whether one of these bits of [`work`] is set.
    pub fn has_work(&self, work: u32) -> bool {
        self.work.load(Ordering::SeqCst) & work != 0
    }

    /// Whether somebody waits until it gives the address space back (Linux: `in_vfork`).
    pub fn is_in_vfork(&self) -> bool {
        self.vfork.load(Ordering::Acquire)
    }

    /// Whether the task is its process's first.
    pub fn is_leader(&self) -> bool {
        self.tid() == self.process.pid
    }

    /// Whether it ended, and its slot waits for somebody who waits for the process.
    pub fn is_zombie(&self) -> bool {
        let released = self.process.released.load(Ordering::Acquire);
        self.is_leader() && self.dead.load(Ordering::Acquire) && !released
    }

    /// FS base of ring 3.
    pub fn fs_base(&self) -> u64 {
        self.fs_base.load(Ordering::Relaxed)
    }

    /// Sets the FS base of the current task (Linux: `x86_fsbase_write_task`, and the register).
    pub fn set_fs_base(this: &Current, base: u64) {
        this.fs_base.store(base, Ordering::Relaxed);
        with_percpu(|percpu| fpu::set_fs_base(percpu, base));
    }

    /// Registers of the FPU of the current task, as FXSAVE writes them.
    pub fn saved_fpu(&self) -> [u64; fpu::FXSAVE_WORDS] {
        with_percpu(|percpu| self.fpu.save(percpu));
        self.fpu.words()
    }

    /// `si_code` of a floating-point trap: what happened and is not masked (Linux: `fpu__exception_code`).
    fn fpu_code(&self, vector: u64) -> i32 {
        const X87: u64 = 16;
        let words = self.saved_fpu();
        // The control word is the first half, the status word the second; MXCSR has both in word 3.
        let events = if vector == X87 { words[0] >> 16 & !words[0] } else { words[3] & !(words[3] >> 7) };
        match events {
            // FPE_FLTINV, FPE_FLTDIV, FPE_FLTOVF, FPE_FLTUND, FPE_FLTRES
            events if events & 0x01 != 0 => 7,
            events if events & 0x04 != 0 => 3,
            events if events & 0x08 != 0 => 4,
            events if events & 0x12 != 0 => 5,
            events if events & 0x20 != 0 => 6,
            _ => 0,
        }
    }

    /// Gives the current task registers of the FPU that a program made.
    pub fn load_fpu(&self, words: &[u64; fpu::FXSAVE_WORDS]) {
        with_percpu(|percpu| {
            self.fpu.set_words(words);
            self.fpu.restore(percpu);
        });
    }

    /// Gives the current task the FPU of a program that begins.
    pub fn reset_fpu(&self) {
        with_percpu(|percpu| {
            self.fpu.reset();
            self.fpu.restore(percpu);
        });
    }

    /// Sets the GS base of the current task.
    pub fn set_gs_base(this: &Current, base: u64) {
        this.gs_base.store(base, Ordering::Relaxed);
        with_percpu(|percpu| fpu::set_gs_base(percpu, base));
    }

    /// GS base of ring 3.
    pub fn gs_base(&self) -> u64 {
        self.gs_base.load(Ordering::Relaxed)
    }
}

impl Process {
    /// Number of the parent; 0 for the kernel.
    pub fn parent(&self) -> u32 {
        self.parent.load(Ordering::Acquire)
    }

    /// Its process group.
    pub fn pgid(&self) -> u32 {
        self.pgid.load(Ordering::Acquire)
    }

    /// Its session.
    pub fn sid(&self) -> u32 {
        self.sid.load(Ordering::Acquire)
    }

    /// Puts it into a group; T2.
    pub fn set_pgid(&self, pgid: u32) {
        self.pgid.store(pgid, Ordering::Release);
    }

    /// Puts it into a session; T2.
    pub fn set_sid(&self, sid: u32) {
        self.sid.store(sid, Ordering::Release);
    }

    /// Whether all its tasks ended and nobody waited for it.
    pub fn is_zombie(&self) -> bool {
        self.zombie.load(Ordering::Acquire)
    }

    /// A zombie on its way out.
    fn is_unwanted_zombie(&self) -> bool {
        self.is_zombie() && self.unwanted.load(Ordering::Acquire)
    }

    /// Tasks that have not ended.
    pub fn nr_threads(&self) -> u32 {
        self.live.load(Ordering::Acquire)
    }

    /// -1000 to 1000 (Linux: `signal->oom_score_adj`).
    pub fn oom_score_adj(&self) -> i16 {
        self.oom_score_adj.load(Ordering::Relaxed)
    }

    /// Changes what is added to its points.
    pub fn set_oom_score_adj(&self, adj: i16) {
        self.oom_score_adj.store(adj, Ordering::Relaxed);
        with_relations(|_, tasks| {
            for task in tasks.iter().filter(|task| task.process.pid == self.pid) {
                crate::sched::set_oom_score_adj(task.number(), adj);
            }
        });
    }

    /// Whether all its tasks are on their way to the end (Linux: `SIGNAL_GROUP_EXIT`).
    pub fn is_ending(&self) -> bool {
        self.group_exit.load(Ordering::Acquire) != 0
    }

    /// Changes the limits of memory.
    pub fn with_limits<R>(&self, f: impl FnOnce(&mut Limits) -> R) -> R {
        f(&mut self.limits.lock())
    }

    /// Tells wait4 that it stopped by `signal`, or with 0 that it goes on, and wakes its parent (Linux: `do_notify_parent_cldstop`).
    pub fn report_stop(&self, signal: u32) {
        self.stopped.store(signal, Ordering::Release);
        self.job.store(if signal == 0 { wait::CONTINUED } else { signal }, Ordering::Release);
        if let Some(parent) = find_process(self.parent()) {
            parent.children.wake_up_all();
        }
    }
}

/// The task that runs on this CPU. It is the caller's own, so that it stays while it is looked at.
#[derive(Clone, Copy)]
pub struct Current {
    task: NonNull<Task>,
    /// Not for another thread.
    here: PhantomData<*const Task>,
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl Deref for Current {
    type Target = Task;
    fn deref(&self) -> &Task {
        // SAFETY: the thread's slot holds a reference until the thread is off its CPU for ever, and the value stays in the thread.
        unsafe { self.task.as_ref() }
    }
}

/// The user task that runs here; none in a thread of the kernel.
pub fn current() -> Option<Current> {
    let task = percpu::current()?.user.load(Ordering::Relaxed) as *mut Task;
    Some(Current { task: NonNull::new(task)?, here: PhantomData })
}

/// The process that runs here, 0 for none: for those who may not look at tasks.
pub fn current_pid() -> u32 {
    percpu::current().map_or(0, |percpu| percpu.pid.load(Ordering::Relaxed))
}

/// Whether an interruptible wait shall end (Linux: `signal_pending`).
pub fn signal_pending() -> bool {
    current().is_some_and(|task| task.has_work(work::SIGPENDING | work::KILLED))
}

/// Whether the task is being ended (Linux: `fatal_signal_pending`).
pub fn fatal_signal_pending() -> bool {
    current().is_some_and(|task| task.has_work(work::KILLED))
}

/// Calls `f` on this CPU, with interrupts off.
fn with_percpu(f: impl FnOnce(&PerCpu)) {
    let flags = regs::irq_save();
    if let Some(percpu) = percpu::current() {
        f(percpu);
    }
    regs::irq_restore(flags);
}

/// An `Arc`, or `None` without memory.
fn new_arc<T>(value: T) -> Option<Arc<T>> {
    // `Arc::try_new` is not stable: the place of the probe is most likely the place of the object.
    let mut probe = alloc::vec::Vec::<(usize, usize, T)>::new();
    probe.try_reserve_exact(1).ok()?;
    drop(probe);
    Some(Arc::new(value))
}
