//! Nodes of a tree (Linux: `struct xa_node`).

use core::mem::offset_of;
use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use memvisor_abi as abi;
use mm_core::Link;

use crate::entry::Raw;
use crate::{Mapping, Mark};

/// Bits of an index that one node resolves (Linux: `XA_CHUNK_SHIFT`).
pub(crate) const CHUNK_SHIFT: u32 = 6;
/// Slots of a node (Linux: `XA_CHUNK_SIZE`).
pub(crate) const SLOTS: usize = 1 << CHUNK_SHIFT;

/// A node of 64 slots. A free one has nothing in its slots and no marks.
///
/// Differs from Linux: which slots are in use is a word of bits, not a count, so that the next one is found in one step.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct Node {
    slots: [AtomicU64; SLOTS],
    present: AtomicU64,
    marks: [AtomicU64; Mark::COUNT],
    /// The node above, and which slot of it this is.
    pub(crate) parent: Link<Node>,
    offset: AtomicU32,
    shift: AtomicU32,
    /// Of the slots in use, those that hold values (Linux: `nr_values`).
    values: AtomicU64,
    /// The mapping that it is of, while it is on the list of shadow nodes (see `workingset.rs`).
    pub(crate) mapping: Link<Mapping>,
    /// Its neighbours there, under that list's lock.
    pub(crate) list_next: Link<Node>,
    pub(crate) list_prev: Link<Node>,
}

const _: () = assert!(
    size_of::<Node>() == size_of::<abi::MappingNode>()
        && offset_of!(Node, slots) == offset_of!(abi::MappingNode, slots)
        && offset_of!(Node, present) == offset_of!(abi::MappingNode, present)
        && offset_of!(Node, marks) == offset_of!(abi::MappingNode, marks)
        && offset_of!(Node, parent) == offset_of!(abi::MappingNode, parent)
        && offset_of!(Node, offset) == offset_of!(abi::MappingNode, offset)
        && offset_of!(Node, shift) == offset_of!(abi::MappingNode, shift)
        && offset_of!(Node, values) == offset_of!(abi::MappingNode, values)
        && offset_of!(Node, mapping) == offset_of!(abi::MappingNode, mapping)
        && offset_of!(Node, list_next) == offset_of!(abi::MappingNode, list_next)
        && offset_of!(Node, list_prev) == offset_of!(abi::MappingNode, list_prev)
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
            values: AtomicU64::new(0),
            mapping: Link::default(),
            list_next: Link::default(),
            list_prev: Link::default(),
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
        let words = self.slots.iter().chain(&self.marks).chain([&self.present, &self.values]);
        words.into_iter().all(|word| word.load(Relaxed) == 0) && self.mapping.load().is_none()
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
        let bit = 1 << (offset % SLOTS);
        let with = |word: &AtomicU64, is: bool| {
            let old = word.load(Relaxed);
            word.store(if is { old | bit } else { old & !bit }, Release);
        };
        self.slots[offset % SLOTS].store(raw.0, Release);
        with(&self.present, !raw.is_empty());
        with(&self.values, raw.is_value());
    }

    /// Which slots hold values.
    pub(crate) fn values(&self) -> u64 {
        self.values.load(Relaxed)
    }

    /// Whether all that it holds are values, and there is one.
    pub(crate) fn has_only_values(&self) -> bool {
        self.values() != 0 && self.values() == self.present()
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
