//! The calls.

use guest_fs::OpenFlags;
use proptest::prelude::*;

/// A call. A number of a file is one of four that may be open.
#[derive(Clone, Debug)]
pub enum Op {
    /// openat; the file that was open by this number is closed.
    Open { slot: usize, path: String, flags: OpenFlags, mode: u32 },
    /// close.
    Close { slot: usize },
    /// read.
    Read { slot: usize, len: usize },
    /// write.
    Write { slot: usize, len: usize, byte: u8 },
    /// pread.
    Pread { slot: usize, len: usize, at: u64 },
    /// pwrite.
    Pwrite { slot: usize, len: usize, at: u64, byte: u8 },
    /// lseek.
    Seek { slot: usize, offset: i64, whence: u32 },
    /// ftruncate.
    Ftruncate { slot: usize, len: u64 },
    /// fstat.
    Fstat { slot: usize },
    /// getdents64, from the start.
    List { slot: usize },
    /// mkdir.
    Mkdir { path: String, mode: u32 },
    /// rmdir.
    Rmdir { path: String },
    /// unlink.
    Unlink { path: String },
    /// renameat2.
    Rename { from: String, to: String, flags: u32 },
    /// linkat.
    Link { from: String, to: String, follow: bool },
    /// symlink.
    Symlink { target: String, path: String },
    /// readlink.
    Readlink { path: String },
    /// stat and lstat.
    Stat { path: String, follow: bool },
    /// truncate.
    Truncate { path: String, len: u64 },
    /// chmod.
    Chmod { path: String, mode: u32 },
    /// access.
    Access { path: String, mode: u32 },
    /// mknod of a pipe or a regular file.
    Mknod { path: String, fifo: bool, mode: u32 },
    /// chdir of the base: a directory by number becomes what paths begin at.
    Chdir { path: String },
}

fn part() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => "[abc]",
        2 => Just("l".to_owned()),
        1 => Just(".".to_owned()),
        1 => Just("..".to_owned()),
    ]
}

fn path() -> impl Strategy<Value = String> {
    let parts = prop::collection::vec(part(), 1..4);
    let plain = (parts, prop_oneof![8 => Just(""), 1 => Just("/"), 1 => Just("//")])
        .prop_map(|(parts, end)| parts.join("/") + end);
    let odd = prop_oneof![
        Just(String::new()),
        Just("n".repeat(255)),
        Just("n".repeat(256)),
        Just("a/".to_owned() + &"n".repeat(256)),
        Just("./".repeat(2047) + "a"),
        Just("./".repeat(2048)),
    ];
    prop_oneof![20 => plain, 1 => odd]
}

fn flags() -> impl Strategy<Value = OpenFlags> {
    let access = prop_oneof![Just(OpenFlags::empty()), Just(OpenFlags::WRONLY), Just(OpenFlags::RDWR)];
    let rest = [
        (OpenFlags::CREAT, 0.6),
        (OpenFlags::EXCL, 0.2),
        (OpenFlags::TRUNC, 0.2),
        (OpenFlags::APPEND, 0.2),
        (OpenFlags::DIRECTORY, 0.15),
        (OpenFlags::NOFOLLOW, 0.15),
        (OpenFlags::PATH, 0.07),
    ];
    let rest: Vec<_> =
        rest.into_iter().map(|(flag, chance)| (Just(flag), prop::bool::weighted(chance))).collect();
    // A pipe would wait for its other end.
    (access, rest).prop_map(|(access, rest)| {
        let chosen = rest.into_iter().filter(|(_, chosen)| *chosen).map(|(flag, _)| flag);
        chosen.fold(access | OpenFlags::NONBLOCK, |flags, flag| flags | flag)
    })
}

fn op() -> impl Strategy<Value = Op> {
    let slot = || 0..4_usize;
    let len = || prop_oneof![0..20_usize, Just(4095_usize), Just(5000)];
    let at = || prop_oneof![0..40_u64, Just(4096), Just(9000)];
    let mode = || prop_oneof![Just(0o644_u32), Just(0o755), Just(0), 0..0o10000_u32];
    let files = prop_oneof![
        6 => (slot(), path(), flags(), mode())
            .prop_map(|(slot, path, flags, mode)| Op::Open { slot, path, flags, mode }),
        1 => slot().prop_map(|slot| Op::Close { slot }),
        2 => (slot(), len()).prop_map(|(slot, len)| Op::Read { slot, len }),
        3 => (slot(), len(), any::<u8>()).prop_map(|(slot, len, byte)| Op::Write { slot, len, byte }),
        1 => (slot(), len(), at()).prop_map(|(slot, len, at)| Op::Pread { slot, len, at }),
        1 => (slot(), len(), at(), any::<u8>()).prop_map(|(slot, len, at, byte)| Op::Pwrite { slot, len, at, byte }),
        2 => (slot(), -30..60_i64, 0..6_u32).prop_map(|(slot, offset, whence)| Op::Seek { slot, offset, whence }),
        1 => (slot(), at()).prop_map(|(slot, len)| Op::Ftruncate { slot, len }),
        2 => slot().prop_map(|slot| Op::Fstat { slot }),
        1 => slot().prop_map(|slot| Op::List { slot }),
    ];
    let names = prop_oneof![
        4 => (path(), mode()).prop_map(|(path, mode)| Op::Mkdir { path, mode }),
        2 => path().prop_map(|path| Op::Rmdir { path }),
        2 => path().prop_map(|path| Op::Unlink { path }),
        4 => (path(), path(), prop_oneof![4 => Just(0_u32), 1 => Just(1), 1 => Just(2), 1 => Just(3)])
            .prop_map(|(from, to, flags)| Op::Rename { from, to, flags }),
        2 => (path(), path(), any::<bool>()).prop_map(|(from, to, follow)| Op::Link { from, to, follow }),
        2 => (path(), path()).prop_map(|(target, path)| Op::Symlink { target, path }),
        1 => path().prop_map(|path| Op::Readlink { path }),
        2 => (path(), any::<bool>()).prop_map(|(path, follow)| Op::Stat { path, follow }),
        1 => (path(), at()).prop_map(|(path, len)| Op::Truncate { path, len }),
        1 => (path(), mode()).prop_map(|(path, mode)| Op::Chmod { path, mode }),
        1 => (path(), 0..8_u32).prop_map(|(path, mode)| Op::Access { path, mode }),
        1 => (path(), any::<bool>(), mode()).prop_map(|(path, fifo, mode)| Op::Mknod { path, fifo, mode }),
        1 => path().prop_map(|path| Op::Chdir { path }),
    ];
    prop_oneof![files, names]
}

/// A sequence.
pub fn ops() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(), 1..80)
}
