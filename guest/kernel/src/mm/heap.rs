//! The `alloc` crate on kmalloc: for what processes and files keep, never for the memory manager itself.
//!
//! A collection whose size a program chooses grows by `try_reserve`, so that no memory is `ENOMEM` and not the kernel's end.

use core::alloc::{GlobalAlloc, Layout};

use mm_core::{Gfp, PhysAddr};
use mm_pgtable::layout::page_offset;
use mm_slab::Object;

use crate::mm::layout::levels;
use crate::mm::phys;
use crate::mm::slab::KMEM;
use crate::sched;

#[global_allocator]
static HEAP: Heap = Heap;

struct Heap;

impl Heap {
    /// Bytes to ask for: kmalloc aligns to 8, and powers of two to themselves.
    fn size(layout: Layout) -> u64 {
        let size = if layout.align() > 8 {
            layout.size().max(layout.align()).checked_next_power_of_two().unwrap_or(usize::MAX)
        } else {
            layout.size()
        };
        size as u64
    }

    fn gfp() -> Gfp {
        if sched::might_sleep().is_some() { Gfp::KERNEL } else { Gfp::ATOMIC }
    }

    fn address(object: Option<Object>) -> *mut u8 {
        object.map_or(core::ptr::null_mut(), |object| phys::object_at(object.addr()))
    }
}

// SAFETY: kmalloc gives memory in the direct map that nobody else has, of at least the size and alignment asked for, until kfree;
// none of it unwinds.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::address(KMEM.kmalloc(Self::size(layout), Self::gfp()))
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::address(KMEM.kzalloc(Self::size(layout), Self::gfp()))
    }

    unsafe fn dealloc(&self, address: *mut u8, _layout: Layout) {
        let phys = (address as u64).wrapping_sub(page_offset(levels()).as_u64());
        // The console has it already.
        let freed = KMEM.kfree(Object::new(PhysAddr::new(phys)));
        debug_assert!(freed.is_ok(), "{address:p} was freed wrongly");
    }
}
