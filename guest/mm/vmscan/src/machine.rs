//! What the lists and reclaim need from the kernel around them.

use memvisor_abi::{LruKind, Lruvec, VmEvent};
use mm_core::{CpuLocal, MemMap, Order, Page, Pfn, ZoneKind};

use crate::CpuBatches;

/// The kernel, as the LRU lists see it.
pub trait Lru: MemMap + CpuLocal<CpuBatches> {
    /// Calls `f` with the lists of a node and their lock held (Linux: `lru_lock`, with interrupts off).
    fn lruvec<R>(&self, node: u32, f: impl FnOnce(&mut Lruvec) -> R) -> R;

    /// Counts an event of /proc/vmstat (Linux: the same name). Also called with an LRU lock held.
    fn count_vm_events(&self, _event: VmEvent, _count: u64) {}

    /// Whether the lists are those of generations: as of boot, and on every node (Linux: the same name).
    fn lru_gen_enabled(&self) -> bool {
        false
    }

    /// Nanoseconds since boot. Not called with an LRU lock held.
    fn now_ns(&self) -> u64 {
        0
    }
}

/// Who used a page since reclaim asked last (Linux: `folio_referenced`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Referenced {
    /// Entries that were used.
    pub ptes: u32,
    /// Some VMA that maps it is locked (Linux: `VM_LOCKED`).
    pub is_locked: bool,
    /// Some VMA that used it is executable (Linux: `VM_EXEC`).
    pub is_exec: bool,
    /// Somebody else changes who maps it: nothing is known (Linux: -1).
    pub is_contended: bool,
}

/// What became of a page that was to be written (Linux: `pageout_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageOut {
    /// It stays as it is: its owner cannot write now (Linux: `PAGE_KEEP`).
    Keep,
    /// It stays, and is not to be asked about soon (Linux: `PAGE_ACTIVATE`).
    Activate,
    /// Its write began; it is unlocked (Linux: `PAGE_SUCCESS`).
    Success,
    /// It needed no write (Linux: `PAGE_CLEAN`).
    Clean,
}

/// What reclaim does to pages. All are called with the page locked and a reference of the caller's; none is called with an LRU lock held.
pub trait Pages: Lru {
    /// Asks whether the page was used, and forgets it (Linux: `folio_referenced`). The page need not be locked.
    ///
    /// With generations it looks at the entries around those of the page, too, and tells [`crate::folios_update_gen`] of pages that they show to
    /// be in use; one that is on no list becomes REFERENCED (Linux: `lru_gen_look_around`).
    fn folio_referenced(&self, pfn: Pfn, page: &Page) -> Referenced;

    /// Looks through the page tables of all programs for pages of a node that were used, and forgets it: `used` gets them batch by batch. An
    /// address space that cannot be looked at now is passed over (Linux: `walk_mm` of each).
    fn walk_page_tables(&self, _node: u32, _used: &mut dyn FnMut(&[Pfn])) {}

    /// Gives the page a slot of a swap area, marks it dirty and puts it in the swap cache; false without one (Linux: `add_to_swap`).
    fn add_to_swap(&self, pfn: Pfn, page: &Page) -> bool;

    /// Flushes of translations that are put off, until [`Pages::try_to_unmap_flush`] (Linux: `struct tlbflush_unmap_batch`).
    type Unflushed: Default;

    /// Takes the page from all who map it; entries of swap take their place, or nothing (Linux: `try_to_unmap` with `TTU_BATCH_FLUSH`). Whether
    /// nobody maps it now. CPUs may reach the page until the flush: before that it stays locked, is not written, and keeps its frame.
    fn try_to_unmap(&self, pfn: Pfn, page: &Page, unflushed: &mut Self::Unflushed) -> bool;

    /// Has every CPU drop the translations of pages that were unmapped (Linux: the same name).
    fn try_to_unmap_flush(&self, unflushed: &mut Self::Unflushed);

    /// Writes that wait for those that follow them on their device, so that these go as one. Dropping it begins them (Linux: `struct swap_iocb`).
    type Plug: Default;

    /// Begins to write the page, when `plug` is dropped at the latest (Linux: `pageout`). With [`PageOut::Success`] it is unlocked.
    fn pageout(&self, pfn: Pfn, page: &Page, plug: &mut Self::Plug) -> PageOut;

    /// Takes the page from its cache if it is clean and nobody but the cache and the caller has it; `shadow` gives what is to be remembered,
    /// and is called only then (Linux: `__remove_mapping`). No references are left then: [`Pages::free_folio`] ends it. A page
    /// that has no owner any more, whose last reference the caller has, goes the same way.
    fn remove_mapping(&self, pfn: Pfn, page: &Page, shadow: impl FnOnce() -> u64) -> bool;

    /// Frees the page, unlocked, that [`Pages::remove_mapping`] took (Linux: `free_unref_page_list`).
    fn free_folio(&self, pfn: Pfn);

    /// Gives up the page's slot if nobody names it (Linux: `folio_free_swap`).
    fn folio_free_swap(&self, pfn: Pfn, page: &Page) -> bool;

    /// Opens the page's lock and wakes who waits for it (Linux: the same name).
    fn unlock_page(&self, _pfn: Pfn, page: &Page) {
        page.unlock();
    }

    /// Drops the caller's reference; the page need not be locked (Linux: `folio_put`).
    fn folio_put(&self, pfn: Pfn);

    /// Free slots of swap areas (Linux: `get_nr_swap_pages`).
    fn nr_swap_pages(&self) -> u64;

    /// Whether more than half of them are in use (Linux: `vm_swap_full`).
    fn is_vm_swap_full(&self) -> bool;

    /// `vm.swappiness`, 0 to 200 (Linux: `mem_cgroup_swappiness`).
    fn swappiness(&self) -> u32 {
        60
    }
}

/// A watermark of a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Only emergencies go below.
    Min,
    /// kswapd wakes below.
    Low,
    /// kswapd rests above.
    High,
}

/// Why reclaim waits (Linux: `enum vmscan_throttle_state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Throttle {
    /// Writes must end first (Linux: `VMSCAN_THROTTLE_WRITEBACK`).
    Writeback,
    /// Others have too many pages off the lists (Linux: `VMSCAN_THROTTLE_ISOLATED`).
    Isolated,
    /// Nothing could be freed at all (Linux: `VMSCAN_THROTTLE_NOPROGRESS`).
    NoProgress,
    /// Devices cannot take more (Linux: `VMSCAN_THROTTLE_CONGESTED`).
    Congested,
}

/// What reclaim knows of zones and does about nodes.
pub trait Zones: Pages {
    /// Pages that a zone manages; 0 if there is no such zone.
    fn managed_pages(&self, node: u32, zone: ZoneKind) -> u64;

    /// Free pages of a zone.
    fn free_pages(&self, node: u32, zone: ZoneKind) -> u64;

    /// A watermark of a zone, boost included.
    fn watermark(&self, node: u32, zone: ZoneKind, mark: Mark) -> u64;

    /// Whether a block of that order can be had above the mark (Linux: `zone_watermark_ok_safe`).
    fn is_watermark_ok(&self, node: u32, zone: ZoneKind, order: Order, mark: Mark, highest: ZoneKind)
    -> bool;

    /// What fragmentation added to a zone's watermarks (Linux: `watermark_boost`).
    fn watermark_boost(&self, node: u32, zone: ZoneKind) -> u64;

    /// Takes that much off a zone's boost.
    fn lower_boost(&self, node: u32, zone: ZoneKind, by: u64);

    /// Whether compaction would work in a zone, or need not, with what is free (Linux: `compaction_suitable`, other than `COMPACT_SKIPPED`).
    fn is_compaction_ready(&self, node: u32, zone: ZoneKind, order: Order) -> bool;

    /// Asks caches of the kernel for a share of their objects, `1 >> priority` of them; pages freed (Linux: `shrink_slab`).
    fn shrink_slab(&self, node: u32, priority: u8) -> u64;

    /// Waits a while, or until it gets better; returns at once where there is nothing to wait for (Linux: `reclaim_throttle`).
    fn reclaim_throttle(&self, node: u32, why: Throttle);

    /// Dirty pages came to the end of a list: those who write should hurry (Linux: `wakeup_flusher_threads`).
    fn wakeup_flusher_threads(&self);

    /// Lets others run (Linux: `cond_resched`).
    fn cond_resched(&self);

    /// Wakes the compaction thread of a node for a whole pageblock (Linux: `wakeup_kcompactd`).
    fn wakeup_kcompactd(&self, node: u32, highest: ZoneKind);

    /// The zones of a node up to `highest` that have pages.
    fn managed_zones(&self, node: u32, highest: ZoneKind) -> impl Iterator<Item = ZoneKind> {
        let zones = ZoneKind::ALL.into_iter().take_while(move |zone| *zone as u32 <= highest as u32);
        zones.filter(move |zone| self.managed_pages(node, *zone) > 0)
    }

    /// Pages of a zone that reclaim could free (Linux: `zone_reclaimable_pages`).
    fn zone_reclaimable_pages(&self, node: u32, zone: ZoneKind) -> u64 {
        let has_swap = self.nr_swap_pages() > 0;
        self.lruvec(node, |lruvec| {
            let Some(pages) = lruvec.zone_pages.get(zone as usize) else { return 0 };
            let counted = |kind: &LruKind| kind.is_file() || *kind != LruKind::Unevictable && has_swap;
            LruKind::ALL.into_iter().filter(counted).map(|kind| pages[kind as usize]).sum()
        })
    }
}
