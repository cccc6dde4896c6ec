//! What a name names in a tmpfs (Linux: `struct inode`, mm/shmem.c, fs/ramfs/inode.c).

use alloc::vec::Vec;

use crate::device::Device;
use crate::dir::Directory;
use crate::flags::mode;

/// Number of an inode in its arena. Used again once the inode is gone; what programs see is [`Inode::number`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(pub(crate) u32);

impl InodeId {
    /// The number, for tables beside the file system.
    pub const fn as_u32(self) -> u32 {
        self.0
    }
}

/// A point in time (Linux: `struct timespec64`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timespec {
    /// Seconds since 1970.
    pub sec: i64,
    /// Nanoseconds below a second.
    pub nsec: u32,
}

/// What an inode is.
#[derive(Debug)]
pub enum Content<Id> {
    /// Regular file.
    File(Id),
    /// Directory.
    Directory(Directory),
    /// Symbolic link, and where it leads.
    Symlink(Vec<u8>),
    /// Character device.
    Char(Device),
    /// Block device: there is no driver for any.
    Block(Device),
    /// Pipe.
    Fifo,
    /// A name of a socket: nobody listens.
    Socket,
}

impl<Id> Content<Id> {
    /// The type's bits of `st_mode`.
    pub const fn type_bits(&self) -> u32 {
        match self {
            Content::File(_) => mode::S_IFREG,
            Content::Directory(_) => mode::S_IFDIR,
            Content::Symlink(_) => mode::S_IFLNK,
            Content::Char(_) => mode::S_IFCHR,
            Content::Block(_) => mode::S_IFBLK,
            Content::Fifo => mode::S_IFIFO,
            Content::Socket => mode::S_IFSOCK,
        }
    }
}

/// An inode.
///
/// Invariants:
/// I1  it exists while `nlink` or `holds` is not 0;
/// I2  `nlink` of a directory is 2 and its directories, or 0 once it is removed; of another the number of its names;
/// I3  a directory's `parent` is the one that has its name, or itself at a root.
#[derive(Debug)]
pub struct Inode<Id> {
    /// `st_ino`.
    pub number: u64,
    /// Index of its file system.
    pub(crate) fs: u32,
    /// Permissions, without the type.
    pub permissions: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names.
    pub nlink: u32,
    /// Open files, working directories, mount points: what keeps it without a name.
    pub(crate) holds: u32,
    /// The directory that got a name of it last.
    pub(crate) parent: InodeId,
    /// The last name of what has none any more but is held; `parent` is held then.
    pub(crate) orphan: Option<Vec<u8>>,
    /// Last access.
    pub atime: Timespec,
    /// Last change of content.
    pub mtime: Timespec,
    /// Last change of the inode.
    pub ctime: Timespec,
    /// What it is.
    pub content: Content<Id>,
}

impl<Id> Inode<Id> {
    /// `st_mode`.
    pub const fn mode(&self) -> u32 {
        self.content.type_bits() | self.permissions
    }

    /// Whether it is a directory.
    pub const fn is_dir(&self) -> bool {
        matches!(self.content, Content::Directory(_))
    }

    /// The directory's names.
    pub(crate) fn dir(&self) -> Option<&Directory> {
        match &self.content {
            Content::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    pub(crate) fn dir_mut(&mut self) -> Option<&mut Directory> {
        match &mut self.content {
            Content::Directory(directory) => Some(directory),
            _ => None,
        }
    }
}
