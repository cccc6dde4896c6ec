//! Dropping translations on other CPUs (Linux: arch/x86/mm/tlb.c, `flush_tlb_multi`).
//!
//! A CPU that asks says in its own area what is to go (`PerCpu::shootdown`), enters the CPUs that it asks in its `flush_left` and itself
//! in each one's `flush_from`, interrupts them all in one round, and waits until its `flush_left` is empty.
//!
//! Invariants:
//! S1  what a CPU asks for stays as it is until its `flush_left` is empty: its interrupts are off, and while it waits it only answers;
//! S2  who takes a mark out of a `flush_from` does what is asked before it takes the CPU out of the asker's `flush_left`.

use core::sync::atomic::{AtomicU64, Ordering, fence};

use guest_firmware::acpi::MAX_CPUS;
use mm_pgtable::FlushRange;

use super::{NOT_ONLINE, TARGETS, nr_online};
use crate::arch::percpu::{self, PerCpu};
use crate::arch::{apic, regs, trap};
use crate::mm::space::{self, tlb};
use crate::sched::{CPU_WORDS, CpuMask};

/// More pages than this are dropped all at once (Linux: `tlb_single_page_flush_ceiling`).
const CEILING: u64 = 33;

/// Which translations go: those of `start`, `start + stride` and so on up to `last`; all for stride 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalidation {
    start: u64,
    last: u64,
    stride: u64,
}

impl Invalidation {
    /// Everything.
    pub const ALL: Invalidation = Invalidation { start: 0, last: 0, stride: 0 };

    /// As a gather has it; everything if that is less work.
    pub fn of(range: &FlushRange) -> Invalidation {
        let (start, last, stride) = match range {
            FlushRange::Range { start, last, stride } => (start.as_u64(), last.as_u64(), *stride),
            FlushRange::Pages(pages) => {
                let pages = pages.as_slice().iter().map(|page| page.as_u64());
                let (start, last) =
                    pages.fold((u64::MAX, 0), |(start, last), page| (start.min(page), last.max(page)));
                (start, last, mm_core::PAGE_SIZE)
            }
            FlushRange::All { .. } => return Invalidation::ALL,
        };
        if stride == 0 || start > last || (last - start) / stride >= CEILING {
            return Invalidation::ALL;
        }
        Invalidation { start, last, stride }
    }

    /// Drops them here if they are few; false if everything is to go.
    pub fn drop_each(&self) -> bool {
        if self.stride == 0 {
            return false;
        }
        let mut va = self.start;
        loop {
            regs::invlpg(va);
            match va.checked_add(self.stride) {
                Some(next) if next <= self.last => va = next,
                _ => return true,
            }
        }
    }
}

/// What a CPU asks others to do, and itself.
#[derive(Clone, Copy, Debug)]
pub struct Shootdown {
    /// Number of the address space; 0 for the kernel's half, [`Shootdown::ANY`] for any.
    pub mm: u64,
    /// What of it.
    pub what: Invalidation,
    /// The address space's flushes so far, this one included (Linux: `new_tlb_gen`).
    pub generation: u64,
}

impl Shootdown {
    /// [`Shootdown::mm`] that means all of whatever a CPU has loaded.
    pub const ANY: u64 = u64::MAX;
}

/// [`Shootdown`] in a CPU's area.
#[derive(Debug)]
#[repr(C)]
pub struct ShootdownWords([AtomicU64; 5]);

impl ShootdownWords {
    fn store(&self, shootdown: &Shootdown) {
        let Shootdown { mm, what, generation } = *shootdown;
        let words = [mm, what.start, what.last, what.stride, generation];
        self.0.iter().zip(words).for_each(|(to, word)| to.store(word, Ordering::Relaxed));
    }

    fn load(&self) -> Shootdown {
        let [mm, start, last, stride, generation] =
            self.0.each_ref().map(|word| word.load(Ordering::Relaxed));
        Shootdown { mm, what: Invalidation { start, last, stride }, generation }
    }
}

/// Makes every other online CPU drop translations of the kernel's half, and waits for it (Linux: `flush_tlb_kernel_range`). May be called
/// with locks held and interrupts off: a CPU that waits for a lock, a call or a flush answers.
pub fn flush_others(what: Invalidation) {
    flush_cpus(&CpuMask::ALL, &Shootdown { mm: 0, what, generation: 0 }, || ());
}

/// Asks the other CPUs of a set in one round, runs `own` meanwhile, and waits for all.
pub fn flush_cpus(mask: &CpuMask, shootdown: &Shootdown, own: impl FnOnce()) {
    let flags = regs::irq_save();
    match percpu::current() {
        Some(percpu) => {
            ask(percpu, mask, shootdown);
            own();
            wait(percpu);
        }
        None => own(),
    }
    regs::irq_restore(flags);
}

/// Waits until the flushes that are under way are done: stacks of ended tasks and lazy areas of vmalloc go at any time, on any CPU. One that nobody
/// answers is waited for some seconds only, so that whoever looks from outside sees it.
pub fn wait_flushes() {
    const MOST: u64 = 1 << 33;
    let begin = regs::rdtsc();
    for (cpu, _) in (0..).zip(TARGETS.iter().take(super::nr_known())) {
        let tlb = space::tlb_of(cpu);
        // What is asked for later does not count.
        let asked = tlb.flush_requested.load(Ordering::Acquire);
        while tlb.flush_done.load(Ordering::Acquire) < asked && regs::rdtsc().wrapping_sub(begin) < MOST {
            core::hint::spin_loop();
        }
    }
}

/// CPUs of a set that run, but for this one.
fn targets(percpu: &PerCpu, mask: &CpuMask) -> impl Iterator<Item = (u32, u32)> {
    let own = percpu.cpu.load(Ordering::Relaxed);
    let mask = *mask;
    (0..).zip(TARGETS.iter().take(super::nr_known())).filter_map(move |(cpu, target)| {
        let apic_id = target.load(Ordering::Relaxed);
        (cpu != own && apic_id != NOT_ONLINE && mask.contains(cpu)).then_some((cpu, apic_id))
    })
}

fn ask(percpu: &PerCpu, mask: &CpuMask, shootdown: &Shootdown) {
    let own = percpu.cpu.load(Ordering::Relaxed);
    percpu.shootdown.store(shootdown);
    let mut asked = 0;
    for (cpu, _) in targets(percpu, mask) {
        if let Some(left) = percpu.flush_left.get(cpu as usize / 64) {
            left.fetch_or(1 << (cpu % 64), Ordering::Relaxed);
        }
        asked += 1;
    }
    if asked == 0 {
        return;
    }
    // What is asked for is seen by who sees the mark.
    fence(Ordering::SeqCst);
    // All that there are: one write to the APIC for all of them (Linux: `default_send_IPI_allbutself`).
    let all = asked + 1 == nr_online() && super::all_online();
    for (cpu, apic_id) in targets(percpu, mask) {
        let target = percpu::of(cpu);
        space::tlb_of(cpu).flush_requested.fetch_add(1, Ordering::Relaxed);
        let Some(from) = target.flush_from.get(own as usize / 64) else { continue };
        let before = from.fetch_or(1 << (own % 64), Ordering::AcqRel);
        // Somebody whom it has not answered yet interrupts it already.
        if !all && before == 0 {
            apic::send_ipi(apic_id, trap::VECTOR_FLUSH);
        }
    }
    if all {
        apic::send_ipi_others(trap::VECTOR_FLUSH);
    }
}

fn wait(percpu: &PerCpu) {
    for left in &percpu.flush_left {
        while left.load(Ordering::Acquire) != 0 {
            answer_flush();
            core::hint::spin_loop();
        }
    }
}

/// Does what others ask this CPU for.
pub fn answer_flush() {
    let Some(percpu) = percpu::current() else { return };
    for (word, from) in percpu.flush_from.iter().enumerate() {
        if from.load(Ordering::Relaxed) == 0 {
            continue;
        }
        let flags = regs::irq_save();
        let mut askers = from.swap(0, Ordering::AcqRel);
        while askers != 0 {
            let bit = askers.trailing_zeros();
            askers &= askers - 1;
            answer(percpu, u32::try_from(word).unwrap_or(0) * 64 + bit);
        }
        regs::irq_restore(flags);
    }
}

fn answer(percpu: &PerCpu, asker: u32) {
    let asker = percpu::of(asker);
    let shootdown = asker.shootdown.load();
    if shootdown.mm != 0 {
        tlb::answer(percpu, &shootdown);
    } else if !shootdown.what.drop_each() {
        // Also who waits for readers without locks asks for this.
        percpu.vma_hint.store(0, Ordering::Relaxed);
        regs::flush_all();
    }
    let own = percpu.cpu.load(Ordering::Relaxed);
    space::tlb_of(own).flush_done.fetch_add(1, Ordering::AcqRel);
    if let Some(left) = asker.flush_left.get(own as usize / 64) {
        left.fetch_and(!(1 << (own % 64)), Ordering::Release);
    }
}

const _: () = assert!(CPU_WORDS * 64 >= MAX_CPUS);
