//! From a block of a file to a block of the disk (Linux: fs/ext2/inode.c, `ext2_get_block`).

use crate::Errno;
use crate::buffers::{Block, Buffers};
use crate::create::Caller;
use crate::inode::{Ino, Inode};
use crate::layout::{NDIR_BLOCKS, set_word, word};
use crate::mount::Ext2;

/// Levels of pointers: a direct one, and three of indirect blocks.
const LEVELS: usize = 4;

/// What to do about a hole.
#[derive(Clone, Copy, Debug)]
pub enum Create<'a> {
    /// Tell of it.
    No,
    /// Fill it, for this caller.
    Yes(&'a Caller),
}

/// Where a block of a file lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// On the disk.
    pub block: Block,
    /// How many blocks of the file lie there in a row, 1 or more, as far as was asked.
    pub count: u32,
    /// It was a hole until now: the disk holds garbage there, and all of the block must be written (Linux: `buffer_new`).
    pub new: bool,
}

/// The pointers that lead to a block of a file: the first is in the inode.
#[derive(Clone, Copy, Debug)]
struct Path {
    offsets: [u32; LEVELS],
    depth: usize,
}

impl Path {
    /// Linux: `ext2_block_to_path`. `None` past what the pointers reach.
    fn to(index: u64, pointers: u32) -> Option<Path> {
        let direct = NDIR_BLOCKS as u64;
        let each = u64::from(pointers);
        let narrow = |value: u64| u32::try_from(value).ok();
        if index < direct {
            return Some(Path { offsets: [narrow(index)?, 0, 0, 0], depth: 1 });
        }
        let mut rest = index - direct;
        for (slot, depth) in (12..).zip(2..=LEVELS) {
            let span = each.pow(narrow(depth as u64 - 1)?);
            if rest >= span {
                rest -= span;
                continue;
            }
            let mut offsets = [slot, 0, 0, 0];
            for offset in offsets.get_mut(1..depth)?.iter_mut().rev() {
                *offset = narrow(rest % each)?;
                rest /= each;
            }
            return Some(Path { offsets, depth });
        }
        None
    }

    fn offset(&self, level: usize) -> u32 {
        self.offsets.get(level).copied().unwrap_or(0)
    }
}

/// How far a walk along a path came (Linux: `ext2_get_branch`).
#[derive(Clone, Copy, Debug)]
struct Branch {
    /// Blocks that were found, in order.
    found: [Block; LEVELS],
    /// How many: as many as the path is deep if there is no hole.
    levels: usize,
}

impl Branch {
    /// The block that holds the pointers of this level; `None` for the inode.
    fn holder(&self, level: usize) -> Option<Block> {
        level.checked_sub(1).and_then(|above| self.found.get(above).copied())
    }
}

impl<B: Buffers> Ext2<B> {
    /// Where block `index` of a regular file lies, and how many behind it lie behind, at most `most`; `None` for a hole (Linux:
    /// `ext2_get_block`). With [`Create::Yes`] a hole is filled with one block; the size of the file is the caller's to raise.
    ///
    /// # Errors
    /// `EFBIG` past what pointers reach, `ENOSPC`, `EROFS`, `EIO`, `EUCLEAN`.
    pub fn get_block(
        &mut self,
        ino: Ino,
        index: u64,
        most: u32,
        create: Create<'_>,
    ) -> Result<Option<Mapped>, Errno> {
        let mut inode = self.inode(ino)?;
        if !inode.is_file() {
            return Err(Errno::Einval);
        }
        self.map_block(&mut inode, index, most, create)
    }

    /// The same for any inode with blocks; `inode` is written if it changes.
    pub(crate) fn map_block(
        &mut self,
        inode: &mut Inode,
        index: u64,
        most: u32,
        create: Create<'_>,
    ) -> Result<Option<Mapped>, Errno> {
        let path = Path::to(index, self.geometry.pointers()).ok_or(Errno::Efbig)?;
        let branch = self.walk(inode, &path)?;
        if branch.levels == path.depth {
            let block = branch.found.get(path.depth - 1).copied().ok_or(Errno::Eio)?;
            let count = self.run(inode, &path, &branch, block, most)?;
            return Ok(Some(Mapped { block, count, new: false }));
        }
        let Create::Yes(caller) = create else { return Ok(None) };
        self.check_writable()?;
        if index >= self.geometry.max_size / u64::from(self.geometry.block_size) {
            return Err(Errno::Efbig);
        }
        let block = self.fill_hole(inode, &path, &branch, caller)?;
        Ok(Some(Mapped { block, count: 1, new: true }))
    }

    /// A pointer of an indirect block.
    fn pointer_in(&mut self, holder: Block, slot: usize) -> Result<Block, Errno> {
        self.buffers.read_part(holder, (slot * 4, 4), |bytes| Block(word(bytes, 0)))
    }

    fn walk(&mut self, inode: &Inode, path: &Path) -> Result<Branch, Errno> {
        let mut branch = Branch { found: [Block(0); LEVELS], levels: 0 };
        for level in 0..path.depth {
            let offset = path.offset(level) as usize;
            let block = match branch.holder(level) {
                None => inode.pointer(offset),
                Some(holder) => self.pointer_in(holder, offset)?,
            };
            if block == Block(0) {
                break;
            }
            self.check_data_block(block)?;
            if let Some(slot) = branch.found.get_mut(level) {
                *slot = block;
            }
            branch.levels = level + 1;
        }
        Ok(branch)
    }

    /// How many blocks of the file lie in a row from `block` on, of those whose pointers are beside each other.
    fn run(
        &mut self,
        inode: &Inode,
        path: &Path,
        branch: &Branch,
        block: Block,
        most: u32,
    ) -> Result<u32, Errno> {
        let last = path.depth - 1;
        let at = path.offset(last);
        let follows = |step: u32, next: Block| next == block.plus(step);
        let count = match branch.holder(last) {
            None => {
                let room = most.min(12_u32.saturating_sub(at));
                (1..room).take_while(|step| follows(*step, inode.pointer((at + step) as usize))).count()
            }
            Some(holder) => {
                let room = most.min(self.geometry.pointers().saturating_sub(at));
                let more = |bytes: &[u8]| {
                    let next = |step: u32| Block(word(bytes, step as usize * 4));
                    (1..room).take_while(|step| follows(*step, next(*step))).count()
                };
                self.buffers.read_part(holder, (at as usize * 4, room as usize * 4), more)?
            }
        };
        // Each of them is checked: a run may not lead into the file system's own blocks.
        let mut good = 1;
        while good <= u32::try_from(count).unwrap_or(0) && self.is_data_block(block.plus(good)) {
            good += 1;
        }
        Ok(good)
    }

    /// Allocates what is missing on the path, from the pointer above to the block itself, or nothing (Linux: `ext2_alloc_branch`,
    /// `ext2_splice_branch`).
    fn fill_hole(
        &mut self,
        inode: &mut Inode,
        path: &Path,
        branch: &Branch,
        caller: &Caller,
    ) -> Result<Block, Errno> {
        let missing = branch.levels;
        let mut blocks = [Block(0); LEVELS];
        let mut goal = self.find_goal(inode, path, branch)?;
        let mut result = Ok(());
        for level in missing..path.depth {
            match self.new_block(caller, goal) {
                Ok(block) => {
                    if let Some(slot) = blocks.get_mut(level) {
                        *slot = block;
                    }
                    goal = block.plus(1);
                }
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        let before = *inode;
        if result.is_ok() {
            result = self.splice(inode, path, branch, (&blocks, caller.now));
        }
        if let Err(error) = result {
            *inode = before;
            // What cannot be given back is lost until e2fsck runs; the first error is the one to tell.
            for block in blocks.into_iter().filter(|block| *block != Block(0)) {
                let _ = self.free_blocks(block, 1);
            }
            return Err(error);
        }
        blocks.get(path.depth - 1).copied().ok_or(Errno::Eio)
    }

    /// Hangs new blocks together from below and then into the file.
    fn splice(
        &mut self,
        inode: &mut Inode,
        path: &Path,
        branch: &Branch,
        (blocks, now): (&[Block; LEVELS], i64),
    ) -> Result<(), Errno> {
        let missing = branch.levels;
        let fresh = |level: usize| blocks.get(level).copied().unwrap_or_default();
        for level in (missing + 1..path.depth).rev() {
            let at = path.offset(level) as usize * 4;
            self.buffers.fill(fresh(level - 1), |bytes| set_word(bytes, at, fresh(level).0))?;
        }
        let top = fresh(missing);
        let slot = path.offset(missing) as usize;
        let before = *inode;
        let taken = u32::try_from(path.depth - missing).unwrap_or(0);
        inode.add_blocks(taken, self.geometry.sectors());
        inode.set_ctime(now);
        match branch.holder(missing) {
            None => {
                inode.set_pointer(slot, top);
                self.write_inode(inode)
            }
            Some(holder) => {
                self.write_inode(inode)?;
                let set = |bytes: &mut [u8]| set_word(bytes, 0, top.0);
                self.buffers.change_part(holder, (slot * 4, 4), set).inspect_err(|_| {
                    let _ = self.write_inode(&before);
                })
            }
        }
    }

    /// Where the block would best lie (Linux: `ext2_find_goal`, `ext2_find_near`): behind the nearest pointer before it, else behind
    /// the indirect block, else in the inode's group.
    fn find_goal(&mut self, inode: &Inode, path: &Path, branch: &Branch) -> Result<Block, Errno> {
        let slot = path.offset(branch.levels) as usize;
        let before = |pointer: &dyn Fn(usize) -> Block| {
            (0..slot).rev().map(pointer).find(|block| *block != Block(0)).map(|block| block.plus(1))
        };
        match branch.holder(branch.levels) {
            None => {
                let group = self.geometry.group_of_inode(inode.ino).0;
                let start = Block(self.geometry.group_first(group));
                Ok(before(&|slot| inode.pointer(slot)).unwrap_or(start))
            }
            Some(holder) => {
                // A file that grows has the one just before.
                if let Some(last) = slot.checked_sub(1)
                    && let block = self.pointer_in(holder, last)?
                    && block != Block(0)
                {
                    return Ok(block.plus(1));
                }
                let near = self.buffers.read(holder, |bytes| before(&|slot| Block(word(bytes, slot * 4))))?;
                Ok(near.unwrap_or(holder.plus(1)))
            }
        }
    }
}

#[cfg(test)]
mod path_tests {
    use super::Path;

    #[test]
    fn paths_lead_through_as_many_levels_as_the_index_needs() {
        let offsets = |index| Path::to(index, 256).map(|path| (path.depth, path.offsets));
        assert_eq!(offsets(11), Some((1, [11, 0, 0, 0])));
        assert_eq!(offsets(12), Some((2, [12, 0, 0, 0])));
        assert_eq!(offsets(12 + 255), Some((2, [12, 255, 0, 0])));
        assert_eq!(offsets(12 + 256), Some((3, [13, 0, 0, 0])));
        assert_eq!(offsets(12 + 256 + 65535), Some((3, [13, 255, 255, 0])));
        assert_eq!(offsets(12 + 256 + 65536), Some((4, [14, 0, 0, 0])));
        assert_eq!(offsets(12 + 256 + 65536 + (1 << 24) - 1), Some((4, [14, 255, 255, 255])));
        assert_eq!(offsets(12 + 256 + 65536 + (1 << 24)), None);
    }
}
