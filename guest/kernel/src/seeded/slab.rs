//! Corruptions of slab caches, on a cache of their own whose slabs SLUB manages.

use memvisor_abi::{PFN_NONE, SlabCounters, SlabKind};
use mm_core::{CpuLocal, Gfp, MemMap, Page, PhysAddr, PhysMem};
use mm_slab::{CacheArgs, CacheId, Machine, Object, SlabFlags};

use crate::mm::memmap::Vmemmap;
use crate::mm::phys::DirectMap;
use crate::mm::slab::{self, KMEM};

type Outcome = Result<(), &'static str>;

const SIZE: u32 = 256;

/// A cache with a partial slab on its node's list: some objects live, some free, nothing at a CPU.
struct Victim {
    id: CacheId,
    live: Object,
    free: Object,
    page: &'static Page,
}

fn victim() -> Result<Victim, &'static str> {
    if slab::kind() != SlabKind::Slub {
        return Err("slab= is not slub");
    }
    let args = CacheArgs { flags: SlabFlags::NO_MERGE, ..CacheArgs::new("victim", SIZE) };
    let id = KMEM.create(&args).map_err(|_| "the cache is not created")?;
    let alloc = || KMEM.alloc(id, Gfp::KERNEL).ok_or("no memory");
    let (live, free, other) = (alloc()?, alloc()?, alloc()?);
    KMEM.free(id, other).and_then(|()| KMEM.free(id, free)).map_err(|_| "a free is refused")?;
    KMEM.shrink(id);
    static MAP: Vmemmap = Vmemmap;
    let page = MAP.page(live.addr().pfn()).ok_or("the slab has no descriptor")?;
    Ok(Victim { id, live, free, page })
}

/// The word that links a free object.
fn link(victim: &Victim, object: Object) -> PhysAddr {
    PhysAddr::new(object.addr().as_u64() + u64::from(KMEM.cache(victim.id).offset()))
}

/// A slab of a cache that does not exist.
pub fn owner() -> Outcome {
    victim()?.page.set_mapping(95);
    Ok(())
}

/// A slab that counts an object more than are in use.
pub fn inuse() -> Outcome {
    let page = victim()?.page;
    let counters = SlabCounters::from_raw(page.mapcount());
    page.set_mapcount(SlabCounters { inuse: counters.inuse + 1, ..counters }.as_raw());
    Ok(())
}

/// A free object that is its own successor: written after its free.
pub fn freelist_cycle() -> Outcome {
    let victim = victim()?;
    DirectMap.write_u64(link(&victim, victim.free), victim.free.addr().as_u64());
    Ok(())
}

/// A free object whose link leads to the page after its slab.
pub fn freelist_outside() -> Outcome {
    let victim = victim()?;
    let outside = victim.page.order().pages() << 12;
    DirectMap.write_u64(link(&victim, victim.free), (victim.free.addr().as_u64() & !0xfff) + outside);
    Ok(())
}

/// An object that a CPU's array holds and the slab's list, too.
pub fn double_free() -> Outcome {
    let victim = victim()?;
    // A CPU sets its part up at its first allocation, which takes the slab: give it back, keep the part.
    let object = KMEM.alloc(victim.id, Gfp::KERNEL).ok_or("no memory")?;
    KMEM.machine().cpus().with(|_, caches| {
        let cpu = &mut caches[victim.id.index()];
        for slot in cpu.array.iter_mut().take(2) {
            *slot = object.addr().as_u64();
        }
        cpu.avail = 2;
    });
    Ok(())
}

/// A partial slab that is on no list.
pub fn lists() -> Outcome {
    let victim = victim()?;
    KMEM.machine().with_node(victim.id, victim.page.node(), |node| {
        let list = &mut node.lists[0];
        (list.head, list.tail, list.nr) = (PFN_NONE, PFN_NONE, 0);
    });
    Ok(())
}

/// A node that counts a slab more than it has.
pub fn counters() -> Outcome {
    let victim = victim()?;
    KMEM.machine().with_node(victim.id, victim.page.node(), |node| node.nr_slabs += 1);
    Ok(())
}

/// A write past the end of an object.
pub fn redzone() -> Outcome {
    slab::debug_from_now_on()?;
    let victim = victim()?;
    DirectMap.write_u64(PhysAddr::new(victim.live.addr().as_u64() + u64::from(SIZE)), 0x4141_4141_4141_4141);
    Ok(())
}
