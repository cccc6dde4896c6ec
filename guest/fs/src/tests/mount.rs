//! Mounts, /proc's tree, and paths for people.

use std::string::String;
use std::vec::Vec;

use super::{at, empty};
use crate::{Context, Errno, Follow, Kind, MountRequest, OpenFlags, PathState, Place, Vecs, Vfs, Whence};

use super::One;

fn mount(
    vfs: &mut Vfs<Vecs, One>,
    context: &Context,
    kind: &'static str,
    path: &'static str,
) -> Result<(), Errno> {
    let target = vfs.lookup(context, context.cwd, path.as_bytes(), Follow::Yes)?;
    let request = MountRequest { source: b"none", kind: kind.as_bytes(), flags: 0, options: b"" };
    vfs.mount(context, target, &request)
}

fn find(vfs: &Vfs<Vecs, One>, context: &Context, path: &str) -> Result<Place, Errno> {
    vfs.lookup(context, context.cwd, path.as_bytes(), Follow::Yes)
}

fn list(vfs: &Vfs<Vecs, One>, place: Place, room: usize) -> Vec<String> {
    let (mut names, mut pos) = (Vec::new(), 0);
    loop {
        let (bytes, next) = vfs.getdents(place, pos, room).expect("room for one");
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let len = usize::from(u16::from_le_bytes([rest[16], rest[17]]));
            let name = rest[19..len].split(|byte| *byte == 0).next().expect("a name");
            names.push(String::from_utf8(name.to_vec()).expect("text"));
            rest = &rest[len..];
        }
        if bytes.is_empty() {
            return names;
        }
        pos = next;
    }
}

#[test]
fn a_mount_covers_its_directory_and_gives_it_back() {
    let (mut vfs, context) = empty();
    vfs.mkdir(&context, at(&context, "m"), 0o755).expect("mkdir");
    vfs.mkdir(&context, at(&context, "m/below"), 0o755).expect("mkdir");
    let inodes = vfs.inodes_in_use();
    mount(&mut vfs, &context, "tmpfs", "m").expect("mount");
    assert_eq!(find(&vfs, &context, "m/below"), Err(Errno::Enoent));
    vfs.mkdir(&context, at(&context, "m/above"), 0o755).expect("mkdir");
    let up = find(&vfs, &context, "m/above/../..").expect("the root");
    assert_eq!(up, context.root);
    assert_eq!(vfs.rmdir(&context, at(&context, "m")), Err(Errno::Ebusy));
    let (from, to) = (at(&context, "m/above"), at(&context, "moved"));
    assert_eq!(vfs.rename(&context, from, to, crate::RenameFlags::empty()), Err(Errno::Exdev));
    vfs.audit().expect("sound");
    let root = find(&vfs, &context, "m").expect("mounted");
    vfs.hold(root);
    assert_eq!(vfs.umount(&context, root, 0), Err(Errno::Ebusy));
    vfs.put(root);
    vfs.umount(&context, root, 0).expect("idle");
    find(&vfs, &context, "m/below").expect("uncovered");
    assert_eq!(vfs.inodes_in_use(), inodes, "the tmpfs is gone");
    vfs.audit().expect("sound");
}

#[test]
fn a_detached_mount_lives_while_it_is_used_and_takes_what_lies_on_it_along() {
    let (mut vfs, context) = empty();
    vfs.mkdir(&context, at(&context, "m"), 0o755).expect("mkdir");
    let inodes = vfs.inodes_in_use();
    mount(&mut vfs, &context, "tmpfs", "m").expect("mount");
    vfs.mkdir(&context, at(&context, "m/n"), 0o755).expect("mkdir");
    mount(&mut vfs, &context, "tmpfs", "m/n").expect("mount");
    let flags = OpenFlags::CREAT | OpenFlags::RDWR;
    let file = vfs.open(&context, context.cwd, b"m/n/f", flags, 0o600).expect("open");
    let root = find(&vfs, &context, "m").expect("mounted");
    vfs.umount(&context, root, 2).expect("MNT_DETACH");
    vfs.audit().expect("sound");
    assert_eq!(find(&vfs, &context, "m/n"), Err(Errno::Enoent));
    assert!(vfs.stat(file.place).is_ok());
    vfs.put(file.place);
    assert_eq!((vfs.inodes_in_use(), vfs.data.count()), (inodes, 0));
    vfs.audit().expect("sound");
}

#[test]
fn devices_are_the_same_wherever_they_are_mounted() {
    let (mut vfs, context) = empty();
    for path in ["d", "e"] {
        vfs.mkdir(&context, crate::At { base: context.cwd, path: path.as_bytes() }, 0o755).expect("mkdir");
    }
    mount(&mut vfs, &context, "devtmpfs", "d").expect("mount");
    mount(&mut vfs, &context, "devtmpfs", "e").expect("mount");
    assert_eq!(mount(&mut vfs, &context, "devtmpfs", "e"), Err(Errno::Ebusy));
    assert_eq!(mount(&mut vfs, &context, "sysfs", "e"), Err(Errno::Enodev));
    let file = vfs.open(&context, context.cwd, b"d/null", OpenFlags::RDWR, 0).expect("open");
    assert_eq!(file.kind, Kind::Char(crate::Char::Null));
    vfs.put(file.place);
    vfs.mkdir(&context, at(&context, "d/pts"), 0o755).expect("mkdir");
    find(&vfs, &context, "e/pts").expect("the same directory");
    let mut text = String::new();
    vfs.show_mounts(&context, &mut text).expect("text");
    assert_eq!(
        text,
        "none / rootfs rw 0 0\nnone /d devtmpfs rw,relatime 0 0\nnone /e devtmpfs rw,relatime 0 0\n"
    );
}

#[test]
fn proc_lists_what_can_be_looked_up() {
    let (mut vfs, context) = empty();
    vfs.mkdir(&context, at(&context, "proc"), 0o755).expect("mkdir");
    mount(&mut vfs, &context, "proc", "proc").expect("mount");
    for dir in ["proc", "proc/7", "proc/7/fd", "proc/7/task", "proc/7/task/8"] {
        let place = find(&vfs, &context, dir).expect("a directory");
        let all = list(&vfs, place, 4096);
        assert_eq!(all, list(&vfs, place, 40), "one at a time");
        for name in &all {
            let found = vfs.lookup(&context, place, name.as_bytes(), Follow::No);
            assert!(found.is_ok(), "{dir}/{name}: {found:?}");
        }
        assert!(all.len() > 2, "{dir}");
    }
    assert_eq!(find(&vfs, &context, "proc/self"), find(&vfs, &context, "proc/7"));
    assert_eq!(find(&vfs, &context, "proc/thread-self"), find(&vfs, &context, "proc/7/task/8"));
    assert_eq!(find(&vfs, &context, "proc/mounts"), find(&vfs, &context, "proc/7/mounts"));
    assert_eq!(find(&vfs, &context, "proc/9"), Err(Errno::Enoent));
    assert_eq!(find(&vfs, &context, "proc/07"), Err(Errno::Enoent));
    assert_eq!(vfs.mkdir(&context, at(&context, "proc/x"), 0o755), Err(Errno::Eacces));
}

#[test]
fn a_link_of_proc_leads_to_the_file_whatever_its_name() {
    let (mut vfs, context) = empty();
    for path in ["proc", "dir"] {
        vfs.mkdir(&context, crate::At { base: context.cwd, path: path.as_bytes() }, 0o755).expect("mkdir");
    }
    mount(&mut vfs, &context, "proc", "proc").expect("mount");
    let flags = OpenFlags::CREAT | OpenFlags::RDWR;
    let file = vfs.open(&context, context.cwd, b"dir/file", flags, 0o600).expect("open");
    vfs.processes.place = Some(file.place);
    let link = vfs.lookup(&context, context.cwd, b"proc/self/fd/3", Follow::No).expect("a link");
    assert_eq!(vfs.stat(link).expect("stat").mode, 0o120_500);
    assert_eq!(vfs.read_link(&context, link).expect("a link"), b"/dir/file");
    vfs.unlink(&context, at(&context, "dir/file")).expect("unlink");
    vfs.rmdir(&context, at(&context, "dir")).expect("rmdir");
    assert_eq!(vfs.read_link(&context, link).expect("a link"), b"/dir/file (deleted)");
    let again = vfs.open(&context, context.cwd, b"proc/self/fd/3", OpenFlags::empty(), 0).expect("open");
    assert_eq!(again.kind, file.kind);
    vfs.audit().expect("sound");
    vfs.put(again.place);
    vfs.put(file.place);
    vfs.audit().expect("sound");
    assert_eq!(vfs.data.count(), 0);
}

#[test]
fn a_removed_working_directory_has_a_parent_but_no_path() {
    let (mut vfs, mut context) = empty();
    vfs.mkdir(&context, at(&context, "a"), 0o755).expect("mkdir");
    vfs.mkdir(&context, at(&context, "a/b"), 0o755).expect("mkdir");
    let root = context.root;
    context.cwd = find(&vfs, &context, "a/b").expect("a directory");
    vfs.hold(context.cwd);
    assert_eq!(vfs.getcwd(&context, 100).expect("a path"), b"/a/b\0");
    assert_eq!(vfs.getcwd(&context, 4), Err(Errno::Erange));
    vfs.rmdir(&context, crate::At { base: root, path: b"a/b" }).expect("rmdir");
    vfs.rmdir(&context, crate::At { base: root, path: b"a" }).expect("rmdir");
    assert_eq!(vfs.getcwd(&context, 100), Err(Errno::Enoent));
    assert_eq!(vfs.mkdir(&context, at(&context, "c"), 0o755), Err(Errno::Enoent));
    assert_eq!(find(&vfs, &context, "../.."), Ok(root));
    let path = vfs.path_of(&context, context.cwd).expect("a path");
    assert_eq!((&path.path[..], path.state), (&b"/a/b"[..], PathState::Deleted));
    vfs.put(context.cwd);
    vfs.audit().expect("sound");
    assert_eq!(vfs.names(root).len(), 0);
}

#[test]
fn pipes_and_nameless_files_have_paths_of_their_own() {
    let (mut vfs, context) = empty();
    let pipe = vfs.create_pipe(&context).expect("memory");
    let number = vfs.stat(pipe).expect("stat").ino;
    assert_eq!(
        vfs.path_of(&context, pipe).expect("a path").path,
        std::format!("pipe:[{number}]").into_bytes()
    );
    vfs.put(pipe);
    let file = vfs.open_nameless(&context, b"memfd:x", OpenFlags::RDWR).expect("memory");
    let path = vfs.path_of(&context, file.place).expect("a path");
    assert_eq!((&path.path[..], path.state), (&b"/memfd:x"[..], PathState::Deleted));
    vfs.put(file.place);
    vfs.audit().expect("sound");
    assert_eq!(vfs.data.count(), 0);
}

#[test]
fn the_log_is_read_from_its_start_or_its_end() {
    let (mut vfs, context) = empty();
    vfs.mkdir(&context, at(&context, "d"), 0o755).expect("mkdir");
    mount(&mut vfs, &context, "devtmpfs", "d").expect("mount");
    let mut file = vfs.open(&context, context.cwd, b"d/kmsg", OpenFlags::RDWR, 0).expect("open");
    assert_eq!((file.seek(0, Whence::End, 70), file.pos), (Ok(0), 70));
    assert_eq!(file.seek(1, Whence::Set, 70), Err(Errno::Espipe));
    assert_eq!(file.seek(0, Whence::Current, 70), Err(Errno::Einval));
    assert_eq!(file.pos, 70);
    assert_eq!((file.seek(0, Whence::Set, 70), file.pos), (Ok(0), 0));
}
