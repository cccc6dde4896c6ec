//! Threads of the kernel and of processes (Linux: kernel/sched/core.c and kernel/kthread.c, as far as a memory manager needs them).
//!
//! In ring 0 a thread runs until it waits, yields or ends; nobody takes the CPU from it. In ring 3 its slice ends with the tick
//! (`clock.rs`), and it gives up the CPU on its way back if another goes first (Linux: PREEMPT_NONE). Each CPU has a queue of ready
//! threads (`runqueue.rs`) and takes who goes first in it (`order.rs`); a CPU that finds it empty looks into those of others. A thread with
//! a user task (`crate::task`) takes its address space and its registers of ring 3 along. The idle task of a CPU runs on the stack of its
//! per-CPU area; the boot CPU's also runs boot and tests, and where those wait, it runs threads meanwhile.
//!
//! Each task's slot has a lock (Linux: `pi_lock` and `on_cpu`). That of the task that gives up its CPU is held across the switch of
//! stacks and opened on the new one: whoever takes a task out of a queue and then its lock finds its registers saved.
//!
//! Lock order: the slot of the task that gives up its CPU, the slot of a task that nobody else can run, a queue.

pub mod account;
pub mod clock;
mod mask;
mod order;
mod runqueue;
mod stacks;
mod thread;
pub mod timer;
mod wait;

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use guest_firmware::acpi::MAX_CPUS;
use guest_process::idle::{Machine, may_halt, wakes};
use guest_process::queue::Key;
use memvisor_abi::{CpuTlb, TaskInfo, TaskState};
use mm_core::MaySleep;
use mm_vmalloc::LocalStack;

use account::Runs;
use order::Turn;
use runqueue::Kind;

use crate::arch::percpu::{self, PerCpu};
use crate::arch::{regs, stack, trap};
use crate::mm::{kmap, space};
use crate::sync::Lock;
use crate::{smp, task, trace};

pub use clock::{sleep_until, tick};
pub use mask::{CPU_WORDS, CpuMask};
pub use order::{priority, set_priority};
pub use runqueue::claim;
pub use stacks::stack_guard;
pub use thread::{
    SpawnError, Thread, UserThread, exit_user, has_room, is_pid_used, max_threads, release, set_max_threads,
    spawn, spawn_daemon, spawn_on, spawn_user, wait_off_cpu,
};
pub use wait::{WaitQueue, Woken, wait_any};

/// Threads that exist at once, dead ones that nobody joined included.
pub const MAX_THREADS: usize = 1024;
/// Tasks: the idle tasks by CPU, then threads.
pub const MAX_TASKS: usize = MAX_CPUS + MAX_THREADS;
const ANY_CPU: u32 = u32::MAX;
/// Looks at the queue before an idle task that waits looks at its condition again.
const REST_SPINS: u32 = 32;
/// No task. Number 0 is an idle task, which nobody means.
const NOBODY: usize = 0;

/// A task; what is published comes first. All zero for none.
#[repr(C)]
struct Slot {
    info: TaskInfo,
    entry: Option<fn(u64)>,
    argument: u64,
    /// The task decided to sleep, and nobody has woken it since.
    sleeps: bool,
    /// Serves the kernel for ever.
    daemon: bool,
    /// Nobody joins it: whoever comes by gives its stack back.
    detached: bool,
    /// What it runs in ring 3.
    user: Option<Arc<task::Task>>,
    /// CPUs that it may run on.
    allowed: CpuMask,
    /// When its turn is.
    turn: Turn,
    /// When it was made, nanoseconds since boot.
    start: u64,
    /// Switches away from it while it waited, and while it could have gone on (Linux: `nvcsw`, `nivcsw`).
    switched: [u64; 2],
}

const UNUSED: TaskInfo = TaskInfo {
    pid: 0,
    state: TaskState::Unused as u32,
    cpu: 0,
    idle: 0,
    stack: 0,
    stack_len: 0,
    rsp: 0,
    switches: 0,
    kmap_depth: 0,
    pinned: 0,
    name: [0; 16],
    mm: 0,
    tgid: 0,
    ppid: 0,
    rests: 0,
    oom_score_adj: 0,
};
const NO_INFO: TaskInfo = TaskInfo { pinned: ANY_CPU, ..UNUSED };

static SLOTS: [Lock<Slot>; MAX_TASKS] = [const {
    Lock::new(Slot {
        info: UNUSED,
        entry: None,
        argument: 0,
        sleeps: false,
        daemon: false,
        detached: false,
        user: None,
        allowed: CpuMask::NONE,
        turn: Turn::NEW,
        start: 0,
        switched: [0; 2],
    })
}; MAX_TASKS];

/// The kmap_local mappings of every task; only the task itself uses its own.
static LOCAL_MAPS: [Lock<LocalStack>; MAX_TASKS] = [const { Lock::new(LocalStack::new()) }; MAX_TASKS];

/// The published table: address and stride.
pub fn table() -> (*const TaskInfo, usize) {
    (SLOTS[0].as_ptr().cast::<TaskInfo>(), size_of::<Lock<Slot>>())
}

/// Gives every CPU its idle task. The one that runs this is the boot CPU's.
pub fn init(cpus: u32) {
    clock::init();
    for cpu in 0..cpus {
        let (base, len) = stacks::kernel_stack(cpu);
        let mut task = SLOTS[cpu as usize].lock();
        task.info = TaskInfo {
            state: TaskState::Running as u32,
            cpu,
            idle: 1,
            stack: base,
            stack_len: len,
            pinned: cpu,
            name: name_of("swapper/", cpu),
            ..NO_INFO
        };
    }
}

/// A name with a number behind it.
pub fn name_of(prefix: &str, number: u32) -> [u8; 16] {
    let mut name = [0; 16];
    let mut digits = [0; 10];
    let (mut len, mut rest) = (0, number);
    loop {
        // A digit fits.
        digits[len] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        (len, rest) = (len + 1, rest / 10);
        if rest == 0 {
            break;
        }
    }
    let text = prefix.bytes().chain(digits[..len].iter().rev().copied());
    for (to, from) in name.iter_mut().zip(text.take(15)) {
        *to = from;
    }
    name
}

/// The bytes of a name before its end.
pub fn text(name: &[u8; 16]) -> &str {
    let len = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    core::str::from_utf8(&name[..len]).unwrap_or("?")
}

/// Proof that this is task context (Linux: `might_sleep`), or `None`: in an interrupt, with interrupts off, inside
/// kmap_atomic.
pub fn might_sleep() -> Option<MaySleep<'static>> {
    let percpu = percpu::current()?;
    let atomic = percpu.hardirq.load(Ordering::Relaxed) != 0 || percpu.preempt.load(Ordering::Relaxed) != 0;
    (!atomic && regs::irqs_enabled()).then(MaySleep::checked_by_scheduler)
}

/// [`might_sleep`] for code that must be in task context; ends the kernel with Linux's words otherwise.
#[track_caller]
pub fn task_context() -> MaySleep<'static> {
    might_sleep().unwrap_or_else(|| {
        panic!("BUG: sleeping function called from invalid context at {}", core::panic::Location::caller())
    })
}

/// Number of the task that runs here; 0 before there are per-CPU areas.
pub fn current() -> usize {
    percpu::current().map_or(0, |percpu| percpu.current.load(Ordering::Relaxed) as usize)
}

/// Runs `f` with the kmap_local mappings of the current task, which stays on its CPU meanwhile. Afterwards the task is
/// bound to the CPU as long as it holds any (Linux: `migrate_disable`).
pub fn with_local_maps<R>(f: impl FnOnce(&PerCpu, &mut LocalStack) -> R) -> R {
    let flags = regs::irq_save();
    let percpu = percpu::current().expect("kmap_local works once per-CPU areas exist");
    let number = percpu.current.load(Ordering::Relaxed) as usize;
    let mut maps = LOCAL_MAPS[number].lock();
    let result = f(percpu, &mut maps);
    let depth = u32::try_from(maps.depth()).unwrap_or(0);
    drop(maps);
    SLOTS[number].lock().info.kmap_depth = depth;
    regs::irq_restore(flags);
    result
}

/// Threads that are neither dead nor waiting to be joined nor daemons, and the boot CPU's own course: who could still do something.
pub fn nr_live() -> u32 {
    let live = |slot: &&Lock<Slot>| {
        let slot = slot.lock();
        let state = slot.info.state;
        !slot.daemon && state != TaskState::Unused as u32 && state != TaskState::Dead as u32
    };
    let threads = SLOTS[MAX_CPUS..].iter().filter(live).count();
    1 + u32::try_from(threads).unwrap_or(0)
}

/// Lets other threads run in the middle of something (Linux: `cond_resched`).
pub fn yield_now(_context: &MaySleep<'_>) {
    schedule(Reason::Yields);
}

/// Lets other threads run where nothing is half done (Linux: `sched_yield`).
pub fn yield_at_rest(_context: &MaySleep<'_>) {
    schedule(Reason::Rests);
}

/// Why a task lets others run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// It waits, ends or yields where nothing is half done: whoever is next runs.
    Rests,
    /// It lets others run in the middle of something, which readers from outside must not take for whole.
    Yields,
    /// Its slice is over, or somebody woke who may go before it: it goes on if it is first.
    Preempted,
}

impl Slot {
    /// CPUs that [`Slot::may_run_on`] says yes to.
    fn where_it_may_run(&self) -> CpuMask {
        let one = match self.info {
            TaskInfo { kmap_depth: 1.., cpu, .. } => cpu,
            TaskInfo { pinned: ANY_CPU, .. } => return self.allowed,
            TaskInfo { pinned, .. } => pinned,
        };
        let mut mask = CpuMask::NONE;
        mask.add(one);
        mask.and(&self.allowed)
    }

    fn may_run_on(&self, cpu: u32) -> bool {
        let held = self.info.kmap_depth > 0 && self.info.cpu != cpu;
        (self.info.pinned == ANY_CPU || self.info.pinned == cpu) && self.allowed.contains(cpu) && !held
    }
}

/// Gives the CPU to the next thread (Linux: `__schedule`). An idle task that finds none comes back at once; a thread that
/// finds none gives the CPU to the idle task. Comes back when it is this task's turn again, maybe on another CPU.
fn schedule(reason: Reason) {
    let percpu = percpu::current().expect("scheduling begins after boot");
    let me = percpu.current.load(Ordering::Relaxed) as usize;
    assert!(
        percpu.preempt.load(Ordering::Relaxed) == 0 && percpu.hardirq.load(Ordering::Relaxed) == 0,
        "BUG: scheduling while atomic: task {me}"
    );
    let mut old = SLOTS[me].lock();
    let cpu = percpu.cpu.load(Ordering::Relaxed);
    percpu.need_resched.store(0, Ordering::Relaxed);
    let now = regs::rdtsc();
    let idle = old.info.idle == 1;
    old.info.rests = u32::from(reason != Reason::Yields);
    let ready = !idle && !old.sleeps && old.info.state == TaskState::Running as u32;
    let may_stay = ready && old.may_run_on(cpu);
    if !idle {
        old.turn.ran_until(now);
    }
    if ready {
        old.turn.is_over(reason);
    }
    let keeps = (may_stay && reason == Reason::Preempted).then(|| old.turn.place().key(0));
    let next = match take_next(cpu, keeps) {
        Some(next) => next,
        None if idle || may_stay => {
            if !idle {
                runqueue::runs(cpu, Some(old.turn.place().key(0)), old.turn.virtual_time());
            }
            drop(old);
            if percpu.user.load(Ordering::Relaxed) != 0 {
                clock::runs_user(percpu);
            }
            return;
        }
        None => cpu as usize,
    };
    old.switched[usize::from(ready)] += 1;
    if ready || idle {
        old.info.state = TaskState::Runnable as u32;
    } else if old.sleeps {
        old.info.state = TaskState::Sleeping as u32;
    }
    if ready {
        // Who takes it waits for its lock until its registers are saved.
        runqueue::place(me, &mut old, cpu, if may_stay { Kind::Stays } else { Kind::Moved });
    }
    let load = {
        let mut new = SLOTS[next].lock();
        new.turn.runs_from(now);
        new.info.state = TaskState::Running as u32;
        new.info.cpu = cpu;
        new.info.switches += 1;
        let load = core::mem::replace(&mut new.info.rsp, 0);
        let is_idle = new.info.idle == 1;
        account::switch(
            cpu,
            now,
            match (is_idle, &new.user) {
                (true, _) => Runs::Idle,
                (_, Some(_)) => Runs::User,
                _ => Runs::Kernel,
            },
        );
        if !is_idle {
            thread::moves_to(new.info.stack, percpu, next);
        }
        let key = (!is_idle).then(|| new.turn.place().key(0));
        runqueue::runs(cpu, key, new.turn.virtual_time().filter(|_| !is_idle));
        kmap::switch(percpu, &LOCAL_MAPS[me].lock(), &LOCAL_MAPS[next].lock());
        let top = thread::stack_top(new.info.stack);
        let user = new.user.as_deref();
        trace::set_pid(user.map_or_else(|| thread::pid(next), |task| task.process.pid));
        task::switch_to(percpu, old.user.as_deref(), user, top);
        load
    };
    percpu.current.store(u32::try_from(next).unwrap_or(0), Ordering::Relaxed);
    percpu.prev.store(u32::try_from(me).unwrap_or(0), Ordering::Relaxed);
    let save = &raw mut old.info.rsp;
    let flags = old.keep_locked();
    // SAFETY: `load` belongs to a task that is on no CPU, since it was in a queue and then its lock was open, or is this CPU's idle
    // task; `save` is in a static, and its lock is held until the new stack takes it over.
    unsafe { stack::switch(save, load) };
    finish_switch();
    regs::irq_restore(flags);
}

/// Takes who runs next on this CPU out of a queue; `None` if `keeps`, who runs, goes first, or if there is nobody. The caller holds the
/// lock of the task that runs.
fn take_next(cpu: u32, keeps: Option<Key>) -> Option<usize> {
    if keeps.is_some()
        && let Some(number) = runqueue::pull_if_uneven(cpu)
    {
        let mut slot = SLOTS[number].lock();
        runqueue::place(number, &mut slot, cpu, Kind::Moved);
    }
    loop {
        let number = match runqueue::take_first(cpu, keeps) {
            Some(number) => number,
            None if keeps.is_none() => runqueue::pull(cpu)?,
            None => return None,
        };
        let mut slot = SLOTS[number].lock();
        if slot.may_run_on(cpu) {
            slot.turn.move_to(cpu);
            return Some(number);
        }
        // It was told to go elsewhere just now.
        runqueue::place(number, &mut slot, cpu, Kind::Moved);
    }
}

/// First thing on a stack that was switched to (Linux: `finish_task_switch`).
fn finish_switch() {
    let Some(percpu) = percpu::current() else { return };
    let prev = percpu.prev.load(Ordering::Relaxed) as usize;
    // SAFETY: the task that switched to this one kept its own slot locked for it.
    let slot = unsafe { SLOTS[prev].adopt() };
    if slot.detached && slot.info.state == TaskState::Dead as u32 {
        thread::bury(prev);
    }
}

/// Whether the slice of the task that runs here is over (Linux: `need_resched`).
#[inline]
pub fn needs_resched() -> bool {
    percpu::current().is_some_and(|percpu| percpu.need_resched.load(Ordering::Relaxed) != 0)
}

/// Gives the CPU to others on the way to ring 3, if the slice is over.
pub fn resched_to_user() -> bool {
    let needed = needs_resched();
    if needed {
        schedule(Reason::Preempted);
    }
    needed
}

/// One round of a CPU's idle loop: runs a thread if there is one, else waits for an interrupt. Interrupts are off before
/// and after.
pub fn idle() {
    let Some(percpu) = percpu::current() else { return trap::wait_for_interrupt() };
    let cpu = percpu.cpu.load(Ordering::Relaxed);
    space::set_rests(cpu, CpuTlb::IDLE);
    if may_halt::<Machine>(&percpu.idle, || runqueue::has_work(cpu)) {
        if timer::is_overdue(cpu) {
            // The interrupt was lost on the way.
            tick();
        } else {
            trap::wait_for_interrupt();
        }
    }
    space::set_rests(cpu, 0);
    wakes(&percpu.idle);
    schedule(Reason::Rests);
}

/// What an idle task does where a thread would sleep: runs a thread, or lets time pass. It does not halt, so that no event
/// is missed.
fn run_others(reason: Reason) {
    let cpu = percpu::cpu();
    if !runqueue::any_ready() {
        // A while, in which readers from outside find everything whole.
        space::set_rests(cpu, CpuTlb::IDLE);
        for _ in 0..REST_SPINS {
            if runqueue::any_ready() {
                break;
            }
            core::hint::spin_loop();
        }
        space::set_rests(cpu, 0);
        return;
    }
    if runqueue::has_work(cpu) {
        schedule(reason);
        return;
    }
    // A CPU that missed its interrupt gets another.
    if let Some(idle) = smp::claim_idle(&CpuMask::ALL, cpu) {
        smp::reschedule(idle);
    }
    core::hint::spin_loop();
}

/// Makes a task that sleeps ready; false if it does not sleep. Whoever sleeps looks again at what it waits for, so that
/// one wake-up too many does no harm (Linux: `try_to_wake_up`).
pub fn wake(number: usize) -> bool {
    let mut task = SLOTS[number].lock();
    if !core::mem::take(&mut task.sleeps) {
        return false;
    }
    // It may not have left its CPU yet: then `schedule` sees that it need not.
    if task.info.state == TaskState::Sleeping as u32 {
        task.info.state = TaskState::Runnable as u32;
        task.turn.arrives();
        let last = task.info.cpu;
        runqueue::place(number, &mut task, last, Kind::Woken);
    }
    true
}

/// Makes a CPU look who goes first (Linux: `resched_curr`).
fn resched(cpu: u32) {
    percpu::of(cpu).need_resched.store(1, Ordering::Relaxed);
    smp::reschedule(cpu);
}

/// Where a task may run (Linux: `cpus_mask`).
pub fn allowed(number: usize) -> CpuMask {
    SLOTS[number].lock().allowed
}

/// Says where a task may run. One that runs elsewhere moves when it next gives up its CPU (Linux: `set_cpus_allowed_ptr`).
pub fn set_allowed(number: usize, allowed: CpuMask) {
    let cpu = {
        let mut slot = SLOTS[number].lock();
        slot.allowed = allowed;
        if runqueue::unqueue(number) {
            let near = slot.turn.cpu;
            runqueue::place(number, &mut slot, near, Kind::Moved);
        }
        slot.info.cpu
    };
    resched(cpu);
}

/// Name of a task, as it is published (Linux: `comm`).
pub fn comm(number: usize) -> [u8; 16] {
    SLOTS[number].lock().info.name
}

/// A task's address space is another from now on; 0 for none.
pub fn set_mm(number: usize, mm: u64) {
    SLOTS[number].lock().info.mm = mm;
}

/// A task has another number.
pub fn set_pid(number: usize, pid: u32) {
    SLOTS[number].lock().info.pid = pid;
    thread::set_pid(number, pid);
}

/// A task's process has another `oom_score_adj`.
pub fn set_oom_score_adj(number: usize, adj: i16) {
    if number != NOBODY {
        SLOTS[number].lock().info.oom_score_adj = adj.into();
    }
}

/// The process of a task has another parent. Not for a task that has no thread yet.
pub fn set_ppid(number: usize, ppid: u32) {
    if number != NOBODY {
        SLOTS[number].lock().info.ppid = ppid;
    }
}

/// Gives a task a name of at most 15 bytes.
pub fn set_comm(number: usize, name: [u8; 16]) {
    SLOTS[number].lock().info.name = name;
}

/// What the scheduler knows of a task.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// When it was made, nanoseconds since boot.
    pub start: u64,
    /// Switches away from it while it waited, and while it could have gone on.
    pub switches: [u64; 2],
    /// Where it runs or ran last.
    pub cpu: u32,
}

/// What the scheduler knows of a task.
pub fn facts(number: usize) -> Facts {
    let slot = SLOTS[number].lock();
    Facts { start: slot.start, switches: slot.switched, cpu: slot.info.cpu }
}

/// Tasks that run or wait for a CPU.
pub fn nr_running() -> u32 {
    let ready = [TaskState::Running as u32, TaskState::Runnable as u32];
    let runs = SLOTS.iter().filter(|slot| {
        let info = &slot.lock().info;
        info.idle == 0 && ready.contains(&info.state)
    });
    u32::try_from(runs.count()).unwrap_or(u32::MAX)
}

/// Whether a task sleeps and is off its CPU.
pub fn is_asleep(number: usize) -> bool {
    let info = SLOTS[number].lock().info;
    info.state == TaskState::Sleeping as u32 && info.rsp != 0
}

/// Makes a task look at what it shall do: it wakes if it sleeps, and leaves ring 3 if it is there (Linux: `signal_wake_up`).
pub fn poke(number: usize) {
    if wake(number) {
        return;
    }
    let running = {
        let info = SLOTS[number].lock().info;
        (info.state == TaskState::Running as u32).then_some(info.cpu)
    };
    if let Some(cpu) = running {
        smp::reschedule(cpu);
    }
}
