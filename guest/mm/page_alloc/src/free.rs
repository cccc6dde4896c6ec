//! How a block comes back to its zone (Linux: `__free_one_page`, `free_pages_prepare`, `split_page`).

use mm_core::{
    Event, EventId, MemMap, Migratetype, Order, PAGEBLOCK_ORDER, PAGEBLOCK_PAGES, Page, PageFlags, PageKind,
    PageState, Pfn,
};

use crate::free_list::{End, TAIL, linked};
use crate::pageblock::is_mergeable;
use crate::{FreeError, Zone};

impl Zone {
    /// Takes back a block of the order it was allocated with, and merges it with its buddies as long
    /// as they are free (Linux: `__free_pages_ok` without locks).
    ///
    /// The caller hands in the last reference: the first frame's refcount is 1 and is dropped here. Only
    /// the first frame is looked at; it may have any kind that is not free, but must be unmapped
    /// (mapcount -1). A frame that memblock reserved becomes freeable as order 0 when `RESERVED` is
    /// cleared (Linux: `free_reserved_page`).
    ///
    /// # Errors
    /// [`FreeError`]; then nothing was changed.
    pub fn free_block<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        pfn: Pfn,
        order: Order,
    ) -> Result<(), FreeError> {
        self.check_place(pfn, order)?;
        let page = self.check_head(map, pfn, order)?;
        page.set_mapping(0);
        page.set_refcount(0);
        page.set_state(TAIL);
        self.free_one_page(map, pfn, order, pageblock_type(map, pfn));
        Ok(())
    }

    /// Hands over `start..end`, whose descriptors are initialised as [`PageKind::Tail`] and which
    /// was never free before, in the largest naturally aligned blocks (Linux: `__free_memory_core`,
    /// `memblock_free_pages`). Reads one descriptor a block of the largest order, and up to 20 more for a
    /// smaller one. Does not count [`Zone::add_managed`].
    ///
    /// # Errors
    /// [`FreeError`] at the first block whose first frame does not fit; blocks before it are free.
    pub fn free_range<M: MemMap + ?Sized>(&mut self, map: &M, start: Pfn, end: Pfn) -> Result<(), FreeError> {
        self.hand_over(map, start, end, false)
    }

    /// [`Zone::free_range`] for RAM that is known to be zero: nobody wrote to it since the machine was made.
    ///
    /// # Errors
    /// As [`Zone::free_range`].
    pub fn free_zero_range<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        start: Pfn,
        end: Pfn,
    ) -> Result<(), FreeError> {
        self.hand_over(map, start, end, true)
    }

    fn hand_over<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        start: Pfn,
        end: Pfn,
        zero: bool,
    ) -> Result<(), FreeError> {
        let mut pfn = start;
        while let Some(left) = end.as_u64().checked_sub(pfn.as_u64()).filter(|left| *left != 0) {
            let fits = left.ilog2().min(pfn.as_u64().trailing_zeros());
            let order = u8::try_from(fits).ok().and_then(Order::new).unwrap_or(Order::MAX);
            self.check_place(pfn, order)?;
            let page = self.check_frame(pfn, map.page(pfn))?;
            match page.kind() {
                PageKind::Tail if block_over(map, pfn, order, is_free).is_none() => {}
                PageKind::Tail | PageKind::Buddy => return Err(FreeError::DoubleFree { pfn }),
                kind => return Err(FreeError::Owned { pfn, kind }),
            }
            page.set_state(TAIL.with_known_zero(zero));
            // At the tail, as Linux does: what boot freed last is not what boot uses next.
            self.merge(map, pfn, order, pageblock_type(map, pfn), Some(End::Tail));
            pfn = pfn.offset(order.pages());
        }
        Ok(())
    }

    /// Makes order-0 blocks, each with a reference, of an allocated block (Linux: `split_page`).
    ///
    /// # Errors
    /// As [`Zone::free_block`], except that the block stays allocated.
    pub fn split_page<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        pfn: Pfn,
        order: Order,
    ) -> Result<(), FreeError> {
        self.check_place(pfn, order)?;
        let head = self.check_head(map, pfn, order)?;
        let single = PageState::new(head.kind(), Order::ZERO);
        for index in 0..order.pages() {
            let page = linked(map, pfn.offset(index).as_u64());
            page.set_state(single);
            page.set_refcount(1);
        }
        Ok(())
    }

    /// Links a block on the list of its pageblock's type, merged upwards (Linux: `__free_one_page`).
    /// Nothing is checked: the block lies in this zone, nobody uses it, its frames but the first are
    /// [`PageKind::Tail`], and no reference is left. Whether it counts as known zero is what the first
    /// frame's state says.
    #[inline]
    pub fn free_one_page<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        pfn: Pfn,
        order: Order,
        migratetype: Migratetype,
    ) {
        if u32::from(order.as_u8()) > PAGEBLOCK_ORDER && self.info().nr_isolate_pageblock != 0 {
            return self.free_by_pageblock(map, pfn, order);
        }
        self.merge(map, pfn, order, migratetype, None);
    }

    /// Frees a block of several pageblocks piece by piece: some may have been isolated since it was allocated (Linux
    /// since 6.10: `split_large_buddy`; before, the first one's type decided for all).
    #[cold]
    fn free_by_pageblock<M: MemMap + ?Sized>(&mut self, map: &M, start: Pfn, order: Order) {
        let Some(piece) = Order::covering(PAGEBLOCK_PAGES) else { return };
        let state = TAIL.with_known_zero(linked(map, start.as_u64()).is_known_zero());
        for index in 0..order.pages() / piece.pages() {
            let pfn = start.offset(index * piece.pages());
            linked(map, pfn.as_u64()).set_state(state);
            self.merge(map, pfn, piece, pageblock_type(map, pfn), None);
        }
    }

    /// Without `end`, Linux's choice: the tail if the next merge is likely, because the buddy's buddy
    /// is free already.
    #[inline]
    fn merge<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        pfn: Pfn,
        order: Order,
        migratetype: Migratetype,
        end: Option<End>,
    ) {
        map.emit(Event::FreeOnePage { pfn, order, migratetype: migratetype as u8, zone: self.id() });
        self.account(migratetype, order.pages());
        let (mut pfn, mut order) = (pfn, order);
        let mut page = linked(map, pfn.as_u64());
        let mut zero = page.is_known_zero();
        while let Some(up) = order.up() {
            let buddy_pfn = pfn.buddy(order);
            let Some(buddy) = self.free_buddy(map, buddy_pfn, order) else {
                self.tell_busy(map, buddy_pfn, order);
                break;
            };
            let state = buddy.state();
            // From here on the two are pageblocks of their own, which may have to stay apart.
            if u32::from(order.as_u8()) >= PAGEBLOCK_ORDER {
                let other = pageblock_type(map, buddy_pfn);
                if other != migratetype && !(is_mergeable(migratetype) && is_mergeable(other)) {
                    break;
                }
            }
            map.emit(Event::BuddyMerge { pfn, buddy: buddy_pfn, order });
            let from = state.migratetype();
            self.del_from_free_list(map, buddy, order, from);
            if from != migratetype {
                self.account(from, order.pages().wrapping_neg());
                self.account(migratetype, order.pages());
            }
            zero &= state.is_known_zero();
            if buddy_pfn < pfn {
                page.set_state(TAIL);
                (pfn, page) = (buddy_pfn, buddy);
            } else {
                buddy.set_state(TAIL);
            }
            order = up;
        }
        let end = end.unwrap_or_else(|| self.choose_end(map, pfn, order));
        self.add_to_free_list(map, (pfn, page), order, migratetype, zero, end);
        let tail = end == End::Tail;
        map.emit(Event::FreeOnePageRet { pfn, order, migratetype: migratetype as u8, tail });
    }

    /// Says why merging ends here.
    #[inline]
    fn tell_busy<M: MemMap + ?Sized>(&self, map: &M, buddy: Pfn, order: Order) {
        if map.wants(EventId::BuddyBusy)
            && let Some(page) = map.page(buddy)
        {
            let (buddy_kind, buddy_order) = (page.kind() as u8, page.order());
            map.emit(Event::BuddyBusy { buddy, order, buddy_kind, buddy_order });
        }
    }

    /// The buddy's head if that is a free block of the same order in this zone (Linux:
    /// `find_buddy_page_pfn`).
    #[inline]
    fn free_buddy<'m, M: MemMap + ?Sized>(&self, map: &'m M, buddy: Pfn, order: Order) -> Option<&'m Page> {
        map.page(buddy).filter(|page| page.state().is_free_block(order) && self.owns(page))
    }

    /// Linux: `buddy_merge_likely`.
    #[inline]
    fn choose_end<M: MemMap + ?Sized>(&self, map: &M, pfn: Pfn, order: Order) -> End {
        let likely = order
            .up()
            .filter(|up| *up < Order::MAX)
            .is_some_and(|up| self.free_buddy(map, pfn.block(up).buddy(up), up).is_some());
        if likely { End::Tail } else { End::Head }
    }

    fn check_place(&self, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        if pfn.block(order) != pfn {
            return Err(FreeError::Misaligned { pfn, order });
        }
        if !self.spans(pfn, order.pages()) {
            return Err(FreeError::OutsideZone { pfn, pages: order.pages() });
        }
        Ok(())
    }

    /// Whether the frame heads an allocated block of this zone and order that only the caller holds.
    fn check_head<'m, M: MemMap + ?Sized>(
        &self,
        map: &'m M,
        pfn: Pfn,
        order: Order,
    ) -> Result<&'m Page, FreeError> {
        let page = self.check_frame(pfn, map.page(pfn))?;
        match page.kind() {
            PageKind::Tail if page.compound_head().is_some() => return Err(FreeError::Tail { pfn }),
            PageKind::Tail if block_over(map, pfn, Order::ZERO, |page| !is_free(page)).is_some() => {
                return Err(FreeError::Tail { pfn });
            }
            PageKind::Buddy | PageKind::Pcp | PageKind::Tail => return Err(FreeError::DoubleFree { pfn }),
            _ => {}
        }
        if order != page.order() {
            return Err(FreeError::WrongOrder { pfn, order, allocated: page.order() });
        }
        if page.refcount() != 1 {
            return Err(FreeError::InUse { pfn, refcount: page.refcount() });
        }
        if page.mapcount() != -1 {
            return Err(FreeError::Mapped { pfn, mapcount: page.mapcount() });
        }
        Ok(page)
    }

    /// Whether a frame has a descriptor, this zone's links and no reservation.
    fn check_frame<'m>(&self, pfn: Pfn, page: Option<&'m Page>) -> Result<&'m Page, FreeError> {
        let page =
            page.filter(|page| page.kind() != PageKind::None).ok_or(FreeError::NoDescriptor { pfn })?;
        if !self.owns(page) {
            return Err(FreeError::WrongZone { pfn, node: page.node(), zone: page.zone() });
        }
        if page.has(PageFlags::RESERVED) {
            return Err(FreeError::Reserved { pfn });
        }
        Ok(page)
    }
}

/// The type of the pageblock that a frame lies in (Linux: `get_pfnblock_migratetype`). A frame without
/// section is nobody's to allocate.
#[inline]
pub(crate) fn pageblock_type<M: MemMap + ?Sized>(map: &M, pfn: Pfn) -> Migratetype {
    map.pageblock(pfn).map_or(Migratetype::Isolate, mm_core::Pageblock::migratetype)
}

/// Whether a head's block is on a zone's list.
pub(crate) fn is_free(page: &Page) -> bool {
    page.kind() == PageKind::Buddy
}

/// The block of an order above `order` that covers `pfn` and whose head `accept`s. Nothing to look up for
/// the largest.
pub(crate) fn block_over<M: MemMap + ?Sized>(
    map: &M,
    pfn: Pfn,
    order: Order,
    accept: impl Fn(&Page) -> bool,
) -> Option<Pfn> {
    Order::all().skip(order.index() + 1).map(|above| (above, pfn.block(above))).find_map(|(above, head)| {
        let page = map.page(head)?;
        let heads = !matches!(page.kind(), PageKind::Tail | PageKind::None);
        (heads && page.order() >= above && accept(page)).then_some(head)
    })
}
