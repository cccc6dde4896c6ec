//! Images that the host filled (`mke2fs -d`) and changed (`debugfs -w`).

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use guest_ext2::{Access, Errno, Ext2, FileType, Ino, Ram};

use crate::host::{self, DEFAULT, Debugfs, FORMATS, Format};
use crate::twin::CALLER;

fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at * 7 + at / 251 + seed) % 251).expect("small")).collect()
}

/// A folder of the host with files of many sizes, holes, links and many names.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    let root = folder.path();
    fs::create_dir_all(root.join("a/b/c")).expect("makes");
    for (at, len) in [0, 1, 1023, 1024, 12 * 1024, 12 * 1024 + 1, 60_000, 300_000].into_iter().enumerate() {
        fs::write(root.join(format!("a/file-{len}")), bytes(len, at)).expect("writes");
    }
    let sparse = fs::File::create(root.join("a/sparse")).expect("makes");
    sparse.set_len(3_000_000).expect("grows");
    drop(sparse);
    symlink("short", root.join("a/b/fast")).expect("links");
    symlink("long/".repeat(30), root.join("a/b/slow")).expect("links");
    fs::hard_link(root.join("a/file-1024"), root.join("a/b/again")).expect("links");
    fs::set_permissions(root.join("a/file-1"), fs::Permissions::from_mode(0o640)).expect("sets");
    for number in 0..70 {
        fs::write(root.join(format!("a/b/c/a-name-that-is-not-short-{number}")), [number]).expect("writes");
    }
    folder
}

/// Everything below a folder of the host is below this directory, and nothing else.
fn compare(fs: &mut Ext2<Ram>, dir: Ino, host: &Path) {
    let mut names = Vec::new();
    let list = |entry: guest_ext2::Listed<'_>| {
        names.push((String::from_utf8(entry.name.to_vec()).expect("UTF-8"), entry.ino, entry.file_type));
        true
    };
    fs.list(dir, 0, list).expect("lists");
    names.retain(|(name, ..)| name != "." && name != ".." && name != "lost+found");
    assert_eq!(names.len(), fs::read_dir(host).expect("lists").count());
    for (name, ino, file_type) in names {
        let path = host.join(&name);
        let inode = fs.lookup(dir, name.as_bytes()).expect("finds");
        assert_eq!(inode.ino, ino);
        assert!(file_type == FileType::Unknown || file_type == inode.file_type());
        let meta = fs::symlink_metadata(&path).expect("exists");
        assert_eq!(inode.mode(), meta.permissions().mode(), "{name}");
        if meta.is_dir() {
            compare(fs, ino, &path);
        } else if meta.is_symlink() {
            let target = fs::read_link(&path).expect("reads").into_os_string().into_encoded_bytes();
            assert_eq!(fs.read_link(ino).expect("reads"), target);
        } else {
            let expected = fs::read(&path).expect("reads");
            let mut found = vec![1; expected.len() + 1];
            assert_eq!(fs.read(ino, 0, &mut found).expect("reads"), expected.len(), "{name}");
            assert!(found[..expected.len()] == expected, "{name} holds other bytes");
        }
    }
}

fn with_room(format: &Format) -> Format {
    Format { blocks: 1200 * 1024 / format.block + 1000, inodes: 512, ..*format }
}

#[test]
fn what_the_host_put_into_an_image_is_read() {
    if !host::is_ready() {
        return;
    }
    let folder = folder();
    for format in FORMATS.iter().map(with_room) {
        let image = host::mke2fs(&format, Some(folder.path()));
        let mut fs = Ext2::mount(Ram::read_only(image), Access::ReadWrite, 0).expect("mounts");
        assert_eq!(fs.access(), Access::ReadOnly);
        compare(&mut fs, Ino::ROOT, folder.path());
        assert_eq!(fs.take_error(), None);
    }
}

#[test]
fn what_the_host_put_into_an_image_can_be_removed_until_it_is_empty() {
    if !host::is_ready() {
        return;
    }
    let folder = folder();
    for format in [FORMATS[0], FORMATS[4], FORMATS[8]].iter().map(with_room) {
        let empty = Ext2::mount(Ram::new(host::mke2fs(&format, None)), Access::ReadOnly, 0);
        let empty = empty.expect("mounts").statfs().expect("tells");
        let image = host::mke2fs(&format, Some(folder.path()));
        let mut fs = Ext2::mount(Ram::new(image), Access::ReadWrite, CALLER.now).expect("mounts");
        remove_below(&mut fs, Ino::ROOT);
        let now = fs.statfs().expect("tells");
        assert_eq!((now.free, now.free_files), (empty.free, empty.free_files));
        fs.unmount(CALLER.now).expect("unmounts");
        assert_eq!(host::e2fsck(fs.into_buffers().bytes()), Ok(()));
    }
}

fn remove_below(fs: &mut Ext2<Ram>, dir: Ino) {
    let mut names: Vec<Vec<u8>> = Vec::new();
    fs.list(dir, 0, |entry| {
        names.push(entry.name.to_vec());
        true
    })
    .expect("lists");
    for name in names.iter().filter(|name| !matches!(&name[..], b"." | b".." | b"lost+found")) {
        let inode = fs.lookup(dir, name).expect("finds");
        if inode.is_dir() {
            remove_below(fs, inode.ino);
            fs.rmdir(dir, name, CALLER.now).expect("removes");
        } else {
            fs.unlink(dir, name, CALLER.now).expect("removes");
        }
    }
}

#[test]
fn a_directory_with_an_index_is_read_changed_and_loses_the_index() {
    if !host::is_ready() {
        return;
    }
    let folder = tempfile::tempdir().expect("temporary folder");
    fs::create_dir(folder.path().join("many")).expect("makes");
    for number in 0..120 {
        fs::write(folder.path().join(format!("many/{number:0100}")), []).expect("writes");
    }
    let format = Format { inodes: 256, ..with_room(&FORMATS[5]) };
    assert_eq!(format.features, DEFAULT);
    let image = host::index(&host::mke2fs(&format, Some(folder.path())));
    let mut fs = Ext2::mount(Ram::new(image), Access::ReadWrite, CALLER.now).expect("mounts");
    compare(&mut fs, Ino::ROOT, folder.path());
    let many = fs.lookup(Ino::ROOT, b"many").expect("finds");
    assert_ne!(many.flags() & 0x1000, 0, "e2fsck -D made no index");
    for number in 0..40 {
        fs.create(&CALLER, many.ino, format!("more-{number}").as_bytes(), 0o600).expect("makes");
        fs.unlink(many.ino, format!("{:0100}", number * 3).as_bytes(), CALLER.now).expect("removes");
    }
    assert_eq!(fs.inode(many.ino).expect("reads").flags() & 0x1000, 0);
    fs.unmount(CALLER.now).expect("unmounts");
    assert_eq!(host::e2fsck(fs.into_buffers().bytes()), Ok(()));
}

#[test]
fn a_shared_block_of_attributes_is_freed_with_its_last_inode() {
    if !host::is_ready() {
        return;
    }
    let format = Format { inode: 128, ..FORMATS[5] };
    let long = "x".repeat(200);
    let commands = format!(
        "write /dev/null one\nwrite /dev/null two\nea_set one user.a {long}\nea_set two user.a {long}\n"
    );
    let image = Debugfs::new(&host::image(&format)).change(&commands);
    let mut fs = Ext2::mount(Ram::new(image), Access::ReadWrite, CALLER.now).expect("mounts");
    let free = fs.statfs().expect("tells").free;
    let one = fs.lookup(Ino::ROOT, b"one").expect("finds");
    assert_eq!(one.sectors(), 2, "debugfs gave it a block");
    fs.unlink(Ino::ROOT, b"one", CALLER.now).expect("removes");
    fs.unlink(Ino::ROOT, b"two", CALLER.now).expect("removes");
    assert!(fs.statfs().expect("tells").free > free);
    assert_eq!(fs.lookup(Ino::ROOT, b"two"), Err(Errno::Enoent));
    fs.unmount(CALLER.now).expect("unmounts");
    assert_eq!(host::e2fsck(fs.into_buffers().bytes()), Ok(()));
}
