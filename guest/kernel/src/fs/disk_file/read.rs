//! Reading: pages that are not there are read, and some behind them (Linux: `filemap_read`, `filemap_fault`, `mpage_readahead`).

use alloc::vec::Vec;

use memvisor_abi::PageFlags;
use mm_core::{Event, EventId, Gfp, Order, PAGE_SIZE, Page, Pfn, Trace};
use mm_filemap::{Bound, add_to_page_cache, find_get_page, put_page};
use mm_vma::{Errno, Id, Mapping};

use super::readahead::{self, Window};
use super::{BLOCKS, Blocks, Place, bdev, bytes_in, clear, descriptor, remember, transfer, with_file};
use crate::drivers::block::{Direction, Disk, Segment};
use crate::mm::bio::{self, Batch};
use crate::mm::space::{Source, Spaces, backing, cache};
use crate::mm::{kmap, page_alloc, page_wait};
use crate::sched;
use crate::trace::KernelTrace;

/// Pages of one window at most.
pub(super) const MOST: usize = bio::PAGES;

/// Who wants a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A call that reads so many pages from there on.
    Read(u64),
    /// A fault.
    Fault,
    /// A write of part of it, or a truncation in it: nothing is read ahead.
    Alone,
}

/// The page at `index`, up to date, with a reference, and whether it had to be read.
///
/// # Errors
/// `EIO`, `ENOMEM`; `EINVAL` past the end.
pub fn page(id: Id<Mapping>, index: u64, wanted: Wanted) -> Result<(Pfn, bool), Errno> {
    let context = sched::task_context();
    let mut read = false;
    // What was read may be reclaimed before it is found.
    let mut tries = 0;
    loop {
        if bytes_in(cache::size(id), index) == 0 {
            return Err(Errno::Einval);
        }
        if let Some(pfn) = find_get_page(&Spaces, id, index) {
            let page = descriptor(pfn)?;
            readahead::met(id, index, page, wanted);
            if !page.has(PageFlags::UPTODATE) {
                page_wait::wait_on_page_locked(pfn, page, &context);
            }
            if page.has(PageFlags::UPTODATE) {
                return Ok((pfn, read));
            }
            let here = page.owner() == (id.as_u64(), index);
            put_page(&Spaces, pfn);
            // Its read failed; once, it is tried again.
            if here && tries > 0 {
                return Err(Errno::Eio);
            }
            if here {
                tries += 1;
                fill(id, &Window::one(index))?;
            }
            continue;
        }
        read = true;
        let window = readahead::missed(id, index, wanted);
        tell_window(index, &window);
        fill(id, &window)?;
    }
}

/// Tells which pages are read because the one at `index` is needed, or because a reader came to it.
pub(super) fn tell_window(index: u64, window: &Window) {
    KernelTrace.emit_with(EventId::PageCacheRa, || Event::PageCacheRa {
        index,
        start: window.start,
        nr_pages: window.size.into(),
        marker: window.marker.unwrap_or(u64::MAX),
    });
}

/// Brings the pages of a window in that are not there, and begins to read them.
pub(super) fn fill(id: Id<Mapping>, window: &Window) -> Result<(), Errno> {
    let size = cache::size(id);
    let last = size.div_ceil(PAGE_SIZE);
    let count = usize::try_from(last.saturating_sub(window.start).min(window.size.into())).unwrap_or(0);
    let mut frames = Frames::with_room(id, count.min(MOST))?;
    let mut todo = Todo::with_room(count.min(MOST))?;
    for index in (window.start..).take(count.min(MOST)) {
        if !mm_filemap::has_page(&Spaces, id, index) && !frames.add() {
            break;
        }
    }
    if frames.free.is_empty() && mm_filemap::has_page(&Spaces, id, window.start) {
        // One that could not be read before.
        return reread(id, window.start);
    }
    if frames.free.is_empty() {
        return Err(Errno::Enomem);
    }
    let range = window.start..window.start + count as u64;
    match cache::source(id) {
        Source::Bdev => bdev::add_pages(id, range, &mut frames, &mut todo)?,
        _ => {
            let added = with_file(id, |fs, ino| {
                let mut blocks = Blocks::new(fs, ino);
                add_pages(&mut blocks, id, (range, window), (&mut frames, &mut todo))
            });
            // What was added is read all the same: it is locked.
            if todo.pages.is_empty() {
                added?;
            }
        }
    }
    read_pages(id, &todo)
}

/// Room for so many, not on the kernel's stack: what is called while it is in use reclaims pages.
fn room<T>(count: usize) -> Result<Vec<T>, Errno> {
    let mut room = Vec::new();
    room.try_reserve_exact(count).map_err(|_| Errno::Enomem)?;
    Ok(room)
}

/// Frames for pages to come.
pub(super) struct Frames {
    free: Vec<Pfn>,
    /// How the first one is asked for.
    gfp: Gfp,
}

impl Frames {
    fn with_room(id: Id<Mapping>, count: usize) -> Result<Frames, Errno> {
        let gfp = match cache::source(id) {
            Source::Bdev => bdev::GFP,
            _ => Gfp::HIGHUSER_MOVABLE,
        };
        Ok(Frames { free: room(count)?, gfp })
    }

    fn add(&mut self) -> bool {
        // Pages ahead are not worth much effort.
        let gfp =
            if self.free.is_empty() { self.gfp } else { Gfp::HIGHUSER_MOVABLE | Gfp::NORETRY | Gfp::NOWARN };
        let frame = page_alloc::alloc_here(gfp, Order::ZERO, None);
        self.free.extend(frame);
        frame.is_some()
    }

    pub(super) fn take(&mut self) -> Option<Pfn> {
        self.free.pop()
    }

    /// One that was not needed.
    pub(super) fn give_back(&mut self, pfn: Pfn) {
        self.free.push(pfn);
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        while let Some(pfn) = self.take() {
            put_page(&Spaces, pfn);
        }
    }
}

/// Pages that are in the cache, locked, and not read yet.
pub(super) struct Todo {
    pages: Vec<(Pfn, Place)>,
}

impl Todo {
    fn with_room(count: usize) -> Result<Todo, Errno> {
        Ok(Todo { pages: room(count)? })
    }

    pub(super) fn push(&mut self, pfn: Pfn, place: Place) {
        self.pages.push((pfn, place));
    }
}

/// Adds pages to the cache, locked, with their places (L1).
fn add_pages(
    blocks: &mut Blocks<'_>,
    id: Id<Mapping>,
    (range, window): (core::ops::Range<u64>, &Window),
    (frames, todo): (&mut Frames, &mut Todo),
) -> Result<(), Errno> {
    let end = range.end;
    for index in range {
        // It may have been cut since.
        let bytes = bytes_in(cache::size(id), index);
        if bytes == 0 || mm_filemap::has_page(&Spaces, id, index) {
            continue;
        }
        let place = blocks.place(index, bytes, (end - index - 1, false))?;
        let Some(pfn) = frames.take() else { break };
        if !add_locked(id, index, pfn, place, Bound::Size)? {
            frames.give_back(pfn);
            continue;
        }
        if window.marker == Some(index) {
            descriptor(pfn)?.insert(PageFlags::RECLAIM);
        }
        todo.push(pfn, place);
    }
    Ok(())
}

/// Puts a frame into the cache as a locked page; false if there is one already.
pub(super) fn add_locked(
    id: Id<Mapping>,
    index: u64,
    pfn: Pfn,
    place: Place,
    bound: Bound,
) -> Result<bool, Errno> {
    let page = descriptor(pfn)?;
    // Nobody else knows it.
    page_wait::trylock_page(page);
    remember(page, place);
    match add_to_page_cache(&Spaces, id, index, pfn, bound) {
        Ok(()) => {
            // The cache has a reference; while it is locked nobody takes it out.
            put_page(&Spaces, pfn);
            Ok(true)
        }
        Err(error) => {
            page.set_private(0);
            page_wait::unlock_page(pfn, page);
            match error {
                mm_filemap::CacheError::NoMemory => Err(Errno::Enomem),
                _ => Ok(false),
            }
        }
    }
}

/// Begins to read pages that were added. In a frame of its own: the segments of a request lie in it.
#[inline(never)]
fn read_pages(id: Id<Mapping>, todo: &Todo) -> Result<(), Errno> {
    let context = sched::task_context();
    let disk = backing::of(id).disk()?;
    let mut batch: Batch<'_> = Batch::new(disk, Direction::Read, &context);
    for (pfn, place) in &todo.pages {
        match place {
            Place::Run(sector, sectors) => {
                if u64::from(*sectors) * 512 < PAGE_SIZE {
                    clear(*pfn);
                }
                batch.add(*pfn, 0, *sector, *sectors);
            }
            Place::Hole => {
                clear(*pfn);
                bio::end_read(*pfn, Ok(()));
            }
            Place::Scattered(size, blocks) => {
                bio::end_read(*pfn, read_scattered(&disk, *pfn, (*size, blocks)));
            }
        }
    }
    Ok(())
}

/// Reads a page that lies in several places, and waits.
pub(super) fn read_scattered(
    disk: &Disk,
    pfn: Pfn,
    (size, blocks): (u32, &[u32; BLOCKS]),
) -> Result<(), Errno> {
    clear(pfn);
    transfer(size, blocks, pfn, &mut |sector, segment| disk.read(sector, &[segment], &sched::task_context()))
}

/// A page in the cache that could not be read: once more.
fn reread(id: Id<Mapping>, index: u64) -> Result<(), Errno> {
    let Some(pfn) = find_get_page(&Spaces, id, index) else { return Ok(()) };
    let result = descriptor(pfn).and_then(|page| reread_page(id, index, (pfn, page)));
    put_page(&Spaces, pfn);
    result
}

fn reread_page(id: Id<Mapping>, index: u64, (pfn, page): (Pfn, &Page)) -> Result<(), Errno> {
    let context = sched::task_context();
    let disk = backing::of(id).disk()?;
    let place = match cache::source(id) {
        Source::Bdev => {
            page_wait::lock_page(pfn, page, &context);
            Some(bdev::place(id, index))
        }
        _ => with_file(id, |fs, ino| {
            page_wait::lock_page(pfn, page, &context);
            if page.owner() != (id.as_u64(), index) || page.has(PageFlags::UPTODATE) {
                page_wait::unlock_page(pfn, page);
                return Ok(None);
            }
            let bytes = bytes_in(cache::size(id), index);
            let place = Blocks::new(fs, ino).place(index, bytes, (0, false));
            if place.is_err() {
                page_wait::unlock_page(pfn, page);
            }
            place.map(Some)
        })?,
    };
    let Some(place) = place else { return Ok(()) };
    if cache::source(id) == Source::Disk {
        remember(page, place);
    }
    clear(pfn);
    let result = match place {
        Place::Hole => Ok(()),
        Place::Run(sector, sectors) => {
            disk.read(sector, &[Segment { pfn, offset: 0, len: sectors * 512 }], &context)
        }
        Place::Scattered(size, blocks) => read_scattered(&disk, pfn, (size, &blocks)),
    };
    bio::end_read(pfn, result);
    result
}

/// Reads bytes; how many, fewer at the end, and before an error.
///
/// # Errors
/// `EIO`, `ENOMEM` if not a byte was read.
pub fn read(id: Id<Mapping>, offset: u64, to: &mut [u8]) -> Result<usize, Errno> {
    KernelTrace.emit(Event::FilemapRead { pos: offset, bytes: to.len() as u64 });
    let result = read_pages_of(id, offset, to);
    KernelTrace.emit_with(EventId::FilemapReadRet, || Event::FilemapReadRet {
        bytes: result.map_or(0, |bytes| bytes as u64),
    });
    result
}

fn read_pages_of(id: Id<Mapping>, offset: u64, to: &mut [u8]) -> Result<usize, Errno> {
    let mut done = 0;
    while done < to.len() {
        let at = offset + done as u64;
        let left = usize::try_from(cache::size(id).saturating_sub(at)).unwrap_or(usize::MAX);
        let room = usize::try_from(PAGE_SIZE - at % PAGE_SIZE).unwrap_or(0);
        let len = room.min(to.len() - done).min(left);
        if len == 0 {
            break;
        }
        let pages = (to.len() - done).div_ceil(4096) as u64;
        match page(id, at / PAGE_SIZE, Wanted::Read(pages)) {
            Ok((pfn, _)) => {
                kmap::copy_from_page(pfn, at % PAGE_SIZE, to.get_mut(done..done + len).unwrap_or_default());
                put_page(&Spaces, pfn);
                done += len;
            }
            // It was cut meanwhile.
            Err(Errno::Einval) => break,
            Err(error) => return if done > 0 { Ok(done) } else { Err(error) },
        }
    }
    Ok(done)
}
