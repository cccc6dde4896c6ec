//! The host under mm-slab: one mapping as RAM, a CPU a thread, one node.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::{Cell, UnsafeCell};
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use memvisor_abi::{CacheCpu, CacheNode, MAX_CACHES, PageKind, Track, ZoneKind};
use mm_core::{CpuLocal, Gfp, MemMap, Order, Page, PageAlloc, Pageblock, Pfn, PhysAddr, PhysMem};
use mm_slab::{Cache, CacheId, CpuCaches, Kmem, Machine, Object, Options};

const CPUS: usize = 2;
const ALIGN: usize = 4 << 20;

thread_local! {
    /// Number of this thread's CPU, and where its data is in [`Cpus`].
    static CPU: Cell<(u32, usize)> = const { Cell::new((0, 0)) };
}

/// Makes this thread a CPU of every machine of this process.
pub fn become_cpu(cpu: u32) {
    assert!((cpu as usize) < CPUS, "there are {CPUS} CPUs");
    CPU.set((cpu, cpu as usize * size_of::<CpuData>()));
}

/// A descriptor at a cache line, as in a memmap.
#[derive(Default)]
#[repr(align(64))]
struct Line(Page);

/// Memory with descriptors.
pub struct Ram {
    base: *mut u8,
    len: u64,
    lines: Box<[Line]>,
}

// SAFETY: words are reached by volatile copies, and who may reach which is mm-slab's business, as on a real machine.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    fn new(len: usize) -> Ram {
        let layout = Layout::from_size_align(len, ALIGN).expect("a constant");
        // SAFETY: the size is not 0.
        let base = unsafe { alloc_zeroed(layout) };
        assert!(!base.is_null(), "no memory for the benchmark");
        let lines: Box<[Line]> = (0..len / 4096).map(|_| Line::default()).collect();
        lines.iter().for_each(|line| line.0.init(0, ZoneKind::Normal, PageKind::Tail));
        Ram { base, len: len as u64, lines }
    }

    #[inline]
    fn word(&self, addr: PhysAddr) -> *mut u64 {
        // The guest's direct map checks the same.
        if addr.as_u64() >= self.len {
            outside(addr);
        }
        self.base.wrapping_add(addr.as_u64() as usize).cast()
    }
}

#[cold]
#[inline(never)]
fn outside(addr: PhysAddr) -> ! {
    panic!("{addr} is outside RAM");
}

impl Drop for Ram {
    fn drop(&mut self) {
        let layout = Layout::from_size_align(self.len as usize, ALIGN).expect("a constant");
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.base, layout) };
    }
}

impl mm_core::Trace for Ram {}
impl mm_core::Trace for Frames {}

impl MemMap for Ram {
    #[inline]
    fn page(&self, pfn: Pfn) -> Option<&Page> {
        self.lines.get(pfn.as_u64() as usize).map(|line| &line.0)
    }

    fn pageblock(&self, _: Pfn) -> Option<&Pageblock> {
        None
    }
}

impl PhysMem for Ram {
    #[inline]
    fn read_u64(&self, addr: PhysAddr) -> u64 {
        // SAFETY: inside the allocation, and mm-slab's addresses are multiples of 8.
        unsafe { self.word(addr).read() }
    }

    #[inline]
    fn write_u64(&self, addr: PhysAddr, value: u64) {
        // SAFETY: as above.
        unsafe { self.word(addr).write(value) }
    }

    fn zero_frame(&self, pfn: Pfn) {
        for word in 0..512 {
            self.write_u64(PhysAddr::new(pfn.phys().as_u64() + 8 * word), 0);
        }
    }
}

/// Blocks by order: each CPU has lists of its own, as the guest's page allocator, and behind them is a lock.
pub struct Frames {
    ram: Ram,
    /// Free blocks by order, and the first frame that was never used.
    free: Mutex<([Vec<u64>; ORDERS], u64)>,
    lists: [PageLists; CPUS],
}

const ORDERS: usize = 11;
/// Blocks that move between a CPU's list and the common ones at a time.
const BATCH: usize = 32;

#[repr(align(128))]
struct PageLists(UnsafeCell<CpuPages>);

// SAFETY: a CPU is one thread.
unsafe impl Sync for PageLists {}

#[derive(Default)]
struct CpuPages {
    free: [Vec<u64>; ORDERS],
    /// Frames that this CPU allocated, less those that it freed.
    used: isize,
}

impl Frames {
    fn new(ram: Ram) -> Frames {
        // Frame 0 stays unused: no object is at address 0.
        Frames {
            ram,
            free: Mutex::new((Default::default(), 1)),
            lists: std::array::from_fn(|_| PageLists(UnsafeCell::new(CpuPages::default()))),
        }
    }

    fn with_lists<R>(&self, f: impl FnOnce(&mut CpuPages) -> R) -> R {
        let (cpu, _) = CPU.get();
        // SAFETY: this thread is the CPU, and `f` does not come back here.
        f(unsafe { &mut *self.lists[cpu as usize].0.get() })
    }

    /// Blocks of the common lists, else the next ones of RAM.
    fn refill(&self, order: Order, list: &mut Vec<u64>) {
        let mut common = self.free.lock().expect("nobody panics with it");
        let (free, next) = &mut *common;
        let stay = free[order.index()].len().saturating_sub(BATCH);
        list.extend(free[order.index()].drain(stay..));
        if list.is_empty() {
            let pfn = next.next_multiple_of(order.pages());
            if pfn + order.pages() <= self.ram.lines.len() as u64 {
                *next = pfn + order.pages();
                list.push(pfn);
            }
        }
    }
}

impl PageAlloc for Frames {
    fn alloc_pages(&self, _: Gfp, order: Order, _: Option<u32>) -> Option<Pfn> {
        let pfn = self.with_lists(|lists| {
            let list = &mut lists.free[order.index()];
            if list.is_empty() {
                self.refill(order, list);
            }
            let pfn = list.pop()?;
            lists.used += 1 << order.as_u8();
            Some(pfn)
        })?;
        let page = self.ram.page(Pfn::new(pfn))?;
        page.set_order(order);
        page.set_kind(PageKind::Allocated);
        page.set_refcount(1);
        Some(Pfn::new(pfn))
    }

    fn free_pages(&self, pfn: Pfn, order: Order) {
        if let Some(page) = self.ram.page(pfn) {
            page.set_kind(PageKind::Tail);
        }
        self.with_lists(|lists| {
            lists.used -= 1 << order.as_u8();
            let list = &mut lists.free[order.index()];
            list.push(pfn.as_u64());
            if list.len() > 6 * BATCH {
                self.free.lock().expect("nobody panics with it").0[order.index()].extend(list.drain(..BATCH));
            }
        });
    }
}

/// Per-CPU data, each CPU's on lines of its own.
pub struct Cpus(Box<[CpuData; CPUS]>);

#[repr(C, align(128))]
struct CpuData(UnsafeCell<CpuCaches>);

// SAFETY: a CPU is one thread, and `for_each` runs while the others are joined.
unsafe impl Sync for Cpus {}

impl CpuLocal<CpuCaches> for Cpus {
    #[inline]
    fn with<R>(&self, f: impl FnOnce(u32, &mut CpuCaches) -> R) -> R {
        // As a kernel finds its per-CPU data: by an offset.
        let (cpu, offset) = CPU.get();
        let data = self.0.as_ptr().wrapping_byte_add(offset).cast_mut().cast::<CpuCaches>();
        // SAFETY: `become_cpu` checked the number; this thread is the CPU, and the trait forbids to enter twice.
        f(cpu, unsafe { &mut *data })
    }

    fn for_each(&self, mut f: impl FnMut(u32, &mut CpuCaches)) {
        for (cpu, data) in (0..).zip(&*self.0) {
            // SAFETY: called when no other thread runs.
            f(cpu, unsafe { &mut *data.0.get() });
        }
    }
}

/// A ticket lock, as the guest's.
struct Ticket {
    next: AtomicU32,
    serving: AtomicU32,
    node: UnsafeCell<CacheNode>,
}

// SAFETY: the ticket lets one thread at the node at a time.
unsafe impl Sync for Ticket {}

/// The machine.
pub struct Host {
    frames: Frames,
    cpus: Cpus,
    caches: Box<[Cache; MAX_CACHES]>,
    nodes: Vec<Ticket>,
    options: Options,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Host")
    }
}

impl Host {
    /// Frames that this CPU allocated and did not free.
    pub fn used_frames(&self) -> usize {
        self.frames.with_lists(|lists| usize::try_from(lists.used).unwrap_or(0))
    }
}

/// Caches over `bytes` of memory, managed by `slab`.
pub fn boot(slab: &str, bytes: usize) -> Kmem<Host> {
    let cpu = || CpuData(UnsafeCell::new([CacheCpu::EMPTY; MAX_CACHES]));
    let caches: Vec<Cache> = (0..MAX_CACHES).map(|_| Cache::new()).collect();
    let node = || Ticket {
        next: AtomicU32::new(0),
        serving: AtomicU32::new(0),
        node: UnsafeCell::new(CacheNode::EMPTY),
    };
    let host = Host {
        frames: Frames::new(Ram::new(bytes)),
        cpus: Cpus(Box::new([cpu(), cpu()])),
        caches: caches.into_boxed_slice().try_into().expect("that many"),
        nodes: (0..MAX_CACHES).map(|_| node()).collect(),
        options: Options::parse(Some(slab), None, false).expect("a known allocator"),
    };
    let kmem = Kmem::new(host);
    kmem.init().expect("the kmalloc family fits");
    kmem
}

impl Machine for Host {
    type Map = Ram;
    type Mem = Ram;
    type Pages = Frames;
    type Cpus = Cpus;

    #[inline]
    fn map(&self) -> &Ram {
        &self.frames.ram
    }

    #[inline]
    fn mem(&self) -> &Ram {
        &self.frames.ram
    }

    fn pages(&self) -> &Frames {
        &self.frames
    }

    #[inline]
    fn cpus(&self) -> &Cpus {
        &self.cpus
    }

    #[inline]
    fn caches(&self) -> &[Cache; MAX_CACHES] {
        &self.caches
    }

    fn options(&self) -> Options {
        self.options
    }

    fn nr_cpus(&self) -> u32 {
        CPUS as u32
    }

    fn nr_nodes(&self) -> u32 {
        1
    }

    fn node_of(&self, _: u32) -> u32 {
        0
    }

    fn with_node<R>(&self, cache: CacheId, _: u32, f: impl FnOnce(&mut CacheNode) -> R) -> R {
        let lock = &self.nodes[cache.index()];
        let ticket = lock.next.fetch_add(1, Ordering::Relaxed);
        while lock.serving.load(Ordering::Acquire) != ticket {
            std::hint::spin_loop();
        }
        // SAFETY: it is this thread's turn.
        let result = f(unsafe { &mut *lock.node.get() });
        lock.serving.store(ticket.wrapping_add(1), Ordering::Release);
        result
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

    fn construct(&self, _: u32, _: Object, _: u32) {}

    fn track(&self) -> Track {
        Track::default()
    }

    fn report(&self, line: fmt::Arguments<'_>) {
        panic!("{line}");
    }
}
