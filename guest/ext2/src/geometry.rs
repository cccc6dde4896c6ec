//! Where things are: what the super block says, checked once (Linux: `ext2_fill_super`, `struct ext2_sb_info`).

use crate::Errno;
use crate::buffers::Block;
use crate::inode::Ino;
use crate::layout::{
    DYNAMIC_REV, GOOD_OLD_FIRST_INO, GOOD_OLD_INODE_SIZE, GOOD_OLD_REV, GroupDesc, INCOMPAT_FILETYPE, MAGIC,
    NDIR_BLOCKS, RO_COMPAT_LARGE_FILE, RO_COMPAT_SPARSE_SUPER, SUPER_OFFSET, SuperBlock,
};

const INCOMPAT_SUPP: u32 = INCOMPAT_FILETYPE;
const RO_COMPAT_SUPP: u32 = RO_COMPAT_SPARSE_SUPER | RO_COMPAT_LARGE_FILE;
/// Bytes of a group's descriptor.
pub const DESC_SIZE: u32 = 32;
const _: () = assert!(size_of::<GroupDesc>() == DESC_SIZE as usize);

/// Sizes and counts that never change while it is mounted.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Bytes of a block.
    pub block_size: u32,
    pub blocks_count: u32,
    pub first_data_block: u32,
    pub blocks_per_group: u32,
    pub inodes_per_group: u32,
    pub inodes_count: u32,
    /// Bytes of an inode.
    pub inode_size: u32,
    /// First inode that is not reserved.
    pub first_ino: u32,
    /// Blocks of a group's inode table.
    pub itb_per_group: u32,
    pub groups: u32,
    /// Blocks of the group descriptors.
    pub gdb_count: u32,
    pub sparse_super: bool,
    pub filetype: bool,
    /// Some feature forbids writing.
    pub must_not_write: bool,
    /// Largest size of a file in bytes.
    pub max_size: u64,
}

impl Geometry {
    /// Believes a super block that fits together and into a device of `device_bytes`.
    pub fn new(sb: &SuperBlock, device_bytes: u64) -> Result<Geometry, Errno> {
        if sb.magic.get() != MAGIC {
            return Err(Errno::Einval);
        }
        let rev = sb.rev_level.get();
        let dynamic = rev != GOOD_OLD_REV;
        if rev > DYNAMIC_REV || sb.feature_incompat.get() & !INCOMPAT_SUPP != 0 {
            return Err(Errno::Einval);
        }
        let block_size = match sb.log_block_size.get() {
            log @ 0..=2 => 1024 << log,
            _ => return Err(Errno::Einval),
        };
        let (inode_size, first_ino) = if dynamic {
            (u32::from(sb.inode_size.get()), sb.first_ino.get())
        } else {
            (GOOD_OLD_INODE_SIZE, GOOD_OLD_FIRST_INO)
        };
        let bits = block_size * 8;
        let (blocks_per_group, inodes_per_group) = (sb.blocks_per_group.get(), sb.inodes_per_group.get());
        let (blocks_count, first_data_block) = (sb.blocks_count.get(), sb.first_data_block.get());
        let fits = inode_size.is_power_of_two()
            && (GOOD_OLD_INODE_SIZE..=block_size).contains(&inode_size)
            && first_ino >= GOOD_OLD_FIRST_INO
            && sb.log_frag_size == sb.log_block_size
            && (1..=bits).contains(&blocks_per_group)
            && (1..=bits).contains(&inodes_per_group)
            && first_data_block == SUPER_OFFSET / block_size
            && blocks_count > first_data_block
            && u64::from(blocks_count) <= device_bytes / u64::from(block_size);
        if !fits {
            return Err(Errno::Einval);
        }
        let itb_per_group = inodes_per_group.div_ceil(block_size / inode_size);
        let groups = (blocks_count - first_data_block).div_ceil(blocks_per_group);
        let inodes_count = sb.inodes_count.get();
        let gdb_count = groups.div_ceil(block_size / DESC_SIZE);
        let fits = u64::from(inodes_per_group) * u64::from(groups) == u64::from(inodes_count)
            && first_ino <= inodes_count
            && inodes_per_group >= block_size / inode_size
            && blocks_per_group > itb_per_group + 3
            && gdb_count < blocks_count - first_data_block;
        if !fits {
            return Err(Errno::Einval);
        }
        let ro_compat = if dynamic { sb.feature_ro_compat.get() } else { 0 };
        Ok(Geometry {
            block_size,
            blocks_count,
            first_data_block,
            blocks_per_group,
            inodes_per_group,
            inodes_count,
            inode_size,
            first_ino,
            itb_per_group,
            groups,
            gdb_count,
            sparse_super: sb.feature_ro_compat.get() & RO_COMPAT_SPARSE_SUPER != 0,
            filetype: sb.feature_incompat.get() & INCOMPAT_FILETYPE != 0,
            must_not_write: ro_compat & !RO_COMPAT_SUPP != 0,
            max_size: max_size(block_size),
        })
    }

    /// The block with the super block, and where it begins there.
    pub const fn super_at(&self) -> (Block, usize) {
        (Block(self.first_data_block), (SUPER_OFFSET % self.block_size) as usize)
    }

    /// The block with a group's descriptor, and where it begins there.
    pub const fn desc_at(&self, group: u32) -> (Block, usize) {
        let each = self.block_size / DESC_SIZE;
        (Block(self.first_data_block + 1 + group / each), (group % each * DESC_SIZE) as usize)
    }

    /// First block of a group.
    pub const fn group_first(&self, group: u32) -> u32 {
        self.first_data_block + group * self.blocks_per_group
    }

    /// Blocks of a group: the last may have fewer.
    pub fn group_blocks(&self, group: u32) -> u32 {
        self.blocks_per_group.min(self.blocks_count - self.group_first(group))
    }

    /// The group of a block, and its bit there.
    pub fn group_of(&self, block: Block) -> Option<(u32, u32)> {
        let at = block.0.checked_sub(self.first_data_block).filter(|_| block.0 < self.blocks_count)?;
        Some((at / self.blocks_per_group, at % self.blocks_per_group))
    }

    /// The group of an inode, and its bit there.
    pub const fn group_of_inode(&self, ino: Ino) -> (u32, u32) {
        let at = ino.0.saturating_sub(1);
        (at / self.inodes_per_group, at % self.inodes_per_group)
    }

    /// Units of `i_blocks` that a block takes.
    pub const fn sectors(&self) -> u32 {
        self.block_size / 512
    }

    /// Pointers of an indirect block.
    pub const fn pointers(&self) -> u32 {
        self.block_size / 4
    }

    /// Whether the group begins with a copy of the super block (Linux: `ext2_bg_has_super`).
    pub fn has_super(&self, group: u32) -> bool {
        let power_of = |base: u32| {
            let mut power = base;
            while power < group {
                match power.checked_mul(base) {
                    Some(next) => power = next,
                    None => return false,
                }
            }
            power == group
        };
        !self.sparse_super || group <= 1 || power_of(3) || power_of(5) || power_of(7)
    }

    /// Blocks at the start of a group with copies of the super block and of the descriptors.
    pub fn super_blocks(&self, group: u32) -> u32 {
        if self.has_super(group) { 1 + self.gdb_count } else { 0 }
    }
}

/// Largest size of a file in bytes (Linux: `ext2_max_size`): what three levels of pointers reach, and `i_blocks` counts.
fn max_size(block_size: u32) -> u64 {
    let pointers = u64::from(block_size / 4);
    let tree = NDIR_BLOCKS as u64 + pointers + pointers.pow(2) + pointers.pow(3);
    let limit = u64::from(u32::MAX / (block_size / 512));
    // The number of blocks in use grows with every block of data: the last that still fits.
    let (mut fits, mut too_many) = (0, tree + 1);
    while too_many - fits > 1 {
        let middle = fits.midpoint(too_many);
        if middle + indirect_blocks(middle, pointers) <= limit { fits = middle } else { too_many = middle }
    }
    fits * u64::from(block_size)
}

/// Indirect blocks, of so many pointers, of a file of so many blocks without holes.
fn indirect_blocks(blocks: u64, pointers: u64) -> u64 {
    let mut rest = blocks.saturating_sub(NDIR_BLOCKS as u64);
    let mut sum = 0;
    for level in 1..=3 {
        let here = rest.min(pointers.pow(level));
        sum += (1..=level).map(|below| here.div_ceil(pointers.pow(below))).sum::<u64>();
        rest -= here;
    }
    sum
}
