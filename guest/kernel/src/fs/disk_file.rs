//! Bytes of files on disks, and of disks, in the page cache (Linux: fs/ext2/inode.c `ext2_aops`, fs/mpage.c, block/fops.c).
//!
//! A page of a file keeps where it lies in `Page::private`, once that is known and its blocks follow each other; a page of a disk keeps
//! there which of its sectors are to be written.
//!
//! Invariants:
//! L1  a page's place is asked for, and the page added or locked, under the file systems' lock; a truncation holds that lock from the
//!     removal of pages to the end of their blocks. So no page comes into the cache, or is written, with a place that is not its own any more;
//! L2  the file systems' lock comes before the lock of a page, never after it.

pub mod bdev;
mod read;
mod readahead;
mod write;

use guest_ext2::{Caller, Create, Ext2, Ino};
use guest_fs::DiskNode;
use guest_virtio::blk::SECTOR;
use memvisor_abi::PageFlags;
use mm_core::{MemMap, PAGE_SIZE, Page, Pfn};
use mm_vma::{Arena, Errno, Id, Mapping};

pub use bdev::Device;
pub use read::{Wanted, page, read};
pub use readahead::{force as force_readahead, set_mode};
pub use write::{hold_tail, page_mkwrite, set_size, write};

use super::{now, with_vfs};
use crate::drivers::block::Segment;
use crate::mm::memmap::Vmemmap;
use crate::mm::space::{Source, Spaces, backing, cache};
use crate::mm::writeback::{self, Target};
use crate::mm::{kmap, page_wait};
use crate::sched;

const RUN: u64 = 1 << 63;
const SECTORS_SHIFT: u32 = 56;
const SECTOR_MASK: u64 = (1 << SECTORS_SHIFT) - 1;

/// Where a page of a file lies on its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nowhere: it reads as zeroes.
    Hole,
    /// From this sector on, so many.
    Run(u64, u32),
    /// In blocks of so many bytes at several places; 0 for a hole.
    Scattered(u32, [u32; BLOCKS]),
}

/// Blocks of a page at most: of 1 KiB.
const BLOCKS: usize = 4;

/// What a page remembers of its place.
fn remembered(page: &Page) -> Option<(u64, u32)> {
    let word = page.private();
    let sectors = u32::try_from((word & !RUN) >> SECTORS_SHIFT).unwrap_or(0);
    (word & RUN != 0).then_some((word & SECTOR_MASK, sectors))
}

/// The page, locked or not yet known to others, lies there.
fn remember(page: &Page, place: Place) {
    page.set_private(match place {
        Place::Run(sector, sectors) => RUN | u64::from(sectors) << SECTORS_SHIFT | sector & SECTOR_MASK,
        Place::Hole | Place::Scattered(..) => 0,
    });
}

/// Bytes of the file in the page at `index`; 0 past its end.
fn bytes_in(size: u64, index: u64) -> u64 {
    size.saturating_sub(index.saturating_mul(PAGE_SIZE)).min(PAGE_SIZE)
}

/// Who allocates blocks for the kernel: everybody is root.
fn caller() -> Caller {
    Caller { uid: 0, gid: 0, privileged: true, now: now().sec }
}

/// Asks where blocks of a file lie, and remembers a row of them.
struct Blocks<'a> {
    fs: &'a mut Ext2<Device>,
    ino: Ino,
    /// Bytes of a block.
    size: u64,
    /// The row that was met last: its first block in the file and on the disk, and how many.
    row: (u64, u32, u32),
}

impl<'a> Blocks<'a> {
    fn new(fs: &'a mut Ext2<Device>, ino: Ino) -> Blocks<'a> {
        let size = fs.buffers().block_size();
        Blocks { fs, ino, size, row: (0, 0, 0) }
    }

    /// A block of the file on the disk; 0 for a hole that is not to be filled. `most` blocks from there on are wanted.
    fn block(&mut self, index: u64, most: u32, create: bool) -> Result<u32, Errno> {
        let (first, block, count) = self.row;
        if let Some(step) = index.checked_sub(first).filter(|step| *step < u64::from(count)) {
            return Ok(block + u32::try_from(step).unwrap_or(0));
        }
        let caller = caller();
        let create = if create { Create::Yes(&caller) } else { Create::No };
        let Some(mapped) = self.fs.get_block(self.ino, index, most.max(1), create)? else { return Ok(0) };
        self.row = (index, mapped.block.as_u32(), mapped.count);
        Ok(mapped.block.as_u32())
    }

    /// Where the first `bytes` of the page at `index` lie; `ahead` is how many pages behind it are of interest.
    fn place(&mut self, index: u64, bytes: u64, (ahead, create): (u64, bool)) -> Result<Place, Errno> {
        let per_page = PAGE_SIZE / self.size;
        let count = bytes.div_ceil(self.size);
        let first = index.checked_mul(per_page).ok_or(Errno::Efbig)?;
        let most = u32::try_from((ahead + 1) * per_page).unwrap_or(1);
        let mut all = [0; BLOCKS];
        for (slot, at) in all.iter_mut().zip(first..first + count) {
            *slot = self.block(at, most, create)?;
        }
        let used = usize::try_from(count).unwrap_or(0).min(BLOCKS);
        let known = &all[..used];
        if known.iter().all(|block| *block == 0) {
            return Ok(Place::Hole);
        }
        let is_run = known[0] != 0 && known.iter().zip(known[0]..).all(|(block, next)| *block == next);
        let narrow = |value: u64| u32::try_from(value).unwrap_or(0);
        let sectors = self.size / SECTOR;
        Ok(if is_run {
            Place::Run(u64::from(known[0]) * sectors, narrow(count * sectors))
        } else {
            Place::Scattered(narrow(self.size), all)
        })
    }
}

/// Calls `f` with the file system and inode of a file, under the file systems' lock.
///
/// # Errors
/// Those of `f`; `EIO`, `ENODEV` if the file system is gone.
pub fn with_file<R>(
    id: Id<Mapping>,
    f: impl FnOnce(&mut Ext2<Device>, Ino) -> Result<R, Errno>,
) -> Result<R, Errno> {
    let node: DiskNode = backing::of(id).node();
    with_vfs(|vfs| {
        if cache::source(id) != Source::Disk {
            return Err(Errno::Eio);
        }
        let (fs, ino) = vfs.ext2(node)?;
        let result = f(fs, ino);
        bdev::report(fs);
        result
    })
}

fn descriptor(pfn: Pfn) -> Result<&'static Page, Errno> {
    Vmemmap.page(pfn).ok_or(Errno::Eio)
}

/// Where a dirty page, locked, is to be written.
pub fn target(id: Id<Mapping>, index: u64, page: &Page) -> Target {
    if cache::source(id) == Source::Bdev {
        return bdev::target(index, page.private());
    }
    let bytes = bytes_in(cache::size(id), index);
    match remembered(page) {
        _ if bytes == 0 => Target::Nothing,
        Some((sector, sectors)) if u64::from(sectors) * SECTOR >= bytes => {
            Target::Run { sector, sectors, offset: 0 }
        }
        _ => Target::Unknown,
    }
}

/// The same for a page whose write begins now, which was just made clean.
pub fn take_target(id: Id<Mapping>, index: u64, (pfn, page): (Pfn, &Page)) -> Target {
    if cache::source(id) == Source::Bdev {
        return bdev::target(index, page.private_word().swap(0, core::sync::atomic::Ordering::AcqRel));
    }
    zero_tail(id, index, pfn);
    target(id, index, page)
}

/// What a program wrote past the end of the file by a mapping is not kept (Linux: `ext2_writepage`, `zero_user_segment`).
fn zero_tail(id: Id<Mapping>, index: u64, pfn: Pfn) {
    let bytes = bytes_in(cache::size(id), index);
    if bytes < PAGE_SIZE {
        mm_filemap::Cache::zero_user(&Spaces, pfn, bytes..PAGE_SIZE);
    }
}

/// Sectors of a disk's own page that do not follow each other are written one row after the other, while the caller waits.
///
/// # Errors
/// `EIO`.
pub fn write_scattered(id: Id<Mapping>, index: u64, (pfn, mask): (Pfn, u64)) -> Result<(), Errno> {
    bdev::write_rows(&backing::of(id).disk()?, index, (pfn, mask))
}

/// Gives a dirty page of a file its place on the disk. Pages in several places are written at once. No page is locked.
///
/// # Errors
/// `ENOSPC`, `EIO`.
pub fn allocate(id: Id<Mapping>, index: u64) -> Result<(), Errno> {
    with_file(id, |fs, ino| allocate_in(fs, ino, id, index))
}

/// [`allocate`] with the file systems' lock held.
///
/// # Errors
/// As [`allocate`].
pub fn allocate_in(fs: &mut Ext2<Device>, ino: Ino, id: Id<Mapping>, index: u64) -> Result<(), Errno> {
    let Some(pfn) = mm_filemap::find_get_page(&Spaces, id, index) else { return Ok(()) };
    let context = sched::task_context();
    let result = descriptor(pfn).and_then(|page| {
        page_wait::lock_page(pfn, page, &context);
        let result = allocate_locked(fs, ino, (id, index), (pfn, page));
        page_wait::unlock_page(pfn, page);
        result
    });
    mm_vma::put_page(&Spaces, pfn);
    result
}

fn allocate_locked(
    fs: &mut Ext2<Device>,
    ino: Ino,
    (id, index): (Id<Mapping>, u64),
    (pfn, page): (Pfn, &Page),
) -> Result<(), Errno> {
    let bytes = bytes_in(cache::size(id), index);
    if page.owner() != (id.as_u64(), index) || bytes == 0 || !page.has(PageFlags::DIRTY) {
        return Ok(());
    }
    let place = Blocks::new(fs, ino).place(index, bytes, (0, true))?;
    remember(page, place);
    let Place::Scattered(size, blocks) = place else { return Ok(()) };
    let disk = backing::of(id).disk()?;
    writeback::write_here(id, index, (pfn, page), || {
        zero_tail(id, index, pfn);
        transfer(size, &blocks, pfn, &mut |sector, segment| {
            disk.write(sector, &[segment], &sched::task_context())
        })
    })
}

/// Calls `f` for each block of a page that lies in several places.
fn transfer(
    size: u32,
    blocks: &[u32; BLOCKS],
    pfn: Pfn,
    f: &mut dyn FnMut(u64, Segment) -> Result<(), Errno>,
) -> Result<(), Errno> {
    for (offset, block) in (0..).step_by(size as usize).zip(blocks) {
        if *block != 0 {
            f(u64::from(*block) * (u64::from(size) / SECTOR), Segment { pfn, offset, len: size })?;
        }
    }
    Ok(())
}

/// Nobody names the file any more, or its file system goes: nothing of it is written after this, and nothing is on its way. Those who map
/// it keep the pages that are there. Called with the file systems' lock held.
pub fn release(id: Id<Mapping>) {
    writeback::abandon(id, &sched::task_context());
}

/// Takes the clean pages out of the cache that nobody uses (Linux: `drop_pagecache_sb` of every file system).
pub fn drop_caches() {
    // Before boot has made file systems there is nothing to drop.
    let _ = with_vfs(|vfs| {
        vfs.for_each_cached(|id| {
            if cache::source(id) == Source::Disk {
                writeback::invalidate(id, 0..u64::MAX);
            }
        });
        Ok(())
    });
    bdev::drop_caches();
}

/// Zeroes all of a frame.
fn clear(pfn: Pfn) {
    kmap::clear_highpage(pfn);
}

/// The mapping, for who asks its tree.
fn mapping(id: Id<Mapping>) -> &'static Mapping {
    Arena::<Mapping>::at(&Spaces, id)
}
