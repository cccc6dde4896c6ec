//! The whole tree of page tables (Linux: arch/x86/mm/dump_pagetables.c).
//!
//! [`walk_tree`] hands every table and every leaf to a [`Visitor`], a whole table at a time. It ends
//! on any input: a table that contains itself is not entered again, and no more tables are visited
//! than RAM has frames, which only a tree that shares tables in hostile ways can exceed.
//! [`PtDump`] merges leaves into ranges and lists what is wrong with them.

mod findings;
mod ranges;
mod tree;

#[cfg(test)]
mod tests;

pub use findings::{Finding, FindingKind};
pub(crate) use ranges::human;
pub use ranges::{PtDump, Range, Span};
pub use tree::{Coverage, Leaf, Table, TreeProblem, Visitor, for_each_leaf, walk_tree};
