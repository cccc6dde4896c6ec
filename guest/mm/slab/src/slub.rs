//! SLUB: a slab a CPU, partial slabs a CPU and a node, free lists inside the objects (Linux: mm/slub.c).
//!
//! A slab is in one of four states. *CPU*: it is `CacheCpu::slab`, frozen, and the CPU holds the objects of
//! `CacheCpu::freelist`; objects freed elsewhere gather on the slab's own list. *CPU partial*: frozen, on
//! `CacheCpu::partial`. *Node partial*: on the node's list, with a free object. *Full*: on no list (a debugged cache keeps a list).
//!
//! Differs from Linux 6.1: an object of another slab than the CPU's goes to an array of the CPU first, and many go back under
//! one lock, where Linux 6.1 exchanges two words of each slab atomically; Linux 6.18 has such arrays (sheaves).

use memvisor_abi::{CacheCpu, CacheNode, PFN_NONE, SlabListKind};
use mm_core::{CpuLocal, Gfp, MemMap, Page, Pfn, PhysAddr, PhysMem};

use crate::alloc::set_up;
use crate::slab_page::{Discard, counters, set_counters};
use crate::{Cache, CacheId, FreeError, Kmem, Machine, Object, array, list};

const PARTIAL: usize = SlabListKind::Partial as usize;

impl<M: Machine> Kmem<M> {
    /// The slow path of an allocation (Linux: `___slab_alloc`).
    pub(crate) fn slub_alloc(
        &self,
        id: CacheId,
        cache: &Cache,
        gfp: Gfp,
        node: Option<u32>,
    ) -> Option<Object> {
        if cache.is_debugged() {
            return self.debug_alloc(id, cache, gfp, node);
        }
        if let Some(object) = self.slub_refill(id, cache, node) {
            return Some(object);
        }
        let near = node.unwrap_or_else(|| self.machine.cpus().with(|cpu, _| self.machine.node_of(cpu)));
        let Some((pfn, page)) = self.new_slab(id, cache, gfp, near) else {
            let others = 0..if gfp.contains(Gfp::THISNODE) { 0 } else { self.machine.nr_nodes() };
            return others.into_iter().find_map(|node| self.slub_refill(id, cache, Some(node)));
        };
        let mut discard = Discard::NONE;
        let object = self.machine.cpus().with(|cpu, caches| {
            let c = &mut caches[id.index()];
            set_up(c, cache, self.machine.node_of(cpu));
            self.deactivate(id, cache, c, &mut discard);
            self.machine.with_node(id, page.node(), |n| {
                n.nr_slabs += 1;
                n.total_objects += u64::from(counters(page).objects);
                claim(c, pfn, page);
            });
            self.pop(c)
        });
        self.discard(discard);
        object
    }

    /// An object from the slabs that the CPU and the node have.
    fn slub_refill(&self, id: CacheId, cache: &Cache, want: Option<u32>) -> Option<Object> {
        let mut discard = Discard::NONE;
        let object = self.machine.cpus().with(|cpu, caches| {
            let c = &mut caches[id.index()];
            set_up(c, cache, self.machine.node_of(cpu));
            c.refills += 1;
            let near = want.unwrap_or(c.node);
            self.refill_from_cpu(id, cache, c, want, &mut discard);
            if c.freelist == 0 {
                self.machine.with_node(id, near, |n| self.get_partial(cache, c, n));
            }
            self.pop(c)
        });
        self.discard(discard);
        object
    }

    fn pop(&self, c: &mut CacheCpu) -> Option<Object> {
        let object = c.freelist;
        if object == 0 {
            return None;
        }
        c.freelist = self.next_free(c, object);
        Some(Object(object))
    }

    /// Looks for free objects in the CPU's slab, then in its partial slabs.
    fn refill_from_cpu(
        &self,
        id: CacheId,
        cache: &Cache,
        c: &mut CacheCpu,
        want: Option<u32>,
        discard: &mut Discard,
    ) {
        let map = self.machine.map();
        let suits = |page: &Page| want.is_none_or(|want| page.node() == want);
        if let Some((pfn, page)) = list::at(c.slab, map) {
            if !suits(page) {
                self.deactivate(id, cache, c, discard);
            } else if c.freelist == 0 {
                self.machine.with_node(id, page.node(), |_| claim(c, pfn, page));
            }
        }
        while c.freelist == 0
            && let Some((pfn, page)) = list::at(c.partial, map)
        {
            c.partial = page.next();
            c.partial_slabs -= 1;
            page.set_next(PFN_NONE);
            self.machine.with_node(id, page.node(), |n| {
                if suits(page) {
                    claim(c, pfn, page);
                } else {
                    unfreeze(cache, n, map, pfn, page, discard);
                }
            });
        }
    }

    /// Takes the node's first partial slab for the CPU, and further ones for its partial list (Linux: `get_partial_node`).
    fn get_partial(&self, cache: &Cache, c: &mut CacheCpu, n: &mut CacheNode) {
        let map = self.machine.map();
        let Some((pfn, page)) = list::first(&n.lists[PARTIAL], map) else { return };
        list::remove(&mut n.lists[PARTIAL], map, page);
        claim(c, pfn, page);
        while c.partial_slabs < cache.cpu_partial_slabs() / 2
            && let Some((pfn, page)) = list::first(&n.lists[PARTIAL], map)
        {
            list::remove(&mut n.lists[PARTIAL], map, page);
            freeze(c, pfn, page);
        }
    }

    /// Gives the CPU's slab with its free objects back to the node (Linux: `deactivate_slab`).
    fn deactivate(&self, id: CacheId, cache: &Cache, c: &mut CacheCpu, discard: &mut Discard) {
        let map = self.machine.map();
        let Some((pfn, page)) = list::at(c.slab, map) else { return };
        let mut count = 0;
        let (first, mut last) = (c.freelist, 0);
        // The list is as long as the slab has objects at most; a longer one is damaged and ends there.
        let objects = counters(page).objects;
        while c.freelist != 0 && count < objects {
            last = c.freelist;
            c.freelist = self.next_free(c, last);
            count += 1;
        }
        self.machine.with_node(id, page.node(), |n| {
            if last != 0 {
                self.machine.mem().write_u64(link(cache, last), page.index());
                page.set_index(first);
            }
            let mut k = counters(page);
            k.inuse = k.inuse.saturating_sub(count);
            set_counters(page, k);
            unfreeze(cache, n, map, pfn, page, discard);
        });
        c.slab = PFN_NONE;
        c.freelist = 0;
    }

    /// Gives the CPU's partial slabs to their nodes (Linux: `unfreeze_partials`).
    fn unfreeze_partials(&self, id: CacheId, cache: &Cache, c: &mut CacheCpu, discard: &mut Discard) {
        let map = self.machine.map();
        while let Some((pfn, page)) = list::at(c.partial, map) {
            c.partial = page.next();
            self.machine.with_node(id, page.node(), |n| unfreeze(cache, n, map, pfn, page, discard));
        }
        c.partial = PFN_NONE;
        c.partial_slabs = 0;
    }

    /// The slow path of a free (Linux: `__slab_free`).
    pub(crate) fn slub_free(
        &self,
        id: CacheId,
        cache: &Cache,
        pfn: Pfn,
        page: &Page,
        object: Object,
    ) -> Result<(), FreeError> {
        if cache.is_debugged() {
            return self.debug_free(id, cache, pfn, page, object);
        }
        if !is_place(cache, pfn, page, object) {
            return Err(FreeError::NotObject { object });
        }
        let mut discard = Discard::NONE;
        let freed = self.machine.cpus().with(|cpu, caches| {
            let c = &mut caches[id.index()];
            set_up(c, cache, self.machine.node_of(cpu));
            if pfn.as_u64() == c.slab {
                if c.freelist == object.0 {
                    return Err(FreeError::DoubleFree { object });
                }
                self.machine.mem().write_u64(link(cache, object.0), c.freelist);
                c.freelist = object.0;
                return Ok(());
            }
            if c.avail >= c.limit {
                self.flush_array(id, cache, c, cache.batchcount(), &mut discard);
            }
            if page.node() != c.node || !array::push(c, object.0) {
                self.machine.with_node(id, page.node(), |n| {
                    self.give_back(cache, c, n, pfn, page, object.0, &mut discard);
                });
            }
            if c.partial_slabs > cache.cpu_partial_slabs() {
                self.unfreeze_partials(id, cache, c, &mut discard);
            }
            Ok(())
        });
        self.discard(discard);
        freed
    }

    /// Gives the oldest `count` objects of the CPU's array back to their slabs.
    fn flush_array(&self, id: CacheId, cache: &Cache, c: &mut CacheCpu, count: u32, discard: &mut Discard) {
        let count = count.min(c.avail) as usize;
        let slab = |c: &CacheCpu, at: usize| {
            let object = c.array.get(at).copied().filter(|_| at < count)?;
            self.slab_of(Object(object)).map(|(pfn, page)| (pfn, page, object))
        };
        let mut at = 0;
        while at < count {
            let Some((mut pfn, mut page, mut object)) = slab(c, at) else {
                at += 1;
                continue;
            };
            let node = page.node();
            // One lock for all that follow from the same node.
            self.machine.with_node(id, node, |n| {
                loop {
                    self.give_back(cache, c, n, pfn, page, object, discard);
                    at += 1;
                    match slab(c, at) {
                        Some(next) if next.1.node() == node => (pfn, page, object) = next,
                        _ => break,
                    }
                }
            });
        }
        array::drop_oldest(c, u32::try_from(count).unwrap_or(0));
    }

    /// Puts an object on its slab's own list. A slab that was full becomes the CPU's partial one; one that becomes empty is
    /// given back if the node has partial slabs enough.
    #[inline]
    #[expect(clippy::too_many_arguments, reason = "all that a list lock guards")]
    fn give_back(
        &self,
        cache: &Cache,
        c: &mut CacheCpu,
        n: &mut CacheNode,
        pfn: Pfn,
        page: &Page,
        object: u64,
        discard: &mut Discard,
    ) {
        let prior = page.index();
        let mut k = counters(page);
        if prior == object || k.inuse == 0 {
            self.machine.report(format_args!("BUG slab: double free of object {object:#x}"));
            return;
        }
        self.machine.mem().write_u64(link(cache, object), prior);
        page.set_index(object);
        k.inuse -= 1;
        set_counters(page, k);
        if k.frozen {
            return;
        }
        if prior == 0 {
            if cache.cpu_partial_slabs() != 0 {
                freeze(c, pfn, page);
            } else {
                unfreeze(cache, n, self.machine.map(), pfn, page, discard);
            }
        } else if k.inuse == 0 && n.lists[PARTIAL].nr > u64::from(cache.min_partial()) {
            list::remove(&mut n.lists[PARTIAL], self.machine.map(), page);
            forget(n, pfn, page, discard);
        }
    }

    /// Takes back what CPUs keep and gives empty slabs back, the fullest slabs first in what stays (Linux:
    /// `__kmem_cache_do_shrink`). The number of objects in use.
    pub(crate) fn slub_release(&self, id: CacheId, cache: &Cache) -> u64 {
        let mut discard = Discard::NONE;
        self.machine.cpus().for_each(|_, caches| {
            let c = &mut caches[id.index()];
            if c.span_words == 0 {
                return;
            }
            self.deactivate(id, cache, c, &mut discard);
            self.flush_array(id, cache, c, u32::MAX, &mut discard);
            self.unfreeze_partials(id, cache, c, &mut discard);
            *c = CacheCpu::EMPTY;
        });
        let mut live = 0;
        for node in 0..self.machine.nr_nodes() {
            live += self.machine.with_node(id, node, |n| self.release_node(n, &mut discard));
        }
        self.discard(discard);
        live
    }

    fn release_node(&self, n: &mut CacheNode, discard: &mut Discard) -> u64 {
        /// Slabs with more free objects stay in their order (Linux: `SHRINK_PROMOTE_MAX`).
        const PROMOTE_MAX: u32 = 32;
        let map = self.machine.map();
        let mut free = 0;
        let mut link = n.lists[PARTIAL].head;
        while let Some((pfn, page)) = list::at(link, map) {
            link = page.next();
            let k = counters(page);
            if k.inuse == 0 {
                list::remove(&mut n.lists[PARTIAL], map, page);
                forget(n, pfn, page, discard);
            } else {
                free += u64::from(k.objects.saturating_sub(k.inuse));
            }
        }
        if n.lists[PARTIAL].nr > 1 {
            for promote in (1..PROMOTE_MAX).rev() {
                let mut link = n.lists[PARTIAL].head;
                for _ in 0..n.lists[PARTIAL].nr {
                    let Some((pfn, page)) = list::at(link, map) else { break };
                    link = page.next();
                    let k = counters(page);
                    if k.objects.saturating_sub(k.inuse) == promote {
                        list::remove(&mut n.lists[PARTIAL], map, page);
                        list::push_front(&mut n.lists[PARTIAL], map, pfn, page);
                    }
                }
            }
        }
        n.total_objects.saturating_sub(free)
    }

    /// A slab whose objects are all free, on its own list, which nobody else knows (Linux: `new_slab`).
    pub(crate) fn new_slab(&self, id: CacheId, cache: &Cache, gfp: Gfp, node: u32) -> Option<(Pfn, &Page)> {
        let (pfn, page) = self.slab_frames(cache, gfp, Some(node), id.as_u64())?;
        let objects = if page.order() == cache.slab_order() { cache.objects() } else { cache.min_objects() };
        let start = pfn.phys().as_u64() + u64::from(cache.red_left());
        let size = u64::from(cache.size());
        for number in 0..u64::from(objects) {
            let object = start + number * size;
            if cache.ctor() != 0 {
                self.machine.construct(cache.ctor(), Object(object), cache.object_size());
            }
            let next = if number + 1 < u64::from(objects) { object + size } else { 0 };
            if cache.is_debugged() {
                self.debug_init(cache, object);
            }
            self.machine.mem().write_u64(link(cache, object), next);
        }
        page.set_index(start);
        set_counters(page, memvisor_abi::SlabCounters { inuse: 0, objects, frozen: false });
        Some((pfn, page))
    }
}

/// Where an object's free-list word is.
pub(crate) fn link(cache: &Cache, object: u64) -> PhysAddr {
    PhysAddr::new(object + u64::from(cache.offset()))
}

/// Whether an object of the slab starts at that address (Linux: `check_valid_pointer`).
pub(crate) fn is_place(cache: &Cache, pfn: Pfn, page: &Page, object: Object) -> bool {
    let start = pfn.phys().as_u64() + u64::from(cache.red_left());
    let size = u64::from(cache.size());
    object
        .0
        .checked_sub(start)
        .is_some_and(|from| from.is_multiple_of(size) && from / size < u64::from(counters(page).objects))
}

/// Makes a slab the CPU's own and takes all its free objects; a slab without any is full, and on no list.
fn claim(c: &mut CacheCpu, pfn: Pfn, page: &Page) {
    let mut k = counters(page);
    let first = page.index();
    k.frozen = first != 0;
    if first != 0 {
        k.inuse = k.objects;
        page.set_index(0);
    }
    set_counters(page, k);
    c.slab = if first == 0 { PFN_NONE } else { pfn.as_u64() };
    c.freelist = first;
}

/// Puts a slab that is on no list on the CPU's partial list (Linux: `put_cpu_partial`).
fn freeze(c: &mut CacheCpu, pfn: Pfn, page: &Page) {
    let mut k = counters(page);
    k.frozen = true;
    set_counters(page, k);
    page.set_next(c.partial);
    c.partial = pfn.as_u64();
    c.partial_slabs += 1;
}

/// Puts a slab that is on no list where its counters want it: given back, on the node's partial list, or full on none.
fn unfreeze(
    cache: &Cache,
    n: &mut CacheNode,
    map: &impl MemMap,
    pfn: Pfn,
    page: &Page,
    discard: &mut Discard,
) {
    let mut k = counters(page);
    k.frozen = false;
    set_counters(page, k);
    if k.inuse == 0 && n.lists[PARTIAL].nr >= u64::from(cache.min_partial()) {
        forget(n, pfn, page, discard);
    } else if page.index() != 0 {
        list::push_back(&mut n.lists[PARTIAL], map, pfn, page);
    } else {
        page.set_next(PFN_NONE);
    }
}

/// Counts a slab that is on no list as gone.
pub(crate) fn forget(n: &mut CacheNode, pfn: Pfn, page: &Page, discard: &mut Discard) {
    n.nr_slabs = n.nr_slabs.saturating_sub(1);
    n.total_objects = n.total_objects.saturating_sub(u64::from(counters(page).objects));
    discard.push(pfn, page);
}
