//! Writing: pages become dirty, with a place on the disk (Linux: `generic_perform_write`, `ext2_write_begin`), and files shorter.

use guest_virtio::blk::SECTOR;
use memvisor_abi::PageFlags;
use mm_core::{Gfp, Order, PAGE_SIZE, Page, Pfn};
use mm_filemap::{find_get_page, put_page};
use mm_vma::{Errno, Id, MappedError, Mapping};

use super::read::{Wanted, add_locked, page, read_scattered};
use super::{Blocks, Place, bdev, bytes_in, clear, descriptor, mapping, remember, remembered, with_file};
use crate::drivers::block::Segment;
use crate::mm::space::{Source, Spaces, backing, cache};
use crate::mm::{kmap, page_alloc, page_wait, writeback};
use crate::sched;

/// Writes bytes; how many, fewer if there was no room for more. The caller is alone among those who write to the mapping, and makes
/// the inode as long as the mapping is then.
///
/// # Errors
/// `ENOSPC`, `EFBIG`, `EROFS`, `EIO`, `ENOMEM` if not a byte was written.
pub fn write(id: Id<Mapping>, offset: u64, from: &[u8]) -> Result<usize, Errno> {
    let mut done = 0;
    while done < from.len() {
        let at = offset.checked_add(done as u64).ok_or(Errno::Efbig)?;
        let room = usize::try_from(PAGE_SIZE - at % PAGE_SIZE).unwrap_or(0);
        let part = from.get(done..from.len().min(done + room)).unwrap_or_default();
        match write_part(id, at, part) {
            Ok(()) => done += part.len(),
            Err(error) => return if done > 0 { Ok(done) } else { Err(error) },
        }
    }
    Ok(done)
}

/// Bytes of one page.
fn write_part(id: Id<Mapping>, at: u64, part: &[u8]) -> Result<(), Errno> {
    let (index, within) = (at / PAGE_SIZE, at % PAGE_SIZE);
    let end = within + part.len() as u64;
    let pfn = match cache::source(id) {
        Source::Bdev => bdev::begin_write(id, index)?,
        _ => begin(id, index, within..end)?,
    };
    let page = descriptor(pfn)?;
    kmap::copy_to_page(pfn, within, part);
    // Not before: who finds it up to date reads it without its lock, and what is written now may have held somebody's memory.
    page.insert(PageFlags::UPTODATE);
    if cache::source(id) == Source::Bdev {
        bdev::mark_sectors(page, within..end);
    }
    let size = mapping(id).size();
    if at + part.len() as u64 > size {
        mapping(id).set_size(at + part.len() as u64);
    }
    writeback::mark_dirty(pfn);
    page_wait::unlock_page(pfn, page);
    put_page(&Spaces, pfn);
    Ok(())
}

/// Whether the page's place has room for all of these bytes.
fn has_place(page: &Page, bytes: u64) -> bool {
    remembered(page).is_some_and(|(_, sectors)| u64::from(sectors) * SECTOR >= bytes)
}

/// The page at `index`, locked, with a reference and a place on the disk, complete but for the bytes `part` of it, which the caller writes
/// before it says that the page is up to date.
fn begin(id: Id<Mapping>, index: u64, part: core::ops::Range<u64>) -> Result<Pfn, Errno> {
    let context = sched::task_context();
    let needed = || bytes_in(cache::size(id), index).max(part.end);
    loop {
        // Almost always it is there and has a place.
        if let Some(pfn) = find_get_page(&Spaces, id, index) {
            let page = descriptor(pfn)?;
            page_wait::lock_page(pfn, page, &context);
            let here = page.owner() == (id.as_u64(), index);
            if here && page.has(PageFlags::UPTODATE) && has_place(page, needed()) {
                return Ok(pfn);
            }
            page_wait::unlock_page(pfn, page);
            put_page(&Spaces, pfn);
        }
        let frame = page_alloc::alloc_here(Gfp::HIGHUSER_MOVABLE, Order::ZERO, None).ok_or(Errno::Enomem)?;
        let mut frame = Some(frame);
        let begun = with_file(id, |fs, ino| {
            // L1: from here to the lock of the page nobody cuts the file.
            let old_bytes = bytes_in(cache::size(id), index);
            let before = if old_bytes > 0 {
                Blocks::new(fs, ino).place(index, old_bytes, (0, false))?
            } else {
                Place::Hole
            };
            let Some(pfn) = lock_or_add(id, index, &mut frame)? else { return Ok(None) };
            let page = descriptor(pfn)?;
            match Blocks::new(fs, ino).place(index, needed(), (0, true)) {
                Ok(place) => remember(page, place),
                Err(error) => {
                    if bytes_in(cache::size(id), index) == 0 {
                        // It lies past the end, where no page stays.
                        writeback::delete(id, index, pfn);
                    }
                    page_wait::unlock_page(pfn, page);
                    put_page(&Spaces, pfn);
                    return Err(error);
                }
            }
            Ok(Some((pfn, before)))
        });
        if let Some(unused) = frame {
            put_page(&Spaces, unused);
        }
        let Some((pfn, before)) = begun? else { continue };
        let page = descriptor(pfn)?;
        if page.has(PageFlags::UPTODATE) {
            return Ok(pfn);
        }
        let whole = part.start == 0 && part.end >= bytes_in(cache::size(id), index);
        let filled = if whole {
            mm_filemap::Cache::zero_user(&Spaces, pfn, part.end..PAGE_SIZE);
            Ok(())
        } else {
            fill_before(id, pfn, before)
        };
        match filled {
            Ok(()) => return Ok(pfn),
            Err(error) => {
                page_wait::unlock_page(pfn, page);
                put_page(&Spaces, pfn);
                return Err(error);
            }
        }
    }
}

/// Reads what the page held before; blocks that are new are zeroes.
fn fill_before(id: Id<Mapping>, pfn: Pfn, before: Place) -> Result<(), Errno> {
    clear(pfn);
    let disk = backing::of(id).disk()?;
    match before {
        Place::Hole => Ok(()),
        Place::Run(sector, sectors) => {
            let segment = Segment { pfn, offset: 0, len: sectors << SECTOR.ilog2() };
            disk.read(sector, &[segment], &sched::task_context())
        }
        Place::Scattered(size, blocks) => read_scattered(&disk, pfn, (size, &blocks)),
    }
}

/// The page at `index`, locked and with a reference; `frame` becomes it if there is none. `None`: try again.
pub(super) fn lock_or_add(
    id: Id<Mapping>,
    index: u64,
    frame: &mut Option<Pfn>,
) -> Result<Option<Pfn>, Errno> {
    let context = sched::task_context();
    if let Some(pfn) = find_get_page(&Spaces, id, index) {
        let page = descriptor(pfn)?;
        page_wait::lock_page(pfn, page, &context);
        if page.owner() == (id.as_u64(), index) {
            return Ok(Some(pfn));
        }
        page_wait::unlock_page(pfn, page);
        put_page(&Spaces, pfn);
        return Ok(None);
    }
    let Some(fresh) = *frame else { return Err(Errno::Enomem) };
    // The caller's reference stays beside the cache's.
    mm_filemap::get_page(&Spaces, fresh);
    let added = add_new(id, index, fresh);
    if added == Ok(true) {
        *frame = None;
        return Ok(Some(fresh));
    }
    put_page(&Spaces, fresh);
    added.map(|_| None)
}

/// The file may become longer by it.
fn add_new(id: Id<Mapping>, index: u64, pfn: Pfn) -> Result<bool, Errno> {
    add_locked(id, index, pfn, Place::Hole, mm_filemap::Bound::None)
}

/// Before a file becomes shorter: the page that its new end is in, if that is in the middle of one, with a reference, so that its rest can be
/// zeroed. The file systems' lock is not held.
///
/// # Errors
/// Those of reading it.
pub fn hold_tail(id: Id<Mapping>, size: u64) -> Result<Option<Pfn>, Errno> {
    let cut = size < cache::size(id) && !size.is_multiple_of(PAGE_SIZE);
    if cache::source(id) != Source::Disk || !cut {
        return Ok(None);
    }
    match page(id, size / PAGE_SIZE, Wanted::Alone) {
        Ok((pfn, _)) => Ok(Some(pfn)),
        // Somebody else cut it.
        Err(Errno::Einval) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets the size; pages past the end leave the cache and all address spaces once nobody reads or writes them, and the rest of the last one is
/// zeroed. Called with the file systems' lock held, before blocks are freed.
pub fn set_size(id: Id<Mapping>, size: u64) {
    let context = sched::task_context();
    let old = mapping(id).size();
    mapping(id).set_size(size);
    if size >= old {
        return;
    }
    writeback::truncate_pages(id, size.div_ceil(PAGE_SIZE), &context);
    if size.is_multiple_of(PAGE_SIZE) {
        return;
    }
    let Some(pfn) = find_get_page(&Spaces, id, size / PAGE_SIZE) else { return };
    if let Ok(page) = descriptor(pfn) {
        page_wait::lock_page(pfn, page, &context);
        // Blocks behind the end are freed after this: none may be on its way.
        page_wait::wait_on_page_writeback(pfn, page, &context);
        if page.owner() == (id.as_u64(), size / PAGE_SIZE) && page.has(PageFlags::UPTODATE) {
            mm_filemap::Cache::zero_user(&Spaces, pfn, size % PAGE_SIZE..PAGE_SIZE);
            // Its place may have become shorter.
            page.set_private(0);
            writeback::mark_dirty(pfn);
        }
        page_wait::unlock_page(pfn, page);
    }
    put_page(&Spaces, pfn);
}

/// A page is about to be written by an entry (Linux: `filemap_page_mkwrite`). Over a hole its block is allocated when it is written back, and
/// then there may be no room (as with Linux's ext2). Those who make too many pages dirty wait here.
/// A page that was cut off meanwhile is not mapped: the caller looks.
///
/// # Errors
/// None yet.
pub fn page_mkwrite(id: Id<Mapping>, pfn: Pfn) -> Result<(), MappedError> {
    let context = sched::task_context();
    let page = descriptor(pfn).map_err(|_| MappedError::Sigbus)?;
    writeback::balance_dirty_pages(&context);
    page_wait::lock_page(pfn, page, &context);
    if page.mapping() == id.as_u64() {
        writeback::mark_dirty(pfn);
    }
    page_wait::unlock_page(pfn, page);
    Ok(())
}
