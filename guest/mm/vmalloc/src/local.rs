//! The stack of short mappings that a task or interrupt holds on its CPU (Linux: mm/highmem.c `struct kmap_ctrl`,
//! `__kmap_local_pfn_prot`, `kunmap_local_indexed`).

use memvisor_abi::KM_MAX_IDX;
use mm_core::{PFN_NONE, Pfn};

use crate::KmapError;

/// Frames in the order of their mapping; the last is unmapped first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalStack {
    frames: [u64; KM_MAX_IDX],
    depth: usize,
}

impl LocalStack {
    /// Nothing mapped.
    pub const fn new() -> LocalStack {
        LocalStack { frames: [PFN_NONE; KM_MAX_IDX], depth: 0 }
    }

    /// Mappings held.
    pub const fn depth(&self) -> usize {
        self.depth
    }

    /// The frames, deepest first.
    pub fn frames(&self) -> impl DoubleEndedIterator<Item = Pfn> + ExactSizeIterator {
        self.frames.iter().take(self.depth).map(|&frame| Pfn::new(frame))
    }

    /// Takes the next slot for a frame.
    ///
    /// # Errors
    /// [`KmapError::Full`] when all [`KM_MAX_IDX`] are taken.
    pub fn push(&mut self, frame: Pfn) -> Result<usize, KmapError> {
        let slot = self.depth;
        *self.frames.get_mut(slot).ok_or(KmapError::Full)? = frame.as_u64();
        self.depth += 1;
        Ok(slot)
    }

    /// Gives back `slot`, which must be the one taken last.
    ///
    /// # Errors
    /// [`KmapError::NotMapped`] and [`KmapError::OutOfOrder`]; nothing is changed.
    pub fn pop(&mut self, slot: usize) -> Result<Pfn, KmapError> {
        let top = self.depth.checked_sub(1).ok_or(KmapError::NotMapped)?;
        if slot > top {
            return Err(KmapError::NotMapped);
        }
        if slot < top {
            return Err(KmapError::OutOfOrder { top, slot });
        }
        self.depth = top;
        Ok(Pfn::new(core::mem::replace(&mut self.frames[top], PFN_NONE)))
    }
}

impl Default for LocalStack {
    fn default() -> Self {
        LocalStack::new()
    }
}
