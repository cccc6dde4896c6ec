//! A machine of two nodes and several CPUs in one thread: the test says which CPU runs.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use memvisor_abi::{CacheCpu, CacheNode, MAX_CACHES, Track};
use mm_core::{
    CpuLocal, FaultAttr, Gfp, MemMap, Order, PageAlloc, PageKind, Pfn, PhysAddr, PhysMem, Trace, ZoneKind,
};
use mm_sim::SimMem;

use crate::{Cache, CacheId, CpuCaches, Kmem, Machine, Object, Options};

/// Frames of the machine, and of its first zone and node.
pub const FRAMES: u64 = 4096;
const DMA_FRAMES: u64 = 256;
const NODE_FRAMES: u64 = FRAMES / 2;
pub const CPUS: u32 = 4;

/// What the test constructor writes into every word.
pub const CTOR: u32 = 7;
pub const CTOR_WORD: u64 = 0x1234_5678_9abc_def0;

pub struct Cpus {
    pub current: AtomicU32,
    data: Vec<RefCell<Box<CpuCaches>>>,
}

impl Cpus {
    /// Makes a CPU's array of a cache smaller.
    pub fn set_limit(&self, cpu: usize, id: CacheId, limit: u32) {
        self.data[cpu].borrow_mut()[id.index()].limit = limit;
    }
}

impl CpuLocal<CpuCaches> for Cpus {
    fn with<R>(&self, f: impl FnOnce(u32, &mut CpuCaches) -> R) -> R {
        let cpu = self.current.load(Relaxed);
        f(cpu, &mut self.data[cpu as usize].borrow_mut())
    }

    fn for_each(&self, mut f: impl FnMut(u32, &mut CpuCaches)) {
        for (cpu, data) in (0..).zip(&self.data) {
            f(cpu, &mut data.borrow_mut());
        }
    }
}

/// Naturally aligned first fit over frames 1.., with the limit that a test sets.
pub struct Pages {
    mem: SimMem,
    used: Mutex<BTreeSet<u64>>,
    blocks: Mutex<BTreeMap<u64, Order>>,
    pub limit: AtomicU64,
    /// Flags of all requests so far.
    pub seen: Mutex<Vec<Gfp>>,
}

impl Pages {
    pub fn allocated(&self) -> u64 {
        self.blocks.lock().unwrap().values().map(|order| order.pages()).sum()
    }
}

impl Trace for Pages {}

impl PageAlloc for Pages {
    fn alloc_pages(&self, gfp: Gfp, order: Order, node: Option<u32>) -> Option<Pfn> {
        self.seen.lock().unwrap().push(gfp);
        let mut used = self.used.lock().unwrap();
        if used.len() as u64 + order.pages() > self.limit.load(Relaxed) {
            return None;
        }
        let near = node.unwrap_or(0);
        let nodes: &[u32] = if gfp.contains(Gfp::THISNODE) { &[near] } else { &[near, 1 - near] };
        let end = if gfp.contains(Gfp::DMA_ZONE) { DMA_FRAMES } else { FRAMES };
        let starts = nodes.iter().flat_map(|node| {
            let first = u64::from(*node) * NODE_FRAMES;
            (first.max(1)..(first + NODE_FRAMES).min(end))
                .filter(|pfn| pfn.is_multiple_of(order.pages()))
                .filter(move |pfn| pfn + order.pages() <= (first + NODE_FRAMES).min(end))
        });
        let start = starts.into_iter().find(|pfn| used.range(*pfn..pfn + order.pages()).next().is_none())?;
        used.extend(start..start + order.pages());
        self.blocks.lock().unwrap().insert(start, order);
        let page = self.mem.page(Pfn::new(start)).unwrap();
        page.set_order(order);
        page.set_kind(PageKind::Allocated);
        page.set_refcount(1);
        Some(Pfn::new(start))
    }

    fn free_pages(&self, pfn: Pfn, order: Order) {
        let block = self.blocks.lock().unwrap().remove(&pfn.as_u64());
        assert_eq!(block, Some(order), "free of {pfn}, which is no such block");
        let mut used = self.used.lock().unwrap();
        for frame in 0..order.pages() {
            used.remove(&(pfn.as_u64() + frame));
            let page = self.mem.page(pfn.offset(frame)).unwrap();
            assert_eq!((page.mapcount(), page.mapping()), (-1, 0), "frame {frame} of {pfn} still has state");
            assert_eq!(page.private(), 0, "frame {frame} of {pfn} still has state");
        }
        let page = self.mem.page(pfn).unwrap();
        page.set_kind(PageKind::Tail);
        page.set_refcount(0);
    }
}

pub struct Sim {
    pub pages: Pages,
    pub cpus: Cpus,
    caches: Box<[Cache; MAX_CACHES]>,
    nodes: Vec<Mutex<CacheNode>>,
    options: Options,
    pub lines: Mutex<Vec<String>>,
    clock: AtomicU64,
    /// Which requests fail though there is memory.
    pub failslab: FaultAttr,
    /// Frames that were allocated at each wait for readers.
    pub graces: Mutex<Vec<u64>>,
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sim")
    }
}

impl Sim {
    /// Lines that were reported so far.
    pub fn take_lines(&self) -> Vec<String> {
        std::mem::take(&mut self.lines.lock().unwrap())
    }
}

impl Machine for Sim {
    type Map = SimMem;
    type Mem = SimMem;
    type Pages = Pages;
    type Cpus = Cpus;

    fn map(&self) -> &SimMem {
        &self.pages.mem
    }
    fn mem(&self) -> &SimMem {
        &self.pages.mem
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
        2
    }
    fn node_of(&self, cpu: u32) -> u32 {
        cpu % 2
    }
    fn with_node<R>(&self, cache: CacheId, node: u32, f: impl FnOnce(&mut CacheNode) -> R) -> R {
        let index = node as usize * MAX_CACHES + cache.index();
        f(&mut self.nodes[index].try_lock().expect("the list lock is taken once"))
    }
    fn with_caches<R>(&self, f: impl FnOnce() -> R) -> R {
        f()
    }
    fn synchronize_rcu(&self) {
        self.graces.lock().unwrap().push(self.pages.allocated());
    }
    fn should_failslab(&self, cache: CacheId, _: Gfp) -> bool {
        self.failslab.should_fail(self.caches[cache.index()].object_size().into(), || 0)
    }
    fn construct(&self, ctor: u32, object: Object, size: u32) {
        assert_eq!(ctor, CTOR);
        for word in 0..u64::from(size) / 8 {
            self.pages.mem.write_u64(PhysAddr::new(object.addr().as_u64() + 8 * word), CTOR_WORD);
        }
    }
    fn track(&self) -> Track {
        let when = self.clock.fetch_add(1, Relaxed) + 1;
        Track {
            stack: [0x1000 + when, 0x2000, 0, 0, 0, 0, 0, 0],
            pid: 42,
            cpu: self.cpus.current.load(Relaxed),
            when,
        }
    }
    fn report(&self, line: fmt::Arguments<'_>) {
        self.lines.lock().unwrap().push(line.to_string());
    }
}

/// Caches over a machine of 16 MiB, with the kmalloc family.
pub fn boot(options: Options) -> Kmem<Sim> {
    let mem = SimMem::flat(FRAMES * 4096);
    mem.init(Pfn::new(0)..Pfn::new(DMA_FRAMES), 0, ZoneKind::Dma, PageKind::Tail);
    mem.init(Pfn::new(DMA_FRAMES)..Pfn::new(NODE_FRAMES), 0, ZoneKind::Normal, PageKind::Tail);
    mem.init(Pfn::new(NODE_FRAMES)..Pfn::new(FRAMES), 1, ZoneKind::Normal, PageKind::Tail);
    let caches: Vec<Cache> = (0..MAX_CACHES).map(|_| Cache::new()).collect();
    let empty = || -> Box<CpuCaches> {
        vec![CacheCpu { slab: 0, partial: 0, ..CacheCpu::EMPTY }; MAX_CACHES]
            .into_boxed_slice()
            .try_into()
            .unwrap()
    };
    let sim = Sim {
        pages: Pages {
            mem,
            used: Mutex::default(),
            blocks: Mutex::default(),
            limit: AtomicU64::new(FRAMES),
            seen: Mutex::default(),
        },
        cpus: Cpus { current: AtomicU32::new(0), data: (0..CPUS).map(|_| RefCell::new(empty())).collect() },
        caches: caches.into_boxed_slice().try_into().unwrap(),
        nodes: (0..2 * MAX_CACHES).map(|_| Mutex::new(CacheNode::EMPTY)).collect(),
        options,
        lines: Mutex::default(),
        clock: AtomicU64::new(0),
        failslab: FaultAttr::new(),
        graces: Mutex::default(),
    };
    let kmem = Kmem::new(sim);
    kmem.init().unwrap();
    kmem
}

pub fn options(slab: &str) -> Options {
    Options::parse(Some(slab), None, false).unwrap()
}

pub fn write(kmem: &Kmem<Sim>, object: Object, offset: u64, value: u64) {
    kmem.machine().mem().write_u64(PhysAddr::new(object.addr().as_u64() + offset), value);
}

pub fn read(kmem: &Kmem<Sim>, object: Object, offset: u64) -> u64 {
    kmem.machine().mem().read_u64(PhysAddr::new(object.addr().as_u64() + offset))
}

pub fn run_on(kmem: &Kmem<Sim>, cpu: u32) {
    kmem.machine().cpus.current.store(cpu, Relaxed);
}
