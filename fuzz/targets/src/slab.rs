//! The functions of slab caches, called rightly and wrongly, against a set of objects. Pages come from the real page
//! allocator, so that what the caches keep or lose shows there.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;

use memvisor_abi::{CacheCpu, CacheNode, MAX_CACHES, SlabKind, Track};
use mm_core::{CpuLocal, Gfp, MaySleep, MemMap, Order, PageAlloc, Pfn, PhysAddr, PhysMem, Trace};
use mm_page_alloc::{Context, PageAllocator};
use mm_sim::SimMem;
use mm_slab::{
    Cache, CacheArgs, CacheId, CpuCaches, DestroyError, KMALLOC_MAX_SIZE, Kmem, Machine, Object, Options,
    SlabFlags,
};

use crate::Input;
use crate::simulated::{CPUS, NODES, Simulated};

/// Operations of one input; more would only make it slow.
const OPERATIONS: usize = 400;
/// Objects longer than this are written, poisoned and compared word by word: an input may ask for a few of them.
const LONG: u64 = 32 << 10;
const LONG_SIZES: u32 = 4;
/// The number of the constructor, and what it writes into every word.
const CTOR: u32 = 7;
const CTOR_WORD: u64 = 0x1234_5678_9abc_def0;

/// The allocator and its debugging, then operations.
pub fn slab_api(data: &[u8]) {
    let mut input = Input::new(data);
    let form = input.u8();
    let kind = ["slub", "slab", "slob"][usize::from(form % 3)];
    let debug =
        [None, None, Some("FZPU"), Some("F"), Some("FZ,test-0,kmalloc-64"), Some("P"), Some("FU"), Some("")];
    let options =
        Options::parse(Some(kind), debug[usize::from(form >> 5)], form & 16 != 0).expect("they are right");
    let kmem = Kmem::new(Sim::new(options));
    kmem.init().expect("the table is empty");
    let total = kmem.machine().pages.0.machine().unused_pages();
    let mut run = Run {
        kmem,
        kind: options.kind,
        live: BTreeMap::new(),
        users: BTreeMap::new(),
        stamp: 0,
        freed: 0,
        long_sizes: LONG_SIZES,
    };
    for _ in 0..OPERATIONS {
        if input.is_empty() {
            break;
        }
        // Damage that Linux would not notice either: nothing that follows is anybody's promise.
        if run.step(&mut input).is_err() {
            return;
        }
    }
    run.end(total);
}

/// The page allocator as the caches see it.
struct Pages(PageAllocator<Simulated>);

impl Trace for Pages {}

impl PageAlloc for Pages {
    fn alloc_pages(&self, gfp: Gfp, order: Order, node: Option<u32>) -> Option<Pfn> {
        let token = MaySleep::checked_by_scheduler();
        self.0.alloc_pages(Context::task(&token), gfp - Gfp::NOFAIL, order, node)
    }

    fn free_pages(&self, pfn: Pfn, order: Order) {
        self.0.free_pages(pfn, order).unwrap_or_else(|error| panic!("{error}"));
    }
}

struct Cpus(Vec<RefCell<Box<CpuCaches>>>, Cell<u32>);

impl CpuLocal<CpuCaches> for Cpus {
    fn with<R>(&self, f: impl FnOnce(u32, &mut CpuCaches) -> R) -> R {
        let cpu = self.1.get();
        f(cpu, &mut self.0[cpu as usize].borrow_mut())
    }

    fn for_each(&self, mut f: impl FnMut(u32, &mut CpuCaches)) {
        for (cpu, caches) in (0..).zip(&self.0) {
            f(cpu, &mut caches.borrow_mut());
        }
    }
}

struct Sim {
    pages: Pages,
    cpus: Cpus,
    caches: Box<[Cache; MAX_CACHES]>,
    nodes: Vec<RefCell<CacheNode>>,
    options: Options,
    clock: Cell<u64>,
    /// Reports of bugs.
    bugs: RefCell<Vec<String>>,
}

impl Sim {
    fn new(options: Options) -> Sim {
        // As the machine of a guest starts.
        let unused = CacheCpu { slab: 0, partial: 0, ..CacheCpu::EMPTY };
        let cpu = || -> Box<CpuCaches> {
            vec![unused; MAX_CACHES].into_boxed_slice().try_into().unwrap_or_else(|_| unreachable!())
        };
        let caches: Vec<Cache> = (0..MAX_CACHES).map(|_| Cache::new()).collect();
        Sim {
            pages: Pages(PageAllocator::new(Simulated::new(32, 7))),
            cpus: Cpus((0..CPUS).map(|_| RefCell::new(cpu())).collect(), Cell::new(0)),
            caches: caches.into_boxed_slice().try_into().unwrap_or_else(|_| unreachable!()),
            nodes: (0..NODES as usize * MAX_CACHES).map(|_| RefCell::new(CacheNode::EMPTY)).collect(),
            options,
            clock: Cell::new(0),
            bugs: RefCell::default(),
        }
    }
}

impl Machine for Sim {
    type Map = SimMem;
    type Mem = SimMem;
    type Pages = Pages;
    type Cpus = Cpus;

    fn map(&self) -> &SimMem {
        &self.pages.0.machine().mem
    }

    fn mem(&self) -> &SimMem {
        &self.pages.0.machine().mem
    }

    fn pages(&self) -> &Pages {
        &self.pages
    }

    fn cpus(&self) -> &Cpus {
        &self.cpus
    }

    fn caches(&self) -> &[Cache; MAX_CACHES] {
        &self.caches
    }

    fn options(&self) -> Options {
        self.options
    }

    fn nr_cpus(&self) -> u32 {
        CPUS
    }

    fn nr_nodes(&self) -> u32 {
        NODES
    }

    fn node_of(&self, cpu: u32) -> u32 {
        cpu
    }

    fn with_node<R>(&self, cache: CacheId, node: u32, f: impl FnOnce(&mut CacheNode) -> R) -> R {
        f(&mut self.nodes[node as usize * MAX_CACHES + cache.index()].borrow_mut())
    }

    fn with_caches<R>(&self, f: impl FnOnce() -> R) -> R {
        f()
    }

    fn synchronize_rcu(&self) {
        // There are no readers without locks.
    }

    fn should_failslab(&self, _: CacheId, _: Gfp) -> bool {
        false
    }
    fn construct(&self, ctor: u32, object: Object, size: u32) {
        assert_eq!(ctor, CTOR);
        for word in 0..u64::from(size) / 8 {
            self.mem().write_u64(PhysAddr::new(object.addr().as_u64() + 8 * word), CTOR_WORD);
        }
    }

    fn track(&self) -> Track {
        self.clock.set(self.clock.get() + 1);
        Track { stack: [0x1000, 0, 0, 0, 0, 0, 0, 0], pid: 1, cpu: self.cpus.1.get(), when: self.clock.get() }
    }

    fn report(&self, line: fmt::Arguments<'_>) {
        let line = line.to_string();
        assert!(!line.trim().is_empty() && line.len() < 4096, "a line of {} bytes", line.len());
        if line.contains("BUG") {
            self.bugs.borrow_mut().push(line);
        }
    }
}

/// An object in use: its cache, or none for kmalloc; its bytes; what its first and last words hold.
#[derive(Clone, Copy, Debug)]
struct Live {
    cache: Option<CacheId>,
    size: u64,
    stamp: u64,
}

/// What a cache was created for.
#[derive(Clone, Copy, Debug)]
struct Shape {
    users: u32,
    size: u64,
    align: u64,
}

struct Run {
    kmem: Kmem<Sim>,
    kind: SlabKind,
    live: BTreeMap<u64, Live>,
    users: BTreeMap<CacheId, Shape>,
    stamp: u64,
    /// The object that was freed last.
    freed: u64,
    /// How often a size may still be long.
    long_sizes: u32,
}

/// Something was taken back that should not have been, in a way that Linux does not notice.
struct Unnoticed;

impl Run {
    fn step(&mut self, input: &mut Input<'_>) -> Result<(), Unnoticed> {
        let op = input.u8() % 20;
        match op {
            0 => self.run_on(input.u8()),
            1..=4 => self.alloc(input),
            5 => self.bulk(input),
            6 | 7 => {
                let (gfp, size) = (gfp(input), self.size(input));
                if let Some(object) = self.kmem.kmalloc(size, gfp) {
                    let align = if size.is_power_of_two() { size.clamp(8, 4096) } else { 8 };
                    self.take(object, None, size, align, gfp);
                }
            }
            8 => self.krealloc(input),
            9..=12 => {
                let Some((object, live)) = self.pick(input) else { return Ok(()) };
                self.free(object, live, input.u8() & 1 == 0);
            }
            13 | 14 => return self.free_wrongly(input),
            15 => self.kmem.shrink(any_cache(input)),
            16 => self.create(input),
            17 => self.destroy(any_cache(input)),
            18 => {
                let object = self.near(input);
                let bytes = self.kmem.ksize(object);
                if let Some(live) = self.live.get(&object.addr().as_u64()).filter(|live| live.cache.is_none())
                {
                    assert!(bytes.is_some_and(|bytes| bytes >= live.size), "{object} has {bytes:?} bytes");
                }
            }
            _ => {
                let id = any_cache(input);
                // What is no cache's has no debugging to find anything.
                assert_eq!(self.kmem.validate(id), 0, "damage in cache {}", id.as_u64());
            }
        }
        // Whatever is right is not complained about; an unknown cache is not right.
        let bugs = std::mem::take(&mut *self.kmem.machine().bugs.borrow_mut());
        let unknown = |line: &String| line.contains("which does not exist");
        assert!(bugs.iter().all(unknown), "operation {op}: {bugs:?}");
        Ok(())
    }

    /// A number of bytes: any, but rarely one that is long and can be had.
    fn size(&mut self, input: &mut Input<'_>) -> u64 {
        let size = input.number();
        if !(LONG..=KMALLOC_MAX_SIZE).contains(&size) {
            return size;
        }
        match self.long_sizes.checked_sub(1) {
            Some(left) => {
                self.long_sizes = left;
                size
            }
            None => size % LONG,
        }
    }

    fn run_on(&self, cpu: u8) {
        let sim = self.kmem.machine();
        sim.cpus.1.set(u32::from(cpu) % CPUS);
        sim.pages.0.machine().run_on(cpu.into());
    }

    fn alloc(&mut self, input: &mut Input<'_>) {
        let (id, gfp) = (self.known(input), gfp(input));
        let object = match input.u8() {
            node @ 0..32 => self.kmem.alloc_node(id, gfp, u32::from(node) % 5),
            _ => self.kmem.alloc(id, gfp),
        };
        let Some(object) = object else { return };
        let shape = self.shape(id);
        self.take(object, Some(id), shape.size, shape.align, gfp);
    }

    fn bulk(&mut self, input: &mut Input<'_>) {
        let (id, gfp) = (self.known(input), gfp(input));
        let count = if self.shape(id).size < LONG { input.u8() } else { 2 };
        let mut objects = vec![Object::ZERO_SIZE; count.into()];
        if self.kmem.alloc_bulk(id, gfp, &mut objects) && !objects.is_empty() {
            let shape = self.shape(id);
            objects.into_iter().for_each(|object| self.take(object, Some(id), shape.size, shape.align, gfp));
        }
    }

    fn krealloc(&mut self, input: &mut Input<'_>) {
        let Some((old, live)) = self.pick(input).filter(|(_, live)| live.cache.is_none()) else { return };
        let (gfp, size) = (gfp(input) - Gfp::ZERO, self.size(input));
        self.check(old, live);
        let Some(new) = self.kmem.krealloc(Some(old), size, gfp) else { return self.check(old, live) };
        self.live.remove(&old.addr().as_u64());
        if size >= 8 && live.size >= 8 {
            assert_eq!(self.read(new, 0), live.stamp, "the contents did not move along");
        }
        self.take(new, None, size, 8, gfp);
    }

    /// An object came: it is nobody else's and what was asked for.
    fn take(&mut self, object: Object, cache: Option<CacheId>, size: u64, align: u64, gfp: Gfp) {
        if object == Object::ZERO_SIZE {
            return assert_eq!(size, 0);
        }
        let addr = object.addr().as_u64();
        assert!(addr.is_multiple_of(align), "{object} is not aligned to {align}");
        let before = self.live.range(..addr + size).next_back();
        assert!(
            before.is_none_or(|(start, live)| start + live.size <= addr),
            "{object} is part of {before:x?}"
        );
        let words = [0, (size / 8).saturating_sub(1) * 8];
        if size >= 8 {
            for word in words.into_iter().filter(|_| gfp.contains(Gfp::ZERO)) {
                assert_eq!(self.read(object, word), 0, "{object} is not zero");
            }
            self.stamp += 1;
            words.into_iter().for_each(|word| self.write(object, word, self.stamp));
        }
        self.live.insert(addr, Live { cache, size, stamp: self.stamp });
    }

    fn check(&self, object: Object, live: Live) {
        if live.size >= 8 {
            for word in [0, (live.size / 8 - 1) * 8] {
                assert_eq!(self.read(object, word), live.stamp, "{object} changed while it was in use");
            }
        }
    }

    fn free(&mut self, object: Object, live: Live, by_address: bool) {
        self.check(object, live);
        let freed = match live.cache {
            // Only the cache knows how long an object of SLOB is.
            Some(_) if by_address && self.kind != SlabKind::Slob => self.kmem.kfree(object),
            Some(id) => self.kmem.free(id, object),
            None => self.kmem.kfree(object),
        };
        assert_eq!(freed, Ok(()), "{live:x?}");
        self.live.remove(&object.addr().as_u64());
        self.freed = object.addr().as_u64();
    }

    /// What is no object, is free, or is of another cache.
    fn free_wrongly(&mut self, input: &mut Input<'_>) -> Result<(), Unnoticed> {
        let object = self.near(input);
        let addr = object.addr().as_u64();
        let cache = Some(any_cache(input)).filter(|_| input.u8() & 1 == 0);
        let live = self.live.get(&addr).copied();
        let freed = match cache {
            Some(id) => self.kmem.free(id, object),
            None => self.kmem.kfree(object),
        };
        let bugs = std::mem::take(&mut *self.kmem.machine().bugs.borrow_mut());
        if let Err(error) = freed {
            assert!(!bugs.is_empty(), "{error}, and the console does not say so");
            live.into_iter().for_each(|live| self.check(object, live));
            return Ok(());
        }
        assert!(bugs.is_empty() || freed.is_ok(), "{bugs:?}");
        match (cache, live) {
            // Right by chance.
            (None, _) if object == Object::ZERO_SIZE => Ok(()),
            (cache, Some(live))
                if self.kind != SlabKind::Slob
                    && (cache.is_none() || live.cache.is_none() || cache == live.cache) =>
            {
                self.live.remove(&addr);
                Ok(())
            }
            (cache, Some(live)) if cache == live.cache => {
                self.live.remove(&addr);
                Ok(())
            }
            // SLOB takes what a caller says is there, and nobody but a debugged cache knows all its free objects.
            _ if self.kind == SlabKind::Slob => Err(Unnoticed),
            (_, None) if !self.is_debugged(object) => Err(Unnoticed),
            (_, live) => panic!("free of {object}, which is {live:x?}, by {cache:?} was taken"),
        }
    }

    fn is_debugged(&self, object: Object) -> bool {
        let page = self.kmem.machine().map().page(object.addr().pfn());
        let id = page.and_then(|page| CacheId::new(page.mapping()));
        id.is_some_and(|id| self.kmem.cache(id).slab_flags().contains(SlabFlags::CONSISTENCY_CHECKS))
    }

    fn create(&mut self, input: &mut Input<'_>) {
        let (form, size) = (input.u8(), u32::try_from(self.size(input)).unwrap_or(u32::MAX));
        let align = if form & 64 == 0 { 0 } else { u32::try_from(input.number()).unwrap_or(u32::MAX) };
        let name = format!("test-{}{}", form % 16, if form == 255 { " \u{e9}" } else { "" });
        let flags =
            [SlabFlags::empty(), SlabFlags::NO_MERGE, SlabFlags::HWCACHE_ALIGN, SlabFlags::RECLAIM_ACCOUNT];
        let ctor = (form & 128 != 0).then_some(CTOR);
        let args = CacheArgs {
            align,
            flags: flags[usize::from(form >> 4 & 3)],
            ctor,
            ..CacheArgs::new(&name, size)
        };
        let id = match self.kmem.create(&args) {
            Ok(id) => id,
            Err(error) => return assert!(!error.to_string().is_empty()),
        };
        let (size, align) = (u64::from(size), u64::from(align.max(8)));
        let shape = self.users.entry(id).or_insert(Shape { users: 0, size, align });
        // Users of a shared cache write only what both may.
        *shape = Shape { users: shape.users + 1, size: shape.size.min(size), align: shape.align.min(align) };
    }

    fn destroy(&mut self, id: CacheId) {
        let in_use = self.live.values().filter(|live| live.cache == Some(id)).count() as u64;
        let users = self.users.get(&id).map_or(0, |shape| shape.users);
        let destroyed = self.kmem.destroy(id);
        match users {
            _ if self.is_kmalloc(id) => assert!(destroyed.is_err() || users > 0),
            0 => assert_eq!(destroyed, Err(DestroyError::Unused { cache: id })),
            1 if in_use > 0 => assert_eq!(destroyed, Err(DestroyError::Busy { objects: in_use })),
            _ => assert_eq!(destroyed, Ok(())),
        }
        if destroyed.is_ok() {
            let shape = self.users.get_mut(&id).expect("somebody created it");
            shape.users -= 1;
            if shape.users == 0 && !self.is_kmalloc(id) {
                self.users.remove(&id);
            }
        }
    }

    /// Everything is given back: no page is left.
    fn end(mut self, total: u64) {
        while let Some((&addr, &live)) = self.live.first_key_value() {
            self.free(Object::new(PhysAddr::new(addr)), live, false);
        }
        for id in CacheId::all() {
            self.kmem.shrink(id);
            while self.users.get(&id).is_some_and(|shape| shape.users > 0) && !self.is_kmalloc(id) {
                self.destroy(id);
            }
        }
        let pages = &self.kmem.machine().pages.0;
        pages.drain_all_pages();
        assert_eq!(pages.machine().unused_pages(), total, "pages are kept when nothing is in use");
        pages.machine().audit();
    }

    fn is_kmalloc(&self, id: CacheId) -> bool {
        self.kmem.cache(id).is_used() && self.kmem.cache(id).slab_flags().contains(SlabFlags::KMALLOC)
    }

    /// A cache that was created, or any.
    fn known(&self, input: &mut Input<'_>) -> CacheId {
        let choice = usize::from(input.u8());
        match self.users.keys().nth(choice % self.users.len().max(1)) {
            Some(id) if choice < 240 => *id,
            _ => any_cache(input),
        }
    }

    fn shape(&self, id: CacheId) -> Shape {
        let of_kmalloc = || Shape { users: 0, size: self.kmem.cache(id).object_size().into(), align: 8 };
        self.users.get(&id).copied().unwrap_or_else(of_kmalloc)
    }

    fn pick(&self, input: &mut Input<'_>) -> Option<(Object, Live)> {
        let index = usize::from(input.u16()) % self.live.len().max(1);
        self.live.iter().nth(index).map(|(addr, live)| (Object::new(PhysAddr::new(*addr)), *live))
    }

    /// An object, something inside or behind one, the one freed last, or any address.
    fn near(&self, input: &mut Input<'_>) -> Object {
        let addr = match (input.u8(), self.pick(input)) {
            (0..64, Some((object, _))) => object.addr().as_u64(),
            (choice @ 64..160, Some((object, live))) => {
                object.addr().as_u64() + u64::from(choice) * 8 % (live.size + 64).min(1 << 16)
            }
            (160..224, _) if self.freed != 0 => self.freed,
            _ => input.number(),
        };
        Object::new(PhysAddr::new(addr))
    }

    fn read(&self, object: Object, offset: u64) -> u64 {
        self.kmem.machine().mem().read_u64(PhysAddr::new(object.addr().as_u64() + offset))
    }

    fn write(&self, object: Object, offset: u64, value: u64) {
        self.kmem.machine().mem().write_u64(PhysAddr::new(object.addr().as_u64() + offset), value);
    }
}

fn any_cache(input: &mut Input<'_>) -> CacheId {
    CacheId::new(u64::from(input.u8()) % MAX_CACHES as u64).expect("it is below")
}

fn gfp(input: &mut Input<'_>) -> Gfp {
    const USUAL: [Gfp; 8] = [
        Gfp::KERNEL,
        Gfp::KERNEL,
        Gfp::KERNEL.union(Gfp::ZERO),
        Gfp::ATOMIC,
        Gfp::NOWAIT.union(Gfp::THISNODE),
        Gfp::KERNEL.union(Gfp::RECLAIMABLE),
        Gfp::NOWAIT.union(Gfp::NOWARN).union(Gfp::ZERO),
        Gfp::KERNEL.union(Gfp::ACCOUNT),
    ];
    USUAL[usize::from(input.u8() & 7)]
}
