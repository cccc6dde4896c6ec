//! What reclaim asks of address spaces (Linux: mm/rmap.c, `folio_referenced`, `try_to_unmap`).
//!
//! Invariants:
//! G4  after [`try_to_unmap`] said yes, no entry maps the page, and what the CPUs wrote is in DIRTY. A fault may map it again at once if it is still in
//!     the page cache or the swap cache: then it has a reference that whoever removes it sees;
//! G5  until what [`Kernel::defer_flush`] put off is done, CPUs may reach the page through stale translations. So long the caller keeps it locked, does not write it, and
//!     takes it from no cache: whoever wants it by another entry gets the same frame or waits. Who ends a change of an address space
//!     ([`crate::gather`]), or maps another frame where none is, sees that flushes are put off and does them first.

use mm_core::{Event, EventId, PAGE_SIZE, PageFlags, Pfn, VirtAddr};
use mm_pgtable::{Entry, FlushRange, PteFlags, TableMem};
use mm_swap::{folio_swap_entry, swap_duplicate};

use crate::id::Id;
use crate::mm::RssKind;
use crate::page::{self, Owner};
use crate::pte::{self, Pte};
use crate::rmap::{Place, walk_place};
use crate::{Kernel, Mm, VmFlags, Vma, lazyfree};

/// Who used a page since it was asked last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FolioReferenced {
    /// Entries that were used, but for those of VMAs that are read once from end to end.
    pub ptes: u32,
    /// Flags of the VMAs that used it; LOCKED if any that maps it is locked: then no more is known.
    pub vm_flags: VmFlags,
}

/// Asks who used a page, and forgets it (Linux: the same name). Translations stay: a CPU that has one may use the page unseen for a while,
/// which is cheaper than to flush. The caller has a reference.
pub fn folio_referenced<K: Kernel>(k: &K, pfn: Pfn) -> FolioReferenced {
    let mut found = FolioReferenced { ptes: 0, vm_flags: VmFlags::empty() };
    for_each_mapped(k, pfn, |mm, vma, va| {
        if vma.flags().contains(VmFlags::LOCKED) {
            found.vm_flags = VmFlags::LOCKED;
            return false;
        }
        let young = k.tables(mm, |tables| {
            let (table, index) = pte::locate(tables, mm.page_table(), va).ok()?;
            if pte::decode(Entry::new(tables.read(table, index))) != Pte::Page(pfn) {
                return None;
            }
            let old = pte::update(tables, table, index, |entry| old_entry(entry, pfn));
            Some(old.has(PteFlags::ACCESSED))
        });
        if young == Some(true) && !vma.flags().contains(VmFlags::SEQ_READ) {
            found.ptes += 1;
            found.vm_flags |= vma.flags();
        }
        true
    });
    found
}

/// Takes a page from all who map it; whether nobody does now (Linux: the same name, with `TTU_BATCH_FLUSH`). Entries in locked VMAs stay. The
/// caller has a reference, and so has the page cache, and keeps the page as G5 says. In the place of an anonymous page's entries come those of its
/// slot, so that it has to be in the swap cache, and locked; one that is not stays mapped, but if it was given away ([`crate::lazyfree`]).
pub fn try_to_unmap<K: Kernel>(k: &K, pfn: Pfn, unflushed: &mut K::Unflushed) -> bool {
    let Some(page) = k.page(pfn) else { return false };
    let (slot, is_anon) = match page::owner(page) {
        Owner::Mapped(_) => (None, false),
        Owner::Anon(_) => match folio_swap_entry(page) {
            Some(slot) => (Some(slot), true),
            None if !page.has(PageFlags::SWAPBACKED) => (None, true),
            None => return page.mapcount() < 0,
        },
        Owner::None => return page.mapcount() < 0,
    };
    let (mapped, mut is_needed) = (page.mapcount() + 1, false);
    for_each_mapped(k, pfn, |mm, vma, va| {
        if vma.flags().contains(VmFlags::LOCKED) {
            return false;
        }
        let taken = k.tables(mm, |tables| {
            let (table, index) = pte::locate(tables, mm.page_table(), va).ok()?;
            if pte::decode(Entry::new(tables.read(table, index))) != Pte::Page(pfn) {
                return None;
            }
            if let Some(slot) = slot {
                // As many name it as can be counted: the page stays where it is.
                swap_duplicate(k, slot).ok()?;
            }
            let new = slot.map_or(Entry::EMPTY, |slot| Entry::new(slot.to_pte(false)));
            let old = pte::update(tables, table, index, |_| new);
            if is_anon && slot.is_none() && !lazyfree::may_drop(page, old) {
                // The CPUs had no entry that they could have marked since.
                tables.write(table, index, old.as_u64());
                is_needed = true;
                return None;
            }
            k.defer_flush(mm, VirtAddr::new(va), unflushed);
            mm.add_rss(if is_anon { RssKind::Anon } else { RssKind::File }, -1);
            if slot.is_some() {
                mm.add_swapents(1);
            }
            Some(old)
        });
        if let Some(old) = taken {
            page::entry_taken(k, pfn, page, old);
        }
        !is_needed
    });
    k.emit_with(EventId::TryToUnmap, || Event::TryToUnmap { pfn, mapped, left: page.mapcount() + 1 });
    page.mapcount() < 0
}

/// Makes all entries of a page of a mapping read-only and clean, so that the next write is told of; whether any was writable or dirty: then
/// the page is (Linux: the same name). The caller has a reference, and the page locked.
pub fn page_mkclean<K: Kernel>(k: &K, pfn: Pfn) -> bool {
    let mut written = false;
    for_each_mapped(k, pfn, |mm, vma, va| {
        if !vma.flags().contains(VmFlags::SHARED) {
            return true;
        }
        k.tables(mm, |tables| {
            let Ok((table, index)) = pte::locate(tables, mm.page_table(), va) else { return };
            if pte::decode(Entry::new(tables.read(table, index))) != Pte::Page(pfn) {
                return;
            }
            let gone = PteFlags::WRITE | PteFlags::DIRTY;
            let old = pte::update(tables, table, index, |entry| Entry::new(entry.as_u64() & !gone.bits()));
            if old.has(PteFlags::WRITE) || old.has(PteFlags::DIRTY) {
                written = true;
                // No CPU writes to it unseen from here on.
                let at = VirtAddr::new(va);
                k.flush_tlb(mm, FlushRange::Range { start: at, last: at, stride: PAGE_SIZE });
            }
        });
        true
    });
    written
}

/// Calls `f` for every place where the page may be mapped, until it returns false.
pub(crate) fn for_each_mapped<K: Kernel>(k: &K, pfn: Pfn, mut f: impl FnMut(&Mm, &Vma, u64) -> bool) {
    let Some(page) = k.page(pfn) else { return };
    k.rmap_lock(|| {
        walk_place(k, Place::of(page), |mm: Id<Mm>, vma: Id<Vma>, va| f(k.at(mm), k.at(vma), va));
    });
}

/// The entry of a page that was not used, if it is the page's still.
pub(crate) fn old_entry(entry: Entry, pfn: Pfn) -> Entry {
    if pte::decode(entry) == Pte::Page(pfn) {
        Entry::new(entry.as_u64() & !PteFlags::ACCESSED.bits())
    } else {
        entry
    }
}
