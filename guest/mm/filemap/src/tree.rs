//! The tree from indices to entries (Linux: lib/xarray.c).
//!
//! A radix tree of 64-slot nodes. A single entry at index 0 lies in the root itself; the tree is as high as its highest index needs.
//!
//! Invariants, checked by [`Tree::audit`]:
//! X1  a node's `present` has a bit for each slot that holds something, and `values` for each that holds a value; no node is empty;
//! X2  a node below another resolves the next 6 bits, and knows its parent and its slot there; entries lie at the bottom;
//! X3  a slot with a node is marked if and only if something below it is; marks of the root say the same of the tree;
//! X4  the root node holds more than its first slot;
//! X5  free nodes are blank.
//!
//! The mapping's lock is held for everything but [`Tree::load_unlocked`], [`Tree::next_unlocked`] and [`Tree::is_marked`].

use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use mm_core::{Arena, Id};

use crate::entry::{Entry, Raw};
use crate::lookup::{self, InArena, shift_for};
use crate::node::{CHUNK_SHIFT, SLOTS};
use crate::{Mark, Node};

/// The most nodes that one store can need: a chain to the new index, and one that leads to the old entry at index 0.
const SPARES: usize = 2 * lookup::MAX_LEVELS;
/// Tries without the lock.
const TRIES: usize = 8;

/// A tree. All zero is an empty one.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Tree {
    root: AtomicU64,
    /// Bits of [`Mark`].
    pub(crate) marks: AtomicU32,
    /// Nodes that left (see `lookup.rs`).
    pub(crate) changes: AtomicU32,
}

/// A store needs that many spare nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing(pub usize);

/// Nodes for a store, got outside the lock.
#[derive(Debug, Default)]
pub struct Spare {
    nodes: [Option<Id<Node>>; SPARES],
    len: usize,
}

impl Spare {
    /// Brings it to `wanted` nodes; `None` without memory.
    pub fn fill<K: Arena<Node>>(&mut self, k: &K, wanted: Missing) -> Option<()> {
        while self.len < wanted.0 {
            *self.nodes.get_mut(self.len)? = Some(k.alloc()?);
            self.len += 1;
        }
        Some(())
    }

    /// Gives the rest back.
    pub fn free<K: Arena<Node>>(&mut self, k: &K) {
        while let Some(node) = self.take() {
            k.free(node);
        }
    }

    fn take(&mut self) -> Option<Id<Node>> {
        self.len = self.len.checked_sub(1)?;
        self.nodes.get_mut(self.len)?.take()
    }
}

/// Where an entry lies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    Root,
    Slot(Id<Node>, usize),
}

impl Tree {
    #[inline]
    pub(crate) fn root(&self) -> Raw {
        Raw(self.root.load(Acquire))
    }

    fn set_root(&self, raw: Raw) {
        self.root.store(raw.0, Release);
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.root().is_empty()
    }

    /// What is at `index` (Linux: `xa_load`).
    pub fn load<K: Arena<Node>>(&self, k: &K, index: u64) -> Entry {
        lookup::descend(&InArena(self, k), index).entry()
    }

    /// [`Tree::load`] without the lock, inside [`mm_core::Rcu::rcu_read`]: what was there at some moment during the call. `None` if the tree never kept still: take the
    /// lock.
    pub fn load_unlocked<K: Arena<Node>>(&self, k: &K, index: u64) -> Option<Entry> {
        (0..TRIES).find_map(|_| lookup::walk(&InArena(self, k), index)).map(Raw::entry)
    }

    /// Where `index` lies; `None` where nothing is.
    pub(crate) fn locate<K: Arena<Node>>(&self, k: &K, index: u64) -> Option<Place> {
        let root = self.root();
        let Some(mut id) = root.node() else {
            return (index == 0 && !root.is_empty()).then_some(Place::Root);
        };
        if !k.at(id).covers(index) {
            return None;
        }
        loop {
            let node: &Node = k.at(id);
            let offset = node.offset_of(index);
            let slot = node.slot(offset);
            match slot.node() {
                Some(below) => id = below,
                None => return (!slot.is_empty()).then_some(Place::Slot(id, offset)),
            }
        }
    }

    /// The node at the bottom that has the slot of `index`.
    pub(crate) fn leaf<K: Arena<Node>>(&self, k: &K, index: u64) -> Option<Id<Node>> {
        let mut id = self.root().node().filter(|&id| k.at(id).covers(index))?;
        loop {
            let node: &Node = k.at(id);
            if node.shift() == 0 {
                return Some(id);
            }
            id = node.slot(node.offset_of(index)).node()?;
        }
    }

    /// How many spare nodes a store at `index` needs.
    pub fn missing<K: Arena<Node>>(&self, k: &K, index: u64) -> Missing {
        let levels = |shift: u32| (shift / CHUNK_SHIFT) as usize;
        let wanted = shift_for(index);
        let root = self.root();
        Missing(match root.node() {
            None if index == 0 => 0,
            None if root.is_empty() => levels(wanted) + 1,
            None => 2 * levels(wanted) + 1,
            Some(top) if k.at(top).shift() < wanted => levels(wanted - k.at(top).shift()) + levels(wanted),
            Some(mut id) => loop {
                let node: &Node = k.at(id);
                match node.slot(node.offset_of(index)).node() {
                    Some(below) => id = below,
                    None => break levels(node.shift()),
                }
            },
        })
    }

    /// Puts an entry that is not [`Entry::Empty`] at `index`, and returns what was there; marks stay (Linux: `xas_store`).
    ///
    /// # Errors
    /// [`Missing`] if there are too few spare nodes; nothing changed.
    pub fn store<K: Arena<Node>>(
        &self,
        k: &K,
        index: u64,
        entry: Entry,
        spare: &mut Spare,
    ) -> Result<Entry, Missing> {
        debug_assert!(entry != Entry::Empty, "what is empty is erased");
        let missing = self.missing(k, index);
        if spare.len < missing.0 {
            return Err(missing);
        }
        self.expand(k, index, spare).ok_or(missing)?;
        let place = self.make(k, index, spare).ok_or(missing)?;
        Ok(self.replace(k, place, Raw::of(entry)).entry())
    }

    fn replace<K: Arena<Node>>(&self, k: &K, place: Place, raw: Raw) -> Raw {
        match place {
            Place::Root => {
                let old = self.root();
                self.set_root(raw);
                old
            }
            Place::Slot(id, offset) => {
                let node: &Node = k.at(id);
                let old = node.slot(offset);
                node.set_slot(offset, raw);
                old
            }
        }
    }

    /// A node from the spares, in no tree yet.
    fn new_node<'k, K: Arena<Node>>(k: &'k K, shift: u32, spare: &mut Spare) -> Option<(Id<Node>, &'k Node)> {
        let id = spare.take()?;
        let node = k.at(id);
        node.init(shift);
        Some((id, node))
    }

    /// Grows upwards until the tree can hold `index` (Linux: `xas_expand`).
    fn expand<K: Arena<Node>>(&self, k: &K, index: u64, spare: &mut Spare) -> Option<()> {
        let wanted = shift_for(index);
        loop {
            let old = self.root();
            let shift = match old.node().map(|id| (id, k.at(id).shift())) {
                None if index == 0 => return Some(()),
                None if old.is_empty() => wanted,
                None => 0,
                Some((_, shift)) if shift >= wanted => return Some(()),
                Some((_, shift)) => shift + CHUNK_SHIFT,
            };
            let (id, node) = Self::new_node(k, shift, spare)?;
            if !old.is_empty() {
                node.set_slot(0, old);
                for mark in Mark::ALL {
                    node.set_marked(mark, u64::from(self.is_marked(mark)));
                }
                if let Some(below) = old.node() {
                    let below: &Node = k.at(below);
                    below.parent.store(Some(id));
                    below.set_offset(0);
                }
            }
            self.set_root(Raw::of_node(id));
        }
    }

    /// The place of `index`, with nodes on the way to it (Linux: `xas_create`).
    fn make<K: Arena<Node>>(&self, k: &K, index: u64, spare: &mut Spare) -> Option<Place> {
        let Some(mut id) = self.root().node() else { return Some(Place::Root) };
        loop {
            let node: &Node = k.at(id);
            let offset = node.offset_of(index);
            if node.shift() == 0 {
                return Some(Place::Slot(id, offset));
            }
            id = match node.slot(offset).node() {
                Some(below) => below,
                None => {
                    let (below, fresh) = Self::new_node(k, node.shift() - CHUNK_SHIFT, spare)?;
                    fresh.parent.store(Some(id));
                    fresh.set_offset(offset);
                    node.set_slot(offset, Raw::of_node(below));
                    below
                }
            };
        }
    }

    /// Takes out what is at `index`, with its marks, and returns it (Linux: `xa_erase`).
    pub fn erase<K: Arena<Node>>(&self, k: &K, index: u64) -> Entry {
        let Some(place) = self.locate(k, index) else { return Entry::Empty };
        for mark in Mark::ALL {
            self.clear_mark(k, index, mark);
        }
        let old = self.replace(k, place, Raw::EMPTY);
        if let Place::Slot(id, _) = place {
            self.delete_nodes(k, id);
            self.shrink(k);
        }
        old.entry()
    }

    /// Frees a node that is empty, and those above that are so then (Linux: `xas_delete_node`).
    fn delete_nodes<K: Arena<Node>>(&self, k: &K, mut id: Id<Node>) {
        loop {
            let node: &Node = k.at(id);
            if node.present() != 0 {
                return;
            }
            let above = node.parent.load();
            match above {
                Some(above) => Arena::<Node>::at(k, above).set_slot(node.offset(), Raw::EMPTY),
                None => self.set_root(Raw::EMPTY),
            }
            self.leave(k, id);
            match above {
                Some(above) => id = above,
                None => return,
            }
        }
    }

    /// Takes away root nodes that hold nothing but their first slot (Linux: `xas_shrink`).
    fn shrink<K: Arena<Node>>(&self, k: &K) {
        while let Some(id) = self.root().node() {
            let node: &Node = k.at(id);
            if node.present() != 1 {
                return;
            }
            let first = node.slot(0);
            if let Some(below) = first.node() {
                Arena::<Node>::at(k, below).parent.store(None);
            }
            self.set_root(first);
            // Counted before the slot is cleared: a walk may be about to read it.
            self.changes.fetch_add(1, Release);
            node.set_slot(0, Raw::EMPTY);
            for mark in Mark::ALL {
                node.set_marked(mark, 0);
            }
            k.free(id);
        }
    }

    /// Frees a blank node that the tree does not reach any more.
    fn leave<K: Arena<Node>>(&self, k: &K, id: Id<Node>) {
        self.changes.fetch_add(1, Release);
        k.free(id);
    }

    /// Checks X1 to X4, and calls `f` for every entry, ascending.
    ///
    /// # Errors
    /// What is broken.
    pub fn audit<K: Arena<Node>>(&self, k: &K, mut f: impl FnMut(u64, Entry)) -> Result<(), &'static str> {
        let root = self.root();
        let marks = match root.node() {
            None => {
                if !root.is_empty() {
                    f(0, root.entry());
                    return Ok(());
                }
                0
            }
            Some(id) => {
                if k.at(id).present() & !1 == 0 {
                    return Err("X4: the root node holds only its first slot");
                }
                audit_node(k, id, None, 0, &mut f)?
            }
        };
        if marks == self.marks.load(Relaxed) { Ok(()) } else { Err("X3: marks of the root") }
    }
}

/// Checks what is under a node, and returns the marks there.
fn audit_node<K: Arena<Node>>(
    k: &K,
    id: Id<Node>,
    above: Option<(Id<Node>, usize)>,
    first: u64,
    f: &mut impl FnMut(u64, Entry),
) -> Result<u32, &'static str> {
    let node: &Node = k.at(id);
    let (shift, mut marks) = (node.shift(), 0);
    if node.parent.load() != above.map(|above| above.0) || node.offset() != above.map_or(0, |above| above.1) {
        return Err("X2: a node knows its parent");
    }
    if node.present() == 0 || shift % CHUNK_SHIFT != 0 || shift > 60 {
        return Err("X1: a node is not empty");
    }
    for offset in 0..SLOTS {
        let (raw, bit) = (node.slot(offset), 1 << offset);
        if raw.is_empty() != (node.present() & bit == 0) {
            return Err("X1: slots in use");
        }
        if raw.is_value() != (node.values() & bit != 0) {
            return Err("X1: slots with values");
        }
        let index = first | (offset as u64) << shift;
        let own = Mark::ALL
            .iter()
            .filter(|&&mark| node.marked(mark) & bit != 0)
            .fold(0, |all, mark| all | mark.bit());
        match raw.node() {
            Some(below) if shift != 0 && k.at(below).shift() + CHUNK_SHIFT == shift => {
                if audit_node(k, below, Some((id, offset)), index, f)? != own {
                    return Err("X3: a slot is marked as what is below it");
                }
            }
            Some(_) => return Err("X2: levels"),
            None if raw.is_empty() && own != 0 => return Err("X3: nothing is marked"),
            None if raw.is_empty() => {}
            None if shift != 0 => return Err("X2: entries lie at the bottom"),
            None => f(index, raw.entry()),
        }
        marks |= own;
    }
    Ok(marks)
}
