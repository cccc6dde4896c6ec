//! The oracle of the buddy allocator: one state a frame, free blocks derived.
//!
//! Because the allocator merges at once, its free lists are a function of which frames are free:
//! the blocks are the largest naturally aligned ones, up to [`Order::MAX`], that are free
//! throughout. [`BuddyModel`] computes that function by brute force.

use std::ops::Range;

use mm_core::{Order, Pfn};

/// State of a frame in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Hole, reserved, or of another zone: never free.
    Absent,
    /// Free.
    Free,
    /// Part of the allocated block that starts at the frame with this number.
    Allocated(u64),
}

/// Frames `start..start + n`.
#[derive(Clone, Debug)]
pub struct BuddyModel {
    start: u64,
    frames: Vec<Frame>,
}

impl BuddyModel {
    /// A model in which every frame of `span` is [`Frame::Absent`].
    pub fn new(span: Range<Pfn>) -> BuddyModel {
        let frames = (span.start.as_u64()..span.end.as_u64()).map(|_| Frame::Absent).collect();
        BuddyModel { start: span.start.as_u64(), frames }
    }

    /// Gives `state` to the frames of `range`.
    pub fn set(&mut self, range: Range<Pfn>, state: Frame) {
        for pfn in range.start.as_u64()..range.end.as_u64() {
            if let Some(frame) = self.index(pfn).and_then(|index| self.frames.get_mut(index)) {
                *frame = state;
            }
        }
    }

    /// State of a frame; [`Frame::Absent`] outside the model.
    pub fn frame(&self, pfn: Pfn) -> Frame {
        self.index(pfn.as_u64()).and_then(|index| self.frames.get(index)).copied().unwrap_or(Frame::Absent)
    }

    /// Frames that are free.
    pub fn free_pages(&self) -> u64 {
        self.frames.iter().filter(|frame| **frame == Frame::Free).count() as u64
    }

    /// The free blocks that an allocator which merges at once must have, ascending.
    pub fn free_blocks(&self) -> Vec<(Pfn, Order)> {
        let mut blocks = Vec::new();
        let end = self.start + self.frames.len() as u64;
        let mut pfn = self.start;
        while pfn < end {
            let largest = Order::all().rev().find(|order| self.is_free_block(Pfn::new(pfn), *order));
            pfn += match largest {
                Some(order) => {
                    blocks.push((Pfn::new(pfn), order));
                    order.pages()
                }
                None => 1,
            };
        }
        blocks
    }

    /// Whether the block of `order` at `pfn` is naturally aligned and free throughout.
    pub fn is_free_block(&self, pfn: Pfn, order: Order) -> bool {
        pfn.block(order) == pfn && (0..order.pages()).all(|page| self.frame(pfn.offset(page)) == Frame::Free)
    }

    /// Order of the block that an allocation of `order` must be cut from: the smallest that suffices.
    pub fn source_order(&self, order: Order) -> Option<Order> {
        self.free_blocks().into_iter().map(|(_, size)| size).filter(|size| *size >= order).min()
    }

    /// Allocated blocks: first frame and pages, ascending.
    pub fn allocated_blocks(&self) -> Vec<(Pfn, u64)> {
        self.frames
            .chunk_by(|left, right| left == right)
            .filter_map(|run| match run.first() {
                Some(Frame::Allocated(head)) => Some((Pfn::new(*head), run.len() as u64)),
                _ => None,
            })
            .collect()
    }

    fn index(&self, pfn: u64) -> Option<usize> {
        usize::try_from(pfn.checked_sub(self.start)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_the_largest_aligned_free_ones() {
        let mut model = BuddyModel::new(Pfn::new(0)..Pfn::new(16));
        model.set(Pfn::new(1)..Pfn::new(12), Frame::Free);
        model.set(Pfn::new(6)..Pfn::new(7), Frame::Allocated(6));
        let blocks: Vec<(u64, u8)> =
            model.free_blocks().into_iter().map(|(pfn, order)| (pfn.as_u64(), order.as_u8())).collect();
        assert_eq!(blocks, [(1, 0), (2, 1), (4, 1), (7, 0), (8, 2)]);
        assert_eq!(model.free_pages(), 10);
        assert_eq!(model.source_order(Order::ZERO), Some(Order::ZERO));
        assert_eq!(model.source_order(Order::MAX), None);
        assert_eq!(model.allocated_blocks(), [(Pfn::new(6), 1)]);
    }
}
