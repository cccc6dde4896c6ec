//! SLAB: full, partial and free slabs a node, arrays of free objects a CPU, a shared array a node, and rows of objects of
//! other nodes (Linux 6.1: mm/slab.c).
//!
//! A slab numbers its objects. An array of their numbers, at the slab's end or in `Page::private`, says which are free: those
//! from place `inuse` on. The first object of slabs of one cache starts at different cache lines, its colour.
//!
//! Differs from Linux: arrays of a node are made when the node is first used, and given back by every shrink.

use memvisor_abi::{ALIEN_LIMIT, ALIEN_ROW, CacheCpu, CacheNode, SlabCounters, SlabListKind};
use mm_core::{CpuLocal, Event, Gfp, Order, PAGE_SIZE, Page, PageAlloc, Pfn, PhysAddr, PhysMem};

use crate::alloc::{Source, set_up};
use crate::slab_page::{Discard, Place, counters, set_counters};
use crate::slub::forget;
use crate::{Cache, CacheId, FreeError, Kmem, Machine, Object, array, list};

const PARTIAL: usize = SlabListKind::Partial as usize;
const FULL: usize = SlabListKind::Full as usize;
const FREE: usize = SlabListKind::Free as usize;

impl<M: Machine> Kmem<M> {
    /// Linux: `____cache_alloc`, `____cache_alloc_node`, `fallback_alloc`.
    pub(crate) fn slab_alloc(
        &self,
        id: CacheId,
        cache: &Cache,
        gfp: Gfp,
        node: Option<u32>,
    ) -> (Option<Object>, Source) {
        let here = self.current_node();
        self.prepare_node(id, cache, here);
        let near = node.unwrap_or(here);
        let found =
            if near == here { self.cache_refill(id, cache) } else { self.take_from_node(id, cache, near) };
        if found.is_some() {
            return (found, if near == here { Source::Shared } else { Source::NodePartial });
        }
        if let Some((pfn, page)) = self.grow(id, cache, gfp, near) {
            let node = page.node();
            let object = self.machine.with_node(id, node, |n| {
                n.nr_slabs += 1;
                n.total_objects += u64::from(cache.objects());
                n.free_objects += u64::from(cache.objects());
                list::push_back(&mut n.lists[FREE], self.machine.map(), pfn, page);
                // At once: another CPU may take all of them.
                self.take_from_slabs(cache, n)
            });
            return (object.map(Object), Source::NewSlab);
        }
        let others = 0..if gfp.contains(Gfp::THISNODE) { 0 } else { self.machine.nr_nodes() };
        (others.into_iter().find_map(|node| self.take_from_node(id, cache, node)), Source::Search)
    }

    pub(crate) fn current_node(&self) -> u32 {
        self.machine.cpus().with(|cpu, _| self.machine.node_of(cpu))
    }

    /// Fills the CPU's array from the shared array or from slabs, and takes an object (Linux: `cache_alloc_refill`).
    fn cache_refill(&self, id: CacheId, cache: &Cache) -> Option<Object> {
        self.machine.cpus().with(|cpu, caches| {
            let c = &mut caches[id.index()];
            set_up(c, cache, cpu, self.machine.node_of(cpu));
            c.refills += 1;
            let (name, node) = (Some(id.as_u16()), Some(c.node));
            self.emit(Event::CacheAllocRefill { cache: name, node, batchcount: cache.batchcount().into() });
            if c.avail == 0 {
                self.machine.with_node(id, c.node, |n| {
                    let batch = cache.batchcount().min(c.limit);
                    while c.avail < batch
                        && let Some(object) = self.pop_shared(n)
                    {
                        array::push(c, object);
                    }
                    while c.avail < batch
                        && let Some(object) = self.take_from_slabs(cache, n)
                    {
                        array::push(c, object);
                    }
                });
            }
            self.emit(Event::CacheAllocRefillRet { avail: c.avail.into() });
            let avail = c.avail.checked_sub(1)?;
            c.avail = avail;
            c.array.get(avail as usize).map(|object| Object(*object))
        })
    }

    fn take_from_node(&self, id: CacheId, cache: &Cache, node: u32) -> Option<Object> {
        self.machine
            .with_node(id, node, |n| self.take_from_slabs(cache, n).or_else(|| self.pop_shared(n)))
            .map(Object)
    }

    /// A free object of a partial slab, or of a free one.
    fn take_from_slabs(&self, cache: &Cache, n: &mut CacheNode) -> Option<u64> {
        let map = self.machine.map();
        let from = if n.lists[PARTIAL].nr > 0 { PARTIAL } else { FREE };
        let (pfn, page) = list::first(&n.lists[from], map)?;
        let mut k = counters(page);
        let number = self.index(cache, pfn, page, k.inuse);
        k.inuse += 1;
        set_counters(page, k);
        n.free_objects = n.free_objects.saturating_sub(1);
        let to = if k.inuse == k.objects { FULL } else { PARTIAL };
        if from != to {
            list::remove(&mut n.lists[from], map, page);
            list::push_front(&mut n.lists[to], map, pfn, page);
        }
        Some(page.index() + u64::from(number) * u64::from(cache.size()))
    }

    /// Linux: `___cache_free`.
    pub(crate) fn slab_free(&self, place: &Place<'_>) -> Result<(), FreeError> {
        let &Place { id, cache, page, object, .. } = place;
        let from = object.0.checked_sub(page.index()).ok_or(FreeError::NotObject { object })?;
        let size = u64::from(cache.size());
        if !from.is_multiple_of(size) || from / size >= u64::from(counters(page).objects) {
            return Err(FreeError::NotObject { object });
        }
        let mut discard = Discard::NONE;
        let here = self.current_node();
        self.prepare_node(id, cache, here);
        let freed = self.machine.cpus().with(|cpu, caches| {
            let c = &mut caches[id.index()];
            set_up(c, cache, cpu, self.machine.node_of(cpu));
            if array::is_newest(c, object.0) {
                return Err(FreeError::DoubleFree { object });
            }
            if page.node() != c.node {
                self.free_alien(id, cache, c, page.node(), object.0, &mut discard);
                return Ok(());
            }
            if c.avail >= c.limit {
                self.flush(id, cache, c, &mut discard);
            }
            array::push(c, object.0);
            Ok(())
        });
        self.discard(discard);
        freed
    }

    /// Makes room in the CPU's array: the oldest objects go to the shared array, else to their slabs (Linux:
    /// `cache_flusharray`).
    fn flush(&self, id: CacheId, cache: &Cache, c: &mut CacheCpu, discard: &mut Discard) {
        let batch = cache.batchcount().min(c.avail);
        self.emit(Event::CacheFlusharray {
            cache: Some(id.as_u16()),
            node: Some(c.node),
            batchcount: batch.into(),
        });
        let moved = self.machine.with_node(id, c.node, |n| {
            let mut moved = 0;
            let oldest = c.array.iter().take(batch as usize);
            for object in oldest.clone() {
                if !self.push_shared(n, *object) {
                    break;
                }
                moved += 1;
            }
            if moved == 0 {
                for object in oldest {
                    self.free_to_slab(cache, n, *object, discard);
                    moved += 1;
                }
            }
            moved
        });
        array::drop_oldest(c, moved);
    }

    /// Puts an object back into its slab (Linux: `free_block`).
    fn free_to_slab(&self, cache: &Cache, n: &mut CacheNode, object: u64, discard: &mut Discard) {
        let map = self.machine.map();
        let Some((pfn, page)) = self.slab_of(Object(object)) else { return };
        let mut k = counters(page);
        let number = (object - page.index()) / u64::from(cache.size());
        if k.inuse == 0 {
            self.machine.report(format_args!("BUG slab: double free of object {object:#x}"));
            return;
        }
        let from = if k.inuse == k.objects { FULL } else { PARTIAL };
        k.inuse -= 1;
        self.set_index(cache, pfn, page, k.inuse, u8::try_from(number).unwrap_or(u8::MAX));
        set_counters(page, k);
        n.free_objects += 1;
        if k.inuse != 0 && from == PARTIAL {
            return;
        }
        list::remove(&mut n.lists[from], map, page);
        if k.inuse != 0 {
            list::push_back(&mut n.lists[PARTIAL], map, pfn, page);
        } else if n.free_objects > u64::from(n.free_limit) {
            n.free_objects -= u64::from(k.objects);
            forget(n, pfn, page, discard);
        } else {
            list::push_front(&mut n.lists[FREE], map, pfn, page);
        }
    }

    /// Keeps an object of another node in this node's row for it; a full row goes home (Linux:
    /// `cache_free_alien`).
    fn free_alien(
        &self,
        id: CacheId,
        cache: &Cache,
        c: &CacheCpu,
        home: u32,
        object: u64,
        discard: &mut Discard,
    ) {
        let mut out = [0; ALIEN_LIMIT as usize];
        let count = self.machine.with_node(id, c.node, |n| {
            let Some(row) = row(n, home) else {
                out[0] = object;
                return 1;
            };
            let mem = self.machine.mem();
            let mut count = 0;
            let mut avail = mem.read_u64(word(row, 0));
            if avail >= u64::from(ALIEN_LIMIT) {
                count = self.empty_row(row, &mut out);
                avail = 0;
            }
            mem.write_u64(word(row, 2 + avail), object);
            mem.write_u64(word(row, 0), avail + 1);
            count
        });
        self.send_home(id, cache, home, &out[..count], discard);
    }

    /// Takes all objects out of a row.
    fn empty_row(&self, row: u64, out: &mut [u64; ALIEN_LIMIT as usize]) -> usize {
        let mem = self.machine.mem();
        let count = usize::try_from(mem.read_u64(word(row, 0))).unwrap_or(0).min(out.len());
        for (at, slot) in (2..).zip(&mut out[..count]) {
            *slot = mem.read_u64(word(row, at));
        }
        mem.write_u64(word(row, 0), 0);
        count
    }

    /// Linux: `__drain_alien_cache`.
    fn send_home(&self, id: CacheId, cache: &Cache, home: u32, objects: &[u64], discard: &mut Discard) {
        if objects.is_empty() {
            return;
        }
        self.machine.with_node(id, home, |n| {
            for object in objects {
                if !self.push_shared(n, *object) {
                    self.free_to_slab(cache, n, *object, discard);
                }
            }
        });
    }

    fn push_shared(&self, n: &mut CacheNode, object: u64) -> bool {
        if n.shared == 0 || n.shared_avail >= n.shared_limit {
            return false;
        }
        self.machine.mem().write_u64(word(n.shared, n.shared_avail.into()), object);
        n.shared_avail += 1;
        true
    }

    fn pop_shared(&self, n: &mut CacheNode) -> Option<u64> {
        n.shared_avail = n.shared_avail.checked_sub(1)?;
        Some(self.machine.mem().read_u64(word(n.shared, n.shared_avail.into())))
    }

    /// Gives a node its limits, its shared array and its rows (Linux: `setup_kmem_cache_node`). Without memory it does
    /// without arrays.
    fn prepare_node(&self, id: CacheId, cache: &Cache, node: u32) {
        let nodes = self.machine.nr_nodes();
        let (shared, alien) = self.machine.with_node(id, node, |n| {
            if n.free_limit == 0 {
                let cpus =
                    (0..self.machine.nr_cpus()).filter(|cpu| self.machine.node_of(*cpu) == node).count();
                let cpus = u32::try_from(cpus).unwrap_or(0);
                n.free_limit = (1 + cpus) * cache.batchcount() + cache.objects();
            }
            (n.shared == 0 && cache.shared() != 0, n.alien == 0 && nodes > 1)
        });
        if !shared && !alien {
            return;
        }
        let order =
            Order::covering((u64::from(nodes) * ALIEN_ROW * 8).div_ceil(PAGE_SIZE)).unwrap_or(Order::MAX);
        let pages = |wanted: bool, order: Order| {
            wanted
                .then(|| self.machine.pages().alloc_pages(Gfp::NOWAIT | Gfp::NOWARN, order, Some(node)))
                .flatten()
        };
        let (mut new_shared, mut new_alien) = (pages(shared, Order::ZERO), pages(alien, order));
        for page in new_alien.iter().flat_map(|pfn| (0..order.pages()).map(|page| pfn.offset(page))) {
            self.machine.mem().zero_frame(page);
        }
        self.machine.with_node(id, node, |n| {
            if n.shared == 0
                && let Some(pfn) = new_shared.take()
            {
                n.shared = pfn.phys().as_u64();
                n.shared_avail = 0;
                n.shared_limit = (cache.shared() * cache.batchcount()).min(SHARED_MAX);
            }
            if n.alien == 0
                && let Some(pfn) = new_alien.take()
            {
                n.alien = pfn.phys().as_u64();
                n.alien_rows = nodes;
            }
        });
        // Another CPU was faster.
        new_shared.into_iter().for_each(|pfn| self.machine.pages().free_pages(pfn, Order::ZERO));
        new_alien.into_iter().for_each(|pfn| self.machine.pages().free_pages(pfn, order));
    }

    /// A new slab, all free, in the node's next colour (Linux: `cache_grow_begin`).
    fn grow(&self, id: CacheId, cache: &Cache, gfp: Gfp, near: u32) -> Option<(Pfn, &Page)> {
        let order = cache.slab_order();
        self.emit(Event::NewSlab { cache: Some(id.as_u16()), order, node: Some(near), gfp });
        let Some((pfn, page)) = self.slab_frames(cache, gfp, Some(near), id.as_u64()) else {
            self.emit(Event::NewSlabRet { pfn: None, objects: 0, colour: 0 });
            return None;
        };
        let colour = self.machine.with_node(id, page.node(), |n| {
            let colour = n.colour_next;
            n.colour_next = if colour + 1 < cache.colour() { colour + 1 } else { 0 };
            colour
        });
        let first = pfn.phys().as_u64() + u64::from(colour * cache.colour_off());
        page.set_index(first);
        let objects = cache.objects();
        set_counters(page, SlabCounters { inuse: 0, objects, frozen: false });
        for number in 0..objects {
            self.set_index(cache, pfn, page, number, u8::try_from(number).unwrap_or(u8::MAX));
            if cache.ctor() != 0 {
                let object = first + u64::from(number) * u64::from(cache.size());
                self.machine.construct(cache.ctor(), Object(object), cache.object_size());
            }
        }
        let colour = first - pfn.phys().as_u64();
        self.emit(Event::NewSlabRet { pfn: Some(pfn), objects: objects.into(), colour });
        Some((pfn, page))
    }

    /// The number at a place of the index array (Linux: `get_free_obj`).
    fn index(&self, cache: &Cache, pfn: Pfn, page: &Page, at: u32) -> u8 {
        let word = match index_word(cache, pfn, page, at) {
            Some(addr) => self.machine.mem().read_u64(addr),
            None => page.private(),
        };
        word.to_le_bytes()[(at % 8) as usize]
    }

    /// Linux: `set_free_obj`.
    fn set_index(&self, cache: &Cache, pfn: Pfn, page: &Page, at: u32, number: u8) {
        let place = index_word(cache, pfn, page, at);
        let mut bytes = match place {
            Some(addr) => self.machine.mem().read_u64(addr),
            None => page.private(),
        }
        .to_le_bytes();
        bytes[(at % 8) as usize] = number;
        match place {
            Some(addr) => self.machine.mem().write_u64(addr, u64::from_le_bytes(bytes)),
            None => page.set_private(u64::from_le_bytes(bytes)),
        }
    }

    /// Takes back what CPUs and nodes keep, and gives free slabs back (Linux: `__kmem_cache_shrink`). The number of
    /// objects in use.
    pub(crate) fn slab_release(&self, id: CacheId, cache: &Cache) -> u64 {
        let mut discard = Discard::NONE;
        self.machine.cpus().for_each(|_, caches| {
            let c = &mut caches[id.index()];
            if c.span_words == 0 {
                return;
            }
            let count = (c.avail as usize).min(c.array.len());
            self.machine.with_node(id, c.node, |n| {
                c.array[..count].iter().for_each(|object| self.free_to_slab(cache, n, *object, &mut discard));
            });
            *c = CacheCpu::EMPTY;
        });
        let nodes = self.machine.nr_nodes();
        for node in 0..nodes {
            for home in 0..nodes {
                let mut out = [0; ALIEN_LIMIT as usize];
                let count = self
                    .machine
                    .with_node(id, node, |n| row(n, home).map_or(0, |row| self.empty_row(row, &mut out)));
                self.send_home(id, cache, home, &out[..count], &mut discard);
            }
        }
        let order =
            Order::covering((u64::from(nodes) * ALIEN_ROW * 8).div_ceil(PAGE_SIZE)).unwrap_or(Order::MAX);
        let mut live = 0;
        for node in 0..nodes {
            let (shared, alien) = self.machine.with_node(id, node, |n| {
                while let Some(object) = self.pop_shared(n) {
                    self.free_to_slab(cache, n, object, &mut discard);
                }
                let map = self.machine.map();
                while let Some((pfn, page)) = list::first(&n.lists[FREE], map) {
                    list::remove(&mut n.lists[FREE], map, page);
                    n.free_objects = n.free_objects.saturating_sub(counters(page).objects.into());
                    forget(n, pfn, page, &mut discard);
                }
                live += n.total_objects.saturating_sub(n.free_objects);
                let arrays = (n.shared, n.alien);
                (n.shared, n.shared_limit, n.alien, n.alien_rows, n.free_limit, n.colour_next) =
                    (0, 0, 0, 0, 0, 0);
                arrays
            });
            for (addr, order) in [(shared, Order::ZERO), (alien, order)] {
                if addr != 0 {
                    self.machine.pages().free_pages(PhysAddr::new(addr).pfn(), order);
                }
            }
        }
        self.discard(discard);
        live
    }
}

/// Entries that a page holds.
const SHARED_MAX: u32 = 512;

/// A node's row for objects of `home`.
fn row(n: &CacheNode, home: u32) -> Option<u64> {
    (n.alien != 0 && home < n.alien_rows).then(|| n.alien + u64::from(home) * ALIEN_ROW * 8)
}

fn word(base: u64, at: u64) -> PhysAddr {
    PhysAddr::new(base + 8 * at)
}

/// The word of the index array that has place `at`; `None` if that is the descriptor's.
fn index_word(cache: &Cache, pfn: Pfn, page: &Page, at: u32) -> Option<PhysAddr> {
    let bytes = cache.index_array();
    let end = pfn.offset(page.order().pages()).phys().as_u64();
    (bytes != 0).then(|| PhysAddr::new(end - u64::from(bytes) + u64::from(at / 8 * 8)))
}
