//! Virtio devices on the PCI bus. What is not hardware is in guest/virtio.

pub mod blk;
pub(super) mod memory;
