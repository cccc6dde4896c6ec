//! Counts of the page cache.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Counts of pages in mappings, for comparison with descriptors and trees. One exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FileCounts {
    /// Pages in mappings (Linux: `NR_FILE_PAGES`).
    pub nr_file_pages: u64,
    /// Dirty pages of mappings that are written back (Linux: `NR_FILE_DIRTY`).
    pub nr_file_dirty: u64,
    /// Pages of them that are being written (Linux: `NR_WRITEBACK`).
    pub nr_writeback: u64,
    /// Who is between the change of a flag and its count just now.
    pub busy: u64,
}
const _: () = assert!(size_of::<FileCounts>() == 32);
