//! Descriptors of groups: kept in memory, and written through (Linux: `ext2_get_group_desc`).

use zerocopy::IntoBytes;

use crate::Errno;
use crate::buffers::{Block, Buffers};
use crate::layout::GroupDesc;
use crate::mount::Ext2;

/// What becomes more (or less) in a group.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delta {
    pub free_blocks: i32,
    pub free_inodes: i32,
    pub dirs: i32,
}

impl<B: Buffers> Ext2<B> {
    pub(crate) fn desc(&self, group: u32) -> Result<GroupDesc, Errno> {
        self.groups.get(group as usize).copied().ok_or(Errno::Eio)
    }

    /// Counts a change in a group, and in the whole. A count that the image had wrong stops at its ends.
    pub(crate) fn count(&mut self, group: u32, delta: Delta) -> Result<(), Errno> {
        let add = |count: u16, delta: i32| {
            let sum = (i32::from(count) + delta).clamp(0, i32::from(u16::MAX));
            u16::try_from(sum).unwrap_or(u16::MAX)
        };
        let mut desc = self.desc(group)?;
        desc.free_blocks_count.set(add(desc.free_blocks_count.get(), delta.free_blocks));
        desc.free_inodes_count.set(add(desc.free_inodes_count.get(), delta.free_inodes));
        desc.used_dirs_count.set(add(desc.used_dirs_count.get(), delta.dirs));
        let (block, offset) = self.geometry.desc_at(group);
        let part = (offset, size_of::<GroupDesc>());
        self.buffers.change_part(block, part, |bytes| bytes.copy_from_slice(desc.as_bytes()))?;
        if let Some(slot) = self.groups.get_mut(group as usize) {
            *slot = desc;
        }
        self.free_blocks = self.free_blocks.saturating_add_signed(i64::from(delta.free_blocks));
        self.free_inodes = self.free_inodes.saturating_add_signed(i64::from(delta.free_inodes));
        self.dirs = self.dirs.saturating_add_signed(i64::from(delta.dirs));
        Ok(())
    }

    /// Whether the file system itself has the block: super block, descriptors, bitmaps, inode table.
    fn in_system_zone(&self, block: Block) -> bool {
        let Some((group, bit)) = self.geometry.group_of(block) else { return true };
        let Ok(desc) = self.desc(group) else { return true };
        let table = desc.inode_table.get();
        bit < self.geometry.super_blocks(group)
            || block.0 == desc.block_bitmap.get()
            || block.0 == desc.inode_bitmap.get()
            || (table..table + self.geometry.itb_per_group).contains(&block.0)
    }

    /// Whether a file may have the block (Linux: `ext2_data_block_valid`).
    ///
    /// Differs from Linux: the file system's own blocks are refused as well, not only the super block.
    pub(crate) fn is_data_block(&self, block: Block) -> bool {
        !self.in_system_zone(block)
    }

    /// `EUCLEAN` if no file may have the block.
    pub(crate) fn check_data_block(&mut self, block: Block) -> Result<(), Errno> {
        if self.is_data_block(block) {
            return Ok(());
        }
        Err(self.corrupt(Errno::Euclean, "a file points to a block that it cannot have", u64::from(block.0)))
    }
}
