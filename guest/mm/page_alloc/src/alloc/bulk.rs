//! Many order-0 pages at once (Linux: `__alloc_pages_bulk`).

use memvisor_abi::PFN_NONE;
use mm_core::{CpuLocal, Gfp, MemMap, Order, Pfn};

use super::freelist::{Block, node_of};
use super::{Machine, PageAllocator, Request, pgalloc};
use crate::gfp::Context;
use crate::pcp;
use crate::policy::Placement;
use crate::{AllocFlags, check_gfp};

/// Pages linked by `Page::next`, ended by `PFN_NONE` (Linux: a `list_head` of pages).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageList {
    /// First page, or `PFN_NONE`.
    pub head: u64,
    /// Pages.
    pub len: usize,
}

impl PageList {
    /// No pages.
    pub const EMPTY: PageList = PageList { head: PFN_NONE, len: 0 };

    /// Puts a page that is on no list first.
    pub fn push<T: MemMap + ?Sized>(&mut self, map: &T, pfn: Pfn) {
        if let Some(page) = map.page(pfn) {
            page.set_next(self.head);
            *self = PageList { head: pfn.as_u64(), len: self.len + 1 };
        }
    }

    /// Takes the first page off.
    pub fn pop<T: MemMap + ?Sized>(&mut self, map: &T) -> Option<Pfn> {
        self.len = self.len.checked_sub(1)?;
        let pfn = Pfn::new(self.head);
        let page = map.page(pfn)?;
        self.head = page.next();
        page.set_next(PFN_NONE);
        Some(pfn)
    }

    /// Puts all of `other` first, the other way round.
    pub fn append<T: MemMap + ?Sized>(&mut self, map: &T, mut other: PageList) {
        while let Some(pfn) = other.pop(map) {
            self.push(map, pfn);
        }
    }
}

impl<M: Machine> PageAllocator<M> {
    /// Fills the empty places of `pages` with order-0 pages; how many places are filled in all, from the first
    /// (Linux: `alloc_pages_bulk_array_node`). Fewer than asked is no failure: none is one only if a single page
    /// cannot be had either.
    pub fn alloc_pages_bulk_array(
        &self,
        context: Context<'_>,
        gfp: Gfp,
        node: Option<u32>,
        pages: &mut [Option<Pfn>],
    ) -> usize {
        let filled = pages.iter().take_while(|page| page.is_some()).count();
        let Some(empty) = pages.get_mut(filled..) else { return filled };
        // Linux skips full places wherever they are, and stops counting at the first that stays empty.
        let wanted = empty.iter().filter(|page| page.is_none()).count();
        let mut places = empty.iter_mut().filter(|page| page.is_none());
        self.alloc_pages_bulk(context, gfp, node, wanted, |pfn| {
            if let Some(place) = places.next() {
                *place = Some(pfn);
            }
        });
        pages.iter().take_while(|page| page.is_some()).count()
    }

    /// Up to `count` order-0 pages as a list (Linux: `alloc_pages_bulk_list`).
    pub fn alloc_pages_bulk_list(
        &self,
        context: Context<'_>,
        gfp: Gfp,
        node: Option<u32>,
        count: usize,
    ) -> PageList {
        let mut list = PageList::EMPTY;
        self.alloc_pages_bulk(context, gfp, node, count, |pfn| {
            if let Some(page) = self.machine.map().page(pfn) {
                page.set_next(list.head);
                list = PageList { head: pfn.as_u64(), len: list.len + 1 };
            }
        });
        list
    }

    /// Frees a list of order-0 pages (Linux: `release_pages`); how many could not be freed.
    pub fn free_pages_list(&self, list: PageList) -> usize {
        let mut refused = 0;
        let mut next = list.head;
        for _ in 0..list.len {
            let pfn = Pfn::new(next);
            let Some(page) = self.machine.map().page(pfn) else { break };
            next = page.next();
            page.set_next(PFN_NONE);
            refused += usize::from(self.free_pages(pfn, Order::ZERO).is_err());
        }
        refused
    }

    /// Calls `each` for up to `count` pages; how many there were.
    pub fn alloc_pages_bulk(
        &self,
        context: Context<'_>,
        gfp: Gfp,
        node: Option<u32>,
        count: usize,
        mut each: impl FnMut(Pfn),
    ) -> usize {
        let mut done = 0;
        // Each request for a page may be the one that is to fail.
        if count > 1 && !self.machine.is_injecting() && check_gfp(context, gfp).is_ok() {
            let node = node.unwrap_or_else(|| self.machine.local_node());
            let placement = Placement::from(node);
            let request = Request::new(&self.machine, context.scoped(gfp), Order::ZERO, placement);
            if let Some(request) = request {
                done = self.take_batch(&request, count, &mut each);
            }
        }
        // The lists gave less than asked, or nothing: one page by the long way, which may reclaim.
        if done == 0
            && count > 0
            && let Some(pfn) = self.alloc_pages(context, gfp, Order::ZERO, node)
        {
            each(pfn);
            done = 1;
        }
        done
    }

    /// Takes pages from the first zone of the preferred node that has them all above its low mark.
    fn take_batch(&self, request: &Request, count: usize, each: &mut dyn FnMut(Pfn)) -> usize {
        let flags = request.fast_flags(&self.machine) - AllocFlags::NOFRAGMENT;
        let wanted = count as u64;
        let zone =
            request.zones(&self.machine).take_while(|zone| node_of(*zone) == node_of(request.preferred));
        let zone = zone.into_iter().find(|&zone| {
            self.machine.glances().get(zone).is_some_and(|glance| {
                let mark = glance.mark(flags).saturating_add(wanted);
                glance.watermark_ok(Order::ZERO, mark, request.highest, flags, glance.free_pages())
            })
        });
        let Some(zone) = zone else { return 0 };
        let mut done = 0;
        // One entry into CPU-local data a batch; `each` runs outside of it.
        while done < count {
            let mut blocks = [None; 16];
            let room = (count - done).min(blocks.len());
            let got = self.take_few(request, zone, flags, &mut blocks[..room]);
            for block in blocks.iter().flatten() {
                each(self.prep_new_page(request, *block));
            }
            done += got;
            if got < room {
                break;
            }
        }
        done
    }

    fn take_few(
        &self,
        request: &Request,
        zone: usize,
        flags: AllocFlags,
        blocks: &mut [Option<Block>],
    ) -> usize {
        let Some(list) = pcp::list_index(Order::ZERO, request.migratetype) else { return 0 };
        let map = self.machine.map();
        self.machine.local().with(|_, cpu| {
            let mut got = 0;
            for place in blocks {
                let Some(pcp) = cpu.pcps.get_mut(zone) else { break };
                let mut block = pcp::pop(pcp, map, list, Order::ZERO);
                if block.is_none() {
                    let kind = (Order::ZERO, request.migratetype);
                    self.with_zone(zone, |zone| pcp::refill(pcp, zone, map, list, kind, flags));
                    block = pcp::pop(pcp, map, list, Order::ZERO);
                }
                let Some((pfn, page)) = block else { break };
                *place = Some(Block { pfn, state: page.state() });
                self.zone_statistics(cpu.pcps, request.preferred, zone, false);
                got += 1;
            }
            cpu.count(pgalloc(zone % memvisor_abi::MAX_NR_ZONES), got as u64);
            got
        })
    }
}
