//! Enumeration of tables and leaves.

use memvisor_abi::PAGE_SIZE;
use serde::Serialize;
use thiserror::Error;
use zerocopy::IntoBytes;

use super::Span;
use crate::{Access, Entry, MemorySource, PageSize, Walker};

/// A mapping of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// First virtual address.
    pub va: u64,
    /// Guest-physical address of the page.
    pub gpa: u64,
    /// Its size.
    pub size: PageSize,
    /// What all entries on the way together allow.
    pub access: Access,
    /// The last entry.
    pub entry: Entry,
}

/// A page table on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// First virtual address that it translates.
    pub va: u64,
    /// Its guest-physical address.
    pub gpa: u64,
    /// Level of its entries; 1 is pte.
    pub level: u32,
}

/// What makes part of a tree unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error, Serialize)]
#[serde(tag = "problem", rename_all = "snake_case")]
pub enum TreeProblem {
    /// A present entry sets bits that must be 0.
    #[error("{va:#x}: level {level} entry {entry:?} sets reserved bits {bits:#x}")]
    ReservedBits {
        /// First virtual address behind the entry.
        #[serde(serialize_with = "crate::hex")]
        va: u64,
        /// Level of the entry.
        level: u32,
        /// The entry.
        entry: Entry,
        /// The offending bits.
        #[serde(serialize_with = "crate::hex")]
        bits: u64,
    },
    /// A table is not in RAM.
    #[error("{va:#x}: level {level} table at guest-physical {gpa:#x} is not RAM")]
    TableNotRam {
        /// First virtual address behind the table.
        #[serde(serialize_with = "crate::hex")]
        va: u64,
        /// Level of the table's entries.
        level: u32,
        /// Where it should be.
        #[serde(serialize_with = "crate::hex")]
        gpa: u64,
    },
    /// A table is reached through itself.
    #[error("{va:#x}: level {level} table at guest-physical {gpa:#x} is also a table above it")]
    Recursive {
        /// First virtual address behind the table.
        #[serde(serialize_with = "crate::hex")]
        va: u64,
        /// Level at which it is reached again.
        level: u32,
        /// The table.
        #[serde(serialize_with = "crate::hex")]
        gpa: u64,
    },
}

impl TreeProblem {
    /// First virtual address concerned.
    pub const fn va(&self) -> u64 {
        match self {
            TreeProblem::ReservedBits { va, .. }
            | TreeProblem::TableNotRam { va, .. }
            | TreeProblem::Recursive { va, .. } => *va,
        }
    }
}

/// Receives what is in a tree, ascending by virtual address.
pub trait Visitor {
    /// A mapped page.
    fn leaf(&mut self, leaf: &Leaf);

    /// A table, before what is in it. Tables that several entries share come several times.
    fn table(&mut self, table: &Table) {
        let _ = table;
    }

    /// An entry that is neither present nor 0.
    fn absent(&mut self, va: u64, level: u32, entry: Entry) {
        let _ = (va, level, entry);
    }

    /// A part that cannot be walked.
    fn problem(&mut self, problem: &TreeProblem) {
        let _ = problem;
    }
}

/// How far an enumeration came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// Tables visited.
    pub tables: u64,
    /// Whether that was the whole tree; if not, it shares tables so much that it was given up.
    pub complete: bool,
}

/// Enumerates all of `span`.
pub fn walk_tree<S, V>(walker: &Walker, source: &S, span: Span, visitor: &mut V) -> Coverage
where
    S: MemorySource + ?Sized,
    V: Visitor + ?Sized,
{
    let budget = (source.ram_bytes() / PAGE_SIZE).max(1);
    let mut tree = Tree { walker, source, visitor, left: budget, path: [0; 6] };
    let level = walker.levels().count();
    // Both halves are one range of the translated bits.
    let mask = (1u64 << walker.levels().va_bits()) - 1;
    let complete = tree.table(level, walker.root(), 0, (span.start & mask, span.last & mask), (!0, 0));
    Coverage { tables: budget - tree.left, complete }
}

/// Calls `visit` with every mapped page.
pub fn for_each_leaf<S, F>(walker: &Walker, source: &S, visit: F) -> Coverage
where
    S: MemorySource + ?Sized,
    F: FnMut(&Leaf),
{
    struct Leaves<F>(F);
    impl<F: FnMut(&Leaf)> Visitor for Leaves<F> {
        #[inline]
        fn leaf(&mut self, leaf: &Leaf) {
            self.0(leaf);
        }
    }
    walk_tree(walker, source, Span::ALL, &mut Leaves(visit))
}

struct Tree<'a, S: ?Sized, V: ?Sized> {
    walker: &'a Walker,
    source: &'a S,
    visitor: &'a mut V,
    /// Tables that may still be visited.
    left: u64,
    /// Tables being visited, by level.
    path: [u64; 6],
}

impl<S: MemorySource + ?Sized, V: Visitor + ?Sized> Tree<'_, S, V> {
    /// Visits the table at `gpa`, which translates from `base` (canonical form not yet made), as far as it lies in
    /// `first..=last`. `all` and `any` join the entries above it. False if the budget is spent.
    fn table(&mut self, level: u32, gpa: u64, base: u64, bounds: (u64, u64), above: (u64, u64)) -> bool {
        let Some(left) = self.left.checked_sub(1) else { return false };
        self.left = left;
        let levels = self.walker.levels();
        let va = levels.canonical(base);
        let mut entries = [0u64; 512];
        if self.source.read(gpa, entries.as_mut_bytes()).is_err() {
            self.visitor.problem(&TreeProblem::TableNotRam { va, level, gpa });
            return true;
        }
        if let Some(place) = self.path.get_mut(level as usize) {
            *place = gpa;
        }
        self.visitor.table(&Table { va, gpa, level });

        let shift = 3 + 9 * level;
        let (first, last) = bounds;
        let from = first.saturating_sub(base) >> shift;
        let to = (last.saturating_sub(base) >> shift).min(511);
        for index in from..=to {
            #[expect(clippy::cast_possible_truncation, reason = "below 512")]
            let Some(&raw) = entries.get(index as usize) else { break };
            let entry = Entry::new(u64::from_le(raw));
            let start = base + (index << shift);
            if !entry.is_present() {
                if raw != 0 {
                    self.visitor.absent(levels.canonical(start), level, entry);
                }
                continue;
            }
            let bits = self.walker.reserved_bits(level, entry);
            if bits != 0 {
                let va = levels.canonical(start);
                self.visitor.problem(&TreeProblem::ReservedBits { va, level, entry, bits });
                continue;
            }
            let (all, any) = (above.0 & raw, above.1 | raw);
            if entry.is_leaf(level) {
                let size = PageSize::at_level(level);
                let leaf = Leaf {
                    va: levels.canonical(start),
                    gpa: entry.page(size),
                    size,
                    access: Access::of(all, any),
                    entry,
                };
                self.visitor.leaf(&leaf);
                continue;
            }
            let (below, next) = (level - 1, entry.table());
            if self.path.get(level as usize..).is_some_and(|path| path.contains(&next)) {
                let va = levels.canonical(start);
                self.visitor.problem(&TreeProblem::Recursive { va, level: below, gpa: next });
                continue;
            }
            let end = start + ((1 << shift) - 1);
            if !self.table(below, next, start, (first.max(start), last.min(end)), (all, any)) {
                return false;
            }
        }
        if let Some(place) = self.path.get_mut(level as usize) {
            // No table is at this address, so nothing is mistaken for one that is being visited.
            *place = u64::MAX;
        }
        true
    }
}
