//! Which pages are used, in order: the lists that reclaim takes pages from. With `lru=gen` the pages that can be reclaimed are not on
//! the lists of [`LruKind`], but on those of [`LruGen`].

use core::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{LruGen, MAX_NR_ZONES, PFN_NONE};

/// Lists of an [`Lruvec`] (Linux: the same name).
pub const NR_LRU_LISTS: usize = 5;

/// A list of an [`Lruvec`] (Linux: `enum lru_list`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum LruKind {
    /// `LRU_INACTIVE_ANON`.
    InactiveAnon = 0,
    /// `LRU_ACTIVE_ANON`.
    ActiveAnon = 1,
    /// `LRU_INACTIVE_FILE`.
    InactiveFile = 2,
    /// `LRU_ACTIVE_FILE`.
    ActiveFile = 3,
    /// `LRU_UNEVICTABLE`.
    Unevictable = 4,
}

impl LruKind {
    /// All of them, by number.
    pub const ALL: [LruKind; NR_LRU_LISTS] = [
        LruKind::InactiveAnon,
        LruKind::ActiveAnon,
        LruKind::InactiveFile,
        LruKind::ActiveFile,
        LruKind::Unevictable,
    ];

    /// Linux's name in /proc/vmstat, after `nr_`.
    pub const fn name(self) -> &'static str {
        match self {
            LruKind::InactiveAnon => "inactive_anon",
            LruKind::ActiveAnon => "active_anon",
            LruKind::InactiveFile => "inactive_file",
            LruKind::ActiveFile => "active_file",
            LruKind::Unevictable => "unevictable",
        }
    }

    /// Active (Linux: `is_active_lru`).
    pub const fn is_active(self) -> bool {
        matches!(self, LruKind::ActiveAnon | LruKind::ActiveFile)
    }

    /// Of files (Linux: `is_file_lru`).
    pub const fn is_file(self) -> bool {
        matches!(self, LruKind::InactiveFile | LruKind::ActiveFile)
    }
}

/// Pages linked by [`crate::Page::next`] and [`crate::Page::prev`]; they come in at the head and are reclaimed from the tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LruList {
    /// First frame, or [`PFN_NONE`].
    pub head: u64,
    /// Last frame, or [`PFN_NONE`].
    pub tail: u64,
    /// Frames.
    pub count: u64,
}

impl LruList {
    /// Without pages.
    pub const EMPTY: LruList = LruList { head: PFN_NONE, tail: PFN_NONE, count: 0 };
}

/// Pages of a batch (Linux: `PAGEVEC_SIZE`, since 6.11).
pub const LRU_BATCH_SIZE: usize = 31;
/// Batches of a CPU: to be added, to be rotated, of files to be deactivated, to be deactivated, given away by MADV_FREE, to be activated
/// (Linux: `struct cpu_fbatches`).
pub const NR_LRU_BATCHES: usize = 6;

/// Frames to which the same is to be done. They are hints: a frame may be noted twice, and be somebody else's by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LruBatch {
    /// Frames noted.
    pub len: u64,
    /// The frames.
    pub pfns: [u64; LRU_BATCH_SIZE],
}
const _: () = assert!(size_of::<LruBatch>() == 256);

/// The lists of a node (Linux: `struct lruvec`). Pages on a list have [`crate::PageFlags::LRU`], and flags that say which list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Lruvec {
    /// By [`LruKind`].
    pub lists: [LruList; NR_LRU_LISTS],
    /// Pages of each list by zone (Linux: `NR_ZONE_LRU_BASE`).
    pub zone_pages: [[u64; NR_LRU_LISTS]; MAX_NR_ZONES],
    /// Pages that reclaim took off its lists for a while: anonymous, of files (Linux: `NR_ISOLATED_ANON`, `NR_ISOLATED_FILE`).
    pub isolated: [u64; 2],
    /// What reclaim of either kind cost lately, in pages of I/O (Linux: `anon_cost`, `file_cost`).
    pub cost: [u64; 2],
    /// Evictions and activations so far: the clock of refault distances (Linux: the same name).
    pub nonresident_age: u64,
    /// Pages that came back and were used again soon after they were evicted (Linux: `WORKINGSET_ACTIVATE_*`).
    pub activated: [u64; 2],
    /// The same as of the last reclaim (Linux: `refaults`).
    pub refaults: [u64; 2],
    /// Generations, if that is the policy.
    pub lrugen: LruGen,
}
const _: () = assert!(
    size_of::<Lruvec>() == 392 + size_of::<LruGen>()
        && offset_of!(Lruvec, isolated) == 320
        && offset_of!(Lruvec, lrugen) == 392
);

impl Lruvec {
    /// Without pages.
    pub const EMPTY: Lruvec = Lruvec {
        lists: [LruList::EMPTY; NR_LRU_LISTS],
        zone_pages: [[0; NR_LRU_LISTS]; MAX_NR_ZONES],
        isolated: [0; 2],
        cost: [0; 2],
        nonresident_age: 0,
        activated: [0; 2],
        refaults: [0; 2],
        lrugen: LruGen::EMPTY,
    };

    /// Pages of a kind, whichever lists they are on: of generations, the two youngest are active (Linux: `lruvec_page_state`).
    pub fn pages(&self, kind: LruKind) -> u64 {
        let zones = self.zone_pages.iter().filter_map(|zone| zone.get(kind as usize));
        zones.fold(0, |sum, pages| sum.saturating_add(*pages))
    }
}
