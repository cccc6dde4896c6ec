//! All processes and tasks by number (Linux: kernel/pid.c, `tasklist_lock`).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use mm_vma::Errno;

use super::{Process, Task};
use crate::mm::oom;
use crate::sched;
use crate::sync::Lock;

/// First number that is given: 1 and 2 are init's (Linux's 2 is kthreadd).
const FIRST_PID: u32 = 3;
/// One past the last number (Linux: `PID_MAX_DEFAULT`).
pub const PID_MAX: u32 = 32_768;
/// First number when all were given once (Linux: `RESERVED_PIDS`).
const RESERVED_PIDS: u32 = 300;

/// Everybody, ascending by number.
pub(super) struct Registry {
    pub tasks: Vec<Arc<Task>>,
    pub processes: Vec<Arc<Process>>,
    next: u32,
}

pub(super) static REGISTRY: Lock<Registry> =
    Lock::new(Registry { tasks: Vec::new(), processes: Vec::new(), next: FIRST_PID });

/// How many processes there are, for who must not take the lock. Changes with it.
static PROCESSES: AtomicUsize = AtomicUsize::new(0);

impl Registry {
    fn is_used(&self, pid: u32) -> bool {
        self.tasks.binary_search_by_key(&pid, |task| task.tid()).is_ok()
            || self
                .processes
                .iter()
                .any(|process| [process.pid, process.pgid(), process.sid()].contains(&pid))
    }

    pub(super) fn process(&self, pid: u32) -> Option<&Arc<Process>> {
        let at = self.processes.binary_search_by_key(&pid, |process| process.pid).ok()?;
        self.processes.get(at)
    }

    pub(super) fn task(&self, tid: u32) -> Option<&Arc<Task>> {
        let at = self.tasks.binary_search_by_key(&tid, |task| task.tid()).ok()?;
        self.tasks.get(at)
    }

    /// The tasks of a process.
    pub(super) fn tasks_of(&self, pid: u32) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.iter().filter(move |task| task.process.pid == pid)
    }

    /// The children of a process.
    pub(super) fn children_of(&self, pid: u32) -> impl Iterator<Item = &Arc<Process>> {
        self.processes.iter().filter(move |process| process.parent() == pid)
    }
}

/// Numbers given out so far (Linux: `total_forks`).
static FORKS: AtomicU64 = AtomicU64::new(0);

/// Processes and threads made since boot (`processes` in /proc/stat).
pub fn nr_forks() -> u64 {
    FORKS.load(Ordering::Relaxed)
}

/// A number that no thread, process, group or session has.
pub fn alloc_pid() -> u32 {
    loop {
        let (pid, used) = {
            let mut registry = REGISTRY.lock();
            let pid = registry.next;
            registry.next = if pid + 1 < PID_MAX { pid + 1 } else { RESERVED_PIDS };
            (pid, registry.is_used(pid))
        };
        if !used && !sched::is_pid_used(pid) {
            FORKS.fetch_add(1, Ordering::Relaxed);
            return pid;
        }
    }
}

/// Makes a task findable, and its process if it is the first.
pub(super) fn enter(task: &Arc<Task>) -> Result<(), Errno> {
    let mut registry = REGISTRY.lock();
    let Registry { tasks, processes, .. } = &mut *registry;
    tasks.try_reserve(1).map_err(|_| Errno::Enomem)?;
    processes.try_reserve(1).map_err(|_| Errno::Enomem)?;
    let at = tasks.partition_point(|other| other.tid() < task.tid());
    tasks.insert(at, Arc::clone(task));
    task.process.live.fetch_add(1, Ordering::AcqRel);
    task.process.quick_threads.fetch_add(1, Ordering::AcqRel);
    if task.is_leader() {
        let at = processes.partition_point(|other| other.pid < task.process.pid);
        processes.insert(at, Arc::clone(&task.process));
        PROCESSES.store(processes.len(), Ordering::Relaxed);
    }
    Ok(())
}

/// A task is not to be found any more.
pub(super) fn forget_task(tid: u32) -> Option<Arc<Task>> {
    let mut registry = REGISTRY.lock();
    let at = registry.tasks.binary_search_by_key(&tid, |task| task.tid()).ok()?;
    Some(registry.tasks.remove(at))
}

/// A task gets the number of its process, whose first task is not to be found any more; returns that one.
pub(super) fn take_over(task: &Task) -> Option<Arc<Task>> {
    let mut registry = REGISTRY.lock();
    let tasks = &mut registry.tasks;
    let own = tasks.binary_search_by_key(&task.tid(), |other| other.tid()).ok()?;
    let own = tasks.remove(own);
    own.tid.store(own.process.pid, Ordering::Release);
    match tasks.binary_search_by_key(&own.process.pid, |other| other.tid()) {
        Ok(at) => Some(core::mem::replace(&mut tasks[at], own)),
        Err(at) => {
            // One went.
            tasks.insert(at, own);
            None
        }
    }
}

/// A process that somebody waited for is not to be found any more (Linux: `release_task`).
pub(super) fn forget_process(pid: u32) -> Option<Arc<Process>> {
    let mut registry = REGISTRY.lock();
    let at = registry.processes.binary_search_by_key(&pid, |process| process.pid).ok()?;
    let process = registry.processes.remove(at);
    PROCESSES.store(registry.processes.len(), Ordering::Relaxed);
    Some(process)
}

/// The process of that number (Linux: `find_task_by_vpid` for a group leader).
pub fn find_process(pid: u32) -> Option<Arc<Process>> {
    REGISTRY.lock().process(pid).cloned()
}

/// The task of that number.
pub fn find_task(tid: u32) -> Option<Arc<Task>> {
    REGISTRY.lock().task(tid).cloned()
}

/// Calls `f` with the process of the lowest number from `from` on and with its first task that has an address space, which stays an
/// address space until `f` returns, whoever has it by then. `None` if there is no such process (Linux: `for_each_process`,
/// `find_lock_task_mm`).
pub fn with_next_process<R>(from: u32, f: impl FnOnce(&Arc<Process>, Option<&Arc<Task>>) -> R) -> Option<R> {
    let registry = REGISTRY.lock();
    let at = registry.processes.partition_point(|process| process.pid < from);
    let process = registry.processes.get(at)?;
    let leader = registry.task(process.pid).filter(|task| task.mm().is_some());
    let task = leader.or_else(|| registry.tasks_of(process.pid).find(|task| task.mm().is_some()));
    Some(f(process, task))
}

/// Whether there is any process.
pub fn has_processes() -> bool {
    PROCESSES.load(Ordering::Relaxed) != 0
}

/// Calls `f` with all processes and tasks while relations stay as they are, for those who change them (Linux:
/// `write_lock_irq(&tasklist_lock)`).
pub fn with_relations<R>(f: impl FnOnce(&[Arc<Process>], &[Arc<Task>]) -> R) -> R {
    let registry = REGISTRY.lock();
    f(&registry.processes, &registry.tasks)
}

/// The living tasks that `is_meant` chooses.
///
/// # Errors
/// `ENOMEM` for a task that is being ended.
pub fn tasks_where(is_meant: impl Fn(&Task) -> bool) -> Result<Vec<Arc<Task>>, Errno> {
    let meant = |task: &&Arc<Task>| !task.process.is_zombie() && is_meant(task);
    oom::or_wait(|| {
        let mut chosen = Vec::new();
        let registry = REGISTRY.lock();
        chosen.try_reserve_exact(registry.tasks.iter().filter(meant).count()).map_err(|_| Errno::Enomem)?;
        chosen.extend(registry.tasks.iter().filter(meant).cloned());
        Ok(chosen)
    })
}
