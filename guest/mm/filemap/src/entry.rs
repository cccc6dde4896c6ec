//! What a slot of a tree holds (Linux: include/linux/xarray.h).
//!
//! A word: 0 for nothing; the physical address of a frame; a value with bit 0 set; the number of a node with bit 1 set.

use mm_core::{Id, Pfn, PhysAddr};

use crate::Node;

const VALUE: u64 = 1;
const NODE: u64 = 2;
const KIND: u64 = VALUE | NODE;

/// What is at an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing.
    Empty,
    /// The page, in this frame. Never frame 0.
    Frame(Pfn),
    /// A number below 2^63 in the place of a page, such as where it was written to (Linux: `xa_is_value`).
    Value(u64),
}

/// The word of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Raw(pub u64);

impl Raw {
    pub(crate) const EMPTY: Raw = Raw(0);

    pub(crate) fn of_node(node: Id<Node>) -> Raw {
        debug_assert!(node.as_u64() & KIND == 0, "the number of a node is no multiple of 4");
        Raw(node.as_u64() | NODE)
    }

    pub(crate) fn of(entry: Entry) -> Raw {
        match entry {
            Entry::Empty => Raw::EMPTY,
            Entry::Frame(pfn) => {
                debug_assert!(pfn.as_u64() != 0, "frame 0 is nobody's page");
                Raw(pfn.phys().as_u64())
            }
            Entry::Value(value) => {
                debug_assert!(value >> 63 == 0, "a value has 63 bits");
                Raw(value << 1 | VALUE)
            }
        }
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn is_value(self) -> bool {
        self.0 & VALUE != 0
    }

    pub(crate) const fn node(self) -> Option<Id<Node>> {
        if self.0 & KIND == NODE { Id::new(self.0 & !KIND) } else { None }
    }

    /// What it is; a node is nothing that a user sees.
    pub(crate) fn entry(self) -> Entry {
        if self.0 & VALUE != 0 {
            Entry::Value(self.0 >> 1)
        } else if self.0 & NODE != 0 || self.0 == 0 {
            Entry::Empty
        } else {
            Entry::Frame(PhysAddr::new(self.0).pfn())
        }
    }
}
