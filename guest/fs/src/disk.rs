//! File systems on disks: ext2 behind names (Linux: fs/ext2 as fs/namei.c and fs/inode.c see it).
//!
//! What lies on a disk is not kept in the arena: its names and inodes are read from the disk each time, through the buffers
//! that [`Data::Device`] is. Kept is who holds what, and the cached bytes of regular files.
//!
//! Invariants:
//! K1  an inode that has holds here is held once in the file system below;
//! K2  bytes of a file that were attached stay so until its last name and holder are gone, [`Vfs::sync`] forgets them, or the file system
//!     is unmounted; its size is theirs while they are.

use alloc::vec::Vec;
use core::cell::{RefCell, RefMut};

use guest_ext2::{Access, Ext2, Ino, Times};

use crate::device::Device;
use crate::dir::copy;
use crate::inode::{Content, Timespec};
use crate::proc::Processes;
use crate::stat::{Stat, Statfs};
use crate::vfs::{Context, Node, Vfs};
use crate::walk::Follow;
use crate::{Data, Errno, no_memory};

/// A file of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DiskNode {
    pub(crate) disk: u32,
    pub(crate) ino: Ino,
}

impl DiskNode {
    /// Number of its inode.
    pub const fn ino(self) -> Ino {
        self.ino
    }

    /// Number of its file system, and of its inode in it, in one word.
    pub const fn to_raw(self) -> u64 {
        (self.disk as u64) << 32 | self.ino.as_u32() as u64
    }

    /// From [`DiskNode::to_raw`].
    #[expect(clippy::cast_possible_truncation, reason = "halves of a word")]
    pub const fn from_raw(raw: u64) -> DiskNode {
        DiskNode { disk: (raw >> 32) as u32, ino: Ino::new(raw as u32) }
    }
}

/// Where a file system is, as mount(2)'s source names it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Source<Id> {
    /// A block device.
    Block(Device),
    /// A regular file.
    ///
    /// Differs from Linux: there mount(8) makes a loop device of it.
    File(Id),
}

/// A file that somebody holds, or whose bytes are cached.
#[derive(Debug)]
pub(crate) struct Used<Id> {
    pub(crate) ino: Ino,
    pub(crate) holds: u32,
    pub(crate) data: Option<Id>,
    /// Its last name, once it has none, and the directory.
    pub(crate) orphan: Option<(Ino, Vec<u8>)>,
}

/// A mounted disk.
#[derive(Debug)]
pub(crate) struct Disk<D: Data> {
    pub(crate) fs: Ext2<D::Device>,
    pub(crate) source: Source<D::Id>,
    /// By ascending number.
    pub(crate) files: Vec<Used<D::Id>>,
    /// The directory in which an inode was found last, for paths; by ascending number.
    parents: Vec<(Ino, Ino)>,
    /// The time of the last call.
    pub(crate) now: i64,
}

/// Entries of `parents`, after which it begins anew.
const PARENTS: usize = 4096;

impl<D: Data> Disk<D> {
    fn find(&self, ino: Ino) -> Result<usize, usize> {
        self.files.binary_search_by_key(&ino, |used| used.ino)
    }

    pub(crate) fn used(&self, ino: Ino) -> Option<&Used<D::Id>> {
        self.files.get(self.find(ino).ok()?)
    }

    pub(crate) fn used_mut(&mut self, ino: Ino) -> Option<&mut Used<D::Id>> {
        let at = self.find(ino).ok()?;
        self.files.get_mut(at)
    }

    /// The file's entry, made if it has none.
    fn entry(&mut self, ino: Ino) -> Result<&mut Used<D::Id>, Errno> {
        let at = match self.find(ino) {
            Ok(at) => at,
            Err(at) => {
                self.files.try_reserve(1).map_err(no_memory)?;
                self.files.insert(at, Used { ino, holds: 0, data: None, orphan: None });
                at
            }
        };
        self.files.get_mut(at).ok_or(Errno::Eio)
    }

    pub(crate) fn remove(&mut self, ino: Ino) {
        if let Ok(at) = self.find(ino) {
            self.files.remove(at);
        }
    }

    pub(crate) fn data_of(&self, ino: Ino) -> Option<D::Id> {
        self.used(ino).and_then(|used| used.data)
    }

    /// The directory in which it was found. Where there is no memory for it, paths end sooner.
    fn remember(&mut self, ino: Ino, dir: Ino) {
        match self.parents.binary_search_by_key(&ino, |(of, _)| *of) {
            Ok(at) => {
                if let Some(slot) = self.parents.get_mut(at) {
                    slot.1 = dir;
                }
            }
            Err(_) if self.parents.len() >= PARENTS => self.parents.clear(),
            Err(at) if self.parents.try_reserve(1).is_ok() => self.parents.insert(at, (ino, dir)),
            Err(_) => {}
        }
    }

    fn hold(&mut self, ino: Ino) -> Result<(), Errno> {
        if self.used(ino).is_none_or(|used| used.holds == 0) {
            self.fs.hold(ino)?;
        }
        let now = self.now;
        match self.entry(ino) {
            Ok(used) => used.holds += 1,
            Err(error) => {
                let _ = self.fs.release(ino, now);
                return Err(error);
            }
        }
        Ok(())
    }

    fn stat(&mut self, data: &D, ino: Ino, dev: u64) -> Result<Stat, Errno> {
        let inode = self.fs.inode(ino)?;
        let rdev = inode.device().map_or(Device::default(), |d| Device { major: d.major, minor: d.minor });
        let time = |sec| Timespec { sec, nsec: 0 };
        Ok(Stat {
            dev,
            ino: u64::from(ino.as_u32()),
            nlink: u32::from(inode.nlink()),
            mode: inode.mode(),
            uid: inode.uid(),
            gid: inode.gid(),
            rdev,
            size: self.data_of(ino).map_or(inode.size(), |id| data.size(id)),
            blocks: inode.sectors(),
            atime: time(inode.atime()),
            mtime: time(inode.mtime()),
            ctime: time(inode.ctime()),
        })
    }
}

impl<D: Data, P: Processes> Vfs<D, P> {
    /// The disk, for one who only looks.
    pub(crate) fn disk(&self, node: DiskNode) -> Result<RefMut<'_, Disk<D>>, Errno> {
        let disk = self.disks.get(node.disk as usize).and_then(Option::as_ref).ok_or(Errno::Enodev)?;
        disk.try_borrow_mut().map_err(|_| Errno::Eio)
    }

    /// The disk and the cache, for one who changes both.
    pub(crate) fn disk_mut(&mut self, node: DiskNode) -> Result<(&mut Disk<D>, &mut D), Errno> {
        let disk = self.disks.get_mut(node.disk as usize).and_then(Option::as_mut).ok_or(Errno::Enodev)?;
        Ok((disk.get_mut(), &mut self.data))
    }

    /// The file system that a file is in, for who moves its bytes: page cache and writeback.
    ///
    /// # Errors
    /// `ENODEV` if it is not mounted any more.
    pub fn ext2(&mut self, node: DiskNode) -> Result<(&mut Ext2<D::Device>, Ino), Errno> {
        let (disk, _) = self.disk_mut(node)?;
        Ok((&mut disk.fs, node.ino))
    }

    /// What mount(2)'s source names.
    fn source(&self, context: &Context, source: &[u8]) -> Result<Source<D::Id>, Errno> {
        let place = self.lookup(context, context.cwd, source, Follow::Yes)?;
        let Node::Inode(id) = place.node else { return Err(Errno::Enotblk) };
        match self.inode(id).map(|inode| &inode.content) {
            Some(Content::Block(device)) => Ok(Source::Block(*device)),
            Some(Content::File(data)) => Ok(Source::File(*data)),
            _ => Err(Errno::Enotblk),
        }
    }

    /// Mounts a disk, or finds it mounted: its number, which is that of its file system (Linux: `mount_bdev`).
    pub(crate) fn mount_disk(
        &mut self,
        context: &Context,
        source: &[u8],
        read_only: bool,
    ) -> Result<(u32, Node), Errno> {
        let source = self.source(context, source)?;
        let access = if read_only { Access::ReadOnly } else { Access::ReadWrite };
        for (index, disk) in (0..).zip(&mut self.disks) {
            if let Some(disk) = disk.as_mut().map(RefCell::get_mut)
                && disk.source == source
            {
                let same = disk.fs.access() == access;
                return if same { Ok((index, root_of(index))) } else { Err(Errno::Ebusy) };
            }
        }
        let index = self.supers.iter().position(Option::is_none).unwrap_or(self.supers.len());
        let device = self.data.device(source)?;
        let fs = Ext2::mount(device, access, context.now.sec)?;
        let disk = Disk { fs, source, files: Vec::new(), parents: Vec::new(), now: context.now.sec };
        if index >= self.disks.len() {
            self.disks.try_reserve(index + 1 - self.disks.len()).map_err(no_memory)?;
            self.disks.resize_with(index + 1, || None);
        }
        if let Some(slot) = self.disks.get_mut(index) {
            *slot = Some(RefCell::new(disk));
        }
        let index = u32::try_from(index).map_err(|_| Errno::Enospc)?;
        Ok((index, root_of(index)))
    }

    /// Writes everything of a disk and lets go of it (Linux: `kill_block_super`); it is gone, whatever the errors.
    pub(crate) fn unmount_disk(&mut self, index: u32) -> Result<(), Errno> {
        let flushed = self.flush_disk(index);
        let disk = self.disks.get_mut(index as usize).and_then(Option::take).map(RefCell::into_inner);
        let Some(mut disk) = disk else { return flushed };
        for id in disk.files.drain(..).filter_map(|used| used.data) {
            self.data.release(id);
        }
        let unmounted = disk.fs.unmount(disk.now);
        flushed.and(unmounted)
    }

    pub(crate) fn disk_is_read_only(&mut self, index: u32) -> bool {
        let disk = self.disks.get_mut(index as usize).and_then(Option::as_mut);
        disk.is_some_and(|disk| disk.get_mut().fs.access() == Access::ReadOnly)
    }

    /// Cached bytes go to the disk, then everything else.
    fn flush_disk(&mut self, index: u32) -> Result<(), Errno> {
        let Some(disk) = self.disks.get_mut(index as usize).and_then(Option::as_mut) else { return Ok(()) };
        let disk = disk.get_mut();
        let mut first = Ok(());
        for used in &disk.files {
            if let Some(id) = used.data {
                first = first.and(self.data.flush(&mut disk.fs, used.ino, id));
            }
        }
        first.and(disk.fs.sync(disk.now))
    }

    /// sync(2): all disks.
    ///
    /// # Errors
    /// `EIO`, `ENOSPC`: the first, after all was tried.
    pub fn sync(&mut self) -> Result<(), Errno> {
        let all = u32::try_from(self.disks.len()).unwrap_or(u32::MAX);
        let mut first = Ok(());
        for index in 0..all {
            let result = self.flush_disk(index);
            first = first.and(result);
        }
        first
    }

    /// Calls `f` for the cached bytes of each file of a disk (Linux: `iterate_supers` with the inodes of each).
    pub fn for_each_cached(&mut self, mut f: impl FnMut(D::Id)) {
        for disk in self.disks.iter_mut().flatten() {
            disk.get_mut().files.iter().filter_map(|used| used.data).for_each(&mut f);
        }
    }

    /// `EROFS` if the disk is not to be written.
    pub(crate) fn check_disk_writable(&self, node: DiskNode) -> Result<(), Errno> {
        if self.disk(node)?.fs.access() == Access::ReadOnly { Err(Errno::Erofs) } else { Ok(()) }
    }

    /// Keeps a file; what cannot be counted for want of memory goes with its last name.
    pub(crate) fn hold_disk(&mut self, node: DiskNode) {
        if let Ok((disk, _)) = self.disk_mut(node) {
            let _ = disk.hold(node.ino);
        }
    }

    pub(crate) fn put_disk(&mut self, node: DiskNode) {
        let Ok((disk, data)) = self.disk_mut(node) else { return };
        let Some(used) = disk.used_mut(node.ino).filter(|used| used.holds > 0) else { return };
        used.holds -= 1;
        if used.holds == 0 {
            disk.settle(data, node.ino);
            // Its error is kept below, and makes the file system read-only.
            let _ = disk.fs.release(node.ino, disk.now);
        }
    }

    pub(crate) fn disk_stat(&self, node: DiskNode, dev: u64) -> Result<Stat, Errno> {
        self.disk(node)?.stat(&self.data, node.ino, dev)
    }

    pub(crate) fn disk_mode(&self, node: DiskNode) -> Option<u32> {
        Some(self.disk(node).ok()?.fs.inode(node.ino).ok()?.mode())
    }

    pub(crate) fn disk_statfs(&self, node: DiskNode) -> Result<Statfs, Errno> {
        let told = self.disk(node)?.fs.statfs()?;
        Ok(Statfs {
            magic: told.magic,
            block: told.block,
            blocks: told.blocks,
            free: told.free,
            available: told.available,
            files: told.files,
            free_files: told.free_files,
            id: told.id,
            flags: 0,
        })
    }

    pub(crate) fn disk_child(&self, node: DiskNode, name: &[u8]) -> Result<Node, Errno> {
        let mut disk = self.disk(node)?;
        let found = disk.fs.lookup(node.ino, name)?;
        if !found.is_dir() {
            disk.remember(found.ino, node.ino);
        }
        Ok(Node::Disk(DiskNode { ino: found.ino, ..node }))
    }

    /// Whether a directory was removed but is held.
    pub(crate) fn disk_removed(&self, node: DiskNode) -> bool {
        self.disk(node).is_ok_and(|mut disk| disk.fs.inode(node.ino).is_ok_and(|inode| inode.nlink() == 0))
    }

    pub(crate) fn disk_parent(&self, node: DiskNode) -> DiskNode {
        let parent = || {
            let mut disk = self.disk(node).ok()?;
            let above = disk.fs.lookup(node.ino, b"..").ok().map(|inode| inode.ino);
            above.or_else(|| disk.used(node.ino)?.orphan.as_ref().map(|(dir, _)| *dir))
        };
        DiskNode { ino: parent().unwrap_or(node.ino), ..node }
    }

    pub(crate) fn disk_link(&self, node: DiskNode) -> Result<Option<Vec<u8>>, Errno> {
        let mut disk = self.disk(node)?;
        if !disk.fs.inode(node.ino)?.is_symlink() {
            return Ok(None);
        }
        disk.fs.read_link(node.ino).map(Some)
    }

    /// A name, its directory, and whether it is the last one of what has none any more.
    pub(crate) fn disk_name(&self, node: DiskNode) -> Option<(DiskNode, Vec<u8>, bool)> {
        let mut disk = self.disk(node).ok()?;
        if let Some((dir, name)) = disk.used(node.ino).and_then(|used| used.orphan.as_ref()) {
            return Some((DiskNode { ino: *dir, ..node }, copy(name).ok()?, true));
        }
        let is_dir = disk.fs.inode(node.ino).ok()?.is_dir();
        let dir = if is_dir {
            disk.fs.lookup(node.ino, b"..").ok()?.ino
        } else {
            let at = disk.parents.binary_search_by_key(&node.ino, |(of, _)| *of).ok()?;
            disk.parents.get(at)?.1
        };
        let mut found = None;
        let dots = |name: &[u8]| matches!(name, b"." | b"..");
        let listed = disk.fs.list(dir, 0, |entry| {
            if entry.ino == node.ino && !dots(entry.name) {
                found = copy(entry.name).ok();
            }
            found.is_none()
        });
        listed.ok()?;
        Some((DiskNode { ino: dir, ..node }, found?, false))
    }

    /// The bytes of a regular file, for who opens it.
    pub(crate) fn attach(&mut self, node: DiskNode) -> Result<D::Id, Errno> {
        let (disk, data) = self.disk_mut(node)?;
        if let Some(id) = disk.data_of(node.ino) {
            return Ok(id);
        }
        disk.entry(node.ino)?;
        let attached = data.attach(&mut disk.fs, node);
        match attached {
            Ok(id) => {
                if let Some(used) = disk.used_mut(node.ino) {
                    used.data = Some(id);
                }
                Ok(id)
            }
            Err(error) => {
                if disk.used(node.ino).is_some_and(|used| used.holds == 0) {
                    disk.remove(node.ino);
                }
                Err(error)
            }
        }
    }

    /// Its bytes were written: its size on the disk is theirs, and its times change.
    pub(crate) fn disk_written(&mut self, node: DiskNode, context: &Context) -> Result<(), Errno> {
        let (disk, data) = self.disk_mut(node)?;
        disk.now = context.now.sec;
        if let Some(id) = disk.data_of(node.ino) {
            disk.fs.extend(node.ino, data.size(id))?;
        }
        let now = Some(context.now.sec);
        disk.fs.update_time(node.ino, &Times { atime: None, mtime: now, ctime: now })
    }

    pub(crate) fn disk_accessed(&mut self, node: DiskNode, context: &Context) -> Result<(), Errno> {
        const DAY: i64 = 24 * 60 * 60;
        let (disk, _) = self.disk_mut(node)?;
        let inode = disk.fs.inode(node.ino)?;
        let now = context.now.sec;
        // Linux: `relatime_need_update`.
        let stale =
            inode.atime() <= inode.mtime() || inode.atime() <= inode.ctime() || now - inode.atime() >= DAY;
        // Linux: `atime_needs_update`, with the seconds that a disk has.
        if !stale || inode.atime() == now || disk.fs.access() == Access::ReadOnly {
            return Ok(());
        }
        disk.fs.update_time(node.ino, &Times { atime: Some(now), mtime: None, ctime: None })
    }

    pub(crate) fn disk_truncate(
        &mut self,
        node: DiskNode,
        size: u64,
        context: &Context,
    ) -> Result<(), Errno> {
        let (disk, data) = self.disk_mut(node)?;
        disk.now = context.now.sec;
        if disk.fs.access() == Access::ReadOnly {
            return Err(Errno::Erofs);
        }
        if size > disk.fs.max_size() {
            return Err(Errno::Efbig);
        }
        let Some(id) = disk.data_of(node.ino) else {
            return disk.fs.truncate(node.ino, size, context.now.sec);
        };
        // The cache first: nothing writes to a block that is free.
        data.set_size(id, size)?;
        disk.fs.set_size(node.ino, size, context.now.sec)
    }
}

/// The root directory of a disk.
fn root_of(disk: u32) -> Node {
    Node::Disk(DiskNode { disk, ino: Ino::ROOT })
}

impl<D: Data> Disk<D> {
    /// What nobody holds and nothing names loses its cached bytes; what is only not cached is forgotten.
    pub(crate) fn settle(&mut self, data: &mut D, ino: Ino) {
        let gone = self.fs.inode(ino).is_ok_and(|inode| inode.nlink() == 0);
        let Some(used) = self.used_mut(ino).filter(|used| used.holds == 0) else { return };
        let cached = if gone { used.data.take() } else { used.data };
        match cached {
            Some(id) if gone => data.release(id),
            Some(_) => return,
            None => {}
        }
        self.remove(ino);
    }
}
