//! Entries of the lowest level, one by one, and what software keeps in those that are not present.
//!
//! An entry that is not present and not empty keeps its address bits and one of three marks: [`PROTNONE`], a page in a VMA
//! without access (Linux: `_PAGE_PROTNONE`), or [`MIGRATION`], a page that is being moved (Linux: `SWP_MIGRATION_*`), with
//! WRITE as it was; or it names a slot of a swap area and no frame ([`SwapEntry`]). An entry with [`SPECIAL`], present or not, maps a frame that a driver chose and that nobody counts.

use mm_core::{PAGE_SIZE, Pfn, VirtAddr};
use mm_pgtable::{Entry, Levels, PageTable, PteFlags, TABLE_ENTRIES, TableMem};
use mm_swap::SwapEntry;

use crate::Mm;

const PROTNONE: u64 = PteFlags::SOFT1.bits();
const MIGRATION: u64 = PteFlags::SOFT2.bits();
const SPECIAL: u64 = PteFlags::SOFT3.bits();
const _: () = assert!(
    PROTNONE == memvisor_abi::PTE_PROTNONE
        && MIGRATION == memvisor_abi::PTE_MIGRATION
        && SPECIAL == memvisor_abi::PTE_SPECIAL
);

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pte {
    Empty,
    /// Mapped: the CPU uses it, or would if the VMA allowed any access.
    Page(Pfn),
    /// The page is being moved from this frame.
    Migration(Pfn),
    /// Mapped, and nobody counts it: a device's (Linux: `pte_special`).
    Special(Pfn),
    /// The page is in this slot of a swap area (Linux: `is_swap_pte`).
    Swap(SwapEntry),
}

pub(crate) fn decode(entry: Entry) -> Pte {
    let pfn = entry.table_pfn();
    if entry.is_present() || entry.as_u64() & PROTNONE != 0 {
        if entry.as_u64() & SPECIAL == 0 { Pte::Page(pfn) } else { Pte::Special(pfn) }
    } else if entry.as_u64() & MIGRATION != 0 {
        Pte::Migration(pfn)
    } else {
        SwapEntry::of_pte(entry.as_u64()).map_or(Pte::Empty, Pte::Swap)
    }
}

/// The entry of a page with these flags; `accessible` or not.
pub(crate) fn page(pfn: Pfn, flags: PteFlags, accessible: bool) -> Entry {
    let entry = Entry::leaf(1, pfn.phys(), flags);
    if accessible { entry } else { Entry::new(entry.as_u64() & !PteFlags::PRESENT.bits() | PROTNONE) }
}

/// The entry of a frame that nobody counts (Linux: `pte_mkspecial`).
pub(crate) fn special(pfn: Pfn, flags: PteFlags, accessible: bool) -> Entry {
    Entry::new(page(pfn, flags, accessible).as_u64() | SPECIAL)
}

/// The migration entry that takes the place of `old`.
pub(crate) fn migration(old: Entry) -> Entry {
    Entry::new(old.as_u64() & !(PteFlags::PRESENT.bits() | PROTNONE) | MIGRATION)
}

/// Entries of one table under a range.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub table: Pfn,
    pub index: usize,
    pub count: usize,
    /// Address of the first.
    pub va: u64,
}

impl Run {
    /// Index and address of each entry that is not empty when it is its turn.
    pub(crate) fn used<M: TableMem>(self, tables: &M) -> impl Iterator<Item = (usize, u64)> {
        let end = self.index + self.count;
        let mut next = self.index;
        core::iter::from_fn(move || {
            let index = tables.skip_empty(self.table, next, end);
            next = index + 1;
            (index < end).then(|| (index, self.va + (index - self.index) as u64 * PAGE_SIZE))
        })
    }

    /// Index and address of each entry.
    pub(crate) fn entries(self) -> impl Iterator<Item = (usize, u64)> {
        (0..self.count).map(move |i| (self.index + i, self.va + i as u64 * PAGE_SIZE))
    }
}

/// The table and index of the lowest-level entry of `va`; otherwise the level of the entry that has no table.
///
/// Every fault and every batch of entries begins here, so it goes down by itself and not by [`PageTable::walk`], which visits and reports.
#[inline]
pub(crate) fn locate<M: TableMem>(tables: &M, pt: PageTable, va: u64) -> Result<(Pfn, usize), u8> {
    let va = VirtAddr::new(va);
    let (mut table, mut level) = (pt.root, pt.levels.count());
    while level > 1 {
        let entry = Entry::new(tables.read(table, Levels::index(va, level)));
        if !entry.is_table(level) {
            return Err(level);
        }
        (table, level) = (entry.table_pfn(), level - 1);
    }
    Ok((table, Levels::index(va, 1)))
}

/// The entry of `va`, whose tables are made if need be; `None` without memory. What is made on the way stays.
#[inline(always)]
pub(crate) fn make<M: TableMem>(tables: &mut M, mm: &Mm, va: u64) -> Option<(Pfn, usize)> {
    let pt = mm.page_table();
    let va = VirtAddr::new(va);
    let (mut table, mut level) = (pt.root, pt.levels.count());
    while level > 1 {
        let index = Levels::index(va, level);
        let entry = Entry::new(tables.read(table, index));
        let child = if entry.is_table(level) {
            entry.table_pfn()
        } else if entry.is_empty() {
            let child = tables.alloc_table()?;
            mm.add_tables(1);
            tables.write(table, index, Entry::table(child, true).as_u64());
            child
        } else {
            // A huge leaf, which nobody makes in user space yet.
            return None;
        };
        (table, level) = (child, level - 1);
    }
    Some((table, Levels::index(va, 1)))
}

/// The first run of entries in `va..end` that lie in one table, passing over what has no table.
pub(crate) fn next_run<M: TableMem>(tables: &M, pt: PageTable, mut va: u64, end: u64) -> Option<Run> {
    'root: while va < end {
        let (mut table, mut level) = (pt.root, pt.levels.count());
        while level > 1 {
            let mut index = Levels::index(VirtAddr::new(va), level);
            // Holes are passed over in the table that they are in.
            let entry = loop {
                let entry = Entry::new(tables.read(table, index));
                if entry.is_table(level) {
                    break entry;
                }
                va = (va | (Levels::page_size(level) - 1)).checked_add(1)?;
                index += 1;
                if va >= end || index == TABLE_ENTRIES {
                    continue 'root;
                }
            };
            (table, level) = (entry.table_pfn(), level - 1);
        }
        let index = Levels::index(VirtAddr::new(va), 1);
        let left = usize::try_from((end - va) / PAGE_SIZE).unwrap_or(TABLE_ENTRIES);
        return Some(Run { table, index, count: (TABLE_ENTRIES - index).min(left), va });
    }
    None
}

/// Calls `f` for every run of `start..end`.
pub(crate) fn for_each_run<M: TableMem>(
    tables: &mut M,
    pt: PageTable,
    start: u64,
    end: u64,
    mut f: impl FnMut(&mut M, Run),
) {
    let mut va = start;
    while let Some(run) = next_run(tables, pt, va, end) {
        f(tables, run);
        va = run.va + run.count as u64 * PAGE_SIZE;
    }
}

/// The entry of `va`; empty where there is no table.
pub(crate) fn read<M: TableMem>(tables: &M, pt: PageTable, va: u64) -> Entry {
    locate(tables, pt, va).map_or(Entry::EMPTY, |(table, index)| Entry::new(tables.read(table, index)))
}

/// Replaces an entry by what `f` makes of it and returns what it was. The CPU may set ACCESSED and DIRTY until the
/// exchange; they are not lost.
pub(crate) fn update<M: TableMem>(tables: &M, table: Pfn, index: usize, f: impl Fn(Entry) -> Entry) -> Entry {
    let mut old = Entry::new(tables.read(table, index));
    loop {
        let new = f(old);
        if new == old {
            return old;
        }
        match tables.compare_exchange(table, index, old.as_u64(), new.as_u64()) {
            Ok(()) => return old,
            Err(now) => old = Entry::new(now),
        }
    }
}
