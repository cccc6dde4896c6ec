//! Encoding of entries (SDM 3A, 4.5.5, tables 4-15 to 4-20).

use bitflags::bitflags;
use mm_core::{Pfn, PhysAddr};

use crate::{Levels, TABLE_ENTRIES};

bitflags! {
    /// Flag bits in a form that is the same at every level: [`PteFlags::PAT`] is bit 12 and
    /// [`PteFlags::PSE`] bit 7. A 4 KiB entry has its PAT bit at 7 and no PSE; [`Entry::leaf`]
    /// and [`Entry::flags`] translate.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct PteFlags: u64 {
        /// The CPU uses the entry.
        const PRESENT = 1 << 0;
        /// Writes are allowed.
        const WRITE = 1 << 1;
        /// Ring 3 may access.
        const USER = 1 << 2;
        /// Lowest bit of the PAT index.
        const PWT = 1 << 3;
        /// Middle bit of the PAT index.
        const PCD = 1 << 4;
        /// Set by the CPU on use.
        const ACCESSED = 1 << 5;
        /// Set by the CPU on a write through a leaf.
        const DIRTY = 1 << 6;
        /// A leaf above level 1.
        const PSE = 1 << 7;
        /// The translation survives a CR3 write.
        const GLOBAL = 1 << 8;
        /// For software (Linux: `_PAGE_SOFTW1`).
        const SOFT1 = 1 << 9;
        /// For software (Linux: `_PAGE_SOFTW2`).
        const SOFT2 = 1 << 10;
        /// For software (Linux: `_PAGE_SOFTW3`).
        const SOFT3 = 1 << 11;
        /// Highest bit of the PAT index.
        const PAT = 1 << 12;
        /// For software (Linux: `_PAGE_SOFTW4`). Bits 52 to 57 are also ignored by the CPU and
        /// are used by [`crate::Gather`] in tables that no entry refers to any more.
        const SOFT4 = 1 << 58;
        /// Instruction fetches are refused. Needs EFER.NXE.
        const NX = 1 << 63;
    }
}

impl PteFlags {
    /// All software bits.
    pub const SOFT: PteFlags =
        PteFlags::SOFT1.union(PteFlags::SOFT2).union(PteFlags::SOFT3).union(PteFlags::SOFT4);
    /// What a change of protection keeps (Linux: `_PAGE_CHG_MASK`).
    pub const KEEP: PteFlags = PteFlags::ACCESSED.union(PteFlags::DIRTY).union(PteFlags::SOFT);
}

/// One entry of a table, as the CPU reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Entry(u64);

/// Address bits of an entry that points to a 4 KiB frame.
const ADDR_MASK: u64 = 0x000f_ffff_ffff_f000;

impl Entry {
    /// The entry that maps nothing and holds nothing.
    pub const EMPTY: Entry = Entry(0);

    /// The entry with these bits.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// A leaf of `level` (1 to 3) that maps `phys`, a multiple of the leaf's size below 2^52.
    /// PSE is supplied by the level; PAT goes where the level has it.
    pub const fn leaf(level: u8, phys: PhysAddr, flags: PteFlags) -> Self {
        let flags = flags.bits() & !PteFlags::PSE.bits();
        if level == 1 {
            let pat = (flags & PteFlags::PAT.bits()) >> 5;
            Self(phys.as_u64() | flags & !PteFlags::PAT.bits() | pat)
        } else {
            Self(phys.as_u64() | flags | PteFlags::PSE.bits())
        }
    }

    /// An entry that points to the table in `pfn`: writable, executable, for ring 3 as told
    /// (Linux: `_PAGE_TABLE`, `_KERNPG_TABLE`). ACCESSED saves the CPU a locked write.
    pub const fn table(pfn: Pfn, user: bool) -> Self {
        let flags = PteFlags::PRESENT.union(PteFlags::WRITE).union(PteFlags::ACCESSED);
        let user = if user { PteFlags::USER.bits() } else { 0 };
        Self(pfn.phys().as_u64() | flags.bits() | user)
    }

    /// The bits.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// All bits zero. An entry that is not present may still hold something for software.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The CPU uses the entry.
    pub const fn is_present(self) -> bool {
        self.has(PteFlags::PRESENT)
    }

    /// Present, and maps memory at `level`.
    pub const fn is_leaf(self, level: u8) -> bool {
        self.is_present() && (level == 1 || level <= 3 && self.has(PteFlags::PSE))
    }

    /// Present, and points to a table of the level below. At levels 4 and 5 PSE is reserved, so
    /// such an entry is neither leaf nor table.
    pub const fn is_table(self, level: u8) -> bool {
        self.is_present() && level > 1 && !self.has(PteFlags::PSE)
    }

    /// First byte of what the entry of `level` points to: leaf or table.
    pub const fn phys(self, level: u8) -> PhysAddr {
        if self.is_leaf(level) {
            PhysAddr::new(self.0 & ADDR_MASK & !(Levels::page_size(level) - 1))
        } else {
            PhysAddr::new(self.0 & ADDR_MASK)
        }
    }

    /// Frame of the table that [`Entry::is_table`] points to.
    pub const fn table_pfn(self) -> Pfn {
        PhysAddr::new(self.0 & ADDR_MASK).pfn()
    }

    /// The flags in level-independent form (see [`PteFlags`]). Bits without a name are dropped.
    pub const fn flags(self, level: u8) -> PteFlags {
        let low = PteFlags::from_bits_truncate(self.0 & !ADDR_MASK);
        let pat = if self.is_leaf(level) {
            if level == 1 { self.0 & PteFlags::PSE.bits() } else { self.0 >> 5 & PteFlags::PSE.bits() }
        } else {
            0
        };
        let low = if level == 1 { low.difference(PteFlags::PSE) } else { low };
        low.union(PteFlags::from_bits_truncate(pat << 5))
    }

    /// Whether every bit of `flags`, none of them PAT or at level 1 PSE, is set.
    pub const fn has(self, flags: PteFlags) -> bool {
        self.0 & flags.bits() == flags.bits()
    }

    /// A table entry that grants what both of two do.
    pub(crate) const fn and(self, other: Entry) -> Self {
        let nx = PteFlags::NX.bits();
        Self((self.0 ^ nx) & (other.0 ^ nx) ^ nx)
    }

    /// This entry with `flags`, none of them PAT or PSE, set.
    pub(crate) const fn with(self, flags: PteFlags) -> Self {
        Self(self.0 | flags.bits())
    }

    /// The first of the [`TABLE_ENTRIES`] leaves of `level - 1` that together map what this leaf
    /// of `level` maps, with the same flags. The others follow at steps of the smaller size.
    pub(crate) const fn first_of_split(self, level: u8) -> Self {
        Entry::leaf(level - 1, self.phys(level), self.flags(level))
    }
}

const _: () = assert!(Levels::page_size(2) == Levels::page_size(1) * TABLE_ENTRIES as u64);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CacheMode, Prot};
    use proptest::prelude::*;

    /// Every combination of the named flags, PRESENT always set.
    fn all_flags() -> impl Iterator<Item = PteFlags> {
        let free = PteFlags::all().difference(PteFlags::PRESENT);
        (0..1_u32 << free.bits().count_ones()).map(move |choice| {
            let chosen = free.iter().enumerate().filter(|(i, _)| choice >> i & 1 != 0);
            chosen.fold(PteFlags::PRESENT, |flags, (_, flag)| flags | flag)
        })
    }

    #[test]
    fn a_leaf_gives_back_its_address_and_every_combination_of_flags() {
        for level in 1..=3 {
            let top = PhysAddr::new((1 << 52) - Levels::page_size(level));
            for flags in all_flags() {
                let expect = if level == 1 { flags - PteFlags::PSE } else { flags | PteFlags::PSE };
                for phys in [PhysAddr::new(0), PhysAddr::new(Levels::page_size(level)), top] {
                    let entry = Entry::leaf(level, phys, flags);
                    assert!(entry.is_leaf(level) && !entry.is_table(level));
                    assert_eq!((entry.phys(level), entry.flags(level)), (phys, expect));
                }
            }
        }
    }

    #[test]
    fn the_pat_bit_is_7_in_a_pte_and_12_above() {
        let flags = PteFlags::PRESENT | PteFlags::PAT;
        let raw = |level| Entry::leaf(level, PhysAddr::new(0), flags).as_u64();
        assert_eq!((raw(1), raw(2), raw(3)), (1 | 1 << 7, 1 | 1 << 7 | 1 << 12, 1 | 1 << 7 | 1 << 12));
    }

    #[test]
    fn a_table_entry_leaves_the_decision_to_the_leaf() {
        for user in [false, true] {
            let entry = Entry::table(Pfn::new(0x12345), user);
            for level in 2..=5 {
                assert!(entry.is_table(level) && !entry.is_leaf(level));
                assert_eq!(entry.phys(level), PhysAddr::new(0x1234_5000));
            }
            assert_eq!(entry.table_pfn(), Pfn::new(0x12345));
            let open = Prot { write: true, exec: true, user: true, ..Prot::default() };
            assert_eq!(open.below(entry), Prot { user, ..open });
        }
    }

    #[test]
    fn what_is_not_present_is_neither_leaf_nor_table() {
        for level in 1..=5 {
            for raw in [0, 1 << 7, u64::MAX - 1] {
                let entry = Entry::new(raw);
                assert!(!entry.is_leaf(level) && !entry.is_table(level));
            }
        }
    }

    #[test]
    fn pse_is_reserved_at_levels_4_and_5() {
        let entry = Entry::new(1 | 1 << 7);
        for level in 4..=5 {
            assert!(!entry.is_leaf(level) && !entry.is_table(level));
        }
    }

    #[test]
    fn the_pieces_of_a_split_map_the_same_memory_the_same_way() {
        for level in 2..=3 {
            for flags in all_flags() {
                let phys = PhysAddr::new(7 << 30);
                let piece = Entry::leaf(level, phys, flags).first_of_split(level);
                let whole = Entry::leaf(level, phys, flags);
                assert_eq!(piece.phys(level - 1), phys);
                let pse = if level == 2 { PteFlags::PSE } else { PteFlags::empty() };
                assert_eq!(piece.flags(level - 1), whole.flags(level) - pse);
            }
        }
    }

    #[test]
    fn every_protection_survives_its_flags() {
        for bits in 0..16 * 8_u8 {
            let bit = |n: u8| bits >> n & 1 != 0;
            let cache = CacheMode::from_index(bits >> 4);
            let prot = Prot { write: bit(0), exec: bit(1), user: bit(2), global: bit(3), cache };
            assert_eq!(Prot::from_flags(prot.flags()), prot);
            for level in 1..=3 {
                let entry = Entry::leaf(level, PhysAddr::new(1 << 30), prot.flags());
                assert_eq!(Prot::from_flags(entry.flags(level)), prot);
            }
        }
    }

    #[test]
    fn each_cache_mode_selects_its_type_in_the_pat() {
        let types = CacheMode::PAT_MSR.to_le_bytes();
        for (mode, memory_type) in [
            (CacheMode::Uc, 0),
            (CacheMode::Wc, 1),
            (CacheMode::Wt, 4),
            (CacheMode::Wp, 5),
            (CacheMode::Wb, 6),
            (CacheMode::UcMinus, 7),
        ] {
            for (index, &found) in (0..8).zip(&types) {
                assert_eq!(CacheMode::from_index(index) == mode, found == memory_type);
            }
            assert_eq!(CacheMode::from_flags(mode.flags()), mode);
        }
    }

    proptest! {
        #[test]
        fn any_address_and_flags_survive(
            level in 1..=3_u8,
            frame in 0..1_u64 << 40,
            bits in any::<u64>(),
        ) {
            let phys = PhysAddr::new(frame << 12).align_down(Levels::page_size(level));
            let flags = PteFlags::from_bits_truncate(bits) | PteFlags::PRESENT;
            let entry = Entry::leaf(level, phys, flags);
            prop_assert_eq!(entry.phys(level), phys);
            prop_assert_eq!(entry.flags(level) - PteFlags::PSE, flags - PteFlags::PSE);
        }

        /// What the CPU reads, whatever the bits: no panic, and an address below 2^52.
        #[test]
        fn any_bits_can_be_read(level in 1..=5_u8, raw in any::<u64>()) {
            let entry = Entry::new(raw);
            prop_assert!(entry.phys(level).as_u64() < 1 << 52);
            prop_assert!(!(entry.is_leaf(level) && entry.is_table(level)));
            prop_assert_eq!(entry.flags(level) & PteFlags::NX == PteFlags::NX, raw >> 63 == 1);
        }
    }
}
