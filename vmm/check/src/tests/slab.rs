//! A slab of the synthetic guest, and damage to it.

use memvisor_abi::*;
use memvisor_inspect::SparseMemory;

use super::guest::*;

/// A slab of a cache with red zones, whose first object is free.
const SLAB_PFN: u64 = 0x3280;
/// Bytes from one of its objects to the next: a red zone of 8 bytes, 56 of payload, a red zone of 8, a link.
const SLAB_SIZE: u64 = 128;
const SLAB_OBJECTS: u32 = 32;

/// Descriptor of the slab's frame.
pub(super) fn describe(pfn: u64, page: &mut Page) {
    if pfn == SLAB_PFN {
        let counters = SlabCounters { inuse: SLAB_OBJECTS - 1, objects: SLAB_OBJECTS, frozen: false };
        (page.kind, page.refcount, page.mapcount) = (PageKind::Slab as u8, 1, counters.as_raw());
        page.index = (SLAB_PFN << 12) + 8;
    }
}

/// The contents of the slab, its cache and its node's part of it.
pub(super) fn fill(memory: &mut SparseMemory) -> (Cache, [CacheNode; MAX_CACHES]) {
    for number in 0..u64::from(SLAB_OBJECTS) {
        let object = (SLAB_PFN << 12) + 8 + number * SLAB_SIZE;
        let red = if number == 0 { poison::RED_INACTIVE } else { poison::RED_ACTIVE };
        for zone in [object - 8, object + 56] {
            memory.write_value(zone, &[red; 8]).unwrap();
        }
    }
    let mut name = [0; CACHE_NAME_LEN];
    name[..4].copy_from_slice(b"test");
    let cache = Cache {
        name,
        refcount: 1,
        allocator: SlabKind::Slub as u32,
        flags: cache_flags::RED_ZONE,
        object_size: 56,
        size: 128,
        align: 8,
        offset: 64,
        inuse: 64,
        red_left: 8,
        objects: SLAB_OBJECTS,
        min_objects: SLAB_OBJECTS,
        ..Cache::default()
    };
    let mut nodes = [CacheNode::EMPTY; MAX_CACHES];
    nodes[0].lists[0] = SlabList { head: SLAB_PFN, tail: SLAB_PFN, nr: 1 };
    (nodes[0].nr_slabs, nodes[0].total_objects) = (1, SLAB_OBJECTS.into());
    (cache, nodes)
}

#[test]
fn slab_inuse_sees_a_wrong_count() {
    let mut guest = healthy();
    guest.edit_page(SLAB_PFN, |page| page.mapcount -= 1);
    assert_eq!(only(&guest, "slab.inuse").frame, Some(SLAB_PFN));
}

#[test]
fn slab_freelist_sees_a_link_that_leads_outside() {
    let mut guest = healthy();
    guest.memory.write_u64((SLAB_PFN << 12) + 8 + 64, 0x1000).unwrap();
    assert!(only(&guest, "slab.freelist").outside_says.contains("0x1000"));
}

#[test]
fn slab_lists_sees_a_slab_on_the_wrong_list() {
    let mut guest = healthy();
    let gpa = guest.guest().root().cache_nodes.gpa;
    let mut lists = [SlabList::EMPTY; 3];
    lists[2] = SlabList { head: SLAB_PFN, tail: SLAB_PFN, nr: 1 };
    guest.memory.write_value(gpa, &lists).unwrap();
    assert!(only(&guest, "slab.lists").outside_says.contains("partial list"));
}

#[test]
fn slab_counters_sees_a_slab_too_many() {
    let mut guest = healthy();
    let gpa = guest.guest().root().cache_nodes.gpa;
    guest.memory.write_u64(gpa + 72, 2).unwrap();
    assert!(only(&guest, "slab.counters").what.contains("nr_slabs"));
}

#[test]
fn slab_owner_sees_two_references() {
    let mut guest = healthy();
    guest.edit_page(SLAB_PFN, |page| page.refcount = 2);
    assert_eq!(only(&guest, "slab.owner").guest_says, "2 references");
}

#[test]
fn slab_redzone_names_the_object_that_was_overrun() {
    let mut guest = healthy();
    let object = (SLAB_PFN << 12) + 8 + 3 * SLAB_SIZE;
    guest.memory.write_u64(object + 56, 0).unwrap();
    assert!(only(&guest, "slab.redzone").guest_says.contains(&format!("{object:#x}")));
}
