//! Disks as files: /dev/vda and so on (Linux: block/fops.c).
//!
//! Differs from Linux: there is no cache of blocks: what is read comes from the disk, and what is written is there when write(2)
//! returns, a page at a time. They cannot be mapped.

use guest_fs::{Device, OpenFlags};
use guest_virtio::blk::SECTOR;
use mm_core::{Gfp, Order, PAGE_SIZE, Pfn};
use mm_vma::Errno;

use super::file::in_pieces;
use super::{Mutex, with_vfs};
use crate::drivers::block::{self, Disk, MAJOR, MINORS, Segment};
use crate::mm::{kmap, page_alloc};
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

/// Held while sectors are read, changed in part and written again.
static CHANGES: Mutex<()> = Mutex::new(());

/// Has nodes made in /dev.
pub fn make_nodes() {
    for disk in block::all() {
        let device = Device { major: MAJOR, minor: u32::from(disk.index) * MINORS };
        if let Err(error) = with_vfs(|vfs| vfs.add_disk(&disk.name(), device)) {
            crate::println!("devtmpfs: no node for disk {}: {error:?}", disk.index);
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

fn disk(device: Device) -> Result<Disk, Errno> {
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

/// fsync.
///
/// # Errors
/// `EIO`.
pub fn flush(device: Device) -> Result<(), Errno> {
    disk(device)?.flush(&sched::task_context())
}

/// Reads into a program's memory; how many bytes, 0 past the end.
///
/// # Errors
/// `EIO`, `EFAULT`, `ENOMEM`.
pub fn read(device: Device, address: u64, len: usize, at: u64) -> Result<usize, Errno> {
    let disk = disk(device)?;
    let bounce = Bounce::new()?;
    in_pieces(room(device, at, len), |done, piece| {
        let got = bounce.read(&disk, at + done as u64, piece)?;
        uaccess::write_some(address + done as u64, piece.get(..got).unwrap_or_default())
    })
}

/// Writes from a program's memory; how many bytes.
///
/// # Errors
/// `EIO`, `EFAULT`, `ENOMEM`; `ENOSPC` at the end.
pub fn write(device: Device, address: u64, len: usize, at: u64) -> Result<usize, Errno> {
    let disk = disk(device)?;
    let len = match room(device, at, len) {
        0 if len > 0 => return Err(Errno::Enospc),
        room => room,
    };
    let bounce = Bounce::new()?;
    in_pieces(len, |done, piece| {
        let got = uaccess::read_some(address + done as u64, piece)?;
        CHANGES.with(|()| bounce.write(&disk, at + done as u64, piece.get(..got).unwrap_or_default()))
    })
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
        request::BLKFLSBUF => flush(device)?,
        _ => return Err(Errno::Enotty),
    }
    Ok(0)
}

/// A frame for what does not begin or end with a sector, or is a program's.
struct Bounce(Pfn);

impl Bounce {
    fn new() -> Result<Bounce, Errno> {
        page_alloc::alloc_here(Gfp::KERNEL | Gfp::ZERO, Order::ZERO, None).map(Bounce).ok_or(Errno::Enomem)
    }

    /// The sectors around `len` bytes at `at`, as many as fit the frame: the first, where the bytes begin in them, how many
    /// bytes, and the frame's part.
    fn around(&self, at: u64, len: usize) -> (u64, u64, usize, Segment) {
        let skip = at % SECTOR;
        let len = usize::try_from(PAGE_SIZE - skip).map_or(len, |room| room.min(len));
        let bytes = (skip + len as u64).next_multiple_of(SECTOR);
        let segment = Segment { pfn: self.0, offset: 0, len: u32::try_from(bytes).unwrap_or(0) };
        (at / SECTOR, skip, len, segment)
    }

    fn read(&self, disk: &Disk, at: u64, to: &mut [u8]) -> Result<usize, Errno> {
        let (sector, skip, len, segment) = self.around(at, to.len());
        disk.read(sector, &[segment], &sched::task_context())?;
        kmap::copy_from_page(self.0, skip, to.get_mut(..len).unwrap_or_default());
        Ok(len)
    }

    fn write(&self, disk: &Disk, at: u64, from: &[u8]) -> Result<usize, Errno> {
        let (sector, skip, len, segment) = self.around(at, from.len());
        let context = sched::task_context();
        if skip != 0 || !(len as u64).is_multiple_of(SECTOR) {
            disk.read(sector, &[segment], &context)?;
        }
        kmap::copy_to_page(self.0, skip, from.get(..len).unwrap_or_default());
        disk.write(sector, &[segment], &context)?;
        Ok(len)
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        page_alloc::free_pages(self.0, Order::ZERO);
    }
}
