//! The migration scanner: upwards, looking for pages that can move (Linux: `isolate_migratepages`,
//! `isolate_migratepages_block`).

use memvisor_abi::VmEvent;
use mm_core::{Event, MemMap, Migratetype, Order, PAGEBLOCK_PAGES, PageKind, Pfn, Trace, is_movable_page};

use super::{Control, Isolated, is_pageblock_start};
use crate::alloc::{Machine, PageAllocator};
use crate::free::pageblock_type;
use crate::migrate::{CLUSTER_MAX, frames_of};
use crate::pageblock::pageblock_start;

/// Counts of one pageblock's scan.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    scanned: u64,
    taken: u64,
}

impl<M: Machine> PageAllocator<M> {
    /// Isolates pages of the next pageblock that has some, below the free scanner.
    pub(super) fn isolate_migratepages(&self, control: &mut Control) -> Isolated {
        let map = self.machine.map();
        loop {
            let low = control.migrate_pfn;
            let block_end = pageblock_start(low).offset(PAGEBLOCK_PAGES);
            if block_end > control.free_pfn {
                break;
            }
            let from_start = is_pageblock_start(low) || low == control.start;
            let skipped = from_start && !control.is_worth_scanning(map, low);
            if !skipped && self.is_pageblock_of(control, low) {
                if control.is_suitable_source(map, low) {
                    self.isolate_migratepages_block(control, block_end);
                    break;
                }
                let (mode, end) = (control.goal.mode, block_end.min(control.end));
                self.machine.with_zone(control.goal.zone, |zone| zone.update_cached_migrate(mode, end));
            }
            control.migrate_pfn = block_end;
        }
        if control.migrate_pages.len > 0 { Isolated::Pages } else { Isolated::Nothing }
    }

    /// Whether the pageblock that holds `pfn` is online and the zone's at both ends, as far as the zone reaches (Linux:
    /// `pageblock_pfn_to_page`).
    pub(super) fn is_pageblock_of(&self, control: &Control, pfn: Pfn) -> bool {
        let map = self.machine.map();
        let first = pageblock_start(pfn).max(control.start);
        let end = pageblock_start(pfn).offset(PAGEBLOCK_PAGES).min(control.end);
        let ours = |pfn| {
            map.page(pfn).is_some_and(|page| {
                page.kind() != PageKind::None && crate::alloc::zone_index(page) == control.goal.zone
            })
        };
        first < end && ours(first) && ours(Pfn::new(end.as_u64() - 1))
    }

    /// Isolates pages from where the scanner is, up to a cluster of them unless the block is scanned again. Moves the
    /// scanner.
    fn isolate_migratepages_block(&self, control: &mut Control, end: Pfn) {
        let map = self.machine.map();
        let start = control.migrate_pfn;
        let mode = control.goal.mode;
        // Not waiting for anything, a block is given up at the first page in it that stays.
        let give_up = control.goal.order.filter(|_| control.goal.direct && !mode.is_sync());
        let mut block_end = give_up.map(|order| start.block(order).offset(order.pages()));
        let mut tally = Tally::default();
        let mut pfn = start;
        while pfn < end {
            if let Some((order, last)) = give_up.zip(block_end)
                && pfn >= last
            {
                // The block before is wholly movable: try it.
                if tally.taken > 0 {
                    break;
                }
                block_end = Some(pfn.block(order).offset(order.pages()));
            }
            tally.scanned += 1;
            let Some(page) = map.page(pfn) else {
                pfn = pfn.offset(1);
                continue;
            };
            let frames = frames_of(page);
            match page.kind() {
                // Free already. A frame of a free block that was passed, if the block was cut meanwhile.
                PageKind::Buddy | PageKind::Tail => pfn = pfn.offset(frames),
                _ if page.order() == Order::ZERO
                    && is_movable_page(page)
                    && crate::alloc::zone_index(page) == control.goal.zone
                    && self.isolate_movable_page(pfn, mode) =>
                {
                    control.migrate_pages.push(map, pfn);
                    tally.taken += 1;
                    pfn = pfn.offset(1);
                    if control.migrate_pages.len >= CLUSTER_MAX && !control.rescan {
                        break;
                    }
                }
                _ => {
                    pfn = pfn.offset(frames);
                    if let Some(last) = block_end {
                        self.putback_movable_pages(&mut control.migrate_pages);
                        tally.taken = 0;
                        pfn = pfn.max(last);
                    }
                }
            }
        }
        control.migrate_pfn = pfn.min(end);
        self.note_scan(control, start, end, tally);
    }

    /// Keeps hints, positions and counts after the scan of a block.
    fn note_scan(&self, control: &mut Control, start: Pfn, end: Pfn, tally: Tally) {
        let map = self.machine.map();
        if control.migrate_pfn == end && (tally.taken == 0 || control.rescan) {
            let mode = control.goal.mode;
            let position = end.min(control.end);
            self.machine.with_zone(control.goal.zone, |zone| {
                if is_pageblock_start(start) {
                    zone.skip_pageblock(map, start);
                }
                zone.update_cached_migrate(mode, position);
            });
        }
        map.emit(Event::MmCompactionIsolateMigratepages {
            start_pfn: start,
            end_pfn: control.migrate_pfn,
            nr_scanned: tally.scanned,
            nr_taken: tally.taken,
        });
        control.migrate_scanned += tally.scanned;
        if tally.taken > 0 {
            self.count(VmEvent::CompactIsolated, tally.taken);
        }
    }
}

impl Control {
    /// Whether pages of the block should go (Linux: `suitable_migration_source`).
    fn is_suitable_source<M: MemMap + ?Sized>(&self, map: &M, pfn: Pfn) -> bool {
        if self.goal.mode.is_sync() || !self.goal.direct {
            return true;
        }
        let block = pageblock_type(map, pfn);
        if self.goal.migratetype == Migratetype::Movable {
            matches!(block, Migratetype::Movable | Migratetype::Cma)
        } else {
            block == self.goal.migratetype
        }
    }
}
