//! A node of the tree of VMAs, and how one is searched and changed.

use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use memvisor_abi as abi;

use crate::Vma;
use crate::id::Id;

/// Entries of a node.
pub const FANOUT: usize = abi::VMA_FANOUT;
/// Entries on each side of the middle one.
const HALF: usize = FANOUT / 2;
const _: () = assert!(FANOUT == HALF + 1 + HALF);
/// No entry: what is behind the last one (N5).
const NOTHING: Entry = Entry { start: 0, end: 0, slot: 0, gap: 0 };

/// One field of all entries.
type Words = [AtomicU64; FANOUT];

/// A node: eight cache lines, of which a search reads one or two of ends, and that of the slot.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Node {
    end: Words,
    len: AtomicU32,
    reserved: AtomicU32,
    start: Words,
    slot: Words,
    gap: Words,
}

const _: () = assert!(
    size_of::<Node>() == 512
        && offset_of!(Node, end) == offset_of!(abi::VmaNode, end)
        && offset_of!(Node, len) == offset_of!(abi::VmaNode, len)
        && offset_of!(Node, start) == offset_of!(abi::VmaNode, start)
        && offset_of!(Node, slot) == offset_of!(abi::VmaNode, slot)
        && offset_of!(Node, gap) == offset_of!(abi::VmaNode, gap)
);

/// What an entry is of. A slot tells by itself (Linux: `maple_enode`): a reader without locks never takes a VMA for a node, in whatever moment
/// it looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Below {
    Vma(Id<Vma>),
    Node(Id<Node>),
}

impl Below {
    #[inline]
    fn new(slot: u64) -> Option<Below> {
        match slot & abi::VMA_SLOT_NODE {
            0 => Id::new(slot).map(Below::Vma),
            _ => Id::new(slot & !abi::VMA_SLOT_NODE).map(Below::Node),
        }
    }
}

/// The slot of a node.
#[inline]
pub(super) fn slot_of(node: Id<Node>) -> u64 {
    node.as_u64() | abi::VMA_SLOT_NODE
}

/// Whether a node's entries are VMAs. Those know nothing of gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Leaf,
    Inner,
}

impl Kind {
    /// Of the nodes at a level.
    #[inline]
    pub(super) fn at(level: usize) -> Kind {
        if level <= 1 { Kind::Leaf } else { Kind::Inner }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub start: u64,
    pub end: u64,
    pub slot: u64,
    /// 0 in a leaf.
    pub gap: u64,
}

/// How many of the words, which descend, are above `limit`. The middle one tells which half has to be counted, and the count needs no branch
/// that could be guessed wrongly.
#[inline]
fn count(words: &Words, limit: u64) -> usize {
    let all = words.get(HALF).is_some_and(|middle| middle.load(Relaxed) > limit);
    let first = if all { HALF + 1 } else { 0 };
    let half = words.get(first..first + HALF).unwrap_or(&[]);
    first + half.iter().map(|word| usize::from(word.load(Relaxed) > limit)).sum::<usize>()
}

#[inline]
fn word(words: &Words, i: usize) -> u64 {
    words.get(i).map_or(0, |word| word.load(Relaxed))
}

#[inline]
fn put(words: &Words, i: usize, value: u64) {
    if let Some(word) = words.get(i) {
        word.store(value, Relaxed);
    }
}

impl Node {
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len.load(Relaxed) as usize
    }

    #[expect(clippy::cast_possible_truncation, reason = "at most FANOUT")]
    fn set_len(&self, len: usize) {
        self.len.store(len as u32, Relaxed);
    }

    /// Makes it a node without entries (N5).
    pub(super) fn clear(&self) {
        for i in 0..FANOUT {
            self.set(i, NOTHING);
        }
        self.set_len(0);
    }

    /// Drops the entries from `len` on.
    #[inline]
    pub(super) fn truncate(&self, len: usize) {
        for i in len..self.len() {
            self.set(i, NOTHING);
        }
        self.set_len(len);
    }

    /// Where the entry begins; 0 behind the last one.
    #[inline]
    pub(super) fn start(&self, i: usize) -> u64 {
        word(&self.start, i)
    }

    /// Where the entry ends; 0 behind the last one.
    #[inline]
    pub(super) fn end(&self, i: usize) -> u64 {
        word(&self.end, i)
    }

    #[inline]
    pub(super) fn gap(&self, i: usize) -> u64 {
        self.gap.get(i).map_or(0, |word| word.load(Relaxed))
    }

    #[inline]
    pub(super) fn slot(&self, i: usize) -> u64 {
        self.slot.get(i).map_or(0, |word| word.load(Acquire))
    }

    #[inline]
    pub(super) fn below(&self, i: usize) -> Option<Below> {
        Below::new(self.slot(i))
    }

    /// What is below an entry that is not a leaf's. For those who hold mmap_lock.
    #[inline]
    pub(super) fn child(&self, i: usize) -> Option<Id<Node>> {
        Id::new(self.slot(i) & !abi::VMA_SLOT_NODE)
    }

    #[inline]
    pub(super) fn get(&self, i: usize) -> Entry {
        Entry { start: self.start(i), end: self.end(i), slot: self.slot(i), gap: self.gap(i) }
    }

    #[inline]
    pub(super) fn set(&self, i: usize, entry: Entry) {
        self.set_bounds(i, entry.start, entry.end);
        self.set_gap(i, entry.gap);
        self.set_slot(i, entry.slot);
    }

    #[inline]
    pub(super) fn set_slot(&self, i: usize, slot: u64) {
        if let Some(word) = self.slot.get(i) {
            word.store(slot, Release);
        }
    }

    #[inline]
    pub(super) fn set_bounds(&self, i: usize, start: u64, end: u64) {
        put(&self.start, i, start);
        put(&self.end, i, end);
    }

    #[inline]
    pub(super) fn set_gap(&self, i: usize, gap: u64) {
        put(&self.gap, i, gap);
    }

    /// Entries that end after `addr`: where a new one that begins there goes, and one more than the place of the lowest of them.
    #[inline]
    pub(super) fn after(&self, addr: u64) -> usize {
        count(&self.end, addr)
    }

    /// Entries that begin at `addr` or after it: where the highest is that begins before it.
    #[inline]
    pub(super) fn from(&self, addr: u64) -> usize {
        addr.checked_sub(1).map_or(FANOUT, |before| count(&self.start, before))
    }

    /// Copies an entry to another place. All fields in one loop of the caller: how often that goes round is guessed wrongly once.
    #[inline]
    fn copy(&self, kind: Kind, from: usize, to: usize) {
        self.set_bounds(to, self.start(from), self.end(from));
        self.set_slot(to, self.slot(from));
        if kind == Kind::Inner {
            self.set_gap(to, self.gap(from));
        }
    }

    /// There is room for the entry.
    #[inline]
    pub(super) fn insert_at(&self, kind: Kind, i: usize, entry: Entry) {
        let len = self.len();
        (i..len).rev().for_each(|from| self.copy(kind, from, from + 1));
        self.set(i, entry);
        self.set_len(len + 1);
    }

    #[inline]
    pub(super) fn remove_at(&self, kind: Kind, i: usize) {
        let last = self.len().wrapping_sub(1);
        (i..last).for_each(|to| self.copy(kind, to + 1, to));
        self.set(last, NOTHING);
        self.set_len(last);
    }

    /// Moves the entries from `from` on to the end of another node, which has room.
    pub(super) fn move_to(&self, other: &Node, from: usize) {
        let (len, there) = (self.len(), other.len());
        for i in from..len {
            other.set(there + i - from, self.get(i));
        }
        other.set_len(there + len - from);
        self.truncate(from);
    }

    /// Where the lowest entry begins, and where the highest ends.
    #[inline]
    pub(super) fn bounds(&self) -> (u64, u64) {
        (self.start(self.len().wrapping_sub(1)), self.end(0))
    }

    /// The longest gap between VMAs below (N4).
    #[inline]
    pub(super) fn longest_gap(&self, kind: Kind) -> u64 {
        let len = self.len();
        let longest = match kind {
            Kind::Leaf => 0,
            Kind::Inner => self.gap.iter().take(len).fold(0, |gap, below| gap.max(below.load(Relaxed))),
        };
        let between = self.start.iter().zip(self.end.iter().take(len).skip(1));
        between
            .fold(longest, |gap, (start, end)| gap.max(start.load(Relaxed).wrapping_sub(end.load(Relaxed))))
    }

    /// The entry that a parent has for this node (N2, N4).
    #[inline]
    pub(super) fn summary(&self, id: Id<Node>, kind: Kind) -> Entry {
        let (start, end) = self.bounds();
        Entry { start, end, slot: slot_of(id), gap: self.longest_gap(kind) }
    }

    /// N1 and N5.
    pub(super) fn audit(&self) -> Result<(), &'static str> {
        let (mut above, len) = (u64::MAX, self.len());
        if len > FANOUT {
            return Err("a node has more entries than fit");
        }
        for i in 0..FANOUT {
            let entry = self.get(i);
            if i >= len {
                if entry != (Entry { gap: entry.gap, ..NOTHING }) {
                    return Err("a node has something behind its last entry");
                }
            } else if entry.start >= entry.end || entry.end > above {
                return Err("entries of a node overlap or do not descend");
            }
            above = entry.start;
        }
        Ok(())
    }
}
