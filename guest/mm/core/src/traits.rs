//! What the memory manager needs from the machine.

use memvisor_abi::{NodeStat, PageFlags};

use crate::{Gfp, Order, Page, Pageblock, Pfn, PhysAddr, PolicyAt, Trace};

/// The descriptors of all frames (Linux: `pfn_to_page` with `pfn_valid`).
pub trait MemMap: Trace {
    /// The descriptor of `pfn`; `None` for a frame in a hole or in a section that is not online.
    fn page(&self, pfn: Pfn) -> Option<&Page>;

    /// The descriptors of `pfn` and of as many frames after it as lie contiguously in the memmap,
    /// at least to the end of its section where that is known; empty if `pfn` has none. Loops over
    /// ranges use it to look a section up once and not once a frame.
    fn pages(&self, pfn: Pfn) -> &[Page] {
        self.page(pfn).map_or(&[], core::slice::from_ref)
    }

    /// The pageblock that holds `pfn`; `None` where there is no section. A pageblock exists before the
    /// descriptors of its frames do.
    fn pageblock(&self, pfn: Pfn) -> Option<&Pageblock>;
}

/// Word access to RAM by physical address. Safe: an implementation refuses, by panic, addresses
/// outside RAM and frames that belong to Rust objects.
pub trait PhysMem {
    /// Reads the aligned word at `addr`.
    fn read_u64(&self, addr: PhysAddr) -> u64;

    /// Writes the aligned word at `addr`.
    fn write_u64(&self, addr: PhysAddr, value: u64);

    /// Fills the frame with zeroes.
    fn zero_frame(&self, pfn: Pfn);
}

/// The page allocator, as its users in the memory manager see it.
pub trait PageAlloc: Trace {
    /// A block of `2^order` frames near `node`, without a preference if that is `None`. Its first frame has one
    /// reference. `None` if nothing that `gfp` allows makes one free.
    fn alloc_pages(&self, gfp: Gfp, order: Order, node: Option<u32>) -> Option<Pfn>;

    /// [`PageAlloc::alloc_pages`] of a page by a policy; a machine of one node has no use for any (Linux: `vma_alloc_folio`).
    fn alloc_page_policy(&self, gfp: Gfp, _at: PolicyAt) -> Option<Pfn> {
        self.alloc_pages(gfp, Order::ZERO, None)
    }

    /// Drops the last reference of a block (Linux: `__free_pages`).
    fn free_pages(&self, pfn: Pfn, order: Order);

    /// [`PageAlloc::free_pages`] of `count` frames from `first` on, each a block by itself.
    fn free_run(&self, first: Pfn, count: u64) {
        (0..count).for_each(|index| self.free_pages(first.offset(index), Order::ZERO));
    }
}

/// The LRU lists, as those see them who make, use and free pages of programs and of the page cache (Linux: include/linux/swap.h). A machine
/// without reclaim has none and does nothing.
pub trait Folios: MemMap {
    /// A fresh page is complete, and is to come to a list; it has `flags` from now on, which say to which (Linux: `folio_add_lru`).
    /// The caller has a reference.
    fn folio_add_lru(&self, _pfn: Pfn, _page: &Page, _flags: PageFlags) {}

    /// The caller, who has the last reference, frees the page: it is on no list from now on (Linux: `__page_cache_release`).
    fn folio_del_lru(&self, _page: &Page) {}

    /// The page was used by a call, or through an entry that is gone (Linux: the same name).
    fn folio_mark_accessed(&self, _pfn: Pfn, _page: &Page) {}

    /// The anonymous page was given away: it may be dropped before it is written to again (Linux: the same name). The caller maps it.
    fn mark_page_lazyfree(&self, _pfn: Pfn, _page: &Page) {}

    /// The page is in locked memory now, or no more (Linux: `mlock_folio`, `munlock_folio`). The caller has a reference.
    fn set_unevictable(&self, _pfn: Pfn, _page: &Page, _unevictable: bool) {}

    /// A page comes back for which `shadow` was left when it was evicted; it is on no list yet (Linux: the same name).
    fn workingset_refault(&self, _page: &Page, _shadow: u64) {}

    /// Counts a page, by `delta`, among those of its node and zone that are used so (Linux: `mod_lruvec_page_state`). In any context.
    fn mod_page_state(&self, _page: &Page, _stat: NodeStat, _delta: i64) {}
}

/// Data of which every CPU has its own (Linux: `DEFINE_PER_CPU` under `local_lock_irqsave`).
///
/// The closure runs pinned to its CPU and with interrupts off, so it neither moves, sleeps, nor is
/// interrupted by another user of the same data; it must not enter the same data again.
pub trait CpuLocal<T> {
    /// Calls `f` with this CPU's number and data.
    fn with<R>(&self, f: impl FnOnce(u32, &mut T) -> R) -> R;

    /// Calls `f` for the data of every CPU that has any, one after the other, each on that CPU or while
    /// that CPU cannot touch it (Linux: `on_each_cpu`). For drains; the caller holds no lock.
    fn for_each(&self, f: impl FnMut(u32, &mut T));
}
