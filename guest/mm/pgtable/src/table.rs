//! The tree: making, sharing, reading.

use core::convert::Infallible;

use mm_core::{PAGE_SIZE, Pfn, PhysAddr, VirtAddr};

use crate::walk::{Slot, Step, Visitor, walk};
use crate::{Entry, LeafSize, Levels, MapError, Prot, PteFlags, TABLE_ENTRIES, TableMem};

/// A tree of page tables: what CR3 and CR4.LA57 say. It owns nothing; the tables belong to the
/// [`TableMem`] that is handed to every operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageTable {
    /// Frame of the top-level table.
    pub root: Pfn,
    /// Depth.
    pub levels: Levels,
}

/// A translated address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Where the address itself is, offset inside the leaf included.
    pub phys: PhysAddr,
    /// Level of the leaf: 1, 2 or 3.
    pub level: u8,
    /// Flags of the leaf.
    pub flags: PteFlags,
    /// What the leaf and the tables above it together allow.
    pub effective: Prot,
}

impl Mapping {
    /// Bytes of the leaf.
    pub const fn size(self) -> u64 {
        Levels::page_size(self.level)
    }
}

/// A leaf of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// First address that it maps.
    pub va: VirtAddr,
    /// Its level: 1, 2 or 3.
    pub level: u8,
    /// The entry.
    pub entry: Entry,
    /// What the leaf and the tables above it together allow.
    pub effective: Prot,
}

impl PageTable {
    /// A tree with an empty root.
    pub fn new<M: TableMem>(mem: &mut M, levels: Levels) -> Result<PageTable, MapError> {
        let root = mem.alloc_table().ok_or(MapError::NoMemory { va: VirtAddr::new(0) })?;
        Ok(PageTable { root, levels })
    }

    /// Copies the top-level entries of `kernel`'s upper half into this root, whose own are empty
    /// (Linux: `pgd_ctor`). Later changes of those entries do not follow: see
    /// [`PageTable::populate_top`].
    pub fn share_upper_half<M: TableMem>(self, mem: &M, kernel: PageTable) {
        mem.copy(kernel.root, self.root, TABLE_ENTRIES / 2..TABLE_ENTRIES);
    }

    /// Gives back the root of a tree whose lower half is unmapped and that no CPU uses. The upper
    /// half is taken to be shared, and stays.
    pub fn free_root<M: TableMem>(self, mem: &mut M) -> Result<(), MapError> {
        let top = self.levels.count();
        let index = mem.skip_empty(self.root, 0, TABLE_ENTRIES / 2);
        if index < TABLE_ENTRIES / 2 {
            return Err(MapError::InUse { va: VirtAddr::new(index as u64 * Levels::page_size(top)) });
        }
        mem.fill(self.root, TABLE_ENTRIES / 2, TABLE_ENTRIES / 2, 0, 0);
        mem.free_table(self.root);
        Ok(())
    }

    /// Where `va` is; `None` if it is not mapped or not canonical.
    pub fn translate<M: TableMem>(self, mem: &M, va: VirtAddr) -> Option<Mapping> {
        self.walk(mem, va, |_, _, _, _| {})
    }

    /// Like [`PageTable::translate`], and calls `f(level, table, index, entry)` for every entry
    /// that the CPU would read, top down, the one that ends the walk included.
    pub fn walk<M: TableMem>(
        self,
        mem: &M,
        va: VirtAddr,
        f: impl FnMut(u8, Pfn, usize, Entry),
    ) -> Option<Mapping> {
        if !self.levels.is_canonical(va) {
            return None;
        }
        // Faults and copies of user memory begin here: straight down, without the ceremony of a visit.
        let mut f = f;
        let (mut table, mut level, mut above) =
            (self.root, self.levels.count(), Entry::table(self.root, true));
        loop {
            let index = Levels::index(va, level);
            let entry = Entry::new(mem.read(table, index));
            f(level, table, index, entry);
            if entry.is_table(level) {
                (table, level, above) = (entry.table_pfn(), level - 1, above.and(entry));
                continue;
            }
            if !entry.is_leaf(level) {
                return None;
            }
            let offset = va.as_u64() & (Levels::page_size(level) - 1);
            let flags = entry.flags(level);
            return Some(Mapping {
                phys: PhysAddr::new(entry.phys(level).as_u64() | offset),
                level,
                flags,
                effective: Prot::from_flags(flags).below(above),
            });
        }
    }

    /// Calls `f` for every leaf that maps part of `va..va + len`, ascending. Entries that are
    /// not present are skipped.
    pub fn for_each_leaf<M: TableMem>(
        self,
        mem: &M,
        va: VirtAddr,
        len: u64,
        f: impl FnMut(Leaf),
    ) -> Result<(), MapError> {
        if let Some(last) = self.check_range(va, PhysAddr::new(0), len)? {
            let Ok(()) = walk(&mut Leaves { mem, f }, self.root, self.levels, va.as_u64(), last);
        }
        Ok(())
    }

    /// Calls `f(level, table)` for every table below the root that covers part of
    /// `va..va + len`, parents first.
    pub fn for_each_table<M: TableMem>(
        self,
        mem: &M,
        va: VirtAddr,
        len: u64,
        f: impl FnMut(u8, Pfn),
    ) -> Result<(), MapError> {
        if let Some(last) = self.check_range(va, PhysAddr::new(0), len)? {
            let Ok(()) = walk(&mut Tables { mem, f }, self.root, self.levels, va.as_u64(), last);
        }
        Ok(())
    }

    /// The last address of a range that every operation accepts; `None` if it is empty.
    pub(crate) fn check_range(self, va: VirtAddr, pa: PhysAddr, len: u64) -> Result<Option<u64>, MapError> {
        if !va.is_aligned(PAGE_SIZE) || !pa.is_aligned(PAGE_SIZE) || !len.is_multiple_of(PAGE_SIZE) {
            return Err(MapError::Misaligned { va, pa, len });
        }
        let half = self.levels.half_len();
        // Room up to the end of the half. Both halves end at a multiple of their length.
        let room = half - (va.as_u64() & (half - 1));
        if !self.levels.is_canonical(va) || len > room {
            return Err(MapError::NonCanonical { va, len });
        }
        Ok(if len == 0 { None } else { Some(va.as_u64() + (len - 1)) })
    }
}

/// Lists leaves.
struct Leaves<'m, M, F> {
    mem: &'m M,
    f: F,
}

impl<M: TableMem, F: FnMut(Leaf)> Visitor for Leaves<'_, M, F> {
    type Error = Infallible;
    const EMPTY: bool = false;

    fn read(&self, table: Pfn, index: usize) -> Entry {
        Entry::new(self.mem.read(table, index))
    }

    fn entry(&mut self, slot: &Slot) -> Result<Step, Infallible> {
        let Slot { entry, level, .. } = *slot;
        if entry.is_table(level) {
            return Ok(Step::Enter(entry.table_pfn()));
        }
        if entry.is_leaf(level) {
            let effective = slot.effective(entry.flags(level));
            (self.f)(Leaf { va: VirtAddr::new(slot.start), level, entry, effective });
        }
        Ok(Step::Next(1))
    }
}

/// Lists tables.
struct Tables<'m, M, F> {
    mem: &'m M,
    f: F,
}

impl<M: TableMem, F: FnMut(u8, Pfn)> Visitor for Tables<'_, M, F> {
    type Error = Infallible;
    const EMPTY: bool = false;

    fn read(&self, table: Pfn, index: usize) -> Entry {
        Entry::new(self.mem.read(table, index))
    }

    fn entry(&mut self, slot: &Slot) -> Result<Step, Infallible> {
        let Slot { entry, level, .. } = *slot;
        if !entry.is_table(level) {
            return Ok(Step::Next(1));
        }
        (self.f)(level - 1, entry.table_pfn());
        // Tables of level 1 hold no tables.
        Ok(if level > 2 { Step::Enter(entry.table_pfn()) } else { Step::Next(1) })
    }
}

impl Slot {
    /// What a leaf with `flags` in this slot allows.
    fn effective(&self, flags: PteFlags) -> Prot {
        Prot::from_flags(flags).below(self.above)
    }
}

const _: () = assert!(LeafSize::Size1G.level() < Levels::Four.count());
