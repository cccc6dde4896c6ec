//! Entries in a block of a directory (Linux: fs/ext2/dir.c).

use zerocopy::{FromBytes, IntoBytes};

use crate::inode::Ino;
use crate::layout::{DIR_HEADER, DirHeader, mode};

/// What a name names, as entries of a directory tell (Linux: `EXT2_FT_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FileType {
    /// Not told.
    Unknown = 0,
    /// Regular file.
    Regular = 1,
    /// Directory.
    Directory = 2,
    /// Character device.
    Char = 3,
    /// Block device.
    Block = 4,
    /// Pipe with a name.
    Fifo = 5,
    /// Socket.
    Socket = 6,
    /// Symbolic link.
    Symlink = 7,
}

impl FileType {
    /// The type that the bits of `st_mode` say.
    pub const fn of_mode(bits: u32) -> FileType {
        match bits & mode::S_IFMT {
            mode::S_IFREG => FileType::Regular,
            mode::S_IFDIR => FileType::Directory,
            mode::S_IFCHR => FileType::Char,
            mode::S_IFBLK => FileType::Block,
            mode::S_IFIFO => FileType::Fifo,
            mode::S_IFSOCK => FileType::Socket,
            mode::S_IFLNK => FileType::Symlink,
            _ => FileType::Unknown,
        }
    }

    pub(crate) const fn of_raw(raw: u8) -> FileType {
        match raw {
            1 => FileType::Regular,
            2 => FileType::Directory,
            3 => FileType::Char,
            4 => FileType::Block,
            5 => FileType::Fifo,
            6 => FileType::Socket,
            7 => FileType::Symlink,
            _ => FileType::Unknown,
        }
    }
}

/// An entry; with inode 0 it is free.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Where it begins in the block.
    pub offset: usize,
    /// Bytes up to the next one.
    pub rec_len: usize,
    pub ino: Ino,
    pub file_type: u8,
    pub name: &'a [u8],
}

impl Entry<'_> {
    pub const fn is_free(&self) -> bool {
        self.ino.0 == 0
    }

    /// Bytes behind its name that a new entry may have.
    pub const fn slack(&self) -> usize {
        if self.is_free() { self.rec_len } else { self.rec_len - rec_len(self.name.len()) }
    }
}

/// Bytes that an entry with such a name needs (Linux: `EXT2_DIR_REC_LEN`).
pub const fn rec_len(name_len: usize) -> usize {
    (DIR_HEADER + name_len).next_multiple_of(4)
}

/// The entries of a block, each checked when its turn comes (Linux: `ext2_check_folio`); an error is the last item.
#[derive(Debug)]
pub struct Entries<'a> {
    bytes: &'a [u8],
    at: usize,
    inodes_count: u32,
}

/// All entries of a block, of a file system with so many inodes.
pub const fn entries(bytes: &[u8], inodes_count: u32) -> Entries<'_> {
    Entries { bytes, at: 0, inodes_count }
}

impl<'a> Entries<'a> {
    fn parse(&self) -> Result<Entry<'a>, &'static str> {
        let past = "directory entry across blocks";
        let rest = self.bytes.get(self.at..).ok_or(past)?;
        let (header, names) = DirHeader::ref_from_prefix(rest).map_err(|_| past)?;
        let (rec, name_len) = (usize::from(header.rec_len.get()), usize::from(header.name_len));
        if rec < rec_len(1) {
            return Err("rec_len is smaller than minimal");
        }
        if !rec.is_multiple_of(4) {
            return Err("unaligned directory entry");
        }
        if rec < rec_len(name_len) {
            return Err("rec_len is too small for name_len");
        }
        if rec > rest.len() {
            return Err(past);
        }
        if header.inode.get() > self.inodes_count {
            return Err("inode of a directory entry out of bounds");
        }
        let name = names.get(..name_len).ok_or(past)?;
        let ino = Ino(header.inode.get());
        Ok(Entry { offset: self.at, rec_len: rec, ino, file_type: header.file_type, name })
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let entry = self.parse();
        self.at = entry.as_ref().map_or(self.bytes.len(), |entry| self.at + entry.rec_len);
        Some(entry)
    }
}

/// What a new entry says.
#[derive(Clone, Copy, Debug)]
pub struct NewEntry<'a> {
    pub ino: Ino,
    pub file_type: u8,
    pub name: &'a [u8],
}

/// Writes an entry of `rec` bytes at `offset`.
pub fn put(bytes: &mut [u8], offset: usize, rec: usize, new: NewEntry<'_>) {
    let header = DirHeader {
        inode: new.ino.0.into(),
        rec_len: u16::try_from(rec).unwrap_or(0).into(),
        name_len: u8::try_from(new.name.len()).unwrap_or(u8::MAX),
        file_type: new.file_type,
    };
    let Some(place) = bytes.get_mut(offset..).and_then(|rest| rest.get_mut(..rec)) else { return };
    let (head, rest) = place.split_at_mut(DIR_HEADER.min(rec));
    if head.len() == DIR_HEADER {
        head.copy_from_slice(header.as_bytes());
    }
    if let Some(name) = rest.get_mut(..new.name.len()) {
        name.copy_from_slice(new.name);
    }
}

/// Puts a new entry behind the name of the one at `offset`, or in its place if that is free.
pub fn insert(bytes: &mut [u8], offset: usize, new: NewEntry<'_>) {
    let Some((header, at, rec)) = header_mut(bytes, offset).map(|header| {
        let rec = usize::from(header.rec_len.get());
        let own = if header.inode.get() == 0 { 0 } else { rec_len(usize::from(header.name_len)) };
        (header, own, rec)
    }) else {
        return;
    };
    if at > 0 {
        header.rec_len.set(u16::try_from(at).unwrap_or(0));
    }
    put(bytes, offset + at, rec.saturating_sub(at), new);
}

/// Frees the entry at `offset`; the one before it gets its bytes (Linux: `ext2_delete_entry`).
pub fn remove(bytes: &mut [u8], offset: usize, inodes_count: u32) {
    let mut before = None;
    let mut len = 0;
    for entry in entries(bytes, inodes_count).flatten().take_while(|entry| entry.offset <= offset) {
        if entry.offset < offset {
            before = Some((entry.offset, entry.rec_len));
        } else {
            len = entry.rec_len;
        }
    }
    if let Some((at, own)) = before
        && let Some(header) = header_mut(bytes, at)
    {
        header.rec_len.set(u16::try_from(own + len).unwrap_or(0));
    }
    if let Some(header) = header_mut(bytes, offset) {
        header.inode.set(0);
    }
}

/// Makes the entry at `offset` name another inode.
pub fn set_link(bytes: &mut [u8], offset: usize, ino: Ino, file_type: u8) {
    if let Some(header) = header_mut(bytes, offset) {
        header.inode.set(ino.0);
        header.file_type = file_type;
    }
}

fn header_mut(bytes: &mut [u8], offset: usize) -> Option<&mut DirHeader> {
    bytes.get_mut(offset..).and_then(|rest| DirHeader::mut_from_prefix(rest).ok()).map(|(header, _)| header)
}
