//! The bytes of regular files are mappings of the page cache.

use guest_fs::{Data, Errno};
use mm_vma::{Id, Kernel, Mapping};

use crate::mm::space::{Spaces, cache};

/// All of them.
#[derive(Clone, Copy, Debug)]
pub struct Pages;

/// 512-byte blocks of a page.
const BLOCKS: u64 = 8;

fn errno(error: mm_vma::Errno) -> Errno {
    match error {
        mm_vma::Errno::Efbig => Errno::Efbig,
        mm_vma::Errno::Enospc => Errno::Enospc,
        mm_vma::Errno::Einval => Errno::Einval,
        mm_vma::Errno::Enomem => Errno::Enomem,
        _ => Errno::Eio,
    }
}

impl Data for Pages {
    type Id = Id<Mapping>;

    fn create(&mut self) -> Result<Id<Mapping>, Errno> {
        cache::shmem_file_setup(0).map_err(errno)
    }

    fn size(&self, id: Id<Mapping>) -> u64 {
        cache::size(id)
    }

    fn set_size(&mut self, id: Id<Mapping>, size: u64) -> Result<(), Errno> {
        cache::truncate(id, size).map_err(errno)
    }

    fn blocks(&self, id: Id<Mapping>) -> u64 {
        cache::nr_pages(id) * BLOCKS
    }

    fn write(&mut self, id: Id<Mapping>, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let done = cache::write(id, offset, bytes).map_err(errno)?;
        if done == bytes.len() { Ok(()) } else { Err(Errno::Enospc) }
    }

    fn release(&mut self, id: Id<Mapping>) {
        Spaces.mapping_put(id);
    }
}
