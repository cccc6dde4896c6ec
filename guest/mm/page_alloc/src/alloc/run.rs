//! Freeing frames that follow each other as the blocks that they make.
//!
//! Linux's `free_unref_page_list` puts each on a CPU's list, from where most of a large number go to the zone one by one, to be merged into
//! the blocks that they once were.

use memvisor_abi::VmEvent;
use mm_core::{CpuLocal, MemMap, Order, PAGEBLOCK_ORDER, Page, PageFlags, Pfn, Trace, refcount};

use super::{Machine, PageAllocator, zone_index};
use crate::FreeError;
use crate::free::pageblock_type;
use crate::free_list::TAIL;

/// The smallest block that goes straight to its zone: fewer frames are worth more on the CPU's list, where they are hot.
const LEAST: u8 = 4;

impl<M: Machine> PageAllocator<M> {
    /// [`PageAllocator::free_pages`] of `count` frames from `first` on, each allocated by itself.
    ///
    /// # Errors
    /// That of the first frame that cannot be freed; all others are.
    pub fn free_run(&self, first: Pfn, count: u64) -> Result<(), FreeError> {
        let mut outcome = Ok(());
        let (mut pfn, end) = (first.as_u64(), first.as_u64() + count);
        while let Some(fits) = (end - pfn).checked_ilog2() {
            let fits = fits.min(pfn.trailing_zeros()).min(PAGEBLOCK_ORDER);
            let order = u8::try_from(fits).ok().and_then(Order::new).unwrap_or(Order::ZERO);
            if order.as_u8() < LEAST || !self.free_as_block(Pfn::new(pfn), order) {
                for frame in pfn..pfn + order.pages() {
                    outcome = outcome.and(self.free_pages(Pfn::new(frame), Order::ZERO));
                }
            }
            pfn += order.pages();
        }
        outcome
    }

    /// Whether the frames of a block were nobody's but the caller's, and are free now; nothing has changed if not.
    fn free_as_block(&self, pfn: Pfn, order: Order) -> bool {
        let map = self.machine.map();
        let count = usize::try_from(order.pages()).unwrap_or(usize::MAX);
        let Some([head, rest @ ..]) = map.pages(pfn).get(..count) else { return false };
        if map.is_tracing() || !is_single(head, head) || !rest.iter().all(|page| is_single(page, head)) {
            return false;
        }
        let pages = || core::iter::once(head).chain(rest);
        // Who finds one by its number may have a reference for a moment.
        if let Some(held) = pages().position(|page| !refcount::freeze(page.references(), 1)) {
            pages().take(held).for_each(|page| refcount::unfreeze(page.references(), 1));
            return false;
        }
        for page in pages() {
            page.set_mapping(0);
            page.set_state(TAIL);
        }
        self.with_zone(zone_index(head), |zone| {
            zone.free_one_page(map, pfn, order, pageblock_type(map, pfn));
        });
        self.machine.local().with(|_, cpu| cpu.count(VmEvent::Pgfree, order.pages()));
        true
    }
}

/// Whether the page is a frame that was allocated by itself, unmapped, in the zone of `head`.
fn is_single(page: &Page, head: &Page) -> bool {
    page.state().is_allocated_block(Order::ZERO)
        & (page.mapcount() == -1)
        & !page.has_any(PageFlags::RESERVED | PageFlags::HEAD)
        & (zone_index(page) == zone_index(head))
}
