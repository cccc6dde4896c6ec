//! Requests for pages that lie behind each other on a disk (Linux: `struct bio`, fs/mpage.c). Whoever begins them does not wait: the
//! interrupt that ends a request tells of each of its pages. Those of files are made up to date and unlocked, or their write ends.
//!
//! Requests come from a pool, so that pages can be written when there is no memory.

use guest_virtio::blk::SECTOR;
use memvisor_abi::PageFlags;
use mm_core::{Errno, MaySleep, MemMap, PAGE_SIZE, Pfn};

use crate::drivers::block::{Completion, Direction, Disk, Segment};
use crate::mm::memmap::Vmemmap;
use crate::mm::{page_wait, writeback};
use crate::sched::WaitQueue;
use crate::sync::Lock;

/// Pages of a request: Linux's readahead window.
pub const PAGES: usize = 32;
const POOL: usize = 32;

/// What is done about a page whose request has ended, in an interrupt or not: the request's result, and how many pages it had.
pub type EndPage = fn(Pfn, Result<(), Errno>, usize);

#[derive(Clone, Copy)]
struct Bio {
    /// `None` is free.
    end: Option<EndPage>,
    count: usize,
    pages: [u64; PAGES],
}

static BIOS: Lock<[Bio; POOL]> = Lock::new([Bio { end: None, count: 0, pages: [0; PAGES] }; POOL]);
/// Who waits for one.
static FREED: WaitQueue = WaitQueue::new();

/// At most `N` pages on their way to one request. What was added is submitted when something else follows, and by [`Batch::submit`].
pub struct Batch<'a, const N: usize = PAGES> {
    disk: Disk,
    direction: Direction,
    end: EndPage,
    context: &'a MaySleep<'a>,
    sector: u64,
    count: usize,
    segments: [Segment; N],
}

impl<'a, const N: usize> Batch<'a, N> {
    const FITS: () = assert!(N <= PAGES);

    /// An empty one, of pages of files. Pages to be read are locked, pages to be written are marked so.
    pub fn new(disk: Disk, direction: Direction, context: &'a MaySleep<'a>) -> Batch<'a, N> {
        let end: EndPage = match direction {
            Direction::Write => |pfn, result, _| writeback::end_page(pfn, result),
            Direction::Read | Direction::Flush => |pfn, result, _| end_read(pfn, result),
        };
        Batch::with_end(disk, direction, end, context)
    }

    /// An empty one, whose pages `end` is told of.
    pub fn with_end(
        disk: Disk,
        direction: Direction,
        end: EndPage,
        context: &'a MaySleep<'a>,
    ) -> Batch<'a, N> {
        let () = Self::FITS;
        let segments = [Segment { pfn: Pfn::new(0), offset: 0, len: 0 }; N];
        Batch { disk, direction, end, context, sector: 0, count: 0, segments }
    }

    /// Adds `sectors` of a page from byte `offset` on, which lie from `sector` on.
    pub fn add(&mut self, pfn: Pfn, offset: u32, sector: u64, sectors: u32) {
        let most = N.min(usize::from(self.disk.geometry.max_segments));
        let follows = self.count > 0 && self.count < most && {
            let last = &self.segments[self.count - 1];
            u64::from(last.offset + last.len) == PAGE_SIZE
                && offset == 0
                && self.sector + self.sectors() == sector
        };
        if !follows {
            self.submit();
            self.sector = sector;
        }
        // At most 8 sectors of 512 bytes.
        self.segments[self.count] = Segment { pfn, offset, len: sectors << SECTOR.ilog2() };
        self.count += 1;
    }

    fn sectors(&self) -> u64 {
        self.segments[..self.count].iter().map(|segment| u64::from(segment.len) / SECTOR).sum()
    }

    /// Begins what was added.
    pub fn submit(&mut self) {
        let segments = &self.segments[..core::mem::take(&mut self.count)];
        if segments.is_empty() {
            return;
        }
        let mut number = POOL;
        FREED.wait_event_midway(self.context, || {
            let mut bios = BIOS.lock();
            let Some(free) = bios.iter().position(|bio| bio.end.is_none()) else { return false };
            number = free;
            let bio = &mut bios[free];
            (bio.end, bio.count) = (Some(self.end), segments.len());
            for (to, segment) in bio.pages.iter_mut().zip(segments) {
                *to = segment.pfn.as_u64();
            }
            true
        });
        let completion = Completion { call: end_of, argument: number as u64 };
        let begun = if self.direction == Direction::Write {
            self.disk.begin_write_to_end(self.sector, segments, completion, self.context)
        } else {
            self.disk.begin_read_to_end(self.sector, segments, completion, self.context)
        };
        if let Err(error) = begun {
            end(number, Err(error));
        }
    }
}

impl<const N: usize> Drop for Batch<'_, N> {
    fn drop(&mut self) {
        self.submit();
    }
}

/// A request has ended: in the interrupt.
#[expect(clippy::cast_possible_truncation, reason = "below POOL")]
fn end_of(number: u64, result: Result<(), Errno>) {
    end(number as usize, result);
}

fn end(number: usize, result: Result<(), Errno>) {
    let bio = {
        let mut bios = BIOS.lock();
        let bio = bios[number];
        bios[number].end = None;
        bio
    };
    FREED.wake_up_all();
    let Some(end) = bio.end else { return };
    for pfn in bio.pages.into_iter().take(bio.count).map(Pfn::new) {
        end(pfn, result, bio.count);
    }
}

/// A page was read, or could not be: then it is not up to date, and whoever needs it tries again.
pub fn end_read(pfn: Pfn, result: Result<(), Errno>) {
    let Some(page) = Vmemmap.page(pfn) else { return };
    if result.is_ok() {
        page.insert(PageFlags::UPTODATE);
    }
    page_wait::unlock_page(pfn, page);
}
