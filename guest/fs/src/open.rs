//! open(2) and what an open file is (Linux: fs/open.c, fs/namei.c `do_open`, fs/read_write.c).

use alloc::format;
use alloc::vec::Vec;

use crate::device::{Char, Device};
use crate::dir::Directory;
use crate::disk::DiskNode;
use crate::disk_change::NewFile;
use crate::flags::{MAX_OFFSET, OpenFlags, mode};
use crate::inode::{Content, Inode, InodeId};
use crate::proc::{self, Processes};
use crate::vfs::{Context, NewInode, Node, PIPE_MOUNT, Place, SHM_MOUNT, Vfs};
use crate::walk::{Follow, Last, Parent};
use crate::{Data, Errno};

/// What an open file is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind<Id> {
    /// Regular file.
    Regular(Id),
    /// Directory.
    Directory,
    /// Pipe, by the number of its inode.
    Fifo(InodeId),
    /// Character device.
    Char(Char),
    /// Block device, by its number: whether there is one, the kernel knows.
    Block(Device),
    /// A text of /proc.
    Text(proc::Node),
    /// A place only (O_PATH).
    Path,
}

/// An open file (Linux: `struct file`). Its place is held.
#[derive(Debug)]
pub struct File<Id> {
    /// Where it is.
    pub place: Place,
    /// What it is.
    pub kind: Kind<Id>,
    /// Access mode and status flags.
    pub flags: OpenFlags,
    /// Offset of the next read or write.
    pub pos: u64,
    /// The text of a file of /proc, as it was when the reader was at its start.
    pub text: Vec<u8>,
}

/// What lseek counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// The start.
    Set,
    /// Where the file is.
    Current,
    /// The end.
    End,
    /// The next data. All but the end is data here.
    Data,
    /// The next hole.
    Hole,
}

impl Whence {
    /// From the argument of lseek.
    ///
    /// # Errors
    /// `EINVAL`.
    pub const fn from_raw(whence: u32) -> Result<Whence, Errno> {
        Ok(match whence {
            0 => Whence::Set,
            1 => Whence::Current,
            2 => Whence::End,
            3 => Whence::Data,
            4 => Whence::Hole,
            _ => return Err(Errno::Einval),
        })
    }
}

impl<Id: Copy> File<Id> {
    /// Whether read(2) is allowed.
    ///
    /// # Errors
    /// `EBADF`, `EISDIR`.
    pub fn check_read(&self) -> Result<(), Errno> {
        if !self.flags.reads() {
            return Err(Errno::Ebadf);
        }
        if matches!(self.kind, Kind::Directory) { Err(Errno::Eisdir) } else { Ok(()) }
    }

    /// Whether write(2) is allowed.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn check_write(&self) -> Result<(), Errno> {
        if self.flags.writes() { Ok(()) } else { Err(Errno::Ebadf) }
    }

    /// Whether the file has offsets: pread, pwrite and lseek work.
    ///
    /// # Errors
    /// `ESPIPE`; `EBADF` of a place only.
    pub fn check_seek(&self) -> Result<(), Errno> {
        match self.kind {
            Kind::Fifo(_) => Err(Errno::Espipe),
            Kind::Char(device) if device.is_tty() => Err(Errno::Espipe),
            Kind::Path => Err(Errno::Ebadf),
            _ => Ok(()),
        }
    }

    /// Where a write of `len` bytes at `offset` begins and how long it may be (Linux: `generic_write_checks`). `size` is that
    /// of the file, `limit` RLIMIT_FSIZE.
    ///
    /// # Errors
    /// `EFBIG`.
    pub fn write_range(&self, offset: u64, len: u64, size: u64, limit: u64) -> Result<(u64, u64), Errno> {
        if len == 0 {
            return Ok((offset, 0));
        }
        let start = if self.flags.contains(OpenFlags::APPEND) { size } else { offset };
        let end = limit.min(MAX_OFFSET);
        if start >= end {
            return Err(Errno::Efbig);
        }
        Ok((start, len.min(end - start)))
    }

    /// lseek: the new offset, which the file has then. `size` is that of the file.
    ///
    /// # Errors
    /// `ESPIPE`, `EINVAL`, `ENXIO`, `EOVERFLOW`.
    pub fn seek(&mut self, offset: i64, whence: Whence, size: u64) -> Result<u64, Errno> {
        self.check_seek()?;
        // The null and zero devices take any offset and stay at their start (Linux: `null_lseek`).
        if let Kind::Char(device) = self.kind
            && matches!(device, Char::Null | Char::Zero | Char::Full)
        {
            self.pos = 0;
            return Ok(0);
        }
        if let Kind::Char(Char::Kmsg) = self.kind {
            self.pos = Self::seek_log(offset, whence, size)?;
            return Ok(0);
        }
        let base = match (whence, self.kind) {
            (Whence::Set, _) => 0,
            (Whence::Current, _) => self.pos,
            (Whence::End, Kind::Regular(_) | Kind::Block(_)) => size,
            // A text's length is not known, and a directory's entries have numbers (Linux: `seq_lseek`, `dcache_dir_lseek`).
            (Whence::End, _) => return Err(Errno::Einval),
            (Whence::Data | Whence::Hole, Kind::Regular(_)) => {
                let at = u64::try_from(offset).ok().filter(|at| *at < size).ok_or(Errno::Enxio)?;
                self.pos = if whence == Whence::Data { at } else { size };
                return Ok(self.pos);
            }
            (Whence::Data | Whence::Hole, _) => return Err(Errno::Einval),
        };
        let to = base.checked_add_signed(offset).filter(|to| *to <= MAX_OFFSET).ok_or(Errno::Einval)?;
        self.pos = to;
        Ok(to)
    }
}

impl<I> File<I> {
    /// Of the log the oldest record and the end can be had, and `size` is the number of the next record (Linux: `devkmsg_llseek`).
    fn seek_log(offset: i64, whence: Whence, size: u64) -> Result<u64, Errno> {
        match whence {
            _ if offset != 0 => Err(Errno::Espipe),
            Whence::Set => Ok(0),
            Whence::End => Ok(size),
            Whence::Current | Whence::Data | Whence::Hole => Err(Errno::Einval),
        }
    }
}

impl<D: Data, P: Processes> Vfs<D, P> {
    /// Opens the path. The file's place is held: [`Vfs::put`] it when the file is closed for the last time.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(
        &mut self,
        context: &Context,
        base: Place,
        path: &[u8],
        flags: OpenFlags,
        permissions: u32,
    ) -> Result<File<D::Id>, Errno> {
        let flags = if flags.contains(OpenFlags::PATH) {
            flags & (OpenFlags::PATH | OpenFlags::DIRECTORY | OpenFlags::NOFOLLOW | OpenFlags::CLOEXEC)
        } else {
            flags
        };
        let permissions = permissions & mode::PERMISSIONS;
        if flags.contains(OpenFlags::TMPFILE_BIT) {
            return self.open_tmpfile(context, base, path, flags, permissions);
        }
        if flags.contains(OpenFlags::CREAT | OpenFlags::DIRECTORY) {
            return Err(Errno::Einval);
        }
        if flags.contains(OpenFlags::CREAT) {
            return self.open_create(context, base, path, flags, permissions);
        }
        let follow = if flags.contains(OpenFlags::NOFOLLOW) { Follow::No } else { Follow::Yes };
        let place = self.lookup(context, base, path, follow)?;
        self.open_place(context, place, flags)
    }

    fn open_create(
        &mut self,
        context: &Context,
        base: Place,
        path: &[u8],
        flags: OpenFlags,
        permissions: u32,
    ) -> Result<File<D::Id>, Errno> {
        let exclusive = flags.contains(OpenFlags::EXCL);
        let follow = !exclusive && !flags.contains(OpenFlags::NOFOLLOW);
        let mut parent = self.parent_of(context, base, path, 0)?;
        loop {
            if parent.last != Last::Name || parent.slashes {
                return Err(if parent.last == Last::Name || !exclusive {
                    Errno::Eisdir
                } else {
                    Errno::Eexist
                });
            }
            let place = match self.child(parent.dir, &parent.name) {
                Ok(place) => place,
                Err(Errno::Enoent) => {
                    let place = self.create(context, &parent, permissions & !context.umask)?;
                    // What it was just created with does not matter: the creator may use it.
                    return self.open_file(place, flags);
                }
                Err(error) => return Err(error),
            };
            if follow && let Some(text) = self.symlink_at(place)? {
                let links = parent.links + 1;
                if links > crate::flags::MAXSYMLINKS {
                    return Err(Errno::Eloop);
                }
                parent = self.parent_of(context, parent.dir, &text, links)?;
                continue;
            }
            if exclusive {
                return Err(Errno::Eexist);
            }
            let place = if follow { self.finish(context, parent, Follow::Yes)? } else { place };
            if self.is_dir(place) {
                return Err(Errno::Eisdir);
            }
            return self.open_place(context, place, flags);
        }
    }

    /// A regular file of no bytes by a name that is not there.
    pub(crate) fn create(
        &mut self,
        context: &Context,
        parent: &Parent,
        permissions: u32,
    ) -> Result<Place, Errno> {
        if let Node::Disk(dir) = parent.dir.node {
            return self.disk_make(context, (dir, parent), permissions, NewFile::File);
        }
        let (dir, fs) = self.writable_dir(parent.dir)?;
        let data = self.data.create()?;
        let new = NewInode { fs, permissions, parent: Some(dir), content: Content::File(data) };
        let id = match self.new_inode(new, context) {
            Ok(id) => id,
            Err(error) => {
                self.data.release(data);
                return Err(error);
            }
        };
        self.add_name(dir, &parent.name, id)?;
        self.touch_dir(dir, context.now);
        Ok(Place { mount: parent.dir.mount, node: Node::Inode(id) })
    }

    /// A directory in which names can be made: its inode and file system.
    pub(crate) fn writable_dir(&self, dir: Place) -> Result<(InodeId, u32), Errno> {
        // /proc has no files to be created (Linux: `proc_root` has no create: EACCES).
        let Node::Inode(id) = dir.node else { return Err(Errno::Eacces) };
        let inode = self.inode(id).filter(|inode| inode.nlink > 0).ok_or(Errno::Enoent)?;
        Ok((id, inode.fs))
    }

    /// A file without a name in the directory of `path` (O_TMPFILE).
    fn open_tmpfile(
        &mut self,
        context: &Context,
        base: Place,
        path: &[u8],
        flags: OpenFlags,
        permissions: u32,
    ) -> Result<File<D::Id>, Errno> {
        if !flags.contains(OpenFlags::DIRECTORY) || flags.contains(OpenFlags::CREAT) || !flags.writes() {
            return Err(Errno::Einval);
        }
        let dir = self.lookup(context, base, path, Follow::Yes)?;
        if !self.is_dir(dir) {
            return Err(Errno::Enotdir);
        }
        // Differs from Linux: no nameless files on disks.
        let Node::Inode(_) = dir.node else { return Err(Errno::Eopnotsupp) };
        let place = self.nameless(context, dir, permissions & !context.umask, None)?;
        self.open_file(place, flags - OpenFlags::DIRECTORY)
    }

    fn nameless(
        &mut self,
        context: &Context,
        dir: Place,
        permissions: u32,
        name: Option<&[u8]>,
    ) -> Result<Place, Errno> {
        let (parent, fs) = self.writable_dir(dir)?;
        let data = self.data.create()?;
        let new = NewInode { fs, permissions, parent: Some(parent), content: Content::File(data) };
        let id = match self.new_inode(new, context) {
            Ok(id) => id,
            Err(error) => {
                self.data.release(data);
                return Err(error);
            }
        };
        let number = self.inode(id).map_or(0, |inode| inode.number);
        let name = match name {
            Some(name) => crate::dir::copy(name),
            None => Ok(format!("#{number}").into_bytes()),
        };
        match name {
            Ok(name) => self.orphan(id, parent, name),
            Err(error) => {
                self.drop_unused(id);
                return Err(error);
            }
        }
        Ok(Place { mount: dir.mount, node: Node::Inode(id) })
    }

    /// A file for memfd_create or shared memory: its path is `/NAME (deleted)`.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn open_nameless(
        &mut self,
        context: &Context,
        name: &[u8],
        flags: OpenFlags,
    ) -> Result<File<D::Id>, Errno> {
        let root = self.root_of(SHM_MOUNT).ok_or(Errno::Enodev)?;
        let place = self.nameless(context, root, 0o777, Some(name))?;
        self.open_file(place, flags)
    }

    /// Opens what is there (Linux: `do_open`).
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open_place(
        &mut self,
        context: &Context,
        place: Place,
        flags: OpenFlags,
    ) -> Result<File<D::Id>, Errno> {
        if flags.contains(OpenFlags::DIRECTORY) && !self.is_dir(place) {
            return Err(Errno::Enotdir);
        }
        if flags.contains(OpenFlags::PATH) {
            self.hold(place);
            let pos = 0;
            return Ok(File { place, kind: Kind::Path, flags, pos, text: Vec::new() });
        }
        let bits = self.mode_of(place).ok_or(Errno::Enoent)?;
        match bits & mode::S_IFMT {
            mode::S_IFLNK => return Err(Errno::Eloop),
            mode::S_IFDIR if flags.writes() || flags.contains(OpenFlags::TRUNC) => return Err(Errno::Eisdir),
            _ => {}
        }
        if flags.contains(OpenFlags::TRUNC)
            && let Node::Inode(id) = place.node
            && let Some(Content::File(data)) = self.inode(id).map(|inode| &inode.content)
        {
            let data = *data;
            self.data.set_size(data, 0)?;
            self.written(id, context);
        }
        if let Node::Disk(node) = place.node {
            if flags.writes() && !matches!(bits & mode::S_IFMT, mode::S_IFCHR | mode::S_IFBLK) {
                self.check_disk_writable(node)?;
            }
            if flags.contains(OpenFlags::TRUNC) && bits & mode::S_IFMT == mode::S_IFREG {
                self.disk_truncate(node, 0, context)?;
            }
        }
        self.open_file(place, flags)
    }

    fn open_file(&mut self, place: Place, flags: OpenFlags) -> Result<File<D::Id>, Errno> {
        let kind = match place.node {
            Node::Inode(id) => match &self.inode(id).ok_or(Errno::Enoent)?.content {
                Content::File(data) => Kind::Regular(*data),
                Content::Directory(_) => Kind::Directory,
                Content::Char(device) => Kind::Char(Char::of(*device).ok_or(Errno::Enxio)?),
                Content::Fifo => Kind::Fifo(id),
                Content::Block(device) => Kind::Block(*device),
                Content::Socket => return Err(Errno::Enxio),
                Content::Symlink(_) => return Err(Errno::Eloop),
            },
            Node::Proc(node) if node.is_dir() => Kind::Directory,
            Node::Proc(node) => Kind::Text(node),
            Node::Disk(node) => self.disk_kind(node)?,
        };
        self.hold(place);
        Ok(File { place, kind, flags: flags - OpenFlags::ONCE, pos: 0, text: Vec::new() })
    }

    /// Where the symbolic link leads, if it is one of a tmpfs or a disk.
    fn symlink_at(&self, place: Place) -> Result<Option<Vec<u8>>, Errno> {
        match place.node {
            Node::Inode(id) => match self.inode(id).map(|inode| &inode.content) {
                Some(Content::Symlink(text)) => crate::dir::copy(text).map(Some),
                _ => Ok(None),
            },
            Node::Disk(node) => self.disk_link(node),
            Node::Proc(_) => Ok(None),
        }
    }

    /// What an open file of a disk is.
    ///
    /// Differs from Linux: a pipe on a disk cannot be opened.
    fn disk_kind(&mut self, node: DiskNode) -> Result<Kind<D::Id>, Errno> {
        let stat = self.disk_stat(node, 0)?;
        match stat.mode & mode::S_IFMT {
            mode::S_IFREG => self.attach(node).map(Kind::Regular),
            mode::S_IFDIR => Ok(Kind::Directory),
            mode::S_IFLNK => Err(Errno::Eloop),
            mode::S_IFCHR => Char::of(stat.rdev).map(Kind::Char).ok_or(Errno::Enxio),
            _ => Err(Errno::Enxio),
        }
    }

    /// A file was written, wherever it is (Linux: `file_update_time`, `i_size_write`).
    ///
    /// # Errors
    /// `EROFS`, `EIO`, `EFBIG` of a disk.
    pub fn wrote(&mut self, place: Place, context: &Context) -> Result<(), Errno> {
        match place.node {
            Node::Inode(id) => self.written(id, context),
            Node::Disk(node) => self.disk_written(node, context)?,
            Node::Proc(_) => {}
        }
        Ok(())
    }

    /// A file was read, wherever it is (Linux: `touch_atime`).
    ///
    /// # Errors
    /// `EIO` of a disk.
    pub fn read(&mut self, place: Place, context: &Context) -> Result<(), Errno> {
        match place.node {
            Node::Inode(id) => self.accessed(id, context),
            Node::Disk(node) => self.disk_accessed(node, context)?,
            Node::Proc(_) => {}
        }
        Ok(())
    }

    /// A pipe without a name: its place, held once. The kernel opens it for reading and for writing.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn create_pipe(&mut self, context: &Context) -> Result<Place, Errno> {
        let fs = self.mount_of(PIPE_MOUNT).ok_or(Errno::Enodev)?.fs;
        let new = NewInode { fs, permissions: 0o600, parent: None, content: Content::Fifo };
        let id = self.new_inode(new, context)?;
        let place = Place { mount: PIPE_MOUNT, node: Node::Inode(id) };
        self.hold(place);
        Ok(place)
    }

    /// `pipe:[12]`, if the place is a pipe without a name.
    pub(crate) fn path_of_pipe(&self, place: Place) -> Option<Result<Vec<u8>, Errno>> {
        let Node::Inode(id) = place.node else { return None };
        if place.mount != PIPE_MOUNT {
            return None;
        }
        Some(Ok(format!("pipe:[{}]", self.inode(id)?.number).into_bytes()))
    }

    /// A device by number, as an open file without a name would be: /dev/console for the first process.
    ///
    /// # Errors
    /// `ENXIO`, `ENOMEM`.
    pub fn open_device(
        &mut self,
        context: &Context,
        device: Device,
        flags: OpenFlags,
    ) -> Result<File<D::Id>, Errno> {
        let fs = self.mount_of(SHM_MOUNT).ok_or(Errno::Enodev)?.fs;
        Char::of(device).ok_or(Errno::Enxio)?;
        let new = NewInode { fs, permissions: 0o600, parent: None, content: Content::Char(device) };
        let id = self.new_inode(new, context)?;
        self.open_file(Place { mount: SHM_MOUNT, node: Node::Inode(id) }, flags)
    }

    /// The file was read (Linux: `touch_atime` with `relatime`).
    pub fn accessed(&mut self, id: InodeId, context: &Context) {
        const DAY: i64 = 24 * 60 * 60;
        if let Some(inode) = self.inode_mut(id)
            && (inode.atime <= inode.mtime
                || inode.atime <= inode.ctime
                || context.now.sec - inode.atime.sec >= DAY)
        {
            inode.atime = context.now;
        }
    }

    /// The file was written (Linux: `file_update_time`).
    pub fn written(&mut self, id: InodeId, context: &Context) {
        if let Some(inode) = self.inode_mut(id) {
            (inode.mtime, inode.ctime) = (context.now, context.now);
        }
    }

    /// `st_mode` of a place.
    pub fn mode_of(&self, place: Place) -> Option<u32> {
        match place.node {
            Node::Inode(id) => self.inode(id).map(Inode::mode),
            Node::Proc(node) => Some(node.mode()),
            Node::Disk(node) => self.disk_mode(node),
        }
    }

    /// The directory's entries; used by tests and views.
    pub fn names(&self, place: Place) -> Vec<Vec<u8>> {
        let Node::Inode(id) = place.node else { return Vec::new() };
        let dir = self.inode(id).and_then(Inode::dir);
        dir.map_or(Vec::new(), |dir| Directory::from(dir, 0).iter().map(|slot| slot.name.clone()).collect())
    }
}
