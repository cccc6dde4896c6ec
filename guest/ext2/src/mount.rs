//! Mounting, and what is told of errors (Linux: fs/ext2/super.c).

use alloc::vec::Vec;

use zerocopy::FromBytes;

use crate::buffers::{Block, Buffers};
use crate::geometry::{DESC_SIZE, Geometry};
use crate::held::Held;
use crate::inode::Ino;
use crate::layout::{
    ERROR_FS, GOOD_OLD_REV, GroupDesc, RO_COMPAT_LARGE_FILE, SUPER_OFFSET, SuperBlock, VALID_FS,
};
use crate::{Errno, no_memory};

/// What a mount may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read and write.
    ReadWrite,
    /// Only read.
    ReadOnly,
}

/// What contradicts itself in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corruption {
    /// What was found.
    pub what: &'static str,
    /// Of which inode, block or group.
    pub number: u64,
}

/// A mounted file system (Linux: `struct super_block` with `struct ext2_sb_info`). Whoever uses it has it alone.
#[derive(Debug)]
pub struct Ext2<B> {
    pub(crate) buffers: B,
    pub(crate) geometry: Geometry,
    pub(crate) groups: Vec<GroupDesc>,
    /// Of which groups the bitmap of blocks was looked at, and was right.
    pub(crate) valid_bitmaps: Vec<bool>,
    pub(crate) free_blocks: u64,
    pub(crate) free_inodes: u64,
    pub(crate) dirs: u64,
    pub(crate) access: Access,
    /// `s_state` as it will be after unmounting.
    state: u16,
    pub(crate) held: Held,
    error: Option<Corruption>,
    /// Numbers of generations, and the spread of directories.
    pub(crate) generation: u32,
}

impl<B: Buffers> Ext2<B> {
    /// Mounts what is on the device (Linux: `ext2_fill_super`). `now` is in seconds since 1970.
    ///
    /// A file system that cannot be written (unknown features, a device that refuses) is mounted read-only: see [`Ext2::access`].
    /// Differs from Linux: there mount(2) fails and mount(8) tries again with `-o ro`.
    ///
    /// # Errors
    /// `EINVAL` for what is no file system of this kind or contradicts itself, `EIO`, `ENOMEM`.
    pub fn mount(mut buffers: B, access: Access, now: i64) -> Result<Ext2<B>, Errno> {
        buffers.set_block_size(SUPER_OFFSET)?;
        let device_bytes = buffers.blocks().saturating_mul(u64::from(SUPER_OFFSET));
        let parse = |bytes: &[u8]| {
            let sb = SuperBlock::ref_from_bytes(bytes).map_err(|_| Errno::Einval)?;
            Ok((Geometry::new(sb, device_bytes)?, sb.state.get()))
        };
        let (geometry, state) = buffers.read(Block(1), parse)??;
        buffers.set_block_size(geometry.block_size)?;
        let denied = buffers.is_read_only() || geometry.must_not_write;
        let mut fs = Ext2 {
            buffers,
            geometry,
            groups: Vec::new(),
            valid_bitmaps: Vec::new(),
            free_blocks: 0,
            free_inodes: 0,
            dirs: 0,
            // Nothing is written before all is checked.
            access: Access::ReadOnly,
            state,
            held: Held::new(),
            error: None,
            generation: crate::inode::seconds(now),
        };
        fs.read_groups()?;
        let root =
            fs.inode(Ino::ROOT).map_err(|error| if error == Errno::Eio { error } else { Errno::Einval })?;
        if !root.is_dir() || root.size() == 0 || root.sectors() == 0 {
            return Err(Errno::Einval);
        }
        if access == Access::ReadWrite && !denied {
            fs.set_up_super(now)?;
        }
        Ok(fs)
    }

    /// Reads and checks the descriptors (Linux: `ext2_check_descriptors`), and sums up what is free.
    fn read_groups(&mut self) -> Result<(), Errno> {
        let geometry = self.geometry;
        self.groups.try_reserve_exact(geometry.groups as usize).map_err(no_memory)?;
        self.valid_bitmaps.try_reserve_exact(geometry.groups as usize).map_err(no_memory)?;
        self.valid_bitmaps.resize(geometry.groups as usize, false);
        let groups = &mut self.groups;
        for table in 0..geometry.gdb_count {
            let block = Block(geometry.first_data_block + 1 + table);
            let rest = geometry.groups as usize - groups.len();
            self.buffers.read(block, |bytes| {
                let descs = bytes.chunks_exact(DESC_SIZE as usize).take(rest);
                groups.extend(descs.filter_map(|bytes| GroupDesc::read_from_bytes(bytes).ok()));
            })?;
        }
        if groups.len() != geometry.groups as usize {
            return Err(Errno::Eio);
        }
        for (group, desc) in (0..).zip(groups.iter()) {
            let first = geometry.group_first(group);
            let last = first + (geometry.group_blocks(group) - 1);
            let inside = |block: u32, blocks: u32| {
                block >= first && block.checked_add(blocks - 1).is_some_and(|end| end <= last)
            };
            if !inside(desc.block_bitmap.get(), 1)
                || !inside(desc.inode_bitmap.get(), 1)
                || !inside(desc.inode_table.get(), geometry.itb_per_group)
            {
                return Err(Errno::Einval);
            }
            self.free_blocks += u64::from(desc.free_blocks_count.get());
            self.free_inodes += u64::from(desc.free_inodes_count.get());
            self.dirs += u64::from(desc.used_dirs_count.get());
        }
        Ok(())
    }

    /// Counts the mount, and marks the file system as not cleanly unmounted (Linux: `ext2_setup_super`, `ext2_sync_fs`).
    fn set_up_super(&mut self, now: i64) -> Result<(), Errno> {
        const DEFAULT_MAX_MNT_COUNT: u16 = 20;
        self.access = Access::ReadWrite;
        let result = self.change_super(|sb| {
            if sb.max_mnt_count.get() == 0 {
                sb.max_mnt_count.set(DEFAULT_MAX_MNT_COUNT);
            }
            sb.mnt_count.set(sb.mnt_count.get().wrapping_add(1));
            sb.state.set(sb.state.get() & !VALID_FS);
            sb.mtime.set(crate::inode::seconds(now));
        });
        result.and_then(|()| self.sync(now)).inspect_err(|_| self.access = Access::ReadOnly)
    }

    pub(crate) fn read_super<R>(&mut self, with: impl FnOnce(&SuperBlock) -> R) -> Result<R, Errno> {
        let (block, offset) = self.geometry.super_at();
        let part = (offset, size_of::<SuperBlock>());
        let read =
            self.buffers.read_part(block, part, |bytes| SuperBlock::ref_from_bytes(bytes).ok().map(with))?;
        read.ok_or(Errno::Eio)
    }

    pub(crate) fn change_super(&mut self, with: impl FnOnce(&mut SuperBlock)) -> Result<(), Errno> {
        let (block, offset) = self.geometry.super_at();
        self.buffers.change_part(block, (offset, size_of::<SuperBlock>()), |bytes| {
            if let Ok(sb) = SuperBlock::mut_from_bytes(bytes) {
                with(sb);
            }
        })
    }

    /// What it may do now: a mount that was to be written is read-only after an error.
    pub const fn access(&self) -> Access {
        self.access
    }

    /// Whether it was unmounted cleanly the last time, without errors: else `e2fsck` should run (Linux warns).
    pub const fn was_clean(&self) -> bool {
        self.state & VALID_FS != 0 && self.state & ERROR_FS == 0
    }

    /// The first corruption found since the last call, for the log.
    pub const fn take_error(&mut self) -> Option<Corruption> {
        self.error.take()
    }

    /// The cache, for whoever brought it.
    pub const fn buffers(&mut self) -> &mut B {
        &mut self.buffers
    }

    /// Gives the cache back. What was not synced is only in it: [`Ext2::unmount`] comes before.
    pub fn into_buffers(self) -> B {
        self.buffers
    }

    /// `EROFS` if nothing may be changed.
    pub(crate) fn check_writable(&self) -> Result<(), Errno> {
        if self.access == Access::ReadWrite { Ok(()) } else { Err(Errno::Erofs) }
    }

    /// Remembers a corruption and stops all writing (Linux: `ext2_error` with `errors=remount-ro`).
    ///
    /// Differs from Linux: `s_errors` does not choose; `continue` would do harm and `panic` is not ours to do.
    pub(crate) fn corrupt(&mut self, errno: Errno, what: &'static str, number: u64) -> Errno {
        self.error.get_or_insert(Corruption { what, number });
        if self.access == Access::ReadWrite {
            self.state |= ERROR_FS;
            // The error itself is what the caller gets, whether or not it can be written down.
            let _ = self.change_super(|sb| sb.state.set(sb.state.get() | ERROR_FS));
            self.access = Access::ReadOnly;
        }
        errno
    }

    /// Sets the feature that a file of 2 GiB needs (Linux: `ext2_setsize`, `ext2_update_dynamic_rev`).
    pub(crate) fn allow_large_file(&mut self) -> Result<(), Errno> {
        let has = |sb: &SuperBlock| {
            sb.rev_level.get() != GOOD_OLD_REV && sb.feature_ro_compat.get() & RO_COMPAT_LARGE_FILE != 0
        };
        if self.read_super(has)? {
            return Ok(());
        }
        let (first_ino, inode_size) = (self.geometry.first_ino, self.geometry.inode_size);
        self.change_super(|sb| {
            if sb.rev_level.get() == GOOD_OLD_REV {
                sb.first_ino.set(first_ino);
                sb.inode_size.set(u16::try_from(inode_size).unwrap_or(128));
                sb.rev_level.set(crate::layout::DYNAMIC_REV);
            }
            sb.feature_ro_compat.set(sb.feature_ro_compat.get() | RO_COMPAT_LARGE_FILE);
        })
    }

    /// `s_state` to be left behind on the disk.
    pub(crate) const fn final_state(&self) -> u16 {
        self.state
    }

    pub(crate) fn set_final_state(&mut self, state: u16) {
        self.state = state;
    }
}
