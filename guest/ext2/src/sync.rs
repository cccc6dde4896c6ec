//! Writing back, remounting, unmounting (Linux: `ext2_sync_fs`, `ext2_remount`, `ext2_put_super`).

use crate::Errno;
use crate::buffers::Buffers;
use crate::inode::{Ino, seconds};
use crate::layout::VALID_FS;
use crate::mount::{Access, Ext2};

impl<B: Buffers> Ext2<B> {
    fn write_super(&mut self, now: i64) -> Result<(), Errno> {
        let free_blocks = u32::try_from(self.free_blocks).unwrap_or(u32::MAX);
        let free_inodes = u32::try_from(self.free_inodes).unwrap_or(u32::MAX);
        self.change_super(|sb| {
            sb.free_blocks_count.set(free_blocks);
            sb.free_inodes_count.set(free_inodes);
            sb.wtime.set(seconds(now));
        })
    }

    /// Writes everything and waits for it (Linux: `ext2_sync_fs`). Bytes of files in a page cache are the caller's to write before.
    ///
    /// # Errors
    /// `EIO`.
    pub fn sync(&mut self, now: i64) -> Result<(), Errno> {
        if self.access == Access::ReadWrite {
            self.write_super(now)?;
        }
        self.buffers.sync()
    }

    /// Gives the file system the state of one that is not in use (Linux: `ext2_put_super`). After it, it is read-only.
    ///
    /// # Errors
    /// `EBUSY` while something is held, `EIO`.
    pub fn unmount(&mut self, now: i64) -> Result<(), Errno> {
        if self.held.any().is_some() {
            return Err(Errno::Ebusy);
        }
        self.stop_writing(now)
    }

    /// Changes what it may do (Linux: `ext2_remount`). Writing is allowed again after an error only by unmounting.
    ///
    /// # Errors
    /// `EROFS` if it cannot be written, `EBUSY` if files without a name are held and writing shall end, `EIO`.
    pub fn remount(&mut self, access: Access, now: i64) -> Result<(), Errno> {
        match (self.access, access) {
            (Access::ReadWrite, Access::ReadOnly) => {
                if self.has_held_orphans()? {
                    return Err(Errno::Ebusy);
                }
                self.stop_writing(now)
            }
            (Access::ReadOnly, Access::ReadWrite) => {
                if self.buffers.is_read_only() || self.geometry.must_not_write || self.found_errors() {
                    return Err(Errno::Erofs);
                }
                let state = self.read_super(|sb| sb.state.get())?;
                self.set_final_state(state);
                self.access = Access::ReadWrite;
                self.change_super(|sb| {
                    sb.state.set(sb.state.get() & !VALID_FS);
                    sb.mtime.set(seconds(now));
                })?;
                self.sync(now)
            }
            _ => Ok(()),
        }
    }

    fn stop_writing(&mut self, now: i64) -> Result<(), Errno> {
        if self.access == Access::ReadWrite {
            let state = self.final_state();
            self.change_super(|sb| sb.state.set(state))?;
            self.write_super(now)?;
        }
        self.access = Access::ReadOnly;
        self.buffers.sync()
    }

    fn has_held_orphans(&mut self) -> Result<bool, Errno> {
        let mut after = Ino(0);
        while let Some(ino) = self.held.next(after) {
            if self.raw_inode(ino)?.nlink() == 0 {
                return Ok(true);
            }
            after = ino;
        }
        Ok(false)
    }
}
