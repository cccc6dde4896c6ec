//! Contiguous areas and their bitmaps.

use memvisor_abi::{CmaArea, MAX_CMA_AREAS, PAGE_SIZE, TableRef};

use super::tables::Absent;
use super::{Guest, GuestError, TableName};
use crate::MemorySource;

impl<S: MemorySource + ?Sized> Guest<'_, S> {
    /// Contiguous areas; empty if the guest has none.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn cma_areas(&self) -> Result<Vec<CmaArea>, GuestError> {
        self.table(TableName::CmaAreas, self.root.cma_areas, MAX_CMA_AREAS as u64, Absent::IsEmpty)
    }

    /// The words of an area's bitmap, lowest bit first.
    ///
    /// # Errors
    /// [`GuestError`], also for an area of more frames than there is RAM.
    pub fn cma_bitmap(&self, area: &CmaArea) -> Result<Vec<u64>, GuestError> {
        let frames = self.source.ram_bytes() / PAGE_SIZE;
        let words = area.bits().div_ceil(64);
        let place =
            TableRef { gpa: area.bitmap_gpa, count: u32::try_from(words).unwrap_or(u32::MAX), stride: 8 };
        self.table(TableName::CmaBitmap, place, frames.div_ceil(64), Absent::IsMissing)
    }
}
