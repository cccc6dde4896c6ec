//! SLUB: a slab a CPU, partial slabs a CPU and a node, free lists inside the objects (Linux: mm/slub.c).
//!
//! A slab is in one of four states. *CPU*: it is `CacheCpu::slab`, frozen, and the CPU holds the objects of
//! `CacheCpu::freelist`. *CPU partial*: frozen, on `CacheCpu::partial`, with a free object of its own. *Node partial*: on the
//! node's list, with a free object. *Full*: on no list (a debugged cache keeps a list). Slabs of a CPU without a used object are
//! on `CacheCpu::empty` until there are many.
//!
//! `private` of a frozen slab names its CPU. Only that CPU touches the slab's list and counters, so its frees take no lock
//! and no atomic operation; what others free gathers on a list of its own, in `private`, and counts as in use until the owner
//! collects it. A full slab is nobody's, and becomes that of the CPU which frees an object of it first.
//!
//! Differs from Linux 6.1: its CPUs share all slabs but the current one and exchange two words of a slab atomically at every free.
//! Here a CPU keeps the slabs into which it frees (up to [`CPU_PARTIAL_BYTES`]), and what belongs to others goes through an
//! array of the CPU, many under one lock; Linux 6.18 has such arrays (sheaves).

use memvisor_abi::{CacheCpu, CacheNode, PFN_NONE, SlabCounters, SlabListKind};
use mm_core::{CpuLocal, Event, Gfp, Page, Pfn, PhysAddr, PhysMem};

use crate::alloc::{Put, Source, inside, set_up};
use crate::owner::{Home, Owner};
use crate::slab_page::{Discard, Place, counters, set_counters};
use crate::{Cache, CacheId, FreeError, Kmem, Machine, Object, array, list};

const PARTIAL: usize = SlabListKind::Partial as usize;

/// Memory of the slabs with free objects that a CPU keeps of a cache; above it all of them go to their nodes.
pub(crate) const CPU_PARTIAL_BYTES: u32 = 4 << 20;
/// Memory of the slabs without a used object that a CPU keeps of a cache; above it all of them are given back.
pub(crate) const CPU_EMPTY_BYTES: u32 = 128 << 10;

/// A CPU's part of a cache, with interrupts off.
struct Here<'h, M: Machine> {
    kmem: &'h Kmem<M>,
    id: CacheId,
    cache: &'h Cache,
    cpu: Owner,
    c: &'h mut CacheCpu,
    discard: &'h mut Discard,
}

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
        let near = node.unwrap_or_else(|| self.current_node());
        let Some((pfn, page)) = self.new_slab(id, cache, gfp, near) else {
            let others = 0..if gfp.contains(Gfp::THISNODE) { 0 } else { self.machine.nr_nodes() };
            let found = others.into_iter().find_map(|node| self.slub_refill(id, cache, Some(node)).0);
            return (found, Source::Search);
        };
        let object = self.here(id, cache, |here| {
            here.deactivate();
            self.machine.with_node(id, page.node(), |n| {
                n.nr_slabs += 1;
                n.total_objects += u64::from(counters(page).objects);
                here.claim(pfn, page);
            });
            here.pop()
        });
        (object, Source::NewSlab)
    }

    /// An object from the slabs that the CPU and the node have.
    fn slub_refill(&self, id: CacheId, cache: &Cache, want: Option<u32>) -> (Option<Object>, Source) {
        self.here(id, cache, |here| {
            here.c.refills += 1;
            let near = want.unwrap_or(here.c.node);
            let own = here.c.slab;
            here.refill(want);
            let mut source = if here.c.slab == own { Source::CpuSlab } else { Source::CpuPartial };
            if here.c.freelist == 0 {
                self.machine.with_node(id, near, |n| here.get_partial(n));
                source = Source::NodePartial;
            }
            (here.pop(), source)
        })
    }

    /// The slow path of a free (Linux: `__slab_free`).
    pub(crate) fn slub_free(&self, place: &Place<'_>) -> Result<(), FreeError> {
        let &Place { id, cache, pfn, page, object } = place;
        if cache.is_debugged() {
            return self.debug_free(place);
        }
        if !place.is_object() {
            return Err(FreeError::NotObject { object });
        }
        self.emit(Event::SlabFreeSlow { object: object.0, pfn, cache: Some(id.as_u16()) });
        let freed = self.here(id, cache, |here| {
            let freed = here.free(pfn, page, object);
            here.trim();
            freed
        });
        let k = counters(page);
        self.emit(Event::SlabFreeSlowRet { in_use: k.inuse.into(), fate: u8::from(k.frozen) });
        if freed { Ok(()) } else { Err(FreeError::DoubleFree { object }) }
    }

    /// Takes back what CPUs keep and gives empty slabs back, the fullest slabs first in what stays (Linux:
    /// `__kmem_cache_do_shrink`). The number of objects in use.
    pub(crate) fn slub_release(&self, id: CacheId, cache: &Cache) -> u64 {
        let mut discard = Discard::NONE;
        // Arrays first: what is in them may belong to slabs of other CPUs.
        let steps: [fn(&mut Here<'_, M>); 2] = [|here| here.flush_array(u32::MAX), |here| here.give_up_all()];
        for step in steps {
            self.machine.cpus().for_each(|cpu, caches| {
                let c = &mut caches[id.index()];
                if c.span_words != 0 {
                    step(&mut Here { kmem: self, id, cache, cpu: Owner::of(cpu), c, discard: &mut discard });
                }
            });
        }
        let mut live = 0;
        for node in 0..self.machine.nr_nodes() {
            live += self.machine.with_node(id, node, |n| self.release_node(n, &mut discard));
        }
        self.discard(discard);
        live
    }

    /// Calls `f` with this CPU's part of a cache, then gives back the slabs that it let go.
    fn here<R>(&self, id: CacheId, cache: &Cache, f: impl FnOnce(&mut Here<'_, M>) -> R) -> R {
        let mut discard = Discard::NONE;
        let result = self.machine.cpus().with(|cpu, caches| {
            let c = &mut caches[id.index()];
            set_up(c, cache, cpu, self.machine.node_of(cpu));
            f(&mut Here { kmem: self, id, cache, cpu: Owner::of(cpu), c, discard: &mut discard })
        });
        self.discard(discard);
        result
    }

    /// Puts an object back into a slab of this CPU's.
    #[inline(always)]
    pub(crate) fn push_own(&self, c: &mut CacheCpu, pfn: Pfn, page: &Page, object: u64) -> Put {
        let link = PhysAddr::new(object + u64::from(c.offset));
        if pfn.as_u64() == c.slab {
            if c.freelist == object {
                return Put::Slow;
            }
            self.machine.mem().write_u64(link, c.freelist);
            c.freelist = object;
            return Put::Done;
        }
        let (prior, raw) = (page.index(), page.mapcount());
        // One branch for what is rare.
        if (prior == object) | (raw & 0xffff <= 1) {
            return self.push_last(c, pfn, page, object);
        }
        self.machine.mem().write_u64(link, prior);
        page.set_index(object);
        page.set_mapcount(raw - 1);
        Put::Done
    }

    /// Puts the last used object back into a partial slab of the CPU.
    #[inline(never)]
    fn push_last(&self, c: &mut CacheCpu, pfn: Pfn, page: &Page, object: u64) -> Put {
        let k = counters(page);
        if page.index() == object || k.inuse == 0 {
            return Put::Slow;
        }
        self.machine.mem().write_u64(PhysAddr::new(object + u64::from(c.offset)), page.index());
        page.set_index(object);
        set_counters(page, SlabCounters { inuse: 0, ..k });
        self.emptied(c, pfn, page)
    }

    /// A partial slab of the CPU lost its last used object.
    fn emptied(&self, c: &mut CacheCpu, pfn: Pfn, page: &Page) -> Put {
        list::partial(c).remove(self.machine.map(), page);
        list::empty(c).push(self.machine.map(), pfn, page);
        if c.empty_slabs > c.empty_max { Put::Trim } else { Put::Done }
    }

    /// Puts the first object back into a full slab, which becomes this CPU's (Linux: `put_cpu_partial`).
    #[inline(never)]
    pub(crate) fn own_full(&self, c: &mut CacheCpu, pfn: Pfn, page: &Page, object: u64) -> Put {
        if !Owner::in_cpu(c).take_full(page) {
            return Put::Slow;
        }
        self.adopt(c, pfn, page, object)
    }

    /// Puts the first object back into a slab that was full and is this CPU's now.
    #[inline]
    fn adopt(&self, c: &mut CacheCpu, pfn: Pfn, page: &Page, object: u64) -> Put {
        self.machine.mem().write_u64(PhysAddr::new(object + u64::from(c.offset)), 0);
        page.set_index(object);
        let k = counters(page);
        let inuse = k.inuse.saturating_sub(1);
        set_counters(page, SlabCounters { inuse, frozen: true, ..k });
        list::partial(c).push(self.machine.map(), pfn, page);
        match inuse {
            0 => self.emptied(c, pfn, page),
            _ if c.partial_slabs > c.partial_max => Put::Trim,
            _ => Put::Done,
        }
    }

    /// Gives slabs away of which the CPU has too many.
    #[cold]
    #[inline(never)]
    pub(crate) fn slub_trim(&self, id: CacheId) {
        self.here(id, self.cache(id), |here| here.trim());
    }

    #[cold]
    #[inline(never)]
    fn report_double_free(&self, object: u64) {
        self.machine.report(format_args!("BUG slab: double free of object {object:#x}"));
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

impl<M: Machine> Here<'_, M> {
    fn pop(&mut self) -> Option<Object> {
        let object = self.c.freelist;
        if object == 0 {
            return None;
        }
        self.c.freelist = self.kmem.next_free(self.c, object);
        Some(Object(object))
    }

    /// Looks for free objects in the CPU's slab, then in its partial slabs.
    fn refill(&mut self, want: Option<u32>) {
        let (map, machine) = (self.kmem.machine.map(), &self.kmem.machine);
        let suits = |page: &Page| want.is_none_or(|want| page.node() == want);
        if let Some((pfn, page)) = list::at(self.c.slab, map) {
            if !suits(page) {
                self.deactivate();
            } else if self.c.freelist == 0 {
                self.c.slab = PFN_NONE;
                self.retire(pfn, page);
            }
        }
        while self.c.freelist == 0 {
            let partial = list::partial(self.c).pop(map);
            let Some((pfn, page)) = partial.or_else(|| list::empty(self.c).pop(map)) else { return };
            if suits(page) {
                self.claim(pfn, page);
            } else {
                machine.with_node(self.id, page.node(), |n| self.unfreeze(n, pfn, page));
            }
        }
    }

    /// The current slab has no free object left but those that others freed: these, or it is full.
    fn retire(&mut self, pfn: Pfn, page: &Page) {
        let cpu = self.cpu;
        let next = cpu.give_up(page, || {
            self.collect(pfn, page);
            let full = page.index() == 0;
            set_counters(page, SlabCounters { frozen: !full, ..counters(page) });
            if full { Owner::FULL } else { cpu }
        });
        if next == cpu {
            self.claim(pfn, page);
        }
    }

    /// Takes the node's first partial slab for the CPU, and further ones for its partial list (Linux: `get_partial_node`).
    fn get_partial(&mut self, n: &mut CacheNode) {
        let map = self.kmem.machine.map();
        let Some((pfn, page)) = list::first(&n.lists[PARTIAL], map) else { return };
        list::remove(&mut n.lists[PARTIAL], map, page);
        let k = counters(page);
        self.kmem.emit(Event::GetPartial {
            cache: Some(self.id.as_u16()),
            node: Some(page.node()),
            pfn: Some(pfn),
            objects: k.objects.saturating_sub(k.inuse).into(),
        });
        self.claim(pfn, page);
        while self.c.partial_slabs + self.c.empty_slabs < self.cache.cpu_partial_slabs() / 2
            && let Some((pfn, page)) = list::first(&n.lists[PARTIAL], map)
        {
            list::remove(&mut n.lists[PARTIAL], map, page);
            self.freeze(pfn, page);
        }
    }

    /// Takes an object back; `false` if it is free already.
    fn free(&mut self, pfn: Pfn, page: &Page, object: Object) -> bool {
        let owner = Owner::in_page(page);
        if self.c.freelist == object.0 || array::is_newest(self.c, object.0) {
            return false;
        }
        let others = owner != self.cpu && owner != Owner::FULL && page.node() == self.c.node;
        if others && self.c.avail >= self.c.limit {
            self.flush_array(self.cache.batchcount());
        }
        others && array::push(self.c, object.0) || {
            let machine = &self.kmem.machine;
            machine.with_node(self.id, page.node(), |n| self.give_back(n, pfn, page, object.0))
        }
    }

    /// Gives slabs away of which there are too many.
    fn trim(&mut self) {
        if self.c.empty_slabs > self.c.empty_max {
            self.unfreeze_all(list::empty);
        }
        if self.c.partial_slabs > self.c.partial_max {
            self.unfreeze_all(list::partial);
        }
    }

    /// Gives the oldest `count` objects of the CPU's array back to their slabs.
    fn flush_array(&mut self, count: u32) {
        let kmem = self.kmem;
        let count = count.min(self.c.avail);
        kmem.emit(Event::CacheFlusharray {
            cache: Some(self.id.as_u16()),
            node: Some(self.c.node),
            batchcount: count.into(),
        });
        let slab = |c: &CacheCpu, at: usize| {
            let object = c.array.get(at).copied().filter(|_| at < count as usize)?;
            kmem.slab_of(Object(object)).map(|(pfn, page)| (pfn, page, object))
        };
        let mut at = 0;
        while at < count as usize {
            let Some((mut pfn, mut page, mut object)) = slab(self.c, at) else {
                at += 1;
                continue;
            };
            let node = page.node();
            // One lock for all that follow from the same node.
            kmem.machine.with_node(self.id, node, |n| {
                loop {
                    if !self.give_back(n, pfn, page, object) {
                        kmem.report_double_free(object);
                    }
                    at += 1;
                    match slab(self.c, at) {
                        Some(next) if next.1.node() == node => (pfn, page, object) = next,
                        _ => break,
                    }
                }
            });
        }
        array::drop_oldest(self.c, count);
    }

    /// Puts an object on its slab's list, under the list lock, and the slab where it then belongs; `false` if the object is free
    /// already.
    fn give_back(&mut self, n: &mut CacheNode, pfn: Pfn, page: &Page, object: u64) -> bool {
        let (mem, map) = (self.kmem.machine.mem(), self.kmem.machine.map());
        let link = link(self.cache, object);
        match self.cpu.send_home(page, object, |first| mem.write_u64(link, first)) {
            Home::Own => return self.kmem.push_own(self.c, pfn, page, object) != Put::Slow,
            Home::Adopted => return self.kmem.adopt(self.c, pfn, page, object) != Put::Slow,
            Home::Gathered => return true,
            Home::Twice => return false,
            Home::Node => {}
        }
        let (prior, k) = (page.index(), counters(page));
        if prior == object || k.inuse == 0 {
            return false;
        }
        mem.write_u64(link, prior);
        page.set_index(object);
        set_counters(page, SlabCounters { inuse: k.inuse - 1, ..k });
        if k.inuse == 1 && n.lists[PARTIAL].nr > u64::from(self.cache.min_partial()) {
            list::remove(&mut n.lists[PARTIAL], map, page);
            forget(n, pfn, page, self.discard);
        }
        true
    }

    /// Puts what others freed on the slab's own list.
    fn collect(&mut self, pfn: Pfn, page: &Page) {
        let mem = self.kmem.machine.mem();
        let mut object = self.cpu.take_freed_by_others(page);
        if object == 0 {
            return;
        }
        let mut k = counters(page);
        while k.inuse > 0 && inside(object, pfn.phys().as_u64(), self.c.span_words) {
            let next = mem.read_u64(link(self.cache, object));
            mem.write_u64(link(self.cache, object), page.index());
            page.set_index(object);
            k.inuse -= 1;
            object = next;
        }
        set_counters(page, k);
        if object != 0 {
            self.kmem.report_link(page.index(), object);
        }
    }

    /// Makes a slab with free objects, which is on no list, the CPU's current one and takes all its free objects. Under the list
    /// lock if it is the node's.
    fn claim(&mut self, pfn: Pfn, page: &Page) {
        let k = counters(page);
        self.c.slab = pfn.as_u64();
        self.c.freelist = page.index();
        page.set_index(0);
        set_counters(page, SlabCounters { inuse: k.objects, frozen: true, ..k });
        if Owner::in_page(page) != self.cpu {
            self.cpu.take(page);
        }
    }

    /// Makes a slab with free objects, which is on no list, one of the CPU's partial slabs, or of its empty ones: nodes have both on one
    /// list. Under the list lock.
    fn freeze(&mut self, pfn: Pfn, page: &Page) {
        let k = SlabCounters { frozen: true, ..counters(page) };
        set_counters(page, k);
        self.cpu.take(page);
        let slabs = if k.inuse == 0 { list::empty } else { list::partial };
        slabs(self.c).push(self.kmem.machine.map(), pfn, page);
    }

    /// Puts a slab of this CPU, which is on no list, where its counters want it, under the list lock: given back, on the node's
    /// partial list, or full on none.
    fn unfreeze(&mut self, n: &mut CacheNode, pfn: Pfn, page: &Page) {
        let mut k = counters(page);
        let next = self.cpu.give_up(page, || {
            self.collect(pfn, page);
            k = SlabCounters { frozen: false, ..counters(page) };
            set_counters(page, k);
            if page.index() == 0 { Owner::FULL } else { Owner::NODE }
        });
        if k.inuse == 0 && n.lists[PARTIAL].nr >= u64::from(self.cache.min_partial()) {
            forget(n, pfn, page, self.discard);
        } else if next == Owner::NODE {
            list::push_back(&mut n.lists[PARTIAL], self.kmem.machine.map(), pfn, page);
        }
    }

    /// Gives the CPU's slab with its free objects back to the node (Linux: `deactivate_slab`).
    fn deactivate(&mut self) {
        let machine = &self.kmem.machine;
        let Some((pfn, page)) = list::at(self.c.slab, machine.map()) else { return };
        let mut count = 0;
        let (first, mut last) = (self.c.freelist, 0);
        // The list is as long as the slab has objects at most; a longer one is damaged and ends there.
        let k = counters(page);
        while self.c.freelist != 0 && count < k.objects {
            last = self.c.freelist;
            self.c.freelist = self.kmem.next_free(self.c, last);
            count += 1;
        }
        self.c.slab = PFN_NONE;
        self.c.freelist = 0;
        machine.with_node(self.id, page.node(), |n| {
            if last != 0 {
                machine.mem().write_u64(link(self.cache, last), page.index());
                page.set_index(first);
            }
            set_counters(page, SlabCounters { inuse: k.inuse.saturating_sub(count), ..k });
            self.unfreeze(n, pfn, page);
        });
    }

    /// Gives the CPU's partial or empty slabs to their nodes (Linux: `unfreeze_partials`).
    fn unfreeze_all(&mut self, which: fn(&mut CacheCpu) -> list::CpuList<'_>) {
        let machine = &self.kmem.machine;
        self.kmem.emit(Event::UnfreezePartials {
            cache: Some(self.id.as_u16()),
            node: Some(self.c.node),
            slabs: (*which(self.c).nr).into(),
        });
        let mut next = which(self.c).pop(machine.map());
        while let Some((_, first)) = next {
            let node = first.node();
            // One lock for all that follow from the same node.
            machine.with_node(self.id, node, |n| {
                while let Some((pfn, page)) = next.filter(|(_, page)| page.node() == node) {
                    self.unfreeze(n, pfn, page);
                    next = which(self.c).pop(machine.map());
                }
            });
        }
    }

    /// Gives everything back but the array.
    fn give_up_all(&mut self) {
        self.deactivate();
        self.unfreeze_all(list::partial);
        self.unfreeze_all(list::empty);
        // What another CPU freed meanwhile.
        self.flush_array(u32::MAX);
        *self.c = CacheCpu::EMPTY;
    }
}

/// Where an object's free-list word is.
#[inline]
pub(crate) fn link(cache: &Cache, object: u64) -> PhysAddr {
    PhysAddr::new(object + u64::from(cache.offset()))
}

/// Counts a slab that is on no list as gone.
pub(crate) fn forget(n: &mut CacheNode, pfn: Pfn, page: &Page, discard: &mut Discard) {
    n.nr_slabs = n.nr_slabs.saturating_sub(1);
    n.total_objects = n.total_objects.saturating_sub(u64::from(counters(page).objects));
    discard.push(pfn, page);
}
