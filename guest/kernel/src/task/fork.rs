//! fork, vfork, clone (Linux: kernel/fork.c, `copy_process`, `kernel_clone`).

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicI16, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use bitflags::bitflags;
use mm_page_alloc::TaskPolicy;
use mm_vma::{Errno, Id, Limits, Mm, Space, dup_mmap};

use super::usage::TaskTime;
use super::{Current, Files, Process, SIGCHLD, Task, current, new_arc, registry, with_percpu};
use crate::arch::fpu::FpuState;
use crate::arch::trap::TrapFrame;
use crate::arch::user;
use crate::mm::oom;
use crate::mm::space::{self, Spaces};
use crate::sched::{self, CpuMask, SpawnError, UserThread, WaitQueue};
use crate::signal::{self, Signals, TaskSignals};
use crate::sync::Lock;
use crate::uaccess;

bitflags! {
    /// What a new task shares, and more (Linux: include/uapi/linux/sched.h). The low byte is the signal for the parent.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CloneFlags: u64 {
        /// The address space.
        const VM = 0x100;
        /// Root and working directory.
        const FS = 0x200;
        /// Descriptors.
        const FILES = 0x400;
        /// Handlers of signals.
        const SIGHAND = 0x800;
        /// A descriptor for the child: not there.
        const PIDFD = 0x1000;
        /// The tracer goes on with the child; nobody traces.
        const PTRACE = 0x2000;
        /// The parent waits until the child gives the address space back.
        const VFORK = 0x4000;
        /// The child has the caller's parent.
        const PARENT = 0x8000;
        /// The same thread group.
        const THREAD = 0x1_0000;
        /// A mount namespace of its own: not there.
        const NEWNS = 0x2_0000;
        /// Undo lists of System V semaphores.
        const SYSVSEM = 0x4_0000;
        /// A thread pointer.
        const SETTLS = 0x8_0000;
        /// The parent stores the tid.
        const PARENT_SETTID = 0x10_0000;
        /// At its end a 0 is stored and a futex woken.
        const CHILD_CLEARTID = 0x20_0000;
        /// Without meaning.
        const DETACHED = 0x40_0000;
        /// No tracer may force itself on the child.
        const UNTRACED = 0x80_0000;
        /// The child stores its tid.
        const CHILD_SETTID = 0x100_0000;
        /// Namespaces of their own: not there.
        const NEW = 0x7e00_0080;
        /// An I/O context; there are none.
        const IO = 0x8000_0000;
    }
}

/// What clone is asked for.
#[derive(Clone, Copy, Debug)]
pub struct CloneArgs {
    /// Flags, without the signal.
    pub flags: CloneFlags,
    /// Signal for the parent at the child's end.
    pub exit_signal: u32,
    /// The child's stack pointer; 0 for the parent's.
    pub stack: u64,
    /// Where the parent stores the tid.
    pub parent_tid: u64,
    /// Where the child stores it, or where it is cleared.
    pub child_tid: u64,
    /// FS base.
    pub tls: u64,
}

impl CloneArgs {
    /// Linux: the checks at the begin of `copy_process`.
    fn check(&self, process: &Process) -> Result<(), Errno> {
        let flags = self.flags;
        let wrong = flags.intersects(CloneFlags::PIDFD | CloneFlags::NEWNS | CloneFlags::NEW)
            || flags.contains(CloneFlags::THREAD) && !flags.contains(CloneFlags::SIGHAND)
            || flags.contains(CloneFlags::SIGHAND) && !flags.contains(CloneFlags::VM)
            // Differs from Linux: handlers are shared by the tasks of a process and by nobody else.
            || flags.contains(CloneFlags::SIGHAND) && !flags.contains(CloneFlags::THREAD)
            || flags.contains(CloneFlags::PARENT) && process.pid == 1
            || flags.contains(CloneFlags::SETTLS) && !space::is_user_address(self.tls);
        if wrong { Err(Errno::Einval) } else { Ok(()) }
    }
}

/// Makes a task that goes on from `frame` as the caller does, with 0 as the result; returns its number.
///
/// # Errors
/// `EINVAL`, `EAGAIN` when there are too many tasks, `ENOMEM`.
pub fn clone(frame: &TrapFrame, args: &CloneArgs) -> Result<u32, Errno> {
    let parent = current().ok_or(Errno::Einval)?;
    args.check(&parent.process)?;
    let child = copy_task(&parent, args)?;
    let mut registers = *frame;
    registers.rax = 0;
    if args.stack != 0 {
        registers.rsp = args.stack;
    }
    let (name, allowed) = (sched::comm(parent.number()), sched::allowed(parent.number()));
    if let Err(error) = begin(&child, &registers, schedule_tail, name, allowed) {
        child.process.signals.forget_task(child.tid());
        undo(&child);
        return Err(error);
    }
    let tid = child.tid();
    if args.flags.contains(CloneFlags::VFORK) {
        // If the parent is ended meanwhile the child has the address space all the same.
        child.vfork_done.wait_killable(&sched::task_context(), || !child.vfork.load(Ordering::Acquire));
    }
    Ok(tid)
}

/// Makes a task known and lets it run, from `entry` on, which goes to ring 3 with a copy of `frame`.
pub(super) fn begin(
    child: &Arc<Task>,
    frame: &TrapFrame,
    entry: fn(u64),
    name: [u8; 16],
    allowed: CpuMask,
) -> Result<(), Errno> {
    oom::or_wait(|| registry::enter(child))?;
    let thread = UserThread { task: Arc::clone(child), name, frame, allowed };
    let ready = |number| {
        child.number.store(number, Ordering::Release);
        if child.is_leader() {
            child.process.leader.store(number, Ordering::Release);
        }
        // The parent may have ended since the thread was made.
        registry::with_relations(|_, _| sched::set_ppid(number, child.process.parent()));
    };
    let begun = sched::spawn_user(thread, entry, ready, &sched::task_context());
    if begun.is_err() {
        registry::forget_task(child.tid());
        child.process.live.fetch_sub(1, Ordering::AcqRel);
        child.process.quick_threads.fetch_sub(1, Ordering::AcqRel);
        if child.is_leader() {
            registry::forget_process(child.tid());
        }
    }
    // Linux: `alloc_thread_stack_node` in `dup_task_struct`, `max_threads` in `copy_process`.
    begun.map_err(|error| match error {
        SpawnError::NoMemory => Errno::Enomem,
        SpawnError::NoRoom => Errno::Eagain,
    })
}

/// A new task that nobody knows yet.
fn copy_task(parent: &Current, args: &CloneArgs) -> Result<Arc<Task>, Errno> {
    if !sched::has_room() {
        return Err(Errno::Eagain);
    }
    let flags = args.flags;
    let tid = registry::alloc_pid();
    let process = if flags.contains(CloneFlags::THREAD) {
        Arc::clone(&parent.process)
    } else {
        copy_process(parent, tid, args)?
    };
    let fpu = FpuState::new().ok_or(Errno::Enomem)?;
    with_percpu(|percpu| parent.fpu.save(percpu));
    fpu.copy_from(&parent.fpu);
    let files = parent.files.fork(flags)?;
    let mm = copy_mm(parent, flags)?;
    if !flags.contains(CloneFlags::VM) {
        space::set_owner(mm, process.pid);
    }
    let task = new_task(parent, args, (tid, process, fpu, files, mm));
    let task = task.ok_or(Errno::Enomem).inspect_err(|_| space::mm_put(mm))?;
    if flags.contains(CloneFlags::THREAD) {
        task.process.signals.add_task(parent.tid(), tid).inspect_err(|_| undo(&task))?;
    }
    if flags.contains(CloneFlags::PARENT_SETTID) && args.parent_tid != 0 {
        // What cannot be stored is not stored (Linux: `put_user` without a look at its result).
        let _ = uaccess::put_user(args.parent_tid, tid);
    }
    Ok(task)
}

/// The task itself, of what was copied for it. In a frame of its own, as it lies on the stack first: kernel stacks have 16 KiB, and what
/// copies address spaces may have to reclaim pages.
#[inline(never)]
fn new_task(
    parent: &Current,
    args: &CloneArgs,
    (tid, process, fpu, files, mm): (u32, Arc<Process>, FpuState, Files, Id<Mm>),
) -> Option<Arc<Task>> {
    let flags = args.flags;
    let wanted = |flag: CloneFlags, value: u64| if flags.contains(flag) { value } else { 0 };
    // Not in the expression below, whose end would give the lock back: what allocates there could not wait.
    let mempolicy = *parent.mempolicy.lock();
    new_arc(Task {
        tid: tid.into(),
        process,
        number: AtomicUsize::new(0),
        mm: AtomicU64::new(mm.as_u64()),
        work: AtomicU32::new(0),
        fs_base: AtomicU64::new(if flags.contains(CloneFlags::SETTLS) { args.tls } else { parent.fs_base() }),
        gs_base: AtomicU64::new(parent.gs_base()),
        fpu,
        clear_child_tid: AtomicU64::new(wanted(CloneFlags::CHILD_CLEARTID, args.child_tid)),
        set_child_tid: AtomicU64::new(wanted(CloneFlags::CHILD_SETTID, args.child_tid)),
        robust_list: AtomicU64::new(0),
        mempolicy: Lock::new(mempolicy),
        fail_nth: AtomicU32::new(0),
        vfork: AtomicBool::new(flags.contains(CloneFlags::VFORK)),
        vfork_done: WaitQueue::new(),
        dead: AtomicBool::new(false),
        files,
        signals: TaskSignals::default(),
        time: TaskTime::default(),
    })
}

/// In a frame of its own, as [`new_task`].
#[inline(never)]
fn copy_process(parent: &Current, pid: u32, args: &CloneArgs) -> Result<Arc<Process>, Errno> {
    let of = &parent.process;
    let parent_pid = if args.flags.contains(CloneFlags::PARENT) { of.parent() } else { of.pid };
    let exit_signal = if args.flags.contains(CloneFlags::PARENT) {
        of.exit_signal.load(Ordering::Relaxed)
    } else {
        args.exit_signal
    };
    let signals = of.signals.fork(parent.tid(), pid, args.flags)?;
    let process = Process { signals, ..Process::new(pid, *of.limits.lock()) };
    process.parent.store(parent_pid, Ordering::Release);
    process.exit_signal.store(exit_signal, Ordering::Relaxed);
    process.set_pgid(of.pgid());
    process.set_sid(of.sid());
    process.oom_score_adj.store(of.oom_score_adj(), Ordering::Relaxed);
    new_arc(process).ok_or(Errno::Enomem)
}

/// The parent's address space or a copy (Linux: `copy_mm`).
#[inline(never)]
fn copy_mm(parent: &Current, flags: CloneFlags) -> Result<Id<Mm>, Errno> {
    let mm = parent.mm().ok_or(Errno::Einval)?;
    if flags.contains(CloneFlags::VM) {
        space::mm_get(mm);
        return Ok(mm);
    }
    let limits = parent.limits();
    let copy = space::mm_alloc(space::shape_of(mm))?;
    space::set_start_stack(space::mm_of(copy), space::start_stack(space::mm_of(mm)));
    let copied = {
        let from = Space::lock(&Spaces, mm, limits);
        // Nobody else knows it.
        let to = Space::lock(&Spaces, copy, limits);
        dup_mmap(&from, &to)
    };
    copied.map(|()| copy).inspect_err(|_| space::mm_put(copy))
}

/// Takes a new task apart that never ran.
fn undo(child: &Task) {
    child.files.exit(child);
    if let Some(mm) = Id::new(child.mm.swap(0, Ordering::AcqRel)) {
        space::mm_put(mm);
    }
}

/// Where every user task begins, with the address of its frame (Linux: `ret_from_fork`, `schedule_tail`).
fn schedule_tail(frame: u64) {
    let Some(task) = current() else { return };
    signal::task_begins(&task);
    let tid_address = task.set_child_tid.load(Ordering::Relaxed);
    if tid_address != 0 {
        let _ = uaccess::put_user(tid_address, task.tid());
    }
    user::enter_at(frame, super::exit_to_user)
}

impl Process {
    /// A process without tasks, of nobody.
    pub(super) fn new(pid: u32, limits: Limits) -> Process {
        Process {
            pid,
            parent: AtomicU32::new(0),
            pgid: AtomicU32::new(pid),
            sid: AtomicU32::new(pid),
            live: AtomicU32::new(0),
            quick_threads: AtomicU32::new(0),
            group_exit: AtomicU64::new(0),
            status: AtomicU32::new(0),
            zombie: AtomicBool::new(false),
            unwanted: AtomicBool::new(false),
            told: AtomicBool::new(false),
            released: AtomicBool::new(false),
            leader: AtomicUsize::new(0),
            exit_signal: AtomicU32::new(SIGCHLD),
            has_execed: AtomicBool::new(false),
            is_subreaper: AtomicBool::new(false),
            stopped: AtomicU32::new(0),
            job: AtomicU32::new(0),
            limits: Lock::new(limits),
            children: WaitQueue::new(),
            ended: WaitQueue::new(),
            paused: AtomicBool::new(false),
            oom_score_adj: AtomicI16::new(0),
            child_faults: [const { AtomicU64::new(0) }; 2],
            faults: [const { AtomicU64::new(0) }; 2],
            dead_cycles: AtomicU64::new(0),
            child_cycles: AtomicU64::new(0),
            signals: Signals::default(),
        }
    }
}

/// The first task of a process that the kernel itself starts, without an address space, and registers that lead nowhere: `entry` is
/// called on its thread.
pub(super) fn kernel_task(pid: u32) -> Option<Arc<Task>> {
    let process = new_arc(Process::new(pid, Limits::default()))?;
    // Nobody but the first process is spared what it does not handle.
    process.signals.begin(pid, pid == 1).ok()?;
    new_arc(Task {
        tid: pid.into(),
        process,
        number: AtomicUsize::new(0),
        mm: AtomicU64::new(0),
        work: AtomicU32::new(0),
        fs_base: AtomicU64::new(0),
        gs_base: AtomicU64::new(0),
        fpu: FpuState::new()?,
        clear_child_tid: AtomicU64::new(0),
        set_child_tid: AtomicU64::new(0),
        robust_list: AtomicU64::new(0),
        mempolicy: Lock::new(TaskPolicy::default()),
        fail_nth: AtomicU32::new(0),
        vfork: AtomicBool::new(false),
        vfork_done: WaitQueue::new(),
        dead: AtomicBool::new(false),
        files: Files::default(),
        signals: TaskSignals::default(),
        time: TaskTime::default(),
    })
}
