//! The initramfs.

use std::format;
use std::string::String;
use std::vec::Vec;

use proptest::prelude::*;

use super::empty;
use crate::{CpioError, Errno, Follow, Kind, OpenFlags, Reader, unpack};

/// What is not zero of an entry's header.
#[derive(Clone, Debug, Default)]
struct Head {
    ino: u32,
    mode: u32,
    nlink: u32,
    rdev: (u32, u32),
}

fn entry(archive: &mut Vec<u8>, head: &Head, name: &str, data: &[u8]) {
    let (len, name_len) =
        (u32::try_from(data.len()).expect("small"), u32::try_from(name.len() + 1).expect("small"));
    let fields =
        [head.ino, head.mode, 0, 0, head.nlink, 77, len, 0, 0, head.rdev.0, head.rdev.1, name_len, 0];
    archive.extend_from_slice(b"070701");
    let digits: String = fields.iter().map(|field| format!("{field:08X}")).collect();
    archive.extend_from_slice(digits.as_bytes());
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

fn head(mode: u32) -> Head {
    Head { ino: 0, mode, nlink: 1, rdev: (0, 0) }
}

fn trailer(archive: &mut Vec<u8>) {
    entry(archive, &head(0), "TRAILER!!!", b"");
}

#[test]
fn an_archive_becomes_the_root() {
    let mut archive = Vec::new();
    entry(&mut archive, &head(0o40_755), ".", b"");
    entry(&mut archive, &head(0o40_755), "bin", b"");
    entry(&mut archive, &head(0o104_755), "bin/su", b"program");
    entry(&mut archive, &head(0o120_777), "init", b"bin/su");
    entry(&mut archive, &Head { rdev: (5, 1), ..head(0o20_600) }, "console", b"");
    entry(&mut archive, &Head { ino: 9, nlink: 2, ..head(0o100_644) }, "one", b"");
    entry(&mut archive, &Head { ino: 9, nlink: 2, ..head(0o100_644) }, "two", b"linked");
    trailer(&mut archive);
    archive.resize(archive.len().next_multiple_of(512), 0);
    let second = archive.len();
    entry(&mut archive, &head(0o100_600), "bin/late", b"from a second archive");
    let (mut vfs, context) = empty();
    let result = unpack(&mut vfs, &context, &archive);
    assert_eq!((result.entries, result.failed, result.error), (8, None, None), "second at {second}");
    vfs.audit().expect("sound");
    let stat = |path: &str| {
        vfs.stat(vfs.lookup(&context, context.cwd, path.as_bytes(), Follow::Yes).expect(path)).expect(path)
    };
    assert_eq!((stat("init").mode, stat("init").size, stat("init").mtime.sec), (0o104_755, 7, 77));
    assert_eq!(stat("bin").mtime.sec, 77, "of the archive, not of its last entry");
    assert_eq!(stat("console").rdev, crate::Device { major: 5, minor: 1 });
    assert_eq!((stat("one").ino, stat("one").nlink, stat("one").size), (stat("two").ino, 2, 6));
    let file = vfs.open(&context, context.cwd, b"bin/late", OpenFlags::empty(), 0).expect("open");
    let Kind::Regular(data) = file.kind else { panic!("{:?}", file.kind) };
    assert_eq!(vfs.data.bytes(data), b"from a second archive");
}

#[test]
fn an_entry_that_cannot_be_made_does_not_stop_the_rest() {
    let mut archive = Vec::new();
    entry(&mut archive, &head(0o100_644), "missing/file", b"x");
    entry(&mut archive, &head(0o100_644), "../../up", b"x");
    trailer(&mut archive);
    let (mut vfs, context) = empty();
    let result = unpack(&mut vfs, &context, &archive);
    assert_eq!((result.failed, result.error), (Some((1, Errno::Enoent)), None));
    assert!(vfs.lookup(&context, context.cwd, b"up", Follow::No).is_ok(), "nothing is above the root");
}

#[test]
fn a_later_entry_replaces_what_is_in_its_way() {
    let mut archive = Vec::new();
    entry(&mut archive, &head(0o40_755), "x", b"");
    entry(&mut archive, &head(0o100_644), "x", b"long content");
    entry(&mut archive, &head(0o100_600), "x", b"short");
    entry(&mut archive, &head(0o120_777), "y", b"x");
    entry(&mut archive, &head(0o100_600), "y", b"no longer a link");
    let (mut vfs, context) = empty();
    let result = unpack(&mut vfs, &context, &archive);
    assert_eq!((result.failed, result.error), (None, None));
    let stat = |path: &[u8]| {
        vfs.stat(vfs.lookup(&context, context.cwd, path, Follow::No).expect("there")).expect("there")
    };
    assert_eq!((stat(b"x").size, stat(b"y").size, stat(b"y").mode), (5, 16, 0o100_600));
}

#[test]
fn what_is_no_archive_is_said_in_one_line() {
    let first = |bytes: &[u8]| Reader::new(bytes).next().expect("an entry").expect_err("not one");
    assert_eq!(first(&[0x1f, 0x8b, 8, 0]), CpioError::Compressed("gzip"));
    assert!(format!("{}", first(&[0x28, 0xb5, 0x2f, 0xfd])).contains("zstd"));
    assert_eq!(first(b"junk"), CpioError::Magic(0));
    assert_eq!(first(b"070701"), CpioError::Short(0));
    assert!(Reader::new(&[0; 1024]).next().is_none());
    let mut archive = Vec::new();
    entry(&mut archive, &head(0o100_644), "file", b"content");
    archive.truncate(archive.len() - 2);
    assert_eq!(first(&archive), CpioError::Short(0));
    archive[10] = b'x';
    assert_eq!(first(&archive), CpioError::Digit(0));
}

proptest! {
    #[test]
    fn any_bytes_leave_a_sound_tree(
        mut archive in prop::collection::vec(any::<u8>(), 0..50),
        entries in prop::collection::vec(("[ab./]{1,6}", 0..0o200_000_u32, 0..3_u32, "[ab/.]{0,4}"), 0..12),
        cut in 0..200_usize,
    ) {
        let mut good = Vec::new();
        for (name, mode, ino, data) in entries {
            let mode = if mode % 3 == 0 { 0o40_755 } else { mode };
            entry(&mut good, &Head { ino, mode, nlink: 1 + ino, rdev: (1, 3) }, &name, data.as_bytes());
        }
        good.truncate(good.len().saturating_sub(cut));
        good.append(&mut archive);
        let (mut vfs, context) = empty();
        unpack(&mut vfs, &context, &good);
        prop_assert_eq!(vfs.audit(), Ok(()));
    }
}
