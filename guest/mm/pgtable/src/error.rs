//! Why a page-table operation stopped.

use core::fmt;

use mm_core::{PhysAddr, VirtAddr};

/// Errors of [`crate::PageTable`]'s operations. The first four are found before anything is
/// changed; the others leave everything below `va` done and everything from `va` on as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// `va`, `pa` or `len` is not a multiple of 4096.
    Misaligned {
        /// First address of the range.
        va: VirtAddr,
        /// Physical address to map, or 0 where the operation takes none.
        pa: PhysAddr,
        /// Bytes of the range.
        len: u64,
    },
    /// The range is not inside one canonical half of the address space.
    NonCanonical {
        /// First address of the range.
        va: VirtAddr,
        /// Bytes of the range.
        len: u64,
    },
    /// The physical range ends past 2^52, which no entry can hold.
    PhysTooHigh {
        /// First physical address.
        pa: PhysAddr,
        /// Bytes of the range.
        len: u64,
    },
    /// The root still refers to tables or leaves of its lower half.
    InUse {
        /// First address that is covered by such an entry.
        va: VirtAddr,
    },
    /// Something is mapped at `va`, or software keeps something in its entry.
    AlreadyMapped {
        /// First address of the range that is taken.
        va: VirtAddr,
    },
    /// No frame for a table.
    NoMemory {
        /// First address that could not be handled.
        va: VirtAddr,
    },
    /// An entry above level 1 is neither leaf nor table, and only part of what it covers was
    /// asked for.
    Malformed {
        /// First address of the range under the entry.
        va: VirtAddr,
        /// Level of the entry.
        level: u8,
    },
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            MapError::Misaligned { va, pa, len } => {
                write!(f, "virtual {va}, physical {pa} and length {len:#x} must be multiples of 0x1000")
            }
            MapError::NonCanonical { va, len } => {
                write!(f, "{len:#x} bytes at virtual {va} are not inside one canonical half")
            }
            MapError::PhysTooHigh { pa, len } => {
                write!(f, "{len:#x} bytes at physical {pa} end past 2^52")
            }
            MapError::InUse { va } => write!(f, "the root still maps something at {va}: unmap it first"),
            MapError::AlreadyMapped { va } => write!(f, "{va} is already mapped: unmap it first"),
            MapError::NoMemory { va } => write!(f, "no memory for the page table of {va}"),
            MapError::Malformed { va, level } => {
                write!(f, "the level {level} entry of {va} is neither a leaf nor a table")
            }
        }
    }
}

impl core::error::Error for MapError {}
