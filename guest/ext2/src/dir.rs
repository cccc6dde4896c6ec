//! Directories: finding, listing, adding and removing names (Linux: fs/ext2/dir.c).

use crate::Errno;
use crate::blocks::Create;
use crate::buffers::{Block, Buffers};
use crate::create::Caller;
use crate::dirblock::{self, Entries, FileType, NewEntry, entries, rec_len};
use crate::inode::{Ino, Inode};
use crate::layout::flags;
use crate::mount::Ext2;

/// An entry as readdir tells it.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    /// What it names.
    pub ino: Ino,
    /// Where the entry after it begins: a position to go on from.
    pub next: u64,
    /// Unknown where the file system does not say.
    pub file_type: FileType,
    /// The name.
    pub name: &'a [u8],
}

/// Where an entry is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub block: Block,
    pub offset: usize,
    pub ino: Ino,
}

impl<B: Buffers> Ext2<B> {
    /// The directory, for who looks into it.
    pub(crate) fn dir(&mut self, ino: Ino) -> Result<Inode, Errno> {
        let inode = self.inode(ino)?;
        if inode.is_dir() { Ok(inode) } else { Err(Errno::Enotdir) }
    }

    /// Blocks of a directory. A corrupt size does not make the work endless.
    fn dir_blocks(&mut self, dir: &Inode) -> Result<u32, Errno> {
        let blocks = dir.size().div_ceil(u64::from(self.geometry.block_size));
        let allocated = dir.sectors() / u64::from(self.geometry.sectors());
        if blocks > allocated || blocks > u64::from(self.geometry.blocks_count) {
            return Err(self.corrupt(
                Errno::Eio,
                "size of a directory exceeds its blocks",
                u64::from(dir.ino.0),
            ));
        }
        u32::try_from(blocks).map_err(|_| Errno::Eio)
    }

    fn dir_block(&mut self, dir: &Inode, index: u32) -> Result<Block, Errno> {
        let mut dir = *dir;
        match self.map_block(&mut dir, u64::from(index), 1, Create::No)? {
            Some(mapped) => Ok(mapped.block),
            None => Err(self.corrupt(Errno::Eio, "directory with a hole", u64::from(dir.ino.0))),
        }
    }

    /// Looks at the entries of a block.
    fn in_block<R>(
        &mut self,
        dir: &Inode,
        block: Block,
        look: impl FnOnce(Entries<'_>) -> Result<R, &'static str>,
    ) -> Result<R, Errno> {
        let inodes = self.geometry.inodes_count;
        let result = self.buffers.read(block, |bytes| look(entries(bytes, inodes)))?;
        result.map_err(|what| self.corrupt(Errno::Eio, what, u64::from(dir.ino.0)))
    }

    /// Linux: `ext2_find_entry`.
    pub(crate) fn find_entry(&mut self, dir: &Inode, name: &[u8]) -> Result<Option<Found>, Errno> {
        for index in 0..self.dir_blocks(dir)? {
            let block = self.dir_block(dir, index)?;
            let found = self.in_block(dir, block, |mut entries| {
                entries
                    .find_map(|entry| match entry {
                        Ok(entry) if entry.is_free() || entry.name != name => None,
                        Ok(entry) => Some(Ok((entry.offset, entry.ino))),
                        Err(what) => Some(Err(what)),
                    })
                    .transpose()
            })?;
            if let Some((offset, ino)) = found {
                return Ok(Some(Found { block, offset, ino }));
            }
        }
        Ok(None)
    }

    /// What a name names (Linux: `ext2_lookup`).
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENAMETOOLONG`, `EIO`, `EUCLEAN`.
    pub fn lookup(&mut self, dir: Ino, name: &[u8]) -> Result<Inode, Errno> {
        if name.len() > crate::layout::NAME_LEN {
            return Err(Errno::Enametoolong);
        }
        let dir = self.dir(dir)?;
        let found = self.find_entry(&dir, name)?.ok_or(Errno::Enoent)?;
        self.named_inode(found.ino)
    }

    /// Tells the entries from a position on, `.` and `..` among them, until `tell` says false; returns where to go on (Linux:
    /// `ext2_readdir`). 0 is the start; a position stays good when names come and go.
    ///
    /// # Errors
    /// `ENOTDIR`, `EIO`, `EUCLEAN`: if nothing was told before.
    pub fn list(
        &mut self,
        dir: Ino,
        from: u64,
        mut tell: impl FnMut(Listed<'_>) -> bool,
    ) -> Result<u64, Errno> {
        let dir = self.dir(dir)?;
        let block_size = u64::from(self.geometry.block_size);
        let blocks = self.dir_blocks(&dir)?;
        let filetype = self.geometry.filetype;
        let mut at = from;
        let mut told = false;
        let first = u32::try_from(from / block_size).unwrap_or(u32::MAX);
        for index in first..blocks {
            let base = u64::from(index) * block_size;
            let listed = self.dir_block(&dir, index).and_then(|block| {
                self.in_block(&dir, block, |entries| {
                    for entry in entries {
                        let entry = entry?;
                        let next = base + (entry.offset + entry.rec_len) as u64;
                        // Only starts of entries count: after changes the position may be inside of one.
                        if base + (entry.offset as u64) < from {
                            continue;
                        }
                        let file_type =
                            if filetype { FileType::of_raw(entry.file_type) } else { FileType::Unknown };
                        let listed = Listed { ino: entry.ino, next, file_type, name: entry.name };
                        if !entry.is_free() {
                            if !tell(listed) {
                                return Ok(false);
                            }
                            told = true;
                        }
                        at = next;
                    }
                    Ok(true)
                })
            });
            match listed {
                Ok(true) => {}
                Ok(false) => return Ok(at),
                Err(_) if told => return Ok(at),
                Err(error) => return Err(error),
            }
        }
        Ok(at)
    }

    /// Adds a name that is not there (Linux: `ext2_add_link`); `dir` is written.
    pub(crate) fn add_entry(
        &mut self,
        caller: &Caller,
        dir: &mut Inode,
        name: &[u8],
        inode: &Inode,
    ) -> Result<(), Errno> {
        let new = NewEntry { ino: inode.ino, file_type: self.type_of(inode), name };
        let need = rec_len(name.len());
        let blocks = self.dir_blocks(dir)?;
        for index in 0..blocks {
            let block = self.dir_block(dir, index)?;
            let slot = self.in_block(dir, block, |mut entries| {
                entries
                    .find_map(|entry| match entry {
                        Ok(entry) if entry.slack() < need => None,
                        Ok(entry) => Some(Ok(entry.offset)),
                        Err(what) => Some(Err(what)),
                    })
                    .transpose()
            })?;
            if let Some(offset) = slot {
                self.buffers.change(block, |bytes| dirblock::insert(bytes, offset, new))?;
                return self.dir_changed(dir, caller.now).inspect_err(|_| {
                    let inodes = self.geometry.inodes_count;
                    let at = |bytes: &mut [u8]| remove_name(bytes, name, inodes);
                    let _ = self.buffers.change(block, at);
                });
            }
        }
        self.append_entry(caller, dir, blocks, new)
    }

    /// Makes the directory one block longer, with one entry in it.
    fn append_entry(
        &mut self,
        caller: &Caller,
        dir: &mut Inode,
        blocks: u32,
        new: NewEntry<'_>,
    ) -> Result<(), Errno> {
        let block_size = self.geometry.block_size;
        let size = (u64::from(blocks) + 1) * u64::from(block_size);
        // The upper half of a directory's size is not the size's.
        if size > u64::from(u32::MAX) {
            return Err(Errno::Efbig);
        }
        let before = *dir;
        let mapped = self.map_block(dir, u64::from(blocks), 1, Create::Yes(caller))?.ok_or(Errno::Eio)?;
        if !mapped.new {
            return Err(self.corrupt(Errno::Eio, "directory with blocks past its end", u64::from(dir.ino.0)));
        }
        let filled =
            self.buffers.fill(mapped.block, |bytes| dirblock::put(bytes, 0, block_size as usize, new));
        let result = filled.and_then(|()| {
            dir.set_size(size);
            self.dir_changed(dir, caller.now)
        });
        if let Err(error) = result {
            dir.set_size(before.size());
            // The first error is the one to tell.
            let _ = self.truncate_blocks(dir, u64::from(blocks));
            return Err(error);
        }
        Ok(())
    }

    /// Times and flags of a directory whose names changed.
    fn dir_changed(&mut self, dir: &mut Inode, now: i64) -> Result<(), Errno> {
        dir.set_mtime(now);
        dir.set_ctime(now);
        // An index, which only other file systems keep, is wrong from now on.
        dir.raw.flags.set(dir.flags() & !flags::BTREE);
        self.write_inode(dir)
    }

    /// Linux: `ext2_delete_entry`.
    pub(crate) fn delete_entry(&mut self, dir: &mut Inode, found: Found, now: i64) -> Result<(), Errno> {
        let inodes = self.geometry.inodes_count;
        self.buffers.change(found.block, |bytes| dirblock::remove(bytes, found.offset, inodes))?;
        self.dir_changed(dir, now)
    }

    /// Makes an entry name another inode (Linux: `ext2_set_link`).
    pub(crate) fn set_link(
        &mut self,
        dir: &mut Inode,
        found: Found,
        inode: &Inode,
        now: i64,
    ) -> Result<(), Errno> {
        let file_type = self.type_of(inode);
        self.buffers
            .change(found.block, |bytes| dirblock::set_link(bytes, found.offset, inode.ino, file_type))?;
        self.dir_changed(dir, now)
    }

    fn type_of(&self, inode: &Inode) -> u8 {
        if self.geometry.filetype { inode.file_type() as u8 } else { 0 }
    }

    /// The first block of a new directory (Linux: `ext2_make_empty`).
    pub(crate) fn make_empty(
        &mut self,
        caller: &Caller,
        dir: &mut Inode,
        parent: &Inode,
    ) -> Result<(), Errno> {
        let block_size = self.geometry.block_size;
        let mapped = self.map_block(dir, 0, 1, Create::Yes(caller))?.ok_or(Errno::Eio)?;
        let file_type = self.type_of(dir);
        let dots = [(dir.ino, &b"."[..]), (parent.ino, b"..")];
        let [this, above] = dots.map(|(ino, name)| NewEntry { ino, file_type, name });
        self.buffers.fill(mapped.block, |bytes| {
            let first = rec_len(1);
            dirblock::put(bytes, 0, first, this);
            dirblock::put(bytes, first, block_size as usize - first, above);
        })?;
        dir.set_size(u64::from(block_size));
        self.write_inode(dir)
    }

    /// Whether it has only `.` and `..` (Linux: `ext2_empty_dir`).
    pub(crate) fn is_empty(&mut self, dir: &Inode) -> Result<bool, Errno> {
        for index in 0..self.dir_blocks(dir)? {
            let block = self.dir_block(dir, index)?;
            let empty = self.in_block(dir, block, |entries| {
                for entry in entries {
                    let entry = entry?;
                    let own = entry.name == b".." || (entry.name == b"." && entry.ino == dir.ino);
                    if !entry.is_free() && !own {
                        return Ok(false);
                    }
                }
                Ok(true)
            })?;
            if !empty {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Takes a name out again.
fn remove_name(bytes: &mut [u8], name: &[u8], inodes_count: u32) {
    let of_name = |entry: &dirblock::Entry<'_>| !entry.is_free() && entry.name == name;
    let at = entries(bytes, inodes_count).flatten().find(of_name).map(|entry| entry.offset);
    if let Some(offset) = at {
        dirblock::remove(bytes, offset, inodes_count);
    }
}
