//! Bounce buffers: memory that a device with few address bits reaches, in slots.

use core::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// log2 of the bytes of a slot (Linux: `IO_TLB_SHIFT`).
pub const IO_TLB_SHIFT: u32 = 11;
/// Bytes of a slot (Linux: `IO_TLB_SIZE`).
pub const IO_TLB_SIZE: u64 = 1 << IO_TLB_SHIFT;
/// Most slots of a mapping; it never crosses a multiple of so many (Linux: `IO_TLB_SEGSIZE`).
pub const IO_TLB_SEGSIZE: u32 = 128;
/// Most pools: the default one, and one for devices that do not reach it.
pub const MAX_SWIOTLB_POOLS: usize = 2;
/// Most areas of a pool.
pub const MAX_SWIOTLB_AREAS: u32 = 64;
/// [`SwiotlbSlot::orig_addr`] of a slot that is free (Linux: `INVALID_PHYS_ADDR`).
pub const INVALID_PHYS_ADDR: u64 = u64::MAX;

/// A pool of slots (Linux: `struct io_tlb_mem`). All numbers are 0 of one that is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SwiotlbPool {
    /// Guest-physical address of slot 0, a multiple of the page size.
    pub start: u64,
    /// Guest-physical address of the [`SwiotlbSlot`]s; 0 as long as nobody has bounced: then every slot is free.
    pub slots_gpa: u64,
    /// Guest-physical address of the [`SwiotlbArea`]s; 0 with [`Self::slots_gpa`].
    pub areas_gpa: u64,
    /// Slots.
    pub nslabs: u32,
    /// Areas, a power of two; each has the same number of slots, a multiple of [`IO_TLB_SEGSIZE`].
    pub nareas: u32,
    /// 1 if the pool was reserved at boot; 0 if it came from the page allocator.
    pub reserved: u32,
    /// 1 if every mapping bounces, whatever its mask (`swiotlb=force`).
    pub force: u32,
}
const _: () = assert!(size_of::<SwiotlbPool>() == 40 && offset_of!(SwiotlbPool, nslabs) == 24);

/// A part of a pool with a lock of its own (Linux: `struct io_tlb_area`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SwiotlbArea {
    /// Slots in use.
    pub used: u32,
    /// The slot of the area at which the next search begins.
    pub index: u32,
    /// Mappings that were made.
    pub mapped: u64,
    /// Mappings that were undone.
    pub unmapped: u64,
    /// Most slots that were in use at once.
    pub used_hiwater: u64,
}
const _: () = assert!(size_of::<SwiotlbArea>() == 32);

/// A slot (Linux: `struct io_tlb_slot`).
///
/// A mapping has consecutive slots: of the first, `head` is its own number, and `offset` says where in it the mapping begins. Each later
/// one has the same `head`, offset 0, and the address and length of what is left of the mapping from it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SwiotlbSlot {
    /// Where what the slot holds belongs; [`INVALID_PHYS_ADDR`] of a free slot.
    pub orig_addr: u64,
    /// Bytes of the mapping from here to its end; 0 of a free slot (Linux: `alloc_size`).
    pub alloc_size: u32,
    /// Of a free slot: free slots from this one on, as far as the segment or the next used slot. 0 of a used one.
    pub list: u32,
    /// Number in the pool of the mapping's first slot; [`SwiotlbSlot::NO_HEAD`] of a free slot.
    pub head: u32,
    /// Bytes of the slot before the mapping; of its first slot only.
    pub offset: u32,
}
const _: () = assert!(size_of::<SwiotlbSlot>() == 24 && offset_of!(SwiotlbSlot, head) == 16);

impl SwiotlbSlot {
    /// [`SwiotlbSlot::head`] of a free slot.
    pub const NO_HEAD: u32 = u32::MAX;

    /// A free slot with `list` free ones from it on.
    pub const fn free(list: u32) -> SwiotlbSlot {
        SwiotlbSlot {
            orig_addr: INVALID_PHYS_ADDR,
            alloc_size: 0,
            list,
            head: SwiotlbSlot::NO_HEAD,
            offset: 0,
        }
    }
}
