//! What a mapping on a disk has besides its pages (Linux: fields of `struct inode`, `struct address_space` and `struct file_ra_state`).
//!
//! Differs from Linux: what readahead knows of a reader is the file's and not each opener's; two who read one file at different
//! places spoil it for each other.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use guest_fs::DiskNode;
use mm_core::Errno;
use mm_vma::{Id, Mapping};

use super::objects;
use crate::drivers::block::{self, Disk};

/// What is on a disk. All of it atomic: mappings keep their type when they are free.
#[derive(Debug)]
pub struct Backing {
    /// Number of the disk.
    device: AtomicU32,
    /// Errors of writes: bit 0, somebody has seen the last one; above it the error's number, and how many there were (Linux: `errseq_t`).
    wb_err: AtomicU32,
    /// The file, [`DiskNode::to_raw`]; 0 of a disk itself.
    node: AtomicU64,
    /// In the list of dirty mappings, under its lock: the next one's number, 1 at its end, 0 outside.
    pub dirty_next: AtomicU64,
    /// When it came into the list, in nanoseconds since boot (Linux: `dirtied_when`).
    pub dirtied_when: AtomicU64,
    /// Readahead.
    pub ra: RaState,
}

/// Where somebody reads a file and how far ahead is read (Linux: `struct file_ra_state`).
#[derive(Debug)]
pub struct RaState {
    /// Page at which the window begins.
    pub start: AtomicU64,
    /// Pages in it.
    pub size: AtomicU32,
    /// When so many are left, the next window begins to be read.
    pub async_size: AtomicU32,
    /// The page that was read last; all ones before the first.
    pub prev_index: AtomicU64,
    /// [`RaState::NORMAL`] and so on.
    pub mode: AtomicU32,
}

impl RaState {
    /// As it comes.
    pub const NORMAL: u32 = 0;
    /// POSIX_FADV_RANDOM: nothing is read ahead.
    pub const RANDOM: u32 = 1;
    /// POSIX_FADV_SEQUENTIAL: twice as far.
    pub const SEQUENTIAL: u32 = 2;
}

/// A number of an error and the mark that somebody saw it.
const SEEN: u32 = 1;
const ERRNO_SHIFT: u32 = 1;
const ERRNO_MASK: u32 = 0xfff << ERRNO_SHIFT;
const COUNT: u32 = 1 << 13;

impl Backing {
    pub(super) fn init(&self) {
        for word in [&self.device, &self.wb_err, &self.ra.size, &self.ra.async_size, &self.ra.mode] {
            word.store(0, Relaxed);
        }
        for word in [&self.node, &self.dirty_next, &self.dirtied_when, &self.ra.start] {
            word.store(0, Relaxed);
        }
        self.ra.prev_index.store(u64::MAX, Relaxed);
    }

    /// The disk.
    ///
    /// # Errors
    /// `EIO` if it is gone.
    pub fn disk(&self) -> Result<Disk, Errno> {
        block::disk(self.device.load(Relaxed) as usize).ok_or(Errno::Eio)
    }

    /// The file.
    pub fn node(&self) -> DiskNode {
        DiskNode::from_raw(self.node.load(Relaxed))
    }

    /// A write failed: everybody who syncs the file hears of it once (Linux: `errseq_set`).
    pub fn set_error(&self, error: Errno) {
        let number = u32::from(error == Errno::Enospc) * 28 + u32::from(error != Errno::Enospc) * 5;
        let _ = self.wb_err.fetch_update(Relaxed, Relaxed, |old| {
            // Who saw the last one is to see that there is another.
            let counted = if old & SEEN != 0 { old.wrapping_add(COUNT) } else { old };
            Some(counted & !(ERRNO_MASK | SEEN) | number << ERRNO_SHIFT)
        });
    }

    /// What somebody who opens the file has heard of: everything, unless nobody heard of the last error yet (Linux: `errseq_sample`).
    pub fn sample_error(&self) -> u32 {
        let now = self.wb_err.load(Relaxed);
        if now & SEEN == 0 { 0 } else { now }
    }

    /// The error that happened since `since`, which moves on (Linux: `errseq_check_and_advance`).
    ///
    /// # Errors
    /// `EIO`, `ENOSPC`.
    pub fn check_error(&self, since: &AtomicU32) -> Result<(), Errno> {
        let old = self.wb_err.load(Relaxed);
        if old == since.load(Relaxed) {
            return Ok(());
        }
        let new = old | SEEN;
        // Another error in between is told of the next time.
        let _ = self.wb_err.compare_exchange(old, new, Relaxed, Relaxed);
        since.store(new, Relaxed);
        match (old & ERRNO_MASK) >> ERRNO_SHIFT {
            0 => Ok(()),
            28 => Err(Errno::Enospc),
            _ => Err(Errno::Eio),
        }
    }
}

/// What a mapping has besides its pages.
pub fn of(id: Id<Mapping>) -> &'static Backing {
    &objects::of_mapping(id).backing
}

/// A fresh mapping is of this disk, and of this file on it.
pub fn set(id: Id<Mapping>, disk: &Disk, node: Option<DiskNode>) {
    let backing = of(id);
    backing.device.store(disk.index.into(), Relaxed);
    backing.node.store(node.map_or(0, DiskNode::to_raw), Relaxed);
}

/// Nothing of the mapping is written or read any more: its file is gone.
pub fn set_gone(id: Id<Mapping>) {
    objects::of_mapping(id).set_gone();
}

/// Takes a reference of a mapping that may be on its way to be freed; false then. Under a lock that its end takes, too.
pub fn try_get(id: Id<Mapping>) -> bool {
    let references = &objects::of_mapping(id).references;
    references.fetch_update(Relaxed, Relaxed, |count| if count > 0 { Some(count + 1) } else { None }).is_ok()
}
