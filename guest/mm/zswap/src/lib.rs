//! Swapped pages that are kept compressed in memory, in front of the devices of swap areas (Linux: mm/zswap.c with mm/zbud.c; LZ4).
//!
//! A page on its way to its slot is compressed and kept here instead, if it is worth it and there is room; one whose words are all the
//! same is kept as that word. Whoever swaps it in finds it here, where it stays until its slot is free. When the pool is full, what was stored
//! longest ago goes to the slots that it was meant for.
//!
//! Everything lies in frames, which readers from outside find: see `zswap.rs` of guest/abi. Nothing here allocates. What a store needs
//! comes from the caller ([`Spare`]), and what is not needed any more goes to the caller ([`Freed`]), so that the lock around a [`Zswap`] is
//! held for a lookup and a copy of at most a page.
//!
//! Invariants, checked by [`audit`]:
//! Z1  an entry that is not of one word has its bytes in a frame of the pool, where the header names its slot and counts its chunks;
//! Z2  every half of a frame that has chunks is an entry's; a frame has one or two in use, and one is on the list for what it has free, two on
//!     none; all are on the list by age;
//! Z3  `pool.pages` counts the frames, `stored_pages` and `same_filled_pages` the entries, `leaf_pages` the leaves, and a leaf's word its
//!     entries, of which it has at least one.
//!
//! Who may do what when is the caller's to see to: a slot's page is stored, and written back, by whoever has its page of the swap cache
//! locked, and loaded into one; it is invalidated by them, or when nobody uses the slot. So at most one of them is at it at a time.
//!
//! Differs from Linux: slots lead to entries by two tables, not by a tree; a page being read is copied out under the lock, so that entries
//! have no reference counts; the compressor is LZ4, there LZO is the default.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod audit;
pub mod lz4;
mod spare;
mod tree;
mod zbud;
mod zswap;

#[cfg(test)]
mod tests;

pub use audit::{Broken, audit};
pub use spare::Spare;
pub use tree::words_for;
pub use zswap::{
    Admission, Content, Count, Freed, Lacking, Loaded, Parameters, PoolMem, StoreError, Zswap, fill,
    same_filled,
};
