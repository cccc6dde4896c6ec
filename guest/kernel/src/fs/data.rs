//! The bytes of regular files are mappings of the page cache.

use guest_ext2::{Access, Ext2, Ino};
use guest_fs::{Data, DiskNode, Errno, Source};
use mm_filemap::{CacheError, Mark};
use mm_vma::{Arena, Id, Kernel, Mapping};

use super::block;
use super::disk_file::{self, Device};
use crate::mm::space::{Spaces, backing, cache};
use crate::mm::writeback::{self, Sync};
use crate::sched;

/// All of them.
#[derive(Clone, Copy, Debug)]
pub struct Pages;

/// 512-byte blocks of a page.
const BLOCKS: u64 = 8;

impl Data for Pages {
    type Id = Id<Mapping>;
    type Device = Device;

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

    fn device(&mut self, source: Source<Id<Mapping>>) -> Result<Device, Errno> {
        match source {
            Source::Block(number) => Device::new(block::disk(number)?),
            // Differs from Linux: there are no loop devices, which mount(8) would make of it.
            Source::File(_) => Err(Errno::Enotblk),
        }
    }

    fn attach(&mut self, fs: &mut Ext2<Device>, file: DiskNode) -> Result<Id<Mapping>, Errno> {
        let size = fs.inode(file.ino())?.size();
        let id = cache::new_mapping(cache::Source::Disk, size)?;
        backing::set(id, fs.buffers().disk(), Some(file));
        Ok(id)
    }

    fn flush(&mut self, fs: &mut Ext2<Device>, file: Ino, id: Id<Mapping>) -> Result<(), Errno> {
        let context = sched::task_context();
        if !Arena::<Mapping>::at(&Spaces, id).i_pages().is_marked(Mark::Dirty) {
            writeback::wait_pages(id, 0..u64::MAX, &context);
            return Ok(());
        }
        let mut allocate = |index| disk_file::allocate_in(fs, file, id, index);
        let all = 0..u64::MAX;
        let written = writeback::write_pages(id, all.clone(), (Sync::All, u64::MAX), &mut allocate, &context);
        writeback::wait_pages(id, all, &context);
        written?;
        if fs.access() == Access::ReadWrite { fs.extend(file, cache::size(id)) } else { Ok(()) }
    }

    fn release(&mut self, id: Id<Mapping>) {
        if cache::source(id) == cache::Source::Disk {
            disk_file::release(id);
        }
        Spaces.mapping_put(id);
    }
}
