//! The address-space layout in force.

use core::sync::atomic::{AtomicBool, Ordering};

use mm_core::VirtAddr;
use mm_pgtable::{Levels, layout};

use crate::arch::percpu::AREA_SIZE;
use crate::arch::regs;

static FIVE: AtomicBool = AtomicBool::new(false);

/// Takes over the depth that the boot code chose.
pub fn init() {
    FIVE.store(regs::cr4() & regs::CR4_LA57 != 0, Ordering::Relaxed);
}

/// Paging depth.
pub fn levels() -> Levels {
    if FIVE.load(Ordering::Relaxed) { Levels::Five } else { Levels::Four }
}

/// Virtual address of a CPU's area.
pub fn percpu_area(cpu: u32) -> VirtAddr {
    VirtAddr::new(layout::PERCPU_START.as_u64() + u64::from(cpu) * AREA_SIZE)
}

/// Whether an address lies in the per-CPU areas.
pub fn percpu_contains(va: u64) -> bool {
    const LEN: u64 = guest_firmware::acpi::MAX_CPUS as u64 * AREA_SIZE;
    va.wrapping_sub(layout::PERCPU_START.as_u64()) < LEN
}

/// Whether an address lies in the vmalloc range.
pub fn vmalloc_contains(va: u64) -> bool {
    va.wrapping_sub(layout::vmalloc_start(levels()).as_u64()) < layout::vmalloc_size(levels())
}

/// Where the local APIC's registers are mapped: the first fixmap slot (Linux: `FIX_APIC_BASE`).
pub const APIC_VA: VirtAddr = layout::FIXADDR_START;
