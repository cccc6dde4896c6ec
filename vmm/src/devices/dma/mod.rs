//! The DMA engine: a PCI function that moves bytes between guest RAM and 64 KiB of its own, in four modes (docs/dma.md). Its registers are
//! in `memvisor_abi::dma`.
//!
//! [`Engine`] is the state machine without threads; [`DmaEngine`] is one with its thread, which is held still for audits;
//! [`DmaFunction`] is its place on the bus.

mod device;
mod engine;
mod function;
#[cfg(test)]
mod tests;

pub use device::{DmaEngine, DmaError, DmaStats};
pub use engine::{Counters, DmaBus, Engine, Started};
pub use function::DmaFunction;
