//! A zone and its buddy allocator. The crate's header lists the invariants.

use memvisor_abi as abi;
use memvisor_abi::{FreeArea, MAX_NR_ZONES, NR_ORDERS, PFN_NONE, ZoneKind};
use mm_core::{MemMap, Order, Page, PageFlags, PageKind, Pfn};

use crate::FreeError;
use crate::free_list::{self, End, linked};

/// A zone (Linux: `struct zone`), in the published layout.
#[derive(Clone, Debug)]
#[repr(transparent)]
pub struct Zone(abi::Zone);

impl Zone {
    /// A zone without frames.
    pub const fn new(node: u32, kind: ZoneKind) -> Zone {
        const EMPTY: FreeArea = FreeArea { head: PFN_NONE, tail: PFN_NONE, nr_free: 0 };
        Zone(abi::Zone {
            node,
            kind: kind as u32,
            start_pfn: 0,
            spanned_pages: 0,
            present_pages: 0,
            managed_pages: 0,
            free_pages: 0,
            deferred_pages: 0,
            watermark: [0; 3],
            lowmem_reserve: [0; MAX_NR_ZONES],
            free_area: [EMPTY; NR_ORDERS],
        })
    }

    /// The published fields.
    pub const fn info(&self) -> &abi::Zone {
        &self.0
    }

    /// The published fields, for wiring and for seeded faults. Free lists and `free_pages` belong to
    /// the allocator.
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

    /// Whether `pages` frames from `pfn` lie in the span (Linux: `zone_spans_pfn`).
    pub const fn spans(&self, pfn: Pfn, pages: u64) -> bool {
        match pfn.as_u64().checked_sub(self.0.start_pfn) {
            Some(first) => first < self.0.spanned_pages && pages <= self.0.spanned_pages - first,
            None => false,
        }
    }

    /// Takes a block from the smallest order that suffices and gives the rest back to the lists
    /// (Linux: `__rmqueue_smallest` with `expand`). `None` if there is no block.
    ///
    /// The frames become [`PageKind::Allocated`]; the first has the block's order and one reference,
    /// the caller's. Contents are what the last owner left.
    pub fn alloc_block<M: MemMap + ?Sized>(&mut self, map: &M, order: Order) -> Option<Pfn> {
        let pfn = self.take(map, order)?;
        let head = linked(map, pfn.as_u64());
        head.set_order(order);
        head.set_refcount(1);
        if order == Order::ZERO {
            head.set_kind(PageKind::Allocated);
        } else {
            for_each_page(map, pfn, order, |_, page| page.set_kind(PageKind::Allocated));
        }
        Some(pfn)
    }

    /// Takes back a block of the order it was allocated with, and merges it with its buddies as long
    /// as they are free (Linux: `free_pages_prepare` and `__free_one_page`).
    ///
    /// The caller hands in the last reference: the first frame's refcount is 1 and is dropped here.
    /// Frames may have any kind that is not free, but must be unmapped (mapcount -1). A frame that
    /// memblock reserved becomes freeable as order 0 when `RESERVED` is cleared (Linux:
    /// `free_reserved_page`).
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
        if order == Order::ZERO {
            // The common case, with one look at the memmap.
            let page = self.check_page(pfn, map.page(pfn), Some(order))?;
            retire(page);
        } else {
            self.check_block(map, pfn, order)?;
            for_each_page(map, pfn, order, |_, page| retire(page));
        }
        self.link_free(map, pfn, order, None);
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
        let mut pfn = start;
        while let Some(left) = end.as_u64().checked_sub(pfn.as_u64()).filter(|left| *left != 0) {
            let fits = left.ilog2().min(pfn.as_u64().trailing_zeros());
            let order = u8::try_from(fits).ok().and_then(Order::new).unwrap_or(Order::MAX);
            self.check_place(pfn, order)?;
            let page = self.check_frame(pfn, map.page(pfn))?;
            match page.kind() {
                PageKind::Tail if free_block_over(map, pfn, order).is_none() => {}
                PageKind::Tail | PageKind::Buddy => return Err(FreeError::DoubleFree { pfn }),
                kind => return Err(FreeError::Owned { pfn, kind }),
            }
            // At the tail, as Linux does: what boot freed last is not what boot uses next.
            self.link_free(map, pfn, order, Some(End::Tail));
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
        self.check_block(map, pfn, order)?;
        for_each_page(map, pfn, order, |_, page| {
            page.set_order(Order::ZERO);
            page.set_refcount(1);
        });
        Ok(())
    }

    /// Links a block whose frames are all [`PageKind::Tail`], merged upwards. Without `end`, Linux's
    /// choice: the tail if the next merge is likely, because the buddy's buddy is free already.
    #[inline]
    pub(crate) fn link_free<M: MemMap + ?Sized>(
        &mut self,
        map: &M,
        pfn: Pfn,
        order: Order,
        end: Option<End>,
    ) {
        self.0.free_pages += order.pages();
        let (mut pfn, mut order) = (pfn, order);
        while let Some(up) = order.up() {
            let Some(buddy) = self.free_buddy(map, pfn, order) else { break };
            free_list::remove(self.area_mut(order), map, buddy);
            pfn = pfn.block(up);
            order = up;
        }
        let end = end.unwrap_or_else(|| self.choose_end(map, pfn, order));
        free_list::add(self.area_mut(order), map, pfn, linked(map, pfn.as_u64()), order, end);
    }

    /// The head of the buddy if that is a free block of the same order (Linux: `find_buddy_page_pfn`).
    fn free_buddy<'m, M: MemMap + ?Sized>(&self, map: &'m M, pfn: Pfn, order: Order) -> Option<&'m Page> {
        map.page(pfn.buddy(order))
            .filter(|buddy| buddy.kind() == PageKind::Buddy && buddy.order() == order && self.owns(buddy))
    }

    /// Linux: `buddy_merge_likely`.
    fn choose_end<M: MemMap + ?Sized>(&self, map: &M, pfn: Pfn, order: Order) -> End {
        let likely = order
            .up()
            .filter(|up| *up < Order::MAX)
            .is_some_and(|up| self.free_buddy(map, pfn.block(up), up).is_some());
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

    /// Whether every frame is an allocated one of this zone and the first heads a block of `order`.
    fn check_block<M: MemMap + ?Sized>(&self, map: &M, start: Pfn, order: Order) -> Result<(), FreeError> {
        let end = start.offset(order.pages());
        let mut pfn = start;
        while pfn < end {
            let pages = map.pages(pfn);
            if pages.is_empty() {
                return Err(FreeError::NoDescriptor { pfn });
            }
            for (page, _) in pages.iter().zip(pfn.as_u64()..end.as_u64()) {
                self.check_page(pfn, Some(page), (pfn == start).then_some(order))?;
                pfn = pfn.offset(1);
            }
        }
        Ok(())
    }

    /// Whether a frame is an allocated one of this zone, unmapped, and heads a block of the order given
    /// or none.
    fn check_page<'m>(
        &self,
        pfn: Pfn,
        page: Option<&'m Page>,
        heads: Option<Order>,
    ) -> Result<&'m Page, FreeError> {
        let page = self.check_frame(pfn, page)?;
        if matches!(page.kind(), PageKind::Buddy | PageKind::Tail) {
            return Err(FreeError::DoubleFree { pfn });
        }
        if let Some(order) = heads.filter(|order| *order != page.order()) {
            return Err(FreeError::WrongOrder { pfn, order, allocated: page.order() });
        }
        if page.refcount() != i32::from(heads.is_some()) {
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

    /// Whether the descriptor's links name this zone.
    pub(crate) fn owns(&self, page: &Page) -> bool {
        page.node() == self.0.node && page.zone() as u32 == self.0.kind
    }

    #[inline]
    pub(crate) fn area(&self, order: Order) -> &FreeArea {
        // `Order` cannot exceed the array.
        &self.0.free_area[order.index()]
    }

    #[inline]
    pub(crate) fn area_mut(&mut self, order: Order) -> &mut FreeArea {
        &mut self.0.free_area[order.index()]
    }
}

/// Makes an allocated frame an inner one of a free block; `free_list::add` says if it is the head.
fn retire(page: &Page) {
    page.set_mapping(0);
    page.set_index(0);
    page.set_private(0);
    page.set_refcount(0);
    page.set_order(Order::ZERO);
    page.set_kind(PageKind::Tail);
}

/// The free block of an order above `order` that covers `pfn`. Nothing to look up for the largest.
pub(crate) fn free_block_over<M: MemMap + ?Sized>(map: &M, pfn: Pfn, order: Order) -> Option<Pfn> {
    Order::all().skip(order.index() + 1).map(|above| (above, pfn.block(above))).find_map(|(above, head)| {
        let page = map.page(head)?;
        (page.kind() == PageKind::Buddy && page.order() >= above).then_some(head)
    })
}

/// Visits the descriptors of a block, as far as they exist.
pub(crate) fn for_each_page<M: MemMap + ?Sized>(
    map: &M,
    start: Pfn,
    order: Order,
    mut visit: impl FnMut(Pfn, &Page),
) {
    let end = start.offset(order.pages());
    let mut pfn = start;
    while pfn < end {
        let pages = map.pages(pfn);
        if pages.is_empty() {
            return;
        }
        for (page, _) in pages.iter().zip(pfn.as_u64()..end.as_u64()) {
            visit(pfn, page);
            pfn = pfn.offset(1);
        }
    }
}
