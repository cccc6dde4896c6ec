//! Swap areas with the words of their slots, and what shared memory has in them.

use std::collections::HashSet;

use memvisor_abi as abi;
use memvisor_abi::{MAX_SWAPFILES, Mapping, MappingNode, PAGE_SIZE, SwapArea, TableRef, swap_slot};

use super::tables::Absent;
use super::{Guest, GuestError, LinkProblem, TableName};
use crate::MemorySource;

/// The word of a slot, read (Linux: `swap_map`, and the swap cache).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotWord(pub u64);

impl SlotWord {
    /// Entries of page tables and of shared memory that name the slot, as it says.
    pub const fn count(self) -> u64 {
        self.0 & swap_slot::COUNT
    }

    /// The frame that has the page too.
    pub const fn cache(self) -> Option<u64> {
        if self.0 & swap_slot::HAS_CACHE != 0 { Some(self.0 >> swap_slot::VALUE_SHIFT) } else { None }
    }

    /// Whether it can be given out.
    pub const fn is_free(self) -> bool {
        self.0 == 0
    }

    /// Whether it is never given out.
    pub const fn is_bad(self) -> bool {
        self.0 & swap_slot::BAD != 0
    }

    /// Whether somebody is about to give it back.
    pub const fn is_freeing(self) -> bool {
        self.0 & swap_slot::FREEING != 0
    }
}

/// A value in the tree of shared memory: the page is in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShmemSlot {
    /// Address of the mapping.
    pub mapping: u64,
    /// Page offset in it.
    pub index: u64,
    /// Area and slot.
    pub slot: (u32, u64),
}

/// Area and slot that a value in a tree, or `private` of a page in the swap cache, names.
pub fn slot_of_value(value: u64) -> (u32, u64) {
    let shift = abi::SWAP_VALUE_TYPE_SHIFT;
    // Six bits, so that it fits.
    (u32::try_from(value >> shift).unwrap_or(u32::MAX), value & ((1 << shift) - 1))
}

impl<S: MemorySource + ?Sized> Guest<'_, S> {
    /// Swap areas by number, unused ones too; empty if the guest publishes none.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn swap_areas(&self) -> Result<Vec<SwapArea>, GuestError> {
        self.table(TableName::SwapAreas, self.root().swap_areas, MAX_SWAPFILES as u64, Absent::IsEmpty)
    }

    /// The words of an area's slots; none of one that is not in use.
    ///
    /// # Errors
    /// [`GuestError`], also for more words than fit RAM.
    pub fn swap_words(&self, area: &SwapArea) -> Result<Vec<SlotWord>, GuestError> {
        let count = u32::try_from(area.max).unwrap_or(u32::MAX);
        let place = TableRef { gpa: area.words, count, stride: 8 };
        let max = self.source().ram_bytes() / 8;
        let words: Vec<u64> = self.table(TableName::SwapWords, place, max, Absent::IsEmpty)?;
        Ok(words.into_iter().map(SlotWord).collect())
    }

    /// What shared memory has in swap areas, and what stopped the search, if anything did.
    ///
    /// # Errors
    /// [`GuestError`] if the list does not begin.
    pub fn shmem_slots(&self) -> Result<(Vec<ShmemSlot>, Option<LinkProblem>), GuestError> {
        const OBJECT: &str = "address_space";
        let place = self.root().shmem_swaplist;
        let head: Vec<u64> = self.table(TableName::ShmemSwaplist, place, 1, Absent::IsEmpty)?;
        let (mut slots, mut seen) = (Vec::new(), HashSet::new());
        let mut at = head.first().copied().unwrap_or(0);
        while at != 0 {
            if !seen.insert(at) {
                return Ok((slots, Some(LinkProblem::Cycle { object: OBJECT, gpa: at })));
            }
            let mapping: Mapping = match self.object(OBJECT, at) {
                Ok(mapping) => mapping,
                Err(problem) => return Ok((slots, Some(problem))),
            };
            // As many nodes as RAM could hold, whatever the links say.
            let mut left = self.source().ram_bytes() / PAGE_SIZE * 8;
            if let Err(problem) = self.values(mapping.root, (at, 0, u64::BITS), &mut left, &mut slots) {
                return Ok((slots, Some(problem)));
            }
            at = mapping.swap_next;
        }
        Ok((slots, None))
    }

    /// The values under an entry of a tree.
    fn values(
        &self,
        entry: u64,
        (mapping, index, bits): (u64, u64, u32),
        left: &mut u64,
        slots: &mut Vec<ShmemSlot>,
    ) -> Result<(), LinkProblem> {
        match entry & 3 {
            1 | 3 => slots.push(ShmemSlot { mapping, index, slot: slot_of_value(entry >> 1) }),
            2 => {
                let gpa = entry & !3;
                let node: MappingNode = self.object("xa_node", gpa)?;
                *left =
                    left.checked_sub(1).ok_or(LinkProblem::TooLong { object: "xa_node", max: u32::MAX })?;
                if node.shift >= bits || node.shift > 60 {
                    return Err(LinkProblem::Node {
                        gpa,
                        what: "it resolves no fewer bits than the one above",
                    });
                }
                for (offset, entry) in (0_u64..).zip(node.slots) {
                    let below = index | offset.checked_shl(node.shift).unwrap_or(0);
                    self.values(entry, (mapping, below, node.shift), left, slots)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}
