//! Streaming mappings (Linux 6.1: `dma_direct_map_page`, `swiotlb_tbl_map_single` and their counterparts).
//!
//! A mapping is one buffer for one transfer. From [`map`] to [`unmap`] the buffer is the device's; in between the CPU looks at it after
//! [`sync_for_cpu`] and gives it back by [`sync_for_device`].

use memvisor_abi::{IO_TLB_SEGSIZE, IO_TLB_SIZE, MAX_SWIOTLB_POOLS, SwiotlbPool};
use mm_core::PhysAddr;

use crate::{Area, Direction, DmaMask, SlotRequest};

/// What mapping needs of a kernel.
pub trait Machine {
    /// A pool, by number below [`MAX_SWIOTLB_POOLS`]; `None` if it is not there.
    fn pool(&self, number: usize) -> Option<SwiotlbPool>;

    /// Calls `f` with an area under its lock; `None` if the pool's slots could not be made.
    fn with_area<R>(&self, pool: usize, area: u32, f: impl FnOnce(&mut Area<'_>) -> R) -> Option<R>;

    /// Copies bytes of RAM that do not overlap.
    fn copy(&self, from: PhysAddr, to: PhysAddr, len: u64);

    /// The CPU, which begins its search in an area of its own.
    fn cpu(&self) -> u32;
}

/// What a driver says about its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaDevice {
    /// Of streaming mappings (Linux: `dev->dma_mask`).
    pub mask: DmaMask,
    /// Of coherent memory (Linux: `dev->coherent_dma_mask`).
    pub coherent_mask: DmaMask,
    /// Bits of an address that a bounced buffer keeps (Linux: `dma_set_min_align_mask`).
    pub min_align_mask: u64,
}

impl DmaDevice {
    /// A device that drives the same address bits for all memory (Linux: `dma_set_mask_and_coherent`).
    pub const fn new(mask: DmaMask) -> DmaDevice {
        DmaDevice { mask, coherent_mask: mask, min_align_mask: 0 }
    }
}

/// Why a buffer cannot be mapped (Linux: `DMA_MAPPING_ERROR`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaError {
    /// It has no bytes.
    Empty,
    /// The device does not reach it, and no pool that it reaches is there.
    Unreachable,
    /// It must bounce and is larger than [`max_mapping_size`].
    TooLarge,
    /// No free slots.
    Full,
    /// It is not mapped.
    NotMapped,
}

/// Slots that stand for a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounce {
    pool: usize,
    area: u32,
    /// The first slot in the area.
    index: usize,
}

/// How a device reaches a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappingKind {
    /// Where it is.
    Direct,
    /// In slots of the pool of this number.
    Bounced {
        /// The pool.
        pool: usize,
    },
}

/// A buffer that a device may use. Give it to [`unmap`]: until then its slots are taken, and what a device wrote may not have arrived.
#[must_use = "a mapping lasts until it is unmapped"]
#[derive(Debug, PartialEq, Eq)]
pub struct Mapping {
    addr: PhysAddr,
    original: PhysAddr,
    len: u64,
    direction: Direction,
    bounce: Option<Bounce>,
}

impl Mapping {
    /// Its address for the device (Linux: `dma_addr_t`).
    pub const fn addr(&self) -> PhysAddr {
        self.addr
    }

    /// Its bytes.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// No mapping is.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How the device reaches it.
    pub const fn kind(&self) -> MappingKind {
        match self.bounce {
            None => MappingKind::Direct,
            Some(bounce) => MappingKind::Bounced { pool: bounce.pool },
        }
    }
}

/// Bytes of the largest buffer that can bounce for the device, wherever it begins (Linux: `swiotlb_max_mapping_size`): its first byte
/// keeps its place in a unit of `min_align_mask`, and the slots of a segment before it are lost.
pub const fn max_mapping_size(device: &DmaDevice) -> u64 {
    let segment = IO_TLB_SIZE * IO_TLB_SEGSIZE as u64;
    segment.saturating_sub(device.min_align_mask.saturating_add(IO_TLB_SIZE - 1) & !(IO_TLB_SIZE - 1))
}

/// Makes a buffer the device's (Linux: `dma_map_single`).
///
/// # Errors
/// [`DmaError`]; nothing is taken then.
pub fn map(
    machine: &impl Machine,
    device: &DmaDevice,
    original: PhysAddr,
    len: u64,
    direction: Direction,
) -> Result<Mapping, DmaError> {
    if len == 0 {
        return Err(DmaError::Empty);
    }
    let force = machine.pool(0).is_some_and(|pool| pool.force != 0);
    if !force && device.mask.reaches(original, len) {
        return Ok(Mapping { addr: original, original, len, direction, bounce: None });
    }
    let (addr, bounce) = take_slots(machine, device, original, len)?;
    // Also what the device is to write: what it leaves out must not become what the slot had before (Linux does so since 5.18).
    machine.copy(original, addr, len);
    Ok(Mapping { addr, original, len, direction, bounce: Some(bounce) })
}

fn take_slots(
    machine: &impl Machine,
    device: &DmaDevice,
    original: PhysAddr,
    len: u64,
) -> Result<(PhysAddr, Bounce), DmaError> {
    let reached = (0..MAX_SWIOTLB_POOLS).find_map(|number| {
        let pool = machine.pool(number)?;
        let bytes = u64::from(pool.nslabs) * IO_TLB_SIZE;
        device.mask.reaches(PhysAddr::new(pool.start), bytes).then_some((number, pool))
    });
    let (number, pool) = reached.ok_or(DmaError::Unreachable)?;
    if len > max_mapping_size(device) {
        return Err(DmaError::TooLarge);
    }
    let request = SlotRequest { original, len, min_align_mask: device.min_align_mask, alloc_align_mask: 0 };
    let areas = pool.nareas.max(1);
    let first = machine.cpu() & (areas - 1);
    for step in 0..areas {
        let area = first.wrapping_add(step) & (areas - 1);
        if let Some(Ok((addr, index))) = machine.with_area(number, area, |area| area.map(&request)) {
            return Ok((addr, Bounce { pool: number, area, index }));
        }
    }
    Err(DmaError::Full)
}

/// Ends a mapping: the buffer has what the device wrote and is the CPU's again (Linux: `dma_unmap_single`).
///
/// # Errors
/// [`DmaError::NotMapped`] if somebody gave its slots back.
pub fn unmap(machine: &impl Machine, mapping: Mapping) -> Result<(), DmaError> {
    let Some(bounce) = mapping.bounce else { return Ok(()) };
    if mapping.direction.is_from_device() {
        machine.copy(mapping.addr, mapping.original, mapping.len);
    }
    match machine.with_area(bounce.pool, bounce.area, |area| area.unmap(bounce.index)) {
        Some(Ok(())) => Ok(()),
        _ => Err(DmaError::NotMapped),
    }
}

/// Bytes of a part of a mapping that are in it.
fn cut(mapping: &Mapping, offset: u64, len: u64) -> u64 {
    len.min(mapping.len.saturating_sub(offset))
}

fn at(addr: PhysAddr, offset: u64) -> PhysAddr {
    PhysAddr::new(addr.as_u64().saturating_add(offset))
}

/// Lets the CPU see what the device wrote to `len` bytes from `offset` on; what is past the end is left out (Linux:
/// `dma_sync_single_for_cpu`).
pub fn sync_for_cpu(machine: &impl Machine, mapping: &Mapping, offset: u64, len: u64) {
    let len = cut(mapping, offset, len);
    if mapping.bounce.is_some() && mapping.direction.is_from_device() && len > 0 {
        machine.copy(at(mapping.addr, offset), at(mapping.original, offset), len);
    }
}

/// Lets the device see what the CPU wrote, as [`sync_for_cpu`] (Linux: `dma_sync_single_for_device`).
pub fn sync_for_device(machine: &impl Machine, mapping: &Mapping, offset: u64, len: u64) {
    let len = cut(mapping, offset, len);
    if mapping.bounce.is_some() && mapping.direction.is_to_device() && len > 0 {
        machine.copy(at(mapping.original, offset), at(mapping.addr, offset), len);
    }
}
