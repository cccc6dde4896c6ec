//! The free scanner: downwards, looking for free pages to move to (Linux: `isolate_freepages`,
//! `isolate_freepages_block`, `__isolate_free_page`).

use memvisor_abi::{VmEvent, Watermark};
use mm_core::{
    Event, MemMap, Migratetype, Order, PAGEBLOCK_ORDER, PAGEBLOCK_PAGES, Page, PageKind, PageState, Pfn,
    Trace,
};

use super::Control;
use crate::Zone;
use crate::alloc::{Machine, PageAllocator, PageList};
use crate::free::{is_free, pageblock_type};
use crate::migrate::{CLUSTER_MAX, NewPages};
use crate::pageblock::{is_mergeable, pageblock_start};

/// A run's isolated free pages as targets (Linux: `compaction_alloc`, `compaction_free`).
pub(super) struct FreePages<'a, M> {
    pages: &'a PageAllocator<M>,
    control: &'a mut Control,
    /// Pages that are being moved.
    wanted: usize,
}

impl<'a, M: Machine> FreePages<'a, M> {
    pub(super) const fn new(
        pages: &'a PageAllocator<M>,
        control: &'a mut Control,
        wanted: usize,
    ) -> FreePages<'a, M> {
        FreePages { pages, control, wanted }
    }
}

impl<M: Machine> NewPages for FreePages<'_, M> {
    fn new_page(&mut self, _: Pfn, order: Order) -> Option<Pfn> {
        // The migration scanner takes single pages only.
        if order > Order::ZERO {
            return None;
        }
        if self.control.free_pages.len == 0 {
            self.pages.isolate_freepages(self.control, self.wanted);
        }
        self.control.free_pages.pop(self.pages.machine.map())
    }

    fn put_new_page(&mut self, pfn: Pfn, _: Order) {
        self.control.free_pages.push(self.pages.machine.map(), pfn);
    }
}

/// What one pageblock gave.
struct Found {
    pages: PageList,
    scanned: u64,
    /// Where the scan ended; the block's end if it went through.
    next: Pfn,
}

impl<M: Machine> PageAllocator<M> {
    /// Isolates at least as many free pages as are to be moved, if there are as many above the migration scanner.
    fn isolate_freepages(&self, control: &mut Control, wanted: usize) {
        let map = self.machine.map();
        let mut from = control.free_pfn;
        let mut block = pageblock_start(from);
        let low = pageblock_start(control.migrate_pfn).offset(PAGEBLOCK_PAGES);
        // Not waiting, look at samples first.
        let mut stride = if control.goal.mode.is_sync() { 1 } else { CLUSTER_MAX as u64 };
        while block >= low {
            let end = block.offset(PAGEBLOCK_PAGES).min(control.end);
            if self.is_pageblock_of(control, block)
                && control.is_suitable_target(map, block)
                && control.is_worth_scanning(map, block)
            {
                let found =
                    self.isolate_freepages_block(control, from.max(control.start), end, wanted, stride);
                let taken = found.pages.len;
                control.free_pages.append(map, found.pages);
                from = found.next;
                if from == end {
                    self.machine.with_zone(control.goal.zone, |zone| zone.skip_target(map, block));
                }
                if control.free_pages.len >= wanted || from < end {
                    if from >= end {
                        from = Pfn::new(block.as_u64().saturating_sub(PAGEBLOCK_PAGES));
                    }
                    break;
                }
                stride = if taken > 0 { 1 } else { (stride << 1).min(CLUSTER_MAX as u64) };
            }
            block = Pfn::new(block.as_u64().saturating_sub(PAGEBLOCK_PAGES));
            from = block;
        }
        control.free_pfn = from;
    }

    /// Isolates free pages of `start..end`, one pageblock, until there are enough or none may be taken.
    fn isolate_freepages_block(
        &self,
        control: &mut Control,
        start: Pfn,
        end: Pfn,
        wanted: usize,
        stride: u64,
    ) -> Found {
        let map = self.machine.map();
        let missing = wanted.saturating_sub(control.free_pages.len);
        let mut found = Found { pages: PageList::EMPTY, scanned: 0, next: start };
        self.with_zone(control.goal.zone, |zone| {
            while found.next < end {
                let pfn = found.next;
                found.scanned += 1;
                let page = map.page(pfn).filter(|page| is_free(page) && zone.owns(page));
                let Some(page) = page else {
                    found.next = pfn.offset(stride).min(end);
                    continue;
                };
                let order = page.order();
                if !zone.isolate_free_page(map, pfn, page) {
                    break;
                }
                found.scanned += order.pages() - 1;
                (0..order.pages()).for_each(|index| found.pages.push(map, pfn.offset(index)));
                found.next = pfn.offset(order.pages()).min(end);
                if found.pages.len >= missing {
                    break;
                }
            }
        });
        let taken = found.pages.len as u64;
        map.emit(Event::MmCompactionIsolateFreepages {
            start_pfn: start,
            end_pfn: found.next,
            nr_scanned: found.scanned,
            nr_taken: taken,
        });
        control.free_scanned += found.scanned;
        if taken > 0 {
            self.count(VmEvent::CompactIsolated, taken);
        }
        found
    }

    /// Frees what was isolated and not used; the highest frame of it (Linux: `release_freepages`).
    pub(super) fn release_freepages(&self, control: &mut Control) -> Option<Pfn> {
        let mut highest = None;
        while let Some(pfn) = control.free_pages.pop(self.machine.map()) {
            highest = highest.max(Some(pfn));
            self.release(pfn);
        }
        highest
    }
}

impl Control {
    /// Whether pages may be moved to the block (Linux: `suitable_migration_target`). An isolated pageblock belongs to
    /// whoever isolated it.
    fn is_suitable_target<M: MemMap + ?Sized>(&self, map: &M, block: Pfn) -> bool {
        let free = |page: &Page| is_free(page) && u32::from(page.order().as_u8()) >= PAGEBLOCK_ORDER;
        if map.page(block).is_some_and(free) {
            return false;
        }
        match pageblock_type(map, block) {
            Migratetype::Movable | Migratetype::Cma => true,
            Migratetype::Isolate => false,
            _ => self.goal.ignore_block_suitable,
        }
    }
}

impl Zone {
    /// Takes a free block off its list and makes single allocated pages of it, if the zone stays above its min watermark
    /// (Linux: `__isolate_free_page`, `split_map_pages`). A pageblock of which that is half becomes movable.
    fn isolate_free_page<M: MemMap + ?Sized>(&mut self, map: &M, pfn: Pfn, page: &Page) -> bool {
        let (order, from) = (page.order(), page.migratetype());
        if from == Migratetype::Isolate || page.kind() != PageKind::Buddy {
            return false;
        }
        let info = self.info();
        let mark = info.watermark[Watermark::Min as usize]
            .saturating_add(info.watermark_boost)
            .saturating_add(order.pages());
        // Any request counts here, whatever zones it may use: nothing is kept for others.
        if info.free_pages.saturating_sub(info.nr_reserved_highatomic) <= mark {
            return false;
        }
        self.del_from_free_list(map, page, order, from);
        self.account(from, order.pages().wrapping_neg());
        if u32::from(order.as_u8()) + 1 >= PAGEBLOCK_ORDER {
            let mut block = pfn;
            while block < pfn.offset(order.pages()) {
                if is_mergeable(pageblock_type(map, block)) {
                    self.set_pageblock_type(map, block, Migratetype::Movable);
                }
                block = block.offset(PAGEBLOCK_PAGES);
            }
        }
        let single = PageState::new(PageKind::Allocated, Order::ZERO).with_migratetype(Migratetype::Movable);
        for index in 0..order.pages() {
            if let Some(page) = map.page(pfn.offset(index)) {
                page.set_state(single);
                page.set_refcount(1);
            }
        }
        true
    }

    /// The free scanner is through with a pageblock (Linux: `update_pageblock_skip`).
    fn skip_target<M: MemMap + ?Sized>(&mut self, map: &M, block: Pfn) {
        self.skip_pageblock(map, block);
        let info = self.info_mut();
        info.compact_cached_free_pfn = info.compact_cached_free_pfn.min(block.as_u64()).max(info.start_pfn);
    }
}
