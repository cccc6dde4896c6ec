//! Contiguous areas.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most areas of a machine (Linux: `MAX_CMA_AREAS` with NUMA).
pub const MAX_CMA_AREAS: usize = 20;
/// Bytes of an area's name, the closing zero included.
pub const CMA_NAME_LEN: usize = 16;

/// A contiguous area: frames that movable allocations borrow until somebody needs many of them in one piece (Linux: `struct
/// cma`). Its frames lie in one zone, and their pageblocks are of type [`crate::Migratetype::Cma`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CmaArea {
    /// First frame, a multiple of the largest block.
    pub base_pfn: u64,
    /// Frames, a multiple of the largest block; 0 for a place that is not in use.
    pub count: u64,
    /// Guest-physical address of the bitmap: `u64` words, lowest bit first, a bit for `2^order_per_bit` frames, set while they are
    /// somebody's.
    pub bitmap_gpa: u64,
    /// log2 of the frames of a bit.
    pub order_per_bit: u32,
    /// Node that it was made for; [`crate::NODE_NONE`] for any.
    pub node: u32,
    /// Linux's name, closed by zeroes.
    pub name: [u8; CMA_NAME_LEN],
    /// Frames that were handed out so far (Linux: `nr_pages_succeeded`).
    pub nr_pages_succeeded: u64,
    /// Frames of requests that failed (Linux: `nr_pages_failed`).
    pub nr_pages_failed: u64,
}
const _: () = assert!(size_of::<CmaArea>() == 64);

impl CmaArea {
    /// A place that is not in use.
    pub const NONE: CmaArea = CmaArea {
        base_pfn: 0,
        count: 0,
        bitmap_gpa: 0,
        order_per_bit: 0,
        node: crate::NODE_NONE,
        name: [0; CMA_NAME_LEN],
        nr_pages_succeeded: 0,
        nr_pages_failed: 0,
    };

    /// Bits of the bitmap (Linux: `cma_bitmap_maxno`).
    pub const fn bits(&self) -> u64 {
        match self.count.checked_shr(self.order_per_bit) {
            Some(bits) => bits,
            None => 0,
        }
    }
}
