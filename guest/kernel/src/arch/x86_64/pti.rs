//! Page-table isolation on this CPU: `pti=on` (Linux: arch/x86/entry/calling.h, `SWITCH_TO_KERNEL_CR3`; arch/x86/mm/pti.c).
//!
//! Each address space has two top-level tables. Ring 3 runs on one that has the user's half and, of the kernel's half, the entry area
//! only: code of pti.s, the table of interrupt gates, and of each CPU the page with its GDT, TSS and entry stack, and its IST stacks.
//! mm/pti.rs makes the tables.
//!
//! Differs from Linux: the two tables are two frames anywhere, and each CPU keeps both values of CR3; the kernel's table does not make
//! the user's half non-executable, because SMEP does. Without SMEP nothing does.

use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use memvisor_abi::THREAD_SIZE;
use mm_core::{PAGE_SIZE, PhysAddr};

use super::percpu::{self, AREA_SIZE, PerCpu, ThreadInfo};
use super::{cpu, trap};

/// What the entry code needs of a CPU, in the second page of its area. pti.s knows the offsets.
#[derive(Debug)]
#[repr(C)]
struct Words {
    kernel_cr3: AtomicU64,
    user_cr3: AtomicU64,
    scratch: AtomicU64,
    /// Stands for the TSS's RSP0, which stays the end of the entry stack.
    rsp0: AtomicU64,
}

/// Where the words are in an area.
const WORDS: u64 = PAGE_SIZE + 0x100;
/// End of the entry stack, which is the rest of that page.
const STACK_TOP: u64 = 2 * PAGE_SIZE;

const _: () = assert!(
    AREA_SIZE == 0x4_0000
        && THREAD_SIZE == 0x4000
        && offset_of!(PerCpu, kstack_top) == 8
        && offset_of!(ThreadInfo, percpu) == 0
        && THREAD_SIZE - size_of::<ThreadInfo>() as u64 == 0x3ff0
        && WORDS == 0x1100
        && offset_of!(Words, user_cr3) == 8
        && offset_of!(Words, scratch) == 16
        && STACK_TOP == 0x2000
);

unsafe extern "C" {
    static pti_stubs: [u8; 4096];
    fn pti_syscall_entry();
}

static ENABLED: AtomicBool = AtomicBool::new(false);

/// Whether ring 3 runs on tables of its own.
pub fn enabled() -> bool {
    ENABLED.load(Ordering::Relaxed)
}

/// Where the gates of all vectors begin.
pub fn stubs() -> u64 {
    &raw const pti_stubs as u64
}

/// Where `syscall` enters.
pub fn syscall_entry_address() -> u64 {
    pti_syscall_entry as *const () as u64
}

fn words(area: u64) -> &'static Words {
    // SAFETY: the second page of an area is mapped for ever; descriptor tables end before the words, which are atomics.
    unsafe { &*((area + WORDS) as *const Words) }
}

/// From now on this CPU, and those that start later, use the entry code of pti.s. The tables are there, interrupts are off, and no other
/// CPU runs.
pub fn enable(nr_cpus: u32) {
    for number in 0..nr_cpus {
        let percpu = percpu::of(number);
        let area = &raw const *percpu as u64;
        percpu::set_kernel_stack_of_tss(percpu, area + STACK_TOP);
        percpu.tss_rsp0.store(&raw const words(area).rsp0 as u64, Ordering::Relaxed);
    }
    ENABLED.store(true, Ordering::Release);
    trap::init_idt(true);
    cpu::leave_global_pages();
    if let Some(percpu) = percpu::current() {
        cpu::init_syscall(&raw const *percpu as u64);
    }
}

/// The address space whose tables this CPU uses from its next way to ring 3 on; `kernel` is in CR3. Interrupts are off.
pub fn set_tables(percpu: &PerCpu, kernel: PhysAddr, user: PhysAddr) {
    let words = words(&raw const *percpu as u64);
    words.kernel_cr3.store(kernel.as_u64(), Ordering::Relaxed);
    words.user_cr3.store(user.as_u64(), Ordering::Relaxed);
}
