//! Nodes of a tree (Linux: `struct xa_node`).

use core::mem::offset_of;
use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use memvisor_abi as abi;
use mm_core::Link;

use crate::Mark;
use crate::entry::Raw;

/// Bits of an index that one node resolves (Linux: `XA_CHUNK_SHIFT`).
pub(crate) const CHUNK_SHIFT: u32 = 6;
/// Slots of a node (Linux: `XA_CHUNK_SIZE`).
pub(crate) const SLOTS: usize = 1 << CHUNK_SHIFT;

/// A node of 64 slots. A free one has nothing in its slots and no marks.
///
/// Differs from Linux: which slots are in use is a word of bits, not a count, so that the next one is found in one step.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Node {
    slots: [AtomicU64; SLOTS],
    present: AtomicU64,
    marks: [AtomicU64; Mark::COUNT],
    /// The node above, and which slot of it this is.
    pub(crate) parent: Link<Node>,
    offset: AtomicU32,
    shift: AtomicU32,
}

const _: () = assert!(
    size_of::<Node>() == 576
        && offset_of!(Node, slots) == offset_of!(abi::MappingNode, slots)
        && offset_of!(Node, present) == offset_of!(abi::MappingNode, present)
        && offset_of!(Node, marks) == offset_of!(abi::MappingNode, marks)
        && offset_of!(Node, parent) == offset_of!(abi::MappingNode, parent)
        && offset_of!(Node, offset) == offset_of!(abi::MappingNode, offset)
        && offset_of!(Node, shift) == offset_of!(abi::MappingNode, shift)
);

impl Default for Node {
    fn default() -> Node {
        Node {
            slots: [const { AtomicU64::new(0) }; SLOTS],
            present: AtomicU64::new(0),
            marks: Default::default(),
            parent: Link::default(),
            offset: AtomicU32::new(0),
            shift: AtomicU32::new(0),
        }
    }
}

impl Node {
    /// Gives a free node its place.
    pub(crate) fn init(&self, shift: u32) {
        debug_assert!(self.is_blank(), "a free node has entries");
        self.shift.store(shift, Release);
        self.parent.store(None);
        self.offset.store(0, Relaxed);
    }

    /// Whether all of it is empty.
    pub(crate) fn is_blank(&self) -> bool {
        self.slots.iter().chain(&self.marks).chain([&self.present]).all(|word| word.load(Relaxed) == 0)
    }

    /// Bits of an index below what the node resolves.
    #[inline]
    pub(crate) fn shift(&self) -> u32 {
        self.shift.load(Relaxed)
    }

    #[inline]
    pub(crate) fn offset(&self) -> usize {
        self.offset.load(Relaxed) as usize % SLOTS
    }

    #[expect(clippy::cast_possible_truncation, reason = "below 64")]
    pub(crate) fn set_offset(&self, offset: usize) {
        self.offset.store(offset as u32, Relaxed);
    }

    #[inline]
    pub(crate) fn slot(&self, offset: usize) -> Raw {
        Raw(self.slots[offset % SLOTS].load(Acquire))
    }

    /// Sets a slot; what it names is complete for whoever loads it.
    pub(crate) fn set_slot(&self, offset: usize, raw: Raw) {
        let (present, bit) = (self.present(), 1 << (offset % SLOTS));
        self.slots[offset % SLOTS].store(raw.0, Release);
        self.present.store(if raw.is_empty() { present & !bit } else { present | bit }, Release);
    }

    /// Which slots are in use.
    #[inline]
    pub(crate) fn present(&self) -> u64 {
        self.present.load(Relaxed)
    }

    /// Which slots have a mark, or have marked entries below them.
    #[inline]
    pub(crate) fn marked(&self, mark: Mark) -> u64 {
        self.marks[mark as usize % Mark::COUNT].load(Relaxed)
    }

    pub(crate) fn set_marked(&self, mark: Mark, slots: u64) {
        self.marks[mark as usize % Mark::COUNT].store(slots, Release);
    }

    /// Whether `index` lies under this node, if it is the root.
    #[inline]
    pub(crate) fn covers(&self, index: u64) -> bool {
        index.checked_shr(self.shift() + CHUNK_SHIFT).is_none_or(|rest| rest == 0)
    }

    /// The slot of an index that lies under this node.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "below 64")]
    pub(crate) fn offset_of(&self, index: u64) -> usize {
        index.checked_shr(self.shift()).map_or(0, |rest| (rest % SLOTS as u64) as usize)
    }
}
