//! The walk itself: the same steps for 4 and 5 levels, for one address and for millions.

use serde::Serialize;
use thiserror::Error;

use super::{Access, Entry, Levels, Outcome, PageSize, Step, Translation};
use crate::{CpuRegisters, MemorySource};

/// Translates guest-virtual addresses as the hardware would.
///
/// Differences to hardware: none of the caches, and no access rights are demanded (the outcome
/// says which ones the tables grant). Bit 8 of a non-leaf entry, which some AMD processors reserve in
/// the two top levels, is ignored as on Intel.
#[derive(Clone, Copy, Debug)]
pub struct Walker {
    root: u64,
    levels: Levels,
    nx: bool,
    gib_pages: bool,
    phys_bits: u32,
    /// Bits that must be 0 in a present non-leaf entry, indexed by level.
    reserved_table: [u64; 6],
    /// The same in a leaf.
    reserved_leaf: [u64; 6],
}

/// A successful translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Mapped {
    /// Guest-physical address of the byte. Need not be RAM: devices are mapped too.
    #[serde(serialize_with = "crate::hex")]
    pub gpa: u64,
    /// Size of the mapping.
    pub page_size: PageSize,
    /// What all entries together allow.
    pub access: Access,
    /// The last entry.
    pub entry: Entry,
}

/// Why an address has no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error, Serialize)]
#[serde(tag = "fault", rename_all = "snake_case")]
pub enum Fault {
    /// The address is not canonical at this depth (#GP, no walk happens).
    #[error("the address is not canonical")]
    NotCanonical,
    /// An entry is not present (#PF).
    #[error("level {level} entry {entry:?} is not present")]
    NotPresent {
        /// 1 is pte.
        level: u32,
        /// The entry.
        entry: Entry,
    },
    /// A present entry has bits set that must be 0 (#PF with RSVD).
    #[error("level {level} entry {entry:?} sets reserved bits {bits:#x}")]
    ReservedBits {
        /// 1 is pte.
        level: u32,
        /// The entry.
        entry: Entry,
        /// The offending bits.
        #[serde(serialize_with = "crate::hex")]
        bits: u64,
    },
    /// A table is not in RAM, so there is nothing to read.
    #[error("level {level} table at guest-physical {gpa:#x} is not RAM")]
    TableNotRam {
        /// Level of the table's entries.
        level: u32,
        /// Address of the table.
        #[serde(serialize_with = "crate::hex")]
        gpa: u64,
    },
}

impl Fault {
    /// What is wrong with an entry that is not present or sets reserved bits.
    #[cold]
    const fn of(level: u32, entry: Entry, bits: u64) -> Fault {
        if entry.is_present() {
            Fault::ReservedBits { level, entry, bits }
        } else {
            Fault::NotPresent { level, entry }
        }
    }
}

/// How far a walk has come.
struct Path {
    /// The table to read next.
    table: u64,
    /// Bits that all entries so far set.
    all: u64,
    /// Bits that any entry so far sets.
    any: u64,
}

impl Path {
    #[inline(always)]
    const fn end(&self, entry: Entry, va: u64, page_size: PageSize) -> Mapped {
        let gpa = entry.page(page_size) | (va & (page_size.bytes() - 1));
        Mapped { gpa, page_size, access: Access::of(self.all, self.any), entry }
    }
}

impl Walker {
    /// A walker from the table that `cr3` names (its flag, PCID and LAM bits are ignored), for a
    /// CPU with NX, 1 GiB pages and 52 physical address bits.
    pub const fn new(cr3: u64, levels: Levels) -> Walker {
        Walker {
            root: cr3 & Entry::ADDRESS,
            levels,
            nx: true,
            gib_pages: true,
            phys_bits: 52,
            reserved_table: [0; 6],
            reserved_leaf: [0; 6],
        }
        .derive_masks()
    }

    /// A walker for a CPU's registers; `None` outside long mode with paging.
    pub fn from_registers(registers: &CpuRegisters) -> Option<Walker> {
        let levels = Levels::new(registers.levels()?)?;
        Some(Walker::new(registers.cr3, levels).with_nx(registers.efer & CpuRegisters::EFER_NXE != 0))
    }

    /// For a CPU with this many physical address bits (CPUID 0x80000008), clamped to 32..=52.
    #[must_use]
    pub const fn with_phys_bits(mut self, bits: u32) -> Walker {
        self.phys_bits = if bits < 32 {
            32
        } else if bits > 52 {
            52
        } else {
            bits
        };
        self.derive_masks()
    }

    /// With EFER.NXE as given; without it the NX bit is reserved.
    #[must_use]
    pub const fn with_nx(mut self, nx: bool) -> Walker {
        self.nx = nx;
        self.derive_masks()
    }

    /// For a CPU with or without 1 GiB pages; without them PS in a pud is reserved.
    #[must_use]
    pub const fn with_gib_pages(mut self, gib_pages: bool) -> Walker {
        self.gib_pages = gib_pages;
        self.derive_masks()
    }

    /// Guest-physical address of the top-level table.
    pub const fn root(&self) -> u64 {
        self.root
    }

    /// Depth.
    pub const fn levels(&self) -> Levels {
        self.levels
    }

    /// The bits that must be 0 in the present `entry` at `level` and are not.
    #[inline]
    pub const fn reserved_bits(&self, level: u32, entry: Entry) -> u64 {
        let masks = if entry.is_leaf(level) { &self.reserved_leaf } else { &self.reserved_table };
        // The mask keeps the index in range without a branch; levels are 1..=5.
        entry.as_u64() & if level < 6 { masks[level as usize] } else { 0 }
    }

    /// Translates one address without allocating.
    ///
    /// # Errors
    /// [`Fault`] names the level at which the walk ended.
    #[inline]
    pub fn lookup<S: MemorySource + ?Sized>(&self, source: &S, va: u64) -> Result<Mapped, Fault> {
        self.descend(source, va, |_, _, _, _| ())
    }

    /// Translates one address and keeps every step.
    pub fn translate<S: MemorySource + ?Sized>(&self, source: &S, va: u64) -> Translation {
        let mut steps = Vec::with_capacity(5);
        let result = self.descend(source, va, |level, table_gpa, index, entry| {
            let leaf = entry.is_leaf(level);
            steps.push(Step {
                level,
                level_name: self.levels.name(level),
                table_gpa,
                index,
                entry_gpa: table_gpa + 8 * u64::from(index),
                entry,
                flags: entry.describe(level),
                phys: entry
                    .is_present()
                    .then(|| if leaf { entry.page(PageSize::at_level(level)) } else { entry.table() }),
            });
        });
        Translation { va, levels: self.levels, root: self.root, steps, outcome: Outcome::from(result) }
    }

    #[inline(always)]
    fn descend<S, F>(&self, source: &S, va: u64, mut step: F) -> Result<Mapped, Fault>
    where
        S: MemorySource + ?Sized,
        F: FnMut(u32, u64, u32, Entry),
    {
        if !self.levels.is_canonical(va) {
            return Err(Fault::NotCanonical);
        }
        // A step a level, and not a loop, so that shifts and masks are constants: lookups of several
        // addresses then overlap in the processor, which is most of the speed of looking up many.
        let mut path = Path { table: self.root, all: !0, any: 0 };
        if self.levels == Levels::Five {
            let entry = self.enter::<5, S, F>(source, va, &mut path, &mut step)?;
            path.table = entry.table();
        }
        let entry = self.enter::<4, S, F>(source, va, &mut path, &mut step)?;
        path.table = entry.table();
        let entry = self.enter::<3, S, F>(source, va, &mut path, &mut step)?;
        if entry.is_leaf(3) {
            return Ok(path.end(entry, va, PageSize::Size1G));
        }
        path.table = entry.table();
        let entry = self.enter::<2, S, F>(source, va, &mut path, &mut step)?;
        if entry.is_leaf(2) {
            return Ok(path.end(entry, va, PageSize::Size2M));
        }
        path.table = entry.table();
        let entry = self.enter::<1, S, F>(source, va, &mut path, &mut step)?;
        Ok(path.end(entry, va, PageSize::Size4K))
    }

    /// Reads the entry for `va` in the table at `path`, and checks that the walk can go on through it.
    #[inline(always)]
    fn enter<const LEVEL: u32, S, F>(
        &self,
        source: &S,
        va: u64,
        path: &mut Path,
        step: &mut F,
    ) -> Result<Entry, Fault>
    where
        S: MemorySource + ?Sized,
        F: FnMut(u32, u64, u32, Entry),
    {
        let index = (va >> (3 + 9 * LEVEL)) & 511;
        let Ok(raw) = source.read_u64(path.table + index * 8) else {
            return Err(Fault::TableNotRam { level: LEVEL, gpa: path.table });
        };
        let entry = Entry::new(raw);
        step(LEVEL, path.table, index as u32, entry);
        let reserved = self.reserved_bits(LEVEL, entry);
        if !entry.is_present() || reserved != 0 {
            return Err(Fault::of(LEVEL, entry, reserved));
        }
        path.all &= raw;
        path.any |= raw;
        Ok(entry)
    }

    const fn derive_masks(mut self) -> Walker {
        let high = Entry::ADDRESS & !((1 << self.phys_bits) - 1);
        let always = if self.nx { high } else { high | Entry::NX };
        self.reserved_table = [always, always, always, always, always | Entry::PS, always | Entry::PS];
        // SDM 3A tables 4-16 and 4-18: below the page's size only the PAT bit may be set.
        let pud = always | 0x3fff_e000 | if self.gib_pages { 0 } else { Entry::PS };
        let pmd = always | 0x001f_e000;
        self.reserved_leaf = [always, always, pmd, pud, always, always];
        self
    }
}
