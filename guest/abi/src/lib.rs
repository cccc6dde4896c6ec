//! What the guest kernel promises to anybody who reads its memory from outside.
//!
//! The guest publishes one [`Root`] descriptor. Everything else is reached from it: arrays are
//! named by [`TableRef`] (guest-physical address, count, stride), lists are linked by page frame
//! number. No reader needs symbols, and no reader needs the guest's page tables.
//!
//! How a reader finds the root, best first:
//! 1. the guest announces it through the memvisor device ([`port::Command::Announce`]);
//! 2. a dump's VMCOREINFO note says `NUMBER(memvisor_root)=GPA`;
//! 3. scan RAM for [`Root::MAGIC`] at [`Root::ALIGN`] steps and check [`Root::self_gpa`].
//!
//! The guest writes these structures while a reader may look, so a reader copies, checks ranges
//! and bounds every list. Layouts are pinned by the asserts beside each structure, and
//! [`LAYOUT_HASH`] is compared at attach.

#![no_std]
#![forbid(unsafe_code)]

mod boot;
mod cma;
mod compaction;
mod cpu;
pub mod dma;
mod event;
mod file_counts;
mod layout;
mod log;
mod lru;
mod lrugen;
mod mm;
mod node_stat;
mod oom;
mod page;
mod pcp;
pub mod port;
pub mod proc_text;
mod root;
mod slab;
mod swap;
mod swap_area;
mod swiotlb;
mod task;
mod trace;
mod vm_sysctl;
mod vmalloc;
mod zone;
mod zonelist;
mod zswap;

pub use boot::{E820Entry, E820Type, MemblockRegion};
pub use cma::{CMA_NAME_LEN, CmaArea, MAX_CMA_AREAS};
pub use compaction::{Kcompactd, MAX_MOVABLE_OWNERS, MovableOwner};
pub use cpu::{CpuInfo, CpuState};
pub use event::{CpuEvents, NR_NUMA_EVENTS, NR_VM_EVENTS, NumaEvent, VmEvent};
pub use file_counts::FileCounts;
pub use layout::{LayoutKind, LayoutRange, fnv1a};
pub use log::{KernelLog, LOG_LINE_MAX, LogHeader, LogState};
pub use lru::{LRU_BATCH_SIZE, LruBatch, LruKind, LruList, Lruvec, NR_LRU_BATCHES, NR_LRU_LISTS};
pub use lrugen::{LRU_GEN_TYPE_NAMES, LRU_GEN_TYPES, LruGen, MAX_NR_GENS, MAX_NR_TIERS, MIN_NR_GENS};
pub use mm::{
    AnonVma, AnonVmaChain, CpuTlb, MAPPING_NAME_LEN, MAX_MAP_COUNT, MM_CPU_WORDS, Mapping, MappingNode, Mm,
    PTE_MIGRATION, PTE_PROTNONE, PTE_SPECIAL, STACK_GUARD_PAGES, ShadowNodes, VMA_FANOUT, VMA_SLOT_NODE,
    VMA_TREE_MAX_HEIGHT, Vma, VmaNode, mm_flags, mpol, vm_flags,
};
pub use node_stat::{NR_NODE_STATS, NodeStat, NodeStats};
pub use oom::{Oom, OomKill};
pub use page::{Page, PageFlags, PageKind};
pub use pcp::{NR_PCP_LISTS, PCP_HUGE_ORDER, PCP_MAX_ORDER, PcpList, PerCpuPages};
pub use root::{BootProtocol, BootStage, Counters, LAYOUT_HASH, Root, TableRef};
pub use slab::{
    ALIEN_LIMIT, ALIEN_ROW, CACHE_NAME_LEN, CPU_ARRAY, Cache, CacheCpu, CacheNode, LARGE_MAPPING, MAX_CACHES,
    SLAB_FULL, SLAB_OWNER_SHIFT, SLOB_MAPPING, SlabCounters, SlabKind, SlabList, SlabListKind, Track,
    cache_flags, poison,
};
pub use swap::{
    MAX_SWAP_BADPAGES, MAX_SWAPFILES, PTE_SWAP, PTE_SWAP_EXCLUSIVE, PTE_SWAP_OFFSET_SHIFT,
    PTE_SWAP_TYPE_SHIFT, SWAP_MAGIC, SWAP_OFFSET_BITS, SWAP_VALUE_TYPE_SHIFT, SwapHeader, pte_swap_slot,
    swap_pte, swap_slot,
};
pub use swap_area::SwapArea;
pub use swiotlb::{
    INVALID_PHYS_ADDR, IO_TLB_SEGSIZE, IO_TLB_SHIFT, IO_TLB_SIZE, MAX_SWIOTLB_AREAS, MAX_SWIOTLB_POOLS,
    SwiotlbArea, SwiotlbPool, SwiotlbSlot,
};
pub use task::{TaskInfo, TaskState};
pub use trace::{
    ALLOC_FLAG_NAMES, ARG_WORDS, EVENTS, EventId, EventInfo, Field, FieldKind, Group, MASK_WORDS, NO_CACHE,
    NO_NODE, Phase, TRACE_CAPACITY_MAX, TRACE_RECORD_SIZE, TraceRecord, TraceRing, select_events,
};
pub use vm_sysctl::VmSysctl;
pub use vmalloc::{
    KM_MAX_IDX, KmapKind, KmapSlot, KmapWindow, LAST_PKMAP, THREAD_SIZE, VM_AREA_NONE, VM_AREAS_PER_FRAME,
    VmArea, VmFlags, VmState,
};
pub use zone::{
    FreeArea, FreeList, MAX_NR_ZONES, MAX_NUMNODES, MIGRATE_PCPTYPES, MIGRATE_TYPES, Migratetype, NODE_NONE,
    NR_ORDERS, Node, PAGEBLOCK_ORDER, PAGEBLOCK_PAGES, PAGEBLOCK_SKIP, PAGEBLOCK_TYPE_MASK,
    PAGEBLOCKS_PER_SECTION, Section, SectionState, Watermark, Zone, ZoneKind,
};
pub use zonelist::{MAX_ZONES_PER_ZONELIST, Zonelist, ZonelistOrder};
pub use zswap::{
    ZBUD_CHUNK, ZBUD_CHUNKS, ZBUD_LISTS, ZBUD_MAX, ZSWAP_LEAF_SLOTS, ZbudHeader, ZbudPool, Zswap, ZswapEntry,
};

/// Bytes of a page frame.
pub const PAGE_SIZE: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// log2 of the bytes of a memory section (Linux: `SECTION_SIZE_BITS` on x86-64).
pub const SECTION_SIZE_BITS: u32 = 27;
/// Frames of a memory section.
pub const PAGES_PER_SECTION: u64 = 1 << (SECTION_SIZE_BITS - PAGE_SHIFT);
/// The largest physical address width of the architecture (Linux: `MAX_PHYSMEM_BITS` with LA57).
pub const MAX_PHYSMEM_BITS: u32 = 52;
/// Ends every list that is linked by page frame number.
pub const PFN_NONE: u64 = u64::MAX;
/// ELF note of the guest image that carries the root's link address and the ABI version
/// (name `memvisor`, little-endian `u64` address, `u32` version).
pub const ELF_NOTE_ROOT: u32 = 0x4d56_0001;
