//! What an inode says of itself, and calls that change it (Linux: fs/stat.c, fs/open.c, fs/attr.c, fs/utimes.c, fs/statfs.c).

use crate::device::Device;
use crate::flags::{MAX_OFFSET, mode};
use crate::inode::{Content, Inode, Timespec};
use crate::proc::Processes;
use crate::stat::{Stat, Statfs};
use crate::vfs::{Context, FsKind, Node, PIPE_MOUNT, Place, Vfs};
use crate::{Data, Errno, no_memory};

/// A time that utimensat sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// As it is.
    Omit,
    /// The time of the call.
    Now,
    /// This time.
    To(Timespec),
}

impl SetTime {
    /// From `struct timespec`.
    ///
    /// # Errors
    /// `EINVAL` for nanoseconds that are none.
    pub fn from_raw(sec: i64, nsec: i64) -> Result<SetTime, Errno> {
        const UTIME_NOW: i64 = (1 << 30) - 1;
        const UTIME_OMIT: i64 = (1 << 30) - 2;
        match nsec {
            UTIME_NOW => Ok(SetTime::Now),
            UTIME_OMIT => Ok(SetTime::Omit),
            0..1_000_000_000 => {
                let nsec = u32::try_from(nsec).map_err(|_| Errno::Einval)?;
                Ok(SetTime::To(Timespec { sec, nsec }))
            }
            _ => Err(Errno::Einval),
        }
    }
}

/// Memory that statfs tells of, in pages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// All.
    pub total: u64,
    /// Free.
    pub free: u64,
}

/// Bits that access(2) asks for.
const X_OK: u32 = 1;
const ACCESS_BITS: u32 = 7;
/// A directory's size grows by this with every entry, `.` and `..` counted (Linux: `BOGO_DIRENT_SIZE`).
const DIRENT_SIZE: u64 = 20;

impl<D: Data, P: Processes> Vfs<D, P> {
    /// What stat tells of a place.
    ///
    /// # Errors
    /// `ENOENT` if it is gone.
    pub fn stat(&self, place: Place) -> Result<Stat, Errno> {
        let dev = self.device_of(place.mount);
        let id = match place.node {
            Node::Inode(id) => id,
            Node::Proc(node) => return Ok(node.stat(dev, &self.processes)),
            Node::Disk(node) => return self.disk_stat(node, dev),
        };
        let inode = self.inode(id).ok_or(Errno::Enoent)?;
        let (size, blocks, rdev) = match &inode.content {
            Content::File(data) => (self.data.size(*data), self.data.blocks(*data), Device::default()),
            Content::Directory(names) => ((names.len() as u64 + 2) * DIRENT_SIZE, 0, Device::default()),
            Content::Symlink(text) => (text.len() as u64, 0, Device::default()),
            Content::Char(device) | Content::Block(device) => (0, 0, *device),
            Content::Fifo | Content::Socket => (0, 0, Device::default()),
        };
        Ok(Stat {
            dev,
            ino: inode.number,
            // A pipe that never had a name counts one (Linux: `inode_init_always`).
            nlink: if place.mount == PIPE_MOUNT { 1 } else { inode.nlink },
            mode: inode.mode(),
            uid: inode.uid,
            gid: inode.gid,
            rdev,
            size,
            blocks,
            atime: inode.atime,
            mtime: inode.mtime,
            ctime: inode.ctime,
        })
    }

    /// Length of what lseek counts from at the end.
    pub fn size(&self, place: Place) -> u64 {
        self.stat(place).map_or(0, |stat| stat.size)
    }

    /// statfs.
    ///
    /// # Errors
    /// `ENOSYS` if the file system is gone.
    pub fn statfs(&self, place: Place, memory: Memory) -> Result<Statfs, Errno> {
        const TMPFS_MAGIC: u64 = 0x0102_1994;
        const PROC_SUPER_MAGIC: u64 = 0x9fa0;
        const PIPEFS_MAGIC: u64 = 0x5049_5045;
        const ST_VALID: u64 = 0x20;
        let fs = self.fs_of(place.mount).ok_or(Errno::Enosys)?;
        let flags = self.mount_of(place.mount).map_or(0, |mount| mount.flags & 0xf) | ST_VALID;
        if let Node::Disk(node) = place.node {
            return self.disk_statfs(node).map(|told| Statfs { flags, ..told });
        }
        let id = self.device_of(place.mount);
        let (magic, blocks, free) = match fs.kind {
            FsKind::Proc => (PROC_SUPER_MAGIC, 0, 0),
            FsKind::Pipefs => (PIPEFS_MAGIC, 0, 0),
            FsKind::Ext2 => return Err(Errno::Eio),
            FsKind::Rootfs | FsKind::Tmpfs | FsKind::Devtmpfs => {
                (TMPFS_MAGIC, memory.total, memory.free.min(memory.total))
            }
        };
        let files = if blocks == 0 { 0 } else { memory.total };
        let free_files = files.saturating_sub(self.inodes_in_use() as u64);
        Ok(Statfs { magic, block: 4096, blocks, free, available: free, files, free_files, id, flags })
    }

    /// access and faccessat for root: everything may be read and written; a file without any right to execute may not be run.
    ///
    /// # Errors
    /// `EINVAL`, `EACCES`.
    pub fn access(&self, place: Place, wanted: u32) -> Result<(), Errno> {
        if wanted & !ACCESS_BITS != 0 {
            return Err(Errno::Einval);
        }
        if wanted & X_OK == 0 { Ok(()) } else { self.check_exec(place) }
    }

    /// Whether root may run the file or enter the directory (Linux: `generic_permission`).
    ///
    /// # Errors
    /// `EACCES`.
    pub fn check_exec(&self, place: Place) -> Result<(), Errno> {
        let bits = self.mode_of(place).ok_or(Errno::Enoent)?;
        if self.is_dir(place) || bits & mode::S_IXUGO != 0 { Ok(()) } else { Err(Errno::Eacces) }
    }

    fn changed(&mut self, place: Place) -> Result<&mut Inode<D::Id>, Errno> {
        match place.node {
            Node::Inode(id) => self.inode_mut(id).ok_or(Errno::Enoent),
            Node::Proc(_) | Node::Disk(_) => Err(Errno::Eperm),
        }
    }

    /// chmod of what is no symbolic link.
    ///
    /// # Errors
    /// `EPERM` in /proc and where a seal forbids it, `EOPNOTSUPP` for a symbolic link.
    pub fn chmod(&mut self, context: &Context, place: Place, permissions: u32) -> Result<(), Errno> {
        if let Node::Inode(id) = place.node
            && let Some(Inode { content: Content::File(data), permissions: old, .. }) = self.inode(id)
        {
            self.data.check_mode(*data, *old, permissions)?;
        }
        if let Node::Disk(node) = place.node {
            if self.disk_link(node)?.is_some() {
                return Err(Errno::Eopnotsupp);
            }
            return self.disk_chmod(context, node, permissions);
        }
        let inode = self.changed(place)?;
        if matches!(inode.content, Content::Symlink(_)) {
            return Err(Errno::Eopnotsupp);
        }
        inode.permissions = permissions & mode::PERMISSIONS;
        inode.ctime = context.now;
        Ok(())
    }

    /// chown; `None` leaves an owner as it is. A program loses its set-user-id and set-group-id bits, also when root changes it.
    ///
    /// # Errors
    /// `EPERM` in /proc.
    pub fn chown(
        &mut self,
        context: &Context,
        place: Place,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<(), Errno> {
        const S_IXGRP: u32 = 0o10;
        if let Node::Disk(node) = place.node {
            return self.disk_chown(context, node, (uid, gid));
        }
        let inode = self.changed(place)?;
        inode.uid = uid.unwrap_or(inode.uid);
        inode.gid = gid.unwrap_or(inode.gid);
        if !inode.is_dir() {
            inode.permissions &= !mode::S_ISUID;
            if inode.permissions & S_IXGRP != 0 {
                inode.permissions &= !mode::S_ISGID;
            }
        }
        inode.ctime = context.now;
        Ok(())
    }

    /// utimensat.
    ///
    /// # Errors
    /// `EPERM` in /proc.
    pub fn set_times(
        &mut self,
        context: &Context,
        place: Place,
        atime: SetTime,
        mtime: SetTime,
    ) -> Result<(), Errno> {
        if (atime, mtime) == (SetTime::Omit, SetTime::Omit) {
            return Ok(());
        }
        if let Node::Disk(node) = place.node {
            return self.disk_times(context, node, (atime, mtime));
        }
        let inode = self.changed(place)?;
        for (slot, time) in [(&mut inode.atime, atime), (&mut inode.mtime, mtime)] {
            match time {
                SetTime::Omit => {}
                SetTime::Now => *slot = context.now,
                SetTime::To(time) => *slot = time,
            }
        }
        inode.ctime = context.now;
        Ok(())
    }

    /// truncate: of a file by its path.
    ///
    /// # Errors
    /// `EINVAL`, `EISDIR`, `EFBIG`, `ENOMEM`.
    pub fn truncate(&mut self, context: &Context, place: Place, size: i64) -> Result<(), Errno> {
        let size = u64::try_from(size).map_err(|_| Errno::Einval)?;
        if self.is_dir(place) {
            return Err(Errno::Eisdir);
        }
        if let Node::Disk(node) = place.node {
            return self.disk_truncate(node, size, context);
        }
        let Node::Inode(id) = place.node else { return Err(Errno::Einval) };
        let Some(Content::File(data)) = self.inode(id).map(|inode| &inode.content) else {
            return Err(Errno::Einval);
        };
        let data = *data;
        if size > MAX_OFFSET {
            return Err(Errno::Efbig);
        }
        self.data.set_size(data, size)?;
        self.written(id, context);
        Ok(())
    }

    /// Where a symbolic link leads.
    ///
    /// # Errors
    /// `EINVAL` if it is none.
    pub fn read_link(&self, context: &Context, place: Place) -> Result<alloc::vec::Vec<u8>, Errno> {
        match place.node {
            Node::Inode(id) => match &self.inode(id).ok_or(Errno::Enoent)?.content {
                Content::Symlink(text) => crate::dir::copy(text),
                _ => Err(Errno::Einval),
            },
            Node::Disk(node) => self.disk_link(node)?.ok_or(Errno::Einval),
            Node::Proc(node) => match node.follow(&self.processes)?.ok_or(Errno::Einval)? {
                crate::proc::Target::Text(text) => Ok(text),
                crate::proc::Target::Place(place) => {
                    let found = self.path_of(context, place)?;
                    let mut path = found.path;
                    if found.state == crate::walk::PathState::Deleted {
                        path.try_reserve(16).map_err(no_memory)?;
                        path.extend_from_slice(b" (deleted)");
                    }
                    Ok(path)
                }
            },
        }
    }
}
