//! Calls that change names on a disk (Linux: fs/namei.c down to fs/ext2/namei.c).

use guest_ext2::{Caller, Ino, Name, Replace, SetAttr, Times};

use crate::attr::SetTime;
use crate::device::Device;
use crate::dir::copy;
use crate::disk::{Disk, DiskNode};
use crate::flags::mode;
use crate::proc::Processes;
use crate::vfs::{Context, Node, Place, Vfs};
use crate::walk::Parent;
use crate::{Data, Errno};

/// What a new file is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NewFile<'a> {
    File,
    Directory,
    Symlink(&'a [u8]),
    /// By the type's bits.
    Special(u32, Device),
}

/// For whom, and when.
fn caller(context: &Context) -> Caller {
    Caller { uid: context.uid, gid: context.gid, privileged: context.uid == 0, now: context.now.sec }
}

impl<D: Data> Disk<D> {
    /// Removes what a name names by `change`, with its inode held: cached bytes go before its blocks are free, and a holder finds its last
    /// name.
    fn losing(
        &mut self,
        data: &mut D,
        (dir, name): (Ino, &[u8]),
        change: impl FnOnce(&mut Self) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let victim = match self.fs.lookup(dir, name) {
            Ok(inode) => inode.ino,
            Err(_) => return change(self),
        };
        let last = copy(name)?;
        self.fs.hold(victim)?;
        let result = change(self);
        let nameless = self.fs.inode(victim).is_ok_and(|inode| inode.nlink() == 0);
        match self.used_mut(victim) {
            Some(used) if nameless && used.holds > 0 => used.orphan = Some((dir, last)),
            _ => self.settle(data, victim),
        }
        let released = self.fs.release(victim, self.now);
        result.and(released)
    }
}

impl<D: Data, P: Processes> Vfs<D, P> {
    pub(crate) fn disk_make(
        &mut self,
        context: &Context,
        (dir, parent): (DiskNode, &Parent),
        permissions: u32,
        new: NewFile<'_>,
    ) -> Result<Place, Errno> {
        let (disk, _) = self.disk_mut(dir)?;
        disk.now = context.now.sec;
        let (caller, name) = (caller(context), &parent.name[..]);
        let inode = match new {
            NewFile::File => disk.fs.create(&caller, dir.ino, name, permissions)?,
            NewFile::Directory => disk.fs.mkdir(&caller, dir.ino, name, permissions)?,
            NewFile::Symlink(target) => disk.fs.symlink(&caller, dir.ino, name, target)?,
            NewFile::Special(kind, device) => {
                let device = guest_ext2::Device { major: device.major, minor: device.minor };
                disk.fs.mknod(&caller, (dir.ino, name), kind | permissions & mode::PERMISSIONS, device)?
            }
        };
        Ok(Place { mount: parent.dir.mount, node: Node::Disk(DiskNode { ino: inode.ino, ..dir }) })
    }

    pub(crate) fn disk_hard_link(
        &mut self,
        context: &Context,
        from: DiskNode,
        (dir, parent): (DiskNode, &Parent),
    ) -> Result<(), Errno> {
        let (disk, _) = self.disk_mut(dir)?;
        disk.fs.link(&caller(context), from.ino, dir.ino, &parent.name)
    }

    pub(crate) fn disk_unlink(&mut self, context: &Context, dir: DiskNode, name: &[u8]) -> Result<(), Errno> {
        let (disk, data) = self.disk_mut(dir)?;
        disk.now = context.now.sec;
        disk.losing(data, (dir.ino, name), |disk| disk.fs.unlink(dir.ino, name, context.now.sec))
    }

    pub(crate) fn disk_rmdir(&mut self, context: &Context, dir: DiskNode, name: &[u8]) -> Result<(), Errno> {
        let (disk, data) = self.disk_mut(dir)?;
        disk.now = context.now.sec;
        disk.losing(data, (dir.ino, name), |disk| disk.fs.rmdir(dir.ino, name, context.now.sec))
    }

    pub(crate) fn disk_rename(
        &mut self,
        context: &Context,
        (old_dir, old): (DiskNode, &[u8]),
        (new_dir, new): (DiskNode, &[u8]),
        replace: Replace,
    ) -> Result<(), Errno> {
        let (disk, data) = self.disk_mut(old_dir)?;
        disk.now = context.now.sec;
        let (from, to) = (Name { dir: old_dir.ino, name: old }, Name { dir: new_dir.ino, name: new });
        let caller = caller(context);
        disk.losing(data, (new_dir.ino, new), |disk| disk.fs.rename(&caller, from, to, replace))
    }

    pub(crate) fn disk_chmod(&mut self, context: &Context, node: DiskNode, bits: u32) -> Result<(), Errno> {
        self.disk_set(context, node, &SetAttr { mode: Some(bits), ..SetAttr::default() })
    }

    pub(crate) fn disk_chown(
        &mut self,
        context: &Context,
        node: DiskNode,
        (uid, gid): (Option<u32>, Option<u32>),
    ) -> Result<(), Errno> {
        const S_IXGRP: u32 = 0o10;
        let bits = self.disk_mode(node).ok_or(Errno::Enoent)?;
        let mut kept = bits & mode::PERMISSIONS;
        if bits & mode::S_IFMT != mode::S_IFDIR {
            kept &= !mode::S_ISUID;
            if kept & S_IXGRP != 0 {
                kept &= !mode::S_ISGID;
            }
        }
        self.disk_set(context, node, &SetAttr { uid, gid, mode: Some(kept), ..SetAttr::default() })
    }

    pub(crate) fn disk_times(
        &mut self,
        context: &Context,
        node: DiskNode,
        (atime, mtime): (SetTime, SetTime),
    ) -> Result<(), Errno> {
        let of = |time| match time {
            SetTime::Omit => None,
            SetTime::Now => Some(context.now.sec),
            SetTime::To(time) => Some(time.sec),
        };
        let times = Times { atime: of(atime), mtime: of(mtime), ctime: None };
        self.disk_set(context, node, &SetAttr { times, ..SetAttr::default() })
    }

    fn disk_set(&mut self, context: &Context, node: DiskNode, attr: &SetAttr) -> Result<(), Errno> {
        let (disk, _) = self.disk_mut(node)?;
        disk.now = context.now.sec;
        disk.fs.set_attr(node.ino, attr, context.now.sec)
    }
}
