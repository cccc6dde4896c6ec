//! Corruptions of frame ownership and of descriptors.

use mm_core::{MemMap, Order, Page, PageFlags, PageKind, Pfn, VirtAddr};
use mm_pgtable::layout;

use crate::mm::layout::levels;
use crate::mm::memmap::Vmemmap;
use crate::mm::page_alloc;
use crate::mm::paging::Tables;
use crate::task;
use crate::topology::CPUS;

type Outcome = Result<(), &'static str>;

/// A frame that the living process maps.
pub(super) fn user_frame() -> Result<Pfn, &'static str> {
    let table = task::user_table().ok_or("no process is alive")?;
    let mut found = None;
    let all = layout::task_size(levels()) & !0xfff;
    let walked = table.for_each_leaf(&Tables, VirtAddr::new(0), all, |leaf| {
        found = Some(leaf.entry.phys(leaf.level).pfn())
    });
    walked.ok().and(found).ok_or("the process maps nothing")
}

fn descriptor(pfn: Pfn) -> Result<&'static Page, &'static str> {
    static MAP: Vmemmap = Vmemmap;
    MAP.page(pfn).ok_or("the frame has no descriptor")
}

/// A page table in use goes back to the buddy allocator.
pub fn double_owner() -> Outcome {
    let table = task::user_table().ok_or("no process is alive")?;
    let mut last = None;
    let all = layout::task_size(levels()) & !0xfff;
    let walked = table.for_each_table(&Tables, VirtAddr::new(0), all, |_, pfn| last = Some(pfn));
    page_alloc::free_pages(walked.ok().and(last).ok_or("the process has no tables")?, Order::ZERO);
    Ok(())
}

/// A frame that nobody owns and no list holds.
pub fn leak() -> Outcome {
    let pfn = page_alloc::alloc_pages(Order::ZERO, None, PageKind::Allocated).ok_or("no memory")?;
    let page = descriptor(pfn)?;
    page.set_kind(PageKind::None);
    page.set_refcount(0);
    Ok(())
}

/// A user frame that calls itself a page table.
pub fn wrong_kind() -> Outcome {
    descriptor(user_frame()?)?.set_kind(PageKind::Table);
    Ok(())
}

/// A frame that names the wrong node.
pub fn memmap_node() -> Outcome {
    let page = descriptor(user_frame()?)?;
    page.set_links(page.node() + 1, page.zone());
    Ok(())
}

/// A frame that is free, and marked as its last page was.
pub fn free_swapbacked() -> Outcome {
    let pfn = page_alloc::alloc_pages(Order::ZERO, None, PageKind::Allocated).ok_or("no memory")?;
    descriptor(pfn)?.insert(PageFlags::SWAPBACKED);
    page_alloc::free_pages(pfn, Order::ZERO);
    Ok(())
}

/// A user frame that counts more mappings than there are.
pub fn user_refcount() -> Outcome {
    let page = descriptor(user_frame()?)?;
    page.set_mapcount(page.mapcount() + 3);
    Ok(())
}

/// Two CPUs with one area.
pub fn percpu_overlap() -> Outcome {
    let mut cpus = CPUS.lock();
    if cpus.count < 2 {
        return Err("it has one CPU");
    }
    cpus.table[1].percpu_gpa = cpus.table[0].percpu_gpa + 4096;
    Ok(())
}
