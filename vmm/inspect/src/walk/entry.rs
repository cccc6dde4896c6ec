//! Page-table entries as the hardware reads them (SDM 3A 4.5, APM 2 5.3).

use std::fmt;

use serde::{Serialize, Serializer};

/// Depth of paging.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Levels {
    /// 48-bit virtual addresses.
    Four = 4,
    /// 57-bit virtual addresses (CR4.LA57).
    Five = 5,
}

impl Levels {
    /// The depth with this number of levels; `None` but for 4 and 5.
    pub const fn new(levels: u32) -> Option<Levels> {
        match levels {
            4 => Some(Levels::Four),
            5 => Some(Levels::Five),
            _ => None,
        }
    }

    /// 4 or 5.
    pub const fn count(self) -> u32 {
        self as u32
    }

    /// Bits of a virtual address that are translated: 48 or 57.
    pub const fn va_bits(self) -> u32 {
        12 + 9 * self.count()
    }

    /// Whether all bits above the translated ones copy the topmost translated bit.
    pub const fn is_canonical(self, va: u64) -> bool {
        self.canonical(va) == va
    }

    /// `va` with the untranslated bits made copies of the topmost translated bit.
    pub const fn canonical(self, va: u64) -> u64 {
        let unused = 64 - self.va_bits();
        ((va << unused).cast_signed() >> unused).cast_unsigned()
    }

    /// Linux's name of the table at `level` (1 is the lowest). With four levels p4d is folded into
    /// pgd, as in Linux.
    pub const fn name(self, level: u32) -> &'static str {
        match (level, self) {
            (1, _) => "pte",
            (2, _) => "pmd",
            (3, _) => "pud",
            (4, Levels::Five) => "p4d",
            _ => "pgd",
        }
    }
}

impl Serialize for Levels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.count())
    }
}

/// Size of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// 4 KiB, by a pte.
    Size4K,
    /// 2 MiB, by a pmd.
    Size2M,
    /// 1 GiB, by a pud.
    Size1G,
}

impl PageSize {
    /// All sizes, smallest first.
    pub const ALL: [PageSize; 3] = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];

    /// Bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }

    /// log2 of the bytes.
    pub const fn shift(self) -> u32 {
        match self {
            PageSize::Size4K => 12,
            PageSize::Size2M => 21,
            PageSize::Size1G => 30,
        }
    }

    /// Level of the entry that maps a page of this size; 1 is the lowest.
    pub const fn level(self) -> u32 {
        match self {
            PageSize::Size4K => 1,
            PageSize::Size2M => 2,
            PageSize::Size1G => 3,
        }
    }

    /// The size mapped by a leaf at `level` (1..=3).
    pub(crate) const fn at_level(level: u32) -> PageSize {
        match level {
            1 => PageSize::Size4K,
            2 => PageSize::Size2M,
            _ => PageSize::Size1G,
        }
    }

    /// "4K", "2M" or "1G".
    pub const fn name(self) -> &'static str {
        match self {
            PageSize::Size4K => "4K",
            PageSize::Size2M => "2M",
            PageSize::Size1G => "1G",
        }
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for PageSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.bytes())
    }
}

/// A page-table entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Entry(u64);

impl Entry {
    /// The entry is used by the hardware.
    pub const PRESENT: u64 = 1 << 0;
    /// Writes are allowed.
    pub const WRITE: u64 = 1 << 1;
    /// Ring 3 has access.
    pub const USER: u64 = 1 << 2;
    /// Cache selector, bit 0.
    pub const PWT: u64 = 1 << 3;
    /// Cache selector, bit 1.
    pub const PCD: u64 = 1 << 4;
    /// The hardware used the entry.
    pub const ACCESSED: u64 = 1 << 5;
    /// The hardware wrote through the leaf.
    pub const DIRTY: u64 = 1 << 6;
    /// The entry is a leaf (pmd, pud); cache selector bit 2 in a pte.
    pub const PS: u64 = 1 << 7;
    /// The leaf survives a change of CR3.
    pub const GLOBAL: u64 = 1 << 8;
    /// Cache selector, bit 2, of a leaf above pte.
    pub const PAT_LARGE: u64 = 1 << 12;
    /// No instruction fetches.
    pub const NX: u64 = 1 << 63;
    /// Address bits, the reserved ones included.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

    /// The entry with this number.
    pub const fn new(raw: u64) -> Entry {
        Entry(raw)
    }

    /// The number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Whether any of `bits` is set.
    pub const fn has(self, bits: u64) -> bool {
        self.0 & bits != 0
    }

    /// Bit 0.
    pub const fn is_present(self) -> bool {
        self.has(Entry::PRESENT)
    }

    /// Whether a present entry at `level` ends the walk.
    pub const fn is_leaf(self, level: u32) -> bool {
        level == 1 || (level <= 3 && self.has(Entry::PS))
    }

    /// Guest-physical address of the next table.
    pub const fn table(self) -> u64 {
        self.0 & Entry::ADDRESS
    }

    /// Guest-physical address of the page that a leaf of `size` maps.
    pub const fn page(self, size: PageSize) -> u64 {
        self.0 & Entry::ADDRESS & !(size.bytes() - 1)
    }

    /// Index into the PAT register: PWT, PCD and PAT of a leaf of `size`.
    pub const fn pat_index(self, size: PageSize) -> u8 {
        let high = match size {
            PageSize::Size4K => Entry::PS,
            PageSize::Size2M | PageSize::Size1G => Entry::PAT_LARGE,
        };
        self.has(Entry::PWT) as u8 | (self.has(Entry::PCD) as u8) << 1 | (self.has(high) as u8) << 2
    }

    /// The set flags in words, as for an entry at `level`, e.g. `present write accessed`.
    pub fn describe(self, level: u32) -> String {
        if !self.is_present() {
            return match memvisor_abi::pte_swap_slot(self.0).filter(|_| level == 1) {
                _ if self.0 == 0 => "empty".into(),
                Some((area, slot)) => format!("in swap: slot {slot:#x} of area {area}"),
                None => "not present, bits set".into(),
            };
        }
        let leaf = self.is_leaf(level);
        let pat = if level == 1 { Entry::PS } else { Entry::PAT_LARGE };
        [
            (true, Entry::PRESENT, "present"),
            (true, Entry::WRITE, "write"),
            (true, Entry::USER, "user"),
            (true, Entry::PWT, "pwt"),
            (true, Entry::PCD, "pcd"),
            (true, Entry::ACCESSED, "accessed"),
            (leaf, Entry::DIRTY, "dirty"),
            (level > 1, Entry::PS, "large"),
            (leaf, pat, "pat"),
            (leaf, Entry::GLOBAL, "global"),
            (true, Entry::NX, "nx"),
        ]
        .iter()
        .filter(|(defined, bit, _)| *defined && self.has(*bit))
        .map(|(_, _, word)| *word)
        .collect::<Vec<_>>()
        .join(" ")
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        crate::hex(&self.0, serializer)
    }
}

/// What the entries of a walk together allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Access {
    /// Every entry allows writes.
    pub write: bool,
    /// Every entry allows ring 3.
    pub user: bool,
    /// No entry forbids instruction fetches.
    pub execute: bool,
}

impl Access {
    /// From the conjunction and the disjunction of all entries of a walk.
    pub(crate) const fn of(all: u64, any: u64) -> Access {
        Access { write: all & Entry::WRITE != 0, user: all & Entry::USER != 0, execute: any & Entry::NX == 0 }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = |on, letter| if on { letter } else { '-' };
        write!(
            f,
            "r{}{} {}",
            flag(self.write, 'w'),
            flag(self.execute, 'x'),
            if self.user { "user" } else { "kernel" }
        )
    }
}
