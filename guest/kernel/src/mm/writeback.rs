//! Dirty pages of files and disks, and how they are written (Linux: mm/page-writeback.c, fs/fs-writeback.c).
//!
//! Invariants, besides D1 to D3 of mm-filemap:
//! B1  the counts are the pages with the flags, but while `busy` says otherwise;
//! B2  a mapping with dirty pages is in the list of dirty mappings, or on its way: whoever took it out puts it back;
//! B3  a page is locked from the moment at which it is found dirty until it is marked as being written; nobody waits for the file
//!     systems' lock with a page locked, or marked as being written and not yet on its way (that lock is held by those who lock pages and
//!     wait for their writes, as in a truncation).

mod flusher;
mod list;
mod settings;
mod throttle;

use core::ops::Range;
use core::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use memvisor_abi as abi;
use memvisor_abi::{NodeStat, PageFlags, TableRef};
use mm_core::{Errno, Event, EventId, MaySleep, MemMap, PAGE_SIZE, Page, Pfn, Trace};
use mm_filemap::{Cache, Mark, clear_shadow_entries, put_page};
use mm_vma::{Arena, Id, Mapping};

pub use flusher::{init, wake as wake_flusher};
pub use list::{for_each_dirty, forget};
pub use settings::{Setting, read as setting, write as set_setting};
pub use throttle::{balance_dirty_pages, limits};

use crate::drivers::block::Direction;
use crate::fs::disk_file;
use crate::mm::bio::Batch;
use crate::mm::memmap::Vmemmap;
use crate::mm::space::{Spaces, backing, cache};
use crate::mm::{page_wait, phys, vmstat};
use crate::sched;
use crate::trace::KernelTrace;

/// The published counts, in the layout of [`abi::FileCounts`].
#[repr(C)]
struct Published {
    file_pages: AtomicI64,
    dirty: AtomicI64,
    writeback: AtomicI64,
    busy: AtomicI64,
}

const _: () = assert!(size_of::<Published>() == size_of::<abi::FileCounts>());

static COUNTS: Published = Published {
    file_pages: AtomicI64::new(0),
    dirty: AtomicI64::new(0),
    writeback: AtomicI64::new(0),
    busy: AtomicI64::new(0),
};

/// The published table.
pub fn table() -> TableRef {
    TableRef {
        gpa: phys::of_image(&raw const COUNTS as u64).as_u64(),
        count: 1,
        stride: u32::try_from(size_of::<Published>()).unwrap_or(0),
    }
}

/// Changes a flag and its count: who looks from outside in between is told so.
fn counted<R>(f: impl FnOnce() -> R) -> R {
    COUNTS.busy.fetch_add(1, Ordering::AcqRel);
    let result = f();
    COUNTS.busy.fetch_sub(1, Ordering::AcqRel);
    result
}

/// Counts pages that came into mappings or left them.
pub fn count_file_pages(pages: i64) {
    COUNTS.file_pages.fetch_add(pages, Ordering::Relaxed);
}

/// For seeded faults: the counts, and nothing follows.
pub fn spoil(dirty: i64, writeback: i64) {
    COUNTS.dirty.fetch_add(dirty, Ordering::Relaxed);
    COUNTS.writeback.fetch_add(writeback, Ordering::Relaxed);
}

/// Pages in mappings (Linux: `NR_FILE_PAGES`).
pub fn nr_file_pages() -> u64 {
    COUNTS.file_pages.load(Ordering::Relaxed).max(0).unsigned_abs()
}

/// Pages of files whose write ended, for those who wait.
static NR_WRITTEN: AtomicU64 = AtomicU64::new(0);

/// Counts of pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Dirty now (Linux: `NR_FILE_DIRTY`).
    pub dirty: u64,
    /// Being written now (Linux: `NR_WRITEBACK`).
    pub writeback: u64,
}

/// The counts.
pub fn counts() -> Counts {
    let now = |count: &AtomicI64| count.load(Ordering::Relaxed).max(0).unsigned_abs();
    Counts { dirty: now(&COUNTS.dirty), writeback: now(&COUNTS.writeback) }
}

/// Counts a page in the statistics of its zone.
fn count(pfn: Pfn, stat: NodeStat, delta: i64) {
    if let Some(page) = Vmemmap.page(pfn) {
        vmstat::mod_page_state(page, stat, delta);
    }
}

/// A page is dirty now, or no more.
fn count_dirty(pfn: Pfn, delta: i64) {
    COUNTS.dirty.fetch_add(delta, Ordering::Relaxed);
    if delta != 0 {
        count(pfn, NodeStat::Dirty, delta);
    }
}

/// What a page holds was changed: it is written some time (Linux: `folio_mark_dirty`). Also with page tables locked.
pub fn mark_dirty(pfn: Pfn) {
    let dirtied =
        counted(|| mm_filemap::writeback::mark_dirty(&Spaces, pfn).inspect(|_| count_dirty(pfn, 1)));
    if let Some(id) = dirtied {
        count(pfn, NodeStat::Dirtied, 1);
        KernelTrace.emit_with(EventId::WritebackDirtyFolio, || Event::WritebackDirtyFolio {
            pfn,
            index: Vmemmap.page(pfn).map_or(0, |page| page.owner().1),
            dirty: counts().dirty,
        });
        list::add(id);
    }
}

/// What a page, locked, holds is not to be written any more.
pub fn cancel_dirty(id: Id<Mapping>, index: u64, pfn: Pfn) {
    counted(|| {
        if mm_filemap::writeback::cancel_dirty(&Spaces, id, index, pfn) {
            count_dirty(pfn, -1);
        }
    });
}

/// Takes a page, locked, that nobody writes now, out of its mapping; false if it is not there.
pub fn delete(id: Id<Mapping>, index: u64, pfn: Pfn) -> bool {
    counted(|| {
        let deleted = mm_filemap::writeback::delete_locked(&Spaces, id, index, pfn);
        if deleted == Some(true) {
            count_dirty(pfn, -1);
        }
        deleted.is_some()
    })
}

/// A locked page becomes clean for its write: from here on a write through an entry faults, and marks it anew. False if it was clean
/// (Linux: `folio_clear_dirty_for_io`).
fn clear_dirty_for_io(pfn: Pfn, page: &Page) -> bool {
    if page.mapcount() >= 0 && mm_vma::page_mkclean(&Spaces, pfn) {
        mark_dirty(pfn);
    }
    counted(|| {
        let was = page.take(PageFlags::DIRTY);
        count_dirty(pfn, -i64::from(was));
        was
    })
}

fn start(id: Id<Mapping>, index: u64, pfn: Pfn) {
    counted(|| {
        mm_filemap::writeback::start_writeback(&Spaces, id, index, pfn);
        COUNTS.writeback.fetch_add(1, Ordering::Relaxed);
        count(pfn, NodeStat::Writeback, 1);
    });
}

/// The write of a page has ended; in an interrupt, too.
pub fn end_page(pfn: Pfn, result: Result<(), Errno>) {
    let Some(page) = Vmemmap.page(pfn) else { return };
    if let Err(error) = result
        && let Some(id) = Id::<Mapping>::new(page.mapping())
    {
        backing::of(id).set_error(error);
    }
    NR_WRITTEN.fetch_add(1, Ordering::Relaxed);
    vmstat::mod_page_state(page, NodeStat::Written, 1);
    // Before whoever waits for it may look.
    counted(|| {
        COUNTS.writeback.fetch_sub(1, Ordering::Relaxed);
        vmstat::mod_page_state(page, NodeStat::Writeback, -1);
        mm_filemap::writeback::end_writeback(&Spaces, pfn, || page_wait::end_page_writeback(pfn, page));
    });
    throttle::written();
}

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

/// Takes the pages from `from` on out of the mapping, locked one by one, when nobody reads or writes them; the caller has set the size
/// (Linux: `truncate_inode_pages_range`).
pub fn truncate_pages(id: Id<Mapping>, from: u64, context: &MaySleep<'_>) {
    let mut next = from;
    while let Some(index) = mm_filemap::next_page(&Spaces, id, next, u64::MAX) {
        let Some(pfn) = mm_filemap::find_get_page(&Spaces, id, index) else {
            // A shadow; it would stay for whoever has the mapping next. What else is there by now is met again.
            mm_filemap::clear_shadow_entry(&Spaces, id, index);
            continue;
        };
        next = index.saturating_add(1);
        if let Some(page) = Vmemmap.page(pfn) {
            page_wait::lock_page(pfn, page, context);
            page_wait::wait_on_page_writeback(pfn, page, context);
            delete(id, index, pfn);
            page.set_private(0);
            page_wait::unlock_page(pfn, page);
        }
        put_page(&Spaces, pfn);
        if index == u64::MAX {
            break;
        }
    }
    // After it: no page comes back, and none of those that went is mapped any more (C3).
    Spaces.unmap_mapping_range(id, from..u64::MAX, mm_filemap::Cows::Unmap);
}

/// Nothing of the mapping is written any more: what is on its way is waited for, and what is dirty stays in memory as long as somebody maps it.
pub fn abandon(id: Id<Mapping>, context: &MaySleep<'_>) {
    backing::set_gone(id);
    list::forget(id);
    for mark in [Mark::Dirty, Mark::Writeback] {
        while let Some((index, pfn)) = mm_filemap::writeback::find_get_marked(&Spaces, id, mark, 0, u64::MAX)
        {
            if let Some(page) = Vmemmap.page(pfn) {
                page_wait::lock_page(pfn, page, context);
                page_wait::wait_on_page_writeback(pfn, page, context);
                cancel_dirty(id, index, pfn);
                mm_filemap::writeback::forget_mark(&Spaces, id, index, pfn);
                page_wait::unlock_page(pfn, page);
            }
            put_page(&Spaces, pfn);
        }
    }
}

/// Takes clean pages out that nobody uses, and what reclaim left in the places of others; how many pages (Linux: `invalidate_mapping_pages`).
pub fn invalidate(id: Id<Mapping>, pages: Range<u64>) -> u64 {
    let Some(last) = pages.end.checked_sub(1) else { return 0 };
    clear_shadow_entries(&Spaces, id, pages.clone());
    let (mut next, mut gone) = (pages.start, 0);
    while next <= last
        && let Some(index) = mm_filemap::next_page(&Spaces, id, next, last)
    {
        next = index.saturating_add(1);
        let Some(pfn) = mm_filemap::find_get_page(&Spaces, id, index) else { continue };
        let Some(page) = Vmemmap.page(pfn) else { continue };
        let busy = PageFlags::DIRTY | PageFlags::WRITEBACK;
        let removed = page_wait::trylock_page(page) && {
            let idle = !page.has_any(busy) && page.mapcount() < 0;
            let removed = idle && mm_filemap::remove_mapping(&Spaces, pfn, || 0);
            page_wait::unlock_page(pfn, page);
            removed
        };
        if removed {
            // It has no references: it is the caller's.
            page.set_private(0);
            page.set_refcount(1);
            gone += 1;
        }
        put_page(&Spaces, pfn);
        if index == u64::MAX {
            break;
        }
    }
    gone
}

/// Pages of a mapping that bytes are in.
pub fn pages_of(bytes: Range<u64>) -> Range<u64> {
    bytes.start / PAGE_SIZE..bytes.end.div_ceil(PAGE_SIZE)
}

/// Pages in a mapping.
pub fn nr_pages(id: Id<Mapping>) -> u64 {
    Arena::<Mapping>::at(&Spaces, id).nrpages()
}
