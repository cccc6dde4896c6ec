//! What a block becomes when it leaves the allocator (Linux: `prep_new_page`, `prep_compound_page`).

use memvisor_abi::VmEvent;
use mm_core::{CpuLocal, Event, Gfp, Migratetype, Order, PageFlags, PageKind, PageState, Pfn, Trace};

use super::freelist::Block;
use super::{Machine, PageAllocator, Request};
use crate::free_list::linked;

/// What the first frame of an allocated block says.
#[inline]
pub(super) const fn allocated(order: Order, migratetype: Migratetype) -> PageState {
    PageState::new(PageKind::Allocated, order).with_migratetype(migratetype)
}

impl<M: Machine> PageAllocator<M> {
    /// Gives the block one reference and its order; zeroes it and makes it compound if the flags say so.
    #[inline]
    pub(super) fn prep_new_page(&self, request: &Request, block: Block) -> Pfn {
        let page = linked(self.machine.map(), block.pfn.as_u64());
        page.set_refcount(1);
        page.set_state(allocated(request.order, request.migratetype));
        if request.gfp.intersects(Gfp::ZERO | Gfp::COMP) {
            self.prep_flags(request, block);
        }
        let known_zero = request.gfp.contains(Gfp::ZERO) && block.state.is_known_zero();
        self.machine.map().emit(Event::PrepNewPage {
            pfn: block.pfn,
            order: request.order,
            gfp: request.gfp,
            zeroed: request.gfp.contains(Gfp::ZERO) && !known_zero,
            known_zero,
        });
        block.pfn
    }

    fn prep_flags(&self, request: &Request, block: Block) {
        let pages = request.order.pages();
        if request.gfp.contains(Gfp::ZERO) {
            let event = if block.state.is_known_zero() {
                VmEvent::PageKnownZero
            } else {
                self.machine.zero_frames(block.pfn, pages);
                VmEvent::PageZeroed
            };
            self.machine.local().with(|_, cpu| cpu.count(event, pages));
        }
        if request.gfp.contains(Gfp::COMP) && request.order > Order::ZERO {
            self.prep_compound(block.pfn, request.order);
        }
    }

    fn prep_compound(&self, head: Pfn, order: Order) {
        let map = self.machine.map();
        linked(map, head.as_u64()).insert(PageFlags::HEAD);
        for index in 1..order.pages() {
            linked(map, head.offset(index).as_u64()).set_compound_head(head);
        }
    }
}
