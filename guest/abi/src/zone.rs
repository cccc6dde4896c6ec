//! Nodes, zones, free lists and sections.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Orders of the buddy allocator, 0..=10 (Linux: `MAX_ORDER` + 1).
pub const NR_ORDERS: usize = 11;
/// Zones of a node.
pub const MAX_NR_ZONES: usize = 5;
/// Most NUMA nodes the guest handles.
pub const MAX_NUMNODES: usize = 64;
/// "No node" (Linux: `NUMA_NO_NODE`).
pub const NODE_NONE: u32 = u32::MAX;

/// Kinds of zones, lowest first (Linux: `enum zone_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum ZoneKind {
    /// Below 16 MiB.
    Dma = 0,
    /// Below 4 GiB.
    Dma32 = 1,
    /// The rest.
    Normal = 2,
    /// Beyond the direct map, when `lowmem=` limits that.
    HighMem = 3,
    /// Only movable allocations.
    Movable = 4,
}

impl ZoneKind {
    /// All kinds, lowest first.
    pub const ALL: [ZoneKind; MAX_NR_ZONES] =
        [ZoneKind::Dma, ZoneKind::Dma32, ZoneKind::Normal, ZoneKind::HighMem, ZoneKind::Movable];

    /// The kind of a raw number, or `None`.
    pub const fn from_raw(raw: u32) -> Option<ZoneKind> {
        Some(match raw {
            0 => ZoneKind::Dma,
            1 => ZoneKind::Dma32,
            2 => ZoneKind::Normal,
            3 => ZoneKind::HighMem,
            4 => ZoneKind::Movable,
            _ => return None,
        })
    }

    /// Linux's name.
    pub const fn name(self) -> &'static str {
        match self {
            ZoneKind::Dma => "DMA",
            ZoneKind::Dma32 => "DMA32",
            ZoneKind::Normal => "Normal",
            ZoneKind::HighMem => "HighMem",
            ZoneKind::Movable => "Movable",
        }
    }
}

/// A NUMA node (Linux: `pg_data_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Node {
    /// Node number.
    pub id: u32,
    /// 1 if the node is online (has memory or CPUs), else 0.
    pub online: u32,
    /// First frame, holes included; 0 for a node without memory.
    pub start_pfn: u64,
    /// Frames from first to last, holes included (Linux: `node_spanned_pages`).
    pub spanned_pages: u64,
    /// Frames that exist (Linux: `node_present_pages`).
    pub present_pages: u64,
}
const _: () = assert!(size_of::<Node>() == 32);

/// What may become of the contents of a block, so that blocks of one kind stay together (Linux: `enum
/// migratetype`). Each pageblock has a type and each free list one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Migratetype {
    /// Stays where it is until it is freed.
    Unmovable = 0,
    /// Can be moved elsewhere.
    Movable = 1,
    /// Cannot be moved, but freed on demand.
    Reclaimable = 2,
    /// Kept for high-order atomic allocations.
    HighAtomic = 3,
    /// Lent to movable allocations until its contiguous area is needed.
    Cma = 4,
    /// Not allocated from.
    Isolate = 5,
}

/// Number of [`Migratetype`]s (Linux: `MIGRATE_TYPES`).
pub const MIGRATE_TYPES: usize = 6;
/// Types that per-CPU lists hold, the first ones (Linux: `MIGRATE_PCPTYPES`).
pub const MIGRATE_PCPTYPES: usize = 3;

impl Migratetype {
    /// All types by number.
    pub const ALL: [Migratetype; MIGRATE_TYPES] = [
        Migratetype::Unmovable,
        Migratetype::Movable,
        Migratetype::Reclaimable,
        Migratetype::HighAtomic,
        Migratetype::Cma,
        Migratetype::Isolate,
    ];

    /// The type of a raw number, or `None`.
    pub const fn from_raw(raw: u8) -> Option<Migratetype> {
        Some(match raw {
            0 => Migratetype::Unmovable,
            1 => Migratetype::Movable,
            2 => Migratetype::Reclaimable,
            3 => Migratetype::HighAtomic,
            4 => Migratetype::Cma,
            5 => Migratetype::Isolate,
            _ => return None,
        })
    }

    /// Linux's name in /proc/pagetypeinfo.
    pub const fn name(self) -> &'static str {
        match self {
            Migratetype::Unmovable => "Unmovable",
            Migratetype::Movable => "Movable",
            Migratetype::Reclaimable => "Reclaimable",
            Migratetype::HighAtomic => "HighAtomic",
            Migratetype::Cma => "CMA",
            Migratetype::Isolate => "Isolate",
        }
    }
}

/// Free blocks of one order (Linux: `struct free_area`). The list is doubly linked through
/// [`crate::Page::next`] and [`crate::Page::prev`] of the blocks' first frames; the first frame's
/// `prev` and the last frame's `next` are [`crate::PFN_NONE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FreeArea {
    /// First frame of the first block, or [`crate::PFN_NONE`].
    pub head: u64,
    /// First frame of the last block, or [`crate::PFN_NONE`].
    pub tail: u64,
    /// Blocks on the list.
    pub nr_free: u64,
}

/// Indices into [`Zone::watermark`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Watermark {
    /// Only emergency allocations below this.
    Min = 0,
    /// kswapd wakes below this.
    Low = 1,
    /// kswapd sleeps above this.
    High = 2,
}

/// A zone (Linux: `struct zone`). All quantities are pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Zone {
    /// Node the zone belongs to.
    pub node: u32,
    /// See [`ZoneKind`].
    pub kind: u32,
    /// First frame, holes included; 0 if the zone is empty.
    pub start_pfn: u64,
    /// Frames from first to last, holes included.
    pub spanned_pages: u64,
    /// Frames that exist in E820 RAM.
    pub present_pages: u64,
    /// Frames that the buddy allocator was given, free, deferred or allocated.
    pub managed_pages: u64,
    /// Frames on the free lists (Linux: `NR_FREE_PAGES`), deferred ones excluded.
    pub free_pages: u64,
    /// Managed frames in sections whose descriptors are not initialised yet.
    pub deferred_pages: u64,
    /// Indexed by [`Watermark`].
    pub watermark: [u64; 3],
    /// Pages kept from allocations that could have used a higher zone, indexed by that zone.
    pub lowmem_reserve: [u64; MAX_NR_ZONES],
    /// Free lists by order.
    pub free_area: [FreeArea; NR_ORDERS],
}
const _: () =
    assert!(size_of::<Zone>() == 120 + 24 * NR_ORDERS && core::mem::offset_of!(Zone, free_area) == 120);

/// State of a memory section (Linux: `struct mem_section`), indexed by position in the table, which
/// holds present sections only, ascending by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Section {
    /// Section number: physical address >> [`crate::SECTION_SIZE_BITS`].
    pub number: u64,
    /// First frame of this section's descriptors: [`crate::PAGES_PER_SECTION`] of them, 2 MiB,
    /// contiguous. [`crate::PFN_NONE`] while the section is deferred and has no memmap yet.
    pub memmap_pfn: u64,
    /// See [`SectionState`].
    pub state: u32,
    /// Always 0.
    pub reserved: u32,
}
const _: () = assert!(size_of::<Section>() == 24);

/// Values of [`Section::state`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SectionState {
    /// Descriptors are not initialised; the section's frames that memblock does not reserve are
    /// free and counted in [`Zone::deferred_pages`].
    Deferred = 0,
    /// Descriptors are valid.
    Online = 1,
}
