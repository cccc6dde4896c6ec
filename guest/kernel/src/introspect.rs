//! Publishes the root descriptor (guest/abi).

use core::mem::size_of;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_firmware::BootInfo;
use memvisor_abi::{
    BootStage, Counters, CpuInfo, KmapWindow, LAYOUT_HASH, MAX_NR_ZONES, Node, PFN_NONE, Root, TableRef,
};
use mm_core::{PAGE_SIZE, Pfn, Ring};
use mm_page_alloc::Zone;
use mm_pgtable::layout as va_layout;
use mm_vmalloc::DIRECTORY_FRAMES;

use crate::arch::percpu::{self, PerCpu};
use crate::drivers::memvisor;
use crate::init::E820;
use crate::mm::layout::levels;
use crate::mm::page_alloc::{self, NODES, ZONES};
use crate::mm::vmalloc::AREAS;
use crate::mm::{
    cma, dma, early, kcompactd, kmap, memmap, movable, oom, paging, pcp, phys, slab, space, swap, sysctl,
    vmscan, vmstat, writeback,
};
use crate::sync::Lock;
use crate::topology::{CPUS, SLIT};
use crate::{printk, sched};

/// The root sits alone on its page, so that a scan finds it at a page boundary.
#[repr(C, align(4096))]
struct RootPage(Lock<Root>);

const NO_TABLE: TableRef = TableRef { gpa: 0, count: 0, stride: 0 };

#[unsafe(no_mangle)]
static MEMVISOR_ROOT: RootPage = RootPage(Lock::new(Root {
    magic: Root::MAGIC,
    version: Root::VERSION,
    size: Root::SIZE,
    layout_hash: LAYOUT_HASH,
    self_gpa: 0,
    stage: BootStage::Early as u32,
    boot_protocol: 0,
    levels: 0,
    phys_bits: 0,
    kernel_gpa: 0,
    kernel_va: 0,
    kernel_len: 0,
    text_len: 0,
    rodata_end: 0,
    pgd_pfn: 0,
    page_offset: 0,
    vmemmap: 0,
    layout: NO_TABLE,
    e820_raw: NO_TABLE,
    e820: NO_TABLE,
    memblock_memory: NO_TABLE,
    memblock_reserved: NO_TABLE,
    nodes: NO_TABLE,
    distances: NO_TABLE,
    zones: NO_TABLE,
    sections: NO_TABLE,
    cpus: NO_TABLE,
    mm_list: NO_TABLE,
    extra_tables: NO_TABLE,
    pcps: NO_TABLE,
    zonelists: NO_TABLE,
    cma_areas: NO_TABLE,
    caches: NO_TABLE,
    cache_cpus: NO_TABLE,
    cache_nodes: NO_TABLE,
    vm_areas: NO_TABLE,
    kmaps: NO_TABLE,
    tasks: NO_TABLE,
    trace_rings: NO_TABLE,
    vm_events: NO_TABLE,
    vm_sysctl: NO_TABLE,
    movable_owners: NO_TABLE,
    kcompactds: NO_TABLE,
    cpu_tlbs: NO_TABLE,
    lruvecs: NO_TABLE,
    lru_batches: NO_TABLE,
    swiotlb: NO_TABLE,
    swap_areas: NO_TABLE,
    zswap: NO_TABLE,
    shmem_swaplist: NO_TABLE,
    shadow_nodes: NO_TABLE,
    oom: NO_TABLE,
    file_counts: NO_TABLE,
    node_stats: NO_TABLE,
    log: NO_TABLE,
    zero_pfn: PFN_NONE,
    entry_pgd_pfn: PFN_NONE,
    entry_text: [0; 2],
    entry_idt: [0; 2],
    counters: Counters { pgfault: 0, pgalloc: 0, pgfree: 0, syscalls: 0 },
}));

struct Extra {
    pfns: [u64; 4],
    len: u32,
}
static EXTRA: Lock<Extra> = Lock::new(Extra { pfns: [0; 4], len: 0 });

fn table<T>(first: *const T, count: usize, stride: usize) -> TableRef {
    TableRef {
        gpa: phys::of_image(first as u64).as_u64(),
        count: u32::try_from(count).expect("tables are small"),
        stride: u32::try_from(stride).expect("structures are small"),
    }
}

fn slice<T>(items: &[T]) -> TableRef {
    table(items.as_ptr(), items.len(), size_of::<T>())
}

/// For the panic path: the holder of the lock may be dead.
pub fn break_lock() {
    MEMVISOR_ROOT.0.break_open();
}

/// Changes the root under its lock.
fn update(f: impl FnOnce(&mut Root)) {
    f(&mut MEMVISOR_ROOT.0.lock());
}

/// First publication: who and where the kernel is.
pub fn init(phys_bits: u32) {
    let image = phys::image();
    let self_gpa = phys::of_image(MEMVISOR_ROOT.0.as_ptr() as u64).as_u64();
    let log = printk::table();
    update(|root| {
        root.self_gpa = self_gpa;
        root.levels = u32::from(levels().count());
        root.phys_bits = phys_bits;
        root.kernel_gpa = image.phys;
        root.kernel_va = image.va;
        root.kernel_len = image.len;
        root.text_len = image.text;
        root.rodata_end = image.rodata;
        root.page_offset = va_layout::page_offset(levels()).as_u64();
        root.vmemmap = va_layout::vmemmap_start(levels()).as_u64();
        root.layout = slice(va_layout::layout(levels()));
        root.log = log;
    });
    memvisor::announce(self_gpa);
}

/// Records how far boot came.
pub fn stage(stage: BootStage) {
    update(|root| root.stage = stage as u32);
}

/// E820 maps and memblock.
pub fn publish_memory(boot: &BootInfo) {
    let e820 = E820.lock();
    update(|root| {
        root.boot_protocol = boot.protocol as u32;
        root.e820_raw = slice(e820.raw.entries());
        root.e820 = slice(e820.clean.entries());
    });
    publish_memblock();
    stage(BootStage::Memblock);
}

/// Memblock's lists, which move as they grow.
pub fn publish_memblock() {
    let memblock = early::MEMBLOCK.lock();
    update(|root| {
        root.memblock_memory = slice(memblock.memory());
        root.memblock_reserved = slice(memblock.reserved());
    });
}

/// The kernel's page tables.
pub fn publish_paging() {
    update(|root| root.pgd_pfn = paging::kernel().root.as_u64());
    stage(BootStage::Paging);
}

/// Nodes, zones, sections and CPUs.
pub fn publish_zones() {
    publish_memblock();
    let nodes = page_alloc::nr_nodes();
    let sections = memmap::sections();
    let cpus = CPUS.lock();
    let extra = EXTRA.lock();
    update(|root| {
        root.nodes = table(NODES.as_ptr().cast::<Node>(), nodes, size_of::<Node>());
        let slit = SLIT.lock();
        root.distances = slice(slit.distances());
        root.zones = table(ZONES[0].as_ptr(), nodes * MAX_NR_ZONES, size_of::<Lock<Zone>>());
        root.sections = TableRef {
            gpa: memmap::table_address().as_u64(),
            count: u32::try_from(sections.len()).expect("sections fit"),
            stride: u32::try_from(size_of::<memvisor_abi::Section>()).expect("structures are small"),
        };
        root.cpus = table(cpus.table.as_ptr(), cpus.count, size_of::<CpuInfo>());
        root.mm_list = space::mm_list();
        root.extra_tables = table(extra.pfns.as_ptr(), extra.len as usize, 8);
        [root.pcps, root.zonelists, root.vm_events] = pcp::tables();
        root.vm_sysctl = sysctl::table();
        root.cma_areas = cma::table();
        root.caches = slice(slab::caches());
        root.cache_cpus = slice(slab::cpu_tables());
        root.cache_nodes = slab::node_table();
        root.movable_owners = movable::table();
        root.kcompactds = kcompactd::table(nodes);
        root.lruvecs = vmscan::table(nodes);
        root.lru_batches = slice(vmscan::batches());
        root.cpu_tlbs = slice(space::tlb_table(cpus.count));
        root.swiotlb = dma::swiotlb::table();
        root.swap_areas = swap::table();
        root.zswap = swap::zswap::table();
        root.shmem_swaplist = space::swapped::list();
        root.shadow_nodes = space::shadows::list();
        root.oom = oom::table();
        root.file_counts = writeback::table();
        root.node_stats = vmstat::table();
    });
    stage(BootStage::Buddy);
}

/// The frame of zeroes, before anybody maps it.
pub fn publish_zero_page(pfn: Pfn) {
    update(|root| root.zero_pfn = pfn.as_u64());
}

/// Areas of the vmalloc range, windows and tasks.
pub fn publish_vmalloc() {
    let areas = AREAS.lock().directory().as_ptr();
    let (tasks, stride) = sched::table();
    update(|root| {
        root.vm_areas = table(areas, DIRECTORY_FRAMES, size_of::<u64>());
        root.kmaps =
            table(kmap::WINDOWS.as_ptr().cast::<KmapWindow>(), kmap::nr_windows(), size_of::<KmapWindow>());
        root.tasks = table(tasks, sched::MAX_TASKS, stride);
    });
}

/// The trace rings, by CPU.
pub fn publish_trace(rings: &'static [Ring]) {
    update(|root| root.trace_rings = slice(rings));
}

/// What ring 3's tables have of the kernel. The tree is an extra table that comes after [`publish_zones`].
pub fn publish_entry_area(root: Pfn, text: Range<u64>, idt: Range<u64>) {
    let extra = EXTRA.lock();
    update(|published| {
        published.extra_tables = table(extra.pfns.as_ptr(), extra.len as usize, 8);
        published.entry_pgd_pfn = root.as_u64();
        published.entry_text = [text.start, text.end];
        published.entry_idt = [idt.start, idt.end];
    });
}

/// A root table that belongs to no address space.
pub fn add_extra_table(pfn: Pfn) {
    let mut extra = EXTRA.lock();
    let len = extra.len as usize;
    extra.pfns[len] = pfn.as_u64();
    extra.len += 1;
}

/// Copies the counters to where readers see them.
pub fn publish_counters() {
    let (pgalloc, pgfree) = page_alloc::pgalloc_pgfree();
    let cpus = u32::try_from(CPUS.lock().count).unwrap_or(0);
    let sum = |of: fn(&PerCpu) -> &AtomicU64| -> u64 {
        (0..cpus).map(|cpu| of(percpu::of(cpu)).load(Ordering::Relaxed)).sum()
    };
    let (pgfault, syscalls) = (sum(|percpu| &percpu.faults), sum(|percpu| &percpu.syscalls));
    update(|root| root.counters = Counters { pgfault, pgalloc, pgfree, syscalls });
}

const _: () = assert!(size_of::<RootPage>() as u64 == PAGE_SIZE);
