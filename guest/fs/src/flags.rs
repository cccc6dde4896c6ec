//! Flags and modes with Linux's bits.

use bitflags::bitflags;

bitflags! {
    /// Flags of open(2), and of an open file (Linux: include/uapi/asm-generic/fcntl.h).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct OpenFlags: u32 {
        /// Write only; with RDWR in the two bits of the access mode.
        const WRONLY = 0o1;
        /// Read and write.
        const RDWR = 0o2;
        /// Create what is not there.
        const CREAT = 0o100;
        /// With CREAT: fail if it is there.
        const EXCL = 0o200;
        /// A terminal does not become the controlling one.
        const NOCTTY = 0o400;
        /// Cut to no bytes.
        const TRUNC = 0o1000;
        /// Every write goes to the end.
        const APPEND = 0o2000;
        /// Do not wait.
        const NONBLOCK = 0o4000;
        /// Data reaches the disk; no disk here.
        const DSYNC = 0o1_0000;
        /// Signals on input; not supported.
        const ASYNC = 0o2_0000;
        /// No caching.
        const DIRECT = 0o4_0000;
        /// Offsets of 64 bits: always so.
        const LARGEFILE = 0o10_0000;
        /// Only a directory.
        const DIRECTORY = 0o20_0000;
        /// Not through a symbolic link at the end.
        const NOFOLLOW = 0o40_0000;
        /// Times of access stay.
        const NOATIME = 0o100_0000;
        /// Closed by execve.
        const CLOEXEC = 0o200_0000;
        /// As DSYNC, and the inode.
        const SYNC_BIT = 0o400_0000;
        /// A place only: no reading or writing.
        const PATH = 0o1000_0000;
        /// A file without a name; with DIRECTORY.
        const TMPFILE_BIT = 0o2000_0000;
        const _ = !0;
    }

    /// Flags of rename (Linux: include/uapi/linux/fs.h).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct RenameFlags: u32 {
        /// Fail if the new name is there.
        const NOREPLACE = 1;
        /// Both names exist and change places.
        const EXCHANGE = 2;
    }
}

impl OpenFlags {
    /// What F_SETFL may change.
    pub const SETTABLE: OpenFlags = OpenFlags::APPEND
        .union(OpenFlags::NONBLOCK)
        .union(OpenFlags::ASYNC)
        .union(OpenFlags::DIRECT)
        .union(OpenFlags::NOATIME);
    /// What matters at open only, and F_GETFL does not show (Linux: `do_dentry_open`).
    pub const ONCE: OpenFlags = OpenFlags::CREAT
        .union(OpenFlags::EXCL)
        .union(OpenFlags::NOCTTY)
        .union(OpenFlags::TRUNC)
        .union(OpenFlags::CLOEXEC);

    const ACCESS: u32 = 0o3;

    /// Reading is allowed. Access mode 3 is for device requests only, as in Linux.
    pub const fn reads(self) -> bool {
        matches!(self.bits() & OpenFlags::ACCESS, 0 | 2) && !self.contains(OpenFlags::PATH)
    }

    /// Writing is allowed.
    pub const fn writes(self) -> bool {
        matches!(self.bits() & OpenFlags::ACCESS, 1 | 2) && !self.contains(OpenFlags::PATH)
    }
}

pub use mm_core::mode;

/// Limits (Linux: include/uapi/linux/limits.h).
pub const PATH_MAX: usize = 4096;
/// Longest name of a directory's entry.
pub const NAME_MAX: usize = 255;
/// Symbolic links that a path may lead through (Linux: `MAXSYMLINKS`).
pub const MAXSYMLINKS: u32 = 40;
/// Largest offset in a file.
pub const MAX_OFFSET: u64 = i64::MAX as u64;
