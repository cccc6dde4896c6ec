//! What swap needs from the kernel around it.

use core::ops::DerefMut;
use core::sync::atomic::AtomicI64;
use core::sync::atomic::Ordering::Relaxed;

use mm_core::{CpuLocal, MemMap, Page, Pfn};

use crate::{Cluster, SwapEntry, SwapInfo, SwapList, Word};

/// Where a CPU goes on to take slots (Linux: `percpu_swap_cluster`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuCluster {
    pub(crate) area: u32,
    /// 0, the header, for nowhere.
    pub(crate) next: u64,
}

impl CpuCluster {
    /// Nowhere yet.
    pub const NOWHERE: CpuCluster = CpuCluster { area: 0, next: 0 };
}

/// Slots of all areas that give them out.
#[derive(Debug, Default)]
pub struct Totals {
    nr_swap_pages: AtomicI64,
    total_swap_pages: AtomicI64,
}

impl Totals {
    /// No area.
    pub const fn new() -> Totals {
        Totals { nr_swap_pages: AtomicI64::new(0), total_swap_pages: AtomicI64::new(0) }
    }

    /// Free slots; below what is there for a moment while an area goes (Linux: `get_nr_swap_pages`).
    pub fn nr_swap_pages(&self) -> u64 {
        u64::try_from(self.nr_swap_pages.load(Relaxed)).unwrap_or(0)
    }

    /// Slots (Linux: `total_swap_pages`).
    pub fn total_swap_pages(&self) -> u64 {
        u64::try_from(self.total_swap_pages.load(Relaxed)).unwrap_or(0)
    }

    /// Whether more than half is in use, so that copies of pages in memory are better given up (Linux: `vm_swap_full`).
    pub fn is_vm_swap_full(&self) -> bool {
        self.nr_swap_pages().saturating_mul(2) < self.total_swap_pages()
    }

    pub(crate) fn add_free(&self, pages: i64) {
        self.nr_swap_pages.fetch_add(pages, Relaxed);
    }

    pub(crate) fn add_total(&self, pages: i64) {
        self.total_swap_pages.fetch_add(pages, Relaxed);
    }
}

/// The kernel, as swap sees it.
pub trait Swap: MemMap + CpuLocal<CpuCluster> {
    /// The word of a slot.
    type Word: Word;
    /// The table of an area's clusters.
    type Clusters: DerefMut<Target = [Cluster]>;

    /// The words of an area, from slot 0 on; none if there is no such area. They stay until nobody who asked before the area left
    /// can be looking (Linux: `get_swap_device`).
    fn slots(&self, area: u32) -> &[Self::Word];

    /// Calls `f` with the area's lock held (Linux: `si->lock`), or not at all if there is no such area.
    fn with_area<R>(&self, area: u32, f: impl FnOnce(&mut SwapInfo<Self::Clusters>) -> R) -> Option<R>;

    /// Calls `f` with the lock of the list of areas held (Linux: `swap_lock`, `swap_avail_lock`).
    fn with_list<R>(&self, f: impl FnOnce(&mut SwapList) -> R) -> R;

    /// The sums over all areas.
    fn totals(&self) -> &Totals;

    /// A page came into the swap cache to be read, and comes to a list; `shadow` is what was remembered of its eviction, or 0 (Linux:
    /// `workingset_refault`, `folio_add_lru`).
    fn swapped_in(&self, _pfn: Pfn, _shadow: u64) {}

    /// Nobody uses the slot any more, and nobody gets it before this returns: what is kept of its page elsewhere goes (Linux:
    /// `frontswap_invalidate_page`).
    fn invalidate_page(&self, _entry: SwapEntry) {}

    /// Counts a page that came into the swap cache, or left it (Linux: `NR_SWAPCACHE`, `NR_FILE_PAGES`).
    fn count_cached(&self, _page: &Page, _delta: i64) {}

    /// Drops the lock of a page, and wakes those who wait for it (Linux: `unlock_page`).
    fn unlock_page(&self, pfn: Pfn) {
        if let Some(page) = self.page(pfn) {
            page.unlock();
        }
    }
}
