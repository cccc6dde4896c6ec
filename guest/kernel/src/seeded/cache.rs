//! Corruptions of the page cache, on pages of a mapping that is written back and lies on no disk.

use core::mem::offset_of;

use memvisor_abi as abi;
use memvisor_abi::{NodeStat, PageFlags};
use mm_core::{Gfp, MemMap, Order, PAGE_SIZE, Page, Pfn, PhysAddr, PhysMem};
use mm_filemap::{Bound, add_to_page_cache, put_page};
use mm_vma::{Id, Mapping};

use crate::mm::memmap::Vmemmap;
use crate::mm::page_alloc;
use crate::mm::phys::DirectMap;
use crate::mm::space::{Source, Spaces, cache};
use crate::mm::{vmstat, writeback};

type Outcome = Result<(), &'static str>;

/// A mapping of four pages, the second of them dirty: the mapping, and that page.
fn victim() -> Result<(Id<Mapping>, Pfn, &'static Page), &'static str> {
    let id = cache::new_mapping(Source::Bdev, 4 * PAGE_SIZE).map_err(|_| "no memory")?;
    let mut second = None;
    for index in 0..4 {
        let pfn = page_alloc::alloc_here(Gfp::HIGHUSER_MOVABLE | Gfp::ZERO, Order::ZERO, None);
        let pfn = pfn.ok_or("no memory")?;
        add_to_page_cache(&Spaces, id, index, pfn, Bound::Size).map_err(|_| "no memory")?;
        put_page(&Spaces, pfn);
        if index == 1 {
            second = Some(pfn);
        }
    }
    let pfn = second.ok_or("no memory")?;
    writeback::mark_dirty(pfn);
    Ok((id, pfn, Vmemmap.page(pfn).ok_or("no descriptor")?))
}

fn change(id: Id<Mapping>, offset: usize, f: impl FnOnce(u64) -> u64) {
    let at = PhysAddr::new(id.as_u64() + offset as u64);
    DirectMap.write_u64(at, f(DirectMap.read_u64(at)));
}

/// A mapping that has a page more than its tree.
pub fn nrpages() -> Outcome {
    let (id, ..) = victim()?;
    change(id, offset_of!(abi::Mapping, nrpages), |pages| pages + 1);
    Ok(())
}

/// A page that says another index than the one at which the tree has it.
pub fn index() -> Outcome {
    let (_, _, page) = victim()?;
    page.set_index(3);
    Ok(())
}

/// A dirty page that nobody finds to write it.
pub fn unmarked() -> Outcome {
    let (id, ..) = victim()?;
    // All its marks, at the root and in the only node.
    let marks = offset_of!(abi::Mapping, marks);
    change(id, marks & !7, |word| if marks % 8 == 0 { word & !0xffff_ffff } else { word & 0xffff_ffff });
    let root = DirectMap.read_u64(PhysAddr::new(id.as_u64() + offset_of!(abi::Mapping, root) as u64));
    let node = PhysAddr::new((root & !3) + offset_of!(abi::MappingNode, marks) as u64);
    DirectMap.write_u64(node, 0);
    Ok(())
}

/// A page that became dirty without being counted.
pub fn dirty_count() -> Outcome {
    let (..) = victim()?;
    writeback::spoil(1, 0);
    Ok(())
}

/// A write that ended and is counted still.
pub fn writeback_count() -> Outcome {
    let (..) = victim()?;
    writeback::spoil(0, 1);
    Ok(())
}

/// A page that is being written, and that neither the tree nor the count knows of.
pub fn writeback_flag() -> Outcome {
    let (_, _, page) = victim()?;
    page.insert(PageFlags::WRITEBACK);
    Ok(())
}

/// A page that counts as mapped, and that nobody maps.
pub fn stats_mapped() -> Outcome {
    let (_, _, page) = victim()?;
    vmstat::mod_page_state(page, NodeStat::FileMapped, 1);
    Ok(())
}

/// A page of a mapping that its zone does not count.
pub fn stats_file_pages() -> Outcome {
    let (_, _, page) = victim()?;
    vmstat::mod_page_state(page, NodeStat::FilePages, -1);
    Ok(())
}
