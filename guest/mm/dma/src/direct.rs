//! Zones of coherent memory (Linux 6.1: kernel/dma/direct.c).

use mm_core::{Gfp, PhysAddr};

use crate::DmaMask;

/// Zone flags: what a caller says of zones does not count, the mask does.
const ZONES: Gfp = Gfp::DMA_ZONE.union(Gfp::DMA32_ZONE).union(Gfp::HIGHMEM);

/// The zone to begin with: the largest that the mask surely reaches all of, or any if the mask is wider than 32 bits (Linux:
/// `dma_direct_optimal_gfp_mask`). Other flags of `gfp` stay.
/// ```
/// use mm_core::Gfp;
/// use mm_dma::{DmaMask, coherent_gfp};
/// assert_eq!(coherent_gfp(Gfp::KERNEL, DmaMask::ISA), Gfp::KERNEL | Gfp::DMA);
/// assert_eq!(coherent_gfp(Gfp::KERNEL, DmaMask::BITS_32), Gfp::KERNEL | Gfp::DMA32);
/// assert_eq!(coherent_gfp(Gfp::KERNEL, DmaMask::ALL), Gfp::KERNEL);
/// ```
pub fn coherent_gfp(gfp: Gfp, mask: DmaMask) -> Gfp {
    let zone = if mask <= DmaMask::ISA {
        Gfp::DMA
    } else if mask <= DmaMask::BITS_32 {
        Gfp::DMA32
    } else {
        Gfp::empty()
    };
    (gfp - ZONES) | zone
}

/// Whether a block may be given to the device (Linux: `dma_coherent_ok`).
pub fn coherent_is_reached(mask: DmaMask, addr: PhysAddr, len: u64) -> bool {
    mask.reaches(addr, len)
}

/// What to try after a block of `gfp` lay too high: the next zone below (Linux: `__dma_direct_alloc_pages`). `None` if there is none.
/// ```
/// use mm_core::Gfp;
/// use mm_dma::{DmaMask, narrower_gfp};
/// let mask = DmaMask::from_bits(30).unwrap();
/// assert_eq!(narrower_gfp(Gfp::KERNEL | Gfp::DMA32, mask), Some(Gfp::KERNEL | Gfp::DMA));
/// assert_eq!(narrower_gfp(Gfp::KERNEL | Gfp::DMA, mask), None);
/// ```
pub fn narrower_gfp(gfp: Gfp, mask: DmaMask) -> Option<Gfp> {
    if gfp.contains(Gfp::DMA) {
        None
    } else if gfp.contains(Gfp::DMA32) || mask == DmaMask::ALL {
        Some((gfp - ZONES) | Gfp::DMA)
    } else {
        Some((gfp - ZONES) | Gfp::DMA32)
    }
}

/// Whether a device with this mask can be served on a machine whose RAM ends at `ram_end`: the mask has the 24 bits of ZONE_DMA, or
/// reaches all RAM (Linux: `dma_direct_supported`).
pub fn is_supported(mask: DmaMask, ram_end: PhysAddr) -> bool {
    let last_of_ram = ram_end.as_u64().saturating_sub(1);
    mask.last() >= last_of_ram.min(DmaMask::ISA.last())
}
