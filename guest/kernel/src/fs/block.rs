//! Disks as files: /dev/vda and so on (Linux: block/fops.c).
//!
//! Their bytes are in the page cache, which a file system on the disk has its metadata in, too; what is written reaches the disk some time, or with
//! fsync.
//!
//! Differs from Linux: they cannot be mapped.

use core::sync::atomic::AtomicU32;

use guest_fs::{Device, OpenFlags};
use guest_virtio::blk::SECTOR;
use mm_vma::Errno;

use super::disk_file::bdev;
use super::file::in_pieces;
use super::with_vfs;
use crate::drivers::block::{self, Disk, MAJOR, MINORS};
use crate::mm::space::{backing, cache};
use crate::mm::writeback;
use crate::sched;
use crate::uaccess;

/// Linux: include/uapi/linux/fs.h.
mod request {
    pub const BLKROGET: u32 = 0x125e;
    pub const BLKGETSIZE: u32 = 0x1260;
    pub const BLKFLSBUF: u32 = 0x1261;
    pub const BLKSSZGET: u32 = 0x1268;
    pub const BLKGETSIZE64: u32 = 0x8008_1272;
}

/// Has nodes made in /dev.
pub fn make_nodes() {
    for disk in block::all() {
        let device = Device { major: MAJOR, minor: u32::from(disk.index) * MINORS };
        if let Err(error) = with_vfs(|vfs| vfs.add_disk(&disk.name(), device)) {
            crate::pr_warn!("devtmpfs: no node for disk {}: {error:?}", disk.index);
        }
    }
}

/// The disk of a number, to be opened with `flags`.
///
/// # Errors
/// `ENXIO` if there is none; `EACCES` for writing to one that is read-only.
pub fn open(device: Device, flags: OpenFlags) -> Result<(), Errno> {
    match disk(device)?.geometry.read_only && flags.writes() {
        true => Err(Errno::Eacces),
        false => Ok(()),
    }
}

/// The disk of a number.
///
/// # Errors
/// `ENXIO` if there is none.
pub fn disk(device: Device) -> Result<Disk, Errno> {
    let Device { major, minor } = device;
    // Minors in between are partitions, of which there are none.
    if major != MAJOR || !minor.is_multiple_of(MINORS) {
        return Err(Errno::Enxio);
    }
    let index = usize::try_from(minor / MINORS).map_err(|_| Errno::Enxio)?;
    block::disk(index).ok_or(Errno::Enxio)
}

/// Bytes of the disk.
pub fn size(device: Device) -> u64 {
    disk(device).map_or(0, |disk| disk.capacity().saturating_mul(SECTOR))
}

/// What whoever opens it has heard of errors.
pub fn sample_error(device: Device) -> u32 {
    let mapping = disk(device).and_then(|disk| bdev::mapping_of(&disk));
    mapping.map_or(0, |id| backing::of(id).sample_error())
}

/// fsync.
///
/// # Errors
/// `EIO`.
pub fn sync(device: Device, seen: &AtomicU32) -> Result<(), Errno> {
    let disk = disk(device)?;
    if disk.geometry.read_only { Ok(()) } else { bdev::sync(&disk, seen) }
}

/// Reads into a program's memory; how many bytes, 0 past the end.
///
/// # Errors
/// `EIO`, `EFAULT`, `ENOMEM`.
pub fn read(device: Device, address: u64, len: usize, at: u64) -> Result<usize, Errno> {
    let id = bdev::mapping_of(&disk(device)?)?;
    in_pieces(room(device, at, len), |done, piece| {
        let got = cache::read(id, at + done as u64, piece)?;
        uaccess::write_some(address + done as u64, piece.get(..got).unwrap_or_default())
    })
}

/// Writes from a program's memory; how many bytes.
///
/// # Errors
/// `EIO`, `EFAULT`, `ENOMEM`; `ENOSPC` at the end.
pub fn write(device: Device, address: u64, len: usize, at: u64) -> Result<usize, Errno> {
    let id = bdev::mapping_of(&disk(device)?)?;
    let len = match room(device, at, len) {
        0 if len > 0 => return Err(Errno::Enospc),
        room => room,
    };
    in_pieces(len, |done, piece| {
        let got = uaccess::read_some(address + done as u64, piece)?;
        let wrote = cache::write(id, at + done as u64, piece.get(..got).unwrap_or_default())?;
        writeback::balance_dirty_pages(&sched::task_context());
        Ok(wrote)
    })
}

/// Writes what the page cache has of a disk, and forgets it: who uses the disk by itself from now on finds what was written, and nothing is
/// written over what it writes (Linux: `sync_blockdev`, `kill_bdev`).
///
/// # Errors
/// `EIO`, `ENOMEM`.
pub fn kill_bdev(disk: &Disk) -> Result<(), Errno> {
    let id = bdev::mapping_of(disk)?;
    if !disk.geometry.read_only {
        bdev::sync(disk, &AtomicU32::new(backing::of(id).sample_error()))?;
    }
    writeback::invalidate(id, 0..u64::MAX);
    Ok(())
}

fn room(device: Device, at: u64, len: usize) -> usize {
    usize::try_from(size(device).saturating_sub(at)).unwrap_or(usize::MAX).min(len)
}

/// ioctl.
///
/// # Errors
/// `ENOTTY` for what is not known; `EFAULT`; `EFBIG`.
pub fn ioctl(device: Device, request: u32, argument: u64) -> Result<u64, Errno> {
    let disk = disk(device)?;
    match request {
        request::BLKROGET => uaccess::put_user(argument, u32::from(disk.geometry.read_only))?,
        request::BLKGETSIZE => uaccess::put_user(argument, disk.capacity())?,
        request::BLKGETSIZE64 => uaccess::put_user(argument, size(device))?,
        request::BLKSSZGET => uaccess::put_user(argument, 512_u32)?,
        request::BLKFLSBUF => kill_bdev(&disk)?,
        _ => return Err(Errno::Enotty),
    }
    Ok(0)
}
