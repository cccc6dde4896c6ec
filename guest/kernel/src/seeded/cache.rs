//! Corruptions of the page cache, on pages of a mapping that is written back and lies on no disk.

use core::mem::offset_of;

use memvisor_abi as abi;
use memvisor_abi::{NodeStat, PageFlags};
use mm_core::{Gfp, MemMap, Order, PAGE_SIZE, Page, Pfn, PhysAddr, PhysMem};
use mm_filemap::{Bound, Cache, Node, add_to_page_cache, put_page, remove_mapping};
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

/// A mapping that is written back, of which only one page is there, and the node of its page 64, which was evicted.
fn shadow() -> Result<Id<Node>, &'static str> {
    let id = cache::new_mapping(Source::Bdev, 128 * PAGE_SIZE).map_err(|_| "no memory")?;
    let mut last = None;
    for index in [0, 64] {
        let pfn = page_alloc::alloc_here(Gfp::HIGHUSER_MOVABLE | Gfp::ZERO, Order::ZERO, None);
        let pfn = pfn.ok_or("no memory")?;
        add_to_page_cache(&Spaces, id, index, pfn, Bound::Size).map_err(|_| "no memory")?;
        if let Some(pfn) = last.replace(pfn) {
            put_page(&Spaces, pfn);
        }
    }
    mm_vmscan::lru_add_drain_all(&Spaces);
    let pfn = last.ok_or("no memory")?;
    let page = Vmemmap.page(pfn).ok_or("no descriptor")?;
    // The cache has a reference of it, and this.
    if !remove_mapping(&Spaces, pfn, || 77) {
        return Err("the page is in use");
    }
    page.set_refcount(1);
    put_page(&Spaces, pfn);
    Spaces.shadow_nodes(|list| list.last()).ok_or("no node has only shadows")
}

fn change_node(id: Id<Node>, offset: usize, value: u64) {
    DirectMap.write_u64(PhysAddr::new(id.as_u64() + offset as u64), value);
}

/// A zone that counts a node less than the list has.
pub fn shadow_count() -> Outcome {
    let node = shadow()?;
    vmstat::mod_page_state(
        Vmemmap.page(PhysAddr::new(node.as_u64()).pfn()).ok_or("no descriptor")?,
        NodeStat::WorkingsetNodes,
        -1,
    );
    Ok(())
}

/// A node that does not know of its value.
pub fn shadow_values() -> Outcome {
    change_node(shadow()?, offset_of!(abi::MappingNode, values), 0);
    Ok(())
}

/// A node with nothing but shadows that says it is on no list.
pub fn shadow_lost() -> Outcome {
    change_node(shadow()?, offset_of!(abi::MappingNode, mapping), 0);
    Ok(())
}
