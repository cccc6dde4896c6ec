//! Structures of the disk, little-endian everywhere (Linux: fs/ext2/ext2.h).

use core::mem::offset_of;

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `s_magic`.
pub const MAGIC: u16 = 0xef53;
/// Where the super block begins, in bytes.
pub const SUPER_OFFSET: u32 = 1024;
/// Revision without features and with inodes of 128 bytes (Linux: `EXT2_GOOD_OLD_REV`).
pub const GOOD_OLD_REV: u32 = 0;
/// Revision with them (Linux: `EXT2_DYNAMIC_REV`).
pub const DYNAMIC_REV: u32 = 1;
/// Bytes of an inode in revision 0, and of what we know of one in any.
pub const GOOD_OLD_INODE_SIZE: u32 = 128;
/// First inode that is not reserved in revision 0.
pub const GOOD_OLD_FIRST_INO: u32 = 11;

/// `s_state`: unmounted cleanly.
pub const VALID_FS: u16 = 1;
/// `s_state`: errors were found.
pub const ERROR_FS: u16 = 2;

/// `s_feature_incompat`: entries of directories tell types.
pub const INCOMPAT_FILETYPE: u32 = 2;
/// `s_feature_ro_compat`: few groups have a copy of the super block.
pub const RO_COMPAT_SPARSE_SUPER: u32 = 1;
/// `s_feature_ro_compat`: some file has 2 GiB or more.
pub const RO_COMPAT_LARGE_FILE: u32 = 2;

/// Direct pointers of an inode.
pub const NDIR_BLOCKS: usize = 12;
/// Pointers of an inode.
pub const N_BLOCKS: usize = 15;
/// Largest number of names of an inode.
pub const LINK_MAX: u16 = 32000;
/// Longest name.
pub const NAME_LEN: usize = 255;
/// Bytes that the pointers of an inode take: where a short symbolic link leads is there.
pub const FAST_SYMLINK: usize = N_BLOCKS * 4;

/// The super block.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SuperBlock {
    pub inodes_count: U32,
    pub blocks_count: U32,
    pub r_blocks_count: U32,
    pub free_blocks_count: U32,
    pub free_inodes_count: U32,
    pub first_data_block: U32,
    pub log_block_size: U32,
    pub log_frag_size: U32,
    pub blocks_per_group: U32,
    pub frags_per_group: U32,
    pub inodes_per_group: U32,
    pub mtime: U32,
    pub wtime: U32,
    pub mnt_count: U16,
    pub max_mnt_count: U16,
    pub magic: U16,
    pub state: U16,
    pub errors: U16,
    pub minor_rev_level: U16,
    pub lastcheck: U32,
    pub checkinterval: U32,
    pub creator_os: U32,
    pub rev_level: U32,
    pub def_resuid: U16,
    pub def_resgid: U16,
    pub first_ino: U32,
    pub inode_size: U16,
    pub block_group_nr: U16,
    pub feature_compat: U32,
    pub feature_incompat: U32,
    pub feature_ro_compat: U32,
    pub uuid: [u8; 16],
    pub volume_name: [u8; 16],
    pub last_mounted: [u8; 64],
    pub algorithm_usage_bitmap: U32,
    pub prealloc: [u8; 4],
    pub journal_and_more: [u8; 816],
}

const _: () = assert!(
    size_of::<SuperBlock>() == 1024
        && offset_of!(SuperBlock, magic) == 56
        && offset_of!(SuperBlock, feature_ro_compat) == 100
        && offset_of!(SuperBlock, last_mounted) == 136
);

/// What describes a group.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct GroupDesc {
    pub block_bitmap: U32,
    pub inode_bitmap: U32,
    pub inode_table: U32,
    pub free_blocks_count: U16,
    pub free_inodes_count: U16,
    pub used_dirs_count: U16,
    pub flags: U16,
    pub reserved: [u8; 12],
}

const _: () = assert!(size_of::<GroupDesc>() == 32 && offset_of!(GroupDesc, used_dirs_count) == 16);

/// An inode: the first 128 bytes, which are all that this file system knows of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawInode {
    pub mode: U16,
    pub uid: U16,
    pub size: U32,
    pub atime: U32,
    pub ctime: U32,
    pub mtime: U32,
    pub dtime: U32,
    pub gid: U16,
    pub links_count: U16,
    pub blocks: U32,
    pub flags: U32,
    pub osd1: U32,
    pub block: [U32; N_BLOCKS],
    pub generation: U32,
    pub file_acl: U32,
    /// High half of the size of a regular file.
    pub size_high: U32,
    pub faddr: U32,
    pub fragment: [u8; 4],
    pub uid_high: U16,
    pub gid_high: U16,
    pub reserved: [u8; 4],
}

const _: () = assert!(
    size_of::<RawInode>() == GOOD_OLD_INODE_SIZE as usize
        && offset_of!(RawInode, block) == 40
        && offset_of!(RawInode, uid_high) == 120
);

/// What stands before the name of an entry of a directory. Without [`INCOMPAT_FILETYPE`] the last byte is the high half of the
/// name's length, which is always 0.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DirHeader {
    pub inode: U32,
    pub rec_len: U16,
    pub name_len: u8,
    pub file_type: u8,
}

/// Bytes of [`DirHeader`].
pub const DIR_HEADER: usize = 8;
const _: () = assert!(size_of::<DirHeader>() == DIR_HEADER);

/// Flags of an inode (Linux: include/uapi/linux/fs.h, `FS_*_FL`).
pub mod flags {
    /// Nothing may change it.
    pub const IMMUTABLE: u32 = 0x10;
    /// Bytes may only be added.
    pub const APPEND: u32 = 0x20;
    /// dump does not save it.
    pub const NODUMP: u32 = 0x40;
    /// Times of access stay.
    pub const NOATIME: u32 = 0x80;
    /// The directory has an index.
    pub const BTREE: u32 = 0x1000;
    /// Changes of the directory reach the disk at once.
    pub const DIRSYNC: u32 = 0x1_0000;
    /// Its directories begin hierarchies of their own.
    pub const TOPDIR: u32 = 0x2_0000;
    /// What a new inode gets from its directory (Linux: `EXT2_FL_INHERITED`): also secure deletion, undeletion, compression,
    /// synchronous changes, journalled data and no tail merging, which nothing here acts on.
    pub const INHERITED: u32 =
        0x1 | 0x2 | 0x4 | 0x8 | NODUMP | NOATIME | 0x200 | 0x400 | 0x4000 | 0x8000 | DIRSYNC;
}

pub use mm_core::mode;

/// The word at a byte offset; 0 past the end.
pub fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| U32::read_from_prefix(rest).ok()).map_or(0, |(word, _)| word.get())
}

/// Sets the word at a byte offset; nothing past the end.
pub fn set_word(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(slot) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<4>()) {
        *slot = value.to_le_bytes();
    }
}
