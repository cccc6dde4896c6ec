//! Simulated memory for host tests of the memory manager.
//!
//! [`SimMem`] is the machine: descriptors for any set of frames ([`mm_core::MemMap`]) and the
//! contents of those frames ([`mm_core::PhysMem`]). [`picture`] turns zones into text and back,
//! and [`BuddyModel`] is the bitmap that the buddy allocator is compared with. [`SimSwap`] is swap areas on disks that lose nothing.
//!
//! Everything is deterministic. This crate runs on the host only and never in the guest.

#![forbid(unsafe_code)]

mod mem;
mod model;
pub mod picture;
mod swap;

#[doc(hidden)]
pub use {mm_core, mm_swap};

pub use mem::{POISON, SimMem};
pub use model::{BuddyModel, Frame};
pub use swap::{Clusters, SimSwap};
