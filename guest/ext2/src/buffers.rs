//! What the file system reads and changes its metadata through (Linux: fs/buffer.c).

use alloc::vec::Vec;
use core::fmt;

use crate::{Errno, no_memory};

/// Number of a block of the device, in units of the file system's block size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block(pub(crate) u32);

impl Block {
    /// Block `number`.
    pub const fn new(number: u32) -> Block {
        Block(number)
    }

    /// Its number.
    pub const fn as_u32(self) -> u32 {
        self.0
    }

    /// The block `count` further on; the last number if there is none.
    pub const fn plus(self, count: u32) -> Block {
        Block(self.0.saturating_add(count))
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {}", self.0)
    }
}

/// A cache of blocks in front of a device. All functions may wait.
///
/// Closures get exactly one block's bytes. They do not call back, and what they see is consistent: nobody else changes the block.
/// Blocks of data of regular files never come through here, except in [`crate::Ext2::read`] and its kin.
pub trait Buffers {
    /// Bytes of a block from now on: 1024, 2048 or 4096. Nothing is dirty then (Linux: `sb_set_blocksize`).
    ///
    /// # Errors
    /// `EINVAL` if the device has larger sectors.
    fn set_block_size(&mut self, bytes: u32) -> Result<(), Errno>;

    /// Whole blocks that the device has.
    fn blocks(&self) -> u64;

    /// Whether the device cannot be written.
    fn is_read_only(&self) -> bool {
        false
    }

    /// Reads a block (Linux: `sb_bread`).
    ///
    /// # Errors
    /// `EIO`, `ENOMEM`.
    fn read<R>(&mut self, block: Block, with: impl FnOnce(&[u8]) -> R) -> Result<R, Errno>;

    /// Reads `bytes` of a block, from `offset` on: less to copy than a block for who wants a table's entry.
    ///
    /// # Errors
    /// `EIO`, for what the block does not have, too; `ENOMEM`.
    fn read_part<R>(
        &mut self,
        block: Block,
        (offset, bytes): (usize, usize),
        with: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, Errno> {
        self.read(block, |whole| {
            let part = whole.get(offset..).and_then(|rest| rest.get(..bytes));
            part.map(with).ok_or(Errno::Eio)
        })?
    }

    /// Reads a block, changes it and marks it dirty (Linux: `mark_buffer_dirty`).
    ///
    /// # Errors
    /// `EIO`, `ENOMEM`; nothing is changed then.
    fn change<R>(&mut self, block: Block, with: impl FnOnce(&mut [u8]) -> R) -> Result<R, Errno>;

    /// Changes `bytes` of a block, from `offset` on.
    ///
    /// # Errors
    /// `EIO`, for what the block does not have, too; `ENOMEM`. Nothing is changed then.
    fn change_part<R>(
        &mut self,
        block: Block,
        (offset, bytes): (usize, usize),
        with: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, Errno> {
        self.change(block, |whole| {
            let part = whole.get_mut(offset..).and_then(|rest| rest.get_mut(..bytes));
            part.map(with).ok_or(Errno::Eio)
        })?
    }

    /// [`Buffers::change`] of a block whose old bytes do not matter: it begins as zeroes (Linux: `sb_getblk`).
    ///
    /// # Errors
    /// `EIO`, `ENOMEM`.
    fn fill<R>(&mut self, block: Block, with: impl FnOnce(&mut [u8]) -> R) -> Result<R, Errno>;

    /// The block is free: what is in the cache of it is not to be written any more (Linux: `bforget`, `clean_bdev_aliases`).
    fn forget(&mut self, block: Block);

    /// Writes what is dirty and waits until it is on the medium (Linux: `sync_blockdev`).
    ///
    /// # Errors
    /// `EIO`.
    fn sync(&mut self) -> Result<(), Errno>;
}

/// A device in memory: an image that was loaded, or one for tests.
#[derive(Debug, Default)]
pub struct Ram {
    bytes: Vec<u8>,
    block_size: usize,
    read_only: bool,
}

impl Ram {
    /// A device with these bytes.
    pub const fn new(bytes: Vec<u8>) -> Ram {
        Ram { bytes, block_size: 1024, read_only: false }
    }

    /// The same, which nobody can write.
    pub const fn read_only(bytes: Vec<u8>) -> Ram {
        Ram { bytes, block_size: 1024, read_only: true }
    }

    /// A device of zeroes.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn zeroed(bytes: usize) -> Result<Ram, Errno> {
        let mut all = Vec::new();
        all.try_reserve_exact(bytes).map_err(no_memory)?;
        all.resize(bytes, 0);
        Ok(Ram::new(all))
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All bytes, to be changed behind the file system's back.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    fn block(&mut self, block: Block) -> Result<&mut [u8], Errno> {
        let start = (block.0 as usize).checked_mul(self.block_size).ok_or(Errno::Eio)?;
        let end = start.checked_add(self.block_size).ok_or(Errno::Eio)?;
        self.bytes.get_mut(start..end).ok_or(Errno::Eio)
    }

    fn writable(&mut self, block: Block) -> Result<&mut [u8], Errno> {
        if self.read_only { Err(Errno::Eio) } else { self.block(block) }
    }
}

impl Buffers for Ram {
    fn set_block_size(&mut self, bytes: u32) -> Result<(), Errno> {
        self.block_size = bytes as usize;
        Ok(())
    }

    fn blocks(&self) -> u64 {
        self.bytes.len().checked_div(self.block_size).unwrap_or(0) as u64
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read<R>(&mut self, block: Block, with: impl FnOnce(&[u8]) -> R) -> Result<R, Errno> {
        self.block(block).map(|bytes| with(bytes))
    }

    fn change<R>(&mut self, block: Block, with: impl FnOnce(&mut [u8]) -> R) -> Result<R, Errno> {
        self.writable(block).map(with)
    }

    fn fill<R>(&mut self, block: Block, with: impl FnOnce(&mut [u8]) -> R) -> Result<R, Errno> {
        let bytes = self.writable(block)?;
        bytes.fill(0);
        Ok(with(bytes))
    }

    fn forget(&mut self, _block: Block) {}

    fn sync(&mut self) -> Result<(), Errno> {
        Ok(())
    }
}
