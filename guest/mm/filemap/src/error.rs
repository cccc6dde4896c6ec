//! Why a page cannot be had, or a call on shared memory fails.

use core::fmt;

use mm_core::Errno;

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheError {
    /// No memory.
    NoMemory,
    /// The file system is full.
    NoSpace,
    /// There is a page at this index already.
    Exists,
    /// The index lies past the end.
    PastEnd,
    /// Contents could not be read.
    Io,
    /// The arguments make no sense.
    Invalid,
    /// The size is more than a file can have.
    TooBig,
    /// Such a call is not supported.
    NotSupported,
    /// A seal forbids it.
    Sealed,
}

impl CacheError {
    /// What a system call returns.
    pub const fn errno(self) -> Errno {
        match self {
            CacheError::NoMemory => Errno::Enomem,
            CacheError::NoSpace => Errno::Enospc,
            CacheError::Exists => Errno::Eexist,
            CacheError::PastEnd | CacheError::Invalid => Errno::Einval,
            CacheError::Io => Errno::Eio,
            CacheError::TooBig => Errno::Efbig,
            CacheError::NotSupported => Errno::Eopnotsupp,
            CacheError::Sealed => Errno::Eperm,
        }
    }
}

impl fmt::Display for CacheError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CacheError::NoMemory => "no memory for a page",
            CacheError::NoSpace => "no room for another page",
            CacheError::Exists => "a page is there already",
            CacheError::PastEnd => "past the end of the file",
            CacheError::Io => "the page could not be read",
            CacheError::Invalid => "invalid argument",
            CacheError::TooBig => "file too large",
            CacheError::NotSupported => "not supported",
            CacheError::Sealed => "a seal forbids it",
        })
    }
}

impl core::error::Error for CacheError {}
