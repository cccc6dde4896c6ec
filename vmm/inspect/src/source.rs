//! Where guest memory comes from.

use std::sync::Arc;

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

    /// First byte past the region; `None` past the end of the number range.
    pub const fn end(&self) -> Option<u64> {
        self.gpa.checked_add(self.len)
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

/// A list of regions that cannot be a machine's RAM.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RegionError {
    /// A region of no bytes, or one that passes the end of the address space.
    #[error("RAM region at {gpa:#x} (+{len:#x}) is empty or wraps around the address space")]
    Extent {
        /// First byte.
        gpa: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Two regions share bytes.
    #[error("RAM regions at {first:#x} and {second:#x} overlap")]
    Overlap {
        /// First byte of the lower region.
        first: u64,
        /// First byte of the upper region.
        second: u64,
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
    #[inline]
    fn read_u64(&self, gpa: u64) -> Result<u64, ReadError> {
        let mut word = [0; 8];
        self.read(gpa, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    /// Bytes of RAM.
    fn ram_bytes(&self) -> u64 {
        self.regions().iter().map(|region| region.len).sum()
    }

    /// Whether all of `gpa .. gpa + len` is RAM, adjacent regions taken as one. An empty range is
    /// RAM if its address is.
    fn is_ram(&self, gpa: u64, len: u64) -> bool {
        let regions = self.regions();
        let mut at = gpa;
        let mut left = len;
        loop {
            let Some(region) = find(regions, at).and_then(|index| regions.get(index)) else { return false };
            let here = region.len - (at - region.gpa);
            if left <= here {
                return true;
            }
            left -= here;
            let Some(next) = at.checked_add(here) else { return false };
            at = next;
        }
    }

    /// The first address at or after `gpa` that is RAM and may hold anything but zero; `None` if
    /// there is none. A hint that lets readers of all memory skip what was never touched: a source
    /// that does not know answers with the next RAM address.
    fn next_data(&self, gpa: u64) -> Option<u64> {
        next_ram(self.regions(), gpa)
    }

    /// The first address after `gpa` from which on memory is known to be zero, up to the next
    /// [`MemorySource::next_data`]; `None` if that is not known. `gpa` is an answer of `next_data`.
    fn data_end(&self, gpa: u64) -> Option<u64> {
        let _ = gpa;
        None
    }
}

macro_rules! forward {
    ($($pointer:ty),*) => {$(
        impl<S: MemorySource + ?Sized> MemorySource for $pointer {
            fn regions(&self) -> &[RamRegion] {
                (**self).regions()
            }
            fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), ReadError> {
                (**self).read(gpa, buf)
            }
            #[inline]
            fn read_u64(&self, gpa: u64) -> Result<u64, ReadError> {
                (**self).read_u64(gpa)
            }
            fn ram_bytes(&self) -> u64 {
                (**self).ram_bytes()
            }
            fn is_ram(&self, gpa: u64, len: u64) -> bool {
                (**self).is_ram(gpa, len)
            }
            fn next_data(&self, gpa: u64) -> Option<u64> {
                (**self).next_data(gpa)
            }
            fn data_end(&self, gpa: u64) -> Option<u64> {
                (**self).data_end(gpa)
            }
        }
    )*};
}
forward!(&S, Box<S>, Arc<S>);

/// Index of the region that holds `gpa`.
pub(crate) fn find(regions: &[RamRegion], gpa: u64) -> Option<usize> {
    let index = regions.partition_point(|region| region.gpa <= gpa).checked_sub(1)?;
    regions.get(index)?.contains(gpa).then_some(index)
}

/// The first RAM address at or after `gpa`.
pub(crate) fn next_ram(regions: &[RamRegion], gpa: u64) -> Option<u64> {
    match find(regions, gpa) {
        Some(_) => Some(gpa),
        None => regions.get(regions.partition_point(|region| region.gpa <= gpa)).map(|region| region.gpa),
    }
}

/// Sorts regions and refuses lists that no machine can have.
///
/// # Errors
/// [`RegionError`].
pub(crate) fn check_regions(regions: &[RamRegion]) -> Result<(), RegionError> {
    for region in regions {
        if region.len == 0 || region.end().is_none() {
            return Err(RegionError::Extent { gpa: region.gpa, len: region.len });
        }
    }
    for pair in regions.windows(2) {
        if let [first, second] = pair
            && second.gpa - first.gpa < first.len
        {
            return Err(RegionError::Overlap { first: first.gpa, second: second.gpa });
        }
    }
    Ok(())
}

/// Reads a range piece by piece, region by region, through `copy(region index, offset, piece)`.
pub(crate) fn read_pieces(
    regions: &[RamRegion],
    gpa: u64,
    buf: &mut [u8],
    mut copy: impl FnMut(usize, u64, &mut [u8]) -> bool,
) -> Result<(), ReadError> {
    let len = buf.len() as u64;
    let fail = || ReadError::NotRam { gpa, len };
    let mut at = gpa;
    let mut rest = buf;
    while !rest.is_empty() {
        let index = find(regions, at).ok_or_else(fail)?;
        let region = regions.get(index).ok_or_else(fail)?;
        let offset = at - region.gpa;
        let here = usize::try_from(region.len - offset).unwrap_or(usize::MAX).min(rest.len());
        let (piece, tail) = rest.split_at_mut(here);
        if !copy(index, offset, piece) {
            return Err(fail());
        }
        rest = tail;
        if !rest.is_empty() {
            at = at.checked_add(here as u64).ok_or_else(fail)?;
        }
    }
    Ok(())
}
