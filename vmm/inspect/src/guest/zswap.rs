//! Pages of swap areas that are kept compressed: entries, and the frames of the pool.

use std::collections::HashSet;

use memvisor_abi::{PAGE_SIZE, PFN_NONE, TableRef, ZSWAP_LEAF_SLOTS, ZbudHeader, Zswap, ZswapEntry};

use super::tables::Absent;
use super::{Guest, GuestError, LinkProblem, Linked, TableName};
use crate::MemorySource;

const FRAME: &str = "zbud frame";

/// What is kept of a slot's page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZswapEntryAt {
    /// Area and slot.
    pub slot: (u32, u64),
    /// The entry.
    pub entry: ZswapEntry,
}

/// A frame with the entries of 256 slots in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZswapLeaf {
    /// The frame.
    pub pfn: u64,
    /// Area and first slot.
    pub first: (u32, u64),
    /// Entries, as the word that leads here says.
    pub used: u64,
}

/// A frame of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZbudFrame {
    /// The frame.
    pub pfn: u64,
    /// Its first bytes.
    pub header: ZbudHeader,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct ZswapWalk {
    /// Counts and heads.
    pub state: Zswap,
    /// By area and slot.
    pub leaves: Vec<ZswapLeaf>,
    /// By area and slot.
    pub entries: Vec<ZswapEntryAt>,
    /// A leaf that cannot be read.
    pub problem: Option<LinkProblem>,
    /// By age, the latest first.
    pub frames: Linked<ZbudFrame>,
    /// By free chunks, of those with one user.
    pub unbuddied: Vec<Linked<ZbudFrame>>,
}

impl<S: MemorySource + ?Sized> Guest<'_, S> {
    /// Counts and heads; `None` if the guest publishes none.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn zswap(&self) -> Result<Option<Zswap>, GuestError> {
        let state: Vec<Zswap> = self.table(TableName::Zswap, self.root().zswap, 1, Absent::IsEmpty)?;
        Ok(state.first().copied())
    }

    /// Everything that leads to a page that is kept; `None` if zswap is off, or nothing is published.
    ///
    /// # Errors
    /// [`GuestError`] if the words of an area cannot be read.
    pub fn zswap_walk(&self) -> Result<Option<ZswapWalk>, GuestError> {
        let Some(state) = self.zswap()?.filter(|state| state.enabled != 0) else { return Ok(None) };
        let (mut leaves, mut entries, mut problem) = (Vec::new(), Vec::new(), None);
        for (area, tree) in (0..).zip(state.trees) {
            let max = self.source().ram_bytes() / 8;
            let words: Vec<u64> = self.table(TableName::ZswapLeaves, tree, max, Absent::IsEmpty)?;
            for (index, word) in (0..).zip(words).filter(|(_, word)| *word != 0) {
                let gpa = word & !(PAGE_SIZE - 1);
                let first = index * ZSWAP_LEAF_SLOTS;
                leaves.push(ZswapLeaf { pfn: gpa / PAGE_SIZE, first: (area, first), used: word % PAGE_SIZE });
                // A table that says nothing about its length cannot be absent.
                let count = u32::try_from(ZSWAP_LEAF_SLOTS).unwrap_or(0);
                let place = TableRef { gpa, count, stride: 16 };
                let leaf = self.table(TableName::ZswapLeaves, place, ZSWAP_LEAF_SLOTS, Absent::IsEmpty);
                let leaf: Vec<ZswapEntry> = leaf.unwrap_or_else(|_| {
                    problem.get_or_insert(LinkProblem::NotRam { object: "zswap leaf", gpa });
                    Vec::new()
                });
                let present = (first..).zip(leaf).filter(|(_, entry)| entry.is_present());
                entries.extend(present.map(|(slot, entry)| ZswapEntryAt { slot: (area, slot), entry }));
            }
        }
        let pool = &state.pool;
        let frames = self.zbud_list(pool.lru_first, |header| (header.lru_next, header.lru_prev));
        let unbuddied = pool.unbuddied.iter();
        let unbuddied = unbuddied
            .map(|&first| self.zbud_list(first, |header| (header.buddy_next, header.buddy_prev)))
            .collect();
        Ok(Some(ZswapWalk { state, leaves, entries, problem, frames, unbuddied }))
    }

    /// The frames of a list, whose links `links` finds.
    fn zbud_list(&self, first: u64, links: fn(&ZbudHeader) -> (u64, u64)) -> Linked<ZbudFrame> {
        let (mut items, mut seen) = (Vec::new(), HashSet::new());
        let (mut pfn, mut from) = (first, PFN_NONE);
        let problem = loop {
            if pfn == PFN_NONE {
                break None;
            }
            let gpa = pfn.saturating_mul(PAGE_SIZE);
            if !seen.insert(pfn) {
                break Some(LinkProblem::Cycle { object: FRAME, gpa });
            }
            let header: ZbudHeader = match self.object(FRAME, gpa) {
                Ok(header) => header,
                Err(problem) => break Some(problem),
            };
            let (next, prev) = links(&header);
            if prev != from {
                break Some(LinkProblem::BackLink { object: FRAME, gpa, says: prev, from });
            }
            items.push(ZbudFrame { pfn, header });
            (from, pfn) = (pfn, next);
        };
        Linked { items, problem }
    }
}
