//! Mounting, unmounting, states, orphans.

use guest_ext2::{Access, Errno, Ext2, Ino, Ram, SetAttr};

use crate::host::{self, Debugfs, FORMATS};
use crate::twin::CALLER;

const STATE: usize = 1024 + 58;
const MNT_COUNT: usize = 1024 + 52;
const INCOMPAT: usize = 1024 + 96;
const RO_COMPAT: usize = 1024 + 100;

fn mount(image: Vec<u8>, access: Access) -> Result<Ext2<Ram>, Errno> {
    Ext2::mount(Ram::new(image), access, CALLER.now)
}

#[test]
fn the_state_tells_whether_it_was_unmounted_and_mounts_are_counted() {
    if !host::is_ready() {
        return;
    }
    let image = host::image(&FORMATS[3]);
    assert_eq!((image[STATE], image[MNT_COUNT]), (1, 0));
    let mut fs = mount(image, Access::ReadWrite).expect("mounts");
    assert!(fs.was_clean());
    assert_eq!((fs.buffers().bytes()[STATE], fs.buffers().bytes()[MNT_COUNT]), (0, 1));
    let crashed = fs.buffers().bytes().to_vec();
    fs.unmount(CALLER.now).expect("unmounts");
    assert_eq!(fs.create(&CALLER, Ino::ROOT, b"a", 0o644), Err(Errno::Erofs));
    assert_eq!(fs.into_buffers().bytes()[STATE], 1);
    let mut again = mount(crashed, Access::ReadWrite).expect("mounts");
    assert!(!again.was_clean());
    again.unmount(CALLER.now).expect("unmounts");
    // Only e2fsck makes it clean again.
    assert_eq!(again.into_buffers().bytes()[STATE], 0);
}

#[test]
fn a_read_only_mount_changes_no_byte() {
    if !host::is_ready() {
        return;
    }
    let image = host::image(&FORMATS[5]);
    let mut fs = mount(image.clone(), Access::ReadOnly).expect("mounts");
    assert_eq!(fs.create(&CALLER, Ino::ROOT, b"a", 0o644), Err(Errno::Erofs));
    assert_eq!(fs.rmdir(Ino::ROOT, b"lost+found", 0), Err(Errno::Erofs));
    assert_eq!(fs.set_attr(Ino::ROOT, &SetAttr::default(), 0), Err(Errno::Erofs));
    fs.sync(CALLER.now).expect("nothing to write");
    fs.unmount(CALLER.now).expect("unmounts");
    assert!(fs.into_buffers().bytes() == image);
}

#[test]
fn features_that_are_unknown_forbid_mounting_or_writing() {
    if !host::is_ready() {
        return;
    }
    let image = host::image(&FORMATS[3]);
    for bit in 0..32 {
        let mut changed = image.clone();
        changed[INCOMPAT + bit / 8] |= 1 << (bit % 8);
        assert_eq!(mount(changed, Access::ReadWrite).is_ok(), bit == 1, "incompat bit {bit}");
        let mut changed = image.clone();
        changed[RO_COMPAT + bit / 8] |= 1 << (bit % 8);
        let mut fs = mount(changed, Access::ReadWrite).expect("mounts");
        assert_eq!(fs.access() == Access::ReadWrite, bit < 2, "ro_compat bit {bit}");
        if bit >= 2 {
            assert_eq!(fs.remount(Access::ReadWrite, 0), Err(Errno::Erofs));
        }
    }
}

#[test]
fn what_is_no_ext2_is_refused() {
    assert_eq!(mount(Vec::new(), Access::ReadOnly).err(), Some(Errno::Eio));
    assert_eq!(mount(vec![0; 1 << 20], Access::ReadOnly).err(), Some(Errno::Einval));
}

#[test]
fn an_image_that_was_cut_off_is_refused() {
    if !host::is_ready() {
        return;
    }
    let mut image = host::image(&FORMATS[3]);
    image.truncate(image.len() - 1024);
    assert_eq!(mount(image, Access::ReadOnly).err(), Some(Errno::Einval));
}

#[test]
fn a_file_without_names_lives_as_long_as_it_is_held() {
    if !host::is_ready() {
        return;
    }
    let mut fs = mount(host::image(&FORMATS[6]), Access::ReadWrite).expect("mounts");
    let before = fs.statfs().expect("tells");
    let file = fs.create(&CALLER, Ino::ROOT, b"file", 0o644).expect("makes").ino;
    fs.write(&CALLER, file, 0, &[5; 30_000]).expect("writes");
    fs.hold(file).expect("exists");
    fs.hold(file).expect("exists");
    fs.unlink(Ino::ROOT, b"file", CALLER.now).expect("removes");
    let mut byte = [0];
    assert_eq!(fs.read(file, 29_999, &mut byte), Ok(1));
    assert_eq!(byte, [5]);
    assert_eq!(fs.unmount(CALLER.now), Err(Errno::Ebusy));
    assert_eq!(fs.remount(Access::ReadOnly, CALLER.now), Err(Errno::Ebusy));
    let crashed = {
        fs.sync(CALLER.now).expect("writes");
        fs.buffers().bytes().to_vec()
    };
    fs.release(file, CALLER.now).expect("not the last");
    assert!(fs.statfs().expect("tells").free < before.free);
    fs.release(file, CALLER.now).expect("the last");
    assert_eq!(fs.statfs().expect("tells"), before);
    assert_eq!(fs.inode(file), Err(Errno::Estale));
    fs.unmount(CALLER.now).expect("unmounts");
    assert_eq!(host::e2fsck(fs.into_buffers().bytes()), Ok(()));
    // After a crash e2fsck finds it, and nothing else.
    let said = host::e2fsck(&crashed).expect_err("an inode without a name");
    assert!(said.contains("zero dtime"), "{said}");
    let mut repaired = mount(host::repair(&crashed), Access::ReadWrite).expect("mounts");
    assert_eq!(repaired.statfs().expect("tells"), before);
}

#[test]
fn a_remount_stops_writing_and_lets_it_go_on() {
    if !host::is_ready() {
        return;
    }
    let mut fs = mount(host::image(&FORMATS[7]), Access::ReadWrite).expect("mounts");
    fs.remount(Access::ReadOnly, CALLER.now).expect("nothing is in the way");
    assert_eq!(fs.buffers().bytes()[STATE], 1);
    assert_eq!(fs.mkdir(&CALLER, Ino::ROOT, b"d", 0o755), Err(Errno::Erofs));
    fs.remount(Access::ReadWrite, CALLER.now).expect("it can be written");
    assert_eq!(fs.buffers().bytes()[STATE], 0);
    fs.mkdir(&CALLER, Ino::ROOT, b"d", 0o755).expect("makes");
    fs.unmount(CALLER.now).expect("unmounts");
    assert_eq!(host::e2fsck(fs.into_buffers().bytes()), Ok(()));
}

#[test]
fn immutable_and_append_only_inodes_stay_as_they_are() {
    if !host::is_ready() {
        return;
    }
    let commands = "write /dev/null fixed\nwrite /dev/null log\nset_inode_field fixed flags 0x10\n\
                    set_inode_field log flags 0x20\n";
    let image = Debugfs::new(&host::image(&FORMATS[3])).change(commands);
    let mut fs = mount(image, Access::ReadWrite).expect("mounts");
    let [fixed, log] =
        [b"fixed".as_slice(), b"log"].map(|name| fs.lookup(Ino::ROOT, name).expect("finds").ino);
    assert_eq!(fs.write(&CALLER, fixed, 0, b"x"), Err(Errno::Eperm));
    assert_eq!(fs.unlink(Ino::ROOT, b"fixed", 0), Err(Errno::Eperm));
    assert_eq!(fs.link(&CALLER, fixed, Ino::ROOT, b"other"), Err(Errno::Eperm));
    assert_eq!(fs.write(&CALLER, log, 0, b"line"), Ok(4));
    assert_eq!(fs.write(&CALLER, log, 0, b"x"), Err(Errno::Eperm));
    assert_eq!(fs.truncate(log, 1, 0), Err(Errno::Eperm));
    assert_eq!(fs.unlink(Ino::ROOT, b"log", 0), Err(Errno::Eperm));
}

#[test]
fn times_that_do_not_fit_are_cut_off() {
    if !host::is_ready() {
        return;
    }
    let mut fs = mount(host::image(&FORMATS[3]), Access::ReadWrite).expect("mounts");
    let times = guest_ext2::Times { atime: Some(i64::MAX), mtime: Some(i64::MIN), ctime: Some(-1) };
    fs.update_time(Ino::ROOT, &times).expect("sets");
    let root = fs.inode(Ino::ROOT).expect("reads");
    assert_eq!((root.atime(), root.mtime(), root.ctime()), (i64::from(i32::MAX), i64::from(i32::MIN), -1));
}
