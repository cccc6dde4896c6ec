//! The page cache: which frame holds which page of a file or of shared memory (Linux: lib/xarray.c, mm/filemap.c,
//! mm/truncate.c, mm/shmem.c).
//!
//! What can be mapped is a [`Mapping`]: a tree from page offsets to frames, a size, and the list of who maps it. Whoever
//! changes the tree holds the mapping's lock ([`Cache::pages_lock`]); lookups take no lock. Objects are in arenas and are linked by
//! number.
//!
//! Invariants:
//! C1  the mapping's lock is held while a frame comes into the tree or leaves it; from the one to the other the page's `mapping` and
//!     `index` say where it is, the cache has one reference of it, and `nrpages` counts it;
//! C2  a lookup believes what it found only after it has a reference, and the page still says that it is where it was looked for;
//! C3  a page table entry of a cached page is made with the page tables locked, and only while the page says so (mm-vma). Whoever
//!     takes pages out lets go of their `mapping` first and unmaps them then, so that no entry stays behind;
//! C4  `size` shrinks before pages are taken out, and a page for a fault comes in only below it, both under the lock: no
//!     page past the end stays.
//!
//! Invariants of the tree (X) are in `tree.rs`, of shadow nodes (W) in `workingset.rs`. Lock order: the mapping's lock comes below page-table
//! locks and takes nothing but an arena's and that of the list of shadow nodes.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod cache;
mod entry;
mod error;
mod filemap;
mod lookup;
mod mapping;
mod marks;
mod node;
mod page;
mod scan;
mod sealed;
mod seek;
pub mod shmem;
mod tree;
mod truncate;
mod workingset;
pub mod writeback;

#[cfg(test)]
mod tests;

pub use cache::{Cache, Cows, MappedError, MappedPage};
pub use entry::Entry;
pub use error::CacheError;
pub use filemap::{
    Bound, MOVES, add_to_page_cache, delete_from_page_cache, find_get_entry, find_get_page, get_ready_page,
    has_page, next_page, read_cache_page, remove_mapping, replace_page,
};
pub use mapping::{Broken, Mapping};
pub use marks::Mark;
pub use node::Node;
pub use page::{Puts, get_page, put_page};
pub use sealed::{Sealed, Seals};
pub use seek::{Seek, seek_hole_data};
pub use tree::{Missing, Spare, Tree};
pub use truncate::{
    clear_shadow_entries, clear_shadow_entry, truncate_inode_pages_range, truncate_pagecache,
};
pub use workingset::{ShadowNodes, count_shadow_nodes, scan_shadow_nodes};
