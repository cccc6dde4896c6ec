//! What the firmware says about memory, and the allocator that serves until the buddy allocator
//! does (Linux: arch/x86/kernel/e820.c, mm/memblock.c).
//!
//! [`E820Table`] holds the map and sanitizes it. [`Memblock`] holds RAM and reservations as sorted
//! regions, allocates from what lies between, and in the end tells the buddy allocator what is
//! free. Both are plain values of fixed size that fit into a `static`; there is no lock here.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod alloc;
mod e820;
mod iter;
mod regions;

#[cfg(test)]
mod tests;

pub use alloc::{AllocRange, Direction, Memblock};
pub use e820::{E820_MAX_ENTRIES, E820Full, E820Table};
pub use iter::{FreeRanges, MemPfnRanges, mem_pfn_ranges};
pub use memvisor_abi::{E820Entry, MemblockRegion, NODE_NONE};
pub use regions::{List, MemblockError, Violation};
