//! How many pages files have, how many of them are dirty, and how many are being written.

use core::sync::atomic::{AtomicI64, Ordering};

use memvisor_abi as abi;
use memvisor_abi::{NodeStat, TableRef};
use mm_core::{MemMap, Pfn};

use crate::mm::memmap::Vmemmap;
use crate::mm::{phys, vmstat};

/// The published counts, in the layout of [`abi::FileCounts`].
#[repr(C)]
pub(super) struct Published {
    file_pages: AtomicI64,
    dirty: AtomicI64,
    pub(super) writeback: AtomicI64,
    busy: AtomicI64,
}

const _: () = assert!(size_of::<Published>() == size_of::<abi::FileCounts>());

pub(super) static COUNTS: Published = Published {
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
pub(super) fn counted<R>(f: impl FnOnce() -> R) -> R {
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
pub(super) fn count(pfn: Pfn, stat: NodeStat, delta: i64) {
    if let Some(page) = Vmemmap.page(pfn) {
        vmstat::mod_page_state(page, stat, delta);
    }
}

/// A page is dirty now, or no more.
pub(super) fn count_dirty(pfn: Pfn, delta: i64) {
    COUNTS.dirty.fetch_add(delta, Ordering::Relaxed);
    if delta != 0 {
        count(pfn, NodeStat::Dirty, delta);
    }
}
