//! The name of a slot (Linux: `swp_entry_t`).

use core::fmt;

use memvisor_abi::{MAX_SWAPFILES, PTE_SWAP_EXCLUSIVE, SWAP_OFFSET_BITS, SWAP_VALUE_TYPE_SHIFT};

/// A slot of a swap area.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SwapEntry {
    area: u32,
    offset: u64,
}

impl SwapEntry {
    /// Slot `offset` of area `area`; `None` past the limits (Linux: `swp_entry`).
    /// ```
    /// use mm_swap::SwapEntry;
    /// let entry = SwapEntry::new(2, 100).unwrap();
    /// assert_eq!(SwapEntry::of_pte(entry.to_pte(true)), Some(entry));
    /// assert_eq!(SwapEntry::of_value(entry.as_value()), Some(entry));
    /// assert_eq!(SwapEntry::new(32, 0), None);
    /// ```
    pub const fn new(area: u32, offset: u64) -> Option<SwapEntry> {
        if area as usize >= MAX_SWAPFILES || offset >> SWAP_OFFSET_BITS != 0 {
            return None;
        }
        Some(SwapEntry { area, offset })
    }

    /// Number of the area (Linux: `swp_type`).
    pub const fn area(self) -> u32 {
        self.area
    }

    /// Number of the slot in the area (Linux: `swp_offset`).
    pub const fn offset(self) -> u64 {
        self.offset
    }

    /// The entry of a page table that names it; `exclusive` if no other does (Linux: `swp_entry_to_pte`, `pte_swp_mkexclusive`).
    pub const fn to_pte(self, exclusive: bool) -> u64 {
        let mark = if exclusive { PTE_SWAP_EXCLUSIVE } else { 0 };
        memvisor_abi::swap_pte(self.area, self.offset) | mark
    }

    /// What an entry of a page table names, if that is a slot (Linux: `pte_to_swp_entry`).
    pub const fn of_pte(raw: u64) -> Option<SwapEntry> {
        match memvisor_abi::pte_swap_slot(raw) {
            Some((area, offset)) => Some(SwapEntry { area, offset }),
            None => None,
        }
    }

    /// Whether the entry of a page table said that no other names its slot (Linux: `pte_swp_exclusive`).
    pub const fn is_exclusive_pte(raw: u64) -> bool {
        SwapEntry::of_pte(raw).is_some() && raw & PTE_SWAP_EXCLUSIVE != 0
    }

    /// Below 2^63: for a tree of pages, and for `private` of a page in the swap cache (Linux: `swp_to_radix_entry`).
    pub const fn as_value(self) -> u64 {
        (self.area as u64) << SWAP_VALUE_TYPE_SHIFT | self.offset
    }

    /// The slot that [`SwapEntry::as_value`] made this of.
    pub const fn of_value(value: u64) -> Option<SwapEntry> {
        SwapEntry::new((value >> SWAP_VALUE_TYPE_SHIFT) as u32, value & ((1 << SWAP_VALUE_TYPE_SHIFT) - 1))
    }
}

impl fmt::Display for SwapEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {:#x} of swap area {}", self.offset, self.area)
    }
}
