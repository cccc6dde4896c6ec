//! Frames as slabs: marking, finding the head, giving back.

use memvisor_abi::{PFN_NONE, SlabCounters};
use mm_core::{Event, Gfp, MemMap, Order, Page, PageAlloc, PageKind, Pfn};

use crate::{Cache, CacheId, Kmem, Machine, Object, SlabFlags};

/// Slabs that were taken off their lists and wait to be given back, linked by `next`.
#[derive(Debug)]
#[must_use]
pub(crate) struct Discard(u64);

impl Discard {
    pub(crate) const NONE: Discard = Discard(PFN_NONE);

    /// Adds a slab that is on no list.
    #[inline]
    pub(crate) fn push(&mut self, pfn: Pfn, page: &Page) {
        page.set_next(self.0);
        self.0 = pfn.as_u64();
    }
}

/// An address in a slab of a cache, where an object may start: what all ways to free work on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'m> {
    pub(crate) id: CacheId,
    pub(crate) cache: &'m Cache,
    pub(crate) pfn: Pfn,
    pub(crate) page: &'m Page,
    pub(crate) object: Object,
}

impl Place<'_> {
    /// Another address in the slab.
    pub(crate) const fn at(self, object: Object) -> Self {
        Place { object, ..self }
    }

    /// Whether an object of a SLUB slab starts there (Linux: `check_valid_pointer`).
    pub(crate) fn is_object(&self) -> bool {
        let start = self.pfn.phys().as_u64() + u64::from(self.cache.red_left());
        let size = u64::from(self.cache.size());
        let from = self.object.0.checked_sub(start);
        from.is_some_and(|from| {
            from.is_multiple_of(size) && from / size < u64::from(counters(self.page).objects)
        })
    }
}

/// What of a descriptor leads a frame of a slab to the head: the low bit and the head's number, as Linux's
/// `compound_head` has them.
const fn tail_mark(head: Pfn) -> u64 {
    head.as_u64() << 1 | 1
}

/// The counters of a slab.
#[inline]
pub(crate) fn counters(page: &Page) -> SlabCounters {
    SlabCounters::from_raw(page.mapcount())
}

/// Writes the counters of a slab.
#[inline]
pub(crate) fn set_counters(page: &Page, counters: SlabCounters) {
    page.set_mapcount(counters.as_raw());
}

impl<M: Machine> Kmem<M> {
    /// The head of the slab that holds `object`.
    #[inline]
    pub(crate) fn slab_of(&self, object: Object) -> Option<(Pfn, &Page)> {
        let pfn = object.addr().pfn();
        let page = self.machine.map().page(pfn)?;
        if page.kind() == PageKind::Slab { Some((pfn, page)) } else { self.head_of(pfn, page) }
    }

    /// The head of a slab of several frames.
    fn head_of(&self, pfn: Pfn, page: &Page) -> Option<(Pfn, &Page)> {
        let mark = page.private();
        if mark & 1 == 0 {
            return None;
        }
        let head = Pfn::new(mark >> 1);
        let page = self.machine.map().page(head)?;
        let inside = head < pfn && pfn < head.offset(page.order().pages());
        (page.kind() == PageKind::Slab && inside).then_some((head, page))
    }

    /// Allocates frames for a slab of `cache`, of its order or the smallest that will do (Linux: `allocate_slab`).
    pub(crate) fn slab_frames(
        &self,
        cache: &Cache,
        gfp: Gfp,
        node: Option<u32>,
        mapping: u64,
    ) -> Option<(Pfn, &Page)> {
        let flags = cache.slab_flags();
        let mut gfp = gfp - Gfp::ZERO;
        if flags.contains(SlabFlags::CACHE_DMA) {
            gfp |= Gfp::DMA_ZONE;
        }
        if flags.contains(SlabFlags::RECLAIM_ACCOUNT) {
            gfp |= Gfp::RECLAIMABLE;
        }
        let (order, min) = (cache.slab_order(), cache.slab_min_order());
        let pages = self.machine.pages();
        let comp = |order: Order| if order == Order::ZERO { Gfp::empty() } else { Gfp::COMP };
        let first = if order > min {
            (gfp | Gfp::NOWARN | Gfp::NORETRY) - Gfp::NOFAIL - Gfp::DIRECT_RECLAIM
        } else {
            gfp
        };
        let (pfn, order) = match pages.alloc_pages(first | comp(order), order, node) {
            Some(pfn) => (pfn, order),
            None if order > min => (pages.alloc_pages(gfp | comp(min), min, node)?, min),
            None => return None,
        };
        let Some(page) = self.mark(pfn, order, mapping) else {
            pages.free_pages(pfn, order);
            return None;
        };
        Some((pfn, page))
    }

    /// Makes a block of frames a slab.
    fn mark(&self, pfn: Pfn, order: Order, mapping: u64) -> Option<&Page> {
        let map = self.machine.map();
        let head = map.page(pfn)?;
        head.set_mapping(mapping);
        head.set_index(0);
        head.set_private(0);
        head.set_next(PFN_NONE);
        head.set_prev(PFN_NONE);
        head.set_order(order);
        head.set_kind(PageKind::Slab);
        for tail in 1..order.pages() {
            if let Some(page) = map.page(pfn.offset(tail)) {
                page.set_private(tail_mark(pfn));
            }
        }
        Some(head)
    }

    /// Gives a slab's frames back (Linux: `__free_slab`).
    pub(crate) fn free_frames(&self, pfn: Pfn, page: &Page) {
        let order = page.order();
        let map = self.machine.map();
        page.set_mapping(0);
        page.set_index(0);
        page.set_private(0);
        page.set_mapcount(-1);
        page.set_next(PFN_NONE);
        page.set_prev(PFN_NONE);
        page.set_kind(PageKind::Allocated);
        for tail in 1..order.pages() {
            if let Some(page) = map.page(pfn.offset(tail)) {
                page.set_private(0);
            }
        }
        self.machine.pages().free_pages(pfn, order);
    }

    /// Gives back all that waits. No lock is held.
    pub(crate) fn discard(&self, discard: Discard) {
        let mut link = discard.0;
        // All slabs are one cache's; of SLOB's, no object is anybody's any more.
        let first = crate::list::at(link, self.machine.map());
        let cache = first.and_then(|(_, page)| crate::CacheId::new(page.mapping()));
        if cache.is_some_and(|id| self.cache(id).slab_flags().contains(SlabFlags::TYPESAFE_BY_RCU)) {
            self.machine.synchronize_rcu();
        }
        while let Some((pfn, page)) = crate::list::at(link, self.machine.map()) {
            link = page.next();
            let cache = u16::try_from(page.mapping()).ok();
            self.emit(Event::DiscardSlab { cache, pfn, order: page.order() });
            self.free_frames(pfn, page);
        }
    }
}
