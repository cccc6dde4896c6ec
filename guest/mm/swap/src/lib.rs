//! Swap areas (Linux: mm/swapfile.c, mm/swap_state.c).
//!
//! An area is a device cut into slots of a page. It keeps one word for each slot ([`memvisor_abi::swap_slot`]): who names the slot, and
//! the frame that has the page in memory too, which is the swap cache. Counts and cache change without a lock; slots are given out,
//! and come back, under the area's lock, from clusters, so that pages which leave together lie together.
//!
//! Invariants, checked by [`audit`]:
//! S1  the word of a free slot is 0; slot 0, the header, is bad;
//! S2  a cluster counts its words that are not 0; it is on the free list if there are none, on no list if all are used, else on the
//!     list of those with room;
//! S3  `inuse_pages` counts the slots that are neither free nor bad; `pages` those that are not bad;
//! S4  a slot in use is named, or cached, or about to be freed by whoever saw it become neither;
//! S5  the page of a slot with a cache entry is marked SWAPCACHE, names the slot in `private`, and the entry has a reference of it.
//!
//! Lock order: the list of areas and an area's lock are never held together; both come below page-table locks and take nothing.
//!
//! Differs from Linux: the cache is in the words, so that a lookup is one load and no tree can run out of memory; and a word
//! counts to a million, so that there are no continuation pages.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod alloc;
mod area;
mod audit;
mod cache;
mod cluster;
mod entry;
mod error;
mod header;
mod list;
mod machine;
mod readahead;
mod slot;
mod swapin;
mod swapoff;
mod swapon;

#[cfg(test)]
mod tests;

pub use alloc::{folio_alloc_swap, swap_duplicate, swap_free, swap_write_failed};
pub use area::SwapInfo;
pub use audit::{Broken, audit};
pub use cache::{
    Lookup, add_to_swap_cache, delete_from_swap_cache, folio_free_swap, folio_swap_entry,
    free_swap_and_cache, free_swap_cache, remove_from_swap_cache, replace_in_swap_cache,
    swap_cache_get_folio, swap_count,
};
pub use cluster::{Cluster, SWAPFILE_CLUSTER};
pub use entry::SwapEntry;
pub use error::{HeaderError, SwapError};
pub use header::{Parsed, read_swap_header};
pub use list::SwapList;
pub use machine::{CpuCluster, Swap, Totals};
pub use readahead::{Readahead, cluster_window};
pub use slot::{Put, Slot, SlotError, Word};
pub use swapin::{SwapInError, SwapIo, SwappedIn, read_swap_cache_async};
pub use swapoff::{Unuse, swapoff};
pub use swapon::{NewArea, swapon};
