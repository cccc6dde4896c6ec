//! The `alloc` crate on kmalloc: for what processes and files keep, never for the memory manager itself.
//!
//! A collection whose size a program chooses grows by `try_reserve`, so that no memory is `ENOMEM` and not the kernel's end.

use core::alloc::{GlobalAlloc, Layout};

use mm_core::{Gfp, PAGE_SIZE, PhysAddr};
use mm_page_alloc::TaskFlags;
use mm_pgtable::layout::page_offset;
use mm_slab::Object;

use crate::mm::layout::levels;
use crate::mm::slab::KMEM;
use crate::mm::{phys, scope};
use crate::{sched, task};

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

    /// A victim of the OOM killer gets nothing any more once the reserves are gone, and `Box::new` would end the kernel: where a task may
    /// wait, it waits for what is no larger than a page. Not who reclaims, as others wait for it, nor before there is anybody to kill.
    fn gfp(size: u64) -> Gfp {
        let may_insist = || task::has_processes() && !scope::current_flags().contains(TaskFlags::MEMALLOC);
        match sched::might_sleep() {
            Some(_) if size <= PAGE_SIZE && may_insist() => Gfp::KERNEL | Gfp::NOFAIL,
            Some(_) => Gfp::KERNEL,
            None => Gfp::ATOMIC,
        }
    }

    fn address(object: Option<Object>) -> *mut u8 {
        object.map_or(core::ptr::null_mut(), |object| phys::object_at(object.addr()))
    }
}

// SAFETY: kmalloc gives memory in the direct map that nobody else has, of at least the size and alignment asked for, until kfree;
// none of it unwinds.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let size = Self::size(layout);
        Self::address(KMEM.kmalloc(size, Self::gfp(size)))
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let size = Self::size(layout);
        Self::address(KMEM.kzalloc(size, Self::gfp(size)))
    }

    unsafe fn dealloc(&self, address: *mut u8, _layout: Layout) {
        let phys = (address as u64).wrapping_sub(page_offset(levels()).as_u64());
        // The console has it already.
        let freed = KMEM.kfree(Object::new(PhysAddr::new(phys)));
        debug_assert!(freed.is_ok(), "{address:p} was freed wrongly");
    }
}
