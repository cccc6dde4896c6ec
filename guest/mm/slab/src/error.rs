//! Why a cache is not created or destroyed, and why an object is not taken back.

use core::fmt;

use crate::{CacheId, Object};

/// A cache that is not created; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateError {
    /// The name is empty, longer than 31 bytes, or not printable ASCII without spaces.
    Name,
    /// No object of that size fits a block of pages.
    Size {
        /// Bytes that were asked for.
        size: u32,
    },
    /// The alignment is no power of two, or larger than a page.
    Align {
        /// Bytes that were asked for.
        align: u32,
    },
    /// Another cache of that name exists.
    Exists {
        /// That cache.
        cache: CacheId,
    },
    /// The table of caches is full.
    Full,
}

impl fmt::Display for CreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CreateError::Name => write!(f, "name of a cache must be 1 to 31 printable ASCII characters"),
            CreateError::Size { size } => write!(f, "no slab holds an object of {size} bytes"),
            CreateError::Align { align } => {
                write!(f, "alignment {align} is not a power of two up to 4096")
            }
            CreateError::Exists { cache } => write!(f, "cache {} has that name already", cache.as_u64()),
            CreateError::Full => write!(f, "all {} caches are in use", crate::MAX_CACHES),
        }
    }
}

/// A cache that is not destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DestroyError {
    /// There is no such cache.
    Unused {
        /// Its number.
        cache: CacheId,
    },
    /// Objects are still in use.
    Busy {
        /// How many.
        objects: u64,
    },
    /// Caches of the kmalloc family stay.
    Kmalloc,
}

impl fmt::Display for DestroyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DestroyError::Unused { cache } => write!(f, "there is no cache {}", cache.as_u64()),
            DestroyError::Busy { objects } => write!(f, "{objects} objects are still in use"),
            DestroyError::Kmalloc => write!(f, "a cache of the kmalloc family cannot be destroyed"),
        }
    }
}

/// An object that is not taken back; nothing was changed, and the console has a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreeError {
    /// No slab holds that address.
    NotSlab {
        /// What was to be freed.
        object: Object,
    },
    /// The address is inside a slab, but no object starts there.
    NotObject {
        /// What was to be freed.
        object: Object,
    },
    /// The object belongs to another cache.
    WrongCache {
        /// What was to be freed.
        object: Object,
        /// Cache of its slab, if that is one.
        owner: Option<CacheId>,
    },
    /// The object is free already.
    DoubleFree {
        /// What was to be freed.
        object: Object,
    },
    /// Debugging found the object damaged.
    Damaged {
        /// What was to be freed.
        object: Object,
    },
}

impl fmt::Display for FreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FreeError::NotSlab { object } => write!(f, "free of {object}: no slab holds it"),
            FreeError::NotObject { object } => write!(f, "free of {object}: no object starts there"),
            FreeError::WrongCache { object, owner: Some(owner) } => {
                write!(f, "free of {object}: it belongs to cache {}", owner.as_u64())
            }
            FreeError::WrongCache { object, owner: None } => {
                write!(f, "free of {object}: it belongs to another cache")
            }
            FreeError::DoubleFree { object } => write!(f, "double free of {object}"),
            FreeError::Damaged { object } => write!(f, "free of {object}: it is damaged"),
        }
    }
}
