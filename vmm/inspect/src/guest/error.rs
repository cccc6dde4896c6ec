//! What can be wrong with what a guest publishes.

use std::fmt;

use serde::Serialize;
use thiserror::Error;

use super::LinkProblem;
use crate::ReadError;

/// The published tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is named for the field of `memvisor_abi::Root`, or what that leads to")]
pub enum TableName {
    Layout,
    E820Raw,
    E820,
    MemblockMemory,
    MemblockReserved,
    Nodes,
    Distances,
    Zones,
    Sections,
    Cpus,
    MmList,
    ExtraTables,
    Caches,
    CacheCpus,
    CacheNodes,
    TraceRings,
    VmAreas,
    Kmaps,
    Tasks,
    Pcps,
    Zonelists,
    VmEvents,
    VmSysctl,
    /// Counts of the page cache.
    FileCounts,
    /// Counts of pages by zone.
    NodeStats,
    Log,
    CmaAreas,
    CmaBitmap,
    MovableOwners,
    Kcompactds,
    CpuTlbs,
    LruBatches,
    Lruvecs,
    Swiotlb,
    SwiotlbAreas,
    SwiotlbSlots,
    SwapAreas,
    Oom,
    SwapWords,
    ShmemSwaplist,
    ShadowNodes,
    Zswap,
    ZswapLeaves,
}

impl TableName {
    /// The field of the root descriptor.
    pub const fn name(self) -> &'static str {
        match self {
            TableName::Layout => "layout",
            TableName::E820Raw => "e820_raw",
            TableName::E820 => "e820",
            TableName::MemblockMemory => "memblock_memory",
            TableName::MemblockReserved => "memblock_reserved",
            TableName::Nodes => "nodes",
            TableName::Distances => "distances",
            TableName::Zones => "zones",
            TableName::Sections => "sections",
            TableName::Cpus => "cpus",
            TableName::MmList => "mm_list",
            TableName::ExtraTables => "extra_tables",
            TableName::Caches => "caches",
            TableName::CacheCpus => "cache_cpus",
            TableName::CacheNodes => "cache_nodes",
            TableName::TraceRings => "trace_rings",
            TableName::VmAreas => "vm_areas",
            TableName::Kmaps => "kmaps",
            TableName::Tasks => "tasks",
            TableName::Pcps => "pcps",
            TableName::Zonelists => "zonelists",
            TableName::VmEvents => "vm_events",
            TableName::VmSysctl => "vm_sysctl",
            TableName::FileCounts => "file_counts",
            TableName::NodeStats => "node_stats",
            TableName::Log => "log",
            TableName::CmaAreas => "cma_areas",
            TableName::CmaBitmap => "cma_areas' bitmap",
            TableName::MovableOwners => "movable_owners",
            TableName::Kcompactds => "kcompactds",
            TableName::CpuTlbs => "cpu_tlbs",
            TableName::Lruvecs => "lruvecs",
            TableName::LruBatches => "lru_batches",
            TableName::Swiotlb => "swiotlb",
            TableName::SwiotlbAreas => "swiotlb's areas",
            TableName::SwiotlbSlots => "swiotlb's slots",
            TableName::SwapAreas => "swap_areas",
            TableName::Oom => "oom",
            TableName::SwapWords => "swap_areas' words",
            TableName::ShmemSwaplist => "shmem_swaplist",
            TableName::ShadowNodes => "shadow_nodes",
            TableName::Zswap => "zswap",
            TableName::ZswapLeaves => "zswap's entries",
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Why a root descriptor is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AttachError {
    /// The address is not a multiple of the root's alignment, or not RAM.
    #[error("root descriptor at {gpa:#x}: the address is not a page of RAM")]
    Address {
        /// The address.
        gpa: u64,
    },
    /// There is something else at the address.
    #[error(
        "root descriptor at {gpa:#x}: no magic there; the guest is not memvisor's, or did not publish it yet"
    )]
    Magic {
        /// The address.
        gpa: u64,
    },
    /// Another version of the interface.
    #[error(
        "root descriptor at {gpa:#x}: interface version {found}, this reader knows {known}; use matching builds"
    )]
    Version {
        /// The address.
        gpa: u64,
        /// Version of the guest.
        found: u32,
        /// Version of the reader.
        known: u32,
    },
    /// Another size or hash of the layouts under the same version.
    #[error(
        "root descriptor at {gpa:#x}: layouts differ (size {size}, hash {hash:#x}; this reader has size \
         {known_size}, hash {known_hash:#x}); use matching builds"
    )]
    Layout {
        /// The address.
        gpa: u64,
        /// Size in the guest.
        size: u32,
        /// Hash in the guest.
        hash: u64,
        /// Size in the reader.
        known_size: u32,
        /// Hash in the reader.
        known_hash: u64,
    },
    /// A copy of a root descriptor, not the root itself.
    #[error("root descriptor at {gpa:#x}: it says that it is at {self_gpa:#x}, so this is a copy")]
    Copy {
        /// The address.
        gpa: u64,
        /// What it says.
        self_gpa: u64,
    },
    /// Numbers that no machine has.
    #[error("root descriptor at {gpa:#x}: {field} is {value:#x}, which cannot be")]
    Field {
        /// The address.
        gpa: u64,
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

/// Why a published structure cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GuestError {
    /// The guest has not come that far.
    #[error("table {table} is not published yet (boot stage {stage})")]
    NotPublished {
        /// The table.
        table: TableName,
        /// [`memvisor_abi::Root::stage`].
        stage: u32,
    },
    /// More elements than the machine can need.
    #[error("table {table} claims {count} elements, at most {max} are possible on this machine")]
    TooMany {
        /// The table.
        table: TableName,
        /// Claimed.
        count: u32,
        /// Possible.
        max: u64,
    },
    /// Elements that overlap.
    #[error("table {table} has stride {stride}, its elements have {size} bytes")]
    Stride {
        /// The table.
        table: TableName,
        /// Claimed bytes from element to element.
        stride: u32,
        /// Bytes of an element.
        size: usize,
    },
    /// A table that is not in RAM.
    #[error("table {table} at {gpa:#x} ({count} elements of stride {stride}) is not inside RAM")]
    NotRam {
        /// The table.
        table: TableName,
        /// Its address.
        gpa: u64,
        /// Elements.
        count: u32,
        /// Bytes from element to element.
        stride: u32,
    },
    /// An element with an impossible value.
    #[error("table {table} element {index}: {field} is {value:#x}, {why}")]
    Element {
        /// The table.
        table: TableName,
        /// Index of the element.
        index: usize,
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What it should be.
        why: &'static str,
    },
    /// An index past a table's end.
    #[error("table {table} has {count} elements, there is no element {index}")]
    NoSuchElement {
        /// The table.
        table: TableName,
        /// The index asked for.
        index: usize,
        /// Elements.
        count: usize,
    },
    /// Not an order of the buddy allocator.
    #[error("order {order} is past the largest, {}", memvisor_abi::NR_ORDERS - 1)]
    NoSuchOrder {
        /// The order asked for.
        order: usize,
    },
    /// The list of address spaces.
    #[error("mm_list: {0}")]
    MmList(#[from] LinkProblem),
    /// RAM that vanished under the reader.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl GuestError {
    /// Whether waiting for the guest to boot further may help.
    pub const fn is_not_published(&self) -> bool {
        matches!(self, GuestError::NotPublished { .. })
    }
}
