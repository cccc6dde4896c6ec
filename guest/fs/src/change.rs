//! Calls that change names: mkdir, mknod, symlink, link, unlink, rmdir, rename (Linux: fs/namei.c, fs/libfs.c, mm/shmem.c).

use guest_ext2::Replace;

use crate::device::Device;
use crate::dir::{Directory, copy};
use crate::disk::DiskNode;
use crate::disk_change::NewFile;
use crate::flags::{PATH_MAX, RenameFlags, mode};
use crate::inode::{Content, Inode, InodeId};
use crate::proc::Processes;
use crate::vfs::{Context, NewInode, Node, Place, Vfs};
use crate::walk::{Follow, Last, Parent};
use crate::{Data, Errno};

/// A path from a directory.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    /// What a path without a slash at its start begins at.
    pub base: Place,
    /// The path.
    pub path: &'a [u8],
}

/// What names a new inode: a directory may have slashes behind its name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Making {
    Directory,
    Other,
}

/// What rename found at one of its paths.
struct End {
    dir: InodeId,
    name: alloc::vec::Vec<u8>,
    id: Option<InodeId>,
}

impl<D: Data, P: Processes> Vfs<D, P> {
    /// The directory and the name of what is to be made (Linux: `filename_create`).
    fn making(&self, context: &Context, at: At<'_>, making: Making) -> Result<Parent, Errno> {
        let parent = self.parent_of(context, at.base, at.path, 0)?;
        if parent.last != Last::Name {
            return Err(Errno::Eexist);
        }
        match self.child(parent.dir, &parent.name) {
            Ok(_) => Err(Errno::Eexist),
            Err(Errno::Enoent) if parent.slashes && making == Making::Other => Err(Errno::Enoent),
            Err(Errno::Enoent) => Ok(parent),
            Err(error) => Err(error),
        }
    }

    fn make(
        &mut self,
        context: &Context,
        parent: &Parent,
        permissions: u32,
        content: Content<D::Id>,
    ) -> Result<(), Errno> {
        if let Node::Disk(dir) = parent.dir.node {
            let new = match &content {
                Content::Directory(_) => NewFile::Directory,
                Content::Symlink(target) => NewFile::Symlink(target),
                Content::Char(device) | Content::Block(device) => {
                    NewFile::Special(content.type_bits(), *device)
                }
                _ => NewFile::Special(content.type_bits(), Device::default()),
            };
            return self.disk_make(context, (dir, parent), permissions, new).map(drop);
        }
        let (dir, fs) = self.writable_dir(parent.dir)?;
        let id = self.new_inode(NewInode { fs, permissions, parent: Some(dir), content }, context)?;
        self.add_name(dir, &parent.name, id)?;
        self.touch_dir(dir, context.now);
        Ok(())
    }

    /// mkdir.
    ///
    /// # Errors
    /// Those of mkdir(2).
    pub fn mkdir(&mut self, context: &Context, at: At<'_>, permissions: u32) -> Result<(), Errno> {
        let parent = self.making(context, at, Making::Directory)?;
        // The sticky bit may be given, set-user-id and set-group-id may not (Linux: `vfs_mkdir`).
        let permissions = permissions & !context.umask & 0o1777;
        self.make(context, &parent, permissions, Content::Directory(Directory::new()))
    }

    /// mknod; `bits` has the type and the permissions.
    ///
    /// # Errors
    /// Those of mknod(2).
    pub fn mknod(&mut self, context: &Context, at: At<'_>, bits: u32, device: Device) -> Result<(), Errno> {
        let content = match bits & mode::S_IFMT {
            0 | mode::S_IFREG => None,
            mode::S_IFCHR => Some(Content::Char(device)),
            mode::S_IFBLK => Some(Content::Block(device)),
            mode::S_IFIFO => Some(Content::Fifo),
            mode::S_IFSOCK => Some(Content::Socket),
            mode::S_IFDIR => return Err(Errno::Eperm),
            _ => return Err(Errno::Einval),
        };
        let parent = self.making(context, at, Making::Other)?;
        let permissions = bits & mode::PERMISSIONS & !context.umask;
        if let Some(content) = content {
            return self.make(context, &parent, permissions, content);
        }
        self.create(context, &parent, permissions).map(drop)
    }

    /// symlink: `at` will lead to `target`.
    ///
    /// # Errors
    /// Those of symlink(2).
    pub fn symlink(&mut self, context: &Context, target: &[u8], at: At<'_>) -> Result<(), Errno> {
        if target.is_empty() {
            return Err(Errno::Enoent);
        }
        if target.len() >= PATH_MAX {
            return Err(Errno::Enametoolong);
        }
        let parent = self.making(context, at, Making::Other)?;
        self.make(context, &parent, 0o777, Content::Symlink(copy(target)?))
    }

    /// link: another name for what `from` names. `follow` says whether a symbolic link is meant itself.
    ///
    /// # Errors
    /// Those of link(2).
    pub fn link(&mut self, context: &Context, from: At<'_>, follow: Follow, to: At<'_>) -> Result<(), Errno> {
        let from = self.lookup(context, from.base, from.path, follow)?;
        self.link_place(context, from, to)
    }

    /// link of an open file (AT_EMPTY_PATH).
    ///
    /// # Errors
    /// Those of link(2).
    pub fn link_place(&mut self, context: &Context, from: Place, to: At<'_>) -> Result<(), Errno> {
        let parent = self.making(context, to, Making::Other)?;
        if from.mount != parent.dir.mount {
            return Err(Errno::Exdev);
        }
        if let (Node::Disk(file), Node::Disk(dir)) = (from.node, parent.dir.node) {
            return self.disk_hard_link(context, file, (dir, &parent));
        }
        let Node::Inode(id) = from.node else { return Err(Errno::Eperm) };
        let (dir, _) = self.writable_dir(parent.dir)?;
        let inode = self.inode(id).ok_or(Errno::Enoent)?;
        if inode.is_dir() {
            return Err(Errno::Eperm);
        }
        if inode.nlink == 0 {
            return Err(Errno::Enoent);
        }
        self.add_name(dir, &parent.name, id)?;
        self.touch_dir(dir, context.now);
        if let Some(inode) = self.inode_mut(id) {
            inode.ctime = context.now;
        }
        Ok(())
    }

    /// The inode that a removal is about; `EBUSY` if something is mounted there.
    fn victim(&self, parent: &Parent) -> Result<(InodeId, InodeId), Errno> {
        let place = self.child(parent.dir, &parent.name)?;
        // /proc's entries come and go with processes (Linux: EPERM, its directories have no unlink).
        let Node::Inode(dir) = parent.dir.node else { return Err(Errno::Eperm) };
        if place.mount != parent.dir.mount {
            return Err(Errno::Ebusy);
        }
        let Node::Inode(id) = place.node else { return Err(Errno::Eperm) };
        Ok((dir, id))
    }

    /// unlink.
    ///
    /// # Errors
    /// Those of unlink(2).
    pub fn unlink(&mut self, context: &Context, at: At<'_>) -> Result<(), Errno> {
        let parent = self.parent_of(context, at.base, at.path, 0)?;
        if parent.last != Last::Name {
            return Err(Errno::Eisdir);
        }
        if parent.slashes {
            let place = self.child(parent.dir, &parent.name)?;
            return Err(if self.is_dir(place) { Errno::Eisdir } else { Errno::Enotdir });
        }
        let found = self.child(parent.dir, &parent.name)?;
        if self.is_dir(found) {
            return Err(Errno::Eisdir);
        }
        if let (Node::Disk(dir), true) = (parent.dir.node, found.mount == parent.dir.mount) {
            return self.disk_unlink(context, dir, &parent.name);
        }
        let (dir, _) = self.victim(&parent)?;
        self.remove_name(dir, &parent.name, context.now);
        Ok(())
    }

    /// rmdir.
    ///
    /// # Errors
    /// Those of rmdir(2).
    pub fn rmdir(&mut self, context: &Context, at: At<'_>) -> Result<(), Errno> {
        let parent = self.parent_of(context, at.base, at.path, 0)?;
        match parent.last {
            Last::Name => {}
            Last::DotDot => return Err(Errno::Enotempty),
            Last::Dot => return Err(Errno::Einval),
            Last::Root => return Err(Errno::Ebusy),
        }
        if let Node::Disk(dir) = parent.dir.node {
            let place = self.child(parent.dir, &parent.name)?;
            if place.mount != parent.dir.mount {
                return Err(Errno::Ebusy);
            }
            return self.disk_rmdir(context, dir, &parent.name);
        }
        let (dir, id) = self.victim(&parent)?;
        let names = self.inode(id).and_then(Inode::dir).ok_or(Errno::Enotdir)?;
        if self.is_mountpoint(id) {
            return Err(Errno::Ebusy);
        }
        if !names.is_empty() {
            return Err(Errno::Enotempty);
        }
        self.remove_name(dir, &parent.name, context.now);
        Ok(())
    }

    fn is_mountpoint(&self, id: InodeId) -> bool {
        self.mounts.iter().flatten().any(|mount| mount.at.is_some_and(|at| at.node == Node::Inode(id)))
    }

    /// rename, renameat2.
    ///
    /// # Errors
    /// Those of rename(2).
    pub fn rename(
        &mut self,
        context: &Context,
        from: At<'_>,
        to: At<'_>,
        flags: RenameFlags,
    ) -> Result<(), Errno> {
        let (no_replace, exchange) =
            (flags.contains(RenameFlags::NOREPLACE), flags.contains(RenameFlags::EXCHANGE));
        if !RenameFlags::all().contains(flags) || (no_replace && exchange) {
            return Err(Errno::Einval);
        }
        let old = self.parent_of(context, from.base, from.path, 0)?;
        let new = self.parent_of(context, to.base, to.path, 0)?;
        if old.dir.mount != new.dir.mount {
            return Err(Errno::Exdev);
        }
        if old.last != Last::Name {
            return Err(Errno::Ebusy);
        }
        if new.last != Last::Name {
            return Err(if no_replace { Errno::Eexist } else { Errno::Ebusy });
        }
        if let (Node::Disk(old_dir), Node::Disk(new_dir)) = (old.dir.node, new.dir.node) {
            return self.disk_move(context, (old_dir, &old), (new_dir, &new), flags);
        }
        let (Node::Inode(old_dir), Node::Inode(new_dir)) = (old.dir.node, new.dir.node) else {
            return Err(Errno::Eperm);
        };
        let (_, source) = self.rename_end(&old)?;
        let source = source.ok_or(Errno::Enoent)?;
        let (busy, target) = self.rename_end(&new)?;
        if no_replace && target.is_some() {
            return Err(Errno::Eexist);
        }
        let is_dir = |id: InodeId| self.inode(id).is_some_and(Inode::is_dir);
        if exchange {
            let target = target.ok_or(Errno::Enoent)?;
            if !is_dir(target) && new.slashes {
                return Err(Errno::Enotdir);
            }
        }
        if !is_dir(source) && (old.slashes || (!exchange && new.slashes)) {
            return Err(Errno::Enotdir);
        }
        if self.is_above(source, new_dir) {
            return Err(Errno::Einval);
        }
        if target.is_some_and(|target| self.is_above(target, old_dir)) {
            return Err(if exchange { Errno::Einval } else { Errno::Enotempty });
        }
        if target == Some(source) {
            return Ok(());
        }
        self.writable_dir(new.dir)?;
        if let Some(target) = target.filter(|_| !exchange) {
            match (is_dir(source), is_dir(target)) {
                (true, false) => return Err(Errno::Enotdir),
                (false, true) => return Err(Errno::Eisdir),
                _ => {}
            }
        }
        if busy || self.is_mountpoint(source) || target.is_some_and(|target| self.is_mountpoint(target)) {
            return Err(Errno::Ebusy);
        }
        let old = End { dir: old_dir, name: old.name, id: Some(source) };
        let new = End { dir: new_dir, name: new.name, id: target };
        if exchange { self.exchange(context, &old, &new) } else { self.move_name(context, &old, &new) }
    }

    /// rename on a disk.
    fn disk_move(
        &mut self,
        context: &Context,
        (old_dir, old): (DiskNode, &Parent),
        (new_dir, new): (DiskNode, &Parent),
        flags: RenameFlags,
    ) -> Result<(), Errno> {
        let source = self.child(old.dir, &old.name)?;
        let target = match self.child(new.dir, &new.name) {
            Ok(place) => Some(place),
            Err(Errno::Enoent) if new.dir == old.dir || !self.disk_removed(new_dir) => None,
            Err(error) => return Err(error),
        };
        if flags.contains(RenameFlags::NOREPLACE) && target.is_some() {
            return Err(Errno::Eexist);
        }
        // Linux: `ext2_rename`.
        if flags.contains(RenameFlags::EXCHANGE) {
            return Err(Errno::Einval);
        }
        if !self.is_dir(source) && (old.slashes || new.slashes) {
            return Err(Errno::Enotdir);
        }
        let covered = |place: Place| place.mount != old.dir.mount;
        if covered(source) || target.is_some_and(covered) {
            return Err(Errno::Ebusy);
        }
        self.disk_rename(context, (old_dir, &old.name), (new_dir, &new.name), Replace::Yes)
    }

    /// Whether something is mounted there, and the inode below it.
    fn rename_end(&self, parent: &Parent) -> Result<(bool, Option<InodeId>), Errno> {
        let Node::Inode(dir) = parent.dir.node else { return Err(Errno::Eperm) };
        self.check_name(parent.dir, &parent.name)?;
        let id = self.inode(dir).and_then(Inode::dir).and_then(|names| names.get(&parent.name));
        let covered =
            |id| self.mounted_on(Place { mount: parent.dir.mount, node: Node::Inode(id) }).is_some();
        Ok((id.is_some_and(covered), id))
    }

    /// Whether `above` is `below`, or a directory on the way from it to the root.
    fn is_above(&self, above: InodeId, below: InodeId) -> bool {
        let mut at = below;
        loop {
            if at == above {
                return true;
            }
            match self.inode(at) {
                Some(inode) if inode.parent != at => at = inode.parent,
                _ => return false,
            }
        }
    }

    fn move_name(&mut self, context: &Context, old: &End, new: &End) -> Result<(), Errno> {
        let source = old.id.ok_or(Errno::Enoent)?;
        if let Some(target) = new.id {
            if self.inode(target).and_then(Inode::dir).is_some_and(|names| !names.is_empty()) {
                return Err(Errno::Enotempty);
            }
            let name = copy(&new.name)?;
            // The new name leads to the source at every moment from here on.
            if let Some(names) = self.inode_mut(new.dir).and_then(Inode::dir_mut) {
                names.replace(&new.name, source);
            }
            self.unname(new.dir, target, name, context.now);
        } else {
            let names = self.inode_mut(new.dir).and_then(Inode::dir_mut).ok_or(Errno::Enotdir)?;
            names.insert(&new.name, source)?;
        }
        if let Some(names) = self.inode_mut(old.dir).and_then(Inode::dir_mut) {
            names.remove(&old.name);
        }
        self.move_parent(context, source, old.dir, new.dir);
        Ok(())
    }

    /// The counts of an inode that went from one directory to another.
    fn move_parent(&mut self, context: &Context, id: InodeId, from: InodeId, to: InodeId) {
        let mut is_dir = false;
        if let Some(inode) = self.inode_mut(id) {
            is_dir = inode.is_dir();
            inode.parent = to;
            inode.ctime = context.now;
        }
        if is_dir && let Some(dir) = self.inode_mut(from) {
            dir.nlink -= 1;
        }
        if is_dir && let Some(dir) = self.inode_mut(to) {
            dir.nlink += 1;
        }
        self.touch_dir(from, context.now);
        self.touch_dir(to, context.now);
    }

    fn exchange(&mut self, context: &Context, old: &End, new: &End) -> Result<(), Errno> {
        let (source, target) = (old.id.ok_or(Errno::Enoent)?, new.id.ok_or(Errno::Enoent)?);
        for (end, id) in [(old, target), (new, source)] {
            if let Some(names) = self.inode_mut(end.dir).and_then(Inode::dir_mut) {
                names.replace(&end.name, id);
            }
        }
        self.move_parent(context, source, old.dir, new.dir);
        self.move_parent(context, target, new.dir, old.dir);
        Ok(())
    }
}
