//! Traps from ring 3 that are the program's own doing, and the way back (Linux: arch/x86/mm/fault.c, arch/x86/kernel/traps.c,
//! kernel/entry/common.c).

use guest_process::signal::{SigInfo, Signal, code};
use mm_vma::{Access, Done, Fault, FaultInfo, Kernel, handle_fault};

use super::{Current, current, do_exit, do_group_exit, work};
use crate::arch::trap::{self, TrapFrame};
use crate::arch::{percpu, regs};
use crate::mm::space::Spaces;
use crate::{println, sched, signal};

/// A page fault from ring 3 (Linux: `do_user_addr_fault`).
pub fn page_fault(frame: &mut TrapFrame, address: u64) {
    const PRESENT: u64 = 1;
    const WRITE: u64 = 1 << 1;
    const RESERVED: u64 = 1 << 3;
    const FETCH: u64 = 1 << 4;
    if let Some(percpu) = percpu::current() {
        percpu::count(&percpu.faults);
    }
    assert!(frame.error & RESERVED == 0, "corrupted page table at {address:#x}, error {:#x}", frame.error);
    let access = match frame.error {
        error if error & FETCH != 0 => Access::Fetch,
        error if error & WRITE != 0 => Access::Write,
        _ => Access::Read,
    };
    let task = current().expect("ring 3 is a task's");
    let mm = task.mm().expect("a task in ring 3 has an address space");
    let what = FaultInfo { addr: address, access, present: frame.error & PRESENT != 0 };
    match handle_fault(&Spaces, mm, what, || task.limits()) {
        Ok(Done::Wait) => Spaces.relax(),
        Ok(Done::Minor | Done::Major | Done::Spurious) => {}
        Err(fault) => bad_area(&task, frame, address, fault),
    }
}

/// Linux: `bad_area`, `show_signal_msg`.
fn bad_area(task: &Current, frame: &TrapFrame, address: u64, fault: Fault) {
    let (signal, what) = match fault {
        Fault::NoMemory => (Signal::KILL, "out of memory"),
        Fault::AdrErr => (Signal::BUS, "bus error"),
        Fault::MapErr | Fault::AccErr => (Signal::SEGV, "segfault"),
    };
    if !signal::is_handled(task, signal) {
        println!(
            "task[{}]: {what} at {address:x} ip {:x} sp {:x} error {:x} (si_code {})",
            task.process.pid,
            frame.rip,
            frame.rsp,
            frame.error,
            fault.code(),
        );
    }
    task.signals.set_trap(frame.error, frame.vector, address);
    match fault {
        Fault::NoMemory => do_group_exit(Signal::KILL.number()),
        _ => signal::force(task, SigInfo::fault(signal, fault.code(), address)),
    }
}

/// Any other trap from ring 3 (Linux: `do_error_trap` and its likes).
pub fn trap(frame: &mut TrapFrame) {
    let task = current().expect("ring 3 is a task's");
    let at = frame.rip;
    let info = match frame.vector {
        0 => SigInfo::fault(Signal::FPE, code::FPE_INTDIV, at),
        1 => SigInfo::fault(Signal::TRAP, code::TRAP_TRACE, at),
        3 => SigInfo::kernel(Signal::TRAP),
        6 => SigInfo::fault(Signal::ILL, code::ILL_ILLOPN, at),
        11 | 12 => SigInfo::kernel(Signal::BUS),
        16 | 19 => SigInfo::fault(Signal::FPE, task.fpu_code(frame.vector), at),
        17 => SigInfo::fault(Signal::BUS, code::BUS_ADRALN, 0),
        _ => SigInfo::kernel(Signal::SEGV),
    };
    if !signal::is_handled(&task, info.signal) {
        println!(
            "task[{}]: {} ip {at:x} sp {:x} error {:x}",
            task.process.pid,
            trap::name(frame.vector),
            frame.rsp,
            frame.error
        );
    }
    task.signals.set_trap(frame.error, frame.vector, 0);
    signal::force(&task, info);
}

/// What is left to do before ring 3 goes on with `frame`: give up the CPU, end, deliver signals. Interrupts are off before and after
/// (Linux: `exit_to_user_mode_loop`).
#[inline]
pub fn exit_to_user(frame: &mut TrapFrame) {
    let idle = |task: super::Current| !task.has_work(work::KILLED | work::SIGPENDING);
    if sched::needs_resched() || !current().is_none_or(idle) {
        exit_to_user_with_work(frame);
    }
}

#[inline(never)]
fn exit_to_user_with_work(frame: &mut TrapFrame) {
    loop {
        sched::resched_to_user();
        let Some(task) = current() else { return };
        if !task.has_work(work::KILLED | work::SIGPENDING) {
            return;
        }
        regs::irq_restore(regs::RFLAGS_IF);
        if task.has_work(work::KILLED) {
            do_exit(0);
        }
        signal::deliver(frame);
        regs::irq_save();
    }
}
