//! Slots read and written (Linux: mm/page_io.c), and what is read with a slot (Linux: `swap_cluster_readahead`).

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use guest_virtio::blk::SECTOR;
use memvisor_abi::{NodeStat, VmEvent};
use mm_core::{Errno, Event, EventId, Gfp, MemMap, Order, PAGE_SIZE, Page, PageFlags, Pfn, PolicyAt, Trace};
use mm_swap::{
    Readahead, Slot, Swap, SwapEntry, SwapInError, SwapIo, SwappedIn, cluster_window, folio_swap_entry,
    read_swap_cache_async, swap_write_failed,
};
use mm_vma::put_page;
use mm_vmscan::Lru as _;

use super::{areas, zswap};
use crate::drivers::block::{Direction, MAJOR, MINORS, Segment};
use crate::mm::bio::Batch;
use crate::mm::space::Spaces;
use crate::mm::{page_alloc, page_wait, vmstat};
use crate::sync::Lock;
use crate::trace::KernelTrace;
use crate::{pr_alert, sched};

/// Sectors of a slot.
const PAGE_SECTORS: u32 = 8;
const SECTORS: u64 = PAGE_SECTORS as u64;
const _: () = assert!(SECTORS * SECTOR == PAGE_SIZE);
/// log2 of the most pages that are read at once (Linux: `vm.page-cluster`).
pub const PAGE_CLUSTER: u32 = 3;
const WINDOW: usize = 1 << PAGE_CLUSTER;
/// Most pages of a request: reclaim is deep in its stack when it writes.
const TOGETHER: usize = 8;
static READAHEAD: Lock<Readahead> = Lock::new(Readahead::new());
/// Errors that were told; the rest only counts.
static TOLD: AtomicU64 = AtomicU64::new(0);
const TOLD_MAX: u64 = 10;

/// Pages on their way to slots in a row. What waits here is begun when something else follows, and when this is dropped (Linux:
/// `struct swap_iocb`).
#[derive(Debug, Default)]
pub struct Plug {
    area: u32,
    first: u64,
    count: usize,
    pages: [u64; TOGETHER],
}

impl Plug {
    /// Adds a page that has WRITEBACK.
    fn add(&mut self, entry: SwapEntry, pfn: Pfn) {
        let follows = (self.area, self.first + self.count as u64) == (entry.area(), entry.offset());
        if !follows || self.count == TOGETHER {
            self.submit();
            (self.area, self.first) = (entry.area(), entry.offset());
        }
        self.pages[self.count] = pfn.as_u64();
        self.count += 1;
    }

    /// Begins what was added. An area that could not be written once is written slot by slot: those that are bad cost their neighbours nothing.
    fn submit(&mut self) {
        let pages = &self.pages[..core::mem::take(&mut self.count)];
        if pages.is_empty() {
            return;
        }
        let Some(disk) = areas::disk(self.area) else {
            return pages.iter().for_each(|pfn| end_swap_write(Pfn::new(*pfn), Err(Errno::Eio), 1));
        };
        let alone = areas::published(self.area).is_some_and(|area| area.write_errors.load(Relaxed) > 0);
        let context = sched::task_context();
        let mut batch = Batch::<TOGETHER>::with_end(disk, Direction::Write, end_swap_write, &context);
        for (pfn, offset) in pages.iter().zip(self.first..) {
            batch.add(Pfn::new(*pfn), 0, offset * SECTORS, PAGE_SECTORS);
            if alone {
                batch.submit();
            }
        }
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        self.submit();
    }
}

/// Writes a locked, dirty page of the swap cache to its slot, or has zswap keep it, and unlocks it; a write goes on (Linux: the same name).
pub(super) fn swap_writepage(pfn: Pfn, page: &Page, plug: &mut Plug) {
    // Nobody names the slot any more: it need not be written, and reclaim finds the page without one (Linux: the same).
    if mm_swap::folio_free_swap(&Spaces, pfn) {
        page_wait::unlock_page(pfn, page);
        return;
    }
    let Some(entry) = folio_swap_entry(page) else { return page_wait::unlock_page(pfn, page) };
    if zswap::store(entry, pfn) {
        page.remove(PageFlags::DIRTY);
        page_wait::set_page_writeback(page);
        page_wait::unlock_page(pfn, page);
        // A write that is over at once.
        vmstat::mod_page_state(page, NodeStat::Written, 1);
        page_wait::end_page_writeback(pfn, page);
        return;
    }
    write_to_slot(pfn, page, entry, plug);
}

/// Writes a locked page of the swap cache to its slot, and unlocks it; the write goes on (Linux: `__swap_writepage`).
pub(super) fn write_to_slot(pfn: Pfn, page: &Page, entry: SwapEntry, plug: &mut Plug) {
    page.remove(PageFlags::DIRTY);
    let was = page_wait::set_page_writeback(page);
    debug_assert!(!was, "a locked page was on its way to {entry}");
    vmstat::mod_page_state(page, NodeStat::Writeback, 1);
    page_wait::unlock_page(pfn, page);
    if let Some(published) = areas::published(entry.area()) {
        published.writes.fetch_add(1, Relaxed);
    }
    Spaces.count_vm_events(VmEvent::Pswpout, 1);
    plug.add(entry, pfn);
}

/// The write of a page ended, which was one of `pages` (Linux: `end_swap_bio_write`).
fn end_swap_write(pfn: Pfn, result: Result<(), Errno>, pages: usize) {
    let Some(page) = MemMap::page(&Spaces, pfn) else { return };
    if result.is_err()
        && let Some(entry) = folio_swap_entry(page)
    {
        page.insert(PageFlags::DIRTY);
        page.remove(PageFlags::RECLAIM);
        // It stays in memory, and its slot is not used again. Among others it may be good: it is written alone when reclaim comes by again.
        if pages == 1 {
            swap_write_failed(&Spaces, entry);
            tell("Write", entry);
        }
        if let Some(published) = areas::published(entry.area()) {
            published.write_errors.fetch_add(1, Relaxed);
        }
    }
    vmstat::mod_page_state(page, NodeStat::Writeback, -1);
    vmstat::mod_page_state(page, NodeStat::Written, 1);
    // The last look at the page: from here on it may be freed.
    page_wait::end_page_writeback(pfn, page);
}

/// Linux: `pr_alert_ratelimited` of the two ends.
fn tell(what: &str, entry: SwapEntry) {
    if TOLD.fetch_add(1, Relaxed) < TOLD_MAX {
        let minor = areas::disk(entry.area()).map_or(0, |disk| u32::from(disk.index) * MINORS);
        pr_alert!("{what}-error on swap-device ({MAJOR}:{minor}:{})", entry.offset() * SECTORS);
    }
}

/// A page was read, or not; it is unlocked (Linux: `end_swap_bio_read`).
fn end_page_read(pfn: Pfn, result: Result<(), Errno>) {
    let Some(page) = MemMap::page(&Spaces, pfn) else { return };
    end_read(page, result);
    page_wait::unlock_page(pfn, page);
}

/// A page was read, or not.
fn end_read(page: &Page, result: Result<(), Errno>) {
    match result {
        Ok(()) => page.insert(PageFlags::UPTODATE),
        Err(_) => {
            if let Some(entry) = folio_swap_entry(page) {
                if let Some(published) = areas::published(entry.area()) {
                    published.read_errors.fetch_add(1, Relaxed);
                }
                tell("Read", entry);
            }
        }
    }
}

fn count_reads(first: SwapEntry, pages: u64) {
    Spaces.count_vm_events(VmEvent::Pswpin, pages);
    if let Some(published) = areas::published(first.area()) {
        published.reads.fetch_add(pages, Relaxed);
    }
}

/// The read of a page ended, which was one of `pages`. What failed among others is read again alone by whoever needs it: which of them the device
/// could not read is found out then.
fn end_swap_read(pfn: Pfn, result: Result<(), Errno>, pages: usize) {
    match MemMap::page(&Spaces, pfn) {
        Some(page) if result.is_err() && pages > 1 => page_wait::unlock_page(pfn, page),
        _ => end_page_read(pfn, result),
    }
}

/// Reads slots in a row into locked pages of the swap cache, which are unlocked when that ends (Linux: `swap_readpage`). What zswap keeps is
/// there at once.
fn swap_read(first: SwapEntry, pages: &[Pfn]) {
    let context = sched::task_context();
    let disk = areas::disk(first.area());
    let mut batch =
        disk.map(|disk| Batch::<TOGETHER>::with_end(disk, Direction::Read, end_swap_read, &context));
    let mut reads = 0;
    for (pfn, offset) in pages.iter().zip(first.offset()..) {
        if SwapEntry::new(first.area(), offset).is_some_and(|entry| zswap::load(entry, *pfn)) {
            end_page_read(*pfn, Ok(()));
            continue;
        }
        reads += 1;
        match &mut batch {
            Some(batch) => batch.add(*pfn, 0, offset * SECTORS, PAGE_SECTORS),
            None => end_page_read(*pfn, Err(Errno::Eio)),
        }
    }
    count_reads(first, reads);
}

pub(super) fn alloc(gfp: Gfp) -> Option<Pfn> {
    page_alloc::alloc_here(gfp, Order::ZERO, None)
}

impl SwapIo for Spaces {
    fn swapin_readahead(&self, entry: SwapEntry, at: PolicyAt) -> Result<SwappedIn, SwapInError> {
        let alloc = || page_alloc::alloc_page_policy(Gfp::HIGHUSER_MOVABLE, at);
        let found = read_swap_cache_async(self, entry, alloc, |pfn| put_page(self, pfn))?;
        let Some(page) = MemMap::page(self, found.pfn) else { return Ok(found) };
        if !found.major {
            // Linux: `PG_readahead`, which is the same bit there.
            if !page.has(PageFlags::WRITEBACK) && page.take(PageFlags::RECLAIM) {
                READAHEAD.lock().hit();
            }
            return Ok(found);
        }
        let window = READAHEAD.lock().window(entry.offset(), PAGE_CLUSTER);
        let max = self.slots(entry.area()).len() as u64;
        let mut run = Run::new(entry.area());
        for offset in cluster_window(entry.offset(), window, max) {
            if offset == entry.offset() {
                run.add(offset, found.pfn);
            } else {
                run.neighbour(offset, at);
            }
        }
        run.read();
        KernelTrace.emit_with(EventId::SwapClusterReadahead, || {
            let slots = cluster_window(entry.offset(), window, max);
            Event::SwapClusterReadahead {
                area: u8::try_from(entry.area()).unwrap_or(u8::MAX),
                wanted: entry.offset(),
                first: slots.start,
                nr_pages: slots.end - slots.start,
            }
        });
        Ok(found)
    }

    fn swap_readpage(&self, pfn: Pfn) {
        let Some(page) = MemMap::page(self, pfn) else { return };
        let Some(entry) = folio_swap_entry(page) else { return };
        if zswap::load(entry, pfn) {
            return end_read(page, Ok(()));
        }
        let read = areas::disk(entry.area()).ok_or(Errno::Eio).and_then(|disk| {
            let context = sched::task_context();
            disk.read(entry.offset() * SECTORS, &[Segment::frame(pfn)], &context)
        });
        count_reads(entry, 1);
        end_read(page, read);
    }

    fn lock_page(&self, pfn: Pfn) {
        if let Some(page) = MemMap::page(self, pfn) {
            page_wait::lock_page(pfn, page, &sched::task_context());
        }
    }

    fn wait_on_page_writeback(&self, pfn: Pfn) {
        if let Some(page) = MemMap::page(self, pfn) {
            page_wait::wait_on_page_writeback(pfn, page, &sched::task_context());
        }
    }
}

/// Slots in a row that are read together.
struct Run {
    area: u32,
    first: u64,
    pages: Vec<Pfn>,
}

impl Run {
    fn new(area: u32) -> Run {
        Run { area, first: 0, pages: Vec::new() }
    }

    /// One more slot; what is no neighbour of those before is another run.
    fn add(&mut self, offset: u64, pfn: Pfn) {
        if self.pages.len() == WINDOW || self.first + self.pages.len() as u64 != offset {
            self.read();
            self.first = offset;
        }
        if self.pages.try_reserve(1).is_err() {
            self.read();
            if let Some(entry) = SwapEntry::new(self.area, offset) {
                swap_read(entry, &[pfn]);
            }
            return;
        }
        self.pages.push(pfn);
    }

    /// A slot that nobody asked for, if there is a page on the device only, and a frame that costs nobody anything.
    fn neighbour(&mut self, offset: u64, at: PolicyAt) {
        let words = Spaces.slots(self.area);
        let word = usize::try_from(offset).ok().and_then(|offset| words.get(offset));
        let is_out = word.map(Slot::of).is_some_and(|slot| slot.count() > 0 && slot.cache().is_none());
        let Some(entry) = SwapEntry::new(self.area, offset).filter(|_| is_out) else { return };
        let gfp = (Gfp::HIGHUSER_MOVABLE | Gfp::NOWARN) - Gfp::DIRECT_RECLAIM;
        let put = |pfn| put_page(&Spaces, pfn);
        let alloc = || page_alloc::alloc_page_policy(gfp, at);
        let Ok(found) = read_swap_cache_async(&Spaces, entry, alloc, put) else { return };
        if found.major {
            if let Some(page) = MemMap::page(&Spaces, found.pfn) {
                page.insert(PageFlags::RECLAIM);
            }
            self.add(offset, found.pfn);
        }
        // The swap cache keeps it.
        put(found.pfn);
    }

    fn read(&mut self) {
        if let (Some(entry), false) = (SwapEntry::new(self.area, self.first), self.pages.is_empty()) {
            swap_read(entry, &self.pages);
        }
        self.pages.clear();
    }
}
