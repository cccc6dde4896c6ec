//! Where guest memory comes from.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A range of guest-physical RAM that a source can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamRegion {
    /// First byte, guest-physical.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u64,
}

impl RamRegion {
    /// Whether `gpa` lies inside.
    pub const fn contains(&self, gpa: u64) -> bool {
        gpa >= self.gpa && gpa - self.gpa < self.len
    }
}

/// Why a read failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReadError {
    /// Part of the range is not RAM.
    #[error("guest-physical {gpa:#x} (+{len:#x}) is not RAM")]
    NotRam {
        /// First byte of the failed range.
        gpa: u64,
        /// Its length.
        len: u64,
    },
}

/// Guest-physical memory that can be read. Every read is a copy.
pub trait MemorySource {
    /// All RAM, ascending, without overlap.
    fn regions(&self) -> &[RamRegion];

    /// Copies `buf.len()` bytes from `gpa`. A range that crosses from one region into an adjacent
    /// one is read as one.
    ///
    /// # Errors
    /// [`ReadError::NotRam`] if any byte is outside RAM; `buf` is then unspecified.
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), ReadError>;

    /// Reads a little-endian word that does not cross a frame (page-table entries).
    ///
    /// # Errors
    /// As [`MemorySource::read`].
    fn read_u64(&self, gpa: u64) -> Result<u64, ReadError> {
        let mut word = [0; 8];
        self.read(gpa, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    /// Bytes of RAM.
    fn ram_bytes(&self) -> u64 {
        self.regions().iter().map(|region| region.len).sum()
    }
}
