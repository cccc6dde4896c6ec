//! A zone: what it spans, and how a block is taken from its lists. The crate's header lists the invariants.

use memvisor_abi as abi;
use memvisor_abi::{MIGRATE_PCPTYPES, PFN_NONE, ZoneKind};
use mm_core::{Event, MemMap, Migratetype, Order, Page, PageKind, PageState, Pfn, ZoneId};

use crate::AllocFlags;
use crate::free_list::{End, linked};
use crate::pcp::list_index;

/// A zone (Linux: `struct zone`), in the published layout.
#[derive(Clone, Debug)]
#[repr(transparent)]
pub struct Zone(abi::Zone);

impl Zone {
    /// A zone without frames.
    pub const fn new(node: u32, kind: ZoneKind) -> Zone {
        Zone(abi::Zone::new(node, kind))
    }

    /// The published fields.
    #[inline]
    pub const fn info(&self) -> &abi::Zone {
        &self.0
    }

    /// The published fields, for wiring and for seeded faults. Free lists and what counts their frames
    /// belong to the allocator.
    #[inline]
    pub const fn info_mut(&mut self) -> &mut abi::Zone {
        &mut self.0
    }

    /// Says which frames the zone spans, holes included, and how many of them exist.
    pub const fn set_extent(&mut self, start_pfn: Pfn, spanned: u64, present: u64) {
        self.0.start_pfn = start_pfn.as_u64();
        self.0.spanned_pages = spanned;
        self.0.present_pages = present;
    }

    /// Counts `pages` as the allocator's (Linux: `adjust_managed_page_count`).
    pub const fn add_managed(&mut self, pages: u64) {
        self.0.managed_pages += pages;
    }

    /// One past the last frame of the span.
    pub const fn end_pfn(&self) -> Pfn {
        Pfn::new(self.0.start_pfn.saturating_add(self.0.spanned_pages))
    }

    /// Whether `pages` frames from `pfn` lie in the span (Linux: `zone_spans_pfn`).
    pub const fn spans(&self, pfn: Pfn, pages: u64) -> bool {
        match pfn.as_u64().checked_sub(self.0.start_pfn) {
            Some(first) => first < self.0.spanned_pages && pages <= self.0.spanned_pages - first,
            None => false,
        }
    }

    /// Whether the descriptor's links name this zone.
    #[inline]
    pub(crate) fn owns(&self, page: &Page) -> bool {
        page.zone_id() == Page::zone_id_of(self.0.node, self.0.kind)
    }

    /// Takes a block for an allocation of that type (Linux: `rmqueue_buddy` without locks and
    /// watermarks): from the highatomic reserve if the flags allow it and the order is not 0, from the
    /// type's own lists, from contiguous areas if [`AllocFlags::CMA`] is set, else by stealing from
    /// another type. `None` if no list that is allowed has a block.
    ///
    /// Only the head's state is written: [`PageKind::Allocated`], the order, the type of the list that
    /// it came from, and whether the block is known to be zero. References, kind and what an owner needs
    /// are the caller's (Linux: `prep_new_page`). The other frames stay [`PageKind::Tail`].
    #[inline]
    pub fn rmqueue<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        order: Order,
        migratetype: Migratetype,
        flags: AllocFlags,
    ) -> Option<Pfn> {
        let (pfn, from) = self.take(map, order, migratetype, flags)?;
        self.account(from, order.pages().wrapping_neg());
        Some(pfn)
    }

    /// Takes up to `count` blocks of one order, calling `each` for every one, and returns how many there
    /// were (Linux: `rmqueue_bulk`). As [`Zone::rmqueue`] otherwise.
    pub fn rmqueue_bulk<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        order: Order,
        count: u32,
        migratetype: Migratetype,
        flags: AllocFlags,
        mut each: impl FnMut(Pfn, &Page),
    ) -> u32 {
        let mut taken = 0;
        // Whoever traces sees each block.
        let whole = !(map.is_tracing() || flags.contains(AllocFlags::CMA) && self.0.nr_free_cma > 0);
        while taken < count {
            if whole {
                let run = self.rmqueue_run(map, order, count - taken, migratetype, &mut each);
                if run > 0 {
                    taken += run;
                    continue;
                }
            }
            let Some((pfn, from)) = self.rmqueue_any(map, order, migratetype, flags) else { break };
            self.account(from, order.pages().wrapping_neg());
            each(pfn, linked(map, pfn.as_u64()));
            taken += 1;
        }
        taken
    }

    /// Takes the smallest block of a type that suffices, or as much of its lower end as `count` blocks are, apart at once. These are the
    /// blocks that one call after the other would take: each goes on with what the last one left of the block. Returns how many
    /// there were; 0 if no block of the type is larger than one.
    fn rmqueue_run<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        order: Order,
        count: u32,
        migratetype: Migratetype,
        each: &mut impl FnMut(Pfn, &Page),
    ) -> u32 {
        let above = self.nonempty_from(order, migratetype);
        if above < 2 || above & 1 != 0 || count < 2 {
            return 0;
        }
        let parts = above.trailing_zeros().min(count.ilog2());
        let Some(block) = order.plus(parts) else { return 0 };
        let Some(first) = self.rmqueue_smallest(map, block, migratetype) else { return 0 };
        self.account(migratetype, block.pages().wrapping_neg());
        let pages = map.pages(first).iter().step_by(1 << order.as_u8());
        let state = linked(map, first.as_u64()).state();
        let part = PageState::new(PageKind::Allocated, order)
            .with_migratetype(migratetype)
            .with_known_zero(state.is_known_zero());
        let mut taken = 0;
        for page in pages.take(1 << parts) {
            page.set_state(part);
            each(first.offset(u64::from(taken) << order.as_u8()), page);
            taken += 1;
        }
        debug_assert_eq!(taken, 1 << parts, "a block lies in one section");
        taken
    }

    /// Takes a block and makes it an allocated one with one reference, the caller's: what the wiring
    /// does between [`Zone::rmqueue`] and its caller, for boot, tests and faults. The type is
    /// [`Migratetype::Movable`], which all memory is at boot.
    pub fn alloc_block<M: MemMap + ?Sized>(&mut self, map: &M, order: Order) -> Option<Pfn> {
        let pfn = self.rmqueue(map, order, Migratetype::Movable, AllocFlags::default())?;
        let head = linked(map, pfn.as_u64());
        head.set_state(PageState::new(PageKind::Allocated, order));
        head.set_refcount(1);
        Some(pfn)
    }

    fn take<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        order: Order,
        migratetype: Migratetype,
        flags: AllocFlags,
    ) -> Option<(Pfn, Migratetype)> {
        if order > Order::ZERO
            && flags.contains(AllocFlags::HARDER)
            && let Some(pfn) = self.rmqueue_smallest(map, order, Migratetype::HighAtomic)
        {
            return Some((pfn, Migratetype::HighAtomic));
        }
        self.rmqueue_any(map, order, migratetype, flags)
    }

    /// Linux: `__rmqueue`.
    #[inline]
    fn rmqueue_any<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        order: Order,
        migratetype: Migratetype,
        flags: AllocFlags,
    ) -> Option<(Pfn, Migratetype)> {
        // Movable allocations are balanced over contiguous areas and the rest: the areas are used first
        // while they hold more than half of what is free.
        let cma = flags.contains(AllocFlags::CMA);
        if cma
            && self.0.nr_free_cma > self.0.free_pages / 2
            && let Some(pfn) = self.rmqueue_smallest(map, order, Migratetype::Cma)
        {
            return Some((pfn, Migratetype::Cma));
        }
        if let Some(pfn) = self.rmqueue_smallest(map, order, migratetype) {
            return Some((pfn, migratetype));
        }
        if cma && let Some(pfn) = self.rmqueue_smallest(map, order, Migratetype::Cma) {
            return Some((pfn, Migratetype::Cma));
        }
        if self.rmqueue_fallback(map, order, migratetype, flags) {
            return self.rmqueue_smallest(map, order, migratetype).map(|pfn| (pfn, migratetype));
        }
        None
    }

    /// Takes a block from the smallest order that suffices and gives the rest back to the type's lists
    /// (Linux: `__rmqueue_smallest` with `expand`). Does not account.
    #[inline]
    pub(crate) fn rmqueue_smallest<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        order: Order,
        migratetype: Migratetype,
    ) -> Option<Pfn> {
        map.emit(Event::RmqueueSmallest { zone: self.id(), order, migratetype: migratetype as u8 });
        let above = self.nonempty_from(order, migratetype);
        if above == 0 {
            map.emit(Event::RmqueueSmallestRet { pfn: None, found_order: None });
            return None;
        }
        let mut have = order.plus(above.trailing_zeros())?;
        let found = have;
        let list = self.list_mut(have, migratetype);
        let pfn = list.head;
        let head = linked(map, pfn);
        let zero = head.is_known_zero();
        let next = head.next();
        list.head = next;
        list.nr_free = list.nr_free.wrapping_sub(1);
        if next == PFN_NONE {
            list.tail = PFN_NONE;
            self.0.nonempty[migratetype as usize] &= !(1 << have.as_u8());
        } else {
            linked(map, next).set_prev(PFN_NONE);
        }
        let pfn = Pfn::new(pfn);
        // The lists between the two orders are empty, or one of them would have served.
        while let Some(half) = have.down().filter(|_| have > order) {
            let upper = pfn.offset(half.pages());
            let page = linked(map, upper.as_u64());
            map.emit(Event::Expand { pfn: upper, order: half, migratetype: migratetype as u8 });
            self.add_to_free_list(map, (upper, page), half, migratetype, zero, End::Head);
            have = half;
        }
        head.set_state(
            PageState::new(PageKind::Allocated, order).with_migratetype(migratetype).with_known_zero(zero),
        );
        map.emit(Event::MmPageAllocZoneLocked {
            pfn,
            order,
            migratetype: migratetype as u8,
            percpu_refill: list_index(order, migratetype).is_some()
                && (migratetype as usize) < MIGRATE_PCPTYPES,
        });
        map.emit(Event::RmqueueSmallestRet { pfn: Some(pfn), found_order: Some(found) });
        Some(pfn)
    }

    /// The zone in events.
    pub(crate) const fn id(&self) -> ZoneId {
        ZoneId::new(self.0.node, self.0.kind)
    }
}
