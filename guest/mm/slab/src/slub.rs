//! SLUB: a slab a CPU, partial slabs a CPU and a node, free lists inside the objects (Linux: mm/slub.c).
//!
//! A slab is in one of four states. *CPU*: it is `CacheCpu::slab`, frozen, and the CPU holds the objects of
//! `CacheCpu::freelist`; objects freed elsewhere gather on the slab's own list. *CPU partial*: frozen, on
//! `CacheCpu::partial`. *Node partial*: on the node's list, with a free object. *Full*: on no list (a debugged cache keeps a list).
//!
//! Differs from Linux 6.1: an object of another slab than the CPU's goes to an array of the CPU first, and many go back under
//! one lock, where Linux 6.1 exchanges two words of each slab atomically; Linux 6.18 has such arrays (sheaves).

use memvisor_abi::{CacheCpu, CacheNode, PFN_NONE, SlabCounters, SlabListKind};
use mm_core::{CpuLocal, Event, Gfp, MemMap, Page, Pfn, PhysAddr, PhysMem};

use crate::alloc::{Source, set_up};
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
    ) -> (Option<Object>, Source) {
        if cache.is_debugged() {
            return (self.debug_alloc(id, cache, gfp, node), Source::NodePartial);
        }
        let found = self.slub_refill(id, cache, node);
        if found.0.is_some() {
            return found;
        }
        let near = node.unwrap_or_else(|| self.machine.cpus().with(|cpu, _| self.machine.node_of(cpu)));
        let Some((pfn, page)) = self.new_slab(id, cache, gfp, near) else {
            let others = 0..if gfp.contains(Gfp::THISNODE) { 0 } else { self.machine.nr_nodes() };
            let found = others.into_iter().find_map(|node| self.slub_refill(id, cache, Some(node)).0);
            return (found, Source::Search);
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
        (object, Source::NewSlab)
    }

    /// An object from the slabs that the CPU and the node have.
    fn slub_refill(&self, id: CacheId, cache: &Cache, want: Option<u32>) -> (Option<Object>, Source) {
        let mut discard = Discard::NONE;
        let found = self.machine.cpus().with(|cpu, caches| {
            let c = &mut caches[id.index()];
            set_up(c, cache, self.machine.node_of(cpu));
            c.refills += 1;
            let near = want.unwrap_or(c.node);
            let own = c.slab;
            self.refill_from_cpu(id, cache, c, want, &mut discard);
            let mut source = if c.slab == own { Source::CpuSlab } else { Source::CpuPartial };
            if c.freelist == 0 {
                self.machine.with_node(id, near, |n| self.get_partial(id, cache, c, n));
                source = Source::NodePartial;
            }
            (self.pop(c), source)
        });
        self.discard(discard);
        found
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
    fn get_partial(&self, id: CacheId, cache: &Cache, c: &mut CacheCpu, n: &mut CacheNode) {
        let map = self.machine.map();
        let Some((pfn, page)) = list::first(&n.lists[PARTIAL], map) else { return };
        list::remove(&mut n.lists[PARTIAL], map, page);
        let k = counters(page);
        self.emit(Event::GetPartial {
            cache: Some(id.as_u16()),
            node: Some(page.node()),
            pfn: Some(pfn),
            objects: k.objects.saturating_sub(k.inuse).into(),
        });
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
        self.emit(Event::UnfreezePartials {
            cache: Some(id.as_u16()),
            node: Some(c.node),
            slabs: c.partial_slabs.into(),
        });
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
        self.emit(Event::SlabFreeSlow { object: object.0, pfn, cache: Some(id.as_u16()) });
        let mut discard = Discard::NONE;
        let freed = self.machine.cpus().with(|cpu, caches| {
            let c = &mut caches[id.index()];
            set_up(c, cache, self.machine.node_of(cpu));
            if c.freelist == object.0 || array::is_newest(c, object.0) {
                return Err(FreeError::DoubleFree { object });
            }
            if pfn.as_u64() == c.slab {
                self.machine.mem().write_u64(link(cache, object.0), c.freelist);
                c.freelist = object.0;
                return Ok(());
            }
            if c.avail >= c.limit {
                self.flush_array(id, cache, c, cache.batchcount(), &mut discard);
            }
            if page.node() != c.node || !array::push(c, object.0) {
                self.machine.with_node(id, page.node(), |n| {
                    if let Some(prior) = self.push_free(u64::from(cache.offset()), page, object.0) {
                        self.settle(cache, c, n, pfn, page, prior, &mut discard);
                    }
                });
            }
            if c.partial_slabs > cache.cpu_partial_slabs() {
                self.unfreeze_partials(id, cache, c, &mut discard);
            }
            Ok(())
        });
        let k = counters(page);
        let fate = u8::from(k.frozen);
        self.emit(Event::SlabFreeSlowRet { in_use: k.inuse.into(), fate });
        self.discard(discard);
        freed
    }

    /// Gives the oldest `count` objects of the CPU's array back to their slabs.
    fn flush_array(&self, id: CacheId, cache: &Cache, c: &mut CacheCpu, count: u32, discard: &mut Discard) {
        self.emit(Event::CacheFlusharray {
            cache: Some(id.as_u16()),
            node: Some(c.node),
            batchcount: count.min(c.avail).into(),
        });
        let count = count.min(c.avail) as usize;
        let slab = |c: &CacheCpu, at: usize| {
            let object = c.array.get(at).copied().filter(|_| at < count)?;
            self.slab_of(Object(object)).map(|(pfn, page)| (pfn, page, object))
        };
        let offset = u64::from(cache.offset());
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
                    if let Some(prior) = self.push_free(offset, page, object) {
                        self.settle(cache, c, n, pfn, page, prior, discard);
                    }
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

    /// Puts an object on its slab's own list. `Some` of what was first there if the slab may now belong elsewhere: a list
    /// that was empty, or no object in use any more.
    #[inline(always)]
    fn push_free(&self, offset: u64, page: &Page, object: u64) -> Option<u64> {
        let prior = page.index();
        let k = counters(page);
        if prior == object || k.inuse == 0 {
            self.report_double_free(object);
            return None;
        }
        self.machine.mem().write_u64(PhysAddr::new(object + offset), prior);
        page.set_index(object);
        set_counters(page, SlabCounters { inuse: k.inuse - 1, ..k });
        (!k.frozen && (prior == 0 || k.inuse == 1)).then_some(prior)
    }

    #[cold]
    #[inline(never)]
    fn report_double_free(&self, object: u64) {
        self.machine.report(format_args!("BUG slab: double free of object {object:#x}"));
    }

    /// Puts a slab where its counters want it after a free: one that was full becomes the CPU's partial one; one that became empty
    /// is given back if the node has partial slabs enough.
    #[inline(never)]
    #[expect(clippy::too_many_arguments, reason = "all that a list lock guards")]
    fn settle(
        &self,
        cache: &Cache,
        c: &mut CacheCpu,
        n: &mut CacheNode,
        pfn: Pfn,
        page: &Page,
        prior: u64,
        discard: &mut Discard,
    ) {
        if prior == 0 {
            if cache.cpu_partial_slabs() != 0 {
                freeze(c, pfn, page);
            } else {
                unfreeze(cache, n, self.machine.map(), pfn, page, discard);
            }
        } else if n.lists[PARTIAL].nr > u64::from(cache.min_partial()) {
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
        let order = cache.slab_order();
        self.emit(Event::NewSlab { cache: Some(id.as_u16()), order, node: Some(node), gfp });
        let Some((pfn, page)) = self.slab_frames(cache, gfp, Some(node), id.as_u64()) else {
            self.emit(Event::NewSlabRet { pfn: None, objects: 0, colour: 0 });
            return None;
        };
        let objects = if page.order() == cache.slab_order() { cache.objects() } else { cache.min_objects() };
        let start = pfn.phys().as_u64() + u64::from(cache.red_left());
        let size = u64::from(cache.size());
        let (debugged, ctor, offset) = (cache.is_debugged(), cache.ctor(), u64::from(cache.offset()));
        let last = start + u64::from(objects.saturating_sub(1)) * size;
        let mut object = start;
        loop {
            if ctor != 0 {
                self.machine.construct(ctor, Object(object), cache.object_size());
            }
            if debugged {
                self.debug_init(cache, object);
            }
            let next = if object == last { 0 } else { object + size };
            self.machine.mem().write_u64(PhysAddr::new(object + offset), next);
            if next == 0 {
                break;
            }
            object = next;
        }
        page.set_index(start);
        set_counters(page, SlabCounters { inuse: 0, objects, frozen: false });
        self.emit(Event::NewSlabRet { pfn: Some(pfn), objects: objects.into(), colour: 0 });
        Some((pfn, page))
    }
}

/// Where an object's free-list word is.
#[inline]
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
#[inline]
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
#[inline]
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
