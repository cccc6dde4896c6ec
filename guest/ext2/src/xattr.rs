//! The block of extended attributes of an inode that goes away (Linux: fs/ext2/xattr.c, `ext2_xattr_delete_inode`). Attributes
//! themselves are neither read nor written here.

use crate::Errno;
use crate::buffers::{Block, Buffers};
use crate::inode::Inode;
use crate::layout::{set_word, word};
use crate::mount::Ext2;

const MAGIC: u32 = 0xea02_0000;
/// Of the number of inodes that share the block.
const REFCOUNT: usize = 4;

impl<B: Buffers> Ext2<B> {
    /// Gives up the inode's share of its attribute block; the last one frees it.
    pub(crate) fn free_attributes(&mut self, inode: &mut Inode) -> Result<(), Errno> {
        let block = Block(inode.raw.file_acl.get());
        if block == Block(0) {
            return Ok(());
        }
        self.check_data_block(block)?;
        let (magic, users) = self.buffers.read(block, |bytes| (word(bytes, 0), word(bytes, REFCOUNT)))?;
        if magic != MAGIC || users == 0 {
            return Err(self.corrupt(Errno::Eio, "bad block of attributes", u64::from(block.0)));
        }
        if users == 1 {
            self.free_blocks(block, 1)?;
        } else {
            self.buffers.change(block, |bytes| set_word(bytes, REFCOUNT, users - 1))?;
        }
        inode.raw.file_acl.set(0);
        inode.sub_blocks(1, self.geometry.sectors());
        Ok(())
    }
}
