//! Giving blocks back (Linux: `__free_pages`, `free_unref_page`, `put_page`, `split_page`).

use memvisor_abi::{EventId, PerCpuPages, VmEvent};
use mm_core::{CpuLocal, Event, MemMap, Migratetype, Order, Page, PageFlags, PageKind, Pfn, Trace};

use super::{Machine, PageAllocator, zone_id, zone_index};
use crate::free::pageblock_type;
use crate::free_list::{TAIL, linked};
use crate::{FreeError, pcp, refcount};

impl<M: Machine> PageAllocator<M> {
    /// Drops a reference of the block that starts at `pfn`; with the last one the block is free (Linux:
    /// `__free_pages`).
    ///
    /// If others still refer to the first frame, only the rest of the block is freed, and the first frame with its
    /// last reference; a compound block stays whole until then.
    ///
    /// # Errors
    /// [`FreeError`] for a block that cannot be freed like this; nothing is changed then, and the block is lost
    /// rather than handed out twice (Linux reports a bad page and leaks it).
    #[inline]
    pub fn free_pages(&self, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        if let Some(page) = self.machine.map().page(pfn)
            && self.free_hot(pfn, page, order, false)
        {
            return Ok(());
        }
        self.free_pages_slowly(pfn, order)
    }

    /// [`PageAllocator::free_pages`] of a single frame that its owner leaves all zero: whoever asks for zeroes next need not clear it.
    ///
    /// # Errors
    /// As [`PageAllocator::free_pages`].
    #[inline]
    pub fn free_zeroed_page(&self, pfn: Pfn) -> Result<(), FreeError> {
        if let Some(page) = self.machine.map().page(pfn)
            && self.free_hot(pfn, page, Order::ZERO, true)
        {
            return Ok(());
        }
        self.free_pages_slowly(pfn, Order::ZERO)
    }

    #[inline(never)]
    fn free_pages_slowly(&self, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        let map = self.machine.map();
        map.emit(Event::FreePages { pfn, order });
        let outcome = self.drop_reference(pfn, order);
        map.emit(Event::FreePagesRet {});
        outcome
    }

    #[inline]
    fn drop_reference(&self, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        let page = self.machine.map().page(pfn).ok_or(FreeError::NoDescriptor { pfn })?;
        check(page, pfn, order)?;
        match refcount::put(page.references()) {
            Some(true) => {
                self.free_block(pfn, page, order);
                Ok(())
            }
            Some(false) => {
                self.free_rest(pfn, page, order);
                Ok(())
            }
            None => Err(FreeError::InUse { pfn, refcount: page.refcount() }),
        }
    }

    /// Drops a reference of the page that `pfn` belongs to, of its compound page if it is part of one (Linux:
    /// `put_page`).
    ///
    /// # Errors
    /// As [`PageAllocator::free_pages`].
    pub fn put_page(&self, pfn: Pfn) -> Result<(), FreeError> {
        let page = self.machine.map().page(pfn).ok_or(FreeError::NoDescriptor { pfn })?;
        let head = page.compound_head().unwrap_or(pfn);
        let page = self.machine.map().page(head).ok_or(FreeError::NoDescriptor { pfn })?;
        // What is no compound page is freed frame by frame.
        let order = if page.has(PageFlags::HEAD) { page.order() } else { Order::ZERO };
        self.free_pages(head, order)
    }

    /// Adds a reference for a caller that has one (Linux: `get_page`).
    ///
    /// # Errors
    /// [`FreeError::DoubleFree`] for a free page, [`FreeError::NoDescriptor`] for no page.
    pub fn get_page(&self, pfn: Pfn) -> Result<(), FreeError> {
        let page = self.machine.map().page(pfn).ok_or(FreeError::NoDescriptor { pfn })?;
        let head = page.compound_head().unwrap_or(pfn);
        let page = self.machine.map().page(head).ok_or(FreeError::NoDescriptor { pfn })?;
        if refcount::try_get(page.references()) { Ok(()) } else { Err(FreeError::DoubleFree { pfn }) }
    }

    /// Makes order-0 blocks, each with a reference, of an allocated block that is not compound (Linux:
    /// `split_page`).
    ///
    /// # Errors
    /// As [`PageAllocator::free_pages`]; the block stays as it is.
    pub fn split_page(&self, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        let map = self.machine.map();
        let page = map.page(pfn).ok_or(FreeError::NoDescriptor { pfn })?;
        check(page, pfn, order)?;
        if page.has(PageFlags::HEAD) {
            return Err(FreeError::Compound { pfn });
        }
        let single = page.state().with_order(Order::ZERO);
        page.set_state(single);
        for index in 1..order.pages() {
            let part = linked(map, pfn.offset(index).as_u64());
            part.set_state(single);
            part.set_refcount(page.refcount());
        }
        Ok(())
    }

    /// Frees a block whose references are gone (Linux: `free_unref_page`, `__free_pages_ok`).
    #[inline]
    pub(super) fn free_block(&self, pfn: Pfn, page: &Page, order: Order) {
        if page.has(PageFlags::HEAD) {
            self.unmake_compound(pfn, page, order);
        }
        let map = self.machine.map();
        map.emit(Event::MmPageFree { pfn, order });
        let zone = zone_index(page);
        let pageblock = pageblock_type(map, pfn);
        self.machine.local().with(|_, cpu| {
            cpu.count(VmEvent::Pgfree, order.pages());
            let kept = match pageblock {
                // Not to be allocated from: a CPU's list would be.
                Migratetype::Isolate => None,
                // What only zones keep apart is movable while it is on a CPU's list.
                Migratetype::HighAtomic | Migratetype::Cma => Some(Migratetype::Movable),
                ordinary => Some(ordinary),
            };
            let list = kept.and_then(|kept| Some((kept, pcp::list_index(order, kept)?)));
            let (Some((kept, list)), Some(pcp)) = (list, cpu.pcps.get_mut(zone)) else {
                page.set_state(TAIL);
                self.with_zone(zone, |zone| zone.free_one_page(map, pfn, order, pageblock));
                return;
            };
            map.emit(Event::FreeUnrefPage { pfn, order, migratetype: kept as u8 });
            page.set_mapping(0);
            pcp::retire(page, order, kept, false);
            pcp::push(pcp, map, (pfn, page), list, order, false);
            if pcp.count >= pcp.high || pcp.free_factor != 0 && order > Order::ZERO || self.is_busy(zone) {
                self.flush(cpu, zone, list, order);
            }
            if map.wants(EventId::FreeUnrefPageRet) {
                let counts = cpu.pcps.get(zone).map_or((0, 0), |pcp| (pcp.count, pcp.high));
                map.emit(Event::FreeUnrefPageRet { count: counts.0.into(), high: counts.1.into() });
            }
        });
    }

    #[inline]
    fn is_busy(&self, zone: usize) -> bool {
        self.machine.is_reclaiming(zone)
    }

    /// Gives the surplus of a list back, if there is one.
    #[cold]
    pub(super) fn flush(&self, cpu: &mut pcp::CpuPages, zone: usize, list: usize, order: Order) {
        let Some(pcp) = cpu.pcps.get_mut(zone) else { return };
        let Some(count) = pcp::surplus(pcp, order, self.machine.is_reclaiming(zone)) else { return };
        self.give_back(pcp, zone, count, list);
        cpu.count(VmEvent::PcpFlush, 1);
    }

    /// Gives back everything that this CPU keeps (Linux: `drain_local_pages`).
    pub fn drain_local_pages(&self) {
        self.machine.local().with(|_, cpu| self.drain(cpu));
    }

    /// Gives back everything that any CPU keeps (Linux: `drain_all_pages`). The caller holds no lock and is not
    /// inside CPU-local data.
    pub fn drain_all_pages(&self) {
        self.machine.local().for_each(|_, cpu| self.drain(cpu));
        self.count(VmEvent::PcpDrain, 1);
    }

    fn drain(&self, cpu: &mut pcp::CpuPages) {
        for (zone, pcp) in cpu.pcps.iter_mut().enumerate().filter(|(_, pcp)| pcp.count > 0) {
            self.give_back(pcp, zone, u32::MAX, 0);
        }
    }

    fn give_back(&self, pcp: &mut PerCpuPages, zone: usize, count: u32, first: usize) {
        let map = self.machine.map();
        let before = pcp.count;
        map.emit(Event::FreePcppagesBulk { zone: zone_id(zone), count: count.min(before).into() });
        self.with_zone(zone, |zone| pcp::give_back(pcp, zone, map, count, first));
        map.emit(Event::FreePcppagesBulkRet { count: before.wrapping_sub(pcp.count).into() });
    }

    /// Somebody else still has the first frame: it stays, as a block of its own, and the rest is freed.
    #[cold]
    fn free_rest(&self, pfn: Pfn, page: &Page, order: Order) {
        if page.has(PageFlags::HEAD) {
            return;
        }
        page.set_order(Order::ZERO);
        let mut half = order;
        while let Some(below) = half.down() {
            let upper = pfn.offset(below.pages());
            self.free_block(upper, linked(self.machine.map(), upper.as_u64()), below);
            half = below;
        }
    }

    #[cold]
    fn unmake_compound(&self, head: Pfn, page: &Page, order: Order) {
        page.remove(PageFlags::HEAD);
        for index in 1..order.pages() {
            linked(self.machine.map(), head.offset(index).as_u64()).clear_compound_head();
        }
    }
}

/// Whether the caller may free this (Linux: `free_page_is_bad`, with what its debug options add).
#[inline]
fn check(page: &Page, pfn: Pfn, order: Order) -> Result<(), FreeError> {
    let state = page.state();
    let free = matches!(state.kind(), PageKind::None | PageKind::Buddy | PageKind::Tail | PageKind::Pcp);
    let wrong = free
        | (state.order() != order)
        | (page.mapcount() != -1)
        | page.has(PageFlags::RESERVED)
        | (pfn.block(order) != pfn);
    if wrong { Err(why(page, pfn, order)) } else { Ok(()) }
}

#[cold]
fn why(page: &Page, pfn: Pfn, order: Order) -> FreeError {
    let state = page.state();
    match state.kind() {
        PageKind::None => return FreeError::NoDescriptor { pfn },
        PageKind::Tail if page.compound_head().is_some() => return FreeError::Tail { pfn },
        PageKind::Buddy | PageKind::Pcp | PageKind::Tail => return FreeError::DoubleFree { pfn },
        _ => {}
    }
    if page.has(PageFlags::RESERVED) {
        FreeError::Reserved { pfn }
    } else if pfn.block(order) != pfn {
        FreeError::Misaligned { pfn, order }
    } else if state.order() != order {
        FreeError::WrongOrder { pfn, order, allocated: state.order() }
    } else {
        FreeError::Mapped { pfn, mapcount: page.mapcount() }
    }
}
