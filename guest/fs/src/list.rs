//! getdents64 and getcwd (Linux: fs/readdir.c, fs/libfs.c `dcache_readdir`, fs/d_path.c).

use alloc::vec::Vec;

use guest_ext2::FileType;

use crate::dir::FIRST;
use crate::disk::DiskNode;
use crate::flags::PATH_MAX;
use crate::inode::Inode;
use crate::proc::Processes;
use crate::stat::{Dirent, dirent_type};
use crate::vfs::{Context, Node, Place, Vfs};
use crate::walk::PathState;
use crate::{Data, Errno, no_memory};

/// Gathers entries while they fit.
#[derive(Debug)]
struct Filler {
    out: Vec<u8>,
    room: usize,
}

impl Filler {
    /// Whether there was room.
    fn put(&mut self, entry: &Dirent<'_>) -> Result<bool, Errno> {
        if self.out.len() + entry.len() > self.room {
            return Ok(false);
        }
        self.out.try_reserve(entry.len()).map_err(no_memory)?;
        entry.put(&mut self.out);
        Ok(true)
    }
}

/// More is never gathered in one call: the caller asks again.
const AT_ONCE: usize = 32 << 10;

impl<D: Data, P: Processes> Vfs<D, P> {
    /// Entries of a directory from `pos` on, as many as fit into `room` bytes, and the position after them.
    ///
    /// # Errors
    /// `ENOTDIR`; `EINVAL` if not even one entry fits; `ENOENT` of a removed directory.
    pub fn getdents(&self, place: Place, mut pos: u64, room: usize) -> Result<(Vec<u8>, u64), Errno> {
        let mut filler = Filler { out: Vec::new(), room: room.min(AT_ONCE) };
        if !self.is_dir(place) {
            return Err(Errno::Enotdir);
        }
        let full = match place.node {
            Node::Inode(id) => {
                let inode = self.inode(id).filter(|inode| inode.nlink > 0).ok_or(Errno::Enoent)?;
                let parent = self.inode(inode.parent).unwrap_or(inode);
                self.dots([inode.number, parent.number], &mut pos, &mut filler)?
                    || self.entries(inode, &mut pos, &mut filler)?
            }
            Node::Proc(node) => {
                let numbers = [node.number(), node.parent().number()];
                self.dots(numbers, &mut pos, &mut filler)?
                    || node.list(&self.processes, &mut pos, &mut |entry| filler.put(entry))?
            }
            Node::Disk(node) => self.disk_entries(node, &mut pos, &mut filler)?,
        };
        if filler.out.is_empty() && full {
            return Err(Errno::Einval);
        }
        Ok((filler.out, pos))
    }

    /// `.` and `..`; whether there was no room.
    fn dots(&self, numbers: [u64; 2], pos: &mut u64, filler: &mut Filler) -> Result<bool, Errno> {
        const DIRECTORY: u8 = 4;
        for ((at, name), ino) in [(0, &b"."[..]), (1, b"..")].into_iter().zip(numbers) {
            if *pos > at {
                continue;
            }
            if !filler.put(&Dirent { ino, next: at + 1, kind: DIRECTORY, name })? {
                return Ok(true);
            }
            *pos = at + 1;
        }
        Ok(false)
    }

    fn entries(&self, dir: &Inode<D::Id>, pos: &mut u64, filler: &mut Filler) -> Result<bool, Errno> {
        for slot in dir.dir().ok_or(Errno::Enotdir)?.from((*pos).max(FIRST)) {
            let Some(inode) = self.inode(slot.inode) else { continue };
            let kind = dirent_type(inode.mode());
            let next = slot.number + 1;
            if !filler.put(&Dirent { ino: inode.number, next, kind, name: &slot.name })? {
                return Ok(true);
            }
            *pos = next;
        }
        Ok(false)
    }

    /// Entries of a directory on a disk, `.` and `..` among them; positions are the disk's.
    fn disk_entries(&self, node: DiskNode, pos: &mut u64, filler: &mut Filler) -> Result<bool, Errno> {
        let mut disk = self.disk(node)?;
        if disk.fs.inode(node.ino)?.nlink() == 0 {
            return Err(Errno::Enoent);
        }
        let mut full = Ok(false);
        *pos = disk.fs.list(node.ino, *pos, |entry| {
            // Linux's DT_ numbers are the type's bits of st_mode.
            let kind = match entry.file_type {
                FileType::Unknown => 0,
                FileType::Fifo => 1,
                FileType::Char => 2,
                FileType::Directory => 4,
                FileType::Block => 6,
                FileType::Regular => 8,
                FileType::Symlink => 10,
                FileType::Socket => 12,
            };
            let ino = u64::from(entry.ino.as_u32());
            full = filler.put(&Dirent { ino, next: entry.next, kind, name: entry.name }).map(|room| !room);
            matches!(full, Ok(false))
        })?;
        full
    }

    /// getcwd: the path with a zero behind it.
    ///
    /// # Errors
    /// `ENOENT` if the directory was removed, `ERANGE` if it does not fit into `room` bytes.
    pub fn getcwd(&self, context: &Context, room: usize) -> Result<Vec<u8>, Errno> {
        let found = self.path_of(context, context.cwd)?;
        let mut path = match found.state {
            PathState::Deleted => return Err(Errno::Enoent),
            PathState::Reachable => found.path,
            PathState::Outside => {
                let mut path = crate::dir::copy(b"(unreachable)")?;
                path.try_reserve(found.path.len() + 1).map_err(no_memory)?;
                path.extend_from_slice(&found.path);
                path
            }
        };
        path.try_reserve(1).map_err(no_memory)?;
        path.push(0);
        if path.len() > PATH_MAX {
            return Err(Errno::Enametoolong);
        }
        if path.len() > room { Err(Errno::Erange) } else { Ok(path) }
    }
}
