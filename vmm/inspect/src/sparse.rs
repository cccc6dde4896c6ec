//! Memory made of the frames that were written; everything else is zero.

use std::collections::BTreeMap;

use memvisor_abi::PAGE_SIZE;
use zerocopy::{Immutable, IntoBytes};

use crate::source::{MemorySource, RamRegion, ReadError, RegionError, check_regions, find, read_pieces};

const FRAME: usize = 4096;

/// A [`MemorySource`] for synthetic guests: tests of this crate and of the rules build machines of
/// any size in it at the cost of the frames they write.
#[derive(Clone, Debug, Default)]
pub struct SparseMemory {
    regions: Vec<RamRegion>,
    frames: BTreeMap<u64, Box<[u8; FRAME]>>,
}

impl SparseMemory {
    /// RAM at `regions`, in any order, all zero.
    ///
    /// # Errors
    /// [`RegionError`] for regions that overlap, are empty or wrap.
    pub fn new(regions: &[RamRegion]) -> Result<SparseMemory, RegionError> {
        let mut regions = regions.to_vec();
        regions.sort_by_key(|region| region.gpa);
        check_regions(&regions)?;
        Ok(SparseMemory { regions, frames: BTreeMap::new() })
    }

    /// Stores `bytes` at `gpa`.
    ///
    /// # Errors
    /// [`ReadError::NotRam`] if any byte is outside RAM; nothing is then stored.
    pub fn write(&mut self, gpa: u64, bytes: &[u8]) -> Result<(), ReadError> {
        if !self.is_ram(gpa, bytes.len() as u64) {
            return Err(ReadError::NotRam { gpa, len: bytes.len() as u64 });
        }
        let mut at = gpa;
        let mut rest = bytes;
        while !rest.is_empty() {
            let start = offset_in_frame(at);
            let (part, tail) = rest.split_at((FRAME - start).min(rest.len()));
            let frame = self.frames.entry(at / PAGE_SIZE).or_insert_with(|| Box::new([0; FRAME]));
            if let Some(place) = frame.get_mut(start..start + part.len()) {
                place.copy_from_slice(part);
            }
            at = at.wrapping_add(part.len() as u64);
            rest = tail;
        }
        Ok(())
    }

    /// Stores a little-endian word at `gpa`.
    ///
    /// # Errors
    /// As [`SparseMemory::write`].
    pub fn write_u64(&mut self, gpa: u64, value: u64) -> Result<(), ReadError> {
        self.write(gpa, &value.to_le_bytes())
    }

    /// Stores a structure, or a slice of them, at `gpa`.
    ///
    /// # Errors
    /// As [`SparseMemory::write`].
    pub fn write_value<T: IntoBytes + Immutable + ?Sized>(
        &mut self,
        gpa: u64,
        value: &T,
    ) -> Result<(), ReadError> {
        self.write(gpa, value.as_bytes())
    }
}

impl MemorySource for SparseMemory {
    fn regions(&self) -> &[RamRegion] {
        &self.regions
    }

    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        read_pieces(&self.regions, gpa, buf, |index, offset, piece| {
            let Some(region) = self.regions.get(index) else { return false };
            let mut at = region.gpa + offset;
            let mut rest = piece;
            while !rest.is_empty() {
                let start = offset_in_frame(at);
                let here = (FRAME - start).min(rest.len());
                let (part, tail) = rest.split_at_mut(here);
                match self.frames.get(&(at / PAGE_SIZE)).and_then(|frame| frame.get(start..start + here)) {
                    Some(bytes) => part.copy_from_slice(bytes),
                    None => part.fill(0),
                }
                at = at.wrapping_add(here as u64);
                rest = tail;
            }
            true
        })
    }

    fn next_data(&self, gpa: u64) -> Option<u64> {
        let mut at = gpa;
        loop {
            at = crate::source::next_ram(&self.regions, at)?;
            let frame = *self.frames.range(at / PAGE_SIZE..).next()?.0;
            let data = at.max(frame * PAGE_SIZE);
            if find(&self.regions, data).is_some() {
                return Some(data);
            }
            at = data;
        }
    }
}

const fn offset_in_frame(gpa: u64) -> usize {
    (gpa % PAGE_SIZE) as usize
}
