//! The driver's side of virtio 1.2 over PCI, without hardware: where the registers are ([`pci`]), how device and driver
//! agree ([`transport`]), the split virtqueue ([`SplitQueue`]) and requests of a block device ([`blk`]).
//!
//! The device is not trusted: what it says is checked, and an answer to what was not asked breaks the queue, never the
//! kernel. Registers and the rings' memory are behind traits, so that host tests put a model device there.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod blk;
pub mod pci;
mod queue;
pub mod transport;

pub use queue::{Broken, Buffer, Full, Layout, MAX_SIZE, RingMemory, SplitQueue, Used};
