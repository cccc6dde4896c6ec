//! Disks in the page cache: what ext2 has besides the bytes of files, and /dev/vda (Linux: block/fops.c, fs/buffer.c).
//!
//! A disk has one mapping, from its first user on. What a page of it has in `private` is a bit for each of its sectors that is to be written:
//! sectors of one page may be a block of the file system and a block of a file, which is written by its own mapping. So nothing is ever
//! written but what somebody changed here.

use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_ext2::{Block, Buffers, Ext2};
use guest_virtio::blk::SECTOR;
use memvisor_abi::PageFlags;
use mm_core::{Gfp, Order, PAGE_SIZE, Page, Pfn};
use mm_filemap::{find_get_page, put_page};
use mm_vma::{Errno, Id, Kernel, Mapping};

use super::read::{Frames, Todo, Wanted, add_locked};
use super::write::lock_or_add;
use super::{Place, bytes_in, descriptor, page};
use crate::drivers::block::{Disk, MAX_DISKS, Segment};
use crate::mm::space::{Source, Spaces, backing, cache};
use crate::mm::writeback::{self, Sync, Target};
use crate::mm::{kmap, page_alloc, page_wait};
use crate::pr_err;
use crate::sched;

/// How pages of a disk are asked for. A file system that has begun something cannot go back, and who removes a file has nobody to
/// tell: for want of a page its blocks would stay taken for ever (Linux: `grow_dev_page`).
pub(super) const GFP: Gfp = Gfp::HIGHUSER_MOVABLE.union(Gfp::NOFAIL);

/// Sectors of a page.
const SECTORS: u64 = PAGE_SIZE / SECTOR;

/// The mapping of each disk, which has one reference of its own.
static MAPPINGS: [AtomicU64; MAX_DISKS as usize] = [const { AtomicU64::new(0) }; MAX_DISKS as usize];

/// The pages of a disk.
///
/// # Errors
/// `ENOMEM`.
pub fn mapping_of(disk: &Disk) -> Result<Id<Mapping>, Errno> {
    let slot = MAPPINGS.get(usize::from(disk.index)).ok_or(Errno::Enxio)?;
    if let Some(id) = Id::new(slot.load(Ordering::Acquire)) {
        return Ok(id);
    }
    let id = cache::new_mapping(Source::Bdev, disk.capacity().saturating_mul(SECTOR))?;
    backing::set(id, disk, None);
    match slot.compare_exchange(0, id.as_u64(), Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Ok(id),
        Err(other) => {
            // Somebody was faster.
            Spaces.mapping_put(id);
            Id::new(other).ok_or(Errno::Eio)
        }
    }
}

/// Pages in the mappings of disks (`Buffers` in /proc/meminfo).
pub fn nr_pages() -> u64 {
    MAPPINGS.iter().filter_map(|slot| Id::new(slot.load(Ordering::Acquire))).map(writeback::nr_pages).sum()
}

/// Takes the clean pages of all disks out that nobody uses.
pub fn drop_caches() {
    for id in MAPPINGS.iter().filter_map(|slot| Id::new(slot.load(Ordering::Acquire))) {
        writeback::invalidate(id, 0..u64::MAX);
    }
}

/// Where the page at `index` of a disk lies.
pub(super) fn place(id: Id<Mapping>, index: u64) -> Place {
    let sectors = bytes_in(cache::size(id), index) / SECTOR;
    Place::Run(index * SECTORS, u32::try_from(sectors).unwrap_or(0))
}

/// Adds pages of a disk, locked, to be read.
pub(super) fn add_pages(
    id: Id<Mapping>,
    range: Range<u64>,
    frames: &mut Frames,
    todo: &mut Todo,
) -> Result<(), Errno> {
    for index in range {
        if mm_filemap::has_page(&Spaces, id, index) {
            continue;
        }
        let Some(pfn) = frames.take() else { break };
        if add_locked(id, index, pfn, Place::Hole, mm_filemap::Bound::Size)? {
            todo.push(pfn, place(id, index));
        } else {
            frames.give_back(pfn);
        }
    }
    Ok(())
}

/// Which sectors of a page are to be written, and where.
pub(super) fn target(index: u64, mask: u64) -> Target {
    let mask = mask & ((1 << SECTORS) - 1);
    let first = mask.trailing_zeros();
    match mask.checked_shr(first).filter(|_| mask != 0) {
        None => Target::Nothing,
        Some(row) if row.count_ones() == row.trailing_ones() => Target::Run {
            sector: index * SECTORS + u64::from(first),
            sectors: row.count_ones(),
            offset: first << SECTOR.ilog2(),
        },
        Some(_) => Target::Sectors(mask),
    }
}

/// Writes the sectors of a mask, row by row, and waits.
pub(super) fn write_rows(disk: &Disk, index: u64, (pfn, mask): (Pfn, u64)) -> Result<(), Errno> {
    let (mut rest, mut result) = (mask, Ok(()));
    while rest != 0 {
        let (first, count) = (rest.trailing_zeros(), (rest >> rest.trailing_zeros()).trailing_ones());
        let shift = SECTOR.ilog2();
        let segment = Segment { pfn, offset: first << shift, len: count << shift };
        let written = disk.write(index * SECTORS + u64::from(first), &[segment], &sched::task_context());
        result = result.and(written);
        rest &= !(((1 << count) - 1) << first);
    }
    result
}

/// The page at `index`, up to date, locked, with a reference.
pub(super) fn begin_write(id: Id<Mapping>, index: u64) -> Result<Pfn, Errno> {
    let (pfn, _) = page(id, index, Wanted::Alone)?;
    page_wait::lock_page(pfn, descriptor(pfn)?, &sched::task_context());
    Ok(pfn)
}

/// These bytes of a page, locked, were changed. Called before it is marked dirty.
pub(super) fn mark_sectors(page: &Page, bytes: Range<u64>) {
    let (first, end) = (bytes.start / SECTOR, bytes.end.div_ceil(SECTOR));
    let mask = ((1_u64 << (end - first)) - 1) << first;
    page.private_word().fetch_or(mask, Ordering::AcqRel);
}

/// Writes what is dirty of a disk, and waits until it is kept (Linux: `sync_blockdev`, `blkdev_issue_flush`).
///
/// # Errors
/// `EIO`.
pub fn sync(disk: &Disk, seen: &core::sync::atomic::AtomicU32) -> Result<(), Errno> {
    let id = mapping_of(disk)?;
    let context = sched::task_context();
    let all = 0..u64::MAX;
    // A disk's pages have their places: nobody is asked.
    let mut allocate = |_| Ok(());
    let written = writeback::write_pages(id, all.clone(), (Sync::All, u64::MAX), &mut allocate, &context);
    writeback::wait_pages(id, all, &context);
    let told = backing::of(id).check_error(seen);
    written.and(told).and_then(|()| disk.flush(&context))
}

/// What the file system found wrong is said once.
pub(super) fn report(fs: &mut Ext2<Device>) {
    if let Some(error) = fs.take_error() {
        let name = fs.buffers().disk.name();
        pr_err!(
            "EXT2-fs ({}): error: {}, number {}; it is read-only from now on",
            core::str::from_utf8(&name).unwrap_or("?"),
            error.what,
            error.number,
        );
    }
}

/// A disk with a file system on it.
pub struct Device {
    disk: Disk,
    mapping: Id<Mapping>,
    block: usize,
    /// A block on its way to those who look at it or change it.
    scratch: Vec<u8>,
    /// Errors that were told of.
    seen: core::sync::atomic::AtomicU32,
}

impl core::fmt::Debug for Device {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Device")
            .field("disk", &self.disk.index)
            .field("block", &self.block)
            .finish_non_exhaustive()
    }
}

impl Device {
    /// The disk, for a file system.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn new(disk: Disk) -> Result<Device, Errno> {
        let mapping = mapping_of(&disk)?;
        let mut scratch = Vec::new();
        // The largest block.
        scratch.try_reserve_exact(4096).map_err(|_| Errno::Enomem)?;
        scratch.resize(4096, 0);
        let seen = backing::of(mapping).sample_error().into();
        Ok(Device { disk, mapping, block: 1024, scratch, seen })
    }

    /// Bytes of a block.
    pub const fn block_size(&self) -> u64 {
        self.block as u64
    }

    /// The disk.
    pub const fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Page and byte in it at which a block begins.
    fn at(&self, block: Block) -> Result<(u64, u64), Errno> {
        let start = u64::from(block.as_u32()) * self.block as u64;
        if start + self.block as u64 > cache::size(self.mapping) {
            return Err(Errno::Eio);
        }
        Ok((start / PAGE_SIZE, start % PAGE_SIZE))
    }

    /// Changes a part of a block that is in `scratch` already; `within` is where the block begins in its page.
    fn write<R>(
        &mut self,
        (pfn, within): (Pfn, u64),
        (offset, bytes): (usize, usize),
        with: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, Errno> {
        let part = self.scratch.get_mut(..bytes).ok_or(Errno::Eio)?;
        let result = with(part);
        let page = descriptor(pfn)?;
        kmap::copy_to_page(pfn, within + offset as u64, part);
        mark_sectors(page, within..within + self.block as u64);
        writeback::mark_dirty(pfn);
        Ok(result)
    }

    /// A part of a block lies in it.
    fn check_part(&self, (offset, bytes): (usize, usize)) -> Result<(), Errno> {
        if offset.checked_add(bytes).is_some_and(|end| end <= self.block) { Ok(()) } else { Err(Errno::Eio) }
    }
}

impl Buffers for Device {
    fn set_block_size(&mut self, bytes: u32) -> Result<(), Errno> {
        self.block = bytes as usize;
        if self.block > self.scratch.len() { Err(Errno::Einval) } else { Ok(()) }
    }

    fn blocks(&self) -> u64 {
        cache::size(self.mapping) / self.block as u64
    }

    fn is_read_only(&self) -> bool {
        self.disk.geometry.read_only
    }

    fn read<R>(&mut self, block: Block, with: impl FnOnce(&[u8]) -> R) -> Result<R, Errno> {
        self.read_part(block, (0, self.block), with)
    }

    fn read_part<R>(
        &mut self,
        block: Block,
        (offset, bytes): (usize, usize),
        with: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, Errno> {
        self.check_part((offset, bytes))?;
        let (index, within) = self.at(block)?;
        let (pfn, _) = page(self.mapping, index, Wanted::Alone)?;
        let scratch = self.scratch.get_mut(..bytes).ok_or(Errno::Eio)?;
        kmap::copy_from_page(pfn, within + offset as u64, scratch);
        let result = with(scratch);
        put_page(&Spaces, pfn);
        Ok(result)
    }

    fn change<R>(&mut self, block: Block, with: impl FnOnce(&mut [u8]) -> R) -> Result<R, Errno> {
        self.change_part(block, (0, self.block), with)
    }

    fn change_part<R>(
        &mut self,
        block: Block,
        (offset, bytes): (usize, usize),
        with: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, Errno> {
        self.check_part((offset, bytes))?;
        let (index, within) = self.at(block)?;
        let (pfn, _) = page(self.mapping, index, Wanted::Alone)?;
        let scratch = self.scratch.get_mut(..bytes).ok_or(Errno::Eio)?;
        kmap::copy_from_page(pfn, within + offset as u64, scratch);
        let result = self.write((pfn, within), (offset, bytes), with);
        put_page(&Spaces, pfn);
        result
    }

    fn fill<R>(&mut self, block: Block, with: impl FnOnce(&mut [u8]) -> R) -> Result<R, Errno> {
        let (index, within) = self.at(block)?;
        let pfn = if self.block as u64 == PAGE_SIZE {
            // Nothing of the page matters.
            whole_page(self.mapping, index)?
        } else {
            page(self.mapping, index, Wanted::Alone)?.0
        };
        if let Some(scratch) = self.scratch.get_mut(..self.block) {
            scratch.fill(0);
        }
        let result = self.write((pfn, within), (0, self.block), with);
        put_page(&Spaces, pfn);
        result
    }

    fn forget(&mut self, block: Block) {
        let Ok((index, within)) = self.at(block) else { return };
        let Some(pfn) = find_get_page(&Spaces, self.mapping, index) else { return };
        if let Ok(page) = descriptor(pfn) {
            let context = sched::task_context();
            page_wait::lock_page(pfn, page, &context);
            // It may be somebody else's block soon.
            page_wait::wait_on_page_writeback(pfn, page, &context);
            let (first, count) = (within / SECTOR, self.block as u64 / SECTOR);
            let mask = ((1_u64 << count) - 1) << first;
            let rest = page.private_word().fetch_and(!mask, Ordering::AcqRel) & !mask;
            if rest == 0 && page.has(PageFlags::DIRTY) {
                writeback::cancel_dirty(self.mapping, index, pfn);
            }
            page_wait::unlock_page(pfn, page);
        }
        put_page(&Spaces, pfn);
    }

    fn sync(&mut self) -> Result<(), Errno> {
        if self.is_read_only() { Ok(()) } else { sync(&self.disk, &self.seen) }
    }
}

/// The page at `index`, with a reference, whatever it holds.
fn whole_page(id: Id<Mapping>, index: u64) -> Result<Pfn, Errno> {
    loop {
        let frame = page_alloc::alloc_here(GFP | Gfp::ZERO, Order::ZERO, None);
        let mut frame = Some(frame.ok_or(Errno::Enomem)?);
        let locked = lock_or_add(id, index, &mut frame);
        if let Some(unused) = frame {
            put_page(&Spaces, unused);
        }
        if let Some(pfn) = locked? {
            let page = descriptor(pfn)?;
            // All of it is written by whoever asked.
            page.insert(PageFlags::UPTODATE);
            page_wait::unlock_page(pfn, page);
            return Ok(pfn);
        }
    }
}

impl Drop for Device {
    /// What is in the cache of the disk goes: it may be another disk's the next time (Linux: `kill_bdev`).
    fn drop(&mut self) {
        writeback::invalidate(self.mapping, 0..u64::MAX);
    }
}
