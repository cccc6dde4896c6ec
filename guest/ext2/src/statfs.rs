//! statfs (Linux: fs/ext2/super.c, `ext2_statfs`).

use crate::Errno;
use crate::buffers::Buffers;
use crate::mount::Ext2;

/// What statfs tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statfs {
    /// `EXT2_SUPER_MAGIC`.
    pub magic: u64,
    /// Bytes of a block.
    pub block: u64,
    /// Blocks, without those that the file system itself has.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Free blocks for who is not root.
    pub available: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub free_files: u64,
    /// Made of the UUID.
    pub id: u64,
}

impl<B: Buffers> Ext2<B> {
    /// Linux: `ext2_statfs`.
    ///
    /// # Errors
    /// `EIO`.
    pub fn statfs(&mut self) -> Result<Statfs, Errno> {
        let geometry = self.geometry;
        let supers: u64 = (0..geometry.groups).map(|group| u64::from(geometry.super_blocks(group))).sum();
        let tables = u64::from(geometry.groups) * (2 + u64::from(geometry.itb_per_group));
        let overhead = u64::from(geometry.first_data_block) + supers + tables;
        let (reserved, uuid) = self.read_super(|sb| (u64::from(sb.r_blocks_count.get()), sb.uuid))?;
        let (low, high) = uuid.split_at(8);
        let half = |bytes: &[u8]| bytes.first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk));
        Ok(Statfs {
            magic: u64::from(crate::layout::MAGIC),
            block: u64::from(geometry.block_size),
            blocks: u64::from(geometry.blocks_count).saturating_sub(overhead),
            free: self.free_blocks,
            available: self.free_blocks.saturating_sub(reserved),
            files: u64::from(geometry.inodes_count),
            free_files: self.free_inodes,
            id: half(low) ^ half(high),
        })
    }
}
