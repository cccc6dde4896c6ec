//! Each CPU's ready tasks, and which CPU gets a task (Linux: `struct rq`, `select_task_rq_fair`, `newidle_balance`).
//!
//! Invariants:
//! R1  a task is in the queue of at most one CPU; `QUEUED_ON` says which, and changes under that queue's lock;
//! R2  a task is in no queue of a CPU that it may not run on; its mask beside the queue is as it was when it was put there, and whoever
//!     changes it puts it elsewhere;
//! R3  whoever takes a task out of a queue runs it, or puts it into one; nobody else may meanwhile;
//! R4  a queue's count is raised before an idle CPU is looked for, and a CPU looks at the counts after it said that it halts
//!     (`guest_process::idle`), so that no ready task waits for an interrupt that does not come;
//! R5  a CPU that runs a user task while its queue is not empty ticks: who puts a task there looks for that afterwards, and the CPU looks
//!     at its queue after it said what it runs.
//!
//! Lock order: a task's slot, then one queue. Virtual times of two queues say nothing about each other: a task that comes from another
//! keeps its distance from that one's.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

use guest_firmware::acpi::MAX_CPUS;
use guest_process::idle::{self, Machine};
use guest_process::queue::{Key, Node, Queue};

use super::{CPU_WORDS, CpuMask, MAX_TASKS, Slot};
use crate::arch::percpu;
use crate::smp;
use crate::sync::Lock;

/// In no queue.
const NOWHERE: u32 = u32::MAX;

struct Ready {
    queue: Queue,
    /// Tasks that came so far, so that of equals the first goes first.
    serial: u64,
    /// Of the task that runs; `None` for the idle task.
    running: Option<Key>,
}

/// A CPU's queue.
struct RunQueue {
    ready: Lock<Ready>,
    /// Tasks in it.
    len: AtomicUsize,
    /// Least virtual time of those who may come (Linux: `min_vruntime`).
    virtual_time: AtomicU64,
}

static QUEUES: [RunQueue; MAX_CPUS] = [const {
    RunQueue {
        ready: Lock::new(Ready { queue: Queue::new(), serial: 0, running: None }),
        len: AtomicUsize::new(0),
        virtual_time: AtomicU64::new(0),
    }
}; MAX_CPUS];
static NODES: [Node; MAX_TASKS] = [const { Node::new() }; MAX_TASKS];
static QUEUED_ON: [AtomicU32; MAX_TASKS] = [const { AtomicU32::new(NOWHERE) }; MAX_TASKS];
/// Where a task in a queue may run.
static MASKS: [[AtomicU64; CPU_WORDS]; MAX_TASKS] =
    [const { [const { AtomicU64::new(0) }; CPU_WORDS] }; MAX_TASKS];

/// Least virtual time of a CPU's tasks.
pub(super) fn virtual_time(cpu: u32) -> u64 {
    QUEUES.get(cpu as usize).map_or(0, |queue| queue.virtual_time.load(Ordering::Relaxed))
}

fn len(cpu: u32) -> usize {
    QUEUES.get(cpu as usize).map_or(0, |queue| queue.len.load(Ordering::Relaxed))
}

/// Whether a task waits in a CPU's queue, R5.
pub(super) fn waits(cpu: u32) -> bool {
    fence(Ordering::SeqCst);
    len(cpu) != 0
}

/// Whether a CPU runs a user task that nothing interrupts, R5.
fn is_undisturbed(cpu: u32) -> bool {
    fence(Ordering::SeqCst);
    let percpu = percpu::of(cpu);
    percpu.user.load(Ordering::Relaxed) != 0 && percpu.tick.load(Ordering::Relaxed) == 0
}

/// Whether any task is ready, on any CPU.
pub(super) fn any_ready() -> bool {
    QUEUES.iter().take(smp::nr_known()).any(|queue| queue.len.load(Ordering::Relaxed) != 0)
}

fn may_run_on(number: u32, cpu: u32) -> bool {
    let word = MASKS.get(number as usize).and_then(|mask| mask.get(cpu as usize / 64));
    word.is_some_and(|word| word.load(Ordering::Relaxed) & 1 << (cpu % 64) != 0)
}

/// Puts a ready task into a CPU's queue. Its slot is locked, and it may run there.
fn push(cpu: u32, number: usize, slot: &mut Slot) {
    let (Some(queue), Ok(member)) = (QUEUES.get(cpu as usize), u32::try_from(number)) else { return };
    slot.turn.move_to(cpu);
    let mask = slot.where_it_may_run();
    let mut ready = queue.ready.lock();
    for (to, word) in MASKS[number].iter().zip(mask.words()) {
        to.store(*word, Ordering::Relaxed);
    }
    QUEUED_ON[number].store(cpu, Ordering::Relaxed);
    ready.serial += 1;
    let key = slot.turn.place().key(ready.serial);
    ready.queue.insert(NODES.as_slice(), member, key);
    queue.len.fetch_add(1, Ordering::Relaxed);
}

fn take(queue: &RunQueue, ready: &mut Ready, member: u32) -> usize {
    let number = member as usize;
    ready.queue.remove(NODES.as_slice(), member);
    QUEUED_ON[number].store(NOWHERE, Ordering::Relaxed);
    queue.len.fetch_sub(1, Ordering::Relaxed);
    number
}

/// Takes who goes first out of a CPU's own queue; `None` if `keeps`, who runs, goes before all of them.
pub(super) fn take_first(cpu: u32, keeps: Option<Key>) -> Option<usize> {
    let queue = QUEUES.get(cpu as usize)?;
    if queue.len.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let mut ready = queue.ready.lock();
    let (member, key) = ready.queue.first(NODES.as_slice())?;
    if keeps.is_some_and(|keeps| keeps <= key) {
        return None;
    }
    Some(take(queue, &mut ready, member))
}

/// Who runs on a CPU from now on, with this key; `None` for the idle task. `time` is the virtual time of a task that shares fairly.
pub(super) fn runs(cpu: u32, key: Option<Key>, time: Option<u64>) {
    let Some(queue) = QUEUES.get(cpu as usize) else { return };
    queue.ready.lock().running = key;
    if let Some(time) = time {
        queue.virtual_time.fetch_max(time, Ordering::Relaxed);
    }
}

/// Whether there is a task that this CPU could run: in its own queue or, for it to pull, in another's.
pub(super) fn has_work(cpu: u32) -> bool {
    len(cpu) != 0 || others(cpu).any(|other| find(other, cpu, |_, _, _| ()).is_some())
}

/// Takes a task that may run on `cpu` out of the queue of another CPU, near ones first (Linux: `newidle_balance`).
pub(super) fn pull(cpu: u32) -> Option<usize> {
    others(cpu).find_map(|other| find(other, cpu, take))
}

/// CPUs with ready tasks but for `cpu`, those of its node first.
fn others(cpu: u32) -> impl Iterator<Item = u32> {
    let node = smp::near_node(cpu);
    let known = u32::try_from(smp::nr_known()).unwrap_or(0);
    let with_tasks = move |near: bool| {
        (0..known)
            .filter(move |&other| other != cpu && len(other) != 0 && (smp::near_node(other) == node) == near)
    };
    with_tasks(true).chain(with_tasks(false))
}

/// Applies `f` to a task in the queue of `from` that may run on `cpu`.
fn find<R>(from: u32, cpu: u32, f: impl FnOnce(&RunQueue, &mut Ready, u32) -> R) -> Option<R> {
    let queue = QUEUES.get(from as usize)?;
    let mut ready = queue.ready.lock();
    let member = ready.queue.find(NODES.as_slice(), |member| may_run_on(member, cpu))?;
    Some(f(queue, &mut ready, member))
}

/// A CPU with at least two more ready tasks than `cpu`, from which it takes one at a tick (Linux: `load_balance`).
pub(super) fn pull_if_uneven(cpu: u32) -> Option<usize> {
    let own = len(cpu);
    others(cpu).filter(|&other| len(other) >= own + 2).find_map(|other| find(other, cpu, take))
}

/// Takes a task out of the queue that it is in; false if it is in none. Its slot is locked, so nobody puts it into one.
pub(super) fn unqueue(number: usize) -> bool {
    let (Some(on), Ok(member)) = (QUEUED_ON.get(number), u32::try_from(number)) else { return false };
    let cpu = on.load(Ordering::Relaxed);
    let Some(queue) = QUEUES.get(cpu as usize) else { return false };
    let mut ready = queue.ready.lock();
    // Whoever takes it runs it.
    if on.load(Ordering::Relaxed) != cpu {
        return false;
    }
    take(queue, &mut ready, member);
    true
}

/// Puts a ready task into the queue of an idle CPU, near `near` if that can be, else of `near`, else of the one with the shortest queue
/// that it may run on, and makes that CPU look if it should (Linux: `select_task_rq`, `ttwu_queue`). Its slot is locked.
pub(super) fn place(number: usize, slot: &mut Slot, near: u32, kind: Kind) {
    let allowed = slot.where_it_may_run();
    // Who lets others run waits for its turn where it is.
    if kind != Kind::Stays
        && let Some(cpu) = smp::claim_idle(&allowed, near)
    {
        push(cpu, number, slot);
        smp::reschedule(cpu);
        return;
    }
    let cpu = shortest(&allowed, near, kind);
    push(cpu, number, slot);
    // Whoever became idle after the look has not seen the task, R4.
    if let Some(idle) = smp::claim_idle(&allowed, near) {
        smp::reschedule(idle);
    } else if kind == Kind::Woken && goes_before_running(cpu, slot)
        || kind != Kind::Stays && is_undisturbed(cpu)
    {
        super::resched(cpu);
    } else if cpu != percpu::cpu() && percpu::of(cpu).idle.load(Ordering::Relaxed) != idle::BUSY {
        // Claimed for another task: it may already have looked.
        smp::reschedule(cpu);
    }
}

/// Why a task is put into a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It is new: it goes where least others wait.
    New,
    /// It woke: it goes where it was.
    Woken,
    /// It lets others run.
    Stays,
    /// It may not run where it was, or its turn is another: it goes where it was if it may.
    Moved,
}

/// Where a task is put if nobody is idle.
fn shortest(allowed: &CpuMask, near: u32, kind: Kind) -> u32 {
    if kind != Kind::New && allowed.contains(near) && smp::is_online(near) {
        return near;
    }
    let known = u32::try_from(smp::nr_known()).unwrap_or(0);
    let node = smp::near_node(near);
    let distance = |cpu: u32| match cpu {
        cpu if cpu == near => 0,
        cpu if smp::near_node(cpu) == node => 1,
        _ => 2,
    };
    (0..known)
        .filter(|&cpu| allowed.contains(cpu) && smp::is_online(cpu))
        .min_by_key(|&cpu| (len(cpu), distance(cpu)))
        .unwrap_or(near)
}

/// Whether a task goes before the one that runs on a CPU, which it may take (Linux: `check_preempt_curr`).
fn goes_before_running(cpu: u32, slot: &Slot) -> bool {
    let Some(queue) = QUEUES.get(cpu as usize) else { return false };
    let running = queue.ready.lock().running;
    running.is_some_and(|running| slot.turn.place_of_intruder().key(0) < running)
}

/// Whether one of a set of CPUs halts; claims it and says which, near `near` if that can be.
pub fn claim<'a>(cpus: impl Iterator<Item = (u32, &'a AtomicU32)>) -> Option<u32> {
    idle::claim::<Machine, _, _>(cpus)
}
