//! Bits of `st_mode` (Linux: include/uapi/linux/stat.h), which file systems also have on their disks.

/// Bits of the type.
pub const S_IFMT: u32 = 0o17_0000;
/// Socket.
pub const S_IFSOCK: u32 = 0o14_0000;
/// Symbolic link.
pub const S_IFLNK: u32 = 0o12_0000;
/// Regular file.
pub const S_IFREG: u32 = 0o10_0000;
/// Block device.
pub const S_IFBLK: u32 = 0o6_0000;
/// Directory.
pub const S_IFDIR: u32 = 0o4_0000;
/// Character device.
pub const S_IFCHR: u32 = 0o2_0000;
/// Pipe with a name.
pub const S_IFIFO: u32 = 0o1_0000;
/// Set user on execve.
pub const S_ISUID: u32 = 0o4000;
/// Set group on execve; of a directory: children inherit the group.
pub const S_ISGID: u32 = 0o2000;
/// All but the type.
pub const PERMISSIONS: u32 = 0o7777;
/// Any right to execute.
pub const S_IXUGO: u32 = 0o111;
