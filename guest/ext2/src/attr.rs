//! Mode, owner and times (Linux: fs/attr.c, `ext2_setattr`).

use crate::Errno;
use crate::buffers::Buffers;
use crate::inode::Ino;
use crate::layout::mode;
use crate::mount::Ext2;

/// Times to set, in seconds since 1970; the disk has 32 signed bits for each.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// Last access.
    pub atime: Option<i64>,
    /// Last change of content.
    pub mtime: Option<i64>,
    /// Last change of the inode.
    pub ctime: Option<i64>,
}

/// What chmod, chown and utimensat change (Linux: `struct iattr`). Whether they may is the caller's to say.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permissions, without the type.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Times; the last change of the inode is this call if it says nothing else.
    pub times: Times,
}

impl<B: Buffers> Ext2<B> {
    /// Linux: `ext2_setattr`, without a size: see [`Ext2::set_size`].
    ///
    /// # Errors
    /// `EPERM` if the inode is immutable or append-only, `EROFS`, `EIO`.
    pub fn set_attr(&mut self, ino: Ino, attr: &SetAttr, now: i64) -> Result<(), Errno> {
        let mut inode = self.inode(ino)?;
        self.check_writable()?;
        if inode.is_immutable() || inode.is_append_only() {
            return Err(Errno::Eperm);
        }
        if let Some(bits) = attr.mode {
            let bits = inode.mode() & mode::S_IFMT | bits & mode::PERMISSIONS;
            inode.raw.mode.set(u16::try_from(bits).unwrap_or(0));
        }
        inode.set_owner(attr.uid.unwrap_or(inode.uid()), attr.gid.unwrap_or(inode.gid()));
        let times = Times { ctime: attr.times.ctime.or(Some(now)), ..attr.times };
        times.apply(&mut inode);
        self.write_inode(&inode)
    }

    /// Sets times alone, as reading and writing do (Linux: `generic_update_time`).
    ///
    /// # Errors
    /// `EROFS`, `EIO`.
    pub fn update_time(&mut self, ino: Ino, times: &Times) -> Result<(), Errno> {
        let mut inode = self.inode(ino)?;
        self.check_writable()?;
        times.apply(&mut inode);
        self.write_inode(&inode)
    }
}

impl Times {
    fn apply(&self, inode: &mut crate::Inode) {
        if let Some(time) = self.atime {
            inode.set_atime(time);
        }
        if let Some(time) = self.mtime {
            inode.set_mtime(time);
        }
        if let Some(time) = self.ctime {
            inode.set_ctime(time);
        }
    }
}
