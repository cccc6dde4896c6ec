//! Invariants L1 to L5 of the crate's header, from the descriptors up. It knows nothing of how the allocators get there.

use std::collections::{BTreeMap, BTreeSet};

use memvisor_abi::{PFN_NONE, SLOB_MAPPING, SlabCounters, SlabKind};
use mm_core::{CpuLocal, MemMap, PageKind, Pfn, PhysAddr, PhysMem};

use super::machine::{FRAMES, Sim};
use crate::owner::Owner;
use crate::{Cache, CacheId, Kmem, Machine};

/// Objects that are handed out by all caches, large kmalloc allocations not counted, are at most `live`.
pub fn audit(kmem: &Kmem<Sim>, live: u64) {
    let map = kmem.machine().map();
    let mut used = 0;
    let mut sums: BTreeMap<(u64, u32), (u64, u64)> = BTreeMap::new();
    let spare = spare_objects(kmem);
    for raw in 0..FRAMES {
        let pfn = Pfn::new(raw);
        let page = map.page(pfn).unwrap();
        if page.kind() != PageKind::Slab {
            continue;
        }
        if page.mapping() == SLOB_MAPPING {
            slob_page(kmem, pfn);
            continue;
        }
        let id = CacheId::new(page.mapping()).expect("L1: the cache exists");
        let cache = kmem.cache(id);
        assert!(cache.is_used(), "L1: {pfn} belongs to no cache");
        let k = SlabCounters::from_raw(page.mapcount());
        let (base, free) = match cache.kind() {
            SlabKind::Slub => (pfn.phys().as_u64(), slub_free(kmem, cache, pfn)),
            _ => (page.index(), slab_free(kmem, cache, pfn)),
        };
        assert_eq!(k.inuse as usize + free.len(), k.objects as usize, "L2: {pfn}");
        let mut seen = BTreeSet::new();
        let end = base + u64::from(k.objects) * u64::from(cache.size());
        let cpu = spare.range((id.index(), base)..(id.index(), end)).map(|(_, object)| *object);
        for object in free.iter().copied().chain(cpu.clone()) {
            assert!(seen.insert(object), "L3: {object:#x} is free twice");
            let from = object - base;
            assert!(
                from.is_multiple_of(u64::from(cache.size())) && object < end,
                "L3: {object:#x} is no object"
            );
        }
        used += u64::from(k.inuse) - cpu.count() as u64;
        let sum = sums.entry((id.as_u64(), page.node())).or_default();
        *sum = (sum.0 + 1, sum.1 + u64::from(k.objects));
    }
    assert!(used <= live, "{used} objects are in use, {live} were handed out");
    for id in
        CacheId::all().filter(|id| kmem.cache(*id).is_used() && kmem.cache(*id).kind() != SlabKind::Slob)
    {
        for node in 0..2 {
            let sum = sums.get(&(id.as_u64(), node)).copied().unwrap_or_default();
            kmem.machine().with_node(id, node, |n| {
                assert_eq!((n.nr_slabs, n.total_objects), sum, "L5: cache {} node {node}", id.as_u64());
                for list in n.lists {
                    let (mut at, mut previous, mut count) = (list.head, PFN_NONE, 0);
                    while at != PFN_NONE {
                        let page = map.page(Pfn::new(at)).unwrap();
                        assert_eq!((page.prev(), page.kind()), (previous, PageKind::Slab), "L4: {at:#x}");
                        assert!(!SlabCounters::from_raw(page.mapcount()).frozen, "L4: {at:#x} is frozen");
                        (previous, at, count) = (at, page.next(), count + 1);
                    }
                    assert_eq!((list.tail, list.nr), (previous, count), "L4");
                }
            });
        }
    }
}

/// Objects that CPUs and nodes keep: they are in use for their slabs, and free for their users.
fn spare_objects(kmem: &Kmem<Sim>) -> BTreeSet<(usize, u64)> {
    let mem = kmem.machine().mem();
    let mut spare = BTreeSet::new();
    kmem.machine().cpus().for_each(|_, caches| {
        for (id, c) in caches.iter().enumerate() {
            for (empty, head) in [(false, c.partial), (true, c.empty)] {
                let mut at = head;
                while let Some(page) = kmem.machine().map().page(Pfn::new(at)).filter(|_| at != PFN_NONE) {
                    let k = SlabCounters::from_raw(page.mapcount());
                    assert_eq!(k.inuse == 0, empty, "L4: {at:#x} is on the wrong list of a CPU");
                    at = page.next();
                }
            }
            let mut at = c.freelist;
            while at != 0 {
                assert!(spare.insert((id, at)), "L3: {at:#x} is free twice");
                at = mem.read_u64(PhysAddr::new(at + u64::from(c.offset)));
            }
            for object in &c.array[..c.avail as usize] {
                assert!(spare.insert((id, *object)), "L3: {object:#x} is free twice");
            }
        }
    });
    for id in CacheId::all() {
        for node in 0..2 {
            kmem.machine().with_node(id, node, |n| {
                let mut add =
                    |object| assert!(spare.insert((id.index(), object)), "L3: {object:#x} is free twice");
                (0..u64::from(n.shared_avail))
                    .for_each(|at| add(mem.read_u64(PhysAddr::new(n.shared + 8 * at))));
                for row in 0..u64::from(n.alien_rows) {
                    let row = n.alien + row * 128;
                    let avail = mem.read_u64(PhysAddr::new(row));
                    (0..avail).for_each(|at| add(mem.read_u64(PhysAddr::new(row + 16 + 8 * at))));
                }
            });
        }
    }
    for raw in 0..FRAMES {
        let page = kmem.machine().map().page(Pfn::new(raw)).unwrap();
        let cache = CacheId::new(page.mapping()).filter(|_| page.kind() == PageKind::Slab);
        let Some(id) = cache.filter(|id| kmem.cache(*id).kind() == SlabKind::Slub) else { continue };
        let k = SlabCounters::from_raw(page.mapcount());
        let owner = if kmem.cache(id).is_debugged() || page.index() != 0 { Owner::NODE } else { Owner::FULL };
        assert_eq!(!k.frozen, Owner::in_page(page) == owner, "L4: {raw:#x} has a wrong owner");
        let mut at = Owner::freed_by_others(page);
        while at != 0 {
            assert!(spare.insert((id.index(), at)), "L3: {at:#x} is free twice");
            at = mem.read_u64(PhysAddr::new(at + u64::from(kmem.cache(id).offset())));
        }
    }
    spare
}

fn slub_free(kmem: &Kmem<Sim>, cache: &Cache, pfn: Pfn) -> Vec<u64> {
    let mut at = kmem.machine().map().page(pfn).unwrap().index();
    let mut free = Vec::new();
    while at != 0 && free.len() < 10_000 {
        free.push(at - u64::from(cache.red_left()));
        at = kmem.machine().mem().read_u64(PhysAddr::new(at + u64::from(cache.offset())));
    }
    free
}

fn slab_free(kmem: &Kmem<Sim>, cache: &Cache, pfn: Pfn) -> Vec<u64> {
    let page = kmem.machine().map().page(pfn).unwrap();
    let k = SlabCounters::from_raw(page.mapcount());
    let end = (pfn.as_u64() + page.order().pages()) * 4096;
    let number = |at: u32| match cache.index_array() {
        0 => page.private().to_le_bytes()[at as usize],
        bytes => {
            let addr = end - u64::from(bytes) + u64::from(at);
            kmem.machine().mem().read_u64(PhysAddr::new(addr & !7)).to_le_bytes()[(addr & 7) as usize]
        }
    };
    (k.inuse..k.objects).map(|at| page.index() + u64::from(number(at)) * u64::from(cache.size())).collect()
}

fn slob_page(kmem: &Kmem<Sim>, pfn: Pfn) {
    let page = kmem.machine().map().page(pfn).unwrap();
    let start = pfn.phys().as_u64();
    let (mut at, mut sum, mut end) = (page.index(), 0, 0);
    while at != 0 {
        assert!(at > end || end == 0, "L3: free blocks of {pfn} touch or go back");
        let word = kmem.machine().mem().read_u64(PhysAddr::new(at));
        let units = word & 0xffff_ffff;
        sum += units;
        end = at + 8 * units;
        assert!(units > 0 && end <= start + 4096, "L3: a free block of {pfn} reaches outside");
        let next = start + (word >> 32) * 8;
        at = if next > at { next } else { 0 };
    }
    assert_eq!(i64::from(page.mapcount()), i64::try_from(sum).unwrap(), "L2: units of {pfn}");
}
