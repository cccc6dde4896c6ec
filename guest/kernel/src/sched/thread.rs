//! Threads: begin, end, join (Linux: `kthread_create`, `kthread_stop`, `copy_thread`, `do_task_dead`).

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use guest_firmware::acpi::MAX_CPUS;
use memvisor_abi::{THREAD_SIZE, TaskInfo, TaskState};
use mm_core::{MaySleep, VirtAddr};
use mm_vma::Id;
use mm_vmalloc::{Request, VmError};

use super::runqueue::{self, Kind};
use super::{
    ANY_CPU, CpuMask, MAX_TASKS, MAX_THREADS, NO_INFO, NOBODY, Reason, SLOTS, Slot, Turn, UNUSED, WaitQueue,
    clock, current, finish_switch, schedule, stacks,
};
use crate::arch::percpu::{self, PerCpu, THREAD_TOP, thread_info};
use crate::arch::trap::TrapFrame;
use crate::arch::{regs, stack, user};
use crate::mm::phys;
use crate::mm::vmalloc;
use crate::sync::Lock;
use crate::task;

/// Woken when any thread ends.
static ENDED: WaitQueue = WaitQueue::new();

/// Stacks of threads that ended, for the next ones (Linux: `cached_stacks`).
static STACKS: Lock<[u64; 4]> = Lock::new([0; 4]);

/// Detached threads that ended and are on no CPU, linked by [`NEXT_DEAD`]; [`NOBODY`] for none.
static DEAD: Lock<u32> = Lock::new(0);
const _: () = assert!(NOBODY == 0);
static NEXT_DEAD: [AtomicU32; MAX_TASKS] = [const { AtomicU32::new(0) }; MAX_TASKS];
/// Slots of threads that somebody has, a bit each.
static TAKEN: [AtomicU64; MAX_THREADS.div_ceil(64)] = [const { AtomicU64::new(0) }; MAX_THREADS.div_ceil(64)];
/// Threads that there may be (Linux: `max_threads`).
static MAX: AtomicUsize = AtomicUsize::new(MAX_THREADS);
/// Numbers of the threads in the slots, for those who look for one that is free.
static PIDS: [AtomicU32; MAX_TASKS] = [const { AtomicU32::new(0) }; MAX_TASKS];

/// A thread that somebody will join.
#[must_use = "a thread that nobody joins keeps its stack"]
#[derive(Debug)]
pub struct Thread {
    number: usize,
}

/// What a new thread is.
struct Birth<'a> {
    name: &'a [u8],
    pid: u32,
    entry: fn(u64),
    argument: u64,
    pinned: u32,
}

/// What a new thread of a process is.
#[derive(Debug)]
pub struct UserThread<'a> {
    /// Its user task.
    pub task: Arc<task::Task>,
    /// Its name.
    pub name: [u8; 16],
    /// Its registers in ring 3.
    pub frame: &'a TrapFrame,
    /// Where it may run.
    pub allowed: CpuMask,
}

/// Why a user task got no thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpawnError {
    /// No memory for its stack.
    NoMemory,
    /// There are too many threads.
    NoRoom,
}

/// Makes a thread that runs `entry(argument)` on any CPU.
///
/// # Errors
/// [`VmError`] of the stack's allocation; [`VmError::NoMemory`] when there are too many threads.
pub fn spawn(name: &str, entry: fn(u64), argument: u64, context: &MaySleep<'_>) -> Result<Thread, VmError> {
    begin(name, entry, argument, ANY_CPU, context)
}

/// [`spawn`] on one CPU (Linux: `kthread_bind`).
///
/// # Errors
/// As [`spawn`].
pub fn spawn_on(
    cpu: u32,
    name: &str,
    entry: fn(u64),
    argument: u64,
    context: &MaySleep<'_>,
) -> Result<Thread, VmError> {
    begin(name, entry, argument, cpu, context)
}

/// [`spawn`] for a thread that serves the kernel as long as it runs and that nobody joins. It is not among those who could
/// give somebody something back: see [`super::nr_live`].
///
/// # Errors
/// As [`spawn`].
pub fn spawn_daemon(
    name: &str,
    entry: fn(u64),
    argument: u64,
    context: &MaySleep<'_>,
) -> Result<(), VmError> {
    let thread = begin(name, entry, argument, ANY_CPU, context)?;
    SLOTS[thread.number].lock().daemon = true;
    Ok(())
}

fn begin(
    name: &str,
    entry: fn(u64),
    argument: u64,
    pinned: u32,
    context: &MaySleep<'_>,
) -> Result<Thread, VmError> {
    let birth = Birth { name: name.as_bytes(), pid: task::alloc_pid(), entry, argument, pinned };
    let base = vmalloc::vmalloc(&Request::stack(), context)?;
    let Some(number) = take_slot(&birth, base.as_u64(), None) else {
        vmalloc::vfree(base);
        return Err(VmError::NoMemory);
    };
    start(number);
    Ok(Thread { number })
}

/// First address past what a thread may use of its stack.
pub(super) const fn stack_top(base: u64) -> u64 {
    base + THREAD_SIZE - THREAD_TOP
}

/// Makes the slot of a thread that nobody runs yet, on a stack of [`THREAD_SIZE`] bytes; `None` if there are too many threads.
fn take_slot(birth: &Birth<'_>, base: u64, user: Option<UserThread<'_>>) -> Option<usize> {
    let mut top = stack_top(base);
    if let Some(new) = &user {
        top = user_frame(base);
        user::store_frame(top, new.frame);
    }
    // What `switch_stacks` pops; the registers are anything.
    phys::store_mapped(VirtAddr::new(top - 8), stack::thread_start());
    let mut comm = [0; 16];
    for (to, from) in comm.iter_mut().zip(birth.name.iter().take(15)) {
        *to = *from;
    }
    let number = claim_slot(birth.pid)?;
    let parent = SLOTS[current()].lock().turn;
    let start = clock::now();
    let mut slot = SLOTS[number].lock();
    let task = user.as_ref().map(|user| &user.task);
    slot.info = TaskInfo {
        pid: birth.pid,
        mm: task.and_then(|task| task.mm()).map_or(0, Id::as_u64),
        tgid: task.map_or(0, |task| task.process.pid),
        ppid: task.map_or(0, |task| task.process.parent()),
        rests: 1,
        oom_score_adj: task.map_or(0, |task| task.process.oom_score_adj().into()),
        // Nobody takes it, and nobody runs it yet.
        state: TaskState::Sleeping as u32,
        stack: base,
        stack_len: THREAD_SIZE,
        rsp: top - stack::FIRST_FRAME,
        pinned: birth.pinned,
        name: comm,
        ..NO_INFO
    };
    (slot.entry, slot.argument) = (Some(birth.entry), birth.argument);
    (slot.sleeps, slot.daemon, slot.detached) = (false, false, user.is_some());
    slot.allowed = user.as_ref().map_or(CpuMask::ALL, |user| user.allowed);
    (slot.start, slot.switched) = (start, [0; 2]);
    slot.turn = if user.is_some() { parent.child() } else { Turn::NEW };
    slot.user = user.map(|user| user.task);
    Some(number)
}

/// Lets a new thread run (Linux: `wake_up_new_task`).
fn start(number: usize) {
    let mut slot = SLOTS[number].lock();
    slot.info.state = TaskState::Runnable as u32;
    slot.turn.arrives();
    runqueue::place(number, &mut slot, percpu::cpu(), Kind::New);
}

/// Where the registers of ring 3 are when a user task begins.
fn user_frame(base: u64) -> u64 {
    stack_top(base) - size_of::<TrapFrame>() as u64
}

/// Makes a thread for a user task, which begins with `entry(address of its frame)` and goes to ring 3 with the frame. `ready` is
/// called with its number before it can run.
///
/// # Errors
/// [`SpawnError`].
pub fn spawn_user(
    user: UserThread<'_>,
    entry: fn(u64),
    ready: impl FnOnce(usize),
    context: &MaySleep<'_>,
) -> Result<(), SpawnError> {
    reap_dead();
    let base = match take_stack() {
        Some(base) => base,
        None => vmalloc::vmalloc(&Request::stack(), context).map_err(|_| SpawnError::NoMemory)?.as_u64(),
    };
    stacks::begin_usage(base);
    let name = user.name;
    let birth =
        Birth { name: &name, pid: user.task.tid(), entry, argument: user_frame(base), pinned: ANY_CPU };
    let Some(number) = take_slot(&birth, base, Some(user)) else {
        give_stack(base);
        return Err(SpawnError::NoRoom);
    };
    clock::user_task_begins();
    ready(number);
    start(number);
    Ok(())
}

fn take_stack() -> Option<u64> {
    let mut stacks = STACKS.lock();
    stacks.iter_mut().find(|base| **base != 0).map(core::mem::take)
}

fn give_stack(base: u64) {
    if let Some(free) = STACKS.lock().iter_mut().find(|free| **free == 0) {
        *free = base;
        return;
    }
    vmalloc::vfree(VirtAddr::new(base));
}

/// A thread is about to run on a CPU: its stack says so.
pub(super) fn moves_to(stack: u64, percpu: &PerCpu, number: usize) {
    let info = VirtAddr::new(thread_info(stack) as u64);
    phys::store_mapped(info, &raw const *percpu as u64);
    phys::store_mapped(VirtAddr::new(info.as_u64() + 8), number as u64);
}

/// Where every thread begins (switch.s), on its own stack, with the queue locked and interrupts off.
#[unsafe(no_mangle)]
extern "C" fn thread_main() -> ! {
    finish_switch();
    regs::irq_restore(regs::RFLAGS_IF);
    let (entry, argument) = {
        let slot = SLOTS[current()].lock();
        (slot.entry, slot.argument)
    };
    if let Some(entry) = entry {
        entry(argument);
    }
    exit()
}

/// Ends the thread. Its stack stays until somebody joins it.
fn exit() -> ! {
    regs::irq_save();
    let number = current();
    let depth = super::LOCAL_MAPS[number].lock().depth();
    assert!(depth == 0, "a thread ended with {depth} kmap_local mappings");
    SLOTS[number].lock().info.state = TaskState::Dead as u32;
    ENDED.wake_up_all();
    schedule(Reason::Rests);
    unreachable!("a dead thread was scheduled")
}

/// Ends the thread of a user task, which has nothing left but its stack (Linux: `do_task_dead`).
pub fn exit_user() -> ! {
    clock::user_task_ended();
    exit()
}

/// Gives back the stacks of user tasks that ended (Linux: `put_task_stack`, `delayed_put_task_struct`). The slot of a zombie stays
/// until [`release`].
pub fn reap_dead() {
    while let Some(number) = exhume() {
        let (user, stack, name, pid) = {
            let mut slot = SLOTS[number].lock();
            let user = slot.user.take();
            let TaskInfo { stack, name, pid, .. } = slot.info;
            if user.as_ref().is_some_and(|user| user.is_zombie()) {
                (slot.info.stack, slot.info.stack_len, slot.info.rsp) = (0, 0, 0);
            } else {
                give_slot(number, &mut slot);
            }
            (user, stack, name, pid)
        };
        stacks::end_usage(stack, &name, pid);
        give_stack(stack);
        drop(user);
    }
}

/// A detached thread that ended is off its CPU: [`reap_dead`] takes its stack. Its slot is locked.
pub(super) fn bury(number: usize) {
    let mut dead = DEAD.lock();
    // Nobody counts to 2^32 slots.
    let first = core::mem::replace(&mut *dead, u32::try_from(number).unwrap_or(0));
    NEXT_DEAD[number].store(first, Ordering::Relaxed);
}

fn exhume() -> Option<usize> {
    let mut dead = DEAD.lock();
    let number = *dead as usize;
    if number == NOBODY {
        return None;
    }
    *dead = NEXT_DEAD[number].load(Ordering::Relaxed);
    Some(number)
}

/// Threads that there may be (Linux: `max_threads`). There is room for [`MAX_THREADS`].
pub fn max_threads() -> usize {
    MAX.load(Ordering::Relaxed)
}

/// Changes it.
pub fn set_max_threads(threads: usize) {
    MAX.store(threads, Ordering::Relaxed);
}

/// Whether there may be another thread (Linux: `nr_threads >= max_threads`, asked before anything is copied).
pub fn has_room() -> bool {
    reap_dead();
    let threads: usize = TAKEN.iter().map(|taken| taken.load(Ordering::Relaxed).count_ones() as usize).sum();
    threads < max_threads().min(MAX_THREADS)
}

/// Takes a slot that nobody has; its lock is open.
fn claim_slot(pid: u32) -> Option<usize> {
    for (word, taken) in TAKEN.iter().enumerate() {
        let mut bits = taken.load(Ordering::Relaxed);
        while bits != u64::MAX {
            let bit = bits.trailing_ones();
            let number = MAX_CPUS + word * 64 + bit as usize;
            if number >= MAX_TASKS {
                break;
            }
            match taken.compare_exchange(bits, bits | 1 << bit, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => {
                    PIDS[number].store(pid, Ordering::Relaxed);
                    return Some(number);
                }
                Err(now) => bits = now,
            }
        }
    }
    None
}

/// Gives a slot back.
fn give_slot(number: usize, slot: &mut Slot) {
    slot.info = UNUSED;
    PIDS[number].store(0, Ordering::Relaxed);
    let index = number - MAX_CPUS;
    TAKEN[index / 64].fetch_and(!(1 << (index % 64)), Ordering::Release);
}

/// The number of the thread in a slot; 0 for an idle task.
pub(super) fn pid(number: usize) -> u32 {
    PIDS.get(number).map_or(0, |pid| pid.load(Ordering::Relaxed))
}

/// The thread of a slot has another number.
pub(super) fn set_pid(number: usize, pid: u32) {
    PIDS[number].store(pid, Ordering::Relaxed);
}

/// Whether a thread has this number; zombies of the registry are others' business.
pub fn is_pid_used(pid: u32) -> bool {
    PIDS.iter().any(|used| used.load(Ordering::Relaxed) == pid)
}

/// Waits until the thread of a task that ended is off its CPU and has no stack any more. Whoever takes stacks back, on any CPU, has its
/// number until then and comes back to its slot.
pub fn wait_off_cpu(number: usize, context: &MaySleep<'_>) {
    loop {
        reap_dead();
        let info = SLOTS[number].lock().info;
        if info.state == TaskState::Dead as u32 && info.stack == 0 {
            return;
        }
        super::yield_now(context);
    }
}

/// Gives back the slot of a zombie's thread, which is off its CPU: see [`wait_off_cpu`].
pub fn release(number: usize) {
    give_slot(number, &mut SLOTS[number].lock());
}

impl Thread {
    /// Waits until the thread ended, and gives back its stack (Linux: `kthread_stop` without asking it to).
    pub fn join(self, context: &MaySleep<'_>) {
        // Dead and off its stack: the queue's lock was held until then.
        ENDED.wait_event(context, || {
            let info = SLOTS[self.number].lock().info;
            info.state == TaskState::Dead as u32 && info.rsp != 0
        });
        let stack = {
            let mut slot = SLOTS[self.number].lock();
            let stack = slot.info.stack;
            give_slot(self.number, &mut slot);
            stack
        };
        vmalloc::vfree(VirtAddr::new(stack));
    }

    /// Lowest address of the thread's stack.
    pub fn stack(&self) -> VirtAddr {
        VirtAddr::new(SLOTS[self.number].lock().info.stack)
    }
}
