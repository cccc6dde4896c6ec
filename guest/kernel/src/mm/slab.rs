//! Slab caches on this machine (guest/mm/slab): tables, locks, the kmalloc family.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use guest_firmware::acpi::MAX_CPUS;
use memvisor_abi::{CacheNode, MAX_CACHES, PAGE_SIZE, TableRef, Track, cache_flags};
use mm_core::{Gfp, Order, PageAlloc, PageKind, Pfn, PhysAddr, PhysMem};
use mm_slab::{Cache, CacheId, CpuCaches, Kmem, Machine, Object, Options, SlabKind};

use crate::arch::{percpu, regs};
use crate::mm::cpu_local::PerCpuTable;
use crate::mm::fault_inject;
use crate::mm::memmap::Vmemmap;
use crate::mm::page_alloc;
use crate::mm::phys::{self, DirectMap};
use crate::sync::Lock;
use crate::topology::CPUS;
use crate::{cmdline, panic, pr_err, pr_info, pr_warn, smp, task};

/// The caches of the kernel.
pub static KMEM: Kmem<Kernel> = Kmem::new(Kernel);

static CACHES: [Cache; MAX_CACHES] = [const { Cache::new() }; MAX_CACHES];
static CPU_CACHES: PerCpuTable<CpuCaches> = PerCpuTable::new();
/// Nodes' parts of the caches, `MAX_CACHES` a node. Written once.
static NODES: AtomicPtr<Lock<CacheNode>> = AtomicPtr::new(core::ptr::null_mut());
static NODES_GPA: AtomicU64 = AtomicU64::new(0);
static NR_NODES: AtomicUsize = AtomicUsize::new(0);
static NR_CPUS: AtomicU32 = AtomicU32::new(0);
static NODE_OF: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
static OPTIONS: Lock<Options> = Lock::new(Options::DEFAULT);
static MUTEX: AtomicBool = AtomicBool::new(false);

/// Constructor of the tests: writes its number into every word.
pub const CTOR_PATTERN: u32 = 1;

/// Constructor of objects that begin as all zero.
pub const CTOR_ZERO: u32 = 2;

/// What [`CTOR_PATTERN`] writes.
pub const PATTERN: u64 = 0x6374_6f72_6374_6f72;

/// Builds the tables and the kmalloc family (Linux: `kmem_cache_init`). The page allocator runs.
pub fn init() {
    read_options();
    let cpus = CPUS.lock().count;
    for (cpu, slot) in NODE_OF.iter().enumerate().take(cpus) {
        let node = CPUS.lock().table[cpu].node;
        slot.store(node, Ordering::Relaxed);
        let pfn = table_frames(size_of::<CpuCaches>(), Some(node));
        // SAFETY: allocated just now, for one `CpuCaches`; a `CacheCpu` of zeroes has nothing and is not set up.
        unsafe { CPU_CACHES.install(cpu, pfn.phys()) };
    }
    NR_CPUS.store(u32::try_from(cpus).unwrap_or(1), Ordering::Relaxed);
    let nodes = page_alloc::nr_nodes();
    let count = nodes * MAX_CACHES;
    let pfn = table_frames(count * size_of::<Lock<CacheNode>>(), None);
    let first = phys::object_at::<Lock<CacheNode>>(pfn.phys());
    for index in 0..count {
        // SAFETY: inside the allocation.
        let slot = unsafe { first.add(index) };
        // SAFETY: nobody else knows the allocation yet.
        unsafe { slot.write(Lock::new(CacheNode::EMPTY)) };
    }
    NODES_GPA.store(pfn.phys().as_u64(), Ordering::Relaxed);
    NR_NODES.store(nodes, Ordering::Relaxed);
    NODES.store(first, Ordering::Release);
    if let Err(error) = KMEM.init() {
        panic!("kmalloc caches: {error}");
    }
    pr_info!("slab: {} with {cpus} CPU(s), {nodes} node(s)", OPTIONS.lock().kind.name());
}

/// Reads the command line. What is wrong is said, and the defaults hold.
fn read_options() {
    let mut names = [[0; 64]; 2];
    let mut copy = |slot: usize, key: &str| {
        cmdline::value(key, |text| {
            let len = text.len().min(64);
            names[slot][..len].copy_from_slice(&text.as_bytes()[..len]);
            len
        })
    };
    let (slab, debug) = (copy(0, "slab"), copy(1, "slub_debug"));
    let debug = debug.or_else(|| cmdline::flag("slub_debug").then_some(0));
    let text = |slot: usize, len: Option<usize>| {
        len.map(|len| core::str::from_utf8(&names[slot][..len]).unwrap_or("?"))
    };
    let (slab, debug) = (text(0, slab), text(1, debug));
    match Options::parse(slab, debug, cmdline::flag("slab_nomerge")) {
        Some(options) => *OPTIONS.lock() = options,
        None => pr_warn!("slab: wrong slab={slab:?} or slub_debug={debug:?}; slub without debugging is used"),
    }
}

fn table_frames(bytes: usize, node: Option<u32>) -> Pfn {
    let order =
        Order::covering((bytes as u64).div_ceil(PAGE_SIZE)).expect("tables of caches are below 4 MiB");
    page_alloc::alloc_pages(order, node, PageKind::Allocated).expect("no memory for the tables of caches")
}

/// The table of caches.
pub fn caches() -> &'static [Cache; MAX_CACHES] {
    &CACHES
}

/// Addresses of the CPUs' tables, for the root descriptor.
pub fn cpu_tables() -> &'static [AtomicU64] {
    &CPU_CACHES.gpas[..NR_CPUS.load(Ordering::Relaxed) as usize]
}

/// The nodes' table, for the root descriptor.
pub fn node_table() -> TableRef {
    TableRef {
        gpa: NODES_GPA.load(Ordering::Relaxed),
        count: u32::try_from(NR_NODES.load(Ordering::Relaxed) * MAX_CACHES).unwrap_or(0),
        stride: u32::try_from(size_of::<Lock<CacheNode>>()).unwrap_or(0),
    }
}

/// Who manages the caches.
pub fn kind() -> SlabKind {
    OPTIONS.lock().kind
}

/// This machine.
#[derive(Clone, Copy, Debug)]
pub struct Kernel;

/// Pages of caches whose objects can be reclaimed, and of the others; `None` of SLOB, which does not count them.
pub fn nr_pages() -> Option<[u64; 2]> {
    (0..Kernel.nr_nodes()).map(nr_pages_of).try_fold([0; 2], |sum, node| {
        let node = node?;
        Some([sum[0] + node[0], sum[1] + node[1]])
    })
}

/// The same of one node.
pub fn nr_pages_of(node: u32) -> Option<[u64; 2]> {
    if kind() == SlabKind::Slob {
        return None;
    }
    let mut pages = [0; 2];
    for id in CacheId::all().filter(|id| KMEM.cache(*id).is_used()) {
        let record = KMEM.cache(id).load();
        let is_reclaimable = record.flags & cache_flags::RECLAIM_ACCOUNT != 0;
        let slabs = Kernel.with_node(id, node, |node| node.nr_slabs);
        pages[usize::from(!is_reclaimable)] += slabs << record.order.min(10);
    }
    Some(pages)
}

/// The page allocator as its users see it.
#[derive(Clone, Copy, Debug)]
pub struct Pages;

impl PageAlloc for Pages {
    fn alloc_pages(&self, gfp: Gfp, order: Order, node: Option<u32>) -> Option<Pfn> {
        // Caches hold no lock and leave the interrupts as the caller has them when they need pages.
        page_alloc::alloc_here(gfp, order, node)
    }

    fn free_pages(&self, pfn: Pfn, order: Order) {
        page_alloc::free_pages(pfn, order);
    }
}

impl Machine for Kernel {
    type Map = Vmemmap;
    type Mem = DirectMap;
    type Pages = Pages;
    type Cpus = PerCpuTable<CpuCaches>;

    fn map(&self) -> &Vmemmap {
        &Vmemmap
    }

    fn mem(&self) -> &DirectMap {
        &DirectMap
    }

    fn pages(&self) -> &Pages {
        &Pages
    }

    fn cpus(&self) -> &PerCpuTable<CpuCaches> {
        &CPU_CACHES
    }

    fn caches(&self) -> &[Cache; MAX_CACHES] {
        &CACHES
    }

    fn options(&self) -> Options {
        *OPTIONS.lock()
    }

    fn nr_cpus(&self) -> u32 {
        NR_CPUS.load(Ordering::Relaxed)
    }

    fn nr_nodes(&self) -> u32 {
        u32::try_from(NR_NODES.load(Ordering::Relaxed)).unwrap_or(1)
    }

    fn node_of(&self, cpu: u32) -> u32 {
        NODE_OF[cpu as usize].load(Ordering::Relaxed)
    }

    fn with_node<R>(&self, cache: CacheId, node: u32, f: impl FnOnce(&mut CacheNode) -> R) -> R {
        let nodes = NR_NODES.load(Ordering::Relaxed);
        assert!((node as usize) < nodes, "cache {} has no node {node}", cache.as_u64());
        let first = NODES.load(Ordering::Acquire);
        // SAFETY: `init` published locks for all nodes and caches; the indices are in range.
        let lock = unsafe { first.add(node as usize * MAX_CACHES + cache.index()) };
        // SAFETY: the locks live for ever, and are only ever shared.
        let lock = unsafe { &*lock };
        f(&mut lock.lock())
    }

    fn with_caches<R>(&self, f: impl FnOnce() -> R) -> R {
        // Interrupts stay on: the holder may be calling this CPU.
        while MUTEX.swap(true, Ordering::Acquire) {
            core::hint::spin_loop();
        }
        let result = f();
        MUTEX.store(false, Ordering::Release);
        result
    }

    /// Readers keep interrupts off ([`crate::mm::space::Spaces`]), so a CPU that answers an interrupt has none.
    fn synchronize_rcu(&self) {
        // What a CPU remembers of such slabs goes with the answer.
        if let Some(percpu) = percpu::current() {
            percpu.vma_hint.store(0, Ordering::Relaxed);
        }
        smp::flush_others(smp::Invalidation::ALL);
    }

    fn should_failslab(&self, cache: CacheId, gfp: Gfp) -> bool {
        fault_inject::should_failslab(cache, gfp)
    }

    fn construct(&self, ctor: u32, object: Object, size: u32) {
        let value = if ctor == CTOR_PATTERN { PATTERN } else { 0 };
        for word in 0..u64::from(size / 8) {
            DirectMap.write_u64(PhysAddr::new(object.addr().as_u64() + 8 * word), value);
        }
    }

    fn track(&self) -> Track {
        let mut stack = [0; 8];
        let mut slots = stack.iter_mut();
        panic::for_each_return_address(regs::rbp(), |address| {
            slots.next().map(|slot| *slot = address).is_some()
        });
        Track { stack, pid: task::current_pid(), cpu: crate::arch::percpu::cpu(), when: regs::rdtsc() }
    }

    fn report(&self, line: fmt::Arguments<'_>) {
        pr_err!("{line}");
    }
}

/// Gives caches that are created from now on all of debugging, for a seeded fault.
pub fn debug_from_now_on() -> Result<(), &'static str> {
    let mut options = OPTIONS.lock();
    *options = Options::parse(Some(options.kind.name()), Some(""), false).ok_or("no debugging")?;
    Ok(())
}
