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
