//! Traps from ring 3 that are the program's own doing, and the way back (Linux: arch/x86/mm/fault.c, arch/x86/kernel/traps.c,
//! kernel/entry/common.c).

use core::sync::atomic::Ordering;

use mm_vma::{Access, Done, Fault, Kernel, handle_fault};

use super::{FAULTS, current, do_exit, do_group_exit, hooks, work};
use crate::arch::regs;
use crate::arch::trap::{self, TrapFrame};
use crate::mm::space::Spaces;
use crate::{println, sched};

const SIGILL: u32 = 4;
const SIGTRAP: u32 = 5;
const SIGBUS: u32 = 7;
const SIGFPE: u32 = 8;
const SIGKILL: u32 = 9;
const SIGSEGV: u32 = 11;
/// `si_code` of a signal from the kernel that says no more.
const SI_KERNEL: i32 = 0x80;

/// A page fault from ring 3 (Linux: `do_user_addr_fault`).
pub fn page_fault(frame: &mut TrapFrame, address: u64) {
    const PRESENT: u64 = 1;
    const WRITE: u64 = 1 << 1;
    const RESERVED: u64 = 1 << 3;
    const FETCH: u64 = 1 << 4;
    FAULTS.fetch_add(1, Ordering::Relaxed);
    assert!(frame.error & RESERVED == 0, "corrupted page table at {address:#x}, error {:#x}", frame.error);
    let access = match frame.error {
        error if error & FETCH != 0 => Access::Fetch,
        error if error & WRITE != 0 => Access::Write,
        _ => Access::Read,
    };
    let task = current().expect("ring 3 is a task's");
    let mm = task.mm().expect("a task in ring 3 has an address space");
    match handle_fault(&Spaces, mm, &task.limits(), address, access, frame.error & PRESENT != 0) {
        Ok(Done::Wait) => Spaces.relax(),
        Ok(Done::Minor | Done::Major | Done::Spurious) => {}
        Err(fault) => bad_area(frame, address, fault),
    }
}

/// Linux: `bad_area`, `show_signal_msg`.
fn bad_area(frame: &mut TrapFrame, address: u64, fault: Fault) {
    println!(
        "task[{}]: {} at {address:x} ip {:x} sp {:x} error {:x} (si_code {})",
        super::current_pid(),
        match fault {
            Fault::NoMemory => "out of memory",
            Fault::AdrErr => "bus error",
            Fault::MapErr | Fault::AccErr => "segfault",
        },
        frame.rip,
        frame.rsp,
        frame.error,
        fault.code(),
    );
    let signal = match fault {
        Fault::NoMemory => SIGKILL,
        Fault::AdrErr => SIGBUS,
        Fault::MapErr | Fault::AccErr => SIGSEGV,
    };
    force_signal(signal, fault.code(), address);
}

/// Any other trap from ring 3.
pub fn trap(frame: &mut TrapFrame) {
    println!(
        "task[{}]: {} ip {:x} sp {:x} error {:x}",
        super::current_pid(),
        trap::name(frame.vector),
        frame.rip,
        frame.rsp,
        frame.error
    );
    let (signal, code) = match frame.vector {
        // FPE_INTDIV
        0 => (SIGFPE, 1),
        // TRAP_TRACE
        1 => (SIGTRAP, 2),
        3 => (SIGTRAP, SI_KERNEL),
        // ILL_ILLOPN
        6 => (SIGILL, 2),
        11 | 12 => (SIGBUS, SI_KERNEL),
        16 | 19 => (SIGFPE, 0),
        // BUS_ADRALN
        17 => (SIGBUS, 1),
        _ => (SIGSEGV, SI_KERNEL),
    };
    force_signal(signal, code, frame.rip);
}

/// Sends the current task a signal that it cannot ignore (Linux: `force_sig_fault`).
///
/// Differs from Linux: until there are handlers, the process ends.
pub fn force_signal(signal: u32, _code: i32, _address: u64) {
    do_group_exit(signal)
}

/// What is left to do before ring 3 goes on with `frame`: give up the CPU, end, deliver signals. Interrupts are off before and after
/// (Linux: `exit_to_user_mode_loop`).
pub fn exit_to_user(frame: &mut TrapFrame) {
    loop {
        sched::resched_to_user();
        let Some(task) = current() else { return };
        if !task.has_work(work::KILLED | work::SIGPENDING) {
            return;
        }
        regs::irq_restore(1 << 9);
        if task.has_work(work::KILLED) {
            do_exit(0);
        }
        hooks::deliver_signals(frame);
        regs::irq_save();
    }
}
