//! The same on an ext2 that the crate has mounted, and e2fsck's opinion after it.

use std::fs;
use std::io::Write;
use std::process::Command;

use guest_fs::OpenFlags;

use crate::op::Op;

/// Blocks of 4096 bytes, so that a link may be as long as on a tmpfs.
const BLOCKS: usize = 2048;

fn program(name: &str) -> Option<Command> {
    let places = ["", "/usr/sbin/", "/sbin/"].map(|place| format!("{place}{name}"));
    let found = places.into_iter().find(|path| Command::new(path).arg("-V").output().is_ok())?;
    let mut command = Command::new(found);
    command.env("MKE2FS_CONFIG", "/dev/null");
    Some(command)
}

/// An empty file system; `None`, loudly, if there is no e2fsprogs.
pub fn image() -> Option<Vec<u8>> {
    let (Some(mut mke2fs), Some(_)) = (program("mke2fs"), program("e2fsck")) else {
        // Not `eprintln!`: the test harness would swallow it.
        let skipped = b"SKIPPED: no mke2fs or e2fsck (Debian: e2fsprogs): files on ext2 were not compared with Linux's\n";
        std::io::stderr().write_all(skipped).expect("writes");
        return None;
    };
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("image");
    fs::write(&file, vec![0; BLOCKS * 4096]).expect("writes");
    let features = "none,filetype,sparse_super,large_file";
    let made = mke2fs.args(["-q", "-F", "-b", "4096", "-I", "256", "-O", features]).arg(&file).output();
    assert!(made.is_ok_and(|output| output.status.success()));
    Some(fs::read(&file).expect("reads"))
}

/// What e2fsck complains of.
pub fn check(image: &[u8]) -> Result<(), String> {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("image");
    fs::write(&file, image).expect("writes");
    let output = program("e2fsck").expect("it was there").arg("-fn").arg(&file).output().expect("runs");
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stdout).into_owned()) }
}

/// Whether a disk can do the call: pipes cannot be opened there, there are no files without names, and no exchanges (nor has
/// Linux's ext2 the last).
pub fn can(op: &Op) -> bool {
    match op {
        Op::Open { flags, .. } => !flags.contains(OpenFlags::TMPFILE_BIT),
        Op::Rename { flags, .. } => flags & 2 == 0,
        Op::Mknod { fifo, .. } => !fifo,
        _ => true,
    }
}

/// Mounts and paths, which the sequences do not reach.
mod mounted {
    use guest_fs::proc::NoProcesses;
    use guest_fs::{
        At, Context, Data, Errno, Follow, Kind, MountRequest, Node, OpenFlags, PathState, Place, Timespec,
        Vecs, Vfs,
    };

    const NOW: Timespec = Timespec { sec: 1_700_000_000, nsec: 9 };
    const MS_RDONLY: u64 = 1;

    struct Machine {
        vfs: Vfs<Vecs, NoProcesses>,
        context: Context,
    }

    impl Machine {
        /// With the file `image` and the directory `d`.
        fn new(image: &[u8]) -> Machine {
            let vfs = Vfs::new(Vecs::default(), NoProcesses, NOW).expect("memory");
            let context = vfs.kernel_context(NOW);
            let mut machine = Machine { vfs, context };
            machine.write("image", image);
            machine.vfs.mkdir(&context, At { base: context.root, path: b"d" }, 0o755).expect("makes");
            machine
        }

        fn at(&self, path: &'static str) -> At<'static> {
            At { base: self.context.root, path: path.as_bytes() }
        }

        fn find(&self, path: &str) -> Result<Place, Errno> {
            self.vfs.lookup(&self.context, self.context.root, path.as_bytes(), Follow::Yes)
        }

        fn write(&mut self, path: &str, bytes: &[u8]) {
            let (root, flags) = (self.context.root, OpenFlags::RDWR | OpenFlags::CREAT);
            let file = self.vfs.open(&self.context, root, path.as_bytes(), flags, 0o644).expect("opens");
            let Kind::Regular(data) = file.kind else { panic!("no file") };
            self.vfs.data.write(data, 0, bytes).expect("memory");
            self.vfs.wrote(file.place, &self.context).expect("room");
            self.vfs.put(file.place);
        }

        fn mount(&mut self, source: &str, flags: u64) -> Result<(), Errno> {
            let target = self.find("d").expect("there");
            let request = MountRequest { source: source.as_bytes(), kind: b"ext2", flags, options: b"" };
            self.vfs.mount(&self.context, target, &request)
        }

        fn umount(&mut self) -> Result<(), Errno> {
            let target = self.find("d").expect("there");
            self.vfs.umount(&self.context, target, 0)
        }

        fn path(&self, place: Place) -> (String, PathState) {
            let found = self.vfs.path_of(&self.context, place).expect("a path");
            (String::from_utf8(found.path).expect("UTF-8"), found.state)
        }
    }

    #[test]
    fn only_what_holds_a_file_system_is_mounted() {
        let Some(image) = super::image() else { return };
        let mut machine = Machine::new(&image);
        assert_eq!(machine.mount("nothing", 0), Err(Errno::Enoent));
        assert_eq!(machine.mount("d", 0), Err(Errno::Enotblk));
        machine.write("zeroes", &[0; 100_000]);
        assert_eq!(machine.mount("zeroes", 0), Err(Errno::Einval));
        let node = At { base: machine.context.root, path: b"vda" };
        let bits = guest_fs::mode::S_IFBLK | 0o600;
        machine
            .vfs
            .mknod(&machine.context, node, bits, guest_fs::Device { major: 254, minor: 0 })
            .expect("makes");
        assert_eq!(machine.mount("vda", 0), Err(Errno::Enxio), "there is no driver");
        assert_eq!(machine.find("d/lost+found"), Err(Errno::Enoent));
        assert_eq!(machine.mount("image", 0), Ok(()));
        assert!(machine.find("d/lost+found").is_ok());
    }

    #[test]
    fn a_disk_that_is_in_use_stays_mounted() {
        let Some(image) = super::image() else { return };
        let mut machine = Machine::new(&image);
        machine.mount("image", 0).expect("mounts");
        let (root, context) = (machine.context.root, machine.context);
        let flags = OpenFlags::RDWR | OpenFlags::CREAT;
        let file = machine.vfs.open(&context, root, b"d/file", flags, 0o644).expect("opens");
        assert_eq!(machine.umount(), Err(Errno::Ebusy));
        machine.vfs.put(file.place);
        let count = machine.vfs.data.count();
        machine.umount().expect("nothing is in use");
        assert_eq!(machine.vfs.data.count(), count - 1, "cached bytes are gone");
        assert_eq!(machine.find("d/file"), Err(Errno::Enoent));
        machine.mount("image", 0).expect("mounts again");
        assert_eq!(machine.vfs.audit(), Ok(()));
    }

    #[test]
    fn a_read_only_disk_refuses_every_change() {
        let Some(image) = super::image() else { return };
        let mut machine = Machine::new(&image);
        machine.mount("image", MS_RDONLY).expect("mounts");
        let (root, context) = (machine.context.root, machine.context);
        assert_eq!(machine.vfs.mkdir(&context, machine.at("d/a"), 0o755), Err(Errno::Erofs));
        assert_eq!(machine.vfs.rmdir(&context, machine.at("d/lost+found")), Err(Errno::Erofs));
        let lost = machine.find("d/lost+found").expect("there");
        assert_eq!(machine.vfs.chmod(&context, lost, 0o777), Err(Errno::Erofs));
        let create = OpenFlags::RDWR | OpenFlags::CREAT;
        assert_eq!(machine.vfs.open(&context, root, b"d/a", create, 0o644).err(), Some(Errno::Erofs));
        let mut mounts = String::new();
        machine.vfs.show_mounts(&context, &mut mounts).expect("prints");
        assert!(mounts.contains("image /d ext2 ro,relatime 0 0\n"), "{mounts}");
    }

    #[test]
    fn paths_lead_through_disks_and_tell_what_was_deleted() {
        let Some(image) = super::image() else { return };
        let mut machine = Machine::new(&image);
        machine.mount("image", 0).expect("mounts");
        let context = machine.context;
        machine.vfs.mkdir(&context, machine.at("d/a"), 0o755).expect("makes");
        machine.vfs.mkdir(&context, machine.at("d/a/b"), 0o755).expect("makes");
        machine.write("d/a/b/file", b"bytes");
        let (dir, file) = (machine.find("d/a/b").expect("there"), machine.find("d/a/b/file").expect("there"));
        assert_eq!(machine.path(dir), ("/d/a/b".into(), PathState::Reachable));
        assert_eq!(machine.path(file), ("/d/a/b/file".into(), PathState::Reachable));
        machine.vfs.hold(file);
        machine.vfs.unlink(&context, machine.at("d/a/b/file")).expect("removes");
        assert_eq!(machine.path(file), ("/d/a/b/file".into(), PathState::Deleted));
        let Node::Disk(node) = file.node else { panic!("no disk") };
        let (fs, ino) = machine.vfs.ext2(node).expect("mounted");
        assert_eq!(fs.inode(ino).expect("held").nlink(), 0);
        machine.vfs.put(file);
        let (fs, ino) = machine.vfs.ext2(node).expect("mounted");
        assert_eq!(fs.inode(ino), Err(Errno::Estale));
    }

    #[test]
    fn what_was_written_is_on_the_disk_after_sync() {
        let Some(image) = super::image() else { return };
        let mut machine = Machine::new(&image);
        machine.mount("image", 0).expect("mounts");
        let before = machine.vfs.statfs(machine.find("d").expect("there"), guest_fs::Memory::default());
        machine.write("d/file", &[7; 50_000]);
        machine.vfs.sync().expect("writes");
        let Node::Disk(node) = machine.find("d/file").expect("there").node else { panic!("no disk") };
        let (fs, ino) = machine.vfs.ext2(node).expect("mounted");
        let mut bytes = vec![0; 60_000];
        assert_eq!(fs.read(ino, 0, &mut bytes), Ok(50_000));
        assert!(bytes[..50_000].iter().all(|byte| *byte == 7));
        assert_eq!(super::check(fs.buffers().bytes()), Ok(()));
        let after = machine.vfs.statfs(machine.find("d").expect("there"), guest_fs::Memory::default());
        let (before, after) = (before.expect("tells"), after.expect("tells"));
        // Thirteen blocks of data, one of pointers.
        assert_eq!((after.magic, before.free - after.free), (0xef53, 14));
    }
}
