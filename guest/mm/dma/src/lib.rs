//! The DMA API: what a driver asks for so that its device reaches memory, whatever the device's address bits are (Linux:
//! include/linux/dma-mapping.h, kernel/dma/direct.c, kernel/dma/swiotlb.c).
//!
//! Coherent memory is allocated where the device reaches it: [`coherent_gfp`] and [`narrower_gfp`] say from which zone. Streaming mappings
//! ([`map`], [`unmap`]) take a buffer where it is, and copy it through a slot of a pool ([`Area`]) if the device does not reach it there.
//! Hardware is behind [`Machine`].
//!
//! Differs from Linux: there is no IOMMU and no memory encryption, and CPUs and devices see the same contents at all times, so that an
//! address of the bus is a physical address.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod area;
mod direct;
mod mask;
mod options;
mod streaming;
#[cfg(test)]
mod tests;

pub use area::{Area, AreaError, AuditError, SlotRequest};
pub use direct::{coherent_gfp, coherent_is_reached, is_supported, narrower_gfp};
pub use mask::DmaMask;
pub use options::{SwiotlbOptions, round_nslabs};
pub use streaming::{
    DmaDevice, DmaError, Machine, Mapping, MappingKind, map, max_mapping_size, sync_for_cpu, sync_for_device,
    unmap,
};

/// Which way a streaming mapping's contents go (Linux: `enum dma_data_direction`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// Both ways.
    Bidirectional = 0,
    /// The device reads.
    ToDevice = 1,
    /// The device writes.
    FromDevice = 2,
}

impl Direction {
    /// Whether what the device wrote is wanted.
    pub const fn is_from_device(self) -> bool {
        matches!(self, Direction::FromDevice | Direction::Bidirectional)
    }

    /// Whether the device reads.
    pub const fn is_to_device(self) -> bool {
        matches!(self, Direction::ToDevice | Direction::Bidirectional)
    }
}
