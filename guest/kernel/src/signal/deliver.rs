//! Delivery on the way back to ring 3, and the way back from a handler (Linux: arch/x86/kernel/signal.c,
//! `arch_do_signal_or_restart`, `rt_sigreturn`).

use core::sync::atomic::Ordering;

use guest_process::frame::{self, Bounds, Context, FRAME_LEN, FXSAVE_LEN, Frame, Registers, Selectors, Trap};
use guest_process::signal::{AltStack, Delivery, Handled, Restart, SigAction, Signal};
use mm_vma::Errno;
use zerocopy::IntoBytes;

use super::{decide_exit, is_orphaned, tell_parent, wake};
use crate::arch::fpu::FXSAVE_WORDS;
use crate::arch::percpu::{USER_CS, USER_DS};
use crate::arch::trap::{TrapFrame, VECTOR_SYSCALL};
use crate::mm::layout::levels;
use crate::sched::{self, WaitQueue};
use crate::task::{Current, current, do_exit, do_group_exit, work};
use crate::uaccess;

/// In [`TrapFrame::error`] of a system call is its number, and this once there is nothing to restart (Linux: `orig_ax`).
const NO_CALL: u64 = u64::MAX;
const RESTART_SYSCALL: u64 = 219;
/// Bytes of the `syscall` instruction.
const SYSCALL_LEN: u64 = 2;
const SELECTORS: Selectors = Selectors { cs: USER_CS, ss: USER_DS };

/// Does what the current task's signals want before it goes on in ring 3. Interrupts are on.
pub fn deliver(trap: &mut TrapFrame) {
    let Some(task) = current() else { return };
    let process = &task.process;
    // What comes from here on sets it again.
    task.clear_work(work::SIGPENDING);
    loop {
        let next = process.signals.with(|group| {
            let next = group.next(task.tid(), || is_orphaned(process), &mut wake);
            decide_exit(process, group);
            next
        });
        match next.flatten() {
            None => return restart(trap, None),
            Some(Delivery::Handler(handled)) => {
                restart(trap, Some(&handled.action));
                run_handler(&task, trap, &handled);
            }
            Some(Delivery::Stop) => stop(&task),
            Some(Delivery::Notice(notice)) => tell_parent(process, notice),
            Some(Delivery::Exit(exit)) => do_group_exit(exit.status()),
            Some(Delivery::ExitThread) => do_exit(0),
        }
    }
}

/// Sleeps until SIGCONT or the end (Linux: `do_signal_stop`).
fn stop(task: &Current) {
    static STOPPED: WaitQueue = WaitQueue::new();
    let process = &task.process;
    if let Some(notice) = process.signals.with(|group| group.take_notice()).flatten() {
        tell_parent(process, notice);
    }
    let goes_on = || process.signals.with(|group| !group.is_stopped(task.tid())).unwrap_or(true);
    // Who wakes it finds it by its number, not by the queue.
    STOPPED.wait_killable(&sched::task_context(), goes_on);
    if task.has_work(work::KILLED) {
        do_exit(0);
    }
}

/// A call that was interrupted begins again or says so. `action` is that of the first handler that runs now.
fn restart(trap: &mut TrapFrame, action: Option<&SigAction>) {
    if trap.vector != VECTOR_SYSCALL || trap.error == NO_CALL {
        return;
    }
    let codes =
        [Errno::Erestartsys, Errno::Erestartnointr, Errno::Erestartnohand, Errno::ErestartRestartblock];
    let number = core::mem::replace(&mut trap.error, NO_CALL);
    let Some(code) = codes.into_iter().find(|code| code.result() == trap.rax) else { return };
    let again = match Restart::of(code, action) {
        Restart::No => return,
        Restart::Interrupted => {
            trap.rax = Errno::Eintr.result();
            return;
        }
        Restart::Again => number,
        Restart::Block => RESTART_SYSCALL,
    };
    trap.rax = again;
    trap.rip = trap.rip.wrapping_sub(SYSCALL_LEN);
}

/// Makes the task begin the handler when it goes back (Linux: `handle_signal`).
fn run_handler(task: &Current, trap: &mut TrapFrame, handled: &Handled) {
    let process = &task.process;
    let built = build(task, trap, handled);
    process.signals.with(|group| match built {
        Some(frame) => {
            if frame.disarms {
                group.set_altstack(task.tid(), AltStack::NONE);
            }
            group.handled(task.tid(), handled, &mut wake);
        }
        None => {
            group.force_segv(task.tid(), Some(handled.info.signal), &mut wake);
            decide_exit(process, group);
        }
    });
}

/// Writes the frame and sets the registers; `None` if it cannot be.
fn build(task: &Current, trap: &mut TrapFrame, handled: &Handled) -> Option<Frame> {
    let altstack = task.process.signals.with(|group| group.altstack(task.tid()))?;
    let [error, vector, cr2] = task.signals.trap.each_ref().map(|word| word.load(Ordering::Relaxed));
    let context = Context {
        registers: registers(trap),
        selectors: SELECTORS,
        trap: Trap { error, vector, cr2 },
        altstack,
        fpu_len: FXSAVE_LEN,
    };
    let frame = frame::place(&context, handled).ok()?;
    save_fpu(task, frame.fpu_at).ok()?;
    uaccess::write(frame.at, &frame::bytes(&frame, &context, handled)).ok()?;
    set_registers(trap, &frame.registers);
    trap.cs = u64::from(USER_CS);
    trap.ss = u64::from(USER_DS);
    task.reset_fpu();
    Some(frame)
}

fn save_fpu(task: &Current, address: u64) -> Result<(), Errno> {
    /// Words that FXSAVE does not write: what is there is a frame's mark of more state, of which there is none.
    const UNWRITTEN: usize = 52;
    let mut words = task.saved_fpu();
    words[UNWRITTEN..].fill(0);
    uaccess::write(address, words.as_bytes())
}

/// rt_sigreturn: the task goes on where the signal found it. Returns what RAX is to be.
pub fn return_from_handler(trap: &mut TrapFrame) -> u64 {
    let Some(task) = current() else { return 0 };
    trap.error = NO_CALL;
    if restore(&task, trap).is_some() {
        return trap.rax;
    }
    crate::pr_info!("task[{}]: bad frame in rt_sigreturn at {:x}", task.process.pid, trap.rsp);
    task.process.signals.with(|group| {
        group.force_segv(task.tid(), None::<Signal>, &mut wake);
        decide_exit(&task.process, group);
    });
    task.set_work(work::SIGPENDING);
    0
}

fn restore(task: &Current, trap: &mut TrapFrame) -> Option<()> {
    let mut bytes = [0; FRAME_LEN];
    uaccess::read(frame::of_return(trap.rsp), &mut bytes).ok()?;
    let address_bits = if levels().count() == 5 { 57 } else { 48 };
    let bounds = Bounds { selectors: SELECTORS, rflags: trap.rflags, address_bits };
    let restored = frame::restore(&bytes, &bounds).ok()?;
    match restored.fpu_at {
        Some(address) => {
            let mut words = [0_u64; FXSAVE_WORDS];
            uaccess::read(address, words.as_mut_bytes()).ok()?;
            task.load_fpu(&words);
        }
        None => task.reset_fpu(),
    }
    set_registers(trap, &restored.registers);
    super::with_own(|group, tid| {
        let mut altstack = group.altstack(tid);
        // As Linux: what cannot be set is left as it is.
        if altstack.set(&restored.altstack, trap.rsp).is_ok() {
            group.set_altstack(tid, altstack);
        }
        group.set_blocked(tid, restored.mask, &mut wake);
    })
    .ok()
}

const fn registers(trap: &TrapFrame) -> Registers {
    Registers {
        r8_to_r15: [trap.r8, trap.r9, trap.r10, trap.r11, trap.r12, trap.r13, trap.r14, trap.r15],
        rdi: trap.rdi,
        rsi: trap.rsi,
        rbp: trap.rbp,
        rbx: trap.rbx,
        rdx: trap.rdx,
        rax: trap.rax,
        rcx: trap.rcx,
        rsp: trap.rsp,
        rip: trap.rip,
        rflags: trap.rflags,
    }
}

const fn set_registers(trap: &mut TrapFrame, new: &Registers) {
    [trap.r8, trap.r9, trap.r10, trap.r11, trap.r12, trap.r13, trap.r14, trap.r15] = new.r8_to_r15;
    (trap.rdi, trap.rsi, trap.rbp, trap.rbx) = (new.rdi, new.rsi, new.rbp, new.rbx);
    (trap.rdx, trap.rax, trap.rcx) = (new.rdx, new.rax, new.rcx);
    (trap.rsp, trap.rip, trap.rflags) = (new.rsp, new.rip, new.rflags);
}
