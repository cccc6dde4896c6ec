//! Names that come and go: link, unlink, rmdir (Linux: fs/ext2/namei.c).

use crate::Errno;
use crate::buffers::Buffers;
use crate::create::{Caller, check_name};
use crate::dir::Found;
use crate::inode::{Ino, Inode};
use crate::layout::LINK_MAX;
use crate::mount::Ext2;

impl<B: Buffers> Ext2<B> {
    /// Another name for an inode.
    ///
    /// # Errors
    /// `EPERM` for a directory, `EMLINK` past 32000 names, `ENOENT` for one without names, and those of [`Ext2::create`].
    pub fn link(&mut self, caller: &Caller, ino: Ino, dir: Ino, name: &[u8]) -> Result<(), Errno> {
        let mut inode = self.inode(ino)?;
        if inode.is_dir() || inode.is_immutable() || inode.is_append_only() {
            return Err(Errno::Eperm);
        }
        let mut dir = self.dir_to_add(dir, name)?;
        if inode.nlink() == 0 {
            return Err(Errno::Enoent);
        }
        if inode.nlink() >= LINK_MAX {
            return Err(Errno::Emlink);
        }
        if self.find_entry(&dir, name)?.is_some() {
            return Err(Errno::Eexist);
        }
        let before = inode;
        inode.set_nlink(inode.nlink() + 1);
        inode.set_ctime(caller.now);
        // The count first: a crash leaves it too high, which loses a file no one misses, not too low.
        self.write_inode(&inode)?;
        self.add_entry(caller, &mut dir, name, &inode).inspect_err(|_| {
            let _ = self.write_inode(&before);
        })
    }

    /// What a removal is about (Linux: `may_delete`).
    pub(crate) fn victim(&mut self, dir: Ino, name: &[u8]) -> Result<(Inode, Found, Inode), Errno> {
        let dir = self.dir(dir)?;
        check_name(name)?;
        self.check_writable()?;
        let found = self.find_entry(&dir, name)?.ok_or(Errno::Enoent)?;
        let inode = self.named_inode(found.ino)?;
        let fixed = |inode: &Inode| inode.is_immutable() || inode.is_append_only();
        if fixed(&dir) || fixed(&inode) {
            return Err(Errno::Eperm);
        }
        Ok((dir, found, inode))
    }

    /// Removes a name of what is no directory; without names and holders it is deleted.
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`, `ENOTDIR`, `EPERM`, `EROFS`, `EIO`, `EUCLEAN`.
    pub fn unlink(&mut self, dir: Ino, name: &[u8], now: i64) -> Result<(), Errno> {
        let (mut dir, found, inode) = self.victim(dir, name)?;
        if inode.is_dir() {
            return Err(Errno::Eisdir);
        }
        self.delete_entry(&mut dir, found, now)?;
        self.drop_link(inode, 1, now)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENOTEMPTY`, `EBUSY` for the root, `EPERM`, `EROFS`, `EIO`, `EUCLEAN`.
    pub fn rmdir(&mut self, dir: Ino, name: &[u8], now: i64) -> Result<(), Errno> {
        let (mut dir, found, mut inode) = self.victim(dir, name)?;
        if !inode.is_dir() {
            return Err(Errno::Enotdir);
        }
        if inode.ino == Ino::ROOT || inode.ino == dir.ino {
            return Err(self.corrupt(Errno::Eio, "a directory names itself", u64::from(inode.ino.0)));
        }
        if !self.is_empty(&inode)? {
            return Err(Errno::Enotempty);
        }
        self.delete_entry(&mut dir, found, now)?;
        dir.set_nlink(dir.nlink().saturating_sub(1));
        self.write_inode(&dir)?;
        // Who still holds it finds no name in it, not even `..`.
        inode.set_size(0);
        let names = inode.nlink();
        self.drop_link(inode, names, now)
    }
}
