//! Writing dirty pages: those of a mapping, one page, and waiting for them.

use core::ops::Range;

use memvisor_abi::PageFlags;
use mm_core::{Errno, Event, EventId, MaySleep, MemMap, Page, Pfn, Trace};
use mm_filemap::{Mark, put_page};
use mm_vma::{Id, Mapping};

use super::counts::counts;
use super::throttle::limits;
use super::{clear_dirty_for_io, end_page, start, wake_flusher};
use crate::drivers::block::Direction;
use crate::fs::disk_file;
use crate::mm::bio::Batch;
use crate::mm::memmap::Vmemmap;
use crate::mm::page_wait;
use crate::mm::space::{Spaces, backing, cache};
use crate::sched;
use crate::trace::KernelTrace;

/// How pages are to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Those that can be had at once (Linux: `WB_SYNC_NONE`).
    None,
    /// All that are dirty now (Linux: `WB_SYNC_ALL`).
    All,
}

/// Where the parts of a page go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Some of the page, to this sector on.
    Run {
        /// The first sector.
        sector: u64,
        /// How many.
        sectors: u32,
        /// The first byte in the page.
        offset: u32,
    },
    /// These sectors of a page of a disk itself: they do not follow each other, and are written while the caller waits.
    Sectors(u64),
    /// It is not known: ask the file system first, without the page's lock.
    Unknown,
    /// Nothing of it is to be written.
    Nothing,
}

/// Begins to write dirty pages in `pages`, at most `most`; how many (Linux: `write_cache_pages`). `allocate` gives the page at an index its
/// place on the disk.
pub fn write_pages(
    id: Id<Mapping>,
    pages: Range<u64>,
    (sync, most): (Sync, u64),
    allocate: &mut dyn FnMut(u64) -> Result<(), Errno>,
    context: &MaySleep<'_>,
) -> Result<u64, Errno> {
    KernelTrace.emit_with(EventId::WritePages, || Event::WritePages {
        first: pages.start,
        sync: sync == Sync::All,
        dirty: counts().dirty,
        background_thresh: limits().background,
    });
    let result = write_dirty(id, pages, (sync, most), allocate, context);
    KernelTrace.emit_with(EventId::WritePagesRet, || Event::WritePagesRet {
        nr_written: result.unwrap_or(0),
        dirty: counts().dirty,
        writeback: counts().writeback,
    });
    result
}

fn write_dirty(
    id: Id<Mapping>,
    pages: Range<u64>,
    (sync, most): (Sync, u64),
    allocate: &mut dyn FnMut(u64) -> Result<(), Errno>,
    context: &MaySleep<'_>,
) -> Result<u64, Errno> {
    let Some(last) = pages.end.checked_sub(1) else { return Ok(0) };
    let mut batch: Batch<'_> = Batch::new(backing::of(id).disk()?, Direction::Write, context);
    let (mut next, mut written) = (pages.start, 0);
    let mut first = Ok(());
    while written < most
        && next <= last
        && let Some((index, pfn)) =
            mm_filemap::writeback::find_get_marked(&Spaces, id, Mark::Dirty, next, last)
    {
        next = index + 1;
        match write_page(id, (index, pfn), sync, &mut batch, context) {
            Ok(Step::Done(count)) => written += count,
            Ok(Step::Unknown) => {
                // Whoever has the file systems' lock may wait for what is in the batch.
                batch.submit();
                match allocate(index) {
                    // Once more, with its place.
                    Ok(()) => match write_page(id, (index, pfn), sync, &mut batch, context) {
                        Ok(Step::Done(count)) => written += count,
                        Ok(Step::Unknown) => {}
                        Err(error) => first = first.and(Err(error)),
                    },
                    Err(error) => {
                        // There is no room for it: whoever syncs the file hears of it, and it stays dirty.
                        backing::of(id).set_error(error);
                        first = first.and(Err(error));
                    }
                }
            }
            Err(error) => first = first.and(Err(error)),
        }
        put_page(&Spaces, pfn);
    }
    first.map(|()| written)
}

enum Step {
    Done(u64),
    Unknown,
}

fn write_page(
    id: Id<Mapping>,
    (index, pfn): (u64, Pfn),
    sync: Sync,
    batch: &mut Batch<'_>,
    context: &MaySleep<'_>,
) -> Result<Step, Errno> {
    let Some(page) = Vmemmap.page(pfn) else { return Ok(Step::Done(0)) };
    match sync {
        Sync::None if !page_wait::trylock_page(page) => return Ok(Step::Done(0)),
        Sync::None => {}
        Sync::All => {
            if !page_wait::trylock_page(page) {
                // Whoever has it may wait for what is in the batch.
                batch.submit();
                page_wait::lock_page(pfn, page, context);
            }
            while page.has(PageFlags::WRITEBACK) {
                batch.submit();
                page_wait::wait_on_page_writeback(pfn, page, context);
            }
        }
    }
    let step = write_locked(id, (index, pfn, page), batch);
    page_wait::unlock_page(pfn, page);
    Ok(step)
}

/// With the page locked.
fn write_locked(id: Id<Mapping>, (index, pfn, page): (u64, Pfn, &Page), batch: &mut Batch<'_>) -> Step {
    let here = page.owner() == (id.as_u64(), index);
    if !here || !page.has(PageFlags::DIRTY) || page.has(PageFlags::WRITEBACK) {
        return Step::Done(0);
    }
    if disk_file::target(id, index, page) == Target::Unknown {
        return Step::Unknown;
    }
    if !clear_dirty_for_io(pfn, page) {
        return Step::Done(0);
    }
    // Of a disk's own pages: what is to be written is taken now.
    match disk_file::take_target(id, index, (pfn, page)) {
        Target::Run { sector, sectors, offset } => {
            start(id, index, pfn);
            batch.add(pfn, offset, sector, sectors);
            Step::Done(1)
        }
        Target::Sectors(mask) => {
            start(id, index, pfn);
            let result = disk_file::write_scattered(id, index, (pfn, mask));
            end_page(pfn, result);
            Step::Done(1)
        }
        Target::Unknown | Target::Nothing => {
            mm_filemap::writeback::forget_mark(&Spaces, id, index, pfn);
            Step::Done(0)
        }
    }
}

/// Writes a dirty page, locked, by `f`, which waits for it.
///
/// # Errors
/// Those of `f`, which are kept for those who sync the file, too.
pub fn write_here(
    id: Id<Mapping>,
    index: u64,
    (pfn, page): (Pfn, &Page),
    f: impl FnOnce() -> Result<(), Errno>,
) -> Result<(), Errno> {
    page_wait::wait_on_page_writeback(pfn, page, &sched::task_context());
    if !clear_dirty_for_io(pfn, page) {
        return Ok(());
    }
    start(id, index, pfn);
    let result = f();
    end_page(pfn, result);
    result
}

/// Waits until no page in `pages` is being written that was when it began (Linux: `filemap_fdatawait_range`).
pub fn wait_pages(id: Id<Mapping>, pages: Range<u64>, context: &MaySleep<'_>) {
    let Some(last) = pages.end.checked_sub(1) else { return };
    let mut next = pages.start;
    while next <= last
        && let Some((index, pfn)) =
            mm_filemap::writeback::find_get_marked(&Spaces, id, Mark::Writeback, next, last)
    {
        next = index + 1;
        if let Some(page) = Vmemmap.page(pfn) {
            page_wait::wait_on_page_writeback(pfn, page, context);
        }
        put_page(&Spaces, pfn);
    }
}

/// Writes the dirty pages of a mapping and waits for them (Linux: `filemap_write_and_wait_range`). The caller does not hold the file
/// systems' lock.
///
/// # Errors
/// What kept pages from being written; errors of the disk are told by [`backing::Backing::check_error`].
pub fn write_and_wait(id: Id<Mapping>, pages: Range<u64>, context: &MaySleep<'_>) -> Result<(), Errno> {
    let mut allocate = |index| disk_file::allocate(id, index);
    let result = write_pages(id, pages.clone(), (Sync::All, u64::MAX), &mut allocate, context);
    wait_pages(id, pages, context);
    result.map(drop)
}

/// Begins to write the dirty pages of a mapping (Linux: `__filemap_fdatawrite_range`). The caller does not hold the file systems' lock.
///
/// # Errors
/// What kept pages from being written.
pub fn begin(id: Id<Mapping>, pages: Range<u64>, context: &MaySleep<'_>) -> Result<(), Errno> {
    let mut allocate = |index| disk_file::allocate(id, index);
    write_pages(id, pages, (Sync::None, u64::MAX), &mut allocate, context).map(drop)
}

/// kswapd writes a dirty page of a file, which it has locked and has a reference of; true if its write began, and it is unlocked then
/// (Linux: `pageout`). A page whose place is not known yet stays: the flusher asks for it.
pub fn pageout(pfn: Pfn, page: &Page, context: &MaySleep<'_>) -> bool {
    let (raw, index) = page.owner();
    let Some(id) = Id::<Mapping>::new(raw).filter(|_| raw & memvisor_abi::Page::MAPPING_ANON == 0) else {
        return false;
    };
    if !cache::source(id).is_written_back() {
        return false;
    }
    let Ok(disk) = backing::of(id).disk() else { return false };
    let mut batch: Batch<'_> = Batch::new(disk, Direction::Write, context);
    match write_locked(id, (index, pfn, page), &mut batch) {
        Step::Done(0) => false,
        Step::Done(_) => {
            page_wait::unlock_page(pfn, page);
            batch.submit();
            true
        }
        Step::Unknown => {
            wake_flusher();
            false
        }
    }
}
