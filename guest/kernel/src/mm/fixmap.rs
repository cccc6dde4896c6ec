//! Addresses that are known when the kernel is built (Linux: arch/x86/include/asm/fixmap.h).
//!
//! Differs from Linux: slots ascend from FIXADDR_START, and kmap_local's are in the per-CPU areas, because the fixmap's 512 slots
//! would be used up by 31 CPUs.

use memvisor_abi::{KmapSlot, PFN_NONE};
use mm_core::{PAGE_SIZE, Pfn, PhysAddr, VirtAddr};
use mm_pgtable::{CacheMode, LeafSize, Prot, layout};

use crate::mm::layout::APIC_VA;
use crate::mm::paging;
use crate::sync::Lock;

/// Slots (Linux: `enum fixed_addresses`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Fixed {
    /// The local APIC's registers.
    ApicBase = 0,
    /// The I/O APIC's registers.
    IoApicBase = 1,
    /// Two pages for patching code.
    TextPoke0 = 2,
    /// See [`Fixed::TextPoke0`].
    TextPoke1 = 3,
}

impl Fixed {
    /// All slots.
    pub const ALL: [Fixed; 4] = [Fixed::ApicBase, Fixed::IoApicBase, Fixed::TextPoke0, Fixed::TextPoke1];

    /// The slot's address (Linux: `fix_to_virt`).
    pub const fn va(self) -> VirtAddr {
        VirtAddr::new(layout::FIXADDR_START.as_u64() + self as u64 * PAGE_SIZE)
    }
}

const EMPTY: KmapSlot = KmapSlot { pfn: PFN_NONE, count: 0, next: 0 };

/// What the slots map.
pub static SLOTS: Lock<[KmapSlot; Fixed::ALL.len()]> = Lock::new([EMPTY; Fixed::ALL.len()]);

/// Takes over what boot mapped.
pub fn init() {
    let apic = paging::kernel().translate(&paging::Tables, APIC_VA);
    if let Some(mapping) = apic {
        SLOTS.lock()[Fixed::ApicBase as usize] =
            KmapSlot { pfn: mapping.phys.pfn().as_u64(), count: 1, next: 0 };
    }
}

/// The frame that a slot maps.
pub fn frame(slot: Fixed) -> Option<Pfn> {
    let entry = SLOTS.lock()[slot as usize];
    (entry.count != 0).then(|| Pfn::new(entry.pfn))
}

/// Maps a page at the slot, replacing what was there (Linux: `set_fixmap`, `set_fixmap_nocache`).
pub fn set_fixmap(slot: Fixed, phys: PhysAddr, cache: CacheMode) -> VirtAddr {
    clear_fixmap(slot);
    let phys = phys.align_down(PAGE_SIZE);
    paging::map_kernel(slot.va(), phys, PAGE_SIZE, Prot { cache, ..Prot::KERNEL_RW }, LeafSize::Size4K);
    SLOTS.lock()[slot as usize] = KmapSlot { pfn: phys.pfn().as_u64(), count: 1, next: 0 };
    slot.va()
}

/// Unmaps the slot and flushes every CPU (Linux: `clear_fixmap`); false if it was empty.
pub fn clear_fixmap(slot: Fixed) -> bool {
    let old = core::mem::replace(&mut SLOTS.lock()[slot as usize], EMPTY);
    if old.count == 0 {
        return false;
    }
    paging::unmap_kernel(slot.va(), PAGE_SIZE);
    true
}
