//! Dirty pages of files and disks, and how they are written (Linux: mm/page-writeback.c, fs/fs-writeback.c).
//!
//! Invariants, besides D1 to D3 of mm-filemap:
//! B1  the counts are the pages with the flags, but while `busy` says otherwise;
//! B2  a mapping with dirty pages is in the list of dirty mappings, or on its way: whoever took it out puts it back;
//! B3  a page is locked from the moment at which it is found dirty until it is marked as being written; nobody waits for the file
//!     systems' lock with a page locked, or marked as being written and not yet on its way (that lock is held by those who lock pages and
//!     wait for their writes, as in a truncation).

mod counts;
mod flusher;
mod list;
mod remove;
mod settings;
mod throttle;
mod write;

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use memvisor_abi::{NodeStat, PageFlags};
use mm_core::{Errno, Event, EventId, MemMap, PAGE_SIZE, Page, Pfn, Trace};
use mm_vma::{Arena, Id, Mapping};

pub use counts::{count_file_pages, counts, nr_file_pages, spoil, table};
pub use flusher::{init, wake as wake_flusher};
pub use list::{for_each_dirty, forget};
pub use remove::{abandon, invalidate, truncate_pages};
pub use settings::{Setting, read as setting, write as set_setting};
pub use throttle::{balance_dirty_pages, limits};
pub use write::{Sync, Target, begin, pageout, wait_pages, write_and_wait, write_here, write_pages};

use crate::mm::memmap::Vmemmap;
use crate::mm::space::{Spaces, backing};
use crate::mm::{page_wait, vmstat};
use crate::trace::KernelTrace;
use counts::{COUNTS, count, count_dirty, counted};

/// Pages of files whose write ended, for those who wait.
static NR_WRITTEN: AtomicU64 = AtomicU64::new(0);

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

/// Pages of a mapping that bytes are in.
pub fn pages_of(bytes: Range<u64>) -> Range<u64> {
    bytes.start / PAGE_SIZE..bytes.end.div_ceil(PAGE_SIZE)
}

/// Pages in a mapping.
pub fn nr_pages(id: Id<Mapping>) -> u64 {
    Arena::<Mapping>::at(&Spaces, id).nrpages()
}
