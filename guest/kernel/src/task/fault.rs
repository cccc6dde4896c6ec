//! Traps from ring 3 that are the program's own doing, and the way back (Linux: arch/x86/mm/fault.c, arch/x86/kernel/traps.c,
//! kernel/entry/common.c).

use guest_process::signal::{SigInfo, Signal, code};
use mm_core::{Event, EventId, PhysAddr, Trace};
use mm_vma::{Access, Done, Fault, FaultInfo, Kernel, handle_fault};

use super::{Current, current, do_exit, work};
use crate::arch::trap::{self, TrapFrame};
use crate::arch::{percpu, regs};
use crate::mm::oom;
use crate::mm::space::{self, Spaces};
use crate::trace::KernelTrace;
use crate::{pr_warn, sched, signal};

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
    KernelTrace.emit_with(EventId::PageFault, || Event::PageFault {
        address,
        ip: frame.rip,
        error_code: frame.error,
    });
    let result = handle_fault(&Spaces, mm, what, || task.limits());
    KernelTrace.emit_with(EventId::PageFaultRet, || Event::PageFaultRet {
        ok: result.is_ok(),
        pfn: space::translate(space::mm_of(mm), address, false).map(PhysAddr::pfn),
    });
    match result {
        Ok(Done::Wait) => Spaces.relax(),
        Ok(Done::Minor | Done::Major | Done::Spurious) => {}
        Err(Fault::NoMemory) => pagefault_out_of_memory(),
        Err(fault) => bad_area(&task, frame, address, fault),
    }
}

/// The access is tried again, once there is a page to be had, or the process has been killed for one (Linux: the same name).
fn pagefault_out_of_memory() {
    if !super::fatal_signal_pending() && !oom::wait_for_page() {
        // Nothing but a victim is refused, and it is not told otherwise than by SIGKILL: let whoever ends it run.
        Spaces.relax();
    }
}

/// Linux: `bad_area`, `show_signal_msg`.
fn bad_area(task: &Current, frame: &TrapFrame, address: u64, fault: Fault) {
    let (signal, what) = match fault {
        // Not the program's doing: `pagefault_out_of_memory`.
        Fault::NoMemory => return,
        Fault::AdrErr => (Signal::BUS, "bus error"),
        Fault::MapErr | Fault::AccErr => (Signal::SEGV, "segfault"),
    };
    if !signal::is_handled(task, signal) {
        pr_warn!(
            "task[{}]: {what} at {address:x} ip {:x} sp {:x} error {:x} (si_code {})",
            task.process.pid,
            frame.rip,
            frame.rsp,
            frame.error,
            fault.code(),
        );
    }
    task.signals.set_trap(frame.error, frame.vector, address);
    signal::force(task, SigInfo::fault(signal, fault.code(), address));
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
        pr_warn!(
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
