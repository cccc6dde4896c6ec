//! The first process (Linux: init/main.c, `kernel_init`, `run_init_process`).

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use mm_vma::Errno;

use super::{Current, Process, current, do_exit, fork, wait};
use crate::arch::trap::TrapFrame;
use crate::arch::user;
use crate::elf::{self, Bundled};
use crate::sched::{self, CpuMask, WaitQueue, Woken};
use crate::syscall::open_console;
use crate::{exec, pr_err};

/// Status, as wait4 gives it, of a program that cannot be started: exit(127).
const NOT_STARTED: u32 = 127 << 8;

/// How far a first process came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It ended, with a status as a shell shows it: 128 + signal for a signal.
    Exited(u32),
    /// It called pause and lives.
    Paused,
}

/// What the program gets in RDI.
static ARGUMENT: AtomicU64 = AtomicU64::new(0);

/// Starts the program of the kernel image as process `pid`.
///
/// # Errors
/// `ENOMEM`.
pub fn run_init(pid: u32, argument: u64) -> Result<Arc<Process>, Errno> {
    ARGUMENT.store(argument, Ordering::Relaxed);
    first(pid, start)
}

/// Starts a first process with the program of a file; `start` is called on its thread (Linux: `kernel_init`).
///
/// # Errors
/// `ENOMEM`.
pub fn run_file(pid: u32, start: fn(u64)) -> Result<Arc<Process>, Errno> {
    first(pid, start)
}

/// Goes to ring 3 with the registers of a program that begins, or ends the task.
pub fn enter(program: Result<TrapFrame, Errno>) {
    let Some(task) = current() else { return };
    match program {
        Ok(mut frame) => user::enter(&mut frame, super::exit_to_user),
        Err(error) => {
            pr_err!("task[{}]: cannot be loaded: {error}", task.process.pid);
            do_exit(NOT_STARTED)
        }
    }
}

fn first(pid: u32, start: fn(u64)) -> Result<Arc<Process>, Errno> {
    let task = fork::kernel_task(pid).ok_or(Errno::Enomem)?;
    let process = Arc::clone(&task.process);
    let mut name = [0; 16];
    name[..4].copy_from_slice(b"init");
    // Left by `start` only with the registers of a program.
    fork::begin(&task, &TrapFrame::default(), start, name, CpuMask::ALL)?;
    Ok(process)
}

/// Gives the task the program of the kernel image, with its argument in RDI.
fn load(task: &Current) -> Result<TrapFrame, Errno> {
    let program = Bundled::open()?;
    let mut frame = exec::exec(task, &program, &elf::strings(task.limits().stack)?)?;
    frame.rdi = ARGUMENT.load(Ordering::Relaxed);
    Ok(frame)
}

/// On the new thread.
fn start(_frame: u64) {
    let Some(task) = current() else { return };
    let program = task.files.begin().and_then(|()| open_console()).and_then(|()| load(&task));
    enter(program);
}

/// Waits until the process ended, and takes its last traces away, or until it pauses.
pub fn wait_init(process: &Arc<Process>) -> End {
    let context = sched::task_context();
    let leader = || process.leader.load(Ordering::Acquire);
    process.ended.wait_event(&context, || {
        process.is_zombie() || process.paused.load(Ordering::Acquire) && sched::is_asleep(leader())
    });
    if !process.is_zombie() {
        return End::Paused;
    }
    wait::release(process);
    let status = process.status.load(Ordering::Acquire);
    End::Exited(if status & 0x7f == 0 { status >> 8 & 0xff } else { 128 + (status & 0x7f) })
}

/// Those who pause.
static PAUSED: WaitQueue = WaitQueue::new();
/// The first process whose pause the kernel ends; 0 for none.
static GOES_ON: AtomicU32 = AtomicU32::new(0);

/// Sleeps until a signal comes (Linux: `pause`), or until the kernel ends it; the call's error.
pub fn pause() -> Errno {
    let Some(task) = current() else { return Errno::Eintr };
    let process = &task.process;
    process.paused.store(true, Ordering::Release);
    process.ended.wake_up_all();
    let goes_on = || GOES_ON.compare_exchange(process.pid, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    let woken = PAUSED.wait_interruptible(&sched::task_context(), None, goes_on);
    process.paused.store(false, Ordering::Release);
    match woken {
        // No signal says what is to be done: the program goes on.
        Woken::Event => Errno::Eintr,
        _ => Errno::Erestartnohand,
    }
}

/// Lets a first process go on after [`wait_init`] saw it pause, as a signal that it handles would. Returns when it was told, so
/// that it is not seen pausing twice; it may pause anew by then.
pub fn end_pause(process: &Process) {
    GOES_ON.store(process.pid, Ordering::Release);
    PAUSED.wake_up_all();
    let context = sched::task_context();
    let untold = || GOES_ON.load(Ordering::Acquire) == process.pid;
    while untold() && process.paused.load(Ordering::Acquire) && !process.is_zombie() {
        sched::yield_now(&context);
    }
    // A signal was faster.
    let _ = GOES_ON.compare_exchange(process.pid, 0, Ordering::AcqRel, Ordering::Relaxed);
}
