//! Pageblocks: 512 frames that hold allocations of one type as far as possible (Linux: "grouping pages by
//! mobility").

use mm_core::{Event, MemMap, Migratetype, PAGEBLOCK_PAGES, PageKind, Pfn, is_movable_page};

use crate::Zone;
use crate::free::pageblock_type;

/// What [`Zone::move_freepages_block`] found in a pageblock, in frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    /// Free frames, all of which were moved.
    pub free: u64,
    /// Allocated frames whose contents could be moved away.
    pub movable: u64,
}

/// Whether blocks of pageblocks of this type may merge with those of another (Linux:
/// `migratetype_is_mergeable`).
pub(crate) const fn is_mergeable(migratetype: Migratetype) -> bool {
    matches!(migratetype, Migratetype::Unmovable | Migratetype::Movable | Migratetype::Reclaimable)
}

/// The first frame of the pageblock that holds `pfn`.
pub(crate) const fn pageblock_start(pfn: Pfn) -> Pfn {
    Pfn::new(pfn.as_u64() & !(PAGEBLOCK_PAGES - 1))
}

impl Zone {
    /// Sets the type of the pageblock that holds `pfn` and keeps count of the isolated ones (Linux:
    /// `set_pageblock_migratetype`). Free blocks stay on their lists.
    pub(crate) fn set_pageblock_type<M: MemMap + ?Sized>(&mut self, map: &M, pfn: Pfn, to: Migratetype) {
        if let Some(block) = map.pageblock(pfn) {
            block.set_migratetype(to);
        }
    }

    /// Moves every free block of a pageblock to the lists of a type; the pageblock keeps its own (Linux:
    /// `move_freepages_block`). Nothing is moved if the pageblock reaches beyond the zone's end.
    ///
    /// Differs from Linux: a block of movable frames counts with all its frames, not with its head alone.
    pub(crate) fn move_freepages_block<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        pfn: Pfn,
        to: Migratetype,
    ) -> Moved {
        let start = pageblock_start(pfn);
        let end = start.offset(PAGEBLOCK_PAGES);
        let mut at = if self.spans(start, 1) { start } else { pfn };
        let mut moved = Moved::default();
        if !self.spans(at, end.as_u64() - at.as_u64()) {
            return moved;
        }
        while at < end {
            let Some(page) = map.page(at).filter(|page| self.owns(page)) else {
                at = at.offset(1);
                continue;
            };
            let pages = match page.kind() {
                PageKind::None | PageKind::Tail => 1,
                _ => page.order().pages(),
            };
            if page.kind() == PageKind::Buddy {
                if page.migratetype() != to {
                    self.move_to_free_list(map, (at, page), to);
                }
                moved.free += pages;
            } else if is_movable_page(page) {
                moved.movable += pages;
            }
            at = at.offset(pages);
        }
        moved
    }

    /// Keeps the pageblock of a block that a high-order atomic allocation got for the next such, as
    /// long as the reserve is below a pageblock plus 1 % of the zone (Linux:
    /// `reserve_highatomic_pageblock`).
    pub fn reserve_highatomic_pageblock<M: MemMap + ?Sized>(&mut self, map: &M, pfn: Pfn) {
        let most = self.info().managed_pages / 100 + PAGEBLOCK_PAGES;
        if self.info().nr_reserved_highatomic >= most || !is_mergeable(pageblock_type(map, pfn)) {
            return;
        }
        self.info_mut().nr_reserved_highatomic += PAGEBLOCK_PAGES;
        self.set_pageblock_type(map, pfn, Migratetype::HighAtomic);
        self.move_freepages_block(map, pfn, Migratetype::HighAtomic);
        let reserved = self.info().nr_reserved_highatomic;
        map.emit(Event::ReserveHighatomic { zone: self.id(), pfn, reserved });
    }

    /// Gives a pageblock of the highatomic reserve that has free blocks to type `to`, the last one only
    /// by `force`. Whether anything free came of it (Linux: `unreserve_highatomic_pageblock` for one
    /// zone).
    pub fn unreserve_highatomic_pageblock<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        to: Migratetype,
        force: bool,
    ) -> bool {
        if !force && self.info().nr_reserved_highatomic <= PAGEBLOCK_PAGES {
            return false;
        }
        for order in mm_core::Order::all() {
            let head = self.list(order, Migratetype::HighAtomic).head;
            if head == memvisor_abi::PFN_NONE {
                continue;
            }
            let pfn = Pfn::new(head);
            if pageblock_type(map, pfn) == Migratetype::HighAtomic {
                let info = self.info_mut();
                info.nr_reserved_highatomic = info.nr_reserved_highatomic.saturating_sub(PAGEBLOCK_PAGES);
            }
            self.set_pageblock_type(map, pfn, to);
            let reserved = self.info().nr_reserved_highatomic;
            map.emit(Event::UnreserveHighatomic { zone: self.id(), pfn, reserved });
            if self.move_freepages_block(map, pfn, to).free > 0 {
                return true;
            }
        }
        false
    }
}
