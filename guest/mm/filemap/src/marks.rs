//! Marks of entries, which every node above them repeats, so that marked entries are found among many (Linux: `xa_mark_t`).

use core::sync::atomic::Ordering::{Relaxed, Release};

use mm_core::Arena;

use crate::tree::Place;
use crate::{Node, Tree};

/// A mark (Linux: `PAGECACHE_TAG_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// To be written some time.
    Dirty = 0,
    /// Being written.
    Writeback = 1,
    /// To be written by the call that marked it.
    ToWrite = 2,
}

impl Mark {
    /// How many there are.
    pub const COUNT: usize = 3;
    /// All.
    pub const ALL: [Mark; Mark::COUNT] = [Mark::Dirty, Mark::Writeback, Mark::ToWrite];

    pub(crate) const fn bit(self) -> u32 {
        1 << self as u32
    }
}

impl Tree {
    /// Whether any entry has the mark (Linux: `xa_marked`). Without the lock the answer may be old.
    pub fn is_marked(&self, mark: Mark) -> bool {
        self.marks.load(Relaxed) & mark.bit() != 0
    }

    /// Whether the entry at `index` has the mark (Linux: `xa_get_mark`).
    pub fn mark<K: Arena<Node>>(&self, k: &K, index: u64, mark: Mark) -> bool {
        match self.locate(k, index) {
            None => false,
            Some(Place::Root) => self.is_marked(mark),
            Some(Place::Slot(id, offset)) => k.at(id).marked(mark) & 1 << offset != 0,
        }
    }

    /// Marks the entry at `index`, if there is one (Linux: `xa_set_mark`). The lock is held.
    pub fn set_mark<K: Arena<Node>>(&self, k: &K, index: u64, mark: Mark) {
        match self.locate(k, index) {
            None => return,
            Some(Place::Root) => {}
            Some(Place::Slot(id, offset)) => {
                let mut at = Some((id, offset));
                while let Some((id, offset)) = at {
                    let node = k.at(id);
                    let slots = node.marked(mark);
                    if slots & 1 << offset != 0 {
                        return;
                    }
                    node.set_marked(mark, slots | 1 << offset);
                    at = node.parent.load().map(|parent| (parent, node.offset()));
                }
            }
        }
        self.marks.store(self.marks.load(Relaxed) | mark.bit(), Release);
    }

    /// Takes a mark away (Linux: `xa_clear_mark`). The lock is held.
    pub fn clear_mark<K: Arena<Node>>(&self, k: &K, index: u64, mark: Mark) {
        match self.locate(k, index) {
            None => return,
            Some(Place::Root) => {}
            Some(Place::Slot(id, offset)) => {
                let mut at = Some((id, offset));
                while let Some((id, offset)) = at {
                    let node = k.at(id);
                    let slots = node.marked(mark);
                    if slots & 1 << offset == 0 {
                        return;
                    }
                    node.set_marked(mark, slots & !(1 << offset));
                    if node.marked(mark) != 0 {
                        return;
                    }
                    at = node.parent.load().map(|parent| (parent, node.offset()));
                }
            }
        }
        self.marks.store(self.marks.load(Relaxed) & !mark.bit(), Release);
    }
}
