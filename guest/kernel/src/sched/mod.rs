//! Threads of the kernel and of processes (Linux: kernel/sched/core.c and kernel/kthread.c, as far as a memory manager needs them).
//!
//! In ring 0 a thread runs until it waits, yields or ends; nobody takes the CPU from it. In ring 3 its slice ends with the tick
//! (`clock.rs`), and it gives up the CPU on its way back if another goes first (Linux: PREEMPT_NONE). Ready threads stand in one queue, and
//! every CPU takes who goes first of those that may run on it (`order.rs`). A thread with a user task (`crate::task`) takes its address space and its registers of ring 3 along. The idle task of a CPU runs on the stack of its per-CPU area; the boot CPU's also runs
//! boot and tests, and where those wait, it runs threads meanwhile.
//!
//! The lock of the queue is held across a switch of stacks: whoever finds a thread in the queue finds its registers saved.
//!
//! Differs from Linux: one queue for all CPUs.

pub mod clock;
mod mask;
mod order;
mod stacks;
mod thread;
mod wait;

use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};

use guest_firmware::acpi::MAX_CPUS;
use memvisor_abi::{CpuTlb, TaskInfo, TaskState};
use mm_core::MaySleep;
use mm_vmalloc::LocalStack;

use order::Turn;

use crate::arch::percpu::{self, PerCpu};
use crate::arch::{regs, stack, trap};
use crate::mm::{kmap, space};
use crate::sync::Lock;
use crate::{smp, task};

pub use clock::{sleep_until, tick};
pub use mask::{CPU_WORDS, CpuMask};
pub use order::{priority, set_priority};
pub use stacks::stack_guard;
pub use thread::{
    Thread, UserThread, exit_user, is_off_cpu, release, spawn, spawn_daemon, spawn_on, spawn_user,
};
pub use wait::{WaitQueue, Woken};

/// Threads that exist at once, dead ones that nobody joined included.
const MAX_THREADS: usize = 256;
/// Tasks: the idle tasks by CPU, then threads.
pub const MAX_TASKS: usize = MAX_CPUS + MAX_THREADS;
const ANY_CPU: u32 = u32::MAX;
/// Looks at the queue before an idle task that waits looks at its condition again.
const REST_SPINS: u32 = 32;
/// End of a queue. Number 0 is an idle task, which is never queued.
const NOBODY: usize = 0;

/// A task; what is published comes first. All zero for none.
#[repr(C)]
struct Slot {
    info: TaskInfo,
    entry: Option<fn(u64)>,
    argument: u64,
    /// Next in the queue, or [`NOBODY`].
    next: usize,
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
    /// When it wants to be woken, in nanoseconds since boot; 0 for never.
    deadline: u64,
}

/// All tasks and the queue.
#[repr(C)]
struct Sched {
    slots: [Slot; MAX_TASKS],
    first: usize,
    last: usize,
    /// Threads that ended and are on no CPU, linked by `next`.
    dead: usize,
    /// Least virtual time of those who may come (Linux: `min_vruntime`).
    virtual_time: u64,
    /// Arrivals of real-time tasks so far.
    arrivals: u64,
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
    reserved: 0,
};
const NO_INFO: TaskInfo = TaskInfo { pinned: ANY_CPU, ..UNUSED };

static SCHED: Lock<Sched> = Lock::new(Sched {
    slots: [const {
        Slot {
            info: UNUSED,
            entry: None,
            argument: 0,
            next: NOBODY,
            sleeps: false,
            daemon: false,
            detached: false,
            user: None,
            allowed: CpuMask::NONE,
            turn: Turn::NEW,
            deadline: 0,
        }
    }; MAX_TASKS],
    first: NOBODY,
    last: NOBODY,
    dead: NOBODY,
    virtual_time: 0,
    arrivals: 0,
});

/// The kmap_local mappings of every task; only the task itself uses its own.
static LOCAL_MAPS: [Lock<LocalStack>; MAX_TASKS] = [const { Lock::new(LocalStack::new()) }; MAX_TASKS];

/// The published table: address and stride.
pub fn table() -> (*const TaskInfo, usize) {
    (SCHED.as_ptr().cast::<TaskInfo>(), size_of::<Slot>())
}

/// Tasks in the queue, so that who finds none need not take the lock.
static READY: AtomicUsize = AtomicUsize::new(0);

/// Gives every CPU its idle task. The one that runs this is the boot CPU's.
pub fn init(cpus: u32) {
    clock::init();
    let mut sched = SCHED.lock();
    for cpu in 0..cpus {
        let (base, len) = stacks::kernel_stack(cpu);
        let task = &mut sched.slots[cpu as usize];
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
fn name_of(prefix: &str, number: u32) -> [u8; 16] {
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

fn text(name: &[u8; 16]) -> &str {
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
    SCHED.lock().slots[number].info.kmap_depth = depth;
    regs::irq_restore(flags);
    result
}

/// Threads that are neither dead nor waiting to be joined nor daemons, and the boot CPU's own course: who could still do something.
pub fn nr_live() -> u32 {
    let sched = SCHED.lock();
    let live = |slot: &&Slot| {
        let state = slot.info.state;
        !slot.daemon && state != TaskState::Unused as u32 && state != TaskState::Dead as u32
    };
    let threads = sched.slots[MAX_CPUS..].iter().filter(live).count();
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

impl Sched {
    fn push(&mut self, number: usize) {
        let task = &mut self.slots[number];
        task.info.state = TaskState::Runnable as u32;
        task.next = NOBODY;
        match self.last {
            NOBODY => self.first = number,
            last => self.slots[last].next = number,
        }
        self.last = number;
        READY.fetch_add(1, Ordering::SeqCst);
    }

    /// Takes a task out of the queue; `before` stands before it.
    fn unlink(&mut self, before: usize, at: usize) {
        READY.fetch_sub(1, Ordering::SeqCst);
        let next = self.slots[at].next;
        match before {
            NOBODY => self.first = next,
            before => self.slots[before].next = next,
        }
        if self.last == at {
            self.last = before;
        }
    }

    fn has_work(&self, cpu: u32) -> bool {
        let mut at = self.first;
        while at != NOBODY {
            if self.slots[at].may_run_on(cpu) {
                return true;
            }
            at = self.slots[at].next;
        }
        false
    }
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
    let cpu = percpu.cpu.load(Ordering::Relaxed);
    let mut sched = SCHED.lock();
    percpu.need_resched.store(0, Ordering::Relaxed);
    let now = regs::rdtsc();
    let old = &mut sched.slots[me];
    let idle = old.info.idle == 1;
    old.info.rests = u32::from(reason != Reason::Yields);
    let ready = !idle && !old.sleeps && old.info.state == TaskState::Running as u32;
    let may_stay = ready && old.may_run_on(cpu);
    if !idle {
        old.turn.ran_until(now);
    }
    if ready {
        sched.turn_is_over(me, reason);
    }
    let keeps = (may_stay && reason == Reason::Preempted).then_some(me);
    let next = match sched.take_first(cpu, keeps) {
        Some(next) => next,
        None if idle || may_stay => return,
        None => cpu as usize,
    };
    if ready {
        sched.push(me);
    } else if idle {
        sched.slots[me].info.state = TaskState::Runnable as u32;
    } else if sched.slots[me].sleeps {
        sched.slots[me].info.state = TaskState::Sleeping as u32;
    }
    let new = &mut sched.slots[next];
    new.turn.runs_from(now);
    new.info.state = TaskState::Running as u32;
    new.info.cpu = cpu;
    new.info.switches += 1;
    let load = new.info.rsp;
    new.info.rsp = 0;
    if new.info.idle == 0 {
        thread::moves_to(new.info.stack, percpu, next);
    }
    kmap::switch(percpu, &LOCAL_MAPS[me].lock(), &LOCAL_MAPS[next].lock());
    let top = thread::stack_top(sched.slots[next].info.stack);
    task::switch_to(percpu, sched.slots[me].user.as_deref(), sched.slots[next].user.as_deref(), top);
    percpu.current.store(u32::try_from(next).unwrap_or(0), Ordering::Relaxed);
    percpu.prev.store(u32::try_from(me).unwrap_or(0), Ordering::Relaxed);
    let save = &raw mut sched.slots[me].info.rsp;
    let flags = sched.keep_locked();
    // SAFETY: `load` belongs to a task that is on no CPU, since it was in the queue or is this CPU's idle task, and the
    // queue's lock is held until the new stack takes it over; `save` is in a static.
    unsafe { stack::switch(save, load) };
    finish_switch();
    regs::irq_restore(flags);
}

/// First thing on a stack that was switched to (Linux: `finish_task_switch`).
fn finish_switch() {
    // SAFETY: the task that switched to this one kept the lock closed for it.
    let mut sched = unsafe { SCHED.adopt() };
    let Some(percpu) = percpu::current() else { return };
    let prev = percpu.prev.load(Ordering::Relaxed) as usize;
    let dead = sched.dead;
    let slot = &mut sched.slots[prev];
    if slot.detached && slot.info.state == TaskState::Dead as u32 {
        slot.next = dead;
        sched.dead = prev;
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
    // Announced before the look at the queue, so that who queues a thread after it sends an interrupt.
    percpu.idle.store(1, Ordering::SeqCst);
    space::set_rests(cpu, CpuTlb::IDLE);
    let work = READY.load(Ordering::SeqCst) > 0 && SCHED.lock().has_work(cpu);
    if !work {
        trap::wait_for_interrupt();
    }
    space::set_rests(cpu, 0);
    percpu.idle.store(0, Ordering::SeqCst);
    schedule(Reason::Rests);
}

/// What an idle task does where a thread would sleep: runs a thread, or lets time pass. It does not halt, so that no event
/// is missed.
fn run_others(reason: Reason) {
    let cpu = percpu::cpu();
    if READY.load(Ordering::SeqCst) == 0 {
        // A while, in which readers from outside find everything whole.
        space::set_rests(cpu, CpuTlb::IDLE);
        for _ in 0..REST_SPINS {
            if READY.load(Ordering::SeqCst) != 0 {
                break;
            }
            core::hint::spin_loop();
        }
        space::set_rests(cpu, 0);
        return;
    }
    if SCHED.lock().has_work(cpu) {
        schedule(reason);
        return;
    }
    let waiting = {
        let sched = SCHED.lock();
        (sched.first != NOBODY).then(|| sched.slots[sched.first].where_it_may_run())
    };
    if let Some(allowed) = waiting {
        // A CPU that missed its interrupt gets another.
        smp::kick(&allowed, cpu);
    }
    core::hint::spin_loop();
}

/// Puts a task that sleeps into the queue; false if it does not sleep. Whoever sleeps looks again at what it waits for, so that
/// one wake-up too many does no harm (Linux: `wake_up_process`).
pub fn wake(number: usize) -> bool {
    let (allowed, last, busy) = {
        let mut sched = SCHED.lock();
        let task = &mut sched.slots[number];
        if !core::mem::take(&mut task.sleeps) {
            return false;
        }
        // It may not have left its CPU yet: then `schedule` sees that it need not.
        if task.info.state != TaskState::Sleeping as u32 {
            return true;
        }
        let (allowed, last) = (task.where_it_may_run(), task.info.cpu);
        sched.arrives(number);
        sched.push(number);
        (allowed, last, sched.goes_before_current_of(last, number))
    };
    if !smp::kick(&allowed, last) && busy {
        resched(last);
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
    SCHED.lock().slots[number].allowed
}

/// Says where a task may run. One that runs elsewhere moves when it next gives up its CPU (Linux: `set_cpus_allowed_ptr`).
pub fn set_allowed(number: usize, allowed: CpuMask) {
    let cpu = {
        let mut sched = SCHED.lock();
        let slot = &mut sched.slots[number];
        slot.allowed = allowed;
        slot.info.cpu
    };
    resched(cpu);
}

/// Name of a task, as it is published (Linux: `comm`).
pub fn comm(number: usize) -> [u8; 16] {
    SCHED.lock().slots[number].info.name
}

/// A task's address space is another from now on; 0 for none.
pub fn set_mm(number: usize, mm: u64) {
    SCHED.lock().slots[number].info.mm = mm;
}

/// The process of a task has another parent. Not for a task that has no thread yet.
pub fn set_ppid(number: usize, ppid: u32) {
    if number != NOBODY {
        SCHED.lock().slots[number].info.ppid = ppid;
    }
}

/// Gives a task a name of at most 15 bytes.
pub fn set_comm(number: usize, name: [u8; 16]) {
    SCHED.lock().slots[number].info.name = name;
}

/// Whether a thread of the kernel has this number; zombies and user tasks are others' business.
pub fn is_pid_used(pid: u32) -> bool {
    let sched = SCHED.lock();
    sched.slots[MAX_CPUS..]
        .iter()
        .any(|slot| slot.info.state != TaskState::Unused as u32 && slot.info.pid == pid)
}

/// Whether a task sleeps and is off its CPU.
pub fn is_asleep(number: usize) -> bool {
    let sched = SCHED.lock();
    let info = &sched.slots[number].info;
    info.state == TaskState::Sleeping as u32 && info.rsp != 0
}

/// Makes a task look at what it shall do: it wakes if it sleeps, and leaves ring 3 if it is there (Linux: `signal_wake_up`).
pub fn poke(number: usize) {
    if wake(number) {
        return;
    }
    let running = {
        let sched = SCHED.lock();
        let info = &sched.slots[number].info;
        (info.state == TaskState::Running as u32).then_some(info.cpu)
    };
    if let Some(cpu) = running {
        smp::reschedule(cpu);
    }
}
