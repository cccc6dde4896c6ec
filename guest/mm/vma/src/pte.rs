//! Entries of the lowest level, one by one, and what software keeps in those that are not present.
//!
//! An entry that is not present and not empty keeps its address bits and one of two marks: [`PROTNONE`], a page in a VMA
//! without access (Linux: `_PAGE_PROTNONE`), or [`MIGRATION`], a page that is being moved (Linux: `SWP_MIGRATION_*`), with
//! WRITE as it was. An entry with [`SPECIAL`], present or not, maps a frame that a driver chose and that nobody counts.

use mm_core::{PAGE_SIZE, Pfn, VirtAddr};
use mm_pgtable::{Entry, Levels, PageTable, PteFlags, TABLE_ENTRIES, TableMem};

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
}

pub(crate) fn decode(entry: Entry) -> Pte {
    let pfn = entry.table_pfn();
    if entry.is_present() || entry.as_u64() & PROTNONE != 0 {
        if entry.as_u64() & SPECIAL == 0 { Pte::Page(pfn) } else { Pte::Special(pfn) }
    } else if entry.as_u64() & MIGRATION != 0 {
        Pte::Migration(pfn)
    } else {
        Pte::Empty
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
    /// Index and address of each entry.
    pub(crate) fn entries(self) -> impl Iterator<Item = (usize, u64)> {
        (0..self.count).map(move |i| (self.index + i, self.va + i as u64 * PAGE_SIZE))
    }
}

/// The table and index of the lowest-level entry of `va`; otherwise the level of the entry that has no table.
pub(crate) fn locate<M: TableMem>(tables: &M, pt: PageTable, va: u64) -> Result<(Pfn, usize), u8> {
    let mut found = Err(pt.levels.count());
    pt.walk(tables, VirtAddr::new(va), |level, table, index, _| {
        found = if level == 1 { Ok((table, index)) } else { Err(level) };
    });
    found
}

/// The entry of `va`, whose tables are made if need be; `None` without memory. What is made on the way stays.
pub(crate) fn make<M: TableMem>(tables: &mut M, mm: &Mm, va: u64) -> Option<(Pfn, usize)> {
    let pt = mm.page_table();
    loop {
        let mut last = None;
        pt.walk(tables, VirtAddr::new(va), |level, table, index, entry| {
            last = Some((level, table, index, entry));
        });
        let (level, table, index, entry) = last?;
        if level == 1 {
            return Some((table, index));
        }
        if !entry.is_empty() {
            // A huge leaf, which nobody makes in user space yet.
            return None;
        }
        let child = tables.alloc_table()?;
        mm.add_tables(1);
        tables.write(table, index, Entry::table(child, true).as_u64());
    }
}

/// The first run of entries in `va..end` that lie in one table, passing over what has no table.
pub(crate) fn next_run<M: TableMem>(tables: &M, pt: PageTable, mut va: u64, end: u64) -> Option<Run> {
    while va < end {
        match locate(tables, pt, va) {
            Ok((table, index)) => {
                let left = (end - va) / PAGE_SIZE;
                let count = (TABLE_ENTRIES - index).min(usize::try_from(left).unwrap_or(TABLE_ENTRIES));
                return Some(Run { table, index, count, va });
            }
            Err(level) => va = (va | (Levels::page_size(level) - 1)).checked_add(1)?,
        }
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
