//! Allocation of inodes (Linux: fs/ext2/ialloc.c).

use crate::Errno;
use crate::bitmap;
use crate::buffers::{Block, Buffers};
use crate::create::Caller;
use crate::group::Delta;
use crate::inode::{Ino, Inode};
use crate::layout::{GroupDesc, flags, mode};
use crate::mount::Ext2;

impl<B: Buffers> Ext2<B> {
    /// A new inode with one name to come, of this mode, for the directory `dir` (Linux: `ext2_new_inode`).
    pub(crate) fn new_inode(&mut self, caller: &Caller, dir: &Inode, mode: u32) -> Result<Inode, Errno> {
        let is_dir = mode & mode::S_IFMT == mode::S_IFDIR;
        let home = if is_dir { self.group_for_dir(dir)? } else { self.group_for_other(dir)? };
        let home = home.ok_or(Errno::Enospc)?;
        let groups = self.geometry.groups;
        let mut taken = None;
        for step in 0..groups {
            let group = (home + step) % groups;
            if self.desc(group)?.free_inodes_count.get() > 0 {
                taken = self.take_inode(group, is_dir)?;
            }
            if taken.is_some() {
                break;
            }
        }
        let ino = taken.ok_or(Errno::Enospc)?;
        let inode = self.fresh(caller, dir, (ino, mode));
        if let Err(error) = self.write_new_inode(&inode) {
            let _ = self.free_inode(ino, is_dir);
            return Err(error);
        }
        Ok(inode)
    }

    /// What a new inode holds (Linux: `inode_init_owner`, `ext2_mask_flags`).
    fn fresh(&mut self, caller: &Caller, dir: &Inode, (ino, bits): (Ino, u32)) -> Inode {
        let kind = bits & mode::S_IFMT;
        let is_dir = kind == mode::S_IFDIR;
        let inherits = dir.mode() & mode::S_ISGID != 0;
        let bits = if inherits && is_dir { bits | mode::S_ISGID } else { bits };
        let mask = match kind {
            mode::S_IFDIR => u32::MAX,
            mode::S_IFREG => !(flags::DIRSYNC | flags::TOPDIR),
            _ => flags::NODUMP | flags::NOATIME,
        };
        let mut inode = Inode::new(ino);
        inode.raw.mode.set(u16::try_from(bits & 0xffff).unwrap_or(0));
        inode.set_owner(caller.uid, if inherits { dir.gid() } else { caller.gid });
        inode.set_nlink(1);
        inode.raw.flags.set(dir.flags() & flags::INHERITED & mask);
        inode.set_atime(caller.now);
        inode.set_mtime(caller.now);
        inode.set_ctime(caller.now);
        self.generation = self.generation.wrapping_add(1);
        inode.raw.generation.set(self.generation);
        inode
    }

    fn take_inode(&mut self, group: u32, is_dir: bool) -> Result<Option<Ino>, Errno> {
        let map = self.inode_bitmap(group)?;
        let end = self.geometry.inodes_per_group;
        let Some(bit) = self.buffers.read(map, |map| bitmap::find_zero(map, 0, end))? else {
            return Ok(None);
        };
        let ino = Ino(group * self.geometry.inodes_per_group + bit + 1);
        if ino.0 < self.geometry.first_ino {
            return Err(self.corrupt(Errno::Eio, "reserved inode is marked free", u64::from(ino.0)));
        }
        self.buffers.change(map, |map| bitmap::set(map, bit))?;
        let delta = Delta { free_inodes: -1, dirs: i32::from(is_dir), ..Delta::default() };
        if let Err(error) = self.count(group, delta) {
            self.buffers.change(map, |map| bitmap::clear(map, bit))?;
            return Err(error);
        }
        Ok(Some(ino))
    }

    /// Linux: `ext2_free_inode`.
    fn free_inode(&mut self, ino: Ino, was_dir: bool) -> Result<(), Errno> {
        if ino.0 < self.geometry.first_ino || ino.0 > self.geometry.inodes_count {
            return Err(self.corrupt(Errno::Eio, "reserved or nonexistent inode freed", u64::from(ino.0)));
        }
        let (group, bit) = self.geometry.group_of_inode(ino);
        let map = self.inode_bitmap(group)?;
        if !self.buffers.change(map, |map| bitmap::clear(map, bit))? {
            return Err(self.corrupt(Errno::Eio, "bit already cleared for an inode", u64::from(ino.0)));
        }
        self.count(group, Delta { free_inodes: 1, dirs: -i32::from(was_dir), ..Delta::default() })
    }

    fn inode_bitmap(&self, group: u32) -> Result<Block, Errno> {
        Ok(Block(self.desc(group)?.inode_bitmap.get()))
    }

    /// Frees an inode without names that nobody holds, and all that it has (Linux: `ext2_evict_inode`).
    pub(crate) fn delete_inode(&mut self, mut inode: Inode, now: i64) -> Result<(), Errno> {
        let is_dir = inode.is_dir();
        inode.set_nlink(0);
        // e2fsck takes 0 for "not deleted".
        inode.raw.dtime.set(crate::inode::seconds(now).max(1));
        if inode.has_blocks(self.geometry.sectors()) {
            self.truncate_blocks(&mut inode, 0)?;
        }
        self.free_attributes(&mut inode)?;
        inode.set_size(0);
        self.write_inode(&inode)?;
        self.free_inode(inode.ino, is_dir)
    }

    /// Keeps an inode, with or without names, until [`Ext2::release`] (Linux: `iget`).
    ///
    /// # Errors
    /// Those of [`Ext2::inode`], `ENOMEM`.
    pub fn hold(&mut self, ino: Ino) -> Result<(), Errno> {
        if !self.held.is_held(ino) {
            self.inode(ino)?;
        }
        self.held.add(ino)
    }

    /// Gives up an [`Ext2::hold`]: an inode without names is deleted after the last (Linux: `iput`).
    ///
    /// An inode whose holder never came to this, since the machine stopped, stays in use without a name: ext2 has no list of such, and
    /// `e2fsck` frees it.
    ///
    /// # Errors
    /// `EIO`, `EUCLEAN`; it is not held any more all the same.
    pub fn release(&mut self, ino: Ino, now: i64) -> Result<(), Errno> {
        if !self.held.remove(ino) || self.check_writable().is_err() {
            return Ok(());
        }
        let inode = self.raw_inode(ino)?;
        if inode.nlink() == 0 && inode.dtime() == 0 { self.delete_inode(inode, now) } else { Ok(()) }
    }

    /// Takes away a name: the last one, if nobody holds the inode, deletes it.
    pub(crate) fn drop_link(&mut self, mut inode: Inode, names: u16, now: i64) -> Result<(), Errno> {
        inode.set_nlink(inode.nlink().saturating_sub(names));
        inode.set_ctime(now);
        if inode.nlink() == 0 && !self.held.is_held(inode.ino) {
            return self.delete_inode(inode, now);
        }
        self.write_inode(&inode)
    }

    /// The group for a directory (Linux: `find_group_orlov`): one below the root goes where there is room and few directories,
    /// another near its parent, while there is room there.
    ///
    /// Differs from Linux: no `s_debts`; where the search for a directory below the root begins is not random but differs from
    /// one to the next.
    fn group_for_dir(&mut self, dir: &Inode) -> Result<Option<u32>, Errno> {
        let groups = self.geometry.groups;
        let each = |sum: u64| u32::try_from(sum / u64::from(groups)).unwrap_or(u32::MAX);
        let (inodes, blocks) = (each(self.free_inodes), each(self.free_blocks));
        let free_inodes = |desc: &GroupDesc| u32::from(desc.free_inodes_count.get());
        let free_blocks = |desc: &GroupDesc| u32::from(desc.free_blocks_count.get());
        let parent = self.geometry.group_of_inode(dir.ino).0;
        let found = if dir.ino == Ino::ROOT || dir.flags() & flags::TOPDIR != 0 {
            // Fibonacci hashing.
            let start = self.generation.wrapping_mul(0x9e37_79b9) % groups;
            let roomy = |desc: &GroupDesc| {
                free_inodes(desc) > 0 && free_inodes(desc) >= inodes && free_blocks(desc) >= blocks
            };
            let all = self.from(start).filter(|(_, desc)| roomy(desc));
            all.min_by_key(|(_, desc)| desc.used_dirs_count.get()).map(|(group, _)| group)
        } else {
            let max_dirs = each(self.dirs) + self.geometry.inodes_per_group / 16;
            let min_inodes = inodes.saturating_sub(self.geometry.inodes_per_group / 4);
            let min_blocks = blocks.saturating_sub(self.geometry.blocks_per_group / 4);
            let near = |desc: &GroupDesc| {
                free_inodes(desc) > 0
                    && free_inodes(desc) >= min_inodes
                    && free_blocks(desc) >= min_blocks
                    && u32::from(desc.used_dirs_count.get()) < max_dirs
            };
            self.from(parent).find(|(_, desc)| near(desc)).map(|(group, _)| group)
        };
        let average = |desc: &GroupDesc| free_inodes(desc) > 0 && free_inodes(desc) >= inodes;
        Ok(found
            .or_else(|| self.from(parent).find(|(_, desc)| average(desc)).map(|(group, _)| group))
            .or_else(|| self.from(parent).find(|(_, desc)| free_inodes(desc) > 0).map(|(group, _)| group)))
    }

    /// The group for what is no directory (Linux: `find_group_other`): its directory's, else one with inodes and blocks that files of
    /// the same directory come to as well, else any with inodes.
    fn group_for_other(&self, dir: &Inode) -> Result<Option<u32>, Errno> {
        let groups = self.geometry.groups;
        let parent = self.geometry.group_of_inode(dir.ino).0;
        let roomy = |desc: &GroupDesc| desc.free_inodes_count.get() > 0 && desc.free_blocks_count.get() > 0;
        if roomy(&self.desc(parent)?) {
            return Ok(Some(parent));
        }
        let mut group = parent.wrapping_add(dir.ino.0) % groups;
        let mut step = 1;
        while step < groups {
            group = (group + step) % groups;
            if roomy(&self.desc(group)?) {
                return Ok(Some(group));
            }
            step *= 2;
        }
        let any = self.from(parent).find(|(_, desc)| desc.free_inodes_count.get() > 0);
        Ok(any.map(|(group, _)| group))
    }

    /// All groups, beginning with `start`.
    fn from(&self, start: u32) -> impl Iterator<Item = (u32, &GroupDesc)> {
        let start = start as usize;
        let numbered = || (0..).zip(self.groups.iter());
        numbered().skip(start).chain(numbered().take(start))
    }
}
