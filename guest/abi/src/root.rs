//! The root descriptor.

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    Cache, CacheCpu, CacheNode, CpuInfo, E820Entry, EVENTS, KmapSlot, KmapWindow, LayoutRange,
    MemblockRegion, Node, Page, Section, TaskInfo, TraceRecord, TraceRing, VmArea, Zone, fnv1a,
};

/// An array in guest-physical memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TableRef {
    /// Address of the first element; 0 if the table is not published yet.
    pub gpa: u64,
    /// Elements in use.
    pub count: u32,
    /// Bytes from one element to the next, at least the element's size.
    pub stride: u32,
}

/// Where everything is. Aligned to [`Root::ALIGN`], never moves.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Root {
    /// [`Root::MAGIC`].
    pub magic: [u8; 16],
    /// [`Root::VERSION`].
    pub version: u32,
    /// `size_of::<Root>()`.
    pub size: u32,
    /// [`LAYOUT_HASH`] of the guest's build.
    pub layout_hash: u64,
    /// Guest-physical address of this structure.
    pub self_gpa: u64,
    /// See [`BootStage`].
    pub stage: u32,
    /// See [`BootProtocol`].
    pub boot_protocol: u32,
    /// Paging levels in use: 4 or 5.
    pub levels: u32,
    /// Physical address bits the guest believes in (CPUID 0x80000008).
    pub phys_bits: u32,
    /// Physical address of the kernel image's first byte.
    pub kernel_gpa: u64,
    /// Virtual address of the kernel image's first byte.
    pub kernel_va: u64,
    /// Bytes of the kernel image, zero-initialised data included.
    pub kernel_len: u64,
    /// Bytes from the image's start to the end of executable code.
    pub text_len: u64,
    /// Bytes from the image's start to the end of read-only data.
    pub rodata_end: u64,
    /// Frame of the kernel's own top-level page table (Linux: `init_mm.pgd`).
    pub pgd_pfn: u64,
    /// Virtual address of physical address 0 in the direct map (Linux: `PAGE_OFFSET`).
    pub page_offset: u64,
    /// Virtual address of the descriptor of frame 0 (Linux: `vmemmap`).
    pub vmemmap: u64,
    /// [`LayoutRange`]s, ascending, the whole address space without gaps.
    pub layout: TableRef,
    /// [`E820Entry`] as the boot loader gave them.
    pub e820_raw: TableRef,
    /// [`E820Entry`] after sanitizing.
    pub e820: TableRef,
    /// [`MemblockRegion`]: RAM.
    pub memblock_memory: TableRef,
    /// [`MemblockRegion`]: reserved at hand-over to the buddy allocator.
    pub memblock_reserved: TableRef,
    /// [`Node`], indexed by node number.
    pub nodes: TableRef,
    /// `u8` distances, `nodes.count` squared, row by row.
    pub distances: TableRef,
    /// [`Zone`], indexed by node * `MAX_NR_ZONES` + kind.
    pub zones: TableRef,
    /// [`Section`], ascending.
    pub sections: TableRef,
    /// [`CpuInfo`], indexed by CPU number.
    pub cpus: TableRef,
    /// One `u64`: address of the first [`crate::Mm`], 0 for none. All that exist are linked from it (Linux: `mmlist`).
    pub mm_list: TableRef,
    /// Frames of further top-level page tables, neither [`Self::pgd_pfn`] nor an address space's
    /// (the tree that application processors start on); `u64` each.
    pub extra_tables: TableRef,
    /// [`crate::PerCpuPages`], indexed by CPU * `zones.count` + zone (Linux: `per_cpu_pageset`).
    pub pcps: TableRef,
    /// [`crate::Zonelist`], indexed by node (Linux: `node_zonelists`).
    pub zonelists: TableRef,
    /// [`crate::CmaArea`]s (Linux: `cma_areas`).
    pub cma_areas: TableRef,
    /// [`Cache`], `MAX_CACHES` slots (Linux: `slab_caches`).
    pub caches: TableRef,
    /// `u64` addresses, by CPU: its `MAX_CACHES` [`CacheCpu`].
    pub cache_cpus: TableRef,
    /// [`CacheNode`], indexed by node * `MAX_CACHES` + cache.
    pub cache_nodes: TableRef,
    /// Frames (`u64`) that hold the areas of vmalloc, vmap and ioremap, [`VmArea`]s (Linux: `vmap_area_list`).
    pub vm_areas: TableRef,
    /// [`KmapWindow`]s: pkmap, kmap_local of every CPU, fixmap.
    pub kmaps: TableRef,
    /// [`TaskInfo`]: tasks with their kernel stacks (Linux: `task_struct`, `thread_info`).
    pub tasks: TableRef,
    /// [`TraceRing`], indexed by CPU; published if `trace=` asks for events.
    pub trace_rings: TableRef,
    /// [`crate::CpuEvents`], indexed by CPU; a count is the sum over CPUs (Linux: `vm_event_states`).
    pub vm_events: TableRef,
    /// The one [`crate::VmSysctl`]: what can be changed of watermarks and reserves.
    pub vm_sysctl: TableRef,
    /// [`crate::MovableOwner`], `MAX_MOVABLE_OWNERS` slots.
    pub movable_owners: TableRef,
    /// [`crate::Kcompactd`], indexed by node.
    pub kcompactds: TableRef,
    /// [`crate::CpuTlb`], indexed by CPU.
    pub cpu_tlbs: TableRef,
    /// [`crate::Lruvec`], indexed by node.
    pub lruvecs: TableRef,
    /// `u64` addresses, by CPU: its batches of pages on their way to the lists ([`crate::LruBatch`], five of them).
    pub lru_batches: TableRef,
    /// [`crate::SwiotlbPool`]s, `MAX_SWIOTLB_POOLS` places (Linux: `io_tlb_default_mem`).
    pub swiotlb: TableRef,
    /// [`crate::SwapArea`], `MAX_SWAPFILES` slots, by number of the area (Linux: `swap_info`).
    pub swap_areas: TableRef,
    /// The one [`crate::Zswap`].
    pub zswap: TableRef,
    /// One `u64`: address of the first [`crate::Mapping`] that had pages in swap areas, 0 for none (Linux: `shmem_swaplist`).
    pub shmem_swaplist: TableRef,
    /// The one [`crate::ShadowNodes`].
    pub shadow_nodes: TableRef,
    /// The one [`crate::Oom`]: the OOM killer and what is promised.
    pub oom: TableRef,
    /// The one [`crate::FileCounts`].
    pub file_counts: TableRef,
    /// [`crate::NodeStats`], indexed by CPU * `zones.count` + zone; a count is the sum over CPUs (Linux: `vm_node_stat`).
    pub node_stats: TableRef,
    /// The one [`crate::KernelLog`] (Linux: `prb`).
    pub log: TableRef,
    /// The frame of zeroes that read faults map, which nobody counts, or [`crate::PFN_NONE`] (Linux: `zero_pfn`).
    pub zero_pfn: u64,
    /// Root of the tree whose upper half every table for ring 3 has, with page-table isolation; else [`crate::PFN_NONE`]. It is among
    /// [`Root::extra_tables`].
    pub entry_pgd_pfn: u64,
    /// First address of the code that ring 3's tables have, and the first behind it; 0 without.
    pub entry_text: [u64; 2],
    /// The same of the table of interrupt gates.
    pub entry_idt: [u64; 2],
    /// Event counters.
    pub counters: Counters,
}

impl Root {
    /// First bytes of the structure.
    pub const MAGIC: [u8; 16] = *b"memvisor-root\x00\x0d\x0a";
    /// Version of this interface. Any change of a layout raises it.
    pub const VERSION: u32 = 12;
    /// `size_of::<Root>()`, as [`Root::size`] has it.
    #[expect(clippy::cast_possible_truncation, reason = "pinned by an assert below")]
    pub const SIZE: u32 = size_of::<Root>() as u32;
    /// Alignment of the structure in guest-physical memory.
    pub const ALIGN: u64 = 4096;
}

/// Event counters (Linux: `/proc/vmstat`), summed over CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Counters {
    /// Page faults taken from ring 3 (`pgfault`).
    pub pgfault: u64,
    /// Pages allocated from the buddy (`pgalloc`).
    pub pgalloc: u64,
    /// Pages given back to the buddy (`pgfree`).
    pub pgfree: u64,
    /// System calls taken.
    pub syscalls: u64,
}

/// Values of [`Root::stage`]: how far boot came, and so which tables are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum BootStage {
    /// Entered; only the kernel image fields are valid.
    Early = 0,
    /// E820 and memblock are valid.
    Memblock = 1,
    /// Final page tables are in CR3.
    Paging = 2,
    /// Nodes, zones, sections and the buddy allocator are valid.
    Buddy = 3,
    /// Every CPU was started or given up.
    Smp = 4,
    /// Ring 3 ran.
    Running = 5,
    /// The kernel panicked; the console has the report.
    Panicked = 6,
}

/// Values of [`Root::boot_protocol`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum BootProtocol {
    /// Linux 64-bit boot protocol.
    Linux64 = 1,
    /// PVH.
    Pvh = 2,
}

/// Identifies the layouts of this build; a reader with another hash refuses to interpret.
pub const LAYOUT_HASH: u64 = fnv1a(&[
    Root::VERSION as u64,
    size_of::<Root>() as u64,
    offset_of!(Root, layout) as u64,
    offset_of!(Root, zones) as u64,
    offset_of!(Root, counters) as u64,
    size_of::<Page>() as u64,
    offset_of!(Page, kind) as u64,
    offset_of!(Page, migratetype) as u64,
    offset_of!(Page, bits) as u64,
    size_of::<Zone>() as u64,
    offset_of!(Zone, free_area) as u64,
    offset_of!(Zone, nonempty) as u64,
    offset_of!(Section, pageblocks) as u64,
    size_of::<Node>() as u64,
    size_of::<Section>() as u64,
    size_of::<CpuInfo>() as u64,
    size_of::<E820Entry>() as u64,
    size_of::<MemblockRegion>() as u64,
    size_of::<LayoutRange>() as u64,
    size_of::<VmArea>() as u64,
    offset_of!(VmArea, state) as u64,
    size_of::<KmapWindow>() as u64,
    size_of::<KmapSlot>() as u64,
    size_of::<TaskInfo>() as u64,
    size_of::<crate::PerCpuPages>() as u64,
    size_of::<crate::Zonelist>() as u64,
    size_of::<crate::CpuEvents>() as u64,
    size_of::<TraceRing>() as u64,
    offset_of!(TraceRecord, args) as u64,
    EVENTS.len() as u64,
    size_of::<Cache>() as u64,
    size_of::<CacheCpu>() as u64,
    size_of::<CacheNode>() as u64,
    size_of::<crate::VmSysctl>() as u64,
    size_of::<crate::CmaArea>() as u64,
    size_of::<crate::MovableOwner>() as u64,
    size_of::<crate::Kcompactd>() as u64,
    size_of::<crate::Mm>() as u64,
    offset_of!(crate::Mm, mmap_lock) as u64,
    size_of::<crate::Vma>() as u64,
    size_of::<crate::VmaNode>() as u64,
    size_of::<crate::AnonVma>() as u64,
    size_of::<crate::AnonVmaChain>() as u64,
    size_of::<crate::Mapping>() as u64,
    size_of::<crate::MappingNode>() as u64,
    size_of::<crate::ShadowNodes>() as u64,
    size_of::<crate::KernelLog>() as u64,
    size_of::<crate::LogHeader>() as u64,
    size_of::<crate::CpuTlb>() as u64,
    size_of::<crate::Lruvec>() as u64,
    offset_of!(crate::Lruvec, isolated) as u64,
    size_of::<crate::LruGen>() as u64,
    size_of::<crate::LruBatch>() as u64,
    size_of::<crate::SwiotlbPool>() as u64,
    size_of::<crate::SwiotlbArea>() as u64,
    size_of::<crate::SwiotlbSlot>() as u64,
    size_of::<crate::SwapArea>() as u64,
    size_of::<crate::Zswap>() as u64,
    offset_of!(crate::Mm, swapents) as u64,
    size_of::<crate::Oom>() as u64,
    size_of::<crate::FileCounts>() as u64,
    size_of::<crate::NodeStats>() as u64,
]);

const _: () = assert!(
    offset_of!(Root, layout_hash) == 24
        && offset_of!(Root, self_gpa) == 32
        && offset_of!(Root, layout) == 120
        && offset_of!(Root, counters) == 776
        && size_of::<Root>() == 808
);
