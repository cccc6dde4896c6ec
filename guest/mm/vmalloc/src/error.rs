//! Why a request was refused.

use core::fmt;

use mm_core::{PhysAddr, VirtAddr};
use mm_pgtable::MapError;

/// Errors of the vmalloc family. After any of them everything is as it was before the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmError {
    /// No bytes were asked for.
    ZeroSize,
    /// More pages than the machine has, or than the range can hold.
    TooLarge {
        /// Bytes asked for.
        size: u64,
    },
    /// No free range of addresses is long enough, even after a purge.
    NoSpace {
        /// Bytes with the guard page.
        size: u64,
    },
    /// No frame for contents, tables or descriptors.
    NoMemory,
    /// The alignment is not a power of two of at least a page.
    BadAlign {
        /// Bytes.
        align: u64,
    },
    /// The address is not the start of a page.
    BadAddress {
        /// The address.
        va: VirtAddr,
    },
    /// No area starts at the address.
    NotMapped {
        /// The address.
        va: VirtAddr,
    },
    /// An area starts there, but another function made it.
    WrongKind {
        /// The address.
        va: VirtAddr,
        /// `VmFlags` of the area.
        flags: u32,
    },
    /// The physical range wraps or ends past what the CPU can address.
    BadPhys {
        /// First address.
        phys: PhysAddr,
        /// Bytes.
        size: u64,
    },
    /// ioremap of RAM.
    Ram {
        /// First address asked for.
        phys: PhysAddr,
    },
    /// The physical range is mapped with another cache mode.
    Conflict {
        /// First address asked for.
        phys: PhysAddr,
        /// PAT index in force.
        has: u32,
        /// PAT index asked for.
        wants: u32,
    },
    /// The page tables refused. Unlike the others this says that something else used the range.
    Map(MapError),
}

impl fmt::Display for VmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            VmError::ZeroSize => write!(f, "size 0"),
            VmError::TooLarge { size } => write!(f, "size {size}, exceeds total pages"),
            VmError::NoSpace { size } => write!(f, "no {size:#x} free bytes of address space"),
            VmError::NoMemory => write!(f, "out of memory"),
            VmError::BadAlign { align } => {
                write!(f, "alignment {align:#x} is no power of two of a page or more")
            }
            VmError::BadAddress { va } => write!(f, "bad address ({va})"),
            VmError::NotMapped { va } => write!(f, "nonexistent vm area ({va})"),
            VmError::WrongKind { va, flags } => {
                write!(f, "the area at {va} was made by another function (flags {flags:#x})")
            }
            VmError::BadPhys { phys, size } => write!(f, "invalid physical range {phys}+{size:#x}"),
            VmError::Ram { phys } => write!(f, "{phys} is RAM"),
            VmError::Conflict { phys, has, wants } => {
                write!(f, "{phys} is mapped with cache mode {has}, cannot have mode {wants} too")
            }
            VmError::Map(error) => write!(f, "{error}"),
        }
    }
}

impl core::error::Error for VmError {}

/// Errors of the kmap windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KmapError {
    /// Every slot has a user.
    Full,
    /// The frame is not mapped here.
    NotMapped,
    /// The slot's count of users would overflow.
    TooManyUsers,
    /// Not the mapping that was made last.
    OutOfOrder {
        /// Slot that must go first.
        top: usize,
        /// Slot asked for.
        slot: usize,
    },
}

impl fmt::Display for KmapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            KmapError::Full => write!(f, "every slot is in use"),
            KmapError::NotMapped => write!(f, "nothing is mapped there"),
            KmapError::TooManyUsers => write!(f, "too many users of one slot"),
            KmapError::OutOfOrder { top, slot } => {
                write!(f, "slot {slot} cannot be unmapped before slot {top}, which was mapped later")
            }
        }
    }
}

impl core::error::Error for KmapError {}
