//! Per-CPU page lists (Linux 6.1: `struct per_cpu_pages`, `struct per_cpu_zonestat`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{MIGRATE_PCPTYPES, PFN_NONE};

/// Largest order with a list for each type (Linux: `PAGE_ALLOC_COSTLY_ORDER`).
pub const PCP_MAX_ORDER: usize = 3;
/// Order of the one list above [`PCP_MAX_ORDER`]: blocks for huge pages (Linux: `pageblock_order`).
pub const PCP_HUGE_ORDER: usize = 9;
/// Lists of a zone and CPU; the last is that of [`PCP_HUGE_ORDER`] (Linux: `NR_PCP_LISTS`).
pub const NR_PCP_LISTS: usize = MIGRATE_PCPTYPES * (PCP_MAX_ORDER + 1) + 1;

/// Free blocks of one order and type, linked through [`crate::Page::next`] and [`crate::Page::prev`] of
/// their first frames as in [`crate::FreeList`]. The head is hot: freed last, allocated next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PcpList {
    /// First frame of the first block, or [`PFN_NONE`].
    pub head: u64,
    /// First frame of the last block, or [`PFN_NONE`].
    pub tail: u64,
}

/// What one CPU keeps of one zone. In the published table a CPU's zones are neighbours: the index is
/// CPU * zones + zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub struct PerCpuPages {
    /// Pages on all lists.
    pub count: u32,
    /// From this count on, frees go back to the zone. 0 until [`Self::batch`] is set up: no page is kept.
    pub high: u32,
    /// Pages that a refill or a give-back moves at once.
    pub batch: u32,
    /// How often the give-back was doubled by frees without allocations.
    pub free_factor: u32,
    /// Lists, by order * [`MIGRATE_PCPTYPES`] + type; the last is that of [`PCP_HUGE_ORDER`].
    pub lists: [PcpList; NR_PCP_LISTS],
    /// Events of the zone counted on this CPU, indexed by [`crate::NumaEvent`].
    pub numa: [u64; crate::NR_NUMA_EVENTS],
    /// Always 0.
    pub reserved: [u64; 6],
}
const _: () = assert!(size_of::<PerCpuPages>() == 320);

impl PerCpuPages {
    /// Empty lists, as at boot (Linux: `per_cpu_pages_init` with `BOOT_PAGESET_HIGH`, `BOOT_PAGESET_BATCH`).
    pub const EMPTY: PerCpuPages = PerCpuPages {
        count: 0,
        high: 0,
        batch: 1,
        free_factor: 0,
        lists: [PcpList { head: PFN_NONE, tail: PFN_NONE }; NR_PCP_LISTS],
        numa: [0; crate::NR_NUMA_EVENTS],
        reserved: [0; 6],
    };

    /// Order of the blocks on list `index`; [`PCP_HUGE_ORDER`] for the last and anything past it.
    pub const fn order_of(index: usize) -> usize {
        if index < NR_PCP_LISTS - 1 { index / MIGRATE_PCPTYPES } else { PCP_HUGE_ORDER }
    }
}
