//! Page tables of 4 and 5 levels (Linux: `arch/x86/mm`, `mm/pgalloc-track.h`, `mm/mmu_gather.c`).
//!
//! One implementation serves early boot, the kernel and user address spaces: the depth is a
//! run-time value ([`Levels`]), and whoever owns the tables stands behind [`TableMem`]. Every
//! operation of [`PageTable`] is a small visitor over the one walk in `walk.rs`.
//!
//! Invariants:
//! T1  a table that this crate links is complete: it is filled before its parent entry is written;
//! T2  a table that was linked is given back only by [`Gather::flush`] or
//!     [`Gather::no_cpu_uses_it`], never by the operation that emptied it;
//! T3  a present translation that changes or disappears is recorded in the [`Gather`];
//! T4  table entries grant WRITE, never carry NX, and grant USER once anything below was mapped
//!     for user space, so that the leaf alone decides;
//! T5  after an unmap no table below the root is empty along the unmapped range, unless the
//!     caller kept the top-level entries.
//!
//! Locking: none here. The caller serialises changes to one tree; readers may run beside a
//! writer as far as their `TableMem` reads whole words.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod edit;
mod entry;
mod error;
mod free;
mod gather;
mod geometry;
pub mod layout;
mod map;
mod mem;
mod prot;
mod table;
#[cfg(test)]
mod tests;
mod walk;

pub use edit::KeepTables;
pub use entry::{Entry, PteFlags};
pub use error::MapError;
pub use gather::{FlushRange, Gather, PageList};
pub use geometry::{LeafSize, Levels, TABLE_ENTRIES};
pub use mem::TableMem;
pub use prot::{CacheMode, Prot};
pub use table::{Leaf, Mapping, PageTable};
