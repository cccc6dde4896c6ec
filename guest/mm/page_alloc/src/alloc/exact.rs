//! Pages that are no power of two in number (Linux: `alloc_pages_exact`, `free_pages_exact`).

use mm_core::{Gfp, Order, Pfn, PhysAddr};

use super::{Machine, PageAllocator, pages_for};
use crate::FreeError;
use crate::gfp::Context;

impl<M: Machine> PageAllocator<M> {
    /// At least `bytes` of contiguous memory, in single pages: the block's rest is given back at once (Linux:
    /// `alloc_pages_exact`). `None` for 0 bytes (Linux: an order that is none) and for more than the largest block.
    pub fn alloc_pages_exact(&self, context: Context<'_>, bytes: u64, gfp: Gfp) -> Option<PhysAddr> {
        let pages = pages_for(bytes);
        let order = Order::covering(pages).filter(|_| pages > 0)?;
        // Linux warns and goes on without them: a compound page cannot be cut, and the direct map must reach it.
        let gfp = gfp - (Gfp::COMP | Gfp::HIGHMEM);
        let first = self.alloc_pages(context, gfp, order, None)?;
        self.make_exact(first, order, pages);
        Some(first.phys())
    }

    fn make_exact(&self, first: Pfn, order: Order, pages: u64) {
        if self.split_page(first, order).is_err() {
            return;
        }
        for index in pages..order.pages() {
            // Just split off: nobody else has it.
            let _freed = self.free_pages(first.offset(index), Order::ZERO);
        }
    }

    /// Frees what [`PageAllocator::alloc_pages_exact`] gave for the same number of bytes.
    ///
    /// # Errors
    /// [`FreeError`] of the first page that cannot be freed; those before it are free.
    pub fn free_pages_exact(&self, start: PhysAddr, bytes: u64) -> Result<(), FreeError> {
        (0..pages_for(bytes)).try_for_each(|index| self.free_pages(start.pfn().offset(index), Order::ZERO))
    }
}
