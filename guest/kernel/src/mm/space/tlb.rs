//! Which address space a CPU has in CR3, and how translations of it are dropped (Linux: arch/x86/mm/tlb.c).
//!
//! Invariants:
//! L1  a CPU is in the mask of an address space while its tables are in the CPU's CR3: it is added before CR3 is written and
//!     taken out after the next write. There is no PCID, so no other CPU holds translations of it;
//! L2  a CPU that runs none of its tasks is lazy: a flush makes it leave the tables, and later flushes do not disturb it;
//! L3  an address space is freed after its last user went and every CPU left its tables.

use core::sync::atomic::{Ordering, fence};

use mm_core::Pfn;
use mm_pgtable::FlushRange;
use mm_vma::{Id, Mm};

use super::{mm_of, objects, published};
use crate::arch::percpu::{self, PerCpu};
use crate::arch::{pti, regs};
use crate::mm::paging;
use crate::sched::CpuMask;
use crate::smp;

/// Pages that are flushed one by one; more are flushed all at once (Linux: `tlb_single_page_flush_ceiling`).
const FLUSH_CEILING: u64 = 33;

/// Makes this CPU use an address space, for a task that has it. Interrupts are off (Linux: `switch_mm_irqs_off`).
pub fn switch_mm(percpu: &PerCpu, id: Id<Mm>) {
    percpu.lazy.store(0, Ordering::Relaxed);
    let old = percpu.loaded_mm.load(Ordering::Relaxed);
    if old == id.as_u64() {
        return;
    }
    let (mm, cpu) = (mm_of(id), percpu.cpu.load(Ordering::Relaxed));
    // From now on who changes the tables flushes this CPU.
    if let Some(word) = objects::of_mm(mm).cpus.get(cpu as usize / 64) {
        word.fetch_or(1 << (cpu % 64), Ordering::SeqCst);
    }
    percpu.loaded_mm.store(id.as_u64(), Ordering::Relaxed);
    published::loads(cpu, id.as_u64());
    // SAFETY: the upper half is the kernel's.
    unsafe { regs::write_cr3(mm.page_table().root.phys().as_u64()) };
    if pti::enabled() {
        pti::set_tables(percpu, mm.page_table().root.phys(), Pfn::new(mm.user_root()).phys());
    }
    forget(old, cpu);
}

/// Makes this CPU use an address space that none of its tasks has, until [`leave_mm`], the next task, or a flush from another CPU.
pub fn use_mm(id: Id<Mm>) {
    let flags = regs::irq_save();
    if let Some(percpu) = percpu::current() {
        switch_mm(percpu, id);
        enter_lazy(percpu);
    }
    regs::irq_restore(flags);
}

/// No task of the loaded address space runs here from now on (Linux: `enter_lazy_tlb`).
pub fn enter_lazy(percpu: &PerCpu) {
    percpu.lazy.store(1, Ordering::Relaxed);
}

/// Makes this CPU use the kernel's own tables. Interrupts are off (Linux: `leave_mm`).
pub fn leave_mm() {
    let Some(percpu) = percpu::current() else { return };
    let old = percpu.loaded_mm.swap(0, Ordering::Relaxed);
    if old == 0 {
        return;
    }
    // SAFETY: the kernel's own tables.
    unsafe { regs::write_cr3(paging::kernel().root.phys().as_u64()) };
    let cpu = percpu.cpu.load(Ordering::Relaxed);
    published::loads(cpu, 0);
    forget(old, cpu);
}

/// [`leave_mm`] if no task here needs the address space: part of answering a flush.
pub fn leave_if_lazy(percpu: &PerCpu) {
    if percpu.lazy.load(Ordering::Relaxed) != 0 {
        leave_mm();
    }
}

/// Takes this CPU out of the mask of what it had loaded before.
fn forget(old: u64, cpu: u32) {
    let Some(id) = Id::<Mm>::new(old) else { return };
    if let Some(word) = objects::of_mm(mm_of(id)).cpus.get(cpu as usize / 64) {
        word.fetch_and(!(1 << (cpu % 64)), Ordering::SeqCst);
    }
}

/// Whether a CPU other than `own` may hold translations.
fn is_elsewhere(mm: &Mm, own: u32) -> bool {
    objects::of_mm(mm).cpus.iter().enumerate().any(|(index, word)| {
        let here = if own as usize / 64 == index { 1 << (own % 64) } else { 0 };
        word.load(Ordering::SeqCst) & !here != 0
    })
}

/// Drops the translations in `range` on every CPU that may hold any (Linux: `flush_tlb_mm_range`).
pub fn flush(mm: &Mm, range: &FlushRange) {
    // The entries are changed before the mask is read: a CPU that is not in it yet loads them as they are.
    fence(Ordering::SeqCst);
    let flags = regs::irq_save();
    if paging::current().root == mm.page_table().root {
        flush_local(range);
    }
    flush_elsewhere(mm);
    regs::irq_restore(flags);
}

/// Asks the other CPUs of the mask, and no others. One that joins it meanwhile loads the entries as they are now.
fn flush_elsewhere(mm: &Mm) {
    if is_elsewhere(mm, percpu::cpu()) {
        let words = objects::of_mm(mm).cpus.each_ref().map(|word| word.load(Ordering::SeqCst));
        smp::flush_cpus(&CpuMask::from_words(words));
    }
}

/// Makes every CPU leave the tables of an address space that no task uses any more.
pub(super) fn leave_everywhere(mm: &Mm) {
    let flags = regs::irq_save();
    if paging::current().root == mm.page_table().root {
        leave_mm();
    }
    flush_elsewhere(mm);
    regs::irq_restore(flags);
    debug_assert!(!is_elsewhere(mm, u32::MAX), "a CPU still uses the tables of a dead address space");
}

/// Drops translations of user space on this CPU (Linux: `flush_tlb_func`).
fn flush_local(range: &FlushRange) {
    match *range {
        FlushRange::Range { start, last, stride }
            if (last.as_u64() - start.as_u64()) / stride.max(1) < FLUSH_CEILING =>
        {
            let step = usize::try_from(stride.max(1)).unwrap_or(usize::MAX);
            (start.as_u64()..=last.as_u64()).step_by(step).for_each(regs::invlpg);
        }
        FlushRange::Range { .. } | FlushRange::All { global: false } => {
            // SAFETY: the value is the one in force.
            unsafe { regs::write_cr3(regs::cr3()) };
        }
        _ => paging::flush_local(range),
    }
}
