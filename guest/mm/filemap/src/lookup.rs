//! Lookups without a lock, in their two parts: walking a tree that changes, and getting hold of a page that may be freed
//! (Linux: `filemap_get_entry`).
//!
//! L1  A node that leaves a tree goes back to the arena, and may be in another tree while a walk is still in it. The tree counts such
//!     nodes in `changes`, before it lets go of them. A walk that finds the count as it was met nodes of its own tree only.
//! L2  A frame that was found may be freed and be somebody else's page. Who tries to get a reference either fails, because there is
//!     none left, or keeps the page as it is; if the page then says that it belongs where it was looked for, it does.
//!
//! Both are generic over what they read, so that the same lines run in a model checker.

use core::sync::atomic::{Ordering, fence};

use mm_core::refcount::{self, Counter};
use mm_core::{Arena, Page};

use crate::entry::Raw;
use crate::node::CHUNK_SHIFT;
use crate::{Node, Tree};

/// Levels that 64 bits of index can need.
pub(crate) const MAX_LEVELS: usize = 11;

/// A tree, as walks see it.
pub(crate) trait Walk {
    /// The count of nodes that left, before a walk.
    fn changes(&self) -> u32;
    /// The count after everything that the walk read.
    fn changes_after(&self) -> u32;
    /// What the root holds.
    fn root(&self) -> Raw;
    /// Bits below what the node resolves, and its slot for the index. `first` for the root: `None` if it does not hold the index.
    fn step(&self, node: mm_core::Id<Node>, index: u64, first: bool) -> Option<(u32, Raw)>;
}

/// What is at `index`, never a node; `None` if the tree changed meanwhile (L1).
pub(crate) fn walk<W: Walk>(tree: &W, index: u64) -> Option<Raw> {
    let before = tree.changes();
    let found = descend(tree, index);
    (tree.changes_after() == before).then_some(found)
}

/// [`walk`] while the tree does not change.
pub(crate) fn descend<W: Walk>(tree: &W, index: u64) -> Raw {
    let mut raw = tree.root();
    let mut bits = u32::MAX;
    for level in 0..=MAX_LEVELS {
        let Some(node) = raw.node() else {
            return if level == 0 && index != 0 { Raw::EMPTY } else { raw };
        };
        let Some((shift, slot)) = tree.step(node, index, level == 0) else { break };
        // What is no step down is a node that went elsewhere.
        if shift >= bits {
            break;
        }
        (bits, raw) = (shift, slot);
    }
    Raw::EMPTY
}

/// A tree in its arena.
pub(crate) struct InArena<'a, K>(pub &'a Tree, pub &'a K);

impl<K: Arena<Node>> Walk for InArena<'_, K> {
    #[inline]
    fn changes(&self) -> u32 {
        self.0.changes.load(Ordering::Acquire)
    }

    #[inline]
    fn changes_after(&self) -> u32 {
        fence(Ordering::Acquire);
        self.0.changes.load(Ordering::Relaxed)
    }

    #[inline]
    fn root(&self) -> Raw {
        self.0.root()
    }

    #[inline]
    fn step(&self, node: mm_core::Id<Node>, index: u64, first: bool) -> Option<(u32, Raw)> {
        let node = self.1.at(node);
        (!first || node.covers(index)).then(|| (node.shift(), node.slot(node.offset_of(index))))
    }
}

/// A page, as lookups see it.
pub(crate) trait Candidate {
    type Count: Counter;
    fn references(&self) -> &Self::Count;
    /// Mapping and index; see [`Page::owner`].
    fn owner(&self) -> (u64, u64);
}

impl Candidate for Page {
    type Count = core::sync::atomic::AtomicI32;

    fn references(&self) -> &Self::Count {
        Page::references(self)
    }

    fn owner(&self) -> (u64, u64) {
        Page::owner(self)
    }
}

/// What a try to get hold of a page led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tried {
    /// The caller has a reference of the page looked for.
    Got,
    /// The page is being freed.
    Free,
    /// The caller has a reference of another page, and drops it.
    Other,
}

/// Tries to get a reference of a page that a walk found at (`mapping`, `index`) (L2).
pub(crate) fn try_get<P: Candidate>(page: &P, owner: (u64, u64)) -> Tried {
    if !refcount::try_get(page.references()) {
        Tried::Free
    } else if page.owner() == owner {
        Tried::Got
    } else {
        Tried::Other
    }
}

/// Bits of a tree's top node that holds `index`.
pub(crate) fn shift_for(index: u64) -> u32 {
    let bits = u64::BITS - index.leading_zeros();
    bits.saturating_sub(1) / CHUNK_SHIFT * CHUNK_SHIFT
}
