//! A search tree of areas by address, with the longest area of every subtree (Linux: the augmented red-black trees
//! `vmap_area_root` and `free_vmap_area_root`).
//!
//! It is a treap: a node's priority is a hash of its number, no child's is higher, and so the shape does not depend on
//! the order of operations and is balanced in expectation.
//!
//! Differs from Linux: not a red-black tree, because insertion and removal by splitting and joining are a few lines,
//! need no link to the parent, and cost the same in expectation.

use mm_core::PhysMem;

use crate::node::{Id, NONE, Nodes};

impl<M: PhysMem> Nodes<'_, M> {
    /// The tree `root` with `id` in it.
    pub fn insert(&self, root: Id, id: Id) -> Id {
        if root == NONE || self.priority(id) > self.priority(root) {
            let (left, right) = self.split(root, self.start(id));
            self.link(id, left, right);
            return id;
        }
        let (left, right) = self.children(root);
        if self.start(id) < self.start(root) {
            self.link(root, self.insert(left, id), right);
        } else {
            self.link(root, left, self.insert(right, id));
        }
        root
    }

    /// The tree `root` without the area that starts at `start`, which is in it.
    pub fn remove(&self, root: Id, start: u64) -> Id {
        assert!(root != NONE, "no area starts at {start:#x}");
        let (left, right) = self.children(root);
        let at = self.start(root);
        if start == at {
            return self.join(left, right);
        }
        if start < at {
            self.link(root, self.remove(left, start), right);
        } else {
            self.link(root, left, self.remove(right, start));
        }
        root
    }

    /// The area that holds `va`.
    pub fn find(&self, mut root: Id, va: u64) -> Option<Id> {
        while root != NONE {
            if va < self.start(root) {
                root = self.children(root).0;
            } else if va < self.end(root) {
                return Some(root);
            } else {
                root = self.children(root).1;
            }
        }
        None
    }

    /// The lowest place for `size` bytes at a multiple of `align` inside `low..high`, and the area that has it
    /// (Linux: `find_vmap_lowest_match`).
    pub fn lowest(&self, root: Id, size: u64, align: u64, low: u64, high: u64) -> Option<(Id, u64)> {
        if self.max(root) < size {
            return None;
        }
        let (start, (left, right)) = (self.start(root), self.children(root));
        if start > low
            && let Some(found) = self.lowest(left, size, align, low, high)
        {
            return Some(found);
        }
        let first = start.max(low).checked_next_multiple_of(align);
        if let Some(first) = first
            && first.checked_add(size).is_some_and(|end| end <= self.end(root).min(high))
        {
            return Some((root, first));
        }
        if start >= high { None } else { self.lowest(right, size, align, low, high) }
    }

    /// Calls `f` for every area, ascending, as long as it returns true. False if `f` did.
    pub fn each(&self, root: Id, f: &mut dyn FnMut(Id) -> bool) -> bool {
        if root == NONE {
            return true;
        }
        let (left, right) = self.children(root);
        self.each(left, f) && f(root) && self.each(right, f)
    }

    /// The areas below `start`, and the others.
    fn split(&self, root: Id, start: u64) -> (Id, Id) {
        if root == NONE {
            return (NONE, NONE);
        }
        let (left, right) = self.children(root);
        if self.start(root) < start {
            let (below, above) = self.split(right, start);
            self.link(root, left, below);
            (root, above)
        } else {
            let (below, above) = self.split(left, start);
            self.link(root, above, right);
            (below, root)
        }
    }

    /// One tree of two, of which all of `left` is below all of `right`.
    fn join(&self, left: Id, right: Id) -> Id {
        if left == NONE {
            return right;
        }
        if right == NONE {
            return left;
        }
        if self.priority(left) > self.priority(right) {
            let (below, above) = self.children(left);
            self.link(left, below, self.join(above, right));
            left
        } else {
            let (below, above) = self.children(right);
            self.link(right, self.join(left, below), above);
            right
        }
    }

    fn link(&self, id: Id, left: Id, right: Id) {
        self.set_children(id, left, right);
        let own = self.end(id) - self.start(id);
        self.set_max(id, own.max(self.max(left)).max(self.max(right)));
    }
}
