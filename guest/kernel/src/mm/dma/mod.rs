//! The DMA API for drivers (Linux: include/linux/dma-mapping.h), on this machine's memory. What it decides is in guest/mm/dma.

pub mod swiotlb;

use core::sync::atomic::{AtomicU64, Ordering};

use mm_core::{Errno, Gfp, MaySleep, Order, PAGE_SIZE, Pfn, PhysAddr};
use mm_dma::{
    Direction, DmaDevice, DmaError, DmaMask, Mapping, MappingKind, coherent_gfp, coherent_is_reached,
    is_supported, narrower_gfp,
};

use crate::mm::page_alloc;
use swiotlb::Bounce;

/// What the API did since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Streaming mappings of buffers where they are.
    pub direct: u64,
    /// Streaming mappings through slots.
    pub bounced: u64,
    /// Bytes of those.
    pub bytes_bounced: u64,
    /// Mappings that could not be made.
    pub failed: u64,
}

static DIRECT: AtomicU64 = AtomicU64::new(0);
static BOUNCED: AtomicU64 = AtomicU64::new(0);
static BYTES_BOUNCED: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicU64 = AtomicU64::new(0);

/// What was done so far.
pub fn stats() -> Stats {
    let is = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Stats {
        direct: is(&DIRECT),
        bounced: is(&BOUNCED),
        bytes_bounced: is(&BYTES_BOUNCED),
        failed: is(&FAILED),
    }
}

/// A device that drives the address bits of `mask`, for all its memory (Linux: `dma_set_mask_and_coherent`).
///
/// Differs from Linux: a device that does not reach the pool of bounce slots gets one in ZONE_DMA; Linux 6.1 cannot map its buffers.
///
/// # Errors
/// `EIO` for a mask that this machine cannot serve; `ENOMEM` if there is no room for the device's slots.
pub fn dma_set_mask(mask: DmaMask, context: &MaySleep<'_>) -> Result<DmaDevice, Errno> {
    if !is_supported(mask, swiotlb::ram_end()) {
        return Err(Errno::Eio);
    }
    swiotlb::reach(mask, context)?;
    Ok(DmaDevice::new(mask))
}

/// Memory that CPU and device use at the same time.
#[must_use = "it is the device's until it is freed"]
#[derive(Debug)]
pub struct Coherent {
    pfn: Pfn,
    order: Order,
}

impl Coherent {
    /// Its address for the device.
    pub const fn addr(&self) -> PhysAddr {
        self.pfn.phys()
    }

    /// Its bytes.
    pub const fn len(&self) -> u64 {
        self.order.pages() * PAGE_SIZE
    }
}

/// Allocates `len` bytes of zeroes, rounded up to a block of pages, where the device reaches them (Linux: `dma_alloc_coherent`).
///
/// # Errors
/// `EINVAL` for no bytes or more than the largest block, `ENOMEM`.
pub fn dma_alloc_coherent(device: &DmaDevice, len: u64, gfp: Gfp) -> Result<Coherent, Errno> {
    let order = Order::covering(len.div_ceil(PAGE_SIZE)).filter(|_| len > 0).ok_or(Errno::Einval)?;
    let mask = device.coherent_mask;
    let mut gfp = coherent_gfp(gfp | Gfp::ZERO, mask);
    loop {
        let pfn = page_alloc::alloc_here(gfp, order, None).ok_or(Errno::Enomem)?;
        let block = Coherent { pfn, order };
        if coherent_is_reached(mask, block.addr(), block.len()) {
            return Ok(block);
        }
        dma_free_coherent(block);
        gfp = narrower_gfp(gfp, mask).ok_or(Errno::Enomem)?;
    }
}

/// Gives coherent memory back (Linux: `dma_free_coherent`).
#[expect(clippy::needless_pass_by_value, reason = "nobody has it afterwards")]
pub fn dma_free_coherent(block: Coherent) {
    page_alloc::free_pages(block.pfn, block.order);
}

/// Makes a buffer the device's (Linux: `dma_map_single`).
///
/// # Errors
/// [`DmaError`].
pub fn dma_map_single(
    device: &DmaDevice,
    addr: PhysAddr,
    len: u64,
    direction: Direction,
) -> Result<Mapping, DmaError> {
    let mapping = mm_dma::map(&Bounce, device, addr, len, direction);
    match &mapping {
        Err(_) => FAILED.fetch_add(1, Ordering::Relaxed),
        Ok(mapping) if mapping.kind() == MappingKind::Direct => DIRECT.fetch_add(1, Ordering::Relaxed),
        Ok(mapping) => {
            BYTES_BOUNCED.fetch_add(mapping.len(), Ordering::Relaxed);
            BOUNCED.fetch_add(1, Ordering::Relaxed)
        }
    };
    mapping
}

/// Ends a mapping (Linux: `dma_unmap_single`). Slots that somebody else gave back are a bug, and end the kernel.
pub fn dma_unmap_single(mapping: Mapping) {
    let addr = mapping.addr();
    if let Err(error) = mm_dma::unmap(&Bounce, mapping) {
        panic!("dma_unmap_single of {addr}: {error:?}");
    }
}

/// Lets the CPU see part of what the device wrote (Linux: `dma_sync_single_range_for_cpu`).
pub fn dma_sync_single_for_cpu(mapping: &Mapping, offset: u64, len: u64) {
    mm_dma::sync_for_cpu(&Bounce, mapping, offset, len);
}

/// Lets the device see part of what the CPU wrote (Linux: `dma_sync_single_range_for_device`).
pub fn dma_sync_single_for_device(mapping: &Mapping, offset: u64, len: u64) {
    mm_dma::sync_for_device(&Bounce, mapping, offset, len);
}
