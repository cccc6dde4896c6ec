//! Entries of processes' page tables, those that are not present included.

use std::collections::HashMap;

use memvisor_abi as abi;
use memvisor_abi::{PAGE_SHIFT, PTE_MIGRATION, PTE_PROTNONE};
use serde::Serialize;

use super::{Guest, MmSpace};
use crate::ptdump::{Leaf, Span, Table, TreeProblem, Visitor, walk_tree};
use crate::{Access, Entry, MemorySource, Walker};

/// What an entry of user space is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// The CPU uses it.
    Present,
    /// A mapped page in a VMA without access: [`PTE_PROTNONE`].
    ProtNone,
    /// A page that is being moved: [`PTE_MIGRATION`].
    Migration,
    /// A page in a slot of a swap area: [`abi::PTE_SWAP`].
    Swap,
    /// Not empty, and none of these.
    Unknown,
}

impl EntryKind {
    /// Whether a descriptor's mapcount counts it.
    pub const fn is_mapping(self) -> bool {
        matches!(self, EntryKind::Present | EntryKind::ProtNone)
    }

    /// Name used by views.
    pub const fn name(self) -> &'static str {
        match self {
            EntryKind::Present => "present",
            EntryKind::ProtNone => "no access",
            EntryKind::Migration => "migration",
            EntryKind::Swap => "swap",
            EntryKind::Unknown => "unknown",
        }
    }
}

/// An entry of user space that is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserEntry {
    /// Address that it translates.
    pub va: u64,
    /// What it is.
    pub kind: EntryKind,
    /// First frame that it names; [`abi::PFN_NONE`] if it names a slot.
    pub pfn: u64,
    /// Frames: 1, or more for a large page; 0 if it names a slot.
    pub frames: u64,
    /// What it and the entries above it allow; of one that is not present, what its own bits say.
    pub access: Access,
    /// The entry.
    pub entry: Entry,
}

impl UserEntry {
    /// Area and slot that it names, if its page is in swap.
    pub fn swap_slot(&self) -> Option<(u32, u64)> {
        abi::pte_swap_slot(self.entry.as_u64()).filter(|_| self.kind == EntryKind::Swap)
    }
}

/// All of one address space.
#[derive(Clone, Debug, Default)]
pub struct UserEntries {
    /// Ascending by address.
    pub entries: Vec<UserEntry>,
    /// Frames of its page tables below the top-level one, ascending by address.
    pub tables: Vec<u64>,
    /// Whether that is all: neither were tables shared so much that the walk was given up, nor are there parts that cannot
    /// be walked.
    pub complete: bool,
}

impl<S: MemorySource + ?Sized> Guest<'_, S> {
    /// A walker of an address space's page tables.
    pub fn space_walker(&self, pgd_pfn: u64) -> Walker {
        Walker::new(pgd_pfn << PAGE_SHIFT, self.levels()).with_phys_bits(self.root().phys_bits)
    }

    /// Walks the user half of an address space. Collects at most `limit` entries.
    pub fn user_entries(&self, space: &MmSpace, limit: usize) -> UserEntries {
        let last = (1 << (self.levels().va_bits() - 1)) - 1;
        let mut collector = Collector { found: UserEntries::default(), limit, whole: true };
        let walker = self.space_walker(space.space.pgd_pfn);
        let root = walker.root();
        let coverage = walk_tree(&walker, self.source(), Span { start: 0, last }, &mut collector);
        let mut found = collector.found;
        found.tables.retain(|&pfn| pfn != root >> PAGE_SHIFT);
        found.complete = coverage.complete && collector.whole;
        found
    }

    /// Entries that one address space may have before its walk is given up: far more than RAM has frames.
    pub fn entry_limit(&self) -> usize {
        let frames = self.source().ram_bytes() / abi::PAGE_SIZE;
        usize::try_from(frames.saturating_mul(4)).unwrap_or(usize::MAX).max(1 << 12)
    }
}

struct Collector {
    found: UserEntries,
    limit: usize,
    whole: bool,
}

impl Collector {
    fn push(&mut self, entry: UserEntry) {
        if self.found.entries.len() < self.limit {
            self.found.entries.push(entry);
        } else {
            self.whole = false;
        }
    }
}

impl Visitor for Collector {
    fn leaf(&mut self, leaf: &Leaf) {
        self.push(UserEntry {
            va: leaf.va,
            kind: EntryKind::Present,
            pfn: leaf.gpa >> PAGE_SHIFT,
            frames: leaf.size.bytes() >> PAGE_SHIFT,
            access: leaf.access,
            entry: leaf.entry,
        });
    }

    fn absent(&mut self, va: u64, level: u32, entry: Entry) {
        let raw = entry.as_u64();
        let kind = match raw {
            raw if level == 1 && raw & PTE_PROTNONE != 0 => EntryKind::ProtNone,
            raw if level == 1 && raw & PTE_MIGRATION != 0 => EntryKind::Migration,
            raw if level == 1 && abi::pte_swap_slot(raw).is_some() => EntryKind::Swap,
            _ => EntryKind::Unknown,
        };
        let (pfn, frames) = match kind {
            EntryKind::Swap => (abi::PFN_NONE, 0),
            _ => ((raw & Entry::ADDRESS) >> PAGE_SHIFT, 1),
        };
        self.push(UserEntry { va, kind, pfn, frames, access: Access::of(raw, raw), entry });
    }

    fn table(&mut self, table: &Table) {
        self.found.tables.push(table.gpa >> PAGE_SHIFT);
    }

    fn problem(&mut self, _problem: &TreeProblem) {
        self.whole = false;
    }
}

/// How many entries of all address spaces map each frame.
#[derive(Clone, Debug)]
pub struct MapCounts {
    counts: HashMap<u64, u32>,
    /// Frames that may still be counted: large pages of a hostile guest have many.
    left: usize,
}

impl MapCounts {
    /// Counts at most `limit` mappings of frames.
    pub fn new(limit: usize) -> MapCounts {
        MapCounts { counts: HashMap::new(), left: limit }
    }

    /// Counts another address space; false if that were too many.
    pub fn add(&mut self, entries: &UserEntries) -> bool {
        for entry in entries.entries.iter().filter(|entry| entry.kind.is_mapping()) {
            for pfn in entry.pfn..entry.pfn.saturating_add(entry.frames) {
                let Some(left) = self.left.checked_sub(1) else { return false };
                self.left = left;
                let count = self.counts.entry(pfn).or_default();
                *count = count.saturating_add(1);
            }
        }
        true
    }

    /// Entries that map the frame.
    pub fn of(&self, pfn: u64) -> u32 {
        self.counts.get(&pfn).copied().unwrap_or(0)
    }

    /// Frames that are mapped, in no order, with their entries.
    pub fn frames(&self) -> impl Iterator<Item = (u64, u32)> {
        self.counts.iter().map(|(&pfn, &count)| (pfn, count))
    }
}
