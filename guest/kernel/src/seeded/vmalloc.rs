//! Corruptions of the vmalloc range, of kernel stacks' guards and of the kmap windows.

use memvisor_abi::VmArea;
use mm_core::{MemMap, Order, PAGE_SIZE, PageKind, Pfn, PhysAddr, PhysMem, VirtAddr};
use mm_pgtable::{CacheMode, LeafSize, Prot, TableMem};
use mm_vmalloc::Request;

use crate::mm::fixmap::{self, Fixed};
use crate::mm::memmap::Vmemmap;
use crate::mm::paging::{self, Tables};
use crate::mm::phys::DirectMap;
use crate::mm::vmalloc::{self, AREAS, Kernel};
use crate::mm::{kmap, page_alloc};
use crate::sched::{self, WaitQueue};

type Outcome = Result<(), &'static str>;

const PAGES: u64 = 4;

fn area() -> Result<VirtAddr, &'static str> {
    vmalloc::vmalloc(&Request::new(PAGES * PAGE_SIZE), &sched::task_context()).map_err(|_| "vmalloc failed")
}

fn frame() -> Result<Pfn, &'static str> {
    page_alloc::alloc_pages(Order::ZERO, None, PageKind::Allocated).ok_or("no memory")
}

fn after(va: VirtAddr, pages: u64) -> VirtAddr {
    VirtAddr::new(va.as_u64() + pages * PAGE_SIZE)
}

/// An area that reaches into the next one.
pub fn overlap() -> Outcome {
    let (first, second) = (area()?, area()?);
    // By reference: the directory does not fit on a kernel stack.
    let areas = AREAS.lock();
    for &frame in areas.directory().iter().filter(|frame| **frame != mm_core::PFN_NONE) {
        for number in 0..memvisor_abi::VM_AREAS_PER_FRAME {
            let base = Pfn::new(frame).phys().as_u64() + number * size_of::<VmArea>() as u64;
            if Kernel.read_u64(PhysAddr::new(base)) == first.as_u64() {
                // `VmArea::end` is the second word.
                DirectMap.write_u64(PhysAddr::new(base + 8), after(second, 1).as_u64());
                return Ok(());
            }
        }
    }
    Err("the area has no descriptor")
}

/// A page of an area that is not mapped.
pub fn unmapped() -> Outcome {
    let va = area()?;
    let (mut table, mut index) = (Pfn::new(0), 0);
    paging::kernel().walk(&Tables, after(va, 1), |_, t, i, _| (table, index) = (t, i));
    Tables.write(table, index, 0);
    Ok(())
}

/// A guard page that is mapped.
pub fn guard() -> Outcome {
    let va = area()?;
    paging::map_kernel(after(va, PAGES), frame()?.phys(), PAGE_SIZE, Prot::KERNEL_RW, LeafSize::Size4K);
    Ok(())
}

/// A mapping in the vmalloc range that no area knows.
pub fn outside() -> Outcome {
    let (start, len) = vmalloc::space();
    let va = VirtAddr::new(start.as_u64() + len / 2);
    paging::map_kernel(va, frame()?.phys(), PAGE_SIZE, Prot::KERNEL_RW, LeafSize::Size4K);
    Ok(())
}

/// A frame behind one area that says it is behind another.
pub fn owner() -> Outcome {
    let va = area()?;
    let pfn = vmalloc::vm().to_pfn(after(va, 2)).ok_or("the area is not mapped")?;
    let page = Vmemmap.page(pfn).ok_or("the frame has no descriptor")?;
    page.set_mapping(va.as_u64() + (1 << 20));
    Ok(())
}

/// A thread that sleeps on a stack whose guard page is mapped.
pub fn stack_guard() -> Outcome {
    static NEVER: WaitQueue = WaitQueue::new();
    fn sleep(_: u64) {
        NEVER.wait_event(&sched::task_context(), || false);
    }
    let context = sched::task_context();
    let thread = sched::spawn("sleeper", sleep, 0, &context).map_err(|_| "no thread")?;
    sched::yield_now(&context);
    let below = VirtAddr::new(thread.stack().as_u64() - PAGE_SIZE);
    paging::map_kernel(below, frame()?.phys(), PAGE_SIZE, Prot::KERNEL_RW, LeafSize::Size4K);
    Ok(())
}

/// A slot of kmap that counts users and maps nothing.
pub fn kmap_count() -> Outcome {
    kmap::PKMAP.lock().slots_mut()[7].count = 2;
    Ok(())
}

/// A fixmap slot that was emptied in the books only.
pub fn fixmap_stale() -> Outcome {
    fixmap::set_fixmap(Fixed::TextPoke0, frame()?.phys(), CacheMode::Wb);
    fixmap::SLOTS.lock()[Fixed::TextPoke0 as usize].count = 0;
    Ok(())
}
