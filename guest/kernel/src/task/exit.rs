//! The end of tasks and processes (Linux: kernel/exit.c).

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use mm_vma::{Errno, Id, Mm};

use super::registry::REGISTRY;
use super::{Current, GROUP_EXIT, Process, Task, current, find_process, hooks, registry};
use crate::arch::{fpu, regs};
use crate::mm::space::{self, tlb};
use crate::{futex, sched, signal, uaccess};

/// Number of the process that adopts orphans.
const INIT: u32 = 1;

/// Ends the process with a status as wait4 gives it: all its tasks end (Linux: `do_group_exit`).
pub fn do_group_exit(status: u32) -> ! {
    if let Some(task) = current() {
        signal::group_exit(&task, status);
    }
    do_exit(status)
}

/// Ends the other tasks of the process and waits until they have, because the current one begins another program (Linux:
/// `de_thread`).
///
/// # Errors
/// `EAGAIN` if the process ends, or another task was first.
pub fn end_others(task: &Current) -> Result<(), Errno> {
    let process = &task.process;
    signal::begin_exec(task)?;
    let alone = || process.live.load(Ordering::Acquire) == 1;
    process.ended.wait_killable(&sched::task_context(), alone);
    if alone() { Ok(()) } else { Err(Errno::Eagain) }
}

/// Ends the current task. `status`, as wait4 gives it, is the process's if it is the last task that begins to end and nobody said otherwise
/// (Linux: `do_exit`).
pub fn do_exit(status: u32) -> ! {
    if let Some(task) = current() {
        // Before others can see that it ends.
        if task.process.quick_threads.fetch_sub(1, Ordering::AcqRel) == 1 {
            signal::last_task_ends(&task.process, status);
        }
        if task.mm().is_some() {
            futex::exit_robust_list(&task);
        }
        exit_mm(&task);
        task.files.exit(&task);
        exit_notify(&task);
    }
    sched::exit_user()
}

/// Gives the address space back (Linux: `mm_release`, `exit_mm`).
fn exit_mm(task: &Current) {
    let clear = task.clear_child_tid.swap(0, Ordering::AcqRel);
    if clear != 0 {
        // A bad address is the program's mistake and nobody else's.
        let _ = uaccess::put_user(clear, 0);
        hooks::futex_wake(clear);
    }
    release_mm(task);
}

/// Gives the task's address space back and lets a parent in vfork go on. The CPU uses the kernel's tables afterwards.
pub(super) fn release_mm(task: &Task) {
    let Some(mm) = Id::new(task.mm.load(Ordering::Acquire)) else { return };
    let of = space::mm_of(mm);
    let [minor, major] = &task.process.faults;
    if space::is_last_user(mm) {
        minor.fetch_add(of.min_flt(), Ordering::Relaxed);
        major.fetch_add(of.maj_flt(), Ordering::Relaxed);
    }
    let flags = regs::irq_save();
    task.mm.store(0, Ordering::Release);
    sched::set_mm(task.number(), 0);
    tlb::leave_mm();
    regs::irq_restore(flags);
    space::mm_put(mm);
    complete_vfork(task);
}

impl Process {
    /// Decides how the process ends, as wait4 gives it, if that is not decided.
    pub fn decide_exit(&self, status: u32) {
        let wanted = GROUP_EXIT | u64::from(status);
        // Whoever was first decided.
        let _ = self.group_exit.compare_exchange(0, wanted, Ordering::AcqRel, Ordering::Acquire);
    }
}

impl Task {
    /// Gives the current task another address space for the one it has, if it has one (Linux: `exec_mmap`). The registers of ring 3 are
    /// those of a program that begins.
    pub fn exec_mm(&self, mm: Id<Mm>) {
        release_mm(self);
        super::with_percpu(|percpu| {
            self.mm.store(mm.as_u64(), Ordering::Release);
            sched::set_mm(self.number(), mm.as_u64());
            space::set_owner(mm, self.process.pid);
            tlb::switch_mm(percpu, mm);
            self.fpu.reset();
            self.fpu.restore(percpu);
            self.fs_base.store(0, Ordering::Relaxed);
            self.gs_base.store(0, Ordering::Relaxed);
            fpu::set_fs_base(percpu, 0);
            fpu::set_gs_base(percpu, 0);
        });
        self.clear_child_tid.store(0, Ordering::Relaxed);
        self.robust_list.store(0, Ordering::Relaxed);
        self.process.signals.exec(self.tid(), self.process.pid);
        if !self.is_leader() {
            self.lead();
        }
        self.process.has_execed.store(true, Ordering::Relaxed);
    }
}

impl Task {
    /// The current task, the last one of its process, becomes its first: it takes over the number and the place of that one, which ended,
    /// and whose thread goes (Linux: the second half of `de_thread`).
    fn lead(&self) {
        let process = &self.process;
        let number = process.leader.load(Ordering::Acquire);
        sched::wait_off_cpu(number, &sched::task_context());
        let before = registry::take_over(self);
        process.leader.store(self.number(), Ordering::Release);
        sched::set_pid(self.number(), process.pid);
        sched::release(number);
        drop(before);
    }
}

/// Linux: `complete_vfork_done`.
pub(super) fn complete_vfork(task: &Task) {
    if task.vfork.swap(false, Ordering::AcqRel) {
        task.vfork_done.wake_up_all();
    }
}

/// Tells everybody who must know (Linux: `exit_notify`).
fn exit_notify(task: &Current) {
    let process = Arc::clone(&task.process);
    signal::task_ends(task);
    if !task.is_leader() {
        drop(registry::forget_task(task.tid()));
    }
    process.add_dead(task);
    task.dead.store(true, Ordering::Release);
    if process.live.fetch_sub(1, Ordering::AcqRel) != 1 {
        // Who begins a new program waits for that.
        process.ended.wake_up_all();
        return;
    }
    #[expect(clippy::cast_possible_truncation, reason = "the low half is the status")]
    let status = process.group_exit.load(Ordering::Acquire) as u32;
    // Asked before anybody can find the zombie: one that nobody waits for is never found.
    let end = find_process(process.parent()).map(|parent| signal::end_of_child(&parent, &process));
    process.unwanted.store(end.is_some_and(|end| end.reap), Ordering::Release);
    let parent = {
        let registry = REGISTRY.lock();
        let heir = heir(&registry, &process);
        for child in registry.children_of(process.pid) {
            child.parent.store(heir, Ordering::Release);
            // One that has no thread yet says it itself (`fork::begin`).
            registry.tasks_of(child.pid).for_each(|task| sched::set_ppid(task.number(), heir));
            // Linux: `reparent_leader`.
            child.exit_signal.store(super::SIGCHLD, Ordering::Relaxed);
        }
        process.status.store(status, Ordering::Release);
        process.zombie.store(true, Ordering::Release);
        if let Some(heir) = registry.process(heir) {
            heir.children.wake_up_all();
        }
        registry.process(process.parent()).cloned()
    };
    if let Some(parent) = parent {
        if let Some(end) = end {
            signal::child_ended(&parent, &process, status, end);
        }
        if process.unwanted.load(Ordering::Acquire) {
            super::wait::release(&process);
        }
        process.told.store(true, Ordering::Release);
        parent.children.wake_up_all();
    }
    process.told.store(true, Ordering::Release);
    process.ended.wake_up_all();
}

/// Who adopts the children of a process: the nearest ancestor that wants to, else init, else the kernel (Linux: `find_new_reaper`).
fn heir(registry: &registry::Registry, process: &Process) -> u32 {
    let mut pid = process.parent();
    while let Some(ancestor) = registry.process(pid) {
        if ancestor.is_subreaper.load(Ordering::Relaxed) && !ancestor.is_zombie() {
            return pid;
        }
        pid = ancestor.parent();
    }
    match registry.process(INIT) {
        Some(init) if init.pid != process.pid && !init.is_zombie() => INIT,
        _ => 0,
    }
}
