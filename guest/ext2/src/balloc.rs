//! Allocation of blocks (Linux: fs/ext2/balloc.c).
//!
//! Differs from Linux: no reservation windows. A file that grows alone still gets blocks in a row, since each goal is the block after
//! the last one, and a search that leaves its goal takes the start of eight free blocks first.

use crate::bitmap;
use crate::buffers::{Block, Buffers};
use crate::create::Caller;
use crate::group::Delta;
use crate::mount::Ext2;
use crate::{Access, Errno};

impl<B: Buffers> Ext2<B> {
    /// Whether the caller may have one more block: the last ones are for root (Linux: `ext2_has_free_blocks`).
    fn has_free_blocks(&mut self, caller: &Caller) -> Result<bool, Errno> {
        if self.free_blocks == 0 || caller.privileged {
            return Ok(self.free_blocks > 0);
        }
        let reserved = |sb: &crate::layout::SuperBlock| {
            (sb.r_blocks_count.get(), sb.def_resuid.get(), sb.def_resgid.get())
        };
        let (blocks, uid, gid) = self.read_super(reserved)?;
        let may = caller.uid == u32::from(uid) || (gid != 0 && caller.gid == u32::from(gid));
        Ok(may || self.free_blocks > u64::from(blocks))
    }

    /// Takes a block, the one at `goal` or one near it (Linux: `ext2_new_blocks`). The caller writes what it shall hold.
    pub(crate) fn new_block(&mut self, caller: &Caller, goal: Block) -> Result<Block, Errno> {
        if !self.has_free_blocks(caller)? {
            return Err(Errno::Enospc);
        }
        let groups = self.geometry.groups;
        let (home, bit) = self.geometry.group_of(goal).unwrap_or((0, 0));
        // The goal's group once more at the end: from its start.
        for step in 0..=groups {
            let group = (home + step % groups) % groups;
            let from = if step == 0 { bit } else { 0 };
            if self.desc(group)?.free_blocks_count.get() > 0
                && let Some(block) = self.new_block_in(group, from)?
            {
                return Ok(block);
            }
        }
        Err(Errno::Enospc)
    }

    fn new_block_in(&mut self, group: u32, from: u32) -> Result<Option<Block>, Errno> {
        let map = self.block_bitmap(group)?;
        let end = self.geometry.group_blocks(group);
        let byte_of = |bit: u32| (bit as usize / 8, 1);
        let is_taken =
            from >= end || self.buffers.read_part(map, byte_of(from), |byte| bitmap::test(byte, from % 8))?;
        let found = if is_taken {
            self.buffers.read(map, |map| {
                // Near the goal even a single block (Linux: `find_next_usable_block`).
                let near = from.next_multiple_of(64).min(end);
                bitmap::find_zero(map, from, near)
                    .or_else(|| bitmap::find_zero_byte(map, from, end))
                    .or_else(|| bitmap::find_zero(map, from, end))
            })?
        } else {
            Some(from)
        };
        let Some(bit) = found else { return Ok(None) };
        let block = Block(self.geometry.group_first(group) + bit);
        if !self.is_data_block(block) {
            let number = u64::from(block.0);
            return Err(self.corrupt(Errno::Eio, "a block of the file system itself is marked free", number));
        }
        self.buffers.change_part(map, byte_of(bit), |byte| bitmap::set(byte, bit % 8))?;
        if let Err(error) = self.count(group, Delta { free_blocks: -1, ..Delta::default() }) {
            self.buffers.change_part(map, byte_of(bit), |byte| bitmap::clear(byte, bit % 8))?;
            return Err(error);
        }
        Ok(Some(block))
    }

    /// The group's bitmap, if the file system's own blocks are marked in it (Linux: `ext2_valid_block_bitmap`). It is looked at once: on Linux
    /// when it comes from the disk, here when it is wanted for the first time.
    fn block_bitmap(&mut self, group: u32) -> Result<Block, Errno> {
        let desc = self.desc(group)?;
        if self.valid_bitmaps.get(group as usize) == Some(&true) {
            return Ok(Block(desc.block_bitmap.get()));
        }
        let first = self.geometry.group_first(group);
        let bit = |block: u32| block.saturating_sub(first);
        let map = Block(desc.block_bitmap.get());
        let table = bit(desc.inode_table.get());
        let table = table..table + self.geometry.itb_per_group;
        let valid = self.buffers.read(map, |bytes| {
            bitmap::test(bytes, bit(desc.block_bitmap.get()))
                && bitmap::test(bytes, bit(desc.inode_bitmap.get()))
                && bitmap::find_zero(bytes, table.start, table.end).is_none()
        })?;
        if valid {
            if let Some(slot) = self.valid_bitmaps.get_mut(group as usize) {
                *slot = true;
            }
            return Ok(map);
        }
        Err(self.corrupt(Errno::Eio, "invalid block bitmap", u64::from(group)))
    }

    /// Frees `count` blocks from `block` on (Linux: `ext2_free_blocks`). What is wrong with them stops it at the first.
    pub(crate) fn free_blocks(&mut self, block: Block, count: u32) -> Result<(), Errno> {
        let mut at = block;
        let mut left = count;
        while left > 0 {
            let Some((group, bit)) = self.geometry.group_of(at) else {
                return Err(self.corrupt(Errno::Eio, "freeing blocks not in datazone", u64::from(at.0)));
            };
            let here = left.min(self.geometry.group_blocks(group) - bit);
            self.free_in_group(group, at, here)?;
            at = at.plus(here);
            left -= here;
        }
        Ok(())
    }

    fn free_in_group(&mut self, group: u32, first: Block, count: u32) -> Result<(), Errno> {
        for step in 0..count {
            let block = first.plus(step);
            if !self.is_data_block(block) {
                return Err(self.corrupt(Errno::Eio, "freeing blocks in system zones", u64::from(block.0)));
            }
        }
        let map = self.block_bitmap(group)?;
        let start = first.0 - self.geometry.group_first(group);
        let end = start + count;
        let freed =
            self.buffers.change(map, |map| (start..end).filter(|bit| bitmap::clear(map, *bit)).count())?;
        let freed_blocks = i32::try_from(freed).unwrap_or(i32::MAX);
        self.count(group, Delta { free_blocks: freed_blocks, ..Delta::default() })?;
        for step in 0..count {
            self.buffers.forget(first.plus(step));
        }
        if freed == count as usize {
            return Ok(());
        }
        Err(self.corrupt(Errno::Eio, "bit already cleared for a block", u64::from(first.0)))
    }

    /// Whether an error made it read-only.
    pub(crate) const fn found_errors(&self) -> bool {
        matches!(self.access, Access::ReadOnly) && self.final_state() & crate::layout::ERROR_FS != 0
    }
}
