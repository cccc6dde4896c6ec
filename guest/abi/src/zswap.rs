//! zswap: pages of swap areas that are kept compressed in memory.
//!
//! ```text
//! Zswap.trees[area] ──▶ words, one for 256 slots ──▶ leaf: 256 ZswapEntry ──▶ frame of the pool: ZbudHeader, first, free, last
//! ```

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{MAX_SWAPFILES, PAGE_SIZE, TableRef};

/// Slots that a leaf has entries of.
pub const ZSWAP_LEAF_SLOTS: u64 = PAGE_SIZE / size_of::<ZswapEntry>() as u64;
/// Bytes that the space of a frame of the pool is counted in (Linux: `CHUNK_SIZE` of mm/zbud.c).
pub const ZBUD_CHUNK: u64 = 64;
/// Chunks of a frame, without the one that has the header (Linux: `NCHUNKS`).
pub const ZBUD_CHUNKS: u64 = PAGE_SIZE / ZBUD_CHUNK - 1;
/// Lists of frames with one user, by free chunks: each has fewer than [`ZBUD_CHUNKS`].
pub const ZBUD_LISTS: usize = 63;
/// Most bytes that the pool takes: a frame has a header and at least one chunk for somebody else (Linux: `zbud_alloc`).
pub const ZBUD_MAX: u64 = PAGE_SIZE - 2 * ZBUD_CHUNK;

/// What is kept of the page of a slot (Linux: `struct zswap_entry`). All zero is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ZswapEntry {
    /// [`ZswapEntry::PRESENT`], [`ZswapEntry::SAME_FILLED`]; else, without the latter, guest-physical address and bytes of what the page
    /// was compressed to.
    pub place: u64,
    /// The word that all of the page is filled with, of a page that is; else 0.
    pub value: u64,
}

impl ZswapEntry {
    /// In `place`: there is an entry.
    pub const PRESENT: u64 = 1;
    /// In `place`: all words of the page are the same.
    pub const SAME_FILLED: u64 = 2;
    /// First bit of the length in `place`.
    pub const LEN_SHIFT: u32 = 52;

    const GPA: u64 = ((1 << Self::LEN_SHIFT) - 1) & !(ZBUD_CHUNK - 1);

    /// Whether there is an entry.
    pub const fn is_present(self) -> bool {
        self.place & Self::PRESENT != 0
    }

    /// Whether the page has one word throughout.
    pub const fn is_same_filled(self) -> bool {
        self.place & Self::SAME_FILLED != 0
    }

    /// Guest-physical address of the bytes.
    pub const fn gpa(self) -> u64 {
        self.place & Self::GPA
    }

    /// How many there are.
    pub const fn len_bytes(self) -> u64 {
        self.place >> Self::LEN_SHIFT
    }
}

/// First bytes of a frame of the pool (Linux: `struct zbud_header`). Frames are linked by number; [`crate::PFN_NONE`] ends a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ZbudHeader {
    /// The frame that was used before this one.
    pub lru_next: u64,
    /// The one that was used after it.
    pub lru_prev: u64,
    /// The next with as much room; without meaning if one half of this is not free.
    pub buddy_next: u64,
    /// The one before.
    pub buddy_prev: u64,
    /// Chunks in use behind the header; 0 if none.
    pub first_chunks: u64,
    /// Chunks in use at the end; 0 if none.
    pub last_chunks: u64,
    /// Whose the first are, as `private` of a page in the swap cache names a slot (Linux: `struct zswap_header`).
    pub first_slot: u64,
    /// Whose the last are.
    pub last_slot: u64,
}

/// The pool (Linux: `struct zbud_pool`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ZbudPool {
    /// Frames (Linux: `pages_nr`).
    pub pages: u64,
    /// The frame that was used last, or [`crate::PFN_NONE`].
    pub lru_first: u64,
    /// The one that was not used for longest.
    pub lru_last: u64,
    /// By free chunks, of frames with one user: the first such.
    pub unbuddied: [u64; ZBUD_LISTS],
}

/// All of it. All zero, and no frame on any list, if it is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Zswap {
    /// 1 if pages are taken (Linux: `zswap.enabled`).
    pub enabled: u32,
    /// 1 if pages of one word are told from others (Linux: `zswap.same_filled_pages_enabled`).
    pub same_filled_pages_enabled: u32,
    /// Of all memory, what the pool may have (Linux: `zswap.max_pool_percent`).
    pub max_pool_percent: u32,
    /// Of that, what it must have come down to after it was full (Linux: `zswap.accept_threshold_percent`).
    pub accept_threshold_percent: u32,
    /// 1 from when the pool was full until it has come down (Linux: `zswap_pool_reached_full`).
    pub reached_full: u32,
    /// Always 0.
    pub reserved: u32,
    /// Pages of memory, which the limit is a part of (Linux: `totalram_pages`).
    pub totalram_pages: u64,
    /// Entries.
    pub stored_pages: u64,
    /// Of them, those of pages of one word.
    pub same_filled_pages: u64,
    /// Frames that hold entries.
    pub leaf_pages: u64,
    /// Pages that were refused because the pool was full.
    pub pool_limit_hit: u64,
    /// Entries that went to their slots to make room.
    pub written_back_pages: u64,
    /// Attempts to make room that made none.
    pub reject_reclaim_fail: u64,
    /// Pages that were refused for want of a frame for the pool.
    pub reject_alloc_fail: u64,
    /// Pages that were refused for want of a frame for entries.
    pub reject_kmemcache_fail: u64,
    /// Pages that were refused because they were hardly smaller compressed.
    pub reject_compress_poor: u64,
    /// Entries that the next store of their page took the place of.
    pub duplicate_entry: u64,
    /// The frames.
    pub pool: ZbudPool,
    /// By area: a word for each [`ZSWAP_LEAF_SLOTS`] slots, the address of a leaf of [`ZswapEntry`]s and, in the bits below a page, how many
    /// there are in it; 0 without a leaf.
    pub trees: [TableRef; MAX_SWAPFILES],
}

const _: () = assert!(
    size_of::<ZswapEntry>() == 16
        && size_of::<ZbudHeader>() as u64 == ZBUD_CHUNK
        && ZSWAP_LEAF_SLOTS == 256
        && ZBUD_CHUNKS == 63
        && ZBUD_LISTS as u64 == ZBUD_CHUNKS
        && size_of::<ZbudPool>() == 528
        && offset_of!(Zswap, totalram_pages) == 24
        && offset_of!(Zswap, pool) == 112
        && size_of::<Zswap>() == 1152
);
