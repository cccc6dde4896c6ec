//! The bytes of regular files are mappings of the page cache.

use guest_fs::{Data, Errno};
use mm_filemap::CacheError;
use mm_vma::{Id, Kernel, Mapping};

use crate::mm::space::{Spaces, cache};

/// All of them.
#[derive(Clone, Copy, Debug)]
pub struct Pages;

/// 512-byte blocks of a page.
const BLOCKS: u64 = 8;

impl Data for Pages {
    type Id = Id<Mapping>;

    fn create(&mut self) -> Result<Id<Mapping>, Errno> {
        cache::shmem_file_setup(0)
    }

    fn size(&self, id: Id<Mapping>) -> u64 {
        cache::size(id)
    }

    fn set_size(&mut self, id: Id<Mapping>, size: u64) -> Result<(), Errno> {
        cache::truncate(id, size)
    }

    fn blocks(&self, id: Id<Mapping>) -> u64 {
        cache::nr_pages(id) * BLOCKS
    }

    fn write(&mut self, id: Id<Mapping>, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let done = cache::write(id, offset, bytes)?;
        if done == bytes.len() { Ok(()) } else { Err(Errno::Enospc) }
    }

    fn check_mode(&self, id: Id<Mapping>, old: u32, new: u32) -> Result<(), Errno> {
        cache::sealed(id).seals().check_mode(old, new).map_err(CacheError::errno)
    }

    fn release(&mut self, id: Id<Mapping>) {
        Spaces.mapping_put(id);
    }
}
