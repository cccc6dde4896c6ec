//! Objects that readers without locks may look at stay objects until those have ended.

use mm_core::Gfp;

use super::machine::{boot, options};
use crate::{CacheArgs, Object, SlabFlags};

const OBJECTS: usize = 400;

/// Frames in use at each wait for readers, and at the end, of a cache with these flags whose objects came and went.
fn waits(kind: &str, flags: SlabFlags) -> (Vec<u64>, u64) {
    let kmem = boot(options(kind));
    let args = CacheArgs { flags: flags | SlabFlags::NO_MERGE, ..CacheArgs::new("readers", 256) };
    let id = kmem.create(&args).unwrap();
    let objects: Vec<Object> = (0..OBJECTS).map(|_| kmem.alloc(id, Gfp::KERNEL).unwrap()).collect();
    objects.into_iter().for_each(|object| kmem.free(id, object).unwrap());
    kmem.shrink(id);
    let waits = kmem.machine().graces.lock().unwrap().clone();
    (waits, kmem.machine().pages.allocated())
}

#[test]
fn slabs_go_back_after_a_wait_for_readers() {
    for kind in ["slub", "slab"] {
        let (waits, left) = waits(kind, SlabFlags::TYPESAFE_BY_RCU);
        // Each wait is before the pages that it is for are gone, and the last before the last.
        assert!(waits.is_sorted_by(|a, b| a > b), "{kind}: {waits:?}");
        assert!(waits.last().is_some_and(|at| *at > left), "{kind}: {waits:?}, then {left}");
    }
}

#[test]
fn slob_waits_for_each_object_because_anything_may_be_next_to_it() {
    assert_eq!(waits("slob", SlabFlags::TYPESAFE_BY_RCU).0.len(), OBJECTS);
}

#[test]
fn nobody_waits_for_an_ordinary_cache() {
    for kind in ["slub", "slab", "slob"] {
        assert_eq!(waits(kind, SlabFlags::empty()).0, [], "{kind}");
    }
}
