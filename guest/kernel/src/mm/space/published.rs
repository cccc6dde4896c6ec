//! What each CPU may hold translations of, for readers outside (Linux: `cpu_tlbstate`).

use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use guest_firmware::acpi::MAX_CPUS;
use memvisor_abi as abi;

use crate::smp;
use crate::topology::CPUS;

/// [`abi::CpuTlb`] with fields that may be written through a shared reference. Each CPU writes its own `mm`.
#[derive(Debug)]
#[repr(C)]
pub struct CpuTlb {
    mm: AtomicU64,
    flush_requested: AtomicU64,
    flush_done: AtomicU64,
}

const _: () = assert!(
    size_of::<CpuTlb>() == size_of::<abi::CpuTlb>()
        && offset_of!(CpuTlb, mm) == offset_of!(abi::CpuTlb, mm)
        && offset_of!(CpuTlb, flush_requested) == offset_of!(abi::CpuTlb, flush_requested)
        && offset_of!(CpuTlb, flush_done) == offset_of!(abi::CpuTlb, flush_done)
);

static CPU_TLBS: [CpuTlb; MAX_CPUS] = [const {
    CpuTlb { mm: AtomicU64::new(0), flush_requested: AtomicU64::new(0), flush_done: AtomicU64::new(0) }
}; MAX_CPUS];

/// The CPU has the tables of the address space with this number in CR3; 0 for the kernel's own. Said after the kernel's
/// own came, and before those of an address space do.
pub(super) fn loads(cpu: u32, mm: u64) {
    if let Some(tlb) = CPU_TLBS.get(cpu as usize) {
        tlb.mm.store(mm, Relaxed);
    }
}

/// Copies how far flushes are to where readers see them.
pub fn publish_tlbs() {
    let cpus = CPUS.lock().count;
    for (cpu, tlb) in tlb_table(cpus).iter().enumerate() {
        let (requested, done) = smp::flushes(cpu);
        // In this order, so that nobody sees more done than was asked for.
        tlb.flush_requested.store(requested, Relaxed);
        tlb.flush_done.store(done, Relaxed);
    }
}

/// One for each CPU that the machine has.
pub fn tlb_table(cpus: usize) -> &'static [CpuTlb] {
    CPU_TLBS.get(..cpus).unwrap_or(&CPU_TLBS)
}
