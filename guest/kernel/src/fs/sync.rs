//! What was written is kept from now on (Linux: fs/sync.c).

use core::sync::atomic::AtomicU32;

use guest_fs::{Node, Place};
use mm_vma::{Errno, Id, Mapping};

use super::{disk_file, now, with_vfs};
use crate::mm::space::{Source, backing, cache};
use crate::mm::writeback;
use crate::sched;

/// The bytes of a file, and what leads to them. `seen` is the caller's, for errors that happen when nobody asks.
///
/// Differs from Linux: fdatasync does all that fsync does.
///
/// # Errors
/// `EIO`, `ENOSPC`.
pub fn file(id: Id<Mapping>, seen: &AtomicU32) -> Result<(), Errno> {
    if cache::source(id) != Source::Disk {
        return Ok(());
    }
    let written = writeback::write_and_wait(id, 0..u64::MAX, &sched::task_context());
    let kept = metadata(id);
    // Errors of pages are in here.
    let told = backing::of(id).check_error(seen);
    told.and(written).and(kept)
}

/// Inodes, directories, pointers of the file system that a file is in.
fn metadata(id: Id<Mapping>) -> Result<(), Errno> {
    disk_file::with_file(id, |fs, ino| {
        if fs.access() == guest_ext2::Access::ReadWrite {
            fs.extend(ino, cache::size(id))?;
        }
        fs.sync(now().sec)
    })
}

/// A mapping of a program, for msync.
///
/// # Errors
/// `EIO`, `ENOSPC`.
pub fn mapping(id: Id<Mapping>) -> Result<(), Errno> {
    // Linux: the file of the VMA has heard of no error since it was opened.
    let seen = AtomicU32::new(backing::of(id).sample_error());
    file(id, &seen)
}

/// A directory: the file system that it is in.
///
/// # Errors
/// `EIO`.
pub fn directory(place: Place) -> Result<(), Errno> {
    let Node::Disk(node) = place.node else { return Ok(()) };
    with_vfs(|vfs| vfs.ext2(node)?.0.sync(now().sec))
}

/// sync, and syncfs: everything of all disks.
///
/// Differs from Linux: syncfs syncs every file system.
///
/// # Errors
/// `EIO`, `ENOSPC`: the first, after all was tried.
pub fn all() -> Result<(), Errno> {
    let mut first = Ok(());
    let context = sched::task_context();
    // Most of it without the file systems' lock.
    writeback::for_each_dirty(|id| {
        let result = writeback::write_and_wait(id, 0..u64::MAX, &context);
        if first.is_ok() {
            first = result;
        }
    });
    first.and(with_vfs(|vfs| vfs.sync()))
}
