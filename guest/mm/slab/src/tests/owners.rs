//! Slabs of CPUs: who owns one, what others free in it, and when it goes back.

use std::sync::atomic::Ordering::Relaxed;

use memvisor_abi::SlabCounters;
use mm_core::{Gfp, MemMap, Page};

use super::audit::audit;
use super::machine::{Sim, boot, options, run_on};
use crate::owner::Owner;
use crate::{CacheArgs, CacheId, Kmem, Machine, Object, SlabFlags};

/// Objects of a slab of order 0.
const PER_SLAB: usize = 64;

fn cache() -> (Kmem<Sim>, CacheId) {
    let kmem = boot(options("slub"));
    let id = kmem.create(&CacheArgs { flags: SlabFlags::NO_MERGE, ..CacheArgs::new("own", 64) }).unwrap();
    assert_eq!(kmem.cache(id).objects() as usize, PER_SLAB);
    (kmem, id)
}

fn fill(kmem: &Kmem<Sim>, id: CacheId, count: usize) -> Vec<Object> {
    (0..count).map(|_| kmem.alloc(id, Gfp::KERNEL).unwrap()).collect()
}

fn page(kmem: &Kmem<Sim>, object: Object) -> &Page {
    kmem.machine().map().page(object.addr().pfn()).unwrap()
}

fn inuse(kmem: &Kmem<Sim>, object: Object) -> u32 {
    SlabCounters::from_raw(page(kmem, object).mapcount()).inuse
}

#[test]
fn a_full_slab_becomes_that_of_the_cpu_which_frees_first() {
    let (kmem, id) = cache();
    let objects = fill(&kmem, id, 2 * PER_SLAB);
    assert_eq!(Owner::in_page(page(&kmem, objects[0])), Owner::FULL);
    run_on(&kmem, 2);
    // A CPU without a part of the cache yet sets it up on the way.
    assert_eq!(kmem.free_bulk(id, &objects[..2]), 0);
    assert_eq!(Owner::in_page(page(&kmem, objects[0])), Owner::of(2));
    assert_eq!(inuse(&kmem, objects[0]), 62);
    audit(&kmem, 126);
    // Its owner allocates from it.
    assert!(objects[..2].contains(&kmem.alloc(id, Gfp::KERNEL).unwrap()));
}

#[test]
fn what_others_free_comes_back_when_the_owner_runs_out() {
    let (kmem, id) = cache();
    // CPU 0's current slab, and all of its objects in use.
    let objects = fill(&kmem, id, PER_SLAB);
    assert_eq!(Owner::in_page(page(&kmem, objects[0])), Owner::of(0));
    run_on(&kmem, 2);
    assert_eq!(kmem.free_bulk(id, &objects[..30]), 0);
    // They are in the array of CPU 2; a shrink sends them home, and the slab to its node.
    audit(&kmem, 34);
    // More than the array takes: the oldest go home.
    let more = fill(&kmem, id, 30);
    assert!(more.iter().all(|object| objects.contains(object)), "the array is used first");
    run_on(&kmem, 0);
    let full: Vec<Object> = fill(&kmem, id, 4 * PER_SLAB);
    run_on(&kmem, 2);
    assert_eq!(kmem.free_bulk(id, &full), 0);
    assert_eq!(kmem.free_bulk(id, &objects), 0);
    audit(&kmem, 0);
    run_on(&kmem, 0);
    let again = fill(&kmem, id, 5 * PER_SLAB);
    audit(&kmem, 5 * PER_SLAB as u64);
    assert_eq!(kmem.free_bulk(id, &again), 0);
    assert_eq!(kmem.destroy(id), Ok(()));
    assert_eq!(kmem.machine().take_lines(), [""; 0]);
}

#[test]
fn the_owner_collects_what_others_freed_of_its_current_slab() {
    let (kmem, id) = cache();
    let objects = fill(&kmem, id, PER_SLAB);
    // CPU 2 has a small array: what it frees goes home at once.
    run_on(&kmem, 2);
    let own = fill(&kmem, id, 1);
    kmem.machine().cpus.set_limit(2, id, 4);
    assert_eq!(kmem.free_bulk(id, &objects[..20]), 0);
    let first = page(&kmem, objects[0]);
    assert_ne!(Owner::freed_by_others(first), 0);
    assert_eq!((Owner::in_page(first), inuse(&kmem, objects[0])), (Owner::of(0), 64));
    audit(&kmem, 45);
    let before = kmem.machine().pages.allocated();
    run_on(&kmem, 0);
    let again = fill(&kmem, id, 16);
    assert!(again.iter().all(|object| objects.contains(object)));
    assert_eq!(kmem.machine().pages.allocated(), before, "a new slab was made");
    audit(&kmem, 61);
    assert_eq!(kmem.free_bulk(id, &again), 0);
    assert_eq!(kmem.free_bulk(id, &objects[20..]), 0);
    assert_eq!(kmem.free_bulk(id, &own), 0);
    assert_eq!(kmem.destroy(id), Ok(()));
}

#[test]
fn empty_slabs_of_a_cpu_are_given_back_when_they_are_many() {
    let (kmem, id) = cache();
    let objects = fill(&kmem, id, 100 * PER_SLAB);
    assert_eq!(kmem.machine().pages.allocated(), 100);
    assert_eq!(kmem.free_bulk(id, &objects), 0);
    let kept = kmem.machine().pages.allocated();
    assert!((1..=40).contains(&kept), "{kept} pages stay");
    audit(&kmem, 0);
    kmem.shrink(id);
    assert_eq!(kmem.machine().pages.allocated(), 0);
}

#[test]
fn empty_slabs_of_a_node_are_empty_slabs_of_the_cpu_that_takes_them() {
    let (kmem, id) = cache();
    let objects = fill(&kmem, id, 100 * PER_SLAB);
    assert_eq!(kmem.free_bulk(id, &objects), 0);
    let on_node = kmem.machine().with_node(id, 0, |n| n.lists[0].nr);
    assert!(on_node > 1, "{on_node} slabs are on the node's list");
    run_on(&kmem, 2);
    let object = kmem.alloc(id, Gfp::KERNEL).unwrap();
    let left = kmem.machine().with_node(id, 0, |n| n.lists[0].nr);
    assert!(left + 1 < on_node, "the CPU took one slab only");
    audit(&kmem, 1);
    assert_eq!(kmem.free(id, object), Ok(()));
    assert_eq!(kmem.destroy(id), Ok(()));
}

#[test]
fn a_cpu_with_too_many_partial_slabs_gives_them_to_the_node() {
    let kmem = boot(options("slub"));
    // Slabs of 32 KiB: 128 of them are 4 MiB.
    let args = CacheArgs { flags: SlabFlags::NO_MERGE, ..CacheArgs::new("wide", 2600) };
    let id = kmem.create(&args).unwrap();
    let per_slab = kmem.cache(id).objects() as usize;
    let slabs = (4 << 20 >> 12 >> kmem.cache(id).order()) as usize + 10;
    let objects = fill(&kmem, id, slabs * per_slab);
    for first in objects.iter().step_by(per_slab) {
        assert_eq!(kmem.free(id, *first), Ok(()));
    }
    let on_nodes: u64 = (0..2).map(|node| kmem.machine().with_node(id, node, |n| n.lists[0].nr)).sum();
    assert!(on_nodes > 100, "{on_nodes} slabs are on the nodes' lists");
    audit(&kmem, (slabs * (per_slab - 1)) as u64);
}

#[test]
fn only_a_gfp_that_may_sleep_asks_for_pages_with_direct_reclaim() {
    for kind in ["slub", "slab", "slob"] {
        let kmem = boot(options(kind));
        let last = || *kmem.machine().pages.seen.lock().unwrap().last().unwrap();
        for (gfp, sleeps) in [(Gfp::KERNEL, true), (Gfp::ATOMIC, false), (Gfp::NOWAIT, false)] {
            let id =
                kmem.create(&CacheArgs { flags: SlabFlags::NO_MERGE, ..CacheArgs::new("gfp", 64) }).unwrap();
            // Without memory every attempt is made, down to the last.
            kmem.machine().pages.limit.store(0, Relaxed);
            assert_eq!(kmem.alloc(id, gfp), None);
            assert_eq!(last().contains(Gfp::DIRECT_RECLAIM), sleeps, "{kind}: objects with {gfp:?}");
            assert_eq!(kmem.kmalloc(100_000, gfp), None);
            assert_eq!(last().contains(Gfp::DIRECT_RECLAIM), sleeps, "{kind}: pages with {gfp:?}");
            kmem.machine().pages.limit.store(u64::MAX, Relaxed);
            assert_eq!(kmem.destroy(id), Ok(()));
        }
    }
}
