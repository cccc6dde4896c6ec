//! Zones and their buddy allocator (Linux: mm/page_alloc.c, mm/mm_init.c).
//!
//! [`Zone`] keeps the free lists in the layout that the ABI publishes, linked by frame number
//! through the descriptors of a [`mm_core::MemMap`]. Around it: which frames a zone spans
//! ([`zone_extents`]), its [`watermark`]s, the order in which nodes help each other out
//! ([`fallback_order`]), and the initialisation of descriptors ([`init_range`]).
//!
//! Lock order: a zone is guarded by one lock, taken after any lock of whoever owns the frames. No
//! function here takes a lock.
//!
//! A wrong call is refused with a [`FreeError`]. A list that is already broken (a link to a frame
//! without descriptor) panics: going on would hand out memory that somebody uses.
//!
//! Invariants, verified by [`Zone::audit`], from outside under the same numbers:
//! B1  a free block of order n starts at a multiple of 2^n;
//! B2  two free buddies never coexist below `Order::MAX`;
//! B3  the sum of `nr_free << order` over all types but `Isolate` equals `free_pages`, and over `Cma`
//!     `nr_free_cma`;
//! B4  every list holds `nr_free` blocks, links back as it links forward, and ends at `tail`; its bit in
//!     `nonempty` says whether it has any;
//! B5  a block on the list of order n and type t is headed by a frame of kind `Buddy` with order n and
//!     type t, refcount 0, mapcount -1 and without `RESERVED`;
//! B6  every frame of a free block lies in the zone's span and has its node and zone;
//! B7  the other frames of a free block are of kind `Tail` with refcount 0;
//! B8  `free_pages + deferred_pages <= managed_pages <= present_pages <= spanned_pages`.
//!
//! And by [`Zone::audit_range`], which reads every descriptor of a range:
//! B9  a frame of kind `Buddy` is on a list, and one of kind `Tail` inside a block;
//! B10 a free block lies on the list of type `Isolate` or `Cma` exactly if its pageblock has that type, and
//!     `nr_isolate_pageblock` counts the pageblocks.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod alloc;
mod alloc_flags;
mod audit;
mod cma;
mod compaction;
mod contig;
mod error;
mod extent;
mod fallback;
mod free;
mod free_list;
pub mod gfp;
mod glance;
mod init;
mod isolation;
mod migrate;
mod movable;
mod pageblock;
pub mod pcp;
mod policy;
pub mod watermark;
mod zone;
mod zonelist;

#[cfg(test)]
mod tests;

pub use alloc::{
    CompactPriority, CompactResult, Machine, NoReclaim, OomOutcome, PageAllocator, PageList, Reclaim, Request,
};
pub use alloc_flags::AllocFlags;
pub use audit::Violation;
pub use cma::Cma;
pub use compaction::{COMPACT_MAX_DEFER_SHIFT, ContigPageInfo, EXTFRAG_THRESHOLD, KcompactdWork};
pub use contig::ContigError;
pub use error::FreeError;
pub use extent::{Extent, ZoneLimits, zone_extents};
pub use fallback::WATERMARK_BOOST_FACTOR;
pub use gfp::{Context, GfpError, GfpNames, TaskFlags, check_gfp};
pub use glance::ZoneGlance;
pub use init::init_range;
pub use migrate::{AllocTarget, CLUSTER_MAX, IsolatedRange, Migrated, NewPages};
pub use mm_core::refcount;
pub use mm_core::{NodeMask, Policy, PolicyError};
pub use movable::find_zone_movable_pfns;
pub use pcp::{CpuPages, set_high_and_batch, zone_batchsize, zone_highsize};
pub use policy::{Placement, TaskPolicy};
pub use zone::Zone;
pub use zonelist::{NodeState, ZoneRef, build_zonelist, fallback_order, zone_refs};
