//! Units and traits of the memory manager.
//!
//! Everything under `guest/mm` is `no_std`, forbids `unsafe`, and sees the machine only through the
//! traits here, so that the same lines run in the guest kernel, under property tests and in
//! fuzzers. Lists are linked by [`Pfn`], never by pointer.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod addr;
mod context;
mod errno;
mod fault_attr;
mod gfp;
mod id;
mod migrate;
pub mod mode;
mod order;
mod page;
mod page_state;
mod policy;
pub mod refcount;
mod section;
mod trace;
mod traits;

#[cfg(test)]
mod tests;

pub use addr::{Pfn, PhysAddr, VirtAddr};
pub use context::MaySleep;
pub use errno::Errno;
pub use fault_attr::FaultAttr;
pub use gfp::Gfp;
pub use id::{Arena, Id, Link, Rcu};
pub use migrate::{Migrate, MigrateError, MigrateMode, NoMigrate, is_movable_page, is_user_page};
pub use order::Order;
pub use page::Page;
pub use page_state::PageState;
pub use policy::{NodeMask, Policy, PolicyAt, PolicyError};
pub use section::{Pageblock, Section};
pub use trace::{Event, Ring, Stamp, Trace, TraceMask, ZoneId};
pub use traits::{CpuLocal, Folios, MemMap, PageAlloc, PhysMem};

pub use memvisor_abi::{
    EventId, Migratetype, PAGE_SHIFT, PAGE_SIZE, PAGEBLOCK_ORDER, PAGEBLOCK_PAGES, PFN_NONE, PageFlags,
    PageKind, ZoneKind,
};
