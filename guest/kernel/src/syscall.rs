//! System calls, with Linux's numbers and results (arch/x86/entry/syscalls/syscall_64.tbl). Each group is a file with a function `call`
//! that knows its numbers.

mod fs;
mod futex;
mod ipc;
mod log;
mod mempolicy;
mod mm;
mod move_pages;
mod process;
mod resources;
mod signal;
mod time;

use core::sync::atomic::{AtomicU64, Ordering};

pub use fs::open_console;
use mm_core::{Event, EventId, Trace};
use mm_vma::Errno;

use crate::arch::percpu;
use crate::arch::trap::TrapFrame;
use crate::pr_warn;
use crate::task::{current, current_pid, work};
use crate::trace::KernelTrace;

/// Numbers below this are counted each, all others together behind them.
const NUMBERS: usize = 512;

/// Calls that are not there, by number.
static UNKNOWN: [AtomicU64; NUMBERS + 1] = [const { AtomicU64::new(0) }; NUMBERS + 1];

/// An argument of C's type `int`.
const fn int(argument: u64) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "the upper half of the register means nothing")]
    let low = argument as u32;
    low
}

/// An argument of C's type `int` that may be negative.
const fn signed(argument: u64) -> i32 {
    int(argument).cast_signed()
}

/// The arguments of a call.
const fn arguments(frame: &TrapFrame) -> [u64; 6] {
    [frame.rdi, frame.rsi, frame.rdx, frame.r10, frame.r8, frame.r9]
}

/// Runs the call that the frame's registers describe. A call that changes the frame itself (execve, sigreturn) returns what RAX is to be.
pub fn dispatch(frame: &mut TrapFrame) {
    if let Some(percpu) = percpu::current() {
        percpu::count(&percpu.syscalls);
    }
    let number = frame.rax;
    KernelTrace.emit_with(EventId::Syscall, || Event::Syscall {
        id: number,
        args0: frame.rdi,
        args1: frame.rsi,
        args2: frame.rdx,
    });
    // A system call has no error code: there its number is kept, for calls that begin again.
    frame.error = number;
    let result = mm::call(number, frame)
        .or_else(|| mempolicy::call(number, frame))
        .or_else(|| move_pages::call(number, frame))
        .or_else(|| process::call(number, frame))
        .or_else(|| fs::call(number, frame))
        .or_else(|| others(number, frame))
        .unwrap_or_else(|| unknown(number));
    frame.rax = match result {
        Ok(value) => value,
        Err(errno) => {
            if let (true, Some(task)) = (errno.number() >= Errno::Erestartsys.number(), current()) {
                // No program sees these: delivery makes EINTR of them, or begins again.
                task.set_work(work::SIGPENDING);
            }
            errno.result()
        }
    };
    KernelTrace.emit_with(EventId::SyscallRet, || Event::SyscallRet { ret: frame.rax });
}

/// Groups that hold structures on the stack, in a frame of its own: beneath the others memory is allocated, and kernel stacks have 16 KiB.
#[inline(never)]
fn others(number: u64, frame: &mut TrapFrame) -> Option<Result<u64, Errno>> {
    signal::call(number, frame)
        .or_else(|| futex::call(number, frame))
        .or_else(|| time::call(number, frame))
        .or_else(|| resources::call(number, frame))
        .or_else(|| ipc::call(number, frame))
        .or_else(|| log::call(number, frame))
}

fn unknown(number: u64) -> Result<u64, Errno> {
    let at = usize::try_from(number).map_or(NUMBERS, |number| number.min(NUMBERS));
    if UNKNOWN.get(at).is_some_and(|count| count.fetch_add(1, Ordering::Relaxed) == 0) && at < NUMBERS {
        pr_warn!("task[{}]: system call {number} is not there", current_pid());
    }
    Err(Errno::Enosys)
}
