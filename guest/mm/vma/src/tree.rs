//! The ordered tree of an address space's VMAs (Linux: the maple tree `mm_mt`).
//!
//! A B+ tree of nodes with [`FANOUT`] entries. An entry is a range and what is there: in a leaf a VMA, above a node
//! whose VMAs lie inside the range. A search compares `end`s only, which lie next to each other: at most two cache lines a
//! node. For gap searches each entry above the leaves knows how long a gap between the VMAs below it may be. The highest entry comes first, because
//! mmap looks from the top: its way down reads the first words of each node.
//!
//! Invariants:
//! N1  entries of a node descend and do not overlap;
//! N2  an entry above a leaf begins where the first VMA below it does, and ends where the last one does;
//! N3  all leaves have the same depth; no node is empty; only the root has fewer than [`MINIMUM`] entries;
//! N4  `gap` is at least the longest gap between neighbouring VMAs below the entry, as far as the entries there know: an insertion leaves it as
//!     it is, and a search that comes to nothing corrects it, so that each insertion costs searches a bounded time;
//! N5  behind the last entry `start`, `end` and `slot` are 0, so that a search needs no length.
//!
//! Writers, and those who search for gaps, hold mmap_lock for writing. [`Tree::find`] may run beside a writer: nodes are never given back to anything else while
//! the arena lives (Linux: `SLAB_TYPESAFE_BY_RCU`), a slot tells whether it is a node's, a walk has at most [`MAX_HEIGHT`] steps, and
//! what it finds is believed only after the VMA itself was locked and looked at again (`lock.rs`).
//!
//! Differs from Linux: one kind of node, both bounds kept, and writers move entries in place, where a maple tree replaces
//! nodes for readers under RCU. A reader here may miss a VMA that is being moved; it then takes mmap_lock.

mod change;
mod gap;
mod node;

use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use memvisor_abi as abi;

use crate::id::{Id, Link};
use crate::{Arena, Errno, Vma};

pub use gap::GapQuery;
pub use node::{FANOUT, Node};

use node::{Below, Entry, Kind};

/// A node with fewer entries takes some from its neighbour, or joins it.
pub const MINIMUM: usize = FANOUT / 3;
/// More levels than `max_map_count` VMAs can need.
const MAX_HEIGHT: usize = abi::VMA_TREE_MAX_HEIGHT as usize;
const _: () = assert!(2 * MINIMUM.pow(abi::VMA_TREE_MAX_HEIGHT) > abi::MAX_MAP_COUNT as usize);

/// The tree of one address space.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Tree {
    root: Link<Node>,
    /// Nodes for insertions to come, linked by their first slot.
    spare: Link<Node>,
    /// Levels; 0 while the tree is empty.
    height: AtomicU32,
    spares: AtomicU32,
}

const _: () = assert!(
    offset_of!(Tree, root) == offset_of!(abi::Mm, tree_root)
        && offset_of!(Tree, spare) == offset_of!(abi::Mm, tree_spare)
        && offset_of!(Tree, height) == offset_of!(abi::Mm, tree_height)
        && offset_of!(Tree, spares) == offset_of!(abi::Mm, tree_spares)
        && size_of::<Tree>() == offset_of!(abi::Mm, lock_seq)
);

impl Tree {
    /// The first VMA that ends after `addr` (Linux: `find_vma`).
    #[inline]
    pub fn find<K: Arena<Node>>(&self, k: &K, addr: u64) -> Option<Id<Vma>> {
        let mut node = self.root.load()?;
        // No height: a reader without locks may see that of another moment than the root.
        for _ in 0..MAX_HEIGHT {
            let at = k.at(node);
            match at.below(at.after(addr).wrapping_sub(1))? {
                Below::Vma(vma) => return Some(vma),
                Below::Node(child) => node = child,
            }
        }
        None
    }

    /// The last VMA that begins before `addr`.
    pub fn find_before<K: Arena<Node>>(&self, k: &K, addr: u64) -> Option<Id<Vma>> {
        let mut node = self.root.load()?;
        for _ in 0..MAX_HEIGHT {
            let at = k.at(node);
            match at.below(at.from(addr))? {
                Below::Vma(vma) => return Some(vma),
                Below::Node(child) => node = child,
            }
        }
        None
    }

    /// Makes sure that `inserts` insertions need no memory (Linux: `mas_preallocate`).
    ///
    /// # Errors
    /// `ENOMEM`; nothing is lost.
    pub fn reserve<K: Arena<Node>>(&self, k: &K, inserts: u32) -> Result<(), Errno> {
        let wanted = inserts * (self.height.load(Relaxed) + 2);
        while self.spares.load(Relaxed) < wanted {
            let node = k.alloc().ok_or(Errno::Enomem)?;
            self.put_spare(k, node);
        }
        Ok(())
    }

    /// Gives all nodes back. The tree must be empty.
    pub fn destroy<K: Arena<Node>>(&self, k: &K) {
        debug_assert!(self.root.load().is_none(), "a tree was destroyed with VMAs in it");
        while self.spare.load().is_some() {
            k.free(self.fresh(k));
        }
    }

    /// Checks N1 to N5. Calls `f(start, end, vma)` for every VMA, ascending.
    ///
    /// # Errors
    /// What is broken.
    pub fn audit<K: Arena<Node>>(
        &self,
        k: &K,
        mut f: impl FnMut(u64, u64, Option<Id<Vma>>),
    ) -> Result<(), &'static str> {
        let Some(root) = self.root.load() else { return Ok(()) };
        audit_below(k, root, self.height.load(Relaxed) as usize, true, &mut f)
    }
}

fn audit_below<K: Arena<Node>>(
    k: &K,
    node: Id<Node>,
    level: usize,
    root: bool,
    f: &mut dyn FnMut(u64, u64, Option<Id<Vma>>),
) -> Result<(), &'static str> {
    let at = k.at(node);
    at.audit()?;
    if at.len() == 0 || !root && at.len() < MINIMUM {
        return Err("a node has too few entries");
    }
    for i in (0..at.len()).rev() {
        let entry = at.get(i);
        match at.below(i) {
            Some(Below::Vma(vma)) if level <= 1 => f(entry.start, entry.end, Some(vma)),
            Some(Below::Node(child)) if level > 1 => {
                let summary = k.at(child).summary(child, Kind::at(level - 1));
                if (Entry { gap: entry.gap, ..summary }) != entry || summary.gap > entry.gap {
                    return Err("an entry does not tell what is below it");
                }
                audit_below(k, child, level - 1, false, f)?;
            }
            _ => return Err("an entry has nothing below it, or not what its level has"),
        }
    }
    Ok(())
}
