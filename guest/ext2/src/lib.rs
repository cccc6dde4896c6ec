//! The second extended file system, from its specification (Linux: fs/ext2).
//!
//! Metadata (super block, group descriptors, bitmaps, inodes, indirect blocks, directories, long symbolic links) is read and changed
//! through [`Buffers`]. The bytes of regular files are not touched: whoever has a page cache asks [`Ext2::get_block`] where a block of
//! a file lies, and reads and writes it there. Who has none uses [`Ext2::read`], [`Ext2::write`] and [`Ext2::truncate`].
//!
//! Nothing is kept here that is also on the disk, but for the group descriptors, the counts of what is free and the inodes that are held: every
//! change is in the buffers when the call returns. A call that fails for want of space or of a buffer has taken back what it did.
//!
//! Invariants, which `e2fsck -fn` checks after every test:
//! E1  a block's bit is set if and only if exactly one inode, or the file system itself, uses the block;
//! E2  an inode's bit is set if and only if it has a name or is held by [`Ext2::hold`];
//! E3  a group's descriptor counts the zero bits of its bitmaps and its directories; the super block has the sums after
//!     [`Ext2::sync`];
//! E4  `i_blocks` counts the data, indirect and attribute blocks of an inode in units of 512 bytes;
//! E5  entries of a directory fill each of its blocks without a gap, and no name is there twice.
//!
//! An image is believed nothing. What contradicts itself gives `EIO` or `EUCLEAN` (Linux: `EFSCORRUPTED`), is remembered for
//! [`Ext2::take_error`], marks the file system as faulty on the disk, and makes it read-only. Work is bounded by the
//! number of blocks of the device.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod attr;
mod balloc;
mod bitmap;
mod blocks;
mod buffers;
mod create;
mod data;
mod dir;
mod dirblock;
mod geometry;
mod group;
mod held;
mod ialloc;
mod inode;
mod layout;
mod mount;
mod namei;
mod rename;
mod statfs;
mod sync;
mod truncate;
mod xattr;

pub use attr::{SetAttr, Times};
pub use blocks::{Create, Mapped};
pub use buffers::{Block, Buffers, Ram};
pub use create::{Caller, Device};
pub use dir::Listed;
pub use dirblock::FileType;
pub use inode::{Ino, Inode};
pub use layout::mode;
pub use mm_core::Errno;
pub use mount::{Access, Corruption, Ext2};
pub use rename::{Name, Replace};
pub use statfs::Statfs;

/// What a collection says that cannot grow.
fn no_memory(_: alloc::collections::TryReserveError) -> Errno {
    Errno::Enomem
}
