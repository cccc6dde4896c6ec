//! What happens when a type has no free block: another type's is stolen, the whole pageblock with it if
//! that keeps types together (Linux 6.1: `__rmqueue_fallback`, `steal_suitable_fallback`).

use memvisor_abi as abi;
use memvisor_abi::{PAGEBLOCK_ORDER, PAGEBLOCK_PAGES, Watermark};
use mm_core::{Event, MemMap, Migratetype, Order, Page, Pfn};

use crate::free::pageblock_type;
use crate::free_list::linked;
use crate::{AllocFlags, Zone};

/// Linux's default `watermark_boost_factor`: fragmentation raises the watermarks by up to 150 % of the
/// high one.
pub const WATERMARK_BOOST_FACTOR: u32 = 15_000;

/// Order of a pageblock.
#[expect(clippy::cast_possible_truncation, reason = "9 fits")]
const PAGEBLOCK: u8 = PAGEBLOCK_ORDER as u8;

/// A type to take a block from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fallback {
    /// The type.
    pub from: Migratetype,
    /// Whether the rest of the pageblock may come along.
    pub can_steal: bool,
}

/// The types to try instead of one, best first (Linux: `fallbacks`).
const fn fallbacks(migratetype: Migratetype) -> [Migratetype; 2] {
    match migratetype {
        Migratetype::Movable => [Migratetype::Reclaimable, Migratetype::Unmovable],
        Migratetype::Reclaimable => [Migratetype::Unmovable, Migratetype::Movable],
        _ => [Migratetype::Reclaimable, Migratetype::Movable],
    }
}

/// Whether an allocation of that type may take over what else is free in the pageblock: allocations that
/// do not move would spoil another pageblock next time (Linux: `can_steal_fallback`).
const fn can_steal_fallback(order: Order, start: Migratetype) -> bool {
    order.as_u8() >= PAGEBLOCK / 2 || matches!(start, Migratetype::Reclaimable | Migratetype::Unmovable)
}

impl Zone {
    /// The type that a block of exactly `order` would be taken from (Linux: `find_suitable_fallback`
    /// without `only_stealable`).
    pub(crate) fn find_suitable_fallback(&self, order: Order, start: Migratetype) -> Option<Fallback> {
        fallbacks(start)
            .into_iter()
            .find(|from| !self.is_empty(order, *from))
            .map(|from| Fallback { from, can_steal: can_steal_fallback(order, start) })
    }

    /// Moves a block of at least `order` from another type's lists to `start`'s. Whether there was one.
    #[cold]
    pub(crate) fn rmqueue_fallback<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        order: Order,
        start: Migratetype,
        flags: AllocFlags,
    ) -> bool {
        map.emit(Event::RmqueueFallback { zone: self.id(), order, migratetype: start as u8 });
        let stolen = self.steal(map, order, start, flags);
        map.emit(Event::RmqueueFallbackRet {
            ok: stolen.is_some(),
            fallback_migratetype: stolen.map_or(start, |(_, from)| from) as u8,
            pfn: stolen.map(|(pfn, _)| pfn),
        });
        stolen.is_some()
    }

    /// The block that changed its lists, and the type that it had.
    fn steal<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        order: Order,
        start: Migratetype,
        flags: AllocFlags,
    ) -> Option<(Pfn, Migratetype)> {
        // Only these types share their memory.
        if !crate::pageblock::is_mergeable(start) {
            return None;
        }
        // Whole pageblocks or nothing, if fragmentation is to be avoided.
        let least = match Order::new(PAGEBLOCK) {
            Some(pageblock) if flags.contains(AllocFlags::NOFRAGMENT) => order.max(pageblock),
            _ => order,
        };
        // The largest block first: with it comes most of a pageblock.
        let largest = Order::all()
            .rev()
            .take_while(|have| *have >= least)
            .find_map(|have| self.find_suitable_fallback(have, start).map(|found| (have, found)));
        let (mut have, mut found) = largest?;
        if !found.can_steal && start == Migratetype::Movable && have > order {
            // Nothing comes along: then the smallest block is the one to break.
            let smallest = Order::all()
                .skip(order.index())
                .find_map(|have| self.find_suitable_fallback(have, start).map(|found| (have, found)));
            if let Some(smallest) = smallest {
                (have, found) = smallest;
            }
        }
        let pfn = Pfn::new(self.list(have, found.from).head);
        self.steal_suitable_fallback(map, pfn, flags, start, found.can_steal);
        let change_ownership = pageblock_type(map, pfn) == start;
        map.emit(Event::MmPageAllocExtfrag {
            pfn,
            alloc_order: order,
            fallback_order: have,
            alloc_migratetype: start as u8,
            fallback_migratetype: found.from as u8,
            change_ownership,
        });
        Some((pfn, found.from))
    }

    /// Gives a free block to another type, with its pageblock if at least half of that is free or alike.
    fn steal_suitable_fallback<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        pfn: Pfn,
        flags: AllocFlags,
        start: Migratetype,
        whole_block: bool,
    ) {
        let order = linked(map, pfn.as_u64()).order();
        let old = pageblock_type(map, pfn);
        let moved = self.take_over(map, pfn, flags, start, whole_block);
        map.emit(Event::StealSuitableFallback {
            pfn,
            order,
            old_migratetype: old as u8,
            new_migratetype: start as u8,
            whole: old != start && pageblock_type(map, pfn) == start,
            moved,
        });
    }

    /// [`Zone::steal_suitable_fallback`], and how many free frames changed their lists.
    fn take_over<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        pfn: Pfn,
        flags: AllocFlags,
        start: Migratetype,
        whole_block: bool,
    ) -> u64 {
        let page = linked(map, pfn.as_u64());
        let order = page.order();
        let old = pageblock_type(map, pfn);
        if old == Migratetype::HighAtomic {
            return self.move_alone(map, (pfn, page), start);
        }
        if order.as_u8() >= PAGEBLOCK {
            for block in 0..order.pages() / PAGEBLOCK_PAGES {
                self.set_pageblock_type(map, pfn.offset(block * PAGEBLOCK_PAGES), start);
            }
            return self.move_alone(map, (pfn, page), start);
        }
        if self.boost_watermark() && flags.contains(AllocFlags::KSWAPD) {
            self.info_mut().flags |= abi::Zone::BOOSTED_WATERMARK;
        }
        if !whole_block {
            return self.move_alone(map, (pfn, page), start);
        }
        let moved = self.move_freepages_block(map, pfn, start);
        if moved.free == 0 {
            // The pageblock reaches beyond the zone.
            return self.move_alone(map, (pfn, page), start);
        }
        let alike = if start == Migratetype::Movable {
            moved.movable
        } else if old == Migratetype::Movable {
            // What is neither free nor movable must be like us.
            PAGEBLOCK_PAGES.saturating_sub(moved.free + moved.movable)
        } else {
            // Unmovable and reclaimable frames cannot be told apart.
            0
        };
        if moved.free + alike >= PAGEBLOCK_PAGES / 2 {
            self.set_pageblock_type(map, pfn, start);
        }
        moved.free
    }

    /// Moves one block to another type's list; its frames.
    fn move_alone<M: MemMap + ?Sized>(&mut self, map: &M, block: (Pfn, &Page), to: Migratetype) -> u64 {
        self.move_to_free_list(map, block, to);
        block.1.order().pages()
    }

    /// Raises the watermarks by a pageblock, so that kswapd frees more and compaction finds room. `false`
    /// where that is off, or the zone too small for it.
    fn boost_watermark(&mut self) -> bool {
        let info = self.info_mut();
        let factor = u64::from(info.watermark_boost_factor);
        if factor == 0 || PAGEBLOCK_PAGES * 4 > info.managed_pages {
            return false;
        }
        let most = info.watermark[Watermark::High as usize].saturating_mul(factor) / 10_000;
        if most == 0 {
            return false;
        }
        let boost = info.watermark_boost.saturating_add(PAGEBLOCK_PAGES);
        info.watermark_boost = boost.min(most.max(PAGEBLOCK_PAGES));
        true
    }
}
