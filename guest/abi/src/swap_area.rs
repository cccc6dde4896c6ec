//! Swap areas as they are published.

use core::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A swap area (Linux: `struct swap_info_struct`). All zero is one that was never used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SwapArea {
    /// Guest-physical address of its words ([`crate::swap_slot`]), `u64` each, contiguous; 0 if there is no area.
    pub words: u64,
    /// Slots, the header's included; 0 if there is no area.
    pub max: u64,
    /// Slots that are not bad (Linux: `pages`).
    pub pages: u64,
    /// Slots in use (Linux: `inuse_pages`).
    pub inuse: u64,
    /// Pages read from it so far.
    pub reads: u64,
    /// Pages written to it so far.
    pub writes: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Priority: higher ones are used first.
    pub prio: i32,
    /// [`SwapArea::USED`], [`SwapArea::WRITEOK`].
    pub flags: u32,
    /// Number of the disk: 0 for vda.
    pub disk: u32,
    /// Always 0.
    pub reserved: u32,
}

impl SwapArea {
    /// In `flags`: there is an area (Linux: `SWP_USED`).
    pub const USED: u32 = 1;
    /// In `flags`: slots are given out (Linux: `SWP_WRITEOK`).
    pub const WRITEOK: u32 = 2;
}

const _: () = assert!(size_of::<SwapArea>() == 80 && offset_of!(SwapArea, prio) == 64);
