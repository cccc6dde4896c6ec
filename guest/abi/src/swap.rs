//! Swap: entries of page tables that name a slot of a swap area, the words that an area keeps for its slots, and its first page.

use core::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{PAGE_SIZE, PTE_MIGRATION, PTE_PROTNONE, PTE_SPECIAL};

/// Swap areas at most (Linux: `MAX_SWAPFILES`, less on most machines).
pub const MAX_SWAPFILES: usize = 32;
/// In an entry that is not present: the page is in a swap area. Never with [`PTE_PROTNONE`], [`PTE_MIGRATION`] or [`PTE_SPECIAL`].
pub const PTE_SWAP: u64 = 1 << 8;
/// In a swap entry: no other entry named the page when it was written (Linux: `_PAGE_SWP_EXCLUSIVE`).
pub const PTE_SWAP_EXCLUSIVE: u64 = 1 << 3;
/// First bit of the area's number in a swap entry.
pub const PTE_SWAP_TYPE_SHIFT: u32 = 59;
/// First bit of the slot's number, inverted, in a swap entry.
pub const PTE_SWAP_OFFSET_SHIFT: u32 = 12;
/// Bits of a slot's number.
pub const SWAP_OFFSET_BITS: u32 = PTE_SWAP_TYPE_SHIFT - PTE_SWAP_OFFSET_SHIFT;
/// First bit of the area's number where a swap entry is a value in a tree of pages (Linux: `SWP_TYPE_SHIFT`).
pub const SWAP_VALUE_TYPE_SHIFT: u32 = 58;

const OFFSET_MASK: u64 = (1 << SWAP_OFFSET_BITS) - 1;
const _: () = assert!(MAX_SWAPFILES == 1 << (u64::BITS - PTE_SWAP_TYPE_SHIFT));

/// The entry of a page that is in slot `offset` of area `area`. Numbers past the limits are cut off.
///
/// The number of the slot is inverted, so that the address bits name no memory: a CPU that speculates past the present bit finds none
/// in its cache (Linux: arch/x86/include/asm/pgtable_64.h, `SWP_OFFSET_SHIFT`).
/// ```
/// use memvisor_abi::{pte_swap_slot, swap_pte};
/// assert_eq!(pte_swap_slot(swap_pte(3, 17)), Some((3, 17)));
/// assert_eq!(pte_swap_slot(0), None);
/// ```
pub const fn swap_pte(area: u32, offset: u64) -> u64 {
    (area as u64) << PTE_SWAP_TYPE_SHIFT | (!offset & OFFSET_MASK) << PTE_SWAP_OFFSET_SHIFT | PTE_SWAP
}

/// Area and slot that an entry of the lowest level names, if it is a swap entry.
pub const fn pte_swap_slot(raw: u64) -> Option<(u32, u64)> {
    let marks = 1 | PTE_SWAP | PTE_PROTNONE | PTE_MIGRATION | PTE_SPECIAL;
    if raw & marks != PTE_SWAP {
        return None;
    }
    Some(((raw >> PTE_SWAP_TYPE_SHIFT) as u32, !(raw >> PTE_SWAP_OFFSET_SHIFT) & OFFSET_MASK))
}

/// The word that an area keeps for a slot; 0 of a slot that is free (Linux: `swap_map` and the tree of the swap cache, which are apart
/// there).
pub mod swap_slot {
    /// Entries of page tables and of shared memory that name the slot (Linux: `swap_count`).
    pub const COUNT: u64 = (1 << 20) - 1;
    /// The page is in memory too: [`VALUE_SHIFT`] has its frame (Linux: `SWAP_HAS_CACHE`).
    pub const HAS_CACHE: u64 = 1 << 20;
    /// Never given out: the header, or a block that the device cannot keep (Linux: `SWAP_MAP_BAD`).
    pub const BAD: u64 = 1 << 21;
    /// Nobody names it any more, and the area is about to have it back.
    pub const FREEING: u64 = 1 << 22;
    /// A write to it failed: once nobody names it, it is [`BAD`].
    pub const WRITE_ERROR: u64 = 1 << 23;
    /// First bit of the frame with [`HAS_CACHE`]; without, of what is remembered of the page's eviction, or of 0.
    pub const VALUE_SHIFT: u32 = 24;
}

/// Bad blocks that a header can name (Linux: `MAX_SWAP_BADPAGES`).
pub const MAX_SWAP_BADPAGES: usize = 637;
/// Last bytes of a header.
pub const SWAP_MAGIC: [u8; 10] = *b"SWAPSPACE2";

/// The first page of a swap area, as mkswap writes it, in either byte order (Linux: `union swap_header`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SwapHeader {
    /// A boot loader's, or a label of disk partitions.
    pub bootbits: [u8; 1024],
    /// 1.
    pub version: u32,
    /// Number of the last page.
    pub last_page: u32,
    /// Entries of [`Self::badpages`] in use.
    pub nr_badpages: u32,
    /// Identifies the area.
    pub uuid: [u8; 16],
    /// A name, padded by zeroes.
    pub volume: [u8; 16],
    /// Without meaning.
    pub padding: [u32; 117],
    /// Numbers of pages that the device cannot keep.
    pub badpages: [u32; MAX_SWAP_BADPAGES],
    /// Without meaning.
    pub unused: [u8; 2],
    /// [`SWAP_MAGIC`].
    pub magic: [u8; 10],
}
const _: () = assert!(
    size_of::<SwapHeader>() as u64 == PAGE_SIZE
        && offset_of!(SwapHeader, badpages) == 1536
        && offset_of!(SwapHeader, magic) == 4086
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_entry_is_never_empty_and_names_no_low_frame() {
        let last = (1 << SWAP_OFFSET_BITS) - 1;
        for (area, offset) in [(0, 0), (0, 1), (31, 1), (31, last), (0, last), (7, 1 << 40)] {
            let raw = swap_pte(area, offset);
            assert_eq!(pte_swap_slot(raw), Some((area, offset)));
            assert_eq!(pte_swap_slot(raw | PTE_SWAP_EXCLUSIVE), Some((area, offset)));
            assert!(raw != 0 && raw & 1 == 0);
        }
        // Slots that exist leave the upper address bits set.
        assert!(swap_pte(0, 1 << 32) & (1 << 51) != 0);
    }

    #[test]
    fn entries_of_other_kinds_are_no_swap_entries() {
        let raw = swap_pte(1, 2);
        for mark in [1, PTE_PROTNONE, PTE_MIGRATION, PTE_SPECIAL] {
            assert_eq!(pte_swap_slot(raw | mark), None);
        }
        assert_eq!(pte_swap_slot(raw & !PTE_SWAP), None);
    }
}
