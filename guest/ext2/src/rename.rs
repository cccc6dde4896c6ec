//! rename (Linux: fs/ext2/namei.c, `ext2_rename`; what fs/namei.c checks before).

use crate::Errno;
use crate::buffers::Buffers;
use crate::create::{Caller, check_name};
use crate::inode::{Ino, Inode};
use crate::layout::LINK_MAX;
use crate::mount::Ext2;

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub struct Name<'a> {
    /// The directory.
    pub dir: Ino,
    /// The name.
    pub name: &'a [u8],
}

/// What rename does if the new name is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// It names the old file from then on.
    Yes,
    /// `EEXIST` (`RENAME_NOREPLACE`).
    No,
}

impl<B: Buffers> Ext2<B> {
    /// Gives what `from` names the name `to`. Two names never change places here: `RENAME_EXCHANGE` is the caller's to refuse
    /// with `EINVAL`, as in Linux.
    ///
    /// # Errors
    /// Those of rename(2): `ENOENT`, `EEXIST`, `ENOTDIR`, `EISDIR`, `ENOTEMPTY`, `EINVAL` for a directory into itself, `EMLINK`,
    /// `ENOSPC`, `EPERM`, `EROFS`, `EIO`, `EUCLEAN`.
    pub fn rename(
        &mut self,
        caller: &Caller,
        from: Name<'_>,
        to: Name<'_>,
        replace: Replace,
    ) -> Result<(), Errno> {
        let (_, _, source) = self.victim(from.dir, from.name)?;
        let new_dir = self.dir_to_add(to.dir, to.name)?;
        check_name(to.name)?;
        let target = match self.find_entry(&new_dir, to.name)? {
            Some(found) => Some(self.named_inode(found.ino)?),
            None => None,
        };
        if source.is_dir() && self.is_above(&source, &new_dir)? {
            return Err(Errno::Einval);
        }
        if let Some(target) = &target {
            if replace == Replace::No {
                return Err(Errno::Eexist);
            }
            if target.ino == source.ino {
                return Ok(());
            }
            self.check_target(&source, target, &new_dir)?;
        } else if source.is_dir() && from.dir != to.dir && new_dir.nlink() >= LINK_MAX {
            return Err(Errno::Emlink);
        }
        self.name_anew(caller, to, &source, target)?;
        self.forget_old(caller, from, to, source.ino)
    }

    /// Whether what has the new name may lose it.
    fn check_target(&mut self, source: &Inode, target: &Inode, new_dir: &Inode) -> Result<(), Errno> {
        match (source.is_dir(), target.is_dir()) {
            (true, false) => return Err(Errno::Enotdir),
            (false, true) => return Err(Errno::Eisdir),
            _ => {}
        }
        if target.is_immutable() || target.is_append_only() || new_dir.is_append_only() {
            return Err(Errno::Eperm);
        }
        if target.is_dir() {
            if target.ino == Ino::ROOT || target.ino == new_dir.ino {
                return Err(self.corrupt(Errno::Eio, "a directory names itself", u64::from(target.ino.0)));
            }
            if !self.is_empty(target)? {
                return Err(Errno::Enotempty);
            }
        }
        Ok(())
    }

    /// Whether `dir` is `above` or lies below it. The root is as many steps away as there are directories, or the image is corrupt.
    fn is_above(&mut self, above: &Inode, dir: &Inode) -> Result<bool, Errno> {
        let mut at = *dir;
        for _ in 0..=self.dirs.min(u64::from(self.geometry.inodes_count)) {
            if at.ino == above.ino {
                return Ok(true);
            }
            if at.ino == Ino::ROOT {
                return Ok(false);
            }
            let found = self.find_entry(&at, b"..")?;
            let Some(found) = found else {
                return Err(self.corrupt(Errno::Eio, "directory without ..", u64::from(at.ino.0)));
            };
            at = self.named_inode(found.ino)?;
            if !at.is_dir() {
                return Err(self.corrupt(Errno::Eio, ".. is no directory", u64::from(at.ino.0)));
            }
        }
        Err(self.corrupt(Errno::Eio, "directories above each other", u64::from(dir.ino.0)))
    }

    /// The new name leads to `source`; what it led to loses it.
    fn name_anew(
        &mut self,
        caller: &Caller,
        to: Name<'_>,
        source: &Inode,
        target: Option<Inode>,
    ) -> Result<(), Errno> {
        let mut dir = self.dir(to.dir)?;
        let Some(mut target) = target else {
            self.add_entry(caller, &mut dir, to.name, source)?;
            if source.is_dir() {
                dir.set_nlink(dir.nlink().saturating_add(1));
                self.write_inode(&dir)?;
            }
            return Ok(());
        };
        let found = self.find_entry(&dir, to.name)?.ok_or(Errno::Eio)?;
        self.set_link(&mut dir, found, source, caller.now)?;
        let names = if target.is_dir() {
            target.set_size(0);
            target.nlink()
        } else {
            1
        };
        self.drop_link(target, names, caller.now)
    }

    /// The old name goes, and a directory learns what is above it now.
    fn forget_old(
        &mut self,
        caller: &Caller,
        from: Name<'_>,
        to: Name<'_>,
        source: Ino,
    ) -> Result<(), Errno> {
        let mut inode = self.inode(source)?;
        inode.set_ctime(caller.now);
        self.write_inode(&inode)?;
        let mut old_dir = self.dir(from.dir)?;
        let found = self.find_entry(&old_dir, from.name)?.ok_or(Errno::Eio)?;
        self.delete_entry(&mut old_dir, found, caller.now)?;
        if !inode.is_dir() {
            return Ok(());
        }
        old_dir.set_nlink(old_dir.nlink().saturating_sub(1));
        self.write_inode(&old_dir)?;
        if from.dir == to.dir {
            return Ok(());
        }
        let above = self.dir(to.dir)?;
        match self.find_entry(&inode, b"..")? {
            Some(found) => self.set_link(&mut inode, found, &above, caller.now),
            None => Err(self.corrupt(Errno::Eio, "directory without ..", u64::from(source.0))),
        }
    }
}
