//! The calls on the crate, as the kernel makes them.

use guest_fs::proc::NoProcesses;
use guest_fs::{
    At, Context, Data, Errno, File, Follow, Kind, MountRequest, Node, OpenFlags, Place, RenameFlags,
    Timespec, Vecs, Vfs, Whence,
};

use crate::op::Op;
use crate::{ABOVE, Outcome};

/// The crate's files.
pub struct Guest {
    vfs: Vfs<Vecs, NoProcesses>,
    context: Context,
    slots: [Option<File<usize>>; 4],
    inodes: usize,
    on_disk: bool,
}

const NOW: Timespec = Timespec { sec: 1_000_000, nsec: 0 };

impl Guest {
    pub fn new(umask: u32) -> Guest {
        let mut vfs = Vfs::new(Vecs::default(), NoProcesses, NOW).expect("memory");
        let mut context = Context { umask, ..vfs.kernel_context(NOW) };
        let inodes = vfs.inodes_in_use();
        for _ in 0..ABOVE {
            vfs.mkdir(&context, At { base: context.cwd, path: b"x" }, 0o777).expect("a directory");
            context.cwd = vfs.lookup(&context, context.cwd, b"x", Follow::Yes).expect("the directory");
        }
        vfs.hold(context.cwd);
        Guest { vfs, context, slots: [None, None, None, None], inodes, on_disk: false }
    }

    /// The same on a disk with this image.
    pub fn on_disk(umask: u32, image: &[u8]) -> Guest {
        let mut vfs = Vfs::new(Vecs::default(), NoProcesses, NOW).expect("memory");
        let mut context = Context { umask, ..vfs.kernel_context(NOW) };
        let (root, flags) = (context.root, OpenFlags::RDWR | OpenFlags::CREAT);
        let file = vfs.open(&context, root, b"image", flags, 0o600).expect("a file");
        let Kind::Regular(data) = file.kind else { panic!("no file") };
        vfs.data.write(data, 0, image).expect("memory");
        vfs.put(file.place);
        vfs.mkdir(&context, At { base: root, path: b"d" }, 0o777).expect("a directory");
        let target = vfs.lookup(&context, root, b"d", Follow::Yes).expect("the directory");
        let request = MountRequest { source: b"image", kind: b"ext2", flags: 0, options: b"" };
        vfs.mount(&context, target, &request).expect("mounts");
        context.cwd = vfs.lookup(&context, root, b"d", Follow::Yes).expect("the disk");
        for _ in 0..ABOVE {
            vfs.mkdir(&context, At { base: context.cwd, path: b"x" }, 0o777).expect("a directory");
            context.cwd = vfs.lookup(&context, context.cwd, b"x", Follow::Yes).expect("the directory");
        }
        vfs.hold(context.cwd);
        Guest { vfs, context, slots: [None, None, None, None], inodes: 0, on_disk: true }
    }

    /// Closes all and unmounts; what is on the disk then.
    pub fn unmount(&mut self) -> Vec<u8> {
        (0..4).for_each(|slot| self.close(slot));
        self.vfs.put(self.context.cwd);
        let root = self.vfs.lookup(&self.context, self.context.root, b"d", Follow::Yes).expect("the disk");
        let Node::Disk(node) = root.node else { panic!("no disk") };
        self.vfs.sync().expect("writes");
        let (fs, _) = self.vfs.ext2(node).expect("mounted");
        assert_eq!(fs.take_error(), None);
        let image = fs.buffers().bytes().to_vec();
        self.vfs.umount(&self.context, root, 0).expect("unmounts");
        image
    }

    pub fn audit(&self) -> Result<(), (&'static str, u32)> {
        self.vfs.audit()
    }

    fn close(&mut self, slot: usize) {
        if let Some(file) = self.slots[slot].take() {
            self.vfs.put(file.place);
        }
    }

    /// Closes and removes all.
    pub fn is_clean_after_closing(&mut self) -> bool {
        (0..4).for_each(|slot| self.close(slot));
        self.vfs.put(self.context.cwd);
        self.remove_below(self.context.root);
        self.vfs.inodes_in_use() == self.inodes && self.vfs.data.count() == 0
    }

    fn remove_below(&mut self, dir: Place) {
        for name in self.vfs.names(dir) {
            let at = At { base: dir, path: &name };
            let place = self.vfs.lookup(&self.context, dir, &name, Follow::No).expect("a listed name");
            if self.vfs.is_dir(place) {
                self.remove_below(place);
                self.vfs.rmdir(&self.context, at).expect("an empty directory");
            } else {
                self.vfs.unlink(&self.context, at).expect("a file");
            }
        }
    }

    pub fn run(&mut self, op: &Op) -> Outcome {
        self.call(op).unwrap_or_else(|error| Outcome::Failed(error.number()))
    }

    fn call(&mut self, op: &Op) -> Result<Outcome, Errno> {
        let done = Ok(Outcome::Number(0));
        let context = self.context;
        let base = context.cwd;
        match op {
            Op::Open { slot, path, flags, mode } => {
                self.close(*slot);
                let flags = *flags | OpenFlags::LARGEFILE;
                let file = self.vfs.open(&context, base, path.as_bytes(), flags, *mode)?;
                if let Kind::Fifo(_) = file.kind
                    && !file.flags.reads()
                {
                    // NoProcesses reads it (Linux: `fifo_open`); the kernel's part knows.
                    let others = self
                        .slots
                        .iter()
                        .flatten()
                        .any(|other| other.kind == file.kind && other.flags.reads());
                    if !others {
                        self.vfs.put(file.place);
                        return Err(Errno::Enxio);
                    }
                }
                self.slots[*slot] = Some(file);
                done
            }
            Op::Close { slot } => {
                self.close(*slot);
                done
            }
            Op::Mkdir { path, mode } => {
                self.vfs.mkdir(&context, At { base, path: path.as_bytes() }, *mode).and(done)
            }
            Op::Rmdir { path } => self.vfs.rmdir(&context, At { base, path: path.as_bytes() }).and(done),
            Op::Unlink { path } => self.vfs.unlink(&context, At { base, path: path.as_bytes() }).and(done),
            Op::Rename { from, to, flags } => {
                let (from, to) = (At { base, path: from.as_bytes() }, At { base, path: to.as_bytes() });
                self.vfs.rename(&context, from, to, RenameFlags::from_bits_retain(*flags)).and(done)
            }
            Op::Link { from, to, follow } => {
                let (from, to) = (At { base, path: from.as_bytes() }, At { base, path: to.as_bytes() });
                let follow = if *follow { Follow::Yes } else { Follow::No };
                self.vfs.link(&context, from, follow, to).and(done)
            }
            Op::Symlink { target, path } => {
                self.vfs.symlink(&context, target.as_bytes(), At { base, path: path.as_bytes() }).and(done)
            }
            Op::Readlink { path } => {
                let place = self.vfs.lookup(&context, base, path.as_bytes(), Follow::No)?;
                self.vfs.read_link(&context, place).map(Outcome::Bytes)
            }
            Op::Stat { path, follow } => {
                let follow = if *follow { Follow::Yes } else { Follow::No };
                let place = self.vfs.lookup(&context, base, path.as_bytes(), follow)?;
                self.stat(place)
            }
            Op::Truncate { path, len } => {
                if path.len() > 4060 {
                    return Ok(Outcome::Nothing);
                }
                let place = self.vfs.lookup(&context, base, path.as_bytes(), Follow::Yes)?;
                self.vfs.truncate(&context, place, i64::try_from(*len).expect("small")).and(done)
            }
            Op::Chmod { path, mode } => {
                let place = self.vfs.lookup(&context, base, path.as_bytes(), Follow::Yes)?;
                self.vfs.chmod(&context, place, *mode).and(done)
            }
            Op::Access { path, mode } => {
                let place = self.vfs.lookup(&context, base, path.as_bytes(), Follow::Yes)?;
                self.vfs.access(place, *mode).and(done)
            }
            Op::Mknod { path, fifo, mode } => {
                let bits = mode | if *fifo { guest_fs::mode::S_IFIFO } else { guest_fs::mode::S_IFREG };
                let device = guest_fs::Device::default();
                self.vfs.mknod(&context, At { base, path: path.as_bytes() }, bits, device).and(done)
            }
            Op::Chdir { path } => {
                let place = self.vfs.lookup(&context, base, path.as_bytes(), Follow::Yes)?;
                if !self.vfs.is_dir(place) {
                    return Err(Errno::Enotdir);
                }
                self.vfs.hold(place);
                self.vfs.put(base);
                self.context.cwd = place;
                done
            }
            Op::Read { slot, .. }
            | Op::Write { slot, .. }
            | Op::Pread { slot, .. }
            | Op::Pwrite { slot, .. }
            | Op::Seek { slot, .. }
            | Op::Ftruncate { slot, .. }
            | Op::Fstat { slot }
            | Op::List { slot } => {
                let Some(mut file) = self.slots[*slot].take() else { return Ok(Outcome::Nothing) };
                let result = self.on_file(&mut file, op);
                self.slots[*slot] = Some(file);
                result
            }
        }
    }

    fn stat(&self, place: Place) -> Result<Outcome, Errno> {
        let stat = self.vfs.stat(place)?;
        let seen = crate::host::on_tmpfs() || !self.vfs.is_dir(place);
        // A directory on a disk has the size of its blocks.
        let sized = seen && !(self.on_disk && self.vfs.is_dir(place));
        Ok(Outcome::Stat {
            mode: stat.mode,
            nlink: seen.then_some(u64::from(stat.nlink)),
            size: sized.then_some(stat.size),
        })
    }

    fn on_file(&mut self, file: &mut File<usize>, op: &Op) -> Result<Outcome, Errno> {
        let place = file.place;
        let context = self.context;
        // Pipes have tests of their own.
        if self.vfs.mode_of(place).is_some_and(|bits| bits & 0o170_000 == 0o10_000)
            && matches!(op, Op::Read { .. } | Op::Write { .. })
        {
            return Ok(Outcome::Nothing);
        }
        match *op {
            Op::Read { len, .. } => {
                let at = file.pos;
                let bytes = self.read(file, len, at)?;
                file.pos += bytes.len() as u64;
                Ok(Outcome::Bytes(bytes))
            }
            Op::Pread { len, at, .. } => {
                file.check_seek()?;
                self.read(file, len, at).map(Outcome::Bytes)
            }
            Op::Write { len, byte, .. } => {
                let at = file.pos;
                let (at, len) = self.write(file, len, byte, at)?;
                file.pos = at + len;
                Ok(Outcome::Number(len))
            }
            Op::Pwrite { len, at, byte, .. } => {
                file.check_seek()?;
                self.write(file, len, byte, at).map(|(_, len)| Outcome::Number(len))
            }
            Op::Seek { offset, whence, .. } => {
                // A directory's positions are the file system's own.
                if whence > 2 || whence == 0 && offset < 0 || self.vfs.is_dir(place) {
                    return Ok(Outcome::Nothing);
                }
                let size = self.vfs.size(place);
                file.seek(offset, Whence::from_raw(whence)?, size).map(Outcome::Number)
            }
            Op::Ftruncate { len, .. } => {
                if file.kind == Kind::Path {
                    return Err(Errno::Ebadf);
                }
                if !file.flags.writes() || !matches!(file.kind, Kind::Regular(_)) {
                    return Err(Errno::Einval);
                }
                self.vfs.truncate(&context, place, i64::try_from(len).expect("small"))?;
                Ok(Outcome::Number(0))
            }
            Op::Fstat { .. } => self.stat(place),
            Op::List { .. } => {
                if !self.vfs.is_dir(place) {
                    return Ok(Outcome::Nothing);
                }
                if file.kind == Kind::Path {
                    return Err(Errno::Ebadf);
                }
                let mut names = Vec::new();
                file.pos = 0;
                loop {
                    // A small buffer, so that the list goes on several times.
                    let (bytes, next) = self.vfs.getdents(place, file.pos, 300)?;
                    if bytes.is_empty() {
                        break;
                    }
                    file.pos = next;
                    let mut rest = &bytes[..];
                    while !rest.is_empty() {
                        let len = usize::from(u16::from_le_bytes([rest[16], rest[17]]));
                        let name: Vec<u8> =
                            rest[19..len].iter().copied().take_while(|byte| *byte != 0).collect();
                        names.push((name, rest[18]));
                        rest = &rest[len..];
                    }
                }
                names.sort();
                Ok(Outcome::Names(names))
            }
            _ => Ok(Outcome::Nothing),
        }
    }

    fn read(&mut self, file: &File<usize>, len: usize, at: u64) -> Result<Vec<u8>, Errno> {
        file.check_read()?;
        let Kind::Regular(data) = file.kind else { return Ok(Vec::new()) };
        let bytes = self.vfs.data.bytes(data);
        let start = usize::try_from(at).expect("small").min(bytes.len());
        Ok(bytes[start..(start + len).min(bytes.len())].to_vec())
    }

    fn write(&mut self, file: &File<usize>, len: usize, byte: u8, at: u64) -> Result<(u64, u64), Errno> {
        file.check_write()?;
        let Kind::Regular(data) = file.kind else { return Err(Errno::Einval) };
        let size = self.vfs.data.size(data);
        let (at, len) = file.write_range(at, len as u64, size, u64::MAX)?;
        if len > 0 {
            self.vfs.data.write(data, at, &vec![byte; usize::try_from(len).expect("small")])?;
            let context = self.context;
            self.vfs.wrote(file.place, &context)?;
        }
        Ok((at, len))
    }
}
