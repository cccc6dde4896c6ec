//! Caches on real memory, whoever manages them. The last test leaves a used heap behind for the audit.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use memvisor_abi::{PFN_NONE, SlabKind};
use mm_core::{Gfp, MemMap, Order, PhysAddr, PhysMem, ZoneKind};
use mm_slab::{CacheArgs, CacheId, DestroyError, FreeError, KMALLOC_MAX_SIZE, Object, SIZES, SlabFlags};
use mm_vmalloc::Request;

use super::alloc::{HOARD, give_all, give_smaller, give_some, hoarded, take_all, take_smaller};
use super::{Failure, Test, check};
use crate::arch::regs;
use crate::mm::memmap::Vmemmap;
use crate::mm::phys::{self, DirectMap};
use crate::mm::reclaim::{self, Shrinker};
use crate::mm::slab::{CTOR_PATTERN, KMEM, PATTERN, kind};
use crate::mm::{layout, page_alloc, vmalloc};
use crate::sched;
use crate::smp;
use crate::topology::CPUS;

pub const TESTS: [(&str, Test); 17] = [
    ("kmalloc_serves_every_size", kmalloc_serves_every_size),
    ("limits_are_errors", limits_are_errors),
    ("krealloc_keeps_contents", krealloc_keeps_contents),
    ("dma_objects_are_below_16_mib", dma_objects_are_below_16_mib),
    ("constructed_objects_are_as_constructed", constructed_objects_are_as_constructed),
    ("alignment_is_kept", alignment_is_kept),
    ("caches_of_one_shape_are_one", caches_of_one_shape_are_one),
    ("objects_do_not_overlap", objects_do_not_overlap),
    ("a_cache_in_use_is_not_destroyed", a_cache_in_use_is_not_destroyed),
    ("objects_come_from_the_node_asked_for", objects_come_from_the_node_asked_for),
    ("frees_from_other_cpus_arrive", frees_from_other_cpus_arrive),
    ("cpus_allocate_at_once", cpus_allocate_at_once),
    ("wrong_frees_are_refused", wrong_frees_are_refused),
    (
        "a_kernel_allocation_reclaims_and_an_atomic_one_does_not",
        a_kernel_allocation_reclaims_and_an_atomic_one_does_not,
    ),
    ("kvmalloc_falls_back_to_vmalloc", kvmalloc_falls_back_to_vmalloc),
    ("slabs_go_from_cpu_to_cpu", slabs_go_from_cpu_to_cpu),
    ("a_used_heap_is_left_behind", a_used_heap_is_left_behind),
];

type Outcome = Result<(), Failure>;

const NONE: Object = Object::ZERO_SIZE;

fn some<T>(value: Option<T>) -> Result<T, Failure> {
    value.ok_or(Failure::Wrong("no memory"))
}

fn write(object: Object, word: u64, value: u64) {
    DirectMap.write_u64(PhysAddr::new(object.addr().as_u64() + 8 * word), value);
}

fn read(object: Object, word: u64) -> u64 {
    DirectMap.read_u64(PhysAddr::new(object.addr().as_u64() + 8 * word))
}

fn create(name: &str, size: u32) -> Result<CacheId, Failure> {
    let args = CacheArgs { flags: SlabFlags::NO_MERGE, ..CacheArgs::new(name, size) };
    KMEM.create(&args).map_err(|_| Failure::Wrong("the cache is not created"))
}

fn destroy(id: CacheId) -> Outcome {
    check(KMEM.destroy(id).is_ok(), "an empty cache is not destroyed")
}

fn free(id: CacheId, object: Object) -> Outcome {
    check(KMEM.free(id, object).is_ok(), "a good free is refused")
}

fn kmalloc_serves_every_size() -> Outcome {
    for size in SIZES.into_iter().map(u64::from).chain([1, 100, 8193, 20_000]) {
        let object = some(KMEM.kzalloc(size, Gfp::KERNEL))?;
        check(KMEM.ksize(object) >= Some(size), "ksize is less than what was asked for")?;
        check(
            !size.is_power_of_two() || object.addr().is_aligned(size.clamp(8, 4096)),
            "not aligned to its size",
        )?;
        check(size < 8 || (read(object, 0) == 0 && read(object, size / 8 - 1) == 0), "kzalloc is not zero")?;
        write(object, 0, 1);
        check(KMEM.kfree(object).is_ok(), "kfree of a good object is refused")?;
    }
    Ok(())
}

fn limits_are_errors() -> Outcome {
    check(KMEM.kmalloc(0, Gfp::KERNEL) == Some(Object::ZERO_SIZE), "no bytes are not ZERO_SIZE")?;
    check(KMEM.kfree(Object::ZERO_SIZE).is_ok(), "ZERO_SIZE cannot be freed")?;
    check(KMEM.kmalloc(KMALLOC_MAX_SIZE + 1, Gfp::KERNEL).is_none(), "more than the largest is given")?;
    check(KMEM.kmalloc(u64::MAX, Gfp::KERNEL).is_none(), "all of memory is given")?;
    check(KMEM.kcalloc(u64::MAX / 8, 16, Gfp::KERNEL).is_none(), "an overflow is not seen")?;
    let array = some(KMEM.kcalloc(10, 24, Gfp::KERNEL))?;
    check(KMEM.kfree(array).is_ok(), "kfree is refused")?;
    check(KMEM.create(&CacheArgs::new("", 8)).is_err(), "a cache without a name")?;
    check(KMEM.create(&CacheArgs::new("zero", 0)).is_err(), "a cache of nothing")?;
    check(KMEM.create(&CacheArgs { align: 24, ..CacheArgs::new("odd", 8) }).is_err(), "an odd alignment")?;
    check(KMEM.create(&CacheArgs::new("huge", u32::MAX)).is_err(), "a cache of more than a block")
}

fn krealloc_keeps_contents() -> Outcome {
    let object = some(KMEM.krealloc(None, 40, Gfp::KERNEL))?;
    (0..5).for_each(|word| write(object, word, 7 + word));
    let larger = some(KMEM.krealloc(Some(object), 3000, Gfp::KERNEL))?;
    check((0..5).all(|word| read(larger, word) == 7 + word), "the contents did not move along")?;
    check(KMEM.krealloc(Some(larger), 2000, Gfp::KERNEL) == Some(larger), "a smaller size moves the object")?;
    check(KMEM.krealloc(Some(larger), 0, Gfp::KERNEL) == Some(Object::ZERO_SIZE), "no bytes do not free")
}

fn dma_objects_are_below_16_mib() -> Outcome {
    let Some(object) = KMEM.kmalloc(64, Gfp::KERNEL | Gfp::DMA) else {
        return Err(Failure::Skip("ZONE_DMA has nothing to give"));
    };
    let zone = Vmemmap.page(object.addr().pfn()).map(|page| page.zone());
    check(zone == Some(ZoneKind::Dma) && object.addr().as_u64() < 16 << 20, "a DMA object is elsewhere")?;
    check(KMEM.kfree(object).is_ok(), "kfree is refused")
}

fn constructed_objects_are_as_constructed() -> Outcome {
    let args = CacheArgs { ctor: Some(CTOR_PATTERN), ..CacheArgs::new("t-ctor", 56) };
    let id = KMEM.create(&args).map_err(|_| Failure::Wrong("the cache is not created"))?;
    let mut objects = [NONE; 8];
    for _ in 0..2 {
        check(KMEM.alloc_bulk(id, Gfp::KERNEL, &mut objects), "no memory")?;
        let constructed = |object: &Object| (0..7).all(|word| read(*object, word) == PATTERN);
        check(objects.iter().all(constructed), "an object is not as the constructor left it")?;
        check(KMEM.free_bulk(id, &objects) == 0, "a good free is refused")?;
    }
    destroy(id)
}

fn alignment_is_kept() -> Outcome {
    for (size, align, flags) in
        [(24, 128, SlabFlags::NO_MERGE), (100, 0, SlabFlags::HWCACHE_ALIGN | SlabFlags::NO_MERGE)]
    {
        let id = KMEM
            .create(&CacheArgs { align, flags, ..CacheArgs::new("t-align", size) })
            .map_err(|_| Failure::Wrong("the cache is not created"))?;
        let mut objects = [NONE; 12];
        check(KMEM.alloc_bulk(id, Gfp::KERNEL, &mut objects), "no memory")?;
        let want = u64::from(align.max(64));
        check(objects.iter().all(|object| object.addr().is_aligned(want)), "an object is not aligned")?;
        check(KMEM.free_bulk(id, &objects) == 0, "a good free is refused")?;
        destroy(id)?;
    }
    Ok(())
}

fn caches_of_one_shape_are_one() -> Outcome {
    let new = |name| {
        KMEM.create(&CacheArgs::new(name, 200)).map_err(|_| Failure::Wrong("the cache is not created"))
    };
    let (one, other) = (new("t-merge-a")?, new("t-merge-b")?);
    let merged = one == other;
    let debugged = KMEM.cache(one).is_debugged();
    destroy(one)?;
    destroy(other)?;
    check(
        merged == (kind() != SlabKind::Slob && !debugged),
        "caches are merged where they must not be, or are not",
    )
}

fn objects_do_not_overlap() -> Outcome {
    const COUNT: usize = 64;
    let id = create("t-72", 72)?;
    let mut objects = [NONE; COUNT];
    check(KMEM.alloc_bulk(id, Gfp::KERNEL, &mut objects), "no memory")?;
    let stamp = |objects: &[Object; COUNT]| {
        for (number, object) in (1..).zip(objects) {
            (0..9).for_each(|word| write(*object, word, number));
        }
    };
    let kept = |objects: &[Object; COUNT]| {
        (1..).zip(objects).all(|(number, object)| (0..9).all(|word| read(*object, word) == number))
    };
    stamp(&objects);
    check(kept(&objects), "objects overlap")?;
    // 37 is prime to 64: every object once, in no order.
    for at in 0..COUNT / 2 {
        free(id, objects[at * 37 % COUNT])?;
    }
    for at in 0..COUNT / 2 {
        objects[at * 37 % COUNT] = some(KMEM.alloc(id, Gfp::KERNEL))?;
    }
    stamp(&objects);
    check(kept(&objects), "objects overlap after some were freed")?;
    check(KMEM.free_bulk(id, &objects) == 0, "a good free is refused")?;
    destroy(id)
}

fn a_cache_in_use_is_not_destroyed() -> Outcome {
    let id = create("t-busy", 40)?;
    let object = some(KMEM.alloc(id, Gfp::KERNEL))?;
    check(KMEM.destroy(id) == Err(DestroyError::Busy { objects: 1 }), "a cache in use is destroyed")?;
    write(object, 4, 9);
    free(id, object)?;
    destroy(id)?;
    check(KMEM.alloc(id, Gfp::KERNEL).is_none(), "a destroyed cache gives objects")
}

fn objects_come_from_the_node_asked_for() -> Outcome {
    let nodes = u32::try_from(page_alloc::nr_nodes()).unwrap_or(1);
    let id = create("t-node", 128)?;
    for node in 0..nodes {
        let Some(object) = KMEM.alloc_node(id, Gfp::KERNEL | Gfp::THISNODE, node) else { continue };
        let on = Vmemmap.page(object.addr().pfn()).map(|page| page.node());
        check(on == Some(node), "the object is on another node")?;
        free(id, object)?;
    }
    check(KMEM.alloc_node(id, Gfp::KERNEL, nodes).is_none(), "a node that does not exist gives an object")?;
    destroy(id)
}

/// What the CPUs of a test share.
static CACHE: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);
static OBJECTS: [AtomicU64; 48] = [const { AtomicU64::new(0) }; 48];

fn shared_cache() -> Option<CacheId> {
    CacheId::new(CACHE.load(Ordering::Relaxed).into())
}

fn prepare(id: CacheId) {
    CACHE.store(u32::try_from(id.index()).unwrap_or(0), Ordering::Relaxed);
    FAILED.store(0, Ordering::Relaxed);
}

fn frees_from_other_cpus_arrive() -> Outcome {
    if CPUS.lock().count < 2 {
        return Err(Failure::Skip("it has one CPU"));
    }
    let id = create("t-remote", 96)?;
    prepare(id);
    for _ in 0..3 {
        for slot in &OBJECTS {
            slot.store(some(KMEM.alloc(id, Gfp::KERNEL))?.addr().as_u64(), Ordering::Relaxed);
        }
        smp::call_others(|| {
            for slot in &OBJECTS {
                // Each object is freed by the CPU that finds it first.
                let raw = slot.swap(0, Ordering::Relaxed);
                let freed = raw == 0
                    || shared_cache()
                        .is_some_and(|id| KMEM.free(id, Object::new(PhysAddr::new(raw))).is_ok());
                FAILED.fetch_add(u32::from(!freed), Ordering::Relaxed);
            }
        });
    }
    check(FAILED.load(Ordering::Relaxed) == 0, "a good free is refused on another CPU")?;
    destroy(id)
}

/// Allocates, stamps, checks and frees, with a few objects live.
fn churn() {
    let Some(id) = shared_cache() else { return };
    let mut live = [NONE; 8];
    let tag = u64::from(crate::arch::percpu::cpu()) << 32;
    for round in 0..100_usize {
        let slot = round * 5 % live.len();
        if live[slot] != NONE {
            let good = read(live[slot], 1) == tag | slot as u64 && KMEM.free(id, live[slot]).is_ok();
            FAILED.fetch_add(u32::from(!good), Ordering::Relaxed);
        }
        live[slot] = KMEM.alloc(id, Gfp::ATOMIC).unwrap_or(NONE);
        if live[slot] != NONE {
            write(live[slot], 1, tag | slot as u64);
        }
    }
    for object in live.into_iter().filter(|object| *object != NONE) {
        FAILED.fetch_add(u32::from(KMEM.free(id, object).is_err()), Ordering::Relaxed);
    }
}

fn cpus_allocate_at_once() -> Outcome {
    let id = create("t-smp", 64)?;
    prepare(id);
    smp::call_others_while(churn, churn);
    check(FAILED.load(Ordering::Relaxed) == 0, "an object changed under its owner, or a free was refused")?;
    destroy(id)
}

fn wrong_frees_are_refused() -> Outcome {
    let (id, other) = (create("t-right", 80)?, create("t-wrong", 5000)?);
    let (mine, large) = (some(KMEM.alloc(id, Gfp::KERNEL))?, some(KMEM.alloc(other, Gfp::KERNEL))?);
    let outside = Object::new(PhysAddr::new(0x1000));
    check(
        KMEM.free(id, outside) == Err(FreeError::NotSlab { object: outside }),
        "a foreign address is freed",
    )?;
    check(KMEM.kfree(outside).is_err(), "a foreign address is freed by kfree")?;
    check(KMEM.free(id, large).is_err(), "an object of another cache is freed")?;
    if kind() != SlabKind::Slob {
        let inside = Object::new(PhysAddr::new(mine.addr().as_u64() + 8));
        check(
            KMEM.free(id, inside) == Err(FreeError::NotObject { object: inside }),
            "half an object is freed",
        )?;
    }
    free(id, mine)?;
    check(KMEM.free(id, mine).is_err(), "an object is freed twice")?;
    free(other, large)?;
    destroy(other)?;
    destroy(id)
}

/// With all the largest blocks in the hands of a shrinker.
fn a_kernel_allocation_reclaims_and_an_atomic_one_does_not() -> Outcome {
    let (list, count) = take_all(Gfp::NOWAIT, Order::MAX);
    HOARD.store(list, Ordering::Relaxed);
    if count == 0 {
        return Err(Failure::Skip("no block of the largest order is free"));
    }
    let smaller = take_smaller();
    let shrinker =
        Shrinker { name: "hoard", count: hoarded, scan: give_some, seeks: reclaim::DEFAULT_SEEKS, pages: 1 };
    check(reclaim::register_shrinker(shrinker), "no room for a shrinker")?;
    let atomic = KMEM.kmalloc(KMALLOC_MAX_SIZE, Gfp::ATOMIC | Gfp::NOWARN);
    let untouched = HOARD.load(Ordering::Relaxed) == list;
    // What forbids sleeping is the place, too.
    let flags = regs::irq_save();
    let off = KMEM.kmalloc(KMALLOC_MAX_SIZE, Gfp::KERNEL | Gfp::NOWARN);
    regs::irq_restore(flags);
    let untouched_with_interrupts_off = HOARD.load(Ordering::Relaxed) == list;
    let kernel = KMEM.kmalloc(KMALLOC_MAX_SIZE, Gfp::KERNEL | Gfp::RETRY_MAYFAIL | Gfp::NOWARN);
    reclaim::unregister_shrinker("hoard");
    give_all(HOARD.swap(PFN_NONE, Ordering::Relaxed), Order::MAX);
    give_smaller(smaller);
    check(atomic.is_none() && untouched, "an atomic allocation reclaimed")?;
    check(off.is_none() && untouched_with_interrupts_off, "an allocation with interrupts off reclaimed")?;
    check(
        KMEM.kfree(kernel.ok_or(Failure::Wrong("direct reclaim did not help"))?).is_ok(),
        "kfree is refused",
    )
}

fn kvmalloc_falls_back_to_vmalloc() -> Outcome {
    let context = sched::task_context();
    let kvmalloc = |size| vmalloc::kvmalloc(&Request::new(size), &context);
    let small = kvmalloc(100).map_err(|_| Failure::Wrong("no memory"))?;
    // More than a block holds.
    let large = kvmalloc(KMALLOC_MAX_SIZE + 4096).map_err(|_| Failure::Wrong("no memory"))?;
    phys::store_mapped(small, 1);
    let last = large.checked_add(KMALLOC_MAX_SIZE).ok_or(Failure::Wrong("the range ends"))?;
    phys::store_mapped(last, 2);
    check(phys::read_mapped(small) == 1 && phys::read_mapped(last) == 2, "the memory does not hold")?;
    check(!layout::vmalloc_contains(small.as_u64()), "100 bytes were vmalloced")?;
    check(layout::vmalloc_contains(large.as_u64()), "more than a block holds was kmalloced")?;
    check(vmalloc::kvfree(small) && vmalloc::kvfree(large), "kvfree refuses what kvmalloc gave")?;
    check(kvmalloc(0).is_err(), "no bytes are given")?;
    let atomic = Request { gfp: Gfp::ATOMIC | Gfp::NOWARN, ..Request::new(KMALLOC_MAX_SIZE + 4096) };
    check(vmalloc::kvmalloc(&atomic, &context).is_err(), "an atomic kvmalloc was vmalloced")
}

/// One CPU allocates whole slabs and others free them, at once with the first.
fn slabs_go_from_cpu_to_cpu() -> Outcome {
    if CPUS.lock().count < 2 {
        return Err(Failure::Skip("it has one CPU"));
    }
    let id = create("t-slabs", 96)?;
    prepare(id);
    let give = || {
        for round in 0..4_usize {
            for slot in &OBJECTS {
                let Some(object) = shared_cache().and_then(|id| KMEM.alloc(id, Gfp::ATOMIC)) else { return };
                write(object, 1, object.addr().as_u64());
                let old = slot.swap(object.addr().as_u64(), Ordering::AcqRel);
                release(old, round % 2 == 0);
            }
        }
    };
    let take = || {
        for at in 0..400_usize {
            release(OBJECTS[at * 7 % OBJECTS.len()].swap(0, Ordering::AcqRel), true);
        }
    };
    smp::call_others_while(take, give);
    OBJECTS.iter().for_each(|slot| release(slot.swap(0, Ordering::AcqRel), true));
    check(FAILED.load(Ordering::Relaxed) == 0, "an object changed under its owner, or a free was refused")?;
    destroy(id)
}

/// Frees what a slot held.
fn release(raw: u64, checked: bool) {
    let Some(id) = shared_cache().filter(|_| raw != 0) else { return };
    let object = Object::new(PhysAddr::new(raw));
    let good = (!checked || read(object, 1) == raw) && KMEM.free(id, object).is_ok();
    FAILED.fetch_add(u32::from(!good), Ordering::Relaxed);
}

/// Slabs of every state, objects in arrays, on free lists and in use.
fn a_used_heap_is_left_behind() -> Outcome {
    for (number, size) in (0..).zip([24_u64, 64, 200, 1000, 4096, 6000, 12_000]) {
        let mut objects = [NONE; 40];
        let count = if size > 2000 { 6 } else { objects.len() };
        for object in &mut objects[..count] {
            *object = some(KMEM.kmalloc(size, Gfp::KERNEL))?;
            write(*object, 0, number);
        }
        for object in objects[..count].iter().skip(1).step_by(2) {
            check(KMEM.kfree(*object).is_ok(), "kfree is refused")?;
        }
    }
    Ok(())
}
