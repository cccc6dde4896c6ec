//! Inodes, read from and written to their table (Linux: fs/ext2/inode.c, `ext2_iget`, `__ext2_write_inode`).

use core::fmt;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::buffers::{Block, Buffers};
use crate::create::Device;
use crate::layout::{FAST_SYMLINK, N_BLOCKS, RawInode, flags, mode};
use crate::mount::Ext2;
use crate::{Errno, FileType};

/// Number of an inode, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub(crate) u32);

impl Ino {
    /// The root directory.
    pub const ROOT: Ino = Ino(2);

    /// Inode `number`.
    pub const fn new(number: u32) -> Ino {
        Ino(number)
    }

    /// Its number.
    pub const fn as_u32(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode {}", self.0)
    }
}

/// A copy of an inode, as it was when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Its number.
    pub ino: Ino,
    pub(crate) raw: RawInode,
}

impl Inode {
    pub(crate) fn new(ino: Ino) -> Inode {
        Inode { ino, raw: RawInode::new_zeroed() }
    }

    /// Type and permissions, as in `st_mode`.
    pub fn mode(&self) -> u32 {
        u32::from(self.raw.mode.get())
    }

    /// Its type.
    pub fn file_type(&self) -> FileType {
        FileType::of_mode(self.mode())
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.mode() & mode::S_IFMT == mode::S_IFDIR
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.mode() & mode::S_IFMT == mode::S_IFREG
    }

    /// Whether it is a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.mode() & mode::S_IFMT == mode::S_IFLNK
    }

    /// Owner.
    pub fn uid(&self) -> u32 {
        u32::from(self.raw.uid.get()) | u32::from(self.raw.uid_high.get()) << 16
    }

    /// Group.
    pub fn gid(&self) -> u32 {
        u32::from(self.raw.gid.get()) | u32::from(self.raw.gid_high.get()) << 16
    }

    /// Names; of a directory 2 and its directories.
    pub fn nlink(&self) -> u16 {
        self.raw.links_count.get()
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        let high = if self.is_file() { u64::from(self.raw.size_high.get()) } else { 0 };
        u64::from(self.raw.size.get()) | high << 32
    }

    /// Units of 512 bytes that it takes, indirect and attribute blocks counted (`st_blocks`).
    pub fn sectors(&self) -> u64 {
        u64::from(self.raw.blocks.get())
    }

    /// Last access, in seconds since 1970.
    pub fn atime(&self) -> i64 {
        i64::from(self.raw.atime.get().cast_signed())
    }

    /// Last change of content.
    pub fn mtime(&self) -> i64 {
        i64::from(self.raw.mtime.get().cast_signed())
    }

    /// Last change of the inode.
    pub fn ctime(&self) -> i64 {
        i64::from(self.raw.ctime.get().cast_signed())
    }

    /// When it was deleted, or 0.
    pub(crate) fn dtime(&self) -> u32 {
        self.raw.dtime.get()
    }

    /// `FS_*_FL` flags.
    pub fn flags(&self) -> u32 {
        self.raw.flags.get()
    }

    /// Nobody may change it.
    pub fn is_immutable(&self) -> bool {
        self.flags() & flags::IMMUTABLE != 0
    }

    /// Bytes or names may only be added to it.
    pub fn is_append_only(&self) -> bool {
        self.flags() & flags::APPEND != 0
    }

    /// The number that tells an inode from the one that had its number before (NFS).
    pub fn generation(&self) -> u32 {
        self.raw.generation.get()
    }

    /// What a device's node leads to (Linux: `old_decode_dev`, `new_decode_dev`).
    pub fn device(&self) -> Option<Device> {
        let is_device = matches!(self.mode() & mode::S_IFMT, mode::S_IFCHR | mode::S_IFBLK);
        let old = self.pointer(0).0;
        is_device
            .then(|| if old != 0 { Device::decode_old(old) } else { Device::decode_new(self.pointer(1).0) })
    }

    pub(crate) fn pointer(&self, slot: usize) -> Block {
        Block(self.raw.block.get(slot).map_or(0, |word| word.get()))
    }

    pub(crate) fn set_pointer(&mut self, slot: usize, block: Block) {
        if let Some(word) = self.raw.block.get_mut(slot) {
            word.set(block.0);
        }
    }

    pub(crate) fn set_size(&mut self, size: u64) {
        let [a, b, c, d, high @ ..] = size.to_le_bytes();
        self.raw.size.set(u32::from_le_bytes([a, b, c, d]));
        if self.is_file() {
            self.raw.size_high.set(u32::from_le_bytes(high));
        }
    }

    pub(crate) fn add_blocks(&mut self, blocks: u32, sectors: u32) {
        self.raw.blocks.set(self.raw.blocks.get().saturating_add(blocks.saturating_mul(sectors)));
    }

    pub(crate) fn sub_blocks(&mut self, blocks: u32, sectors: u32) {
        self.raw.blocks.set(self.raw.blocks.get().saturating_sub(blocks.saturating_mul(sectors)));
    }

    pub(crate) fn set_nlink(&mut self, nlink: u16) {
        self.raw.links_count.set(nlink);
    }

    pub(crate) fn set_mtime(&mut self, now: i64) {
        self.raw.mtime.set(seconds(now));
    }

    pub(crate) fn set_ctime(&mut self, now: i64) {
        self.raw.ctime.set(seconds(now));
    }

    pub(crate) fn set_atime(&mut self, now: i64) {
        self.raw.atime.set(seconds(now));
    }

    pub(crate) fn set_owner(&mut self, uid: u32, gid: u32) {
        let halves = |id: u32| {
            let [a, b, c, d] = id.to_le_bytes();
            (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))
        };
        let ((uid, uid_high), (gid, gid_high)) = (halves(uid), halves(gid));
        self.raw.uid.set(uid);
        self.raw.uid_high.set(uid_high);
        self.raw.gid.set(gid);
        self.raw.gid_high.set(gid_high);
    }

    /// Whether where it leads is in the pointers (Linux: `ext2_inode_is_fast_symlink`).
    pub(crate) fn is_fast_symlink(&self, sectors: u32) -> bool {
        let attributes = if self.raw.file_acl.get() != 0 { sectors } else { 0 };
        self.is_symlink() && self.raw.blocks.get() == attributes
    }

    /// Whether its pointers are pointers.
    pub(crate) fn has_blocks(&self, sectors: u32) -> bool {
        self.is_file() || self.is_dir() || (self.is_symlink() && !self.is_fast_symlink(sectors))
    }

    pub(crate) fn link_bytes(&self) -> &[u8] {
        self.raw.block.as_bytes()
    }

    pub(crate) fn set_link_bytes(&mut self, target: &[u8]) {
        for (slot, chunk) in self.raw.block.iter_mut().zip(target.chunks(4)) {
            let mut bytes = [0; 4];
            for (to, from) in bytes.iter_mut().zip(chunk) {
                *to = *from;
            }
            slot.set(u32::from_le_bytes(bytes));
        }
        const _: () = assert!(FAST_SYMLINK == N_BLOCKS * 4);
    }
}

/// Seconds as the disk has them: signed, of 32 bits; what does not fit is cut off (Linux: `timestamp_truncate`).
pub fn seconds(time: i64) -> u32 {
    let clamped = time.clamp(i64::from(i32::MIN), i64::from(i32::MAX));
    i32::try_from(clamped).unwrap_or(i32::MAX).cast_unsigned()
}

impl<B: Buffers> Ext2<B> {
    /// Where an inode is in its table (Linux: `ext2_get_inode`).
    fn inode_at(&mut self, ino: Ino) -> Result<(Block, usize), Errno> {
        let geometry = self.geometry;
        let reserved = ino != Ino::ROOT && ino.0 < geometry.first_ino;
        if reserved || ino.0 > geometry.inodes_count {
            return Err(self.corrupt(Errno::Einval, "bad inode number", u64::from(ino.0)));
        }
        let (group, index) = geometry.group_of_inode(ino);
        let table = self.desc(group)?.inode_table.get();
        let each = geometry.block_size / geometry.inode_size;
        let offset = index % each * geometry.inode_size;
        Ok((Block(table).plus(index / each), offset as usize))
    }

    /// An inode that something names or holds (Linux: `ext2_iget`).
    ///
    /// # Errors
    /// `EINVAL` for a number that none can have, `ESTALE` for a deleted one, `EUCLEAN`, `EIO`.
    pub fn inode(&mut self, ino: Ino) -> Result<Inode, Errno> {
        let inode = self.raw_inode(ino)?;
        if inode.nlink() == 0 && !self.held.is_held(ino) {
            return Err(Errno::Estale);
        }
        let bad = if inode.file_type() == FileType::Unknown {
            Some("bogus i_mode")
        } else if inode.size() > i64::MAX.cast_unsigned() {
            Some("negative size")
        } else {
            None
        };
        if let Some(what) = bad {
            return Err(self.corrupt(Errno::Euclean, what, u64::from(ino.0)));
        }
        let acl = inode.raw.file_acl.get();
        if acl != 0 {
            self.check_data_block(Block(acl))?;
        }
        Ok(inode)
    }

    /// The inode that an entry of a directory names: it must exist (Linux: `ext2_lookup`).
    pub(crate) fn named_inode(&mut self, ino: Ino) -> Result<Inode, Errno> {
        match self.inode(ino) {
            Err(Errno::Estale) => Err(self.corrupt(Errno::Eio, "deleted inode referenced", u64::from(ino.0))),
            other => other,
        }
    }

    pub(crate) fn raw_inode(&mut self, ino: Ino) -> Result<Inode, Errno> {
        if let Some(inode) = self.held.copy(ino) {
            return Ok(inode);
        }
        let (block, offset) = self.inode_at(ino)?;
        let part = (offset, size_of::<RawInode>());
        let raw = self.buffers.read_part(block, part, |bytes| RawInode::read_from_bytes(bytes).ok())?;
        let inode = Inode { ino, raw: raw.ok_or(Errno::Eio)? };
        self.held.keep(&inode);
        Ok(inode)
    }

    pub(crate) fn write_inode(&mut self, inode: &Inode) -> Result<(), Errno> {
        let (block, offset) = self.inode_at(inode.ino)?;
        let part = (offset, size_of::<RawInode>());
        self.buffers.change_part(block, part, |bytes| bytes.copy_from_slice(inode.raw.as_bytes()))?;
        self.held.keep(inode);
        Ok(())
    }

    /// Writes an inode whose place held another before: what lies behind the fields that are known becomes zero.
    pub(crate) fn write_new_inode(&mut self, inode: &Inode) -> Result<(), Errno> {
        let (block, offset) = self.inode_at(inode.ino)?;
        let size = self.geometry.inode_size as usize;
        self.buffers.change_part(block, (offset, size), |bytes| bytes.fill(0))?;
        self.write_inode(inode)
    }
}
