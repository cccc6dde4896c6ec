//! The invariants of a zone, B1 to B9 of the crate's header.

use core::fmt;

use memvisor_abi::PFN_NONE;
use mm_core::{MemMap, Migratetype, Order, Page, PageFlags, PageKind, Pfn};

use crate::Zone;
use crate::free::{block_over, pageblock_type};

/// A broken invariant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant's number, such as `"B2"`.
    pub rule: &'static str,
    /// The frame at which it shows; the zone's first frame for a counter.
    pub pfn: Pfn,
    /// The order of the list at which it shows; `None` for a counter of the zone.
    pub order: Option<Order>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} violated at pfn {}", self.rule, self.pfn)?;
        match self.order {
            Some(order) => write!(f, ", order {}", order.as_u8()),
            None => Ok(()),
        }
    }
}

impl Zone {
    /// Verifies B1 to B8. Reads the descriptors of free frames only, and ends even if a list is a
    /// cycle.
    ///
    /// # Errors
    /// The first violation.
    pub fn audit<M: MemMap + ?Sized>(&self, map: &M) -> Result<(), Violation> {
        let (mut free, mut cma) = (0u64, 0u64);
        for order in Order::all() {
            for migratetype in Migratetype::ALL {
                self.audit_list(map, order, migratetype)?;
                let pages = self.list(order, migratetype).nr_free.saturating_mul(order.pages());
                free = free.saturating_add(if migratetype == Migratetype::Isolate { 0 } else { pages });
                cma = cma.saturating_add(if migratetype == Migratetype::Cma { pages } else { 0 });
            }
        }
        let info = self.info();
        let start = Pfn::new(info.start_pfn);
        check(free == info.free_pages && cma == info.nr_free_cma, "B3", start, None)?;
        let ordered =
            info.free_pages.checked_add(info.deferred_pages).is_some_and(|sum| sum <= info.managed_pages)
                && info.managed_pages <= info.present_pages
                && info.present_pages <= info.spanned_pages;
        check(ordered, "B8", start, None)
    }

    /// Verifies B9 for every frame of `start..end` that belongs to this zone.
    ///
    /// # Errors
    /// The first violation.
    pub fn audit_range<M: MemMap + ?Sized>(&self, map: &M, start: Pfn, end: Pfn) -> Result<(), Violation> {
        let mut covered = start;
        let mut pfn = start;
        while pfn < end {
            let pages = map.pages(pfn);
            if pages.is_empty() {
                pfn = pfn.offset(1);
            }
            for (page, _) in pages.iter().zip(pfn.as_u64()..end.as_u64()) {
                match page.kind() {
                    PageKind::Buddy if self.owns(page) => {
                        check(self.is_linked(map, pfn, page), "B9", pfn, Some(page.order()))?;
                        covered = pfn.offset(page.order().pages());
                    }
                    PageKind::Tail if self.owns(page) && pfn >= covered => {
                        check(block_over(map, pfn, Order::ZERO, |_| true).is_some(), "B9", pfn, None)?;
                    }
                    PageKind::None | PageKind::Tail => {}
                    _ => covered = covered.max(pfn.offset(page.order().pages())),
                }
                pfn = pfn.offset(1);
            }
        }
        Ok(())
    }

    fn audit_list<M: MemMap + ?Sized>(
        &self,
        map: &M,
        order: Order,
        migratetype: Migratetype,
    ) -> Result<(), Violation> {
        let list = self.list(order, migratetype);
        let mut prev = PFN_NONE;
        let mut next = list.head;
        let mut blocks = 0;
        while next != PFN_NONE {
            let pfn = Pfn::new(next);
            let ensure = |holds, rule| check(holds, rule, pfn, Some(order));
            ensure(blocks < list.nr_free, "B4")?;
            let Some(page) = map.page(pfn) else { return ensure(false, "B4") };
            ensure(page.prev() == prev, "B4")?;
            ensure(pfn.block(order) == pfn, "B1")?;
            ensure(is_head(page, order, migratetype), "B5")?;
            ensure(self.spans(pfn, order.pages()), "B6")?;
            self.audit_frames(map, pfn, order)?;
            let buddy = map.page(pfn.buddy(order)).filter(|_| order < Order::MAX);
            let free = buddy.is_some_and(|buddy| {
                buddy.kind() == PageKind::Buddy && buddy.order() == order && self.owns(buddy)
            });
            let apart = u32::from(order.as_u8()) >= mm_core::PAGEBLOCK_ORDER
                && pageblock_type(map, pfn) != pageblock_type(map, pfn.buddy(order));
            ensure(!free || apart, "B2")?;
            let kept = |kind| (migratetype == kind) == (pageblock_type(map, pfn) == kind);
            ensure(kept(Migratetype::Isolate) && kept(Migratetype::Cma), "B10")?;
            prev = next;
            next = page.next();
            blocks += 1;
        }
        let last = Pfn::new(if prev == PFN_NONE { self.info().start_pfn } else { prev });
        let marked = self.is_empty(order, migratetype) == (blocks == 0);
        check(blocks == list.nr_free && list.tail == prev && marked, "B4", last, Some(order))
    }

    /// B6 and B7 for the frames of the block at `start`.
    fn audit_frames<M: MemMap + ?Sized>(&self, map: &M, start: Pfn, order: Order) -> Result<(), Violation> {
        let mut result = Ok(());
        let mut seen = 0;
        for_each_page(map, start, order, |pfn, page| {
            seen += 1;
            let inner = page.kind() == PageKind::Tail && page.refcount() == 0;
            result = result
                .and_then(|()| check(self.owns(page), "B6", pfn, Some(order)))
                .and_then(|()| check(pfn == start || inner, "B7", pfn, Some(order)));
        });
        result?;
        check(seen == order.pages(), "B6", start, Some(order))
    }

    /// Whether the neighbours of a head, or the ends of its list, point at it.
    fn is_linked<M: MemMap + ?Sized>(&self, map: &M, pfn: Pfn, page: &Page) -> bool {
        let area = self.list(page.order(), page.migratetype());
        let points_here = |neighbour: u64, link: fn(&Page) -> u64, end: u64| {
            let back =
                if neighbour == PFN_NONE { Some(end) } else { map.page(Pfn::new(neighbour)).map(link) };
            back == Some(pfn.as_u64())
        };
        points_here(page.prev(), Page::next, area.head) && points_here(page.next(), Page::prev, area.tail)
    }
}

fn is_head(page: &Page, order: Order, migratetype: Migratetype) -> bool {
    page.kind() == PageKind::Buddy
        && page.order() == order
        && page.migratetype() == migratetype
        && page.refcount() == 0
        && page.mapcount() == -1
        && !page.has(PageFlags::RESERVED)
}

fn check(holds: bool, rule: &'static str, pfn: Pfn, order: Option<Order>) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation { rule, pfn, order }) }
}

/// Visits the descriptors of a block, as far as they exist.
fn for_each_page<M: MemMap + ?Sized>(map: &M, start: Pfn, order: Order, mut visit: impl FnMut(Pfn, &Page)) {
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
