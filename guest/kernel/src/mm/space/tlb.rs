//! Which address space a CPU has in CR3, and how translations of it are dropped (Linux: arch/x86/mm/tlb.c).
//!
//! Invariants:
//! L1  a CPU is in the mask of an address space while its tables are in the CPU's CR3: it is added before CR3 is written and
//!     taken out after the next write. There is no PCID, so no other CPU holds translations of it;
//! L2  a CPU that runs none of its tasks is lazy: nothing on it uses translations of user space. A flush does not disturb it; it
//!     catches up when it runs a task of the address space again. Only when tables are taken out it is asked, and leaves;
//! L3  an address space is freed after its last user went and every CPU left its tables;
//! L4  an address space counts its flushes. A CPU that did all up to a number holds no translation that an earlier or equal one was
//!     for; it drops single pages only if it did all before, and else everything.
//!
//! L5  who puts a flush off counts it among those of the address space at once (`tlb_deferred`), so that whoever enters it or leaves laziness after that
//!     drops everything; the CPUs that may hold the translation then are asked together.
//!
//! Differs from Linux: no PCID, which of the machines that this kernel is made for none offers to it.

use core::sync::atomic::Ordering;

use mm_core::Pfn;
use mm_pgtable::FlushRange;
use mm_vma::{Id, Mm};

use super::{mm_of, objects, published};
use crate::arch::percpu::{self, PerCpu};
use crate::arch::{pti, regs};
use crate::mm::paging;
use crate::sched::CpuMask;
use crate::smp::{self, Invalidation, Shootdown};

/// Makes this CPU use an address space, for a task that has it. Interrupts are off (Linux: `switch_mm_irqs_off`).
pub fn switch_mm(percpu: &PerCpu, id: Id<Mm>) {
    let was_lazy = percpu.lazy.load(Ordering::Relaxed) != 0;
    if was_lazy {
        // Before the look at the flushes so far: whoever flushes after that look sees it.
        percpu.lazy.store(0, Ordering::SeqCst);
    }
    let old = percpu.loaded_mm.load(Ordering::Relaxed);
    if old == id.as_u64() {
        if was_lazy {
            catch_up(percpu, id);
        }
        return;
    }
    let (mm, cpu) = (mm_of(id), percpu.cpu.load(Ordering::Relaxed));
    let object = objects::of_mm(mm);
    // From now on who changes the tables flushes this CPU.
    if let Some(word) = object.cpus.get(cpu as usize / 64) {
        word.fetch_or(1 << (cpu % 64), Ordering::SeqCst);
    }
    percpu.loaded_mm.store(id.as_u64(), Ordering::Relaxed);
    // Whatever is flushed before this, CR3's next write drops.
    percpu.tlb_generation.store(object.tlb_generation.load(Ordering::SeqCst), Ordering::Relaxed);
    published::loads(cpu, id.as_u64());
    // SAFETY: the upper half is the kernel's.
    unsafe { regs::write_cr3(mm.page_table().root.phys().as_u64()) };
    if pti::enabled() {
        pti::set_tables(percpu, mm.page_table().root.phys(), Pfn::new(mm.user_root()).phys());
    }
    forget(old, cpu);
}

/// Does the flushes that this CPU was not asked for while it was lazy, L2.
fn catch_up(percpu: &PerCpu, id: Id<Mm>) {
    let now = objects::of_mm(mm_of(id)).tlb_generation.load(Ordering::SeqCst);
    if percpu.tlb_generation.load(Ordering::Relaxed) != now {
        // SAFETY: the value is the one in force.
        unsafe { regs::write_cr3(regs::cr3()) };
        percpu.tlb_generation.store(now, Ordering::Relaxed);
    }
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

/// Drops the translations in `range` on every CPU that may use any (Linux: `flush_tlb_mm_range`).
pub fn flush(mm: &Mm, range: &FlushRange) {
    let flags = regs::irq_save();
    let shootdown = next(mm, Invalidation::of(range));
    everywhere(mm, &shootdown, Lazy::CatchUp, |percpu| drop_translations(percpu, &shootdown));
    regs::irq_restore(flags);
}

/// [`flush`] when tables were taken out of the tree, which go as soon as this returns.
pub fn flush_with_tables(mm: &Mm, range: &FlushRange) {
    let flags = regs::irq_save();
    let shootdown = next(mm, Invalidation::of(range));
    everywhere(mm, &shootdown, Lazy::Leave, |percpu| drop_translations(percpu, &shootdown));
    regs::irq_restore(flags);
}

/// CPUs that may hold translations whose flush was put off, of whatever address spaces (Linux: `struct arch_tlbflush_unmap_batch`).
#[derive(Debug)]
pub struct Unflushed(CpuMask);

impl Default for Unflushed {
    fn default() -> Unflushed {
        Unflushed(CpuMask::NONE)
    }
}

/// A translation of the address space was taken out, which [`flush_unmapped`] drops, L5 (Linux: `arch_tlbbatch_add_mm`).
pub fn defer(mm: &Mm, unflushed: &mut Unflushed) {
    let generation = next(mm, Invalidation::ALL).generation;
    let object = objects::of_mm(mm);
    object.tlb_deferred.fetch_max(generation, Ordering::SeqCst);
    let words = object.cpus.each_ref().map(|word| word.load(Ordering::SeqCst));
    unflushed.0 = unflushed.0.or(&CpuMask::from_words(words));
}

/// Has these CPUs drop what they hold (Linux: `arch_tlbbatch_flush`).
pub fn flush_unmapped(unflushed: &mut Unflushed) {
    let mut mask = core::mem::replace(&mut unflushed.0, CpuMask::NONE);
    if mask == CpuMask::NONE {
        return;
    }
    let flags = regs::irq_save();
    mask.retain(|cpu| percpu::of(cpu).lazy.load(Ordering::SeqCst) == 0);
    let shootdown = Shootdown { mm: Shootdown::ANY, what: Invalidation::ALL, generation: 0 };
    smp::flush_cpus(&mask, &shootdown, || {
        if let Some(percpu) =
            percpu::current().filter(|percpu| mask.contains(percpu.cpu.load(Ordering::Relaxed)))
        {
            drop_loaded(percpu);
        }
    });
    regs::irq_restore(flags);
}

/// Does what others put off for the address space and have not done yet (Linux: `flush_tlb_batched_pending`).
#[inline]
pub fn flush_deferred(mm: &Mm) {
    let object = objects::of_mm(mm);
    let deferred = object.tlb_deferred.load(Ordering::SeqCst);
    if deferred != 0 {
        flush_older(mm, object, deferred);
    }
}

/// Flushes the CPUs that have not flushed since generation `deferred`.
#[inline(never)]
fn flush_older(mm: &Mm, object: &objects::MmObject, deferred: u64) {
    let id = objects::id_of(mm).as_u64();
    let mut behind = CpuMask::from_words(object.cpus.each_ref().map(|word| word.load(Ordering::SeqCst)));
    behind.retain(|cpu| {
        let percpu = percpu::of(cpu);
        percpu.lazy.load(Ordering::SeqCst) == 0
            && percpu.loaded_mm.load(Ordering::Relaxed) == id
            && percpu.tlb_generation.load(Ordering::Relaxed) < deferred
    });
    if behind != CpuMask::NONE {
        flush(mm, &FlushRange::All { global: false });
    }
    // Unless more was put off meanwhile.
    let _ = object.tlb_deferred.compare_exchange(deferred, 0, Ordering::SeqCst, Ordering::Relaxed);
}

/// What CPUs do that run no task of the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lazy {
    /// Nothing before they run one again.
    CatchUp,
    /// They leave the tables at once.
    Leave,
}

/// The next flush. The entries are changed before it is counted, and it is counted before the mask is read: a CPU that is not in it yet
/// loads them as they are.
fn next(mm: &Mm, what: Invalidation) -> Shootdown {
    let object = objects::of_mm(mm);
    let generation = object.tlb_generation.fetch_add(1, Ordering::SeqCst) + 1;
    Shootdown { mm: objects::id_of(mm).as_u64(), what, generation }
}

/// Asks the other CPUs of the mask, and no others, and calls `own` for this one if it is in it.
fn everywhere(mm: &Mm, shootdown: &Shootdown, lazy: Lazy, own: impl FnOnce(&PerCpu)) {
    let own = || {
        if let Some(percpu) = percpu::current()
            && percpu.loaded_mm.load(Ordering::Relaxed) == shootdown.mm
        {
            own(percpu);
        }
    };
    if !is_elsewhere(mm, percpu::cpu()) {
        own();
        return;
    }
    let words = objects::of_mm(mm).cpus.each_ref().map(|word| word.load(Ordering::SeqCst));
    let mut mask = CpuMask::from_words(words);
    if lazy == Lazy::CatchUp {
        mask.retain(|cpu| percpu::of(cpu).lazy.load(Ordering::SeqCst) == 0);
    }
    smp::flush_cpus(&mask, shootdown, own);
}

/// Makes every CPU leave the tables of an address space that no task uses any more.
pub(super) fn leave_everywhere(mm: &Mm) {
    let flags = regs::irq_save();
    everywhere(mm, &next(mm, Invalidation::ALL), Lazy::Leave, |_| leave_mm());
    regs::irq_restore(flags);
    debug_assert!(!is_elsewhere(mm, u32::MAX), "a CPU still uses the tables of a dead address space");
}

/// Does what another CPU asks for. Interrupts are off.
pub fn answer(percpu: &PerCpu, shootdown: &Shootdown) {
    if shootdown.mm == Shootdown::ANY {
        drop_loaded(percpu);
        return;
    }
    if percpu.loaded_mm.load(Ordering::Relaxed) != shootdown.mm {
        // They went with CR3.
        return;
    }
    if percpu.lazy.load(Ordering::Relaxed) != 0 {
        leave_mm();
    } else {
        drop_translations(percpu, shootdown);
    }
}

/// Drops all translations of whatever address space is loaded; a lazy CPU leaves it.
fn drop_loaded(percpu: &PerCpu) {
    let Some(id) = Id::<Mm>::new(percpu.loaded_mm.load(Ordering::Relaxed)) else { return };
    if percpu.lazy.load(Ordering::Relaxed) != 0 {
        leave_mm();
        return;
    }
    let now = objects::of_mm(mm_of(id)).tlb_generation.load(Ordering::SeqCst);
    // SAFETY: the value is the one in force.
    unsafe { regs::write_cr3(regs::cr3()) };
    percpu.tlb_generation.store(now, Ordering::Relaxed);
}

/// Drops translations of the loaded address space on this CPU, L4 (Linux: `flush_tlb_func`).
fn drop_translations(percpu: &PerCpu, shootdown: &Shootdown) {
    let Some(id) = Id::<Mm>::new(shootdown.mm) else { return };
    let done = percpu.tlb_generation.load(Ordering::Relaxed);
    if done >= shootdown.generation {
        // A later one dropped everything.
        return;
    }
    let now = objects::of_mm(mm_of(id)).tlb_generation.load(Ordering::SeqCst);
    let is_next = shootdown.generation == done + 1 && shootdown.generation == now;
    if !is_next || !shootdown.what.drop_each() {
        // SAFETY: the value is the one in force.
        unsafe { regs::write_cr3(regs::cr3()) };
    }
    percpu.tlb_generation.store(now, Ordering::Relaxed);
}
