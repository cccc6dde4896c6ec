//! The ordered tree of an address space's VMAs (Linux: the maple tree `mm_mt`).
//!
//! A B+ tree of nodes with [`FANOUT`] entries. An entry is a range and what is there: in a leaf a VMA, above a node
//! whose VMAs lie inside the range. A search compares `end`s only, which lie next to each other: two cache lines a
//! node. For gap searches each entry above the leaves knows the longest gap between the VMAs below it.
//!
//! Invariants:
//! N1  entries of a node ascend and do not overlap;
//! N2  an entry above a leaf begins where the first VMA below it does, and ends where the last one does;
//! N3  all leaves have the same depth; no node is empty; only the root has fewer than [`MINIMUM`] entries;
//! N4  `gap` is the longest gap between neighbouring VMAs below the entry.
//!
//! Writers hold mmap_lock. [`Tree::find`] may run beside a writer: nodes are never given back to anything else while
//! the arena lives (Linux: `SLAB_TYPESAFE_BY_RCU`), a walk has at most [`MAX_HEIGHT`] steps, and what it finds is
//! believed only after the VMA itself was locked and looked at again (`lock.rs`).
//!
//! Differs from Linux: one kind of node, both bounds kept, and writers move entries in place, where a maple tree replaces
//! nodes for readers under RCU. A reader here may miss a VMA that is being moved; it then takes mmap_lock.

use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use memvisor_abi as abi;

use crate::id::{Id, Link};
use crate::{Arena, Errno, Vma};

/// Entries of a node.
pub const FANOUT: usize = abi::VMA_FANOUT;
/// A node with fewer entries takes some from its neighbour, or joins it.
pub const MINIMUM: usize = 6;
/// More levels than `max_map_count` VMAs can need.
const MAX_HEIGHT: u32 = abi::VMA_TREE_MAX_HEIGHT;

/// A node.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Node {
    end: [AtomicU64; FANOUT],
    start: [AtomicU64; FANOUT],
    slot: [AtomicU64; FANOUT],
    gap: [AtomicU64; FANOUT],
    len: AtomicU32,
}

const _: () = assert!(
    size_of::<Node>() >= size_of::<abi::VmaNode>()
        && offset_of!(Node, end) == offset_of!(abi::VmaNode, end)
        && offset_of!(Node, start) == offset_of!(abi::VmaNode, start)
        && offset_of!(Node, slot) == offset_of!(abi::VmaNode, slot)
        && offset_of!(Node, gap) == offset_of!(abi::VmaNode, gap)
        && offset_of!(Node, len) == offset_of!(abi::VmaNode, len)
);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Entry {
    start: u64,
    end: u64,
    slot: u64,
    gap: u64,
}

impl Node {
    fn len(&self) -> usize {
        (self.len.load(Relaxed) as usize).min(FANOUT)
    }

    #[expect(clippy::cast_possible_truncation, reason = "at most FANOUT")]
    fn set_len(&self, len: usize) {
        self.len.store(len as u32, Relaxed);
    }

    fn get(&self, i: usize) -> Entry {
        let word = |field: &[AtomicU64; FANOUT]| field.get(i).map_or(0, |word| word.load(Relaxed));
        Entry { start: word(&self.start), end: word(&self.end), slot: word(&self.slot), gap: word(&self.gap) }
    }

    fn set(&self, i: usize, entry: Entry) {
        let put = |field: &[AtomicU64; FANOUT], value| {
            if let Some(word) = field.get(i) {
                word.store(value, Relaxed);
            }
        };
        put(&self.start, entry.start);
        put(&self.end, entry.end);
        put(&self.slot, entry.slot);
        put(&self.gap, entry.gap);
    }

    /// The first entry that ends after `addr`; the length if none does.
    #[inline]
    fn position(&self, addr: u64) -> usize {
        let len = self.len();
        self.end.iter().take(len).position(|end| end.load(Relaxed) > addr).unwrap_or(len)
    }

    fn child(&self, i: usize) -> Option<Id<Node>> {
        Id::new(self.get(i).slot)
    }

    /// The fields, and what `entry` has for each.
    #[inline]
    fn fields(&self, entry: Entry) -> [(&[AtomicU64; FANOUT], u64); 4] {
        [(&self.end, entry.end), (&self.start, entry.start), (&self.slot, entry.slot), (&self.gap, entry.gap)]
    }

    fn insert_at(&self, i: usize, entry: Entry) {
        let len = self.len();
        for (field, value) in self.fields(entry) {
            let mut carry = value;
            for word in field.get(i..=len).unwrap_or(&[]) {
                let before = word.load(Relaxed);
                word.store(carry, Relaxed);
                carry = before;
            }
        }
        self.set_len(len + 1);
    }

    fn remove_at(&self, i: usize) {
        let len = self.len();
        for (field, _) in self.fields(Entry::default()) {
            for pair in field.get(i..len).unwrap_or(&[]).windows(2) {
                if let [to, from] = pair {
                    to.store(from.load(Relaxed), Relaxed);
                }
            }
        }
        self.set_len(len - 1);
    }

    /// First address of the first entry, and the end of the last.
    #[inline]
    fn bounds(&self) -> (u64, u64) {
        let word = |field: &[AtomicU64; FANOUT], i: usize| field.get(i).map_or(0, |word| word.load(Relaxed));
        (word(&self.start, 0), word(&self.end, self.len().saturating_sub(1)))
    }

    /// The entry that a parent has for this node (N2, N4).
    fn summary(&self, id: Id<Node>) -> Entry {
        let (start, end) = self.bounds();
        let len = self.len();
        let below = self.gap.iter().take(len).map(|gap| gap.load(Relaxed)).fold(0, u64::max);
        let between = self.start.iter().take(len).skip(1).zip(&self.end);
        let gap = between
            .fold(below, |gap, (start, end)| gap.max(start.load(Relaxed).saturating_sub(end.load(Relaxed))));
        Entry { start, end, slot: id.as_u64(), gap }
    }
}

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

/// Bounds of a gap search.
#[derive(Clone, Copy, Debug)]
pub struct GapQuery {
    /// Bytes wanted, not 0.
    pub len: u64,
    /// Lowest first address.
    pub low: u64,
    /// The end is at most this.
    pub high: u64,
}

impl GapQuery {
    /// The part of `start..end` that counts, if it is long enough.
    fn fit(&self, start: u64, end: u64) -> Option<(u64, u64)> {
        let (start, end) = (start.max(self.low), end.min(self.high));
        (end > start && end - start >= self.len).then_some((start, end))
    }
}

impl Tree {
    /// The first VMA that ends after `addr` (Linux: `find_vma`).
    #[inline]
    pub fn find<K: Arena<Node>>(&self, k: &K, addr: u64) -> Option<Id<Vma>> {
        let mut node = self.root.load()?;
        let mut level = self.height.load(Relaxed).min(MAX_HEIGHT);
        loop {
            let at = k.at(node);
            let i = at.position(addr);
            if i >= at.len() {
                return None;
            }
            let slot = at.slot.get(i)?.load(Relaxed);
            if level <= 1 {
                return Id::new(slot);
            }
            node = Id::new(slot)?;
            level -= 1;
        }
    }

    /// The last VMA that begins before `addr`.
    pub fn find_before<K: Arena<Node>>(&self, k: &K, addr: u64) -> Option<Id<Vma>> {
        let mut node = self.root.load()?;
        let mut level = self.height.load(Relaxed);
        loop {
            let at = k.at(node);
            let i = (0..at.len()).rev().find(|&i| at.get(i).start < addr)?;
            if level <= 1 {
                return Id::new(at.get(i).slot);
            }
            node = at.child(i)?;
            level -= 1;
        }
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
        while let Some(node) = self.take_spare(k) {
            k.free(node);
        }
    }

    /// Adds a VMA. [`Tree::reserve`] was called.
    pub fn insert<K: Arena<Node>>(&self, k: &K, start: u64, end: u64, vma: Id<Vma>) {
        let entry = Entry { start, end, slot: vma.as_u64(), gap: 0 };
        let Some(root) = self.root.load() else {
            let root = self.fresh(k);
            k.at(root).insert_at(0, entry);
            self.height.store(1, Relaxed);
            self.root.store(Some(root));
            return;
        };
        let height = self.height.load(Relaxed);
        if let Some(right) = self.insert_below(k, root, height, entry) {
            let top = self.fresh(k);
            let at = k.at(top);
            at.insert_at(0, k.at(root).summary(root));
            at.insert_at(1, k.at(right).summary(right));
            self.root.store(Some(top));
            self.height.store(height + 1, Relaxed);
        }
    }

    /// Takes the VMA that begins at `start` out; false if there is none.
    pub fn remove<K: Arena<Node>>(&self, k: &K, start: u64) -> bool {
        let Some(root) = self.root.load() else { return false };
        let height = self.height.load(Relaxed);
        if !self.remove_below(k, root, height, start) {
            return false;
        }
        let at = k.at(root);
        if at.len() == 0 {
            self.root.store(None);
            self.height.store(0, Relaxed);
            self.put_spare(k, root);
        } else if at.len() == 1 && height > 1 {
            self.root.store(at.child(0));
            self.height.store(height - 1, Relaxed);
            self.put_spare(k, root);
        }
        true
    }

    /// Moves the bounds of the VMA that begins at `old`, without passing a neighbour.
    pub fn resize<K: Arena<Node>>(&self, k: &K, old: u64, start: u64, end: u64) -> bool {
        let Some(root) = self.root.load() else { return false };
        resize_below(k, root, self.height.load(Relaxed), old, start, end)
    }

    /// The highest gap that `query` fits, as the highest first address in it (Linux: `mas_empty_area_rev`).
    pub fn highest_gap<K: Arena<Node>>(&self, k: &K, query: GapQuery) -> Option<u64> {
        let Some(root) = self.root.load() else {
            return query.fit(0, u64::MAX).map(|(_, end)| end - query.len);
        };
        let (start, end) = k.at(root).bounds();
        query
            .fit(end, u64::MAX)
            .or_else(|| highest_below(k, root, self.height.load(Relaxed), query))
            .or_else(|| query.fit(0, start))
            .map(|(_, end)| end - query.len)
    }

    /// The lowest gap that `query` fits, as its first address (Linux: `mas_empty_area`).
    pub fn lowest_gap<K: Arena<Node>>(&self, k: &K, query: GapQuery) -> Option<u64> {
        let Some(root) = self.root.load() else { return query.fit(0, u64::MAX).map(|(start, _)| start) };
        let (start, end) = k.at(root).bounds();
        query
            .fit(0, start)
            .or_else(|| lowest_below(k, root, self.height.load(Relaxed), query))
            .or_else(|| query.fit(end, u64::MAX))
            .map(|(start, _)| start)
    }

    /// Checks N1 to N4. Calls `f(start, end, vma)` for every VMA, ascending.
    ///
    /// # Errors
    /// What is broken.
    pub fn audit<K: Arena<Node>>(
        &self,
        k: &K,
        mut f: impl FnMut(u64, u64, Option<Id<Vma>>),
    ) -> Result<(), &'static str> {
        let Some(root) = self.root.load() else { return Ok(()) };
        audit_below(k, root, self.height.load(Relaxed), true, &mut f)
    }

    /// Puts `entry` below `node`; a new right neighbour of `node` if it had to be split.
    fn insert_below<K: Arena<Node>>(
        &self,
        k: &K,
        node: Id<Node>,
        level: u32,
        entry: Entry,
    ) -> Option<Id<Node>> {
        let at = k.at(node);
        if level <= 1 {
            return self.insert_entry(k, at, at.position(entry.start), entry);
        }
        // Past the last entry, the last child grows.
        let i = at.position(entry.start).min(at.len() - 1);
        let child = at.child(i)?;
        let right = self.insert_below(k, child, level - 1, entry);
        at.set(i, k.at(child).summary(child));
        right.and_then(|right| self.insert_entry(k, at, i + 1, k.at(right).summary(right)))
    }

    fn insert_entry<K: Arena<Node>>(&self, k: &K, at: &Node, i: usize, entry: Entry) -> Option<Id<Node>> {
        if at.len() < FANOUT {
            at.insert_at(i, entry);
            return None;
        }
        let right = self.fresh(k);
        let to = k.at(right);
        // Ascending insertions leave full nodes behind.
        let keep = if i == FANOUT { FANOUT - MINIMUM } else { FANOUT / 2 };
        for from in keep..FANOUT {
            to.set(from - keep, at.get(from));
        }
        to.set_len(FANOUT - keep);
        at.set_len(keep);
        if i <= keep {
            at.insert_at(i, entry)
        } else {
            to.insert_at(i - keep, entry)
        }
        Some(right)
    }

    fn remove_below<K: Arena<Node>>(&self, k: &K, node: Id<Node>, level: u32, start: u64) -> bool {
        let at = k.at(node);
        let i = at.position(start);
        if i >= at.len() {
            return false;
        }
        if level <= 1 {
            let found = at.get(i).start == start;
            if found {
                at.remove_at(i);
            }
            return found;
        }
        let Some(child) = at.child(i) else { return false };
        if !self.remove_below(k, child, level - 1, start) {
            return false;
        }
        if k.at(child).len() >= MINIMUM || at.len() == 1 {
            at.set(i, k.at(child).summary(child));
        } else {
            self.refill(k, at, if i > 0 { i - 1 } else { 0 });
        }
        true
    }

    /// Joins children `i` and `i + 1`, or shares their entries evenly.
    fn refill<K: Arena<Node>>(&self, k: &K, at: &Node, i: usize) {
        let (Some(left), Some(right)) = (at.child(i), at.child(i + 1)) else { return };
        let (l, r) = (k.at(left), k.at(right));
        let total = l.len() + r.len();
        if total <= FANOUT {
            for from in 0..r.len() {
                l.set(l.len() + from, r.get(from));
            }
            l.set_len(total);
            at.remove_at(i + 1);
            self.put_spare(k, right);
        } else {
            while l.len() < total / 2 {
                l.insert_at(l.len(), r.get(0));
                r.remove_at(0);
            }
            while l.len() > total / 2 {
                r.insert_at(0, l.get(l.len() - 1));
                l.set_len(l.len() - 1);
            }
            at.set(i + 1, r.summary(right));
        }
        at.set(i, l.summary(left));
    }

    fn fresh<K: Arena<Node>>(&self, k: &K) -> Id<Node> {
        let node = self.take_spare(k).expect("an insertion was not reserved");
        k.at(node).set_len(0);
        node
    }

    fn take_spare<K: Arena<Node>>(&self, k: &K) -> Option<Id<Node>> {
        let node = self.spare.load()?;
        self.spare.store(k.at(node).child(0));
        self.spares.store(self.spares.load(Relaxed) - 1, Relaxed);
        Some(node)
    }

    fn put_spare<K: Arena<Node>>(&self, k: &K, node: Id<Node>) {
        let at = k.at(node);
        at.set_len(0);
        let next = self.spare.load().map_or(0, Id::as_u64);
        at.set(0, Entry { slot: next, ..Entry::default() });
        self.spare.store(Some(node));
        self.spares.store(self.spares.load(Relaxed) + 1, Relaxed);
    }
}

fn resize_below<K: Arena<Node>>(k: &K, node: Id<Node>, level: u32, old: u64, start: u64, end: u64) -> bool {
    let at = k.at(node);
    let i = at.position(old);
    if i >= at.len() {
        return false;
    }
    let entry = at.get(i);
    if level <= 1 {
        if entry.start != old {
            return false;
        }
        at.set(i, Entry { start, end, ..entry });
        return true;
    }
    let Some(child) = at.child(i) else { return false };
    let found = resize_below(k, child, level - 1, old, start, end);
    at.set(i, k.at(child).summary(child));
    found
}

/// Searches between the entries below `node`, from the top.
fn highest_below<K: Arena<Node>>(k: &K, node: Id<Node>, level: u32, query: GapQuery) -> Option<(u64, u64)> {
    let at = k.at(node);
    let mut after = None;
    for i in (0..at.len()).rev() {
        let entry = at.get(i);
        if let Some(found) = after.and_then(|after| query.fit(entry.end, after)) {
            return Some(found);
        }
        if level > 1
            && entry.gap >= query.len
            && query.fit(entry.start, entry.end).is_some()
            && let Some(found) = at.child(i).and_then(|child| highest_below(k, child, level - 1, query))
        {
            return Some(found);
        }
        if entry.start <= query.low {
            return None;
        }
        after = Some(entry.start);
    }
    None
}

/// Searches between the entries below `node`, from the bottom.
fn lowest_below<K: Arena<Node>>(k: &K, node: Id<Node>, level: u32, query: GapQuery) -> Option<(u64, u64)> {
    let at = k.at(node);
    let mut before = None;
    // Nothing before the first entry that ends above `low` matters, but the gap in front of it does.
    for i in at.position(query.low).saturating_sub(1)..at.len() {
        let entry = at.get(i);
        if let Some(found) = before.and_then(|before| query.fit(before, entry.start)) {
            return Some(found);
        }
        if level > 1
            && entry.gap >= query.len
            && query.fit(entry.start, entry.end).is_some()
            && let Some(found) = at.child(i).and_then(|child| lowest_below(k, child, level - 1, query))
        {
            return Some(found);
        }
        if entry.end >= query.high {
            return None;
        }
        before = Some(entry.end);
    }
    None
}

fn audit_below<K: Arena<Node>>(
    k: &K,
    node: Id<Node>,
    level: u32,
    root: bool,
    f: &mut dyn FnMut(u64, u64, Option<Id<Vma>>),
) -> Result<(), &'static str> {
    let at = k.at(node);
    if at.len() == 0 || !root && at.len() < MINIMUM.min(FANOUT / 2) {
        return Err("a node has too few entries");
    }
    let mut before = 0;
    for i in 0..at.len() {
        let entry = at.get(i);
        if entry.start >= entry.end || i > 0 && entry.start < before {
            return Err("entries of a node overlap or do not ascend");
        }
        before = entry.end;
        if level <= 1 {
            f(entry.start, entry.end, Id::new(entry.slot));
            continue;
        }
        let child = at.child(i).ok_or("an entry has no child")?;
        if k.at(child).summary(child) != entry {
            return Err("an entry does not tell what is below it");
        }
        audit_below(k, child, level - 1, false, f)?;
    }
    Ok(())
}
