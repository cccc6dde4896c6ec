//! Why a swap area is refused, or a call fails.

use core::fmt;

use mm_core::Errno;

/// Why a first page is no usable header (Linux: messages of `read_swap_header`; always `EINVAL`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// The last bytes are another's.
    NoSignature,
    /// Not version 1.
    Version {
        /// The version.
        version: u32,
    },
    /// Nothing but the header, or but bad pages.
    Empty,
    /// The device has fewer pages than the header says.
    Short {
        /// Pages of the device.
        device: u64,
        /// Pages that the header speaks of.
        needed: u64,
    },
    /// More bad pages than a header can name.
    TooManyBad {
        /// The number.
        count: u32,
    },
    /// A bad page is the header itself, or lies past the end.
    BadPage {
        /// Its number.
        page: u32,
    },
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            HeaderError::NoSignature => f.write_str("unable to find swap-space signature"),
            HeaderError::Version { version } => write!(f, "unable to handle swap header version {version}"),
            HeaderError::Empty => f.write_str("empty swap area"),
            HeaderError::Short { device, needed } => {
                write!(f, "swap area shorter than signature indicates: {device} pages of {needed}")
            }
            HeaderError::TooManyBad { count } => write!(f, "swap header names {count} bad pages"),
            HeaderError::BadPage { page } => write!(f, "swap header calls page {page} bad"),
        }
    }
}

impl core::error::Error for HeaderError {}

/// Why swapon or swapoff failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwapError {
    /// No free number for another area.
    TooMany,
    /// The header is no good.
    Header(HeaderError),
    /// The caller's tables are too small for the area.
    Tables,
    /// No area with this number is in use.
    NoArea,
    /// The rest of the machine could not hold what the area does.
    NoMemory,
    /// A signal came before all pages were in.
    Interrupted,
    /// A page could not be read in.
    Io,
}

impl SwapError {
    /// What the system call returns.
    pub const fn errno(self) -> Errno {
        match self {
            SwapError::TooMany => Errno::Eperm,
            SwapError::Header(_) | SwapError::NoArea => Errno::Einval,
            SwapError::Tables | SwapError::NoMemory => Errno::Enomem,
            SwapError::Interrupted => Errno::Eintr,
            SwapError::Io => Errno::Eio,
        }
    }
}

impl fmt::Display for SwapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SwapError::TooMany => f.write_str("too many swap areas"),
            SwapError::Header(why) => why.fmt(f),
            SwapError::Tables => f.write_str("no tables for the slots of the swap area"),
            SwapError::NoArea => f.write_str("no such swap area"),
            SwapError::NoMemory => f.write_str("no memory for what is in the swap area"),
            SwapError::Interrupted => f.write_str("interrupted by a signal"),
            SwapError::Io => f.write_str("a page of the swap area could not be read"),
        }
    }
}

impl core::error::Error for SwapError {}
