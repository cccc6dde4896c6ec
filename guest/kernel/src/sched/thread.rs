//! Threads: begin, end, join (Linux: `kthread_create`, `kthread_stop`).

use guest_firmware::acpi::MAX_CPUS;
use memvisor_abi::{THREAD_SIZE, TaskInfo, TaskState};
use mm_core::{MaySleep, VirtAddr};
use mm_vmalloc::{Request, VmError};

use super::{ANY_CPU, NO_INFO, SCHED, WaitQueue, current, finish_switch, schedule};
use crate::arch::percpu::{PerCpu, THREAD_TOP, thread_info};
use crate::arch::{regs, stack};
use crate::mm::phys;
use crate::mm::vmalloc;
use crate::smp;

/// Woken when any thread ends.
static ENDED: WaitQueue = WaitQueue::new();

/// A thread that somebody will join.
#[must_use = "a thread that nobody joins keeps its stack"]
#[derive(Debug)]
pub struct Thread {
    number: usize,
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
    SCHED.lock().tasks[thread.number].daemon = true;
    Ok(())
}

fn begin(
    name: &str,
    entry: fn(u64),
    argument: u64,
    pinned: u32,
    context: &MaySleep<'_>,
) -> Result<Thread, VmError> {
    let base = vmalloc::vmalloc(&Request::stack(), context)?;
    let top = base.as_u64() + THREAD_SIZE - THREAD_TOP;
    // What `switch_stacks` pops; the registers are zero.
    phys::store_mapped(VirtAddr::new(top - 8), stack::thread_start());
    let mut comm = [0; 16];
    for (to, from) in comm.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    let mut sched = SCHED.lock();
    let free = sched.tasks[MAX_CPUS..].iter().position(|task| task.info.state == TaskState::Unused as u32);
    let Some(free) = free else {
        drop(sched);
        vmalloc::vfree(base);
        return Err(VmError::NoMemory);
    };
    let number = MAX_CPUS + free;
    let pid = sched.pids;
    sched.pids += 1;
    let task = &mut sched.tasks[number];
    task.info = TaskInfo {
        pid,
        stack: base.as_u64(),
        stack_len: THREAD_SIZE,
        rsp: top - stack::FIRST_FRAME,
        pinned,
        name: comm,
        ..NO_INFO
    };
    (task.entry, task.argument, task.sleeps, task.daemon) = (entry, argument, false, false);
    sched.push(number);
    drop(sched);
    smp::kick((pinned != ANY_CPU).then_some(pinned));
    Ok(Thread { number })
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
    regs::irq_restore(1 << 9);
    let (entry, argument) = {
        let sched = SCHED.lock();
        let task = &sched.tasks[current()];
        (task.entry, task.argument)
    };
    entry(argument);
    exit()
}

/// Ends the thread. Its stack stays until somebody joins it.
fn exit() -> ! {
    regs::irq_save();
    let number = current();
    let depth = super::LOCAL_MAPS[number].lock().depth();
    assert!(depth == 0, "a thread ended with {depth} kmap_local mappings");
    SCHED.lock().tasks[number].info.state = TaskState::Dead as u32;
    ENDED.wake_up_all();
    schedule();
    unreachable!("a dead thread was scheduled")
}

impl Thread {
    /// Waits until the thread ended, and gives back its stack (Linux: `kthread_stop` without asking it to).
    pub fn join(self, context: &MaySleep<'_>) {
        // Dead and off its stack: the queue's lock was held until then.
        ENDED.wait_event(context, || {
            let sched = SCHED.lock();
            let info = &sched.tasks[self.number].info;
            info.state == TaskState::Dead as u32 && info.rsp != 0
        });
        let stack = {
            let mut sched = SCHED.lock();
            let task = &mut sched.tasks[self.number];
            let stack = task.info.stack;
            task.info = NO_INFO;
            stack
        };
        vmalloc::vfree(VirtAddr::new(stack));
    }

    /// Lowest address of the thread's stack.
    pub fn stack(&self) -> VirtAddr {
        VirtAddr::new(SCHED.lock().tasks[self.number].info.stack)
    }
}
