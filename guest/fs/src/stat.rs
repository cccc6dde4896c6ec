//! Structures that calls on files give to programs, as bytes (Linux: arch/x86/include/uapi/asm/stat.h,
//! include/uapi/linux/stat.h, statfs.h, dirent.h; all for x86-64).

use alloc::vec::Vec;

use crate::device::Device;
use crate::inode::Timespec;

/// What the stat family tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Number of the file system.
    pub dev: u64,
    /// Number of the inode.
    pub ino: u64,
    /// Names.
    pub nlink: u32,
    /// Type and permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The device that it is.
    pub rdev: Device,
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Timespec,
    /// Last change of content.
    pub mtime: Timespec,
    /// Last change of the inode.
    pub ctime: Timespec,
}

/// Preferred size of reads and writes.
const BLKSIZE: u32 = 4096;

/// Bytes put one after the other.
struct Bytes<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Bytes<N> {
    const fn new() -> Self {
        Bytes { bytes: [0; N], at: 0 }
    }

    fn put<const M: usize>(&mut self, field: [u8; M]) -> &mut Self {
        if let Some(slot) = self.bytes.get_mut(self.at..self.at + M) {
            slot.copy_from_slice(&field);
        }
        self.at += M;
        self
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.put(value.to_le_bytes())
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.put(value.to_le_bytes())
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.put(value.to_le_bytes())
    }
}

impl Stat {
    /// `struct stat`.
    pub fn to_bytes(&self) -> [u8; 144] {
        let mut out = Bytes::new();
        out.u64(self.dev).u64(self.ino).u64(u64::from(self.nlink));
        out.u32(self.mode).u32(self.uid).u32(self.gid).u32(0);
        out.u64(u64::from(self.rdev.encode())).u64(self.size).u64(u64::from(BLKSIZE)).u64(self.blocks);
        for time in [self.atime, self.mtime, self.ctime] {
            out.put(time.sec.to_le_bytes()).u64(u64::from(time.nsec));
        }
        out.bytes
    }

    /// `struct statx`, with what statx(2) calls basic.
    pub fn to_statx(&self) -> [u8; 256] {
        const STATX_BASIC_STATS: u32 = 0x7ff;
        let mut out = Bytes::new();
        out.u32(STATX_BASIC_STATS).u32(BLKSIZE).u64(0);
        // The type and the permissions are 16 bits.
        let [low, high, ..] = self.mode.to_le_bytes();
        out.u32(self.nlink).u32(self.uid).u32(self.gid).u16(u16::from_le_bytes([low, high])).u16(0);
        out.u64(self.ino).u64(self.size).u64(self.blocks).u64(0);
        for time in [self.atime, Timespec::default(), self.ctime, self.mtime] {
            out.put(time.sec.to_le_bytes()).u32(time.nsec).u32(0);
        }
        out.u32(self.rdev.major).u32(self.rdev.minor);
        let dev = u32::try_from(self.dev).map_or(Device::default(), Device::decode);
        out.u32(dev.major).u32(dev.minor);
        out.bytes
    }
}

/// What statfs tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statfs {
    /// The kind's magic number.
    pub magic: u64,
    /// Size of a block in bytes.
    pub block: u64,
    /// Blocks.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Free blocks for who is not root.
    pub available: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub free_files: u64,
    /// The file system's number.
    pub id: u64,
    /// `ST_` flags.
    pub flags: u64,
}

impl Statfs {
    /// `struct statfs`.
    pub fn to_bytes(&self) -> [u8; 120] {
        let mut out = Bytes::new();
        out.u64(self.magic).u64(self.block).u64(self.blocks).u64(self.free).u64(self.available);
        out.u64(self.files).u64(self.free_files).u64(self.id);
        out.u64(crate::flags::NAME_MAX as u64).u64(self.block).u64(self.flags);
        out.bytes
    }
}

/// Types of entries (Linux: include/linux/fs_types.h): the type's bits of `st_mode`, shifted.
pub const fn dirent_type(mode: u32) -> u8 {
    // The type has four bits.
    ((mode >> 12) & 0xf) as u8
}

/// An entry of getdents64.
#[derive(Clone, Copy, Debug)]
pub struct Dirent<'a> {
    /// Number of the inode.
    pub ino: u64,
    /// Offset of the entry after it.
    pub next: u64,
    /// See [`dirent_type`].
    pub kind: u8,
    /// The name.
    pub name: &'a [u8],
}

impl Dirent<'_> {
    /// Bytes that the entry takes: header, name, zero, up to a multiple of 8.
    pub const fn len(&self) -> usize {
        (19 + self.name.len() + 1).next_multiple_of(8)
    }

    /// Whether it is empty: it never is.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Puts `struct linux_dirent64` behind `out`, for which there is room.
    pub fn put(&self, out: &mut Vec<u8>) {
        let len = self.len();
        let end = out.len() + len;
        out.extend_from_slice(&self.ino.to_le_bytes());
        out.extend_from_slice(&self.next.to_le_bytes());
        // A name has 255 bytes at most.
        out.extend_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_le_bytes());
        out.push(self.kind);
        out.extend_from_slice(self.name);
        out.resize(end, 0);
    }
}
