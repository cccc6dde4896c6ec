//! What tasks and processes used (Linux: kernel/sys.c, `getrusage`; kernel/sched/cputime.c).
//!
//! CPU time is counted in cycles of the time-stamp counter from one switch to the next.
//!
//! Differs from Linux: time in the kernel is not told apart from time in the program.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_process::time::Usage;
use mm_vma::RssKind;

use super::registry::REGISTRY;
use super::{Process, Task};
use crate::arch::regs;
use crate::mm::space;
use crate::sched::clock;

/// Cycles of a task.
#[derive(Debug, Default)]
pub struct TaskTime {
    /// Until it last left its CPU.
    cycles: AtomicU64,
    /// Counter when it came to the CPU; 0 while it is on none.
    since: AtomicU64,
}

impl TaskTime {
    /// The task comes to a CPU.
    pub(super) fn begin(&self) {
        self.since.store(regs::rdtsc().max(1), Ordering::Relaxed);
    }

    /// The task leaves its CPU.
    pub(super) fn end(&self) {
        let since = self.since.swap(0, Ordering::Relaxed);
        if since != 0 {
            self.cycles.fetch_add(regs::rdtsc().saturating_sub(since), Ordering::Relaxed);
        }
    }

    /// All cycles.
    pub(super) fn cycles(&self) -> u64 {
        let running = match self.since.load(Ordering::Relaxed) {
            0 => 0,
            since => regs::rdtsc().saturating_sub(since),
        };
        self.cycles.load(Ordering::Relaxed) + running
    }
}

impl Task {
    /// CPU time, nanoseconds.
    pub fn cpu_time(&self) -> u64 {
        clock::ns_of(self.time.cycles())
    }

    /// What it used; faults are its address space's.
    pub fn usage(&self) -> Usage {
        Usage { user_ns: self.cpu_time(), ..self.process.usage() }
    }
}

impl Process {
    fn cycles(&self) -> u64 {
        let live: u64 = REGISTRY
            .lock()
            .tasks_of(self.pid)
            .filter(|task| !task.dead.load(Ordering::Relaxed))
            .map(|task| task.time.cycles())
            .sum();
        live + self.dead_cycles.load(Ordering::Relaxed)
    }

    /// CPU time of all its tasks, nanoseconds.
    pub fn cpu_time(&self) -> u64 {
        clock::ns_of(self.cycles())
    }

    /// What it used, without its children.
    pub fn usage(&self) -> Usage {
        let [mut minor, mut major] = [0, 1]
            .map(|kind: usize| self.faults.get(kind).map_or(0, |faults| faults.load(Ordering::Relaxed)));
        let mm = REGISTRY.lock().tasks_of(self.pid).find_map(|task| task.mm()).map(space::mm_of);
        let mut rss = 0;
        if let Some(mm) = mm {
            (minor, major) = (minor + mm.min_flt(), major + mm.maj_flt());
            rss = mm.rss(RssKind::Anon) + mm.rss(RssKind::File);
        }
        Usage {
            user_ns: self.cpu_time(),
            max_rss_kib: rss * 4,
            minor_faults: minor,
            major_faults: major,
            ..Usage::default()
        }
    }

    /// What its children used that were waited for, theirs included.
    pub fn child_usage(&self) -> Usage {
        let [minor, major] = self.child_faults.each_ref().map(|faults| faults.load(Ordering::Relaxed));
        Usage {
            user_ns: clock::ns_of(self.child_cycles.load(Ordering::Relaxed)),
            minor_faults: minor,
            major_faults: major,
            ..Usage::default()
        }
    }

    /// A task of it ended.
    pub(super) fn add_dead(&self, task: &Task) {
        self.dead_cycles.fetch_add(task.time.cycles(), Ordering::Relaxed);
    }

    /// It waited for a child.
    pub(super) fn add_child(&self, child: &Process) {
        let cycles = child.dead_cycles.load(Ordering::Relaxed) + child.child_cycles.load(Ordering::Relaxed);
        self.child_cycles.fetch_add(cycles, Ordering::Relaxed);
    }
}
