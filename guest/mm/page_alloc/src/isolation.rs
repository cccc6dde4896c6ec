//! Taking pageblocks out of the allocator for a while (Linux: mm/page_isolation.c).

use mm_core::{MemMap, Migratetype, Order, PAGEBLOCK_ORDER, PAGEBLOCK_PAGES, PageKind, Pfn};

use crate::Zone;
use crate::free::{block_over, is_free, pageblock_type};

impl Zone {
    /// Stops allocation from the pageblock that holds `pfn`: its free blocks are no longer free, and what
    /// is freed in it does not become free either (Linux: `set_migratetype_isolate` without the
    /// search for unmovable frames). `false` if it is isolated already, or reaches beyond the zone.
    ///
    /// A free block that covers more than the pageblock is cut first.
    pub fn set_migratetype_isolate<M: MemMap + ?Sized>(&mut self, map: &M, pfn: Pfn) -> bool {
        let start = crate::pageblock::pageblock_start(pfn);
        let old = pageblock_type(map, start);
        if old == Migratetype::Isolate || !self.spans(start, PAGEBLOCK_PAGES) {
            return false;
        }
        self.cut_free_block(map, start);
        self.set_pageblock_type(map, start, Migratetype::Isolate);
        self.info_mut().nr_isolate_pageblock += 1;
        self.move_freepages_block(map, start, Migratetype::Isolate);
        self.merge_pageblock(map, start, Migratetype::Isolate);
        true
    }

    /// Gives an isolated pageblock back as one of type `to` (Linux: `unset_migratetype_isolate`). `false` if
    /// it is not isolated.
    pub fn unset_migratetype_isolate<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        pfn: Pfn,
        to: Migratetype,
    ) -> bool {
        let start = crate::pageblock::pageblock_start(pfn);
        if pageblock_type(map, start) != Migratetype::Isolate {
            return false;
        }
        // Pageblocks that are isolated together may be one free block; the others of it stay isolated.
        self.cut_free_block(map, start);
        self.set_pageblock_type(map, start, to);
        let info = self.info_mut();
        info.nr_isolate_pageblock = info.nr_isolate_pageblock.saturating_sub(1);
        self.move_freepages_block(map, start, to);
        self.merge_pageblock(map, start, to);
        true
    }

    /// Whether every frame of `start..end` is in a free block that is isolated (Linux:
    /// `test_pages_isolated`); else the first that is not.
    ///
    /// # Errors
    /// That frame.
    pub fn test_pages_isolated<M: MemMap + ?Sized>(&self, map: &M, start: Pfn, end: Pfn) -> Result<(), Pfn> {
        let mut at = start;
        while at < end {
            let head = map.page(at).filter(|page| is_free(page)).map(|_| at);
            let head = head.or_else(|| block_over(map, at, Order::ZERO, is_free)).ok_or(at)?;
            let page = map.page(head).ok_or(at)?;
            if page.migratetype() != Migratetype::Isolate || page.kind() != PageKind::Buddy {
                return Err(at);
            }
            at = head.offset(page.order().pages());
        }
        Ok(())
    }

    /// Merges a pageblock that is free as a whole and changed its type: its buddy may be of that type.
    fn merge_pageblock<M: MemMap + ?Sized>(&mut self, map: &M, start: Pfn, migratetype: Migratetype) {
        let Some(page) = map.page(start).filter(|page| is_free(page)) else { return };
        let order = page.order();
        if u32::from(order.as_u8()) < PAGEBLOCK_ORDER || order == Order::MAX {
            return;
        }
        let zero = page.is_known_zero();
        self.del_from_free_list(map, page, order, migratetype);
        self.account(migratetype, order.pages().wrapping_neg());
        page.set_state(crate::free_list::TAIL.with_known_zero(zero));
        self.free_one_page(map, start, order, migratetype);
    }

    /// Makes pageblocks of the free block that covers the one at `start`, if it is larger.
    fn cut_free_block<M: MemMap + ?Sized>(&mut self, map: &M, start: Pfn) {
        let Some(pageblock) = Order::covering(PAGEBLOCK_PAGES) else { return };
        let covers = |pfn: &Pfn| map.page(*pfn).is_some_and(|page| is_free(page) && page.order() > pageblock);
        let head = Some(start).filter(covers).or_else(|| block_over(map, start, pageblock, is_free));
        let Some(head) = head else { return };
        let Some(page) = map.page(head) else { return };
        let (order, from, zero) = (page.order(), page.migratetype(), page.is_known_zero());
        self.del_from_free_list(map, page, order, from);
        let mut at = head;
        while at < head.offset(order.pages()) {
            if let Some(page) = map.page(at) {
                self.add_to_free_list(map, (at, page), pageblock, from, zero, crate::free_list::End::Tail);
            }
            at = at.offset(PAGEBLOCK_PAGES);
        }
    }
}
