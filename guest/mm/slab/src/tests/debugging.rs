//! Debugging finds each kind of damage, says where and who, and goes on.

use mm_core::Gfp;

use super::machine::{Sim, boot, read, write};
use crate::{CacheArgs, CacheId, FreeError, Kmem, Object, Options, SlabFlags};

const SIZE: u64 = 56;

fn debugged() -> (Kmem<Sim>, CacheId) {
    let kmem = boot(Options::parse(None, Some("FZPU,victim*"), false).unwrap());
    let id = kmem.create(&CacheArgs::new("victim", 56)).unwrap();
    assert!(kmem.cache(id).slab_flags().contains(SlabFlags::DEBUG));
    (kmem, id)
}

fn alloc(kmem: &Kmem<Sim>, id: CacheId) -> Object {
    kmem.alloc(id, Gfp::KERNEL).unwrap()
}

fn says(kmem: &Kmem<Sim>, texts: &[&str]) {
    let lines = kmem.machine().take_lines();
    for text in texts {
        assert!(lines.iter().any(|line| line.contains(text)), "{text:?} is not in {lines:#?}");
    }
}

#[test]
fn good_use_is_silent() {
    let (kmem, id) = debugged();
    let objects: Vec<Object> = (0..100).map(|_| alloc(&kmem, id)).collect();
    for object in &objects {
        (0..SIZE / 8).for_each(|word| write(&kmem, *object, 8 * word, 1));
    }
    assert_eq!(kmem.free_bulk(id, &objects), 0);
    assert_eq!((kmem.validate(id), kmem.machine().take_lines()), (0, vec![]));
    assert_eq!(kmem.destroy(id), Ok(()));
}

#[test]
fn clearing_an_object_leaves_the_red_zone_behind_it() {
    let kmem = boot(Options::parse(None, Some("FZPU"), false).unwrap());
    for size in [1, 7, 33, 56] {
        let id = kmem.create(&CacheArgs::new("odd", size)).unwrap();
        let object = kmem.alloc(id, Gfp::KERNEL | Gfp::ZERO).unwrap();
        let words = (0..u64::from(size).div_ceil(8)).map(|word| read(&kmem, object, 8 * word));
        let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).take(size as usize).collect();
        assert_eq!(bytes, vec![0; size as usize]);
        assert_eq!(kmem.free(id, object), Ok(()), "of {size} bytes");
        assert_eq!(kmem.destroy(id), Ok(()));
    }
    assert_eq!(kmem.machine().take_lines(), [""; 0]);
}

#[test]
fn an_overflow_names_the_owner_and_is_repaired() {
    let (kmem, id) = debugged();
    let object = alloc(&kmem, id);
    write(&kmem, object, SIZE, 0x4141);
    assert_eq!(kmem.free(id, object), Err(FreeError::Damaged { object }));
    says(
        &kmem,
        &[
            "Right Redzone overwritten",
            "First byte 0x41 instead of 0xcc",
            "Allocated in 0x",
            "pid=42",
            "Restoring",
            "not freed",
        ],
    );
    assert_eq!(kmem.free(id, object), Ok(()));
}

#[test]
fn a_write_before_the_object_is_found() {
    let (kmem, id) = debugged();
    let object = alloc(&kmem, id);
    let before = Object::new(mm_core::PhysAddr::new(object.addr().as_u64() - 8));
    write(&kmem, before, 0, 0);
    assert_eq!(kmem.free(id, object), Err(FreeError::Damaged { object }));
    says(&kmem, &["Left Redzone overwritten"]);
}

#[test]
fn a_second_free_shows_both_stacks() {
    let (kmem, id) = debugged();
    let (object, _other) = (alloc(&kmem, id), alloc(&kmem, id));
    assert_eq!(kmem.free(id, object), Ok(()));
    assert_eq!(kmem.free(id, object), Err(FreeError::DoubleFree { object }));
    says(&kmem, &["Object already free", "Allocated in 0x", "Freed in 0x"]);
}

#[test]
fn a_write_after_the_free_takes_the_slab_out_of_use() {
    let (kmem, id) = debugged();
    let object = alloc(&kmem, id);
    assert_eq!(kmem.free(id, object), Ok(()));
    write(&kmem, object, 8, 0x4343);
    let next = alloc(&kmem, id);
    assert_ne!(next.addr().pfn(), object.addr().pfn());
    says(
        &kmem,
        &["Poison overwritten", "First byte 0x43 instead of 0x6b", "Freed in 0x", "Marking all objects used"],
    );
    assert!(kmem.destroy(id).is_err());
}

#[test]
fn pointers_that_are_no_object_are_refused() {
    let (kmem, id) = debugged();
    let other = kmem.create(&CacheArgs::new("victim-2", 56)).unwrap();
    let (object, foreign) = (alloc(&kmem, id), alloc(&kmem, other));
    let inside = Object::new(mm_core::PhysAddr::new(object.addr().as_u64() + 8));
    assert_eq!(kmem.free(id, inside), Err(FreeError::NotObject { object: inside }));
    assert_eq!(kmem.free(id, foreign), Err(FreeError::WrongCache { object: foreign, owner: Some(other) }));
    says(&kmem, &["Invalid object pointer", "it belongs to cache"]);
    super::audit::audit(&kmem, 2);
}

#[test]
fn a_link_out_of_the_slab_ends_the_free_list() {
    let kmem = boot(super::machine::options("slub"));
    let id = kmem.create(&CacheArgs::new("plain", 64)).unwrap();
    let first = alloc(&kmem, id);
    let next = Object::new(mm_core::PhysAddr::new(first.addr().as_u64() + 64));
    // The link of the next free object, in the middle of it.
    write(&kmem, next, 32, 0xdead_beef);
    assert_eq!(alloc(&kmem, id), next);
    says(&kmem, &["Freechain corrupt"]);
    assert_ne!(alloc(&kmem, id).addr().pfn(), first.addr().pfn());
}

#[test]
fn sizes_and_memory_have_limits() {
    for kind in ["slub", "slab", "slob"] {
        let kmem = boot(super::machine::options(kind));
        assert_eq!(kmem.kmalloc(crate::KMALLOC_MAX_SIZE + 1, Gfp::KERNEL), None);
        assert_eq!(kmem.kcalloc(u64::MAX / 2, 3, Gfp::KERNEL), None);
        assert_eq!(kmem.kmalloc(0, Gfp::KERNEL), Some(Object::ZERO_SIZE));
        for args in [
            CacheArgs::new("", 8),
            CacheArgs::new("a b", 8),
            CacheArgs::new("z", 0),
            CacheArgs::new("z", u32::MAX),
        ] {
            assert!(kmem.create(&args).is_err());
        }
        assert!(kmem.create(&CacheArgs { align: 12, ..CacheArgs::new("z", 8) }).is_err());
        kmem.machine().pages.limit.store(4, std::sync::atomic::Ordering::Relaxed);
        let id = kmem.create(&CacheArgs::new("few", 1000)).unwrap();
        let objects: Vec<Object> = std::iter::from_fn(|| kmem.alloc(id, Gfp::KERNEL)).take(1000).collect();
        assert!(
            !objects.is_empty() && objects.len() < 1000,
            "{kind} gave {} objects of 16 KiB",
            objects.len()
        );
        assert_eq!(kmem.free_bulk(id, &objects), 0);
        assert!(kmem.alloc(id, Gfp::KERNEL).is_some(), "{kind} does not use again what was freed");
    }
}
