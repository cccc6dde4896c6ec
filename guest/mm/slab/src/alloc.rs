//! Allocating and freeing objects: the fast path that SLUB and SLAB share, and the way to the slow ones.

use memvisor_abi::{CacheCpu, EventId, PFN_NONE, SlabKind};
use mm_core::{CpuLocal, Event, Gfp, Page, Pfn, PhysAddr, PhysMem, Trace};

use crate::cache::Name;
use crate::owner::Owner;
use crate::slab_page::Place;
use crate::slub::{CPU_EMPTY_BYTES, CPU_PARTIAL_BYTES};
use crate::{Cache, CacheId, FreeError, Machine, Object, array};

/// The caches of a machine.
#[derive(Debug)]
pub struct Kmem<M> {
    pub(crate) machine: M,
}

/// `CacheCpu::offset` where there are no free lists in objects.
pub(crate) const NO_FREELIST: u32 = u32::MAX;

impl<M: Machine> Kmem<M> {
    /// Caches over `machine`; none exists before [`Kmem::init`].
    pub const fn new(machine: M) -> Kmem<M> {
        Kmem { machine }
    }

    /// The machine below.
    pub const fn machine(&self) -> &M {
        &self.machine
    }

    /// The record of a cache.
    pub fn cache(&self, id: CacheId) -> &Cache {
        &self.machine.caches()[id.index()]
    }

    /// Allocates an object (Linux: `kmem_cache_alloc`). Its contents are what a constructor or the last user left, or
    /// zero with [`Gfp::ZERO`]. `None` if no page is to be had.
    #[inline]
    pub fn alloc(&self, id: CacheId, gfp: Gfp) -> Option<Object> {
        if self.machine.should_failslab(id, gfp) {
            return None;
        }
        self.emit(Event::SlabAllocNode { cache: Some(id.as_u16()), node: None, gfp });
        let object = match self.machine.cpus().with(|_, caches| self.take(&mut caches[id.index()])) {
            Some(object) => object,
            None => self.alloc_slow(id, gfp, None).or_else(|| self.alloc_failed())?,
        };
        if gfp.contains(Gfp::ZERO) {
            self.clear(object, self.cache(id).object_size());
        }
        self.emit(Event::SlabAllocNodeRet { object: object.0 });
        if self.machine.map().wants(EventId::KmemCacheAlloc) {
            self.trace_alloc(id, object, gfp, None);
        }
        Some(object)
    }

    /// Allocates an object of a slab on `node`, if there is one to be had; else nearby (Linux:
    /// `kmem_cache_alloc_node`). With [`Gfp::THISNODE`] nowhere else.
    pub fn alloc_node(&self, id: CacheId, gfp: Gfp, node: u32) -> Option<Object> {
        if node >= self.machine.nr_nodes() || self.machine.should_failslab(id, gfp) {
            return None;
        }
        self.emit(Event::SlabAllocNode { cache: Some(id.as_u16()), node: Some(node), gfp });
        let object = self.alloc_slow(id, gfp, Some(node)).or_else(|| self.alloc_failed())?;
        if gfp.contains(Gfp::ZERO) {
            self.clear(object, self.cache(id).object_size());
        }
        self.emit(Event::SlabAllocNodeRet { object: object.0 });
        self.trace_alloc(id, object, gfp, Some(node));
        Some(object)
    }

    /// There is none: the call that was entered is left without an object.
    #[cold]
    fn alloc_failed(&self) -> Option<Object> {
        self.emit(Event::SlabAllocNodeRet { object: 0 });
        None
    }

    /// Fills `objects`, all or none (Linux: `kmem_cache_alloc_bulk`).
    pub fn alloc_bulk(&self, id: CacheId, gfp: Gfp, objects: &mut [Object]) -> bool {
        for index in 0..objects.len() {
            match self.alloc(id, gfp) {
                Some(object) => objects[index] = object,
                None => {
                    self.free_bulk(id, &objects[..index]);
                    return false;
                }
            }
        }
        true
    }

    /// Takes an object back (Linux: `kmem_cache_free`).
    ///
    /// # Errors
    /// [`FreeError`]: nothing was changed, and the console says what is wrong.
    #[inline]
    pub fn free(&self, id: CacheId, object: Object) -> Result<(), FreeError> {
        self.emit(Event::KmemCacheFree { ptr: object.0, cache: Some(id.as_u16()) });
        self.emit(Event::SlabFree { object: object.0, cache: Some(id.as_u16()) });
        let freed = match self.slab_of(object) {
            Some((pfn, page)) => self.free_in(id, pfn, page, object),
            None => self.free_slow(id, object),
        };
        self.emit(Event::SlabFreeRet {});
        freed
    }

    /// Takes back an object of a slab of cache `id`.
    #[inline]
    fn free_in(&self, id: CacheId, pfn: Pfn, page: &Page, object: Object) -> Result<(), FreeError> {
        match self.machine.cpus().with(|_, caches| self.put(id, &mut caches[id.index()], pfn, page, object)) {
            Put::Done => Ok(()),
            Put::Trim => {
                self.slub_trim(id);
                Ok(())
            }
            Put::Slow => self.free_slow(id, object),
        }
    }

    /// Takes back an object of a slab whose cache is not known yet (Linux: `kfree` of a slab's object).
    #[inline]
    pub(crate) fn free_found(&self, pfn: Pfn, page: &Page, object: Object) -> Option<Result<(), FreeError>> {
        let id = CacheId::new(page.mapping())?;
        self.emit(Event::KmemCacheFree { ptr: object.0, cache: Some(id.as_u16()) });
        self.emit(Event::SlabFree { object: object.0, cache: Some(id.as_u16()) });
        let freed = self.free_in(id, pfn, page, object);
        self.emit(Event::SlabFreeRet {});
        Some(freed)
    }

    /// Tells the machine's trace.
    #[inline(always)]
    pub(crate) fn emit(&self, event: Event) {
        self.machine.map().emit(event);
    }

    #[cold]
    #[inline(never)]
    fn trace_alloc(&self, id: CacheId, object: Object, gfp_flags: Gfp, node: Option<u32>) {
        let cache = self.cache(id);
        self.emit(Event::KmemCacheAlloc {
            ptr: object.0,
            bytes_req: cache.object_size().into(),
            bytes_alloc: cache.size().into(),
            gfp_flags,
            node,
            cache: Some(id.as_u16()),
        });
    }

    /// Takes objects back (Linux: `kmem_cache_free_bulk`); the number that was refused.
    pub fn free_bulk(&self, id: CacheId, objects: &[Object]) -> usize {
        objects.iter().filter(|object| self.free(id, **object).is_err()).count()
    }

    /// Gives back all empty slabs and what CPUs keep (Linux: `kmem_cache_shrink`). Objects in use stay where they are.
    pub fn shrink(&self, id: CacheId) {
        if self.cache(id).is_used() {
            self.release(id);
        }
    }

    /// Zeroes the first bytes of an object, and none behind them: there may be a red zone.
    pub(crate) fn clear(&self, object: Object, bytes: u32) {
        let mem = self.machine.mem();
        let end = object.0 + u64::from(bytes / 8 * 8);
        (object.0..end).step_by(8).for_each(|word| mem.write_u64(PhysAddr::new(word), 0));
        if !bytes.is_multiple_of(8) {
            let last = PhysAddr::new(end);
            mem.write_u64(last, mem.read_u64(last) & (u64::MAX << (bytes % 8 * 8)));
        }
    }

    /// An object from what this CPU has at hand.
    #[inline]
    fn take(&self, cpu: &mut CacheCpu) -> Option<Object> {
        let object = cpu.freelist;
        if object != 0 {
            cpu.freelist = self.next_free(cpu, object);
            return Some(Object(object));
        }
        let avail = cpu.avail.checked_sub(1)?;
        let object = *cpu.array.get(avail as usize)?;
        cpu.avail = avail;
        Some(Object(object))
    }

    /// The object that follows on the CPU's free list. A link that leads out of the slab was overwritten by somebody who still
    /// uses a freed object: it ends the list, and the rest of the slab is lost (Linux: `deactivate_slab` with
    /// `freelist_corrupted`).
    #[inline]
    pub(crate) fn next_free(&self, cpu: &CacheCpu, object: u64) -> u64 {
        let next = self.machine.mem().read_u64(PhysAddr::new(object + u64::from(cpu.offset)));
        if inside(next, cpu.slab << memvisor_abi::PAGE_SHIFT, cpu.span_words) || next == 0 {
            return next;
        }
        self.report_link(object, next)
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn report_link(&self, object: u64, next: u64) -> u64 {
        self.machine.report(format_args!(
            "BUG slab: Freechain corrupt: object {object:#x} links to {next:#x}; the rest of the slab is out of use"
        ));
        0
    }

    /// Gives an object to what this CPU has at hand; `false` if that is not so easy.
    #[inline]
    fn put(&self, id: CacheId, c: &mut CacheCpu, pfn: Pfn, page: &Page, object: Object) -> Put {
        let from = object.0.wrapping_sub(pfn.phys().as_u64());
        let owner = Owner::in_page(page);
        // One branch for all that is checked of an object in a slab of this CPU's.
        if (page.mapping() == id.as_u64()) & (owner == Owner::in_cpu(c)) & is_place(c, from) {
            return self.push_own(c, pfn, page, object.0);
        }
        self.put_elsewhere(id, c, pfn, page, object)
    }

    /// [`Kmem::put`] of an object of SLAB's, and of a slab that is not this CPU's.
    #[inline]
    fn put_elsewhere(&self, id: CacheId, c: &mut CacheCpu, pfn: Pfn, page: &Page, object: Object) -> Put {
        let is_slub = c.offset != NO_FREELIST;
        let base = if is_slub { pfn.phys().as_u64() } else { page.index() };
        if page.mapping() != id.as_u64() || !is_place(c, object.0.wrapping_sub(base)) {
            return Put::Slow;
        }
        if is_slub && Owner::in_page(page) == Owner::FULL {
            return self.own_full(c, pfn, page, object.0);
        }
        if page.node() == c.node && !array::is_newest(c, object.0) && array::push(c, object.0) {
            Put::Done
        } else {
            Put::Slow
        }
    }

    #[cold]
    #[inline(never)]
    fn alloc_slow(&self, id: CacheId, gfp: Gfp, node: Option<u32>) -> Option<Object> {
        let cache = self.cache(id);
        if !cache.is_used() {
            self.machine.report(format_args!(
                "BUG slab: allocation from cache {}, which does not exist",
                id.as_u64()
            ));
            return None;
        }
        self.emit(Event::SlabAllocSlow { cache: Some(id.as_u16()), node, gfp });
        let (object, source) = match cache.kind() {
            SlabKind::Slub => self.slub_alloc(id, cache, gfp, node),
            SlabKind::Slab => self.slab_alloc(id, cache, gfp, node),
            SlabKind::Slob => (self.slob_cache_alloc(id, cache, gfp, node), Source::Search),
        };
        self.emit(Event::SlabAllocSlowRet {
            object: object.map_or(0, |object| object.0),
            source: source as u8,
        });
        object
    }

    #[inline(never)]
    fn free_slow(&self, id: CacheId, object: Object) -> Result<(), FreeError> {
        let cache = self.cache(id);
        if !cache.is_used() {
            self.machine
                .report(format_args!("BUG slab: free into cache {}, which does not exist", id.as_u64()));
            return Err(FreeError::WrongCache { object, owner: None });
        }
        let freed = match cache.kind() {
            SlabKind::Slob => self.slob_cache_free(id, cache, object),
            kind => self.check_owner(id, object).and_then(|(pfn, page)| {
                let place = Place { id, cache, pfn, page, object };
                if kind == SlabKind::Slub { self.slub_free(&place) } else { self.slab_free(&place) }
            }),
        };
        if let Err(error) = freed {
            let name = cache.load().name;
            self.machine.report(format_args!("BUG {}: {error}", Name::from_raw(name).as_str()));
        }
        freed
    }

    /// The slab of an object that is to be freed into cache `id`, if it may be there.
    fn check_owner(&self, id: CacheId, object: Object) -> Result<(Pfn, &Page), FreeError> {
        let (pfn, page) = self.slab_of(object).ok_or(FreeError::NotSlab { object })?;
        if page.mapping() != id.as_u64() {
            return Err(FreeError::WrongCache { object, owner: CacheId::new(page.mapping()) });
        }
        Ok((pfn, page))
    }

    /// Gives back everything of a cache that is not in use; the number of objects that are.
    pub(crate) fn release(&self, id: CacheId) -> u64 {
        let cache = self.cache(id);
        match cache.kind() {
            SlabKind::Slub => self.slub_release(id, cache),
            SlabKind::Slab => self.slab_release(id, cache),
            SlabKind::Slob => self.slob_live(id),
        }
    }
}

/// Where an object of the slow path came from, as events number it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    CpuSlab = 1,
    CpuPartial = 2,
    NodePartial = 3,
    NewSlab = 4,
    Shared = 5,
    Search = 6,
}

/// How an object was put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    Done,
    /// It was, and the CPU has slabs to give away now.
    Trim,
    /// It was not: that takes a closer look.
    Slow,
}

/// Whether an object starts that far from the first of a slab, whose frames hold it. A multiple of the size is one of a word.
#[inline]
fn is_place(c: &CacheCpu, from: u64) -> bool {
    (from < u64::from(c.span_words) << 3) & (from.wrapping_mul(c.divisor) < c.divisor)
}

/// Whether `object` is a word's address in the `words` words from `base` on.
#[inline]
pub(crate) fn inside(object: u64, base: u64, words: u32) -> bool {
    // Rotation puts the low bits of an address that is no word's on top.
    object.wrapping_sub(base).rotate_right(3) < u64::from(words)
}

/// Fills in a CPU's copies of what the fast path needs of the cache.
pub(crate) fn set_up(cpu: &mut CacheCpu, cache: &Cache, number: u32, node: u32) {
    if cpu.span_words != 0 {
        return;
    }
    *cpu = CacheCpu::EMPTY;
    cpu.offset = if cache.kind() == SlabKind::Slub { cache.offset() } else { NO_FREELIST };
    cpu.limit = cache.limit();
    cpu.node = node;
    cpu.span_words = cache.objects() * cache.size() / 8;
    cpu.divisor = u64::MAX / u64::from(cache.size()) + 1;
    cpu.owner = if cache.kind() == SlabKind::Slub { number + 1 } else { u32::MAX };
    let bytes = cpu.span_words.max(1) * 8;
    cpu.partial_max = (CPU_PARTIAL_BYTES / bytes).max(cache.cpu_partial_slabs());
    cpu.empty_max = CPU_EMPTY_BYTES / bytes;
    debug_assert!(cpu.slab == PFN_NONE);
}
