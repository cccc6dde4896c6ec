//! Generations: the second policy of which pages are used (Linux: `struct lru_gen_struct`).
//!
//! ```text
//! min_seq[type] ... max_seq      a number for each generation, never used again
//! number % MAX_NR_GENS           the place of its lists
//! ```

use core::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{LruList, MAX_NR_ZONES, Page, PageFlags};

/// Generations that there always are: reclaim leaves the two youngest alone (Linux: the same name).
pub const MIN_NR_GENS: u64 = 2;
/// Generations that there can be (Linux: the same name).
pub const MAX_NR_GENS: usize = 4;
/// Pages of a generation by how often they were used through descriptors: once or never, twice, up to four times, more often (Linux:
/// the same name).
pub const MAX_NR_TIERS: usize = 4;
/// Types of pages: anonymous, of files (Linux: `ANON_AND_FILE`).
pub const LRU_GEN_TYPES: usize = 2;
/// Their names, by index.
pub const LRU_GEN_TYPE_NAMES: [&str; LRU_GEN_TYPES] = ["anon", "file"];

/// The generations of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LruGen {
    /// 1 with `lru=gen`; else nothing below has a meaning (Linux: the same name).
    pub enabled: u64,
    /// The youngest generation (Linux: the same name).
    pub max_seq: u64,
    /// The oldest generation of each type (Linux: the same name).
    pub min_seq: [u64; LRU_GEN_TYPES],
    /// When each generation was begun, in nanoseconds since boot, by its place (Linux: the same name, in jiffies).
    pub timestamps: [u64; MAX_NR_GENS],
    /// Pages, by place, type and zone; each list counts its own (Linux: `folios`, `nr_pages`).
    pub lists: [[[LruList; MAX_NR_ZONES]; LRU_GEN_TYPES]; MAX_NR_GENS],
    /// Refaults of each tier, older ones fading (Linux: the same name).
    pub avg_refaulted: [[u64; MAX_NR_TIERS]; LRU_GEN_TYPES],
    /// Evicted and protected pages of each tier, older ones fading (Linux: the same name).
    pub avg_total: [[u64; MAX_NR_TIERS]; LRU_GEN_TYPES],
    /// Pages of each tier that went to the next generation instead of being evicted, since the oldest is the oldest (Linux: the same name).
    pub protected: [[u64; MAX_NR_TIERS]; LRU_GEN_TYPES],
    /// Pages evicted since (Linux: the same name).
    pub evicted: [[u64; MAX_NR_TIERS]; LRU_GEN_TYPES],
    /// Of those, pages that came back (Linux: the same name).
    pub refaulted: [[u64; MAX_NR_TIERS]; LRU_GEN_TYPES],
    /// 1 while somebody walks page tables to begin a generation.
    pub walking: u64,
}
const _: () = assert!(
    offset_of!(LruGen, lists) == 64
        && offset_of!(LruGen, avg_refaulted) == 64 + 24 * MAX_NR_ZONES * LRU_GEN_TYPES * MAX_NR_GENS
);

impl LruGen {
    /// Not in use.
    pub const EMPTY: LruGen = LruGen {
        enabled: 0,
        max_seq: 0,
        min_seq: [0; LRU_GEN_TYPES],
        timestamps: [0; MAX_NR_GENS],
        lists: [[[LruList::EMPTY; MAX_NR_ZONES]; LRU_GEN_TYPES]; MAX_NR_GENS],
        avg_refaulted: [[0; MAX_NR_TIERS]; LRU_GEN_TYPES],
        avg_total: [[0; MAX_NR_TIERS]; LRU_GEN_TYPES],
        protected: [[0; MAX_NR_TIERS]; LRU_GEN_TYPES],
        evicted: [[0; MAX_NR_TIERS]; LRU_GEN_TYPES],
        refaulted: [[0; MAX_NR_TIERS]; LRU_GEN_TYPES],
        walking: 0,
    };

    /// Place of a generation (Linux: `lru_gen_from_seq`).
    #[expect(clippy::cast_possible_truncation, reason = "below MAX_NR_GENS")]
    pub const fn place(seq: u64) -> usize {
        (seq % MAX_NR_GENS as u64) as usize
    }

    /// Whether the pages at that place count as active: the two youngest do (Linux: `lru_gen_is_active`).
    pub const fn is_active(&self, place: usize) -> bool {
        place == LruGen::place(self.max_seq) || place == LruGen::place(self.max_seq.wrapping_sub(1))
    }

    /// Generations of a type; 0 for a type that there is not (Linux: `get_nr_gens`).
    pub fn nr_gens(&self, kind: usize) -> u64 {
        self.min_seq.get(kind).map_or(0, |min| self.max_seq.wrapping_sub(*min).wrapping_add(1))
    }
}

impl Page {
    /// First bit of the generation in `flags`: its place plus one, 0 on no list of a generation (Linux: `LRU_GEN_PGOFF`).
    pub const LRU_GEN_SHIFT: u32 = 19;
    /// First bit of the number of uses beyond those that REFERENCED and WORKINGSET tell (Linux: `LRU_REFS_PGOFF`).
    pub const LRU_REFS_SHIFT: u32 = 22;
}

impl PageFlags {
    /// Place of the generation whose list the page is on (Linux: `folio_lru_gen`).
    #[expect(clippy::cast_possible_truncation, reason = "three bits")]
    pub const fn lru_gen(self) -> Option<usize> {
        let raw = (self.bits() & PageFlags::LRU_GEN.bits()) >> Page::LRU_GEN_SHIFT;
        if raw == 0 { None } else { Some((raw - 1) as usize) }
    }

    /// The bits of a place.
    pub const fn of_lru_gen(place: usize) -> PageFlags {
        let bits = ((place as u64 + 1) << Page::LRU_GEN_SHIFT) & PageFlags::LRU_GEN.bits();
        PageFlags::from_bits_retain(bits)
    }

    /// Uses through descriptors beyond the first (Linux: `folio_lru_refs`).
    pub const fn lru_refs(self) -> u64 {
        let more = (self.bits() & PageFlags::LRU_REFS.bits()) >> Page::LRU_REFS_SHIFT;
        more + self.contains(PageFlags::WORKINGSET) as u64
    }

    /// Tier of so many uses (Linux: `lru_tier_from_refs`).
    /// ```
    /// use memvisor_abi::PageFlags;
    /// assert_eq!([0, 1, 2, 3, 4].map(PageFlags::lru_tier), [0, 1, 2, 2, 3]);
    /// ```
    pub const fn lru_tier(refs: u64) -> usize {
        let tier = (64 - refs.leading_zeros()) as usize;
        if tier < MAX_NR_TIERS { tier } else { MAX_NR_TIERS - 1 }
    }
}
