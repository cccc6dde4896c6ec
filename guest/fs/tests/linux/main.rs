//! Random sequences of calls on the crate and on the Linux of this machine, in a directory that starts empty: every result, errno, length,
//! byte and entry must be the same. `MEMVISOR_SEQUENCES=10000 cargo test --release -p guest-fs --test linux` runs more.
//!
//! The directory is in /dev/shm where that is a tmpfs, so that counts of links and sizes of directories are compared, too.

mod disk;
mod guest;
mod host;
mod op;

use guest::Guest;
use guest_fs::OpenFlags;
use host::Host;
use op::{Op, ops};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// What a call gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A number.
    Number(u64),
    /// Bytes.
    Bytes(Vec<u8>),
    /// What the stat family tells.
    #[expect(missing_docs, reason = "the names say it")]
    Stat { mode: u32, nlink: Option<u64>, size: Option<u64> },
    /// Names and types, sorted.
    Names(Vec<(Vec<u8>, u8)>),
    /// Nothing is open there: no call.
    Nothing,
    /// An errno.
    Failed(i32),
}

/// Directories above the one that the sequences start in: `..` cannot leave them.
pub const ABOVE: usize = 24;

fn sequences() -> u32 {
    std::env::var("MEMVISOR_SEQUENCES").ok().and_then(|text| text.parse().ok()).unwrap_or(200)
}

fn agree(ops: &[Op]) -> Result<(), TestCaseError> {
    let mut host = Host::new();
    let mut guest = Guest::new(host::UMASK);
    for (number, op) in ops.iter().enumerate() {
        let linux = host.run(op);
        let ours = guest.run(op);
        prop_assert_eq!(&ours, &linux, "ours, Linux's: call {} of {:?}", number, ops);
        guest
            .audit()
            .map_err(|what| TestCaseError::fail(format!("{what:?} after call {number} of {ops:?}")))?;
    }
    prop_assert!(guest.is_clean_after_closing(), "inodes or bytes are left of {:?}", ops);
    Ok(())
}

#[test]
fn random_sequences_are_as_on_linux() {
    let mut runner =
        TestRunner::new(Config { cases: sequences(), failure_persistence: None, ..Config::default() });
    runner.run(&ops(), |ops| agree(&ops)).unwrap_or_else(|error| panic!("{error}"));
}

/// A directory's size is a disk's own matter.
fn without_sizes(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Stat { mode, nlink, .. } if mode & 0o170_000 == 0o40_000 => {
            Outcome::Stat { mode, nlink, size: None }
        }
        other => other,
    }
}

fn agree_on_disk(image: &[u8], ops: &[Op]) -> Result<(), TestCaseError> {
    let mut host = Host::new();
    let mut guest = Guest::on_disk(host::UMASK, image);
    for (number, op) in ops.iter().filter(|op| disk::can(op)).enumerate() {
        let linux = without_sizes(host.run(op));
        let ours = guest.run(op);
        prop_assert_eq!(&ours, &linux, "ours, Linux's: call {} {:?} of {:?}", number, op, ops);
    }
    let image = guest.unmount();
    disk::check(&image).map_err(|said| TestCaseError::fail(format!("{said} after {ops:?}")))
}

#[test]
fn random_sequences_on_ext2_are_as_on_linux() {
    let Some(image) = disk::image() else { return };
    let cases = sequences() / 4;
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    runner.run(&ops(), |ops| agree_on_disk(&image, &ops)).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_directory_and_those_above_it_are_not_renamed_to_each_other() {
    let mkdir = |path: &str| Op::Mkdir { path: path.into(), mode: 0o755 };
    let mut ops = vec![mkdir("a"), mkdir("a/b"), mkdir("a/b/c")];
    for flags in 0..4 {
        for (from, to) in [("a/b/c", "a"), ("a", "a/b/c"), ("a/b", "a/b/x"), ("a", "a"), ("a/b/c", "a/b")] {
            ops.push(Op::Rename { from: from.into(), to: to.into(), flags });
        }
    }
    agree(&ops).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_write_of_nothing_leaves_an_appending_file_where_it_is() {
    let flags = OpenFlags::RDWR | OpenFlags::CREAT | OpenFlags::APPEND;
    let ops = [
        Op::Open { slot: 0, path: "f".into(), flags, mode: 0o644 },
        Op::Write { slot: 0, len: 9, byte: 1 },
        Op::Seek { slot: 0, offset: 4, whence: 0 },
        Op::Write { slot: 0, len: 0, byte: 2 },
        Op::Seek { slot: 0, offset: 0, whence: 1 },
        Op::Write { slot: 0, len: 2, byte: 3 },
        Op::Seek { slot: 0, offset: 0, whence: 1 },
    ];
    agree(&ops).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_named_pipe_that_lost_its_name_has_no_links() {
    let flags = OpenFlags::RDWR | OpenFlags::NONBLOCK;
    let ops = [
        Op::Mknod { path: "pipe".into(), fifo: true, mode: 0o644 },
        Op::Open { slot: 0, path: "pipe".into(), flags, mode: 0 },
        Op::Unlink { path: "pipe".into() },
        Op::Fstat { slot: 0 },
    ];
    agree(&ops).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_removed_directory_has_no_entries_of_any_length() {
    let long = "n".repeat(300);
    let mut ops = vec![
        Op::Mkdir { path: "a".into(), mode: 0o755 },
        Op::Mkdir { path: "d".into(), mode: 0o755 },
        Op::Chdir { path: "d".into() },
        Op::Rmdir { path: "../d".into() },
    ];
    for name in [long.as_str(), "short"] {
        let path = || name.to_owned();
        ops.extend([
            Op::Stat { path: path(), follow: true },
            Op::Open { slot: 0, path: path(), flags: OpenFlags::RDWR | OpenFlags::CREAT, mode: 0o644 },
            Op::Mkdir { path: path(), mode: 0o755 },
            Op::Symlink { target: path(), path: path() },
            Op::Link { from: path(), to: "../a/b".into(), follow: false },
            Op::Link { from: "../a".into(), to: path(), follow: false },
            Op::Rename { from: path(), to: "../a/b".into(), flags: 0 },
            Op::Rename { from: "../a".into(), to: path(), flags: 0 },
            Op::Unlink { path: path() },
            Op::Rmdir { path: path() },
        ]);
    }
    agree(&ops).unwrap_or_else(|error| panic!("{error}"));
}
