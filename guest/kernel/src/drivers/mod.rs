//! The few devices that the kernel uses.

pub mod block;
pub mod dma;
pub mod frames;
pub mod memvisor;
pub mod pci;
pub mod pit;
pub mod power;
pub mod rtc;
pub mod serial;
pub mod virtio;
