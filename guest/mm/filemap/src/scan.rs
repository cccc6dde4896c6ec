//! Finding the next entry (Linux: `xas_find`, `xas_find_marked`).

use core::sync::atomic::Ordering::{Acquire, Relaxed};
use core::sync::atomic::fence;

use mm_core::{Arena, Id};

use crate::node::CHUNK_SHIFT;
use crate::{Entry, Mark, Node, Tree};

/// The tree changed while somebody looked without the lock.
struct Changed;

impl Tree {
    /// The first entry in `from..=last`, with its index.
    pub fn next<K: Arena<Node>>(&self, k: &K, from: u64, last: u64) -> Option<(u64, Entry)> {
        self.scan(k, from, last, |node| node.present(), None).unwrap_or(None)
    }

    /// The first entry in `from..=last` that has the mark, with its index.
    pub fn next_marked<K: Arena<Node>>(
        &self,
        k: &K,
        mark: Mark,
        from: u64,
        last: u64,
    ) -> Option<(u64, Entry)> {
        if !self.is_marked(mark) {
            return None;
        }
        self.scan(k, from, last, |node| node.marked(mark), None).unwrap_or(None)
    }

    /// [`Tree::next`] without the lock. `Err` if the tree never kept still: take the lock.
    ///
    /// # Errors
    /// Nothing is known.
    #[expect(clippy::result_unit_err, reason = "there is nothing more to say")]
    pub fn next_unlocked<K: Arena<Node>>(
        &self,
        k: &K,
        from: u64,
        last: u64,
    ) -> Result<Option<(u64, Entry)>, ()> {
        (0..8)
            .find_map(|_| {
                let before = self.changes.load(Acquire);
                self.scan(k, from, last, |node| node.present(), Some(before)).ok()
            })
            .ok_or(())
    }

    /// The first entry in `from..=last` among the slots that `wanted` picks in each node. With `since`, the count of changes
    /// before, nothing is believed once that is another.
    fn scan<K: Arena<Node>>(
        &self,
        k: &K,
        from: u64,
        last: u64,
        wanted: impl Fn(&Node) -> u64,
        since: Option<u32>,
    ) -> Result<Option<(u64, Entry)>, Changed> {
        let check = || {
            fence(Acquire);
            if since.is_none_or(|since| self.changes.load(Relaxed) == since) { Ok(()) } else { Err(Changed) }
        };
        let mut index = from;
        while index <= last {
            let found = self.step(k, index, &wanted);
            check()?;
            match found {
                Step::Found(at, _) if at > last => break,
                Step::Found(at, entry) => return Ok(Some((at, entry))),
                Step::From(next) if next > index => index = next,
                Step::From(_) | Step::End => break,
            }
        }
        Ok(None)
    }

    /// Goes down once from the root, to the first entry at or after `index` or to where there is none.
    fn step<K: Arena<Node>>(&self, k: &K, mut index: u64, wanted: &impl Fn(&Node) -> u64) -> Step {
        let root = self.root();
        let Some(mut id): Option<Id<Node>> = root.node() else {
            return if index == 0 && !root.is_empty() { Step::Found(0, root.entry()) } else { Step::End };
        };
        if !k.at(id).covers(index) {
            return Step::End;
        }
        loop {
            let node: &Node = k.at(id);
            let (shift, offset) = (node.shift(), node.offset_of(index));
            let skip = (wanted(node) >> offset).trailing_zeros();
            if skip == u64::BITS {
                // Behind the last index under this node.
                let all = u64::MAX.checked_shl(shift + CHUNK_SHIFT).map_or(u64::MAX, |above| !above);
                return (index | all).checked_add(1).map_or(Step::End, Step::From);
            }
            if skip > 0 {
                index = ((index >> shift) + u64::from(skip)) << shift;
            }
            let raw = node.slot(node.offset_of(index));
            match raw.node() {
                Some(below) if k.at(below).shift() < shift => id = below,
                // Somebody emptied it meanwhile, or it is a node of another tree.
                Some(_) => return after(index, shift),
                None if raw.is_empty() => return after(index, shift),
                None => return Step::Found(index, raw.entry()),
            }
        }
    }
}

fn after(index: u64, shift: u32) -> Step {
    (index | ((1 << shift) - 1)).checked_add(1).map_or(Step::End, Step::From)
}

enum Step {
    Found(u64, Entry),
    /// Go on from here.
    From(u64),
    End,
}
