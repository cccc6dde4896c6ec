//! Where the bytes of regular files are: not here. A file has the number of something that the kernel keeps in its page cache.

use alloc::vec::Vec;
use core::fmt::Debug;

use guest_ext2::{Buffers, Ext2, Ino, Ram};

use crate::disk::{DiskNode, Source};
use crate::{Errno, no_memory};

/// Bytes of regular files. The file system calls this for metadata only; what a program reads and writes goes past it, by
/// [`Data::Id`], outside of the file system's lock.
pub trait Data {
    /// A file's bytes.
    type Id: Copy + Debug + PartialEq;

    /// What a file system on a disk is read and written through.
    type Device: Buffers + Debug;

    /// No bytes.
    ///
    /// # Errors
    /// `ENOMEM`, `ENOSPC`.
    fn create(&mut self) -> Result<Self::Id, Errno>;

    /// Length in bytes.
    fn size(&self, id: Self::Id) -> u64;

    /// Cuts, or grows by zeroes that take no memory.
    ///
    /// # Errors
    /// `EFBIG`, `ENOMEM`.
    fn set_size(&mut self, id: Self::Id, size: u64) -> Result<(), Errno>;

    /// 512-byte blocks that the bytes take (`st_blocks`).
    fn blocks(&self, id: Self::Id) -> u64;

    /// Writes all of `bytes` at `offset`, for an initramfs.
    ///
    /// # Errors
    /// `ENOMEM`, `EFBIG`, `ENOSPC`.
    fn write(&mut self, id: Self::Id, offset: u64, bytes: &[u8]) -> Result<(), Errno>;

    /// Whether the rights may change from `old` to `new` (Linux: F_SEAL_EXEC).
    ///
    /// # Errors
    /// `EPERM`.
    fn check_mode(&self, _id: Self::Id, _old: u32, _new: u32) -> Result<(), Errno> {
        Ok(())
    }

    /// The device that mount(2)'s source names.
    ///
    /// # Errors
    /// `ENXIO` if there is no driver, `EIO`, `ENOMEM`.
    fn device(&mut self, source: Source<Self::Id>) -> Result<Self::Device, Errno>;

    /// The bytes of a file on a disk, when it is opened first: a cache of them, which is filled page by page later or at once. They
    /// stay until [`Data::release`].
    ///
    /// # Errors
    /// `ENODEV` if files of disks cannot be opened, `ENOMEM`, `EIO`.
    fn attach(&mut self, fs: &mut Ext2<Self::Device>, file: DiskNode) -> Result<Self::Id, Errno>;

    /// Writes what is dirty of a file on a disk, and its size.
    ///
    /// # Errors
    /// `EIO`, `ENOSPC`.
    fn flush(&mut self, fs: &mut Ext2<Self::Device>, file: Ino, id: Self::Id) -> Result<(), Errno>;

    /// Nobody names the file any more, or its file system is unmounted: what is dirty is not written. Mappings of it may still exist.
    fn release(&mut self, id: Self::Id);
}

/// Bytes in vectors: for tests on the host.
#[derive(Debug, Default)]
pub struct Vecs {
    files: Vec<Option<Vec<u8>>>,
}

/// Largest file of [`Vecs`].
const LARGEST: u64 = 1 << 24;

impl Vecs {
    /// Files that exist.
    pub fn count(&self) -> usize {
        self.files.iter().flatten().count()
    }

    /// The file's bytes; none if it was released.
    pub fn bytes(&self, id: usize) -> &[u8] {
        self.files.get(id).and_then(Option::as_deref).unwrap_or(&[])
    }
}

impl Data for Vecs {
    type Id = usize;
    type Device = Ram;

    fn create(&mut self) -> Result<usize, Errno> {
        self.files.try_reserve(1).map_err(no_memory)?;
        self.files.push(Some(Vec::new()));
        Ok(self.files.len() - 1)
    }

    fn size(&self, id: usize) -> u64 {
        self.bytes(id).len() as u64
    }

    fn set_size(&mut self, id: usize, size: u64) -> Result<(), Errno> {
        let size = usize::try_from(size).ok().filter(|_| size <= LARGEST).ok_or(Errno::Efbig)?;
        self.files.get_mut(id).and_then(Option::as_mut).ok_or(Errno::Eio)?.resize(size, 0);
        Ok(())
    }

    fn blocks(&self, id: usize) -> u64 {
        self.size(id).div_ceil(4096) * 8
    }

    fn write(&mut self, id: usize, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let end = offset.checked_add(bytes.len() as u64).ok_or(Errno::Efbig)?;
        if end > self.size(id) {
            self.set_size(id, end)?;
        }
        let file = self.files.get_mut(id).and_then(Option::as_mut).ok_or(Errno::Eio)?;
        // set_size refused what does not fit into usize.
        let at = usize::try_from(offset).map_err(|_| Errno::Efbig)?;
        file.get_mut(at..at + bytes.len()).ok_or(Errno::Eio)?.copy_from_slice(bytes);
        Ok(())
    }

    fn device(&mut self, source: Source<usize>) -> Result<Ram, Errno> {
        match source {
            // A copy: what is written to it stays in it.
            Source::File(id) => crate::dir::copy(self.bytes(id)).map(Ram::new),
            Source::Block(_) => Err(Errno::Enxio),
        }
    }

    fn attach(&mut self, fs: &mut Ext2<Ram>, file: DiskNode) -> Result<usize, Errno> {
        let size = fs.inode(file.ino)?.size();
        let id = self.create()?;
        self.set_size(id, size)?;
        let bytes = self.files.get_mut(id).and_then(Option::as_mut).ok_or(Errno::Eio)?;
        fs.read(file.ino, 0, bytes)?;
        Ok(id)
    }

    fn flush(&mut self, fs: &mut Ext2<Ram>, file: Ino, id: usize) -> Result<(), Errno> {
        let inode = fs.inode(file)?;
        if fs.access() == guest_ext2::Access::ReadOnly {
            return Ok(());
        }
        let root = guest_ext2::Caller { uid: 0, gid: 0, privileged: true, now: inode.mtime() };
        let bytes = self.bytes(id);
        fs.truncate(file, bytes.len() as u64, inode.mtime())?;
        let written = fs.write(&root, file, 0, bytes)?;
        if written == bytes.len() { Ok(()) } else { Err(Errno::Enospc) }
    }

    fn release(&mut self, id: usize) {
        if let Some(file) = self.files.get_mut(id) {
            *file = None;
        }
    }
}
