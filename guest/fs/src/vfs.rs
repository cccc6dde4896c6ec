//! The file systems, what is mounted where, and who holds what (Linux: fs/namespace.c, fs/dcache.c, fs/super.c).
//!
//! Invariants, checked by [`Vfs::audit`] with those of `inode.rs` and `dir.rs`:
//! F1  every inode is named as often as `nlink` says, by directories of its own file system;
//! F2  a mount's `holds` is the sum of holds of places in it and of mounts on it;
//! F3  a mount lies on a directory of another mount that exists, and no two lie on the same place.

use alloc::vec::Vec;
use core::cell::RefCell;

use crate::dir::{Directory, copy};
use crate::disk::{Disk, DiskNode};
use crate::inode::{Content, Inode, InodeId, Timespec};
use crate::proc::{self, Processes};
use crate::{Data, Device, Errno, device, no_memory};

/// Number of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MountId(pub(crate) u32);

/// What a walk arrives at, inside a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// An inode of a tmpfs.
    Inode(InodeId),
    /// A file of /proc.
    Proc(proc::Node),
    /// A file of a disk.
    Disk(DiskNode),
}

/// Where something is (Linux: `struct path`). A place that is kept is held by [`Vfs::hold`]: while it is not, the inode may
/// become another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// In which mount.
    pub mount: MountId,
    /// Which file.
    pub node: Node,
}

/// The kinds of file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsKind {
    /// The first root, from the initramfs.
    Rootfs,
    /// Files in memory.
    Tmpfs,
    /// The nodes of devices; one for all who mount it.
    Devtmpfs,
    /// Processes.
    Proc,
    /// Pipes; nobody mounts it.
    Pipefs,
    /// Files on a disk.
    Ext2,
}

impl FsKind {
    /// Its name for mount(2) and /proc/mounts.
    pub const fn name(self) -> &'static str {
        match self {
            FsKind::Rootfs => "rootfs",
            FsKind::Tmpfs => "tmpfs",
            FsKind::Devtmpfs => "devtmpfs",
            FsKind::Proc => "proc",
            FsKind::Pipefs => "pipefs",
            FsKind::Ext2 => "ext2",
        }
    }

    /// The kind that mount(2) names.
    pub fn of(name: &[u8]) -> Option<FsKind> {
        Some(match name {
            b"tmpfs" | b"ramfs" => FsKind::Tmpfs,
            b"devtmpfs" => FsKind::Devtmpfs,
            b"proc" => FsKind::Proc,
            b"ext2" => FsKind::Ext2,
            _ => return None,
        })
    }
}

/// A file system (Linux: `struct super_block`).
#[derive(Debug)]
pub(crate) struct Fs {
    pub(crate) kind: FsKind,
    pub(crate) root: Node,
    pub(crate) mounts: u32,
}

/// A mount.
#[derive(Debug)]
pub(crate) struct Mount {
    pub(crate) fs: u32,
    pub(crate) root: Node,
    /// What it lies on; `None` for the root, for what nobody can reach, and for what was detached.
    pub(crate) at: Option<Place>,
    pub(crate) holds: u32,
    pub(crate) source: Vec<u8>,
    pub(crate) flags: u64,
}

/// Who calls, and from where (Linux: `struct fs_struct`, `struct cred`).
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// The process's root directory.
    pub root: Place,
    /// Its working directory.
    pub cwd: Place,
    /// Bits that new files do not get.
    pub umask: u32,
    /// Owner of new files.
    pub uid: u32,
    /// Group of new files.
    pub gid: u32,
    /// The time.
    pub now: Timespec,
}

/// All file systems.
#[derive(Debug)]
pub struct Vfs<D: Data, P> {
    /// Bytes of regular files.
    pub data: D,
    /// Processes, for /proc. What it does with locks, it does under the file system's.
    pub processes: P,
    pub(crate) inodes: Vec<Option<Inode<D::Id>>>,
    pub(crate) free: Vec<u32>,
    pub(crate) next_number: u64,
    pub(crate) supers: Vec<Option<Fs>>,
    pub(crate) mounts: Vec<Option<Mount>>,
    /// Disks, which /dev has from its start.
    pub(crate) disk_nodes: Vec<(Vec<u8>, Device)>,
    /// By the number of their file systems. Cells, because who only looks reads through buffers, too.
    pub(crate) disks: Vec<Option<RefCell<Disk<D>>>>,
}

/// What is asked for a new inode.
#[derive(Debug)]
pub(crate) struct NewInode<Id> {
    pub(crate) fs: u32,
    pub(crate) permissions: u32,
    pub(crate) parent: Option<InodeId>,
    pub(crate) content: Content<Id>,
}

/// The mount of the first root.
pub const ROOT_MOUNT: MountId = MountId(0);
/// The mount of pipes.
pub(crate) const PIPE_MOUNT: MountId = MountId(1);
/// The mount of files without a place: memfd, shared memory.
pub(crate) const SHM_MOUNT: MountId = MountId(2);
const MAX_MOUNTS: usize = 256;

impl<D: Data, P: Processes> Vfs<D, P> {
    /// An empty root, and what has no place in it.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn new(data: D, processes: P, now: Timespec) -> Result<Self, Errno> {
        let mut vfs = Vfs {
            data,
            processes,
            inodes: Vec::new(),
            free: Vec::new(),
            next_number: 1,
            supers: Vec::new(),
            mounts: Vec::new(),
            disk_nodes: Vec::new(),
            disks: Vec::new(),
        };
        for kind in [FsKind::Rootfs, FsKind::Pipefs, FsKind::Tmpfs] {
            let fs = vfs.new_fs(kind, 0o755, now)?;
            vfs.new_mount(fs, None, b"none", 0)?;
        }
        Ok(vfs)
    }

    /// A disk, of which a devtmpfs that is made from now on has a node.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn add_disk(&mut self, name: &[u8], device: Device) -> Result<(), Errno> {
        let mut owned = Vec::new();
        owned.try_reserve_exact(name.len()).map_err(no_memory)?;
        owned.extend_from_slice(name);
        self.disk_nodes.try_reserve(1).map_err(no_memory)?;
        self.disk_nodes.push((owned, device));
        Ok(())
    }

    /// The first root.
    pub fn root(&self) -> Place {
        self.root_of(ROOT_MOUNT).unwrap_or(Place { mount: ROOT_MOUNT, node: Node::Inode(InodeId(0)) })
    }

    /// Who calls from the first root with no mask.
    pub fn kernel_context(&self, now: Timespec) -> Context {
        Context { root: self.root(), cwd: self.root(), umask: 0, uid: 0, gid: 0, now }
    }

    /// The inode, if it is there.
    pub fn inode(&self, id: InodeId) -> Option<&Inode<D::Id>> {
        self.inodes.get(id.0 as usize)?.as_ref()
    }

    pub(crate) fn inode_mut(&mut self, id: InodeId) -> Option<&mut Inode<D::Id>> {
        self.inodes.get_mut(id.0 as usize)?.as_mut()
    }

    pub(crate) fn mount_of(&self, id: MountId) -> Option<&Mount> {
        self.mounts.get(id.0 as usize)?.as_ref()
    }

    pub(crate) fn mount_mut(&mut self, id: MountId) -> Option<&mut Mount> {
        self.mounts.get_mut(id.0 as usize)?.as_mut()
    }

    pub(crate) fn fs_of(&self, mount: MountId) -> Option<&Fs> {
        self.supers.get(self.mount_of(mount)?.fs as usize)?.as_ref()
    }

    /// `st_dev` of what lies in the mount. Numbers of file systems without a device begin at 1 (Linux: `get_anon_bdev`).
    pub(crate) fn device_of(&self, mount: MountId) -> u64 {
        self.mount_of(mount).map_or(0, |mount| u64::from(mount.fs) + 1)
    }

    pub(crate) fn root_of(&self, mount: MountId) -> Option<Place> {
        Some(Place { mount, node: self.mount_of(mount)?.root })
    }

    /// Makes an inode that nothing names or holds yet.
    pub(crate) fn new_inode(&mut self, new: NewInode<D::Id>, context: &Context) -> Result<InodeId, Errno> {
        let id = match self.free.pop() {
            Some(id) => id,
            None => {
                // Room to give it back is taken now: giving back cannot fail.
                let all = self.inodes.len() + 1;
                self.free.try_reserve(all - self.free.len()).map_err(no_memory)?;
                self.inodes.try_reserve(1).map_err(no_memory)?;
                let id = u32::try_from(self.inodes.len()).map_err(|_| Errno::Enospc)?;
                self.inodes.push(None);
                id
            }
        };
        let id = InodeId(id);
        let inherited = new.parent.and_then(|parent| self.inode(parent)).and_then(|parent| {
            use crate::flags::mode::S_ISGID;
            (parent.permissions & S_ISGID != 0).then_some((parent.gid, S_ISGID))
        });
        let is_dir = matches!(new.content, Content::Directory(_));
        let (gid, setgid) = inherited.unwrap_or((context.gid, 0));
        let inode = Inode {
            number: self.next_number,
            fs: new.fs,
            permissions: new.permissions | if is_dir { setgid } else { 0 },
            uid: context.uid,
            gid,
            nlink: 0,
            holds: 0,
            parent: new.parent.unwrap_or(id),
            orphan: None,
            atime: context.now,
            mtime: context.now,
            ctime: context.now,
            content: new.content,
        };
        self.next_number += 1;
        if let Some(slot) = self.inodes.get_mut(id.0 as usize) {
            *slot = Some(inode);
        }
        Ok(id)
    }

    /// Frees the inode if nothing names or holds it; then a removed directory that only it held, and so on.
    pub(crate) fn drop_unused(&mut self, mut id: InodeId) {
        let unused = |inode: &&Inode<D::Id>| inode.nlink == 0 && inode.holds == 0;
        while self.inode(id).filter(unused).is_some() {
            let Some(gone) = self.inodes.get_mut(id.0 as usize).and_then(Option::take) else { return };
            // new_inode made room.
            self.free.push(id.0);
            if let Content::File(data) = gone.content {
                self.data.release(data);
            }
            if gone.orphan.is_none() {
                return;
            }
            id = gone.parent;
            if let Some(parent) = self.inode_mut(id) {
                parent.holds = parent.holds.saturating_sub(1);
            }
        }
    }

    /// What has no name any more but is held keeps its last name, and its directory, for `..` and for those who ask for its path.
    pub(crate) fn orphan(&mut self, id: InodeId, dir: InodeId, name: Vec<u8>) {
        if let Some(inode) = self.inode_mut(id) {
            inode.orphan = Some(name);
            inode.parent = dir;
        }
        if let Some(parent) = self.inode_mut(dir) {
            parent.holds += 1;
        }
    }

    /// Keeps the place alive until [`Vfs::put`].
    pub fn hold(&mut self, place: Place) {
        if let Some(mount) = self.mount_mut(place.mount) {
            mount.holds += 1;
        }
        match place.node {
            Node::Inode(id) => {
                if let Some(inode) = self.inode_mut(id) {
                    inode.holds += 1;
                }
            }
            Node::Disk(node) => self.hold_disk(node),
            Node::Proc(_) => {}
        }
    }

    /// Gives up a [`Vfs::hold`]: what has no name and no other holder is gone.
    pub fn put(&mut self, place: Place) {
        match place.node {
            Node::Inode(id) => {
                if let Some(inode) = self.inode_mut(id) {
                    inode.holds = inode.holds.saturating_sub(1);
                }
                self.drop_unused(id);
            }
            Node::Disk(node) => self.put_disk(node),
            Node::Proc(_) => {}
        }
        if let Some(mount) = self.mount_mut(place.mount) {
            mount.holds = mount.holds.saturating_sub(1);
            if mount.holds == 0 && mount.at.is_none() && place.mount > SHM_MOUNT {
                self.drop_mount(place.mount);
            }
        }
    }

    pub(crate) fn new_fs(&mut self, kind: FsKind, permissions: u32, now: Timespec) -> Result<u32, Errno> {
        let free = self.supers.iter().position(Option::is_none);
        let index = free.unwrap_or(self.supers.len());
        if free.is_none() {
            self.supers.try_reserve(1).map_err(no_memory)?;
            self.supers.push(None);
        }
        let index = u32::try_from(index).map_err(|_| Errno::Enospc)?;
        let root = match kind {
            FsKind::Proc => Node::Proc(proc::Node::Root),
            _ => {
                let nobody = Place { mount: ROOT_MOUNT, node: Node::Proc(proc::Node::Root) };
                let context = Context { root: nobody, cwd: nobody, umask: 0, uid: 0, gid: 0, now };
                let content = Content::Directory(Directory::new());
                let id =
                    self.new_inode(NewInode { fs: index, permissions, parent: None, content }, &context)?;
                if let Some(inode) = self.inode_mut(id) {
                    inode.nlink = 2;
                }
                if kind == FsKind::Devtmpfs {
                    self.fill_devices(id, index, &context)?;
                }
                Node::Inode(id)
            }
        };
        if let Some(slot) = self.supers.get_mut(index as usize) {
            *slot = Some(Fs { kind, root, mounts: 0 });
        }
        Ok(index)
    }

    fn fill_devices(&mut self, dir: InodeId, fs: u32, context: &Context) -> Result<(), Errno> {
        for (name, number, permissions) in device::NODES {
            let new = NewInode { fs, permissions, parent: Some(dir), content: Content::Char(number) };
            let id = self.new_inode(new, context)?;
            self.add_name(dir, name.as_bytes(), id)?;
        }
        let disks = core::mem::take(&mut self.disk_nodes);
        let made = disks.iter().try_for_each(|(name, number)| {
            // Linux: `block_devnode` leaves the mode to devtmpfs, which gives 0600.
            let content = Content::Block(*number);
            let id =
                self.new_inode(NewInode { fs, permissions: 0o600, parent: Some(dir), content }, context)?;
            self.add_name(dir, name, id)
        });
        self.disk_nodes = disks;
        made?;
        // Differs from Linux: there the first program makes it, and mounts a tmpfs on it. Here shm_open works without.
        let content = Content::Directory(Directory::new());
        let new = NewInode { fs, permissions: 0o1777, parent: Some(dir), content };
        let id = self.new_inode(new, context)?;
        self.add_name(dir, b"shm", id)
    }

    /// `st_dev` of files without a place: memfds, shared memory.
    pub fn nameless_device(&self) -> u64 {
        self.device_of(SHM_MOUNT)
    }

    /// A file system on a disk.
    pub(crate) fn new_disk_fs(
        &mut self,
        context: &Context,
        source: &[u8],
        read_only: bool,
    ) -> Result<u32, Errno> {
        if self.supers.iter().all(Option::is_some) {
            self.supers.try_reserve(1).map_err(no_memory)?;
        }
        let (index, root) = self.mount_disk(context, source, read_only)?;
        if index as usize >= self.supers.len() {
            self.supers.push(None);
        }
        if let Some(slot @ None) = self.supers.get_mut(index as usize) {
            *slot = Some(Fs { kind: FsKind::Ext2, root, mounts: 0 });
        }
        Ok(index)
    }

    /// Mounts the file system; the place is covered.
    pub(crate) fn new_mount(
        &mut self,
        fs: u32,
        at: Option<Place>,
        source: &[u8],
        flags: u64,
    ) -> Result<MountId, Errno> {
        let root = self.supers.get(fs as usize).and_then(Option::as_ref).ok_or(Errno::Enodev)?.root;
        let source = copy(source)?;
        let free = self.mounts.iter().position(Option::is_none);
        let index = free.unwrap_or(self.mounts.len());
        if free.is_none() {
            if index >= MAX_MOUNTS {
                return Err(Errno::Enospc);
            }
            self.mounts.try_reserve(1).map_err(no_memory)?;
            self.mounts.push(None);
        }
        let id = MountId(u32::try_from(index).map_err(|_| Errno::Enospc)?);
        if let Some(slot) = self.mounts.get_mut(index) {
            *slot = Some(Mount { fs, root, at, holds: 0, source, flags });
        }
        if let Some(Some(fs)) = self.supers.get_mut(fs as usize) {
            fs.mounts += 1;
        }
        if let Some(place) = at {
            self.hold(place);
        }
        Ok(id)
    }

    /// Removes a mount that nothing is in and nothing reaches, and its file system if it was the last.
    pub(crate) fn drop_mount(&mut self, id: MountId) {
        let Some(mount) = self.mounts.get_mut(id.0 as usize).and_then(Option::take) else { return };
        let Some(Some(fs)) = self.supers.get_mut(mount.fs as usize) else { return };
        fs.mounts = fs.mounts.saturating_sub(1);
        // Devices stay as they were made, as in Linux.
        if fs.mounts == 0 && fs.kind != FsKind::Devtmpfs {
            let root = fs.root;
            if let Some(slot) = self.supers.get_mut(mount.fs as usize) {
                *slot = None;
            }
            match root {
                Node::Inode(root) => self.free_tree(root),
                // umount wrote everything before and told of errors.
                Node::Disk(_) => drop(self.unmount_disk(mount.fs)),
                Node::Proc(_) => {}
            }
        }
    }

    /// Frees a whole file system, one name at a time.
    fn free_tree(&mut self, root: InodeId) {
        let mut at = root;
        loop {
            let popped = self.inode_mut(at).and_then(Inode::dir_mut).and_then(Directory::pop);
            match popped {
                Some(child) if self.inode(child).is_some_and(Inode::is_dir) => {
                    // Its own names first; its parent is where it was popped from.
                    at = child;
                }
                Some(child) => {
                    if let Some(inode) = self.inode_mut(child) {
                        inode.nlink = inode.nlink.saturating_sub(1);
                    }
                    self.drop_unused(child);
                }
                None => {
                    let parent = self.inode(at).map_or(at, |inode| inode.parent);
                    if let Some(inode) = self.inode_mut(at) {
                        inode.nlink = 0;
                    }
                    self.drop_unused(at);
                    if at == root {
                        return;
                    }
                    at = parent;
                }
            }
        }
    }

    /// Gives an inode a name, which must not be there.
    pub(crate) fn add_name(&mut self, dir: InodeId, name: &[u8], id: InodeId) -> Result<(), Errno> {
        let parent = self.inode_mut(dir).and_then(Inode::dir_mut).ok_or(Errno::Enotdir);
        if let Err(error) = parent.and_then(|parent| parent.insert(name, id)) {
            self.drop_unused(id);
            return Err(error);
        }
        let mut is_dir = false;
        if let Some(inode) = self.inode_mut(id) {
            is_dir = inode.is_dir();
            inode.nlink += if is_dir { 2 } else { 1 };
            inode.parent = dir;
        }
        if is_dir && let Some(parent) = self.inode_mut(dir) {
            parent.nlink += 1;
        }
        Ok(())
    }

    /// Takes a name away; the inode lives on while it is held or has others.
    pub(crate) fn remove_name(&mut self, dir: InodeId, name: &[u8], now: Timespec) {
        let removed = self.inode_mut(dir).and_then(Inode::dir_mut).and_then(|names| names.remove(name));
        if let Some(slot) = removed {
            self.unname(dir, slot.inode, slot.name, now);
        }
    }

    /// The counts of a name that is gone.
    pub(crate) fn unname(&mut self, dir: InodeId, id: InodeId, name: Vec<u8>, now: Timespec) {
        let Some(inode) = self.inode_mut(id) else { return };
        let is_dir = inode.is_dir();
        inode.nlink = if is_dir { 0 } else { inode.nlink.saturating_sub(1) };
        inode.ctime = now;
        let orphaned = inode.nlink == 0 && inode.holds > 0;
        if let Some(parent) = self.inode_mut(dir) {
            parent.nlink -= u32::from(is_dir);
        }
        self.touch_dir(dir, now);
        if orphaned {
            self.orphan(id, dir, name);
        } else {
            self.drop_unused(id);
        }
    }

    /// A directory's names changed.
    pub(crate) fn touch_dir(&mut self, dir: InodeId, now: Timespec) {
        if let Some(inode) = self.inode_mut(dir) {
            (inode.mtime, inode.ctime) = (now, now);
        }
    }

    /// Inodes that exist.
    pub fn inodes_in_use(&self) -> usize {
        self.inodes.iter().flatten().count()
    }
}
