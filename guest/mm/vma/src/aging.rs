//! Which pages were used, by the accessed bits of page tables: what the ageing of generations walks (Linux: mm/vmscan.c, `walk_mm`,
//! `lru_gen_look_around`).
//!
//! An entry's bit is cleared without a flush, as [`crate::folio_referenced`] does. A page of which nobody learns otherwise, because it is on no
//! list at that moment, becomes REFERENCED while its entry is locked, so that who has it in hands sees it.

use mm_core::{MemMap, PAGE_SIZE, PageFlags, Pfn, VirtAddr, is_user_page};
use mm_pgtable::{Entry, Levels, PteFlags, TableMem};

use crate::pte::{self, Pte};
use crate::reclaim::{FolioReferenced, for_each_mapped, old_entry};
use crate::{Kernel, Mm, VmFlags, Vma};

/// Pages that are told of at once, and entries around a page that are looked at (Linux: `MIN_LRU_BATCH`).
pub const YOUNG_BATCH: usize = 64;

/// Pages of a node that were used.
#[derive(Clone, Copy, Debug)]
pub struct Young {
    node: u32,
    pfns: [Pfn; YOUNG_BATCH],
    len: usize,
}

impl Young {
    /// None yet, of that node.
    pub const fn new(node: u32) -> Young {
        Young { node, pfns: [Pfn::new(0); YOUNG_BATCH], len: 0 }
    }

    /// The pages.
    pub fn pfns(&self) -> &[Pfn] {
        self.pfns.get(..self.len).unwrap_or(&[])
    }

    fn is_full(&self) -> bool {
        self.len == YOUNG_BATCH
    }

    fn push(&mut self, pfn: Pfn) {
        if let Some(place) = self.pfns.get_mut(self.len) {
            *place = pfn;
            self.len += 1;
        }
    }
}

/// Clears the mark of an entry that was used, if its page is one of programs or files and of the node, and notes the page. The tables are locked,
/// and there is room.
fn test_and_clear_young<K: Kernel>(
    k: &K,
    tables: &K::Tables,
    (table, index): (Pfn, usize),
    young: &mut Young,
) {
    let entry = Entry::new(tables.read(table, index));
    let Pte::Page(pfn) = pte::decode(entry) else { return };
    if !entry.has(PteFlags::ACCESSED) {
        return;
    }
    let Some(page) = MemMap::page(k, pfn).filter(|page| is_user_page(page) && page.node() == young.node)
    else {
        return;
    };
    let old = pte::update(tables, table, index, |entry| old_entry(entry, pfn));
    if pte::decode(old) != Pte::Page(pfn) || k.is_zero_page(pfn) {
        return;
    }
    if !page.has_any(PageFlags::LRU | PageFlags::LRU_ADD) {
        page.insert(PageFlags::REFERENCED);
    }
    young.push(pfn);
}

/// Looks through an address space for pages of a node that were used, and forgets it; `used` gets them batch by batch, without locks but
/// mmap_lock. False if somebody changes it now (Linux: `walk_mm`).
pub fn walk_young<K: Kernel>(k: &K, mm: &Mm, node: u32, mut used: impl FnMut(&[Pfn])) -> bool {
    if !k.mmap_read_trylock(mm) {
        return false;
    }
    for (_, vma) in mm.vmas(k) {
        // What cannot go, and what is used in an order that says nothing (Linux: `should_skip_vma`).
        let skipped =
            VmFlags::LOCKED | VmFlags::PFNMAP | VmFlags::HUGETLB | VmFlags::SEQ_READ | VmFlags::RAND_READ;
        if vma.flags().intersects(skipped) {
            continue;
        }
        let mut va = vma.start();
        while va < vma.end() {
            let mut young = Young::new(node);
            va = k.tables(mm, |tables| walk_run(k, tables, (mm, vma, va), &mut young));
            if !young.pfns().is_empty() {
                used(young.pfns());
            }
        }
    }
    k.mmap_read_unlock(mm);
    true
}

/// Entries of one table from `va` on; where to go on.
fn walk_run<K: Kernel>(
    k: &K,
    tables: &mut K::Tables,
    (mm, vma, va): (&Mm, &Vma, u64),
    young: &mut Young,
) -> u64 {
    let Some(run) = pte::next_run(tables, mm.page_table(), va, vma.end()) else { return vma.end() };
    for (index, va) in run.used(tables) {
        if young.is_full() {
            return va;
        }
        test_and_clear_young(k, tables, (run.table, index), young);
    }
    run.va + run.count as u64 * PAGE_SIZE
}

/// [`crate::folio_referenced`] that looks at the entries around those of the page, too: what they show to be in use is noted in `young`, as far as
/// there is room (Linux: the same name, called from `folio_referenced_one`).
pub fn lru_gen_look_around<K: Kernel>(k: &K, pfn: Pfn, young: &mut Young) -> FolioReferenced {
    let mut found = FolioReferenced { ptes: 0, vm_flags: VmFlags::empty() };
    for_each_mapped(k, pfn, |mm, vma, va| {
        if vma.flags().contains(VmFlags::LOCKED) {
            found.vm_flags = VmFlags::LOCKED;
            return false;
        }
        let is_young = k.tables(mm, |tables| {
            let (table, index) = pte::locate(tables, mm.page_table(), va).ok()?;
            if pte::decode(Entry::new(tables.read(table, index))) != Pte::Page(pfn) {
                return None;
            }
            let old = pte::update(tables, table, index, |entry| old_entry(entry, pfn));
            if !old.has(PteFlags::ACCESSED) {
                return None;
            }
            around(k, tables, (table, vma, va), young);
            Some(())
        });
        if is_young.is_some() && !vma.flags().contains(VmFlags::SEQ_READ) {
            found.ptes += 1;
            found.vm_flags |= vma.flags();
        }
        true
    });
    found
}

/// The entries of a table around `va`, as far as the VMA goes.
fn around<K: Kernel>(k: &K, tables: &K::Tables, (table, vma, va): (Pfn, &Vma, u64), young: &mut Young) {
    const WINDOW: u64 = YOUNG_BATCH as u64 * PAGE_SIZE;
    let window = va & !(WINDOW - 1);
    let (start, end) = (window.max(vma.start()), window.saturating_add(WINDOW).min(vma.end()));
    let mut at = start;
    while at < end && !young.is_full() {
        test_and_clear_young(k, tables, (table, Levels::index(VirtAddr::new(at), 1)), young);
        at += PAGE_SIZE;
    }
}
