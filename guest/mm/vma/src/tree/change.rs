//! Changes of the tree: VMAs come, go, and get other bounds.
//!
//! Each goes down to a leaf and changes it, and then goes up as far as anything above has to know: most often that is not far.

use core::sync::atomic::Ordering::Relaxed;

use super::node::{Entry, FANOUT, Kind, Node, slot_of};
use super::{MAX_HEIGHT, MINIMUM, Tree};
use crate::id::Id;
use crate::{Arena, Vma};

/// The way to a leaf: the nodes above it from the root on, and the entry taken in each.
struct Path {
    steps: [(Id<Node>, usize); MAX_HEIGHT],
    /// Steps in use: levels above the leaf.
    len: usize,
    leaf: Id<Node>,
}

impl Path {
    /// At the root of a tree of that height.
    #[inline]
    fn new(root: Id<Node>, height: u32) -> Path {
        Path { steps: [(root, 0); MAX_HEIGHT], len: (height as usize).saturating_sub(1), leaf: root }
    }

    /// Goes to the leaf that has the lowest VMA that ends after `addr`, or the highest VMA.
    #[inline]
    fn descend<K: Arena<Node>>(&mut self, k: &K, addr: u64) {
        for step in self.steps.iter_mut().take(self.len) {
            let at = k.at(self.leaf);
            // Above the highest entry, the highest child grows.
            let i = at.after(addr).saturating_sub(1);
            *step = (self.leaf, i);
            self.leaf = at.child(i).unwrap_or(self.leaf);
        }
    }
}

/// The longest gap beside an entry in its node, or, if the entry has no `bounds`, between its neighbours: those before `i`, and at `behind`.
#[inline]
fn gap_around(at: &Node, i: usize, behind: usize, bounds: Option<(u64, u64)>) -> u64 {
    let above = i.checked_sub(1).map(|i| at.start(i));
    let below = (behind < at.len()).then(|| at.end(behind));
    let between = |low: Option<u64>, high: Option<u64>| low.zip(high).map_or(0, |(low, high)| high - low);
    match bounds {
        Some((start, end)) => between(below, Some(start)).max(between(Some(end), above)),
        None => between(below, above),
    }
}

impl Tree {
    /// Adds a VMA. [`Tree::reserve`] was called.
    pub fn insert<K: Arena<Node>>(&self, k: &K, start: u64, end: u64, vma: Id<Vma>) {
        let entry = Entry { start, end, slot: vma.as_u64(), gap: 0 };
        let Some(root) = self.root.load() else {
            let root = self.fresh(k);
            k.at(root).insert_at(Kind::Leaf, 0, entry);
            self.height.store(1, Relaxed);
            self.root.store(Some(root));
            return;
        };
        let mut path = Path::new(root, self.height.load(Relaxed));
        path.descend(k, start);
        let at = k.at(path.leaf);
        let i = at.after(start);
        let gap = gap_around(at, i, i, Some((start, end)));
        let lower = self.insert_entry(k, at, Kind::Leaf, i, entry);
        let Some(lower) = self.rise(k, &path, lower, gap) else { return };
        let kind = Kind::at(path.len + 1);
        let top = self.fresh(k);
        let at = k.at(top);
        at.insert_at(Kind::Inner, 0, k.at(root).summary(root, kind));
        at.insert_at(Kind::Inner, 1, k.at(lower).summary(lower, kind));
        self.root.store(Some(top));
        self.height.store(self.height.load(Relaxed) + 1, Relaxed);
    }

    /// Takes the VMA that begins at `start` out; false if there is none.
    pub fn remove<K: Arena<Node>>(&self, k: &K, start: u64) -> bool {
        let Some(root) = self.root.load() else { return false };
        let mut path = Path::new(root, self.height.load(Relaxed));
        path.descend(k, start);
        let at = k.at(path.leaf);
        let i = at.after(start).wrapping_sub(1);
        if at.start(i) != start || at.end(i) == 0 {
            return false;
        }
        let gap = gap_around(at, i, i + 1, None);
        at.remove_at(Kind::Leaf, i);
        self.rise(k, &path, None, gap);
        self.lower_root(k);
        true
    }

    /// Moves the bounds of the VMA that begins at `old`, without passing a neighbour.
    pub fn resize<K: Arena<Node>>(&self, k: &K, old: u64, start: u64, end: u64) -> bool {
        let Some(root) = self.root.load() else { return false };
        let mut path = Path::new(root, self.height.load(Relaxed));
        path.descend(k, old);
        let at = k.at(path.leaf);
        let i = at.after(old).wrapping_sub(1);
        if at.start(i) != old || at.end(i) == 0 {
            return false;
        }
        let gap = gap_around(at, i, i + 1, Some((start, end)));
        at.set_bounds(i, start, end);
        self.rise(k, &path, None, gap);
        true
    }

    /// Tells the nodes above a leaf what became of it: `lower` is its new lower neighbour if it had to be split, and it may have too few
    /// entries. `gap` is the longest that the change made. A new lower neighbour of the root if that was split.
    fn rise<K: Arena<Node>>(
        &self,
        k: &K,
        path: &Path,
        mut lower: Option<Id<Node>>,
        mut gap: u64,
    ) -> Option<Id<Node>> {
        let mut below = path.leaf;
        for (height, &(node, i)) in path.steps.get(..path.len)?.iter().rev().enumerate() {
            let (at, child) = (k.at(node), k.at(below));
            let bounds = (lower.map_or(child, |id| k.at(id)).bounds().0, child.end(0));
            let moved = bounds != (at.start(i), at.end(i));
            if moved {
                at.set_bounds(i, bounds.0, bounds.1);
            }
            if lower.is_some() || child.len() < MINIMUM {
                let beside = gap_around(at, i, i + 1, Some(bounds));
                lower = self.rebuild(k, at, Kind::at(height + 1), (i, below), lower);
                gap = gap.max(beside);
            } else {
                let before = at.gap(i);
                if gap > before {
                    at.set_gap(i, gap);
                } else if !moved {
                    // Nor does anything change above.
                    return None;
                }
                if moved {
                    gap = gap.max(gap_around(at, i, i + 1, Some(bounds)));
                }
            }
            below = node;
        }
        lower
    }

    /// Enters the lower part of a child that was split, which is at `i`, or fills it up if it has too few entries. A new lower neighbour of
    /// the node if it had to be split.
    #[inline(never)]
    fn rebuild<K: Arena<Node>>(
        &self,
        k: &K,
        at: &Node,
        kind: Kind,
        (i, child): (usize, Id<Node>),
        lower: Option<Id<Node>>,
    ) -> Option<Id<Node>> {
        let Some(lower) = lower else {
            self.refill(k, at, kind, i.saturating_sub(1));
            return None;
        };
        at.set(i, k.at(child).summary(child, kind));
        self.insert_entry(k, at, Kind::Inner, i + 1, k.at(lower).summary(lower, kind))
    }

    /// Puts an entry at `i`; a new lower neighbour of the node if it had to be split.
    fn insert_entry<K: Arena<Node>>(
        &self,
        k: &K,
        at: &Node,
        kind: Kind,
        i: usize,
        entry: Entry,
    ) -> Option<Id<Node>> {
        if at.len() < FANOUT {
            at.insert_at(kind, i, entry);
            return None;
        }
        let lower = self.fresh(k);
        let to = k.at(lower);
        // Insertions in order leave two thirds behind.
        let keep = match i {
            0 => MINIMUM,
            FANOUT => FANOUT - MINIMUM,
            _ => FANOUT.div_ceil(2),
        };
        at.move_to(to, keep);
        if i <= keep {
            at.insert_at(kind, i, entry);
        } else {
            to.insert_at(kind, i - keep, entry);
        }
        Some(lower)
    }

    /// Joins children `i` and `i + 1`, or shares their entries evenly.
    fn refill<K: Arena<Node>>(&self, k: &K, at: &Node, kind: Kind, i: usize) {
        let (Some(upper), Some(lower)) = (at.child(i), at.child(i + 1)) else { return };
        let (u, l) = (k.at(upper), k.at(lower));
        let total = u.len() + l.len();
        if total <= FANOUT {
            l.move_to(u, 0);
            at.remove_at(Kind::Inner, i + 1);
            self.put_spare(k, lower);
        } else {
            while u.len() < total / 2 {
                u.insert_at(kind, u.len(), l.get(0));
                l.remove_at(kind, 0);
            }
            while u.len() > total / 2 {
                l.insert_at(kind, 0, u.get(u.len() - 1));
                u.truncate(u.len() - 1);
            }
            at.set(i + 1, l.summary(lower, kind));
        }
        at.set(i, u.summary(upper, kind));
    }

    /// Takes away a root without entries, or with one that is a node.
    fn lower_root<K: Arena<Node>>(&self, k: &K) {
        let Some(root) = self.root.load() else { return };
        let (at, height) = (k.at(root), self.height.load(Relaxed));
        let lower = match at.len() {
            0 => None,
            1 if height > 1 => at.child(0),
            _ => return,
        };
        self.root.store(lower);
        self.height.store(height - 1, Relaxed);
        self.put_spare(k, root);
    }

    pub(super) fn fresh<K: Arena<Node>>(&self, k: &K) -> Id<Node> {
        let node = self.spare.load().expect("an insertion was not reserved");
        let at = k.at(node);
        self.spare.store(at.child(0));
        self.spares.store(self.spares.load(Relaxed) - 1, Relaxed);
        at.set_slot(0, 0);
        node
    }

    /// A node without entries, but for the first slot, which leads to the next such node.
    pub(super) fn put_spare<K: Arena<Node>>(&self, k: &K, node: Id<Node>) {
        let at = k.at(node);
        at.clear();
        at.set_slot(0, self.spare.load().map_or(0, slot_of));
        self.spare.store(Some(node));
        self.spares.store(self.spares.load(Relaxed) + 1, Relaxed);
    }
}
