//! Reads guest memory from outside.
//!
//! No KVM here, and none of the guest's logic: this crate has its own page-table walker and its own
//! list readers, and shares only layouts with the guest (`memvisor-abi`). It trusts nothing it
//! reads: every address is checked against RAM, every list has a bound, every read is a copy.

#![forbid(unsafe_code)]

mod facts;
mod registers;
mod source;

pub use facts::{FactCpu, FactE820, FactNodeMemory, Facts};
pub use registers::CpuRegisters;
pub use source::{MemorySource, RamRegion, ReadError};
