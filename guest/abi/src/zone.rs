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

/// Free blocks of one order and one type. The list is doubly linked through [`crate::Page::next`] and
/// [`crate::Page::prev`] of the blocks' first frames; the first frame's `prev` and the last
/// frame's `next` are [`crate::PFN_NONE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FreeList {
    /// First frame of the first block, or [`crate::PFN_NONE`].
    pub head: u64,
    /// First frame of the last block, or [`crate::PFN_NONE`].
    pub tail: u64,
    /// Blocks on the list.
    pub nr_free: u64,
}

impl FreeList {
    /// A list without blocks.
    pub const EMPTY: FreeList = FreeList { head: crate::PFN_NONE, tail: crate::PFN_NONE, nr_free: 0 };
}

/// Free blocks of one order (Linux: `struct free_area`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FreeArea {
    /// Indexed by [`Migratetype`].
    pub lists: [FreeList; MIGRATE_TYPES],
}

impl FreeArea {
    /// No blocks.
    pub const EMPTY: FreeArea = FreeArea { lists: [FreeList::EMPTY; MIGRATE_TYPES] };

    /// Blocks of all types (Linux: `free_area->nr_free`).
    pub fn nr_free(&self) -> u64 {
        self.lists.iter().fold(0, |sum, list| sum.wrapping_add(list.nr_free))
    }
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
    /// Free frames on lists of [`Migratetype::Cma`] (Linux: `NR_FREE_CMA_PAGES`), part of `free_pages`.
    pub nr_free_cma: u64,
    /// Orders whose list of a type is not empty, a bit an order, indexed by [`Migratetype`]; the last
    /// two are always 0.
    pub nonempty: [u16; 8],
    /// Indexed by [`Watermark`], without the boost.
    pub watermark: [u64; 3],
    /// Added to every watermark until kswapd has worked it off (Linux: `watermark_boost`).
    pub watermark_boost: u64,
    /// Pages kept from allocations that could have used a higher zone, indexed by that zone.
    pub lowmem_reserve: [u64; MAX_NR_ZONES],
    /// How far fragmentation raises the boost, in 1/10000 of the high watermark; 0 for never (Linux:
    /// `vm.watermark_boost_factor`).
    pub watermark_boost_factor: u32,
    /// [`Zone::BOOSTED_WATERMARK`].
    pub flags: u32,
    /// Frames in pageblocks of type [`Migratetype::HighAtomic`], as the allocator counts them (Linux:
    /// `nr_reserved_highatomic`).
    pub nr_reserved_highatomic: u64,
    /// Managed frames of contiguous areas (Linux: `cma_pages`).
    pub cma_pages: u64,
    /// Pageblocks of type [`Migratetype::Isolate`] (Linux: `nr_isolate_pageblock`).
    pub nr_isolate_pageblock: u64,
    /// Where the free scanner of compaction goes on, downwards.
    pub compact_cached_free_pfn: u64,
    /// Where the migration scanner goes on, upwards: asynchronous, synchronous.
    pub compact_cached_migrate_pfn: [u64; 2],
    /// Where the migration scanner starts after a reset of the skip hints.
    pub compact_init_migrate_pfn: u64,
    /// Where the free scanner starts after a reset of the skip hints.
    pub compact_init_free_pfn: u64,
    /// Attempts since compaction last failed (Linux: `compact_considered`).
    pub compact_considered: u32,
    /// log2 of the attempts that are skipped after a failure (Linux: `compact_defer_shift`).
    pub compact_defer_shift: u32,
    /// Smallest order at which compaction failed (Linux: `compact_order_failed`).
    pub compact_order_failed: u32,
    /// 1 if the skip hints are to be cleared before the next run (Linux: `compact_blockskip_flush`).
    pub compact_blockskip_flush: u32,
    /// Free lists by order.
    pub free_area: [FreeArea; NR_ORDERS],
}
const _: () = assert!(
    size_of::<Zone>() == 240 + 24 * MIGRATE_TYPES * NR_ORDERS
        && core::mem::offset_of!(Zone, free_area) == 240
        && core::mem::offset_of!(Zone, nonempty) == 64
);

impl Zone {
    /// In `flags`: the boost rose, and kswapd is to be woken for it (Linux: `ZONE_BOOSTED_WATERMARK`).
    pub const BOOSTED_WATERMARK: u32 = 1;

    /// A zone without frames.
    pub const fn new(node: u32, kind: ZoneKind) -> Zone {
        Zone {
            node,
            kind: kind as u32,
            start_pfn: 0,
            spanned_pages: 0,
            present_pages: 0,
            managed_pages: 0,
            free_pages: 0,
            deferred_pages: 0,
            nr_free_cma: 0,
            nonempty: [0; 8],
            watermark: [0; 3],
            watermark_boost: 0,
            lowmem_reserve: [0; MAX_NR_ZONES],
            watermark_boost_factor: 0,
            flags: 0,
            nr_reserved_highatomic: 0,
            cma_pages: 0,
            nr_isolate_pageblock: 0,
            compact_cached_free_pfn: 0,
            compact_cached_migrate_pfn: [0; 2],
            compact_init_migrate_pfn: 0,
            compact_init_free_pfn: 0,
            compact_considered: 0,
            compact_defer_shift: 0,
            compact_order_failed: 0,
            compact_blockskip_flush: 0,
            free_area: [FreeArea::EMPTY; NR_ORDERS],
        }
    }
}

/// State of a memory section (Linux: `struct mem_section`), indexed by position in the table, which
/// holds present sections only, ascending by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
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
    /// A byte a pageblock: its [`Migratetype`] in the low bits, [`PAGEBLOCK_SKIP`] above (Linux:
    /// `pageblock_flags`).
    pub pageblocks: [u8; PAGEBLOCKS_PER_SECTION],
}
const _: () = assert!(size_of::<Section>() == 88);

impl Section {
    /// A section whose descriptors are not initialised; all its pageblocks are
    /// [`Migratetype::Movable`], as after boot.
    pub const fn deferred(number: u64, memmap_pfn: u64) -> Section {
        Section {
            number,
            memmap_pfn,
            state: SectionState::Deferred as u32,
            reserved: 0,
            pageblocks: [Migratetype::Movable as u8; PAGEBLOCKS_PER_SECTION],
        }
    }
}

/// log2 of the frames of a pageblock (Linux: `pageblock_order` with huge pages).
pub const PAGEBLOCK_ORDER: u32 = 9;
/// Frames of a pageblock.
pub const PAGEBLOCK_PAGES: u64 = 1 << PAGEBLOCK_ORDER;
/// Pageblocks of a section.
pub const PAGEBLOCKS_PER_SECTION: usize = 64;
/// Bits of a pageblock's byte that are its [`Migratetype`].
pub const PAGEBLOCK_TYPE_MASK: u8 = 7;
/// Compaction found nothing here (Linux: `PB_migrate_skip`).
pub const PAGEBLOCK_SKIP: u8 = 8;
const _: () = assert!(crate::PAGES_PER_SECTION >> PAGEBLOCK_ORDER == PAGEBLOCKS_PER_SECTION as u64);

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
