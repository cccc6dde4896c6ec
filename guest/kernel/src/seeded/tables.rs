//! Corruptions of the kernel's page tables. New mappings go to the middle of the vmalloc range, far from areas; nobody
//! ever accesses them.

use mm_core::{Order, PAGE_SIZE, PageKind, Pfn, PhysAddr, VirtAddr};
use mm_pgtable::{CacheMode, Entry, LeafSize, Prot, PteFlags, TableMem, layout};

use crate::mm::layout::levels;
use crate::mm::paging::{self, Tables};
use crate::mm::{page_alloc, phys};

type Outcome = Result<(), &'static str>;

fn somewhere() -> VirtAddr {
    VirtAddr::new(layout::vmalloc_start(levels()).as_u64() + (1 << 38))
}

fn map(pfn: Pfn, prot: Prot) {
    paging::map_kernel(somewhere(), pfn.phys(), PAGE_SIZE, prot, LeafSize::Size4K);
}

fn frame() -> Result<Pfn, &'static str> {
    page_alloc::alloc_pages(Order::ZERO, None, PageKind::Allocated).ok_or("no memory")
}

/// Calls `f(table, index, entry)` for each step to the new mapping, the leaf last.
fn path(f: impl FnMut(u8, Pfn, usize, Entry)) {
    paging::kernel().walk(&Tables, somewhere(), f);
}

/// Kernel code that can be written.
pub fn wx_mapping() -> Outcome {
    let prot = Prot { write: true, ..Prot::KERNEL_RX };
    paging::protect_kernel(VirtAddr::new(phys::image().va), PAGE_SIZE, prot);
    Ok(())
}

/// Kernel memory that ring 3 can read.
pub fn user_kernel_mapping() -> Outcome {
    map(frame()?, Prot::KERNEL_RW);
    path(|_, table, index, entry| Tables.write(table, index, entry.as_u64() | PteFlags::USER.bits()));
    Ok(())
}

/// A leaf with a physical address that the CPU does not have.
pub fn reserved_bit() -> Outcome {
    let bits = crate::arch::cpu::detect(false).phys_bits;
    if bits >= 52 {
        return Err("the CPU has all 52 physical address bits, so no bit is reserved");
    }
    map(frame()?, Prot::KERNEL_RW);
    path(|level, table, index, entry| {
        if level == 1 {
            Tables.write(table, index, entry.as_u64() | 1 << 51);
        }
    });
    Ok(())
}

/// RAM that the direct map does not have any more.
pub fn direct_map_hole() -> Outcome {
    let va = layout::phys_to_virt(levels(), frame()?.phys()).ok_or("beyond the direct map")?;
    paging::unmap_kernel(va, PAGE_SIZE);
    Ok(())
}

/// A table that lies in the hole below 4 GiB.
pub fn table_outside_ram() -> Outcome {
    const HOLE: u64 = 0xd000_0000;
    map(frame()?, Prot::KERNEL_RW);
    path(|level, table, index, _| {
        if level == 2 {
            Tables.write(table, index + 1, Entry::table(PhysAddr::new(HOLE).pfn(), false).as_u64());
        }
    });
    Ok(())
}

/// A frame mapped write-back in the direct map and uncached here.
pub fn cache_alias() -> Outcome {
    map(frame()?, Prot { cache: CacheMode::Uc, ..Prot::KERNEL_RW });
    Ok(())
}

/// Kernel code that can be written through another mapping.
pub fn exec_alias() -> Outcome {
    map(PhysAddr::new(phys::image().phys).pfn(), Prot::KERNEL_RW);
    Ok(())
}
