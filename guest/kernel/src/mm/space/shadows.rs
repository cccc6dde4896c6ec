//! Nodes of files' trees that hold nothing but shadows, and the shrinker that frees them (Linux: mm/workingset.c).

use memvisor_abi::{NodeStat, TableRef};
use mm_core::{MemMap, PhysAddr};
use mm_filemap::{ShadowNodes, count_shadow_nodes, scan_shadow_nodes};
use mm_vma::Id;

use super::Spaces;
use crate::mm::memmap::Vmemmap;
use crate::mm::reclaim::{Shrinker, register_shrinker};
use crate::mm::{page_alloc, phys, vmstat};
use crate::sync::Lock;

static LIST: Lock<ShadowNodes> = Lock::new(ShadowNodes::new());

/// Where the list is, for the root descriptor.
pub fn list() -> TableRef {
    let stride = u32::try_from(size_of::<ShadowNodes>()).unwrap_or(u32::MAX);
    TableRef { gpa: phys::of_image(LIST.as_ptr() as u64).as_u64(), count: 1, stride }
}

/// Calls `f` with the list and its lock held.
pub(super) fn with<R>(f: impl FnOnce(&mut ShadowNodes) -> R) -> R {
    f(&mut LIST.lock())
}

/// Counts something of the memory that a node is in.
pub(super) fn mod_kmem_state(node: Id<mm_filemap::Node>, stat: NodeStat, delta: i64) {
    if let Some(page) = Vmemmap.page(PhysAddr::new(node.as_u64()).pfn()) {
        vmstat::mod_page_state(page, stat, delta);
    }
}

/// Has reclaim ask for them (Linux: `workingset_init`).
pub fn init() {
    let shrinker = Shrinker {
        name: "mm-shadow",
        count: || count_shadow_nodes(&Spaces, present_pages()),
        scan: |nr| scan_shadow_nodes(&Spaces, nr),
        // Nobody reads a disk to make one again.
        seeks: 0,
        pages: 0,
    };
    assert!(register_shrinker(shrinker), "the first shrinkers find room");
}

fn present_pages() -> u64 {
    page_alloc::zones().map(|zone| zone.lock().info().present_pages).sum()
}
