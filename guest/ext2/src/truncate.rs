//! Making files shorter and longer (Linux: fs/ext2/inode.c, `ext2_setsize`, `ext2_truncate_blocks`).

use crate::Errno;
use crate::buffers::{Block, Buffers};
use crate::inode::{Ino, Inode};
use crate::layout::{NDIR_BLOCKS, set_word, word};
use crate::mount::Ext2;

/// Pointers that are looked at together: no memory is allocated on the way to free some.
const BATCH: usize = 64;
/// Sizes from here on need a feature (Linux: `MAX_NON_LFS`).
const LARGE_FILE: u64 = 1 << 31;

/// Blocks in a row that are to be freed together.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    first: Block,
    count: u32,
}

impl<B: Buffers> Ext2<B> {
    /// Sets the size of a regular file; blocks past the end are freed, a longer file has a hole at its end. The caller has taken the
    /// pages past the end out of its cache, waited for their writing, and zeroed the rest of the last block.
    ///
    /// # Errors
    /// `EISDIR`, `EINVAL`, `EPERM`, `EFBIG`, `EROFS`, `EIO`, `EUCLEAN`.
    pub fn set_size(&mut self, ino: Ino, size: u64, now: i64) -> Result<(), Errno> {
        let mut inode = self.sizable(ino, size)?;
        let shrinks = size < inode.size();
        if size >= LARGE_FILE {
            self.allow_large_file()?;
        }
        inode.set_size(size);
        inode.set_mtime(now);
        inode.set_ctime(now);
        // The size first: a crash leaves blocks too many, which e2fsck frees, not too few.
        self.write_inode(&inode)?;
        if shrinks {
            self.truncate_blocks(&mut inode, size.div_ceil(u64::from(self.geometry.block_size)))?;
        }
        Ok(())
    }

    /// Raises the size after bytes were written behind the old end (Linux: `generic_write_end`); times are the caller's.
    ///
    /// # Errors
    /// As [`Ext2::set_size`].
    pub fn extend(&mut self, ino: Ino, size: u64) -> Result<(), Errno> {
        let mut inode = self.sizable(ino, size)?;
        if size <= inode.size() {
            return Ok(());
        }
        if size >= LARGE_FILE {
            self.allow_large_file()?;
        }
        inode.set_size(size);
        self.write_inode(&inode)
    }

    /// Largest size of a file, in bytes (Linux: `s_maxbytes`).
    pub fn max_size(&self) -> u64 {
        self.geometry.max_size
    }

    fn sizable(&mut self, ino: Ino, size: u64) -> Result<Inode, Errno> {
        let inode = self.inode(ino)?;
        if inode.is_dir() {
            return Err(Errno::Eisdir);
        }
        if !inode.is_file() {
            return Err(Errno::Einval);
        }
        self.check_writable()?;
        if inode.is_immutable() || (inode.is_append_only() && size < inode.size()) {
            return Err(Errno::Eperm);
        }
        if size > self.geometry.max_size { Err(Errno::Efbig) } else { Ok(inode) }
    }

    /// Frees every block but the first `keep` of the file, and writes the inode. Whatever a corrupt image points to, a block is freed
    /// once at most, and the second time is an error that ends it: so it does end.
    pub(crate) fn truncate_blocks(&mut self, inode: &mut Inode, keep: u64) -> Result<(), Errno> {
        let before = self.free_blocks;
        let result = self.free_pointers(inode, keep);
        let freed = u32::try_from(self.free_blocks.saturating_sub(before)).unwrap_or(u32::MAX);
        inode.sub_blocks(freed, self.geometry.sectors());
        let written = self.write_inode(inode);
        result.and(written)
    }

    fn free_pointers(&mut self, inode: &mut Inode, keep: u64) -> Result<(), Errno> {
        let mut row = Row::default();
        let direct = NDIR_BLOCKS as u64;
        for slot in (0..NDIR_BLOCKS).filter(|slot| *slot as u64 >= keep) {
            let block = inode.pointer(slot);
            inode.set_pointer(slot, Block(0));
            self.free_in_row(&mut row, block)?;
        }
        self.free_row(&mut row)?;
        let mut base = direct;
        for (slot, level) in (NDIR_BLOCKS..).zip(1..=3) {
            let span = u64::from(self.geometry.pointers()).pow(level);
            let block = inode.pointer(slot);
            let kept = keep.saturating_sub(base);
            if block != Block(0) && kept < span {
                if kept == 0 {
                    inode.set_pointer(slot, Block(0));
                }
                self.trim(block, level, kept)?;
            }
            base += span;
        }
        Ok(())
    }

    /// Frees what an indirect block leads to but for the first `keep` blocks of data; the block itself if `keep` is 0.
    fn trim(&mut self, holder: Block, level: u32, keep: u64) -> Result<(), Errno> {
        self.check_data_block(holder)?;
        let pointers = u64::from(self.geometry.pointers());
        let span = pointers.pow(level - 1);
        let mut row = Row::default();
        let mut at = keep / span;
        while at < pointers {
            let start = usize::try_from(at).map_err(|_| Errno::Eio)?;
            let end = usize::try_from(pointers).map_err(|_| Errno::Eio)?.min(start + BATCH);
            let batch = self.take_pointers(holder, start..end, (at * span < keep, keep > 0))?;
            for block in batch.into_iter().take(end - start) {
                let kept = keep.saturating_sub(at * span);
                at += 1;
                if block == Block(0) {
                    continue;
                }
                match level {
                    1 => self.free_in_row(&mut row, block)?,
                    _ => self.trim(block, level - 1, kept)?,
                }
            }
        }
        self.free_row(&mut row)?;
        if keep == 0 { self.free_blocks(holder, 1) } else { Ok(()) }
    }

    /// Some pointers of an indirect block; if it stays (`clear`), they are zeroed there, but for the first if part of what it leads to
    /// stays (`keep_first`).
    fn take_pointers(
        &mut self,
        holder: Block,
        range: core::ops::Range<usize>,
        (keep_first, clear): (bool, bool),
    ) -> Result<[Block; BATCH], Errno> {
        let mut batch = [Block(0); BATCH];
        let from = range.start + usize::from(keep_first);
        let any = self.buffers.read(holder, |bytes| {
            for (slot, at) in batch.iter_mut().zip(range.clone()) {
                *slot = Block(word(bytes, at * 4));
            }
            (from..range.end).any(|at| word(bytes, at * 4) != 0)
        })?;
        if clear && any {
            self.buffers.change(holder, |bytes| {
                for at in from..range.end {
                    set_word(bytes, at * 4, 0);
                }
            })?;
        }
        Ok(batch)
    }

    fn free_in_row(&mut self, row: &mut Row, block: Block) -> Result<(), Errno> {
        if block == Block(0) {
            return Ok(());
        }
        if row.count > 0 && block == row.first.plus(row.count) {
            row.count += 1;
            return Ok(());
        }
        self.free_row(row)?;
        *row = Row { first: block, count: 1 };
        Ok(())
    }

    fn free_row(&mut self, row: &mut Row) -> Result<(), Errno> {
        let Row { first, count } = core::mem::take(row);
        if count == 0 { Ok(()) } else { self.free_blocks(first, count) }
    }
}
