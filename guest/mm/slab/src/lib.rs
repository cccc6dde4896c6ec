//! Caches of objects (Linux 6.1: mm/slab_common.c, mm/slub.c, mm/slab.c, mm/slob.c).
//!
//! [`Kmem`] is the one interface: `kmem_cache` (create, alloc, free, bulk, shrink, destroy) and the kmalloc family, over
//! three complete allocators of which the machine chooses one at boot: [`SlabKind`].
//!
//! Objects are physical addresses. Their contents are reached through [`mm_core::PhysMem`], pages come from
//! [`mm_core::PageAlloc`], a CPU's part of a cache is reached through [`mm_core::CpuLocal`], and a slab's state is in the
//! descriptor of its first frame (memvisor-abi's `slab.rs` has the table of fields).
//!
//! Invariants (the same numbers in vmm/check):
//! L1  a slab's first frame has kind `Slab` and one reference, names one cache that exists, and its other frames lead to it;
//! L2  `inuse` plus the objects of the slab's own free list is `objects`;
//! L3  every object on a free list or in an array starts at a place of its slab where an object may start, and is there once;
//! L4  a slab is on exactly the list that its counters ask for, or on none where the allocator keeps none;
//! L5  `nr_slabs`, `total_objects` and `free_objects` of a node are what its slabs sum to;
//! L6  with debugging, red zones and the poison of free objects are intact.
//!
//! Locks: the machine's mutex (creation, destruction) before a CPU's data before a node's list lock
//! ([`Machine::with_node`]). Pages are allocated and freed outside all three but the mutex. A CPU's own slab and arrays belong to the CPU;
//! everything else of a slab belongs to the list lock of its cache and node, also of slabs that a CPU owns.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod alloc;
mod array;
mod cache;
mod create;
mod debug;
mod error;
mod kmalloc;
mod list;
mod machine;
mod options;
mod owner;
mod report;
mod shape;
mod slab;
mod slab_page;
mod slob;
mod slub;

#[cfg(test)]
mod tests;

pub use alloc::Kmem;
pub use cache::{Cache, CacheId, SlabFlags};
pub use create::CacheArgs;
pub use error::{CreateError, DestroyError, FreeError};
pub use kmalloc::{KMALLOC_MAX_CACHE_SIZE, KMALLOC_MAX_SIZE, KmallocType, SIZES};
pub use machine::{CpuCaches, Machine, Object};
pub use memvisor_abi::{CacheCpu, CacheNode, MAX_CACHES, SlabKind, Track};
pub use options::Options;
