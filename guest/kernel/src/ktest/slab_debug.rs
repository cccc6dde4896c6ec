//! Debugging of caches on real memory: each kind of damage is found, named and survived. The command line says
//! `slub_debug=FZPU,t-debug*`; the cases look for the reports on the console.

use memvisor_abi::SlabKind;
use mm_core::{Gfp, PhysAddr, PhysMem};
use mm_slab::{CacheArgs, CacheId, FreeError, Object, SlabFlags};

use super::{Failure, Test, check};
use crate::mm::phys::DirectMap;
use crate::mm::slab::{KMEM, kind};

pub const TESTS: [(&str, Test); 9] = [
    ("debugging_is_on_where_asked_for", debugging_is_on_where_asked_for),
    ("good_use_is_not_reported", good_use_is_not_reported),
    ("an_overflow_is_found", an_overflow_is_found),
    ("an_underflow_is_found", an_underflow_is_found),
    ("a_double_free_is_refused", a_double_free_is_refused),
    ("an_invalid_pointer_is_refused", an_invalid_pointer_is_refused),
    ("an_object_of_another_cache_is_refused", an_object_of_another_cache_is_refused),
    ("a_use_after_free_is_found", a_use_after_free_is_found),
    ("a_damaged_slab_goes_out_of_use", a_damaged_slab_goes_out_of_use),
];

type Outcome = Result<(), Failure>;

const SIZE: u64 = 56;

fn create(name: &str) -> Result<CacheId, Failure> {
    if kind() != SlabKind::Slub {
        return Err(Failure::Skip("only SLUB has debugging"));
    }
    let size = u32::try_from(SIZE).unwrap_or(0);
    KMEM.create(&CacheArgs::new(name, size)).map_err(|_| Failure::Wrong("the cache is not created"))
}

fn alloc(id: CacheId) -> Result<Object, Failure> {
    KMEM.alloc(id, Gfp::KERNEL).ok_or(Failure::Wrong("no memory"))
}

fn write_at(object: Object, offset: i64, value: u64) {
    DirectMap.write_u64(PhysAddr::new(object.addr().as_u64().wrapping_add_signed(offset)), value);
}

/// Frees what is whole again, and the cache.
fn finish(id: CacheId, object: Object) -> Outcome {
    check(KMEM.free(id, object).is_ok(), "the repaired object is not taken back")?;
    check(KMEM.validate(id) == 0, "something is still damaged")?;
    check(KMEM.destroy(id).is_ok(), "the cache is not destroyed")
}

fn debugging_is_on_where_asked_for() -> Outcome {
    let id = create("t-debug-on")?;
    let on = KMEM.cache(id).slab_flags().contains(SlabFlags::DEBUG);
    check(on, "the cache has no debugging: slub_debug=FZPU,t-debug* is missing")?;
    let plain = KMEM
        .create(&CacheArgs::new("t-plain", 56))
        .map_err(|_| Failure::Wrong("the cache is not created"))?;
    check(!KMEM.cache(plain).is_debugged(), "a cache that was not named has debugging")?;
    check(KMEM.destroy(plain).is_ok() && KMEM.destroy(id).is_ok(), "a cache is not destroyed")
}

fn good_use_is_not_reported() -> Outcome {
    let id = create("t-debug-good")?;
    for _ in 0..20 {
        let (one, other) = (alloc(id)?, alloc(id)?);
        (0..7).for_each(|word| write_at(one, 8 * word, 1));
        check(KMEM.free(id, one).is_ok() && KMEM.free(id, other).is_ok(), "a good free is refused")?;
    }
    check(KMEM.validate(id) == 0, "something is damaged")?;
    check(KMEM.destroy(id).is_ok(), "the cache is not destroyed")
}

fn an_overflow_is_found() -> Outcome {
    let id = create("t-debug-over")?;
    let object = alloc(id)?;
    write_at(object, SIZE.cast_signed(), 0x4141_4141_4141_4141);
    check(KMEM.free(id, object) == Err(FreeError::Damaged { object }), "the overflow is not found")?;
    finish(id, object)
}

fn an_underflow_is_found() -> Outcome {
    let id = create("t-debug-under")?;
    let object = alloc(id)?;
    write_at(object, -8, 0x4242_4242_4242_4242);
    check(KMEM.free(id, object) == Err(FreeError::Damaged { object }), "the underflow is not found")?;
    finish(id, object)
}

fn a_double_free_is_refused() -> Outcome {
    let id = create("t-debug-twice")?;
    let (object, other) = (alloc(id)?, alloc(id)?);
    check(KMEM.free(id, object).is_ok(), "a good free is refused")?;
    check(KMEM.free(id, object) == Err(FreeError::DoubleFree { object }), "the second free is taken")?;
    finish(id, other)
}

fn an_invalid_pointer_is_refused() -> Outcome {
    let id = create("t-debug-inside")?;
    let object = alloc(id)?;
    let inside = Object::new(PhysAddr::new(object.addr().as_u64() + 16));
    check(KMEM.free(id, inside) == Err(FreeError::NotObject { object: inside }), "half an object is freed")?;
    finish(id, object)
}

fn an_object_of_another_cache_is_refused() -> Outcome {
    let (id, other) = (create("t-debug-mine")?, create("t-debug-other")?);
    let (object, foreign) = (alloc(id)?, alloc(other)?);
    let refused = KMEM.free(id, foreign);
    check(refused == Err(FreeError::WrongCache { object: foreign, owner: Some(other) }), "it is taken")?;
    finish(other, foreign)?;
    finish(id, object)
}

fn a_use_after_free_is_found() -> Outcome {
    let id = create("t-debug-uaf")?;
    let object = alloc(id)?;
    check(KMEM.free(id, object).is_ok(), "a good free is refused")?;
    write_at(object, 16, 0x4343_4343_4343_4343);
    check(KMEM.validate(id) == 1, "the write after the free is not found")?;
    check(KMEM.validate(id) == 0, "the poison is not restored")?;
    check(KMEM.destroy(id).is_ok(), "the cache is not destroyed")
}

/// The cache stays: its slab is out of use for ever, and the audit finds its counters right.
fn a_damaged_slab_goes_out_of_use() -> Outcome {
    let id = create("t-debug-lost")?;
    let object = alloc(id)?;
    check(KMEM.free(id, object).is_ok(), "a good free is refused")?;
    write_at(object, 8, 0x4444_4444_4444_4444);
    let next = alloc(id)?;
    check(next.addr().pfn() != object.addr().pfn(), "an object of the damaged slab is given out")?;
    check(KMEM.free(id, next).is_ok(), "a good free is refused")
}
