//! What changes when a CPU goes from one task to another (Linux: `__switch_to`, `switch_mm_irqs_off`, `enter_lazy_tlb`).

use core::sync::atomic::Ordering;

use super::Task;
use crate::arch::fpu;
use crate::arch::percpu::{self, PerCpu};
use crate::mm::space::tlb;
use crate::sched::clock;

/// Takes ring 3 of this CPU from `prev` to `next`, whose kernel stack ends at `stack_top`. `None` is a thread of the kernel. Interrupts
/// are off, and the queue is locked.
pub fn switch_to(percpu: &PerCpu, prev: Option<&Task>, next: Option<&Task>, stack_top: u64) {
    if let Some(prev) = prev {
        prev.fpu.save(percpu);
        prev.time.end();
    }
    let Some(next) = next else {
        if prev.is_some() {
            percpu.user.store(0, Ordering::Relaxed);
            percpu.pid.store(0, Ordering::Relaxed);
            tlb::enter_lazy(percpu);
        }
        return;
    };
    percpu::set_kernel_stack(percpu, stack_top);
    if let Some(mm) = next.mm() {
        tlb::switch_mm(percpu, mm);
    }
    next.fpu.restore(percpu);
    next.time.begin();
    fpu::set_fs_base(percpu, next.fs_base());
    fpu::set_gs_base(percpu, next.gs_base());
    percpu.user.store(&raw const *next as u64, Ordering::Relaxed);
    percpu.pid.store(next.process.pid, Ordering::Relaxed);
    clock::runs_user(percpu);
}
