//! What a wrong caller gets from each allocator: a refusal that names the culprit, and nothing changed.

use mm_core::{Gfp, PhysAddr};

use super::audit::audit;
use super::machine::{Sim, boot, options, read, run_on, write};
use crate::{CacheArgs, CacheId, DestroyError, FreeError, KMALLOC_MAX_SIZE, Kmem, Object, SlabFlags};

const KINDS: [&str; 3] = ["slub", "slab", "slob"];

fn create(kmem: &Kmem<Sim>, name: &str, size: u32) -> CacheId {
    kmem.create(&CacheArgs { flags: SlabFlags::NO_MERGE, ..CacheArgs::new(name, size) }).unwrap()
}

fn alloc(kmem: &Kmem<Sim>, id: CacheId) -> Object {
    kmem.alloc(id, Gfp::KERNEL).unwrap()
}

fn at(addr: u64) -> Object {
    Object::new(PhysAddr::new(addr))
}

fn says(kmem: &Kmem<Sim>, text: &str) {
    let lines = kmem.machine().take_lines();
    assert!(lines.iter().any(|line| line.contains(text)), "{text:?} is not in {lines:#?}");
}

#[test]
fn no_bytes_are_an_object_that_may_be_freed_and_resized() {
    for kind in KINDS {
        let kmem = boot(options(kind));
        for object in [kmem.kmalloc(0, Gfp::KERNEL), kmem.kmalloc_node(0, Gfp::KERNEL, 1)] {
            assert_eq!(object, Some(Object::ZERO_SIZE), "{kind}");
        }
        assert_eq!(kmem.ksize(Object::ZERO_SIZE), Some(0));
        assert_eq!(kmem.kfree(Object::ZERO_SIZE), Ok(()));
        let grown = kmem.krealloc(Some(Object::ZERO_SIZE), 24, Gfp::KERNEL).unwrap();
        assert_eq!(kmem.krealloc(Some(grown), 0, Gfp::KERNEL), Some(Object::ZERO_SIZE));
        assert_eq!(kmem.machine().take_lines(), [""; 0], "{kind}");
        audit(&kmem, 0);
    }
}

#[test]
fn a_request_that_is_to_fail_gets_nothing_and_changes_nothing() {
    for kind in KINDS {
        let kmem = boot(options(kind));
        let id = create(&kmem, "victim", 64);
        assert!(kmem.machine().failslab.setup("2,100,0,-1"));
        let objects: Vec<_> = (0..8).map(|_| kmem.alloc(id, Gfp::KERNEL)).collect();
        assert_eq!(objects.iter().filter(|object| object.is_some()).count(), 4, "{kind}");
        assert!(objects.iter().skip(1).step_by(2).all(Option::is_none), "{kind}: every second one fails");
        assert_eq!(kmem.alloc_node(id, Gfp::KERNEL, 0).map(|object| kmem.free(id, object)), Some(Ok(())));
        // SLOB's kmalloc has no cache that could be asked (Linux: no FAILSLAB with SLOB).
        let other = kmem.kmalloc(64, Gfp::KERNEL).map(|object| kmem.kfree(object));
        assert_eq!(other, (kind == "slob").then_some(Ok(())), "{kind}");
        for object in objects.into_iter().flatten() {
            assert_eq!(kmem.free(id, object), Ok(()), "{kind}");
        }
        audit(&kmem, 0);
    }
}

#[test]
fn huge_sizes_are_refused_and_said() {
    for kind in KINDS {
        let kmem = boot(options(kind));
        for size in [KMALLOC_MAX_SIZE + 1, u64::MAX / 2, u64::MAX] {
            assert_eq!(kmem.kmalloc(size, Gfp::KERNEL), None, "{kind} {size:#x}");
            says(&kmem, "bytes are more than 4194304");
            assert_eq!(kmem.kmalloc(size, Gfp::KERNEL | Gfp::NOWARN), None);
            assert_eq!(kmem.machine().take_lines(), [""; 0], "{kind} complains in spite of NOWARN");
        }
        let object = kmem.kmalloc(100, Gfp::KERNEL).unwrap();
        assert_eq!(kmem.krealloc(Some(object), u64::MAX, Gfp::KERNEL), None);
        assert_eq!(kmem.kfree(object), Ok(()), "{kind}: a refused krealloc keeps the old object");
    }
}

#[test]
fn a_cache_with_objects_in_it_stays_and_says_how_many() {
    for kind in KINDS {
        let kmem = boot(options(kind));
        let id = create(&kmem, "busy", 40);
        let objects: Vec<Object> = (0..5).map(|_| alloc(&kmem, id)).collect();
        write(&kmem, objects[3], 32, 77);
        assert_eq!(kmem.destroy(id), Err(DestroyError::Busy { objects: 5 }), "{kind}");
        says(&kmem, "kmem_cache_destroy busy: Slab cache still has 5 objects");
        assert_eq!(read(&kmem, objects[3], 32), 77, "{kind} touched a live object");
        audit(&kmem, 5);
        assert_eq!(kmem.free_bulk(id, &objects), 0);
        assert_eq!(kmem.destroy(id), Ok(()), "{kind}");
        assert_eq!(kmem.destroy(id), Err(DestroyError::Unused { cache: id }), "{kind}");
        assert_eq!(kmem.alloc(id, Gfp::KERNEL), None, "{kind} gives objects of no cache");
        says(&kmem, "which does not exist");
    }
}

#[test]
fn an_object_of_another_cache_is_named_with_its_owner() {
    for kind in KINDS {
        let kmem = boot(options(kind));
        // SLOB's objects of less than a page carry no owner, in Linux, too.
        let size = if kind == "slob" { 5000 } else { 64 };
        let (id, other) = (create(&kmem, "mine", 64), create(&kmem, "other", size));
        let (mine, foreign) = (alloc(&kmem, id), alloc(&kmem, other));
        assert!(kmem.free(id, foreign).is_err(), "{kind}");
        if kind != "slob" {
            says(&kmem, &format!("free of {foreign}: it belongs to cache {}", other.as_u64()));
        }
        audit(&kmem, 2);
        assert_eq!((kmem.free(id, mine), kmem.free(other, foreign)), (Ok(()), Ok(())), "{kind}");
    }
}

#[test]
fn addresses_that_are_no_object_are_refused() {
    for kind in KINDS {
        let kmem = boot(options(kind));
        let id = create(&kmem, "plain", 64);
        let object = alloc(&kmem, id);
        for wrong in [0, 8, 3000 << 12, object.addr().as_u64() + 4, u64::MAX >> 13, (1 << 52) - 8] {
            assert!(kmem.free(id, at(wrong)).is_err(), "{kind} takes {wrong:#x}");
            assert!(wrong == 16 || kmem.kfree(at(wrong)).is_err(), "{kind} takes {wrong:#x} by kfree");
        }
        audit(&kmem, 1);
        assert_eq!(kmem.free(id, object), Ok(()));
    }
}

#[test]
fn a_second_free_at_once_is_refused_wherever_the_object_went() {
    for kind in ["slub", "slab"] {
        let kmem = boot(options(kind));
        let id = create(&kmem, "twice", 64);
        // More than a slab has: the first ones are in full slabs.
        let objects: Vec<Object> = (0..150).map(|_| alloc(&kmem, id)).collect();
        // A full slab, a partial one of this CPU, its current one.
        for object in [objects[0], objects[1], objects[149]] {
            assert_eq!(kmem.free(id, object), Ok(()));
            assert_eq!(kmem.free(id, object), Err(FreeError::DoubleFree { object }), "{kind}");
            says(&kmem, &format!("double free of {object}"));
        }
        // A slab of another CPU's: by way of this one's array.
        run_on(&kmem, 2);
        assert_eq!(kmem.free(id, objects[2]), Ok(()));
        assert_eq!(kmem.free(id, objects[2]), Err(FreeError::DoubleFree { object: objects[2] }), "{kind}");
        audit(&kmem, 146);
    }
}

#[test]
fn a_second_free_into_an_empty_slab_is_refused() {
    let kmem = boot(options("slub"));
    let id = create(&kmem, "twice", 64);
    let objects: Vec<Object> = (0..150).map(|_| alloc(&kmem, id)).collect();
    assert_eq!(kmem.free_bulk(id, &objects[..64]), 0);
    for object in &objects[..64] {
        assert_eq!(kmem.free(id, *object), Err(FreeError::DoubleFree { object: *object }));
    }
    audit(&kmem, 86);
}

#[test]
fn a_table_that_is_full_refuses_the_next_cache() {
    let kmem = boot(options("slub"));
    let made = (0..crate::MAX_CACHES)
        .map(|number| {
            let name = format!("c{number}");
            kmem.create(&CacheArgs { flags: SlabFlags::NO_MERGE, ..CacheArgs::new(&name, 32) })
        })
        .collect::<Vec<_>>();
    assert_eq!(made.last(), Some(&Err(crate::CreateError::Full)));
    let first = made[0].unwrap();
    assert_eq!(kmem.create(&CacheArgs::new("c0", 32)), Err(crate::CreateError::Exists { cache: first }));
    assert_eq!(kmem.destroy(first), Ok(()));
    assert!(kmem.create(&CacheArgs::new("again", 32)).is_ok());
}
