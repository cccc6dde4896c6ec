//! From a page to every entry that maps it, and moving pages (Linux: mm/rmap.c, `rmap_walk`, `try_to_migrate`;
//! mm/migrate.c, `remove_migration_ptes`).

use core::ops::Range;
use core::sync::atomic::Ordering::{Acquire, Release};

use mm_core::{PAGE_SHIFT, PAGE_SIZE, Page, PageFlags, Pfn, VirtAddr};
use mm_filemap::Cows;
use mm_pgtable::{Entry, FlushRange, PteFlags, TableMem};

use crate::gather::Gather;
use crate::id::Id;
use crate::page::{self, Owner};
use crate::pte::{self, Pte};
use crate::{Arena, Kernel, Mapping, Mm, Vma, anon, zap};

/// Calls `f(mm, vma, address, entry)` for every entry that maps the page or waits for it to come back, until it returns false.
/// The page does not change its owner meanwhile: the caller holds a reference.
pub fn for_each_pte<K: Kernel>(k: &K, pfn: Pfn, mut f: impl FnMut(Id<Mm>, Id<Vma>, u64, Entry) -> bool) {
    let Some(page) = k.page(pfn) else { return };
    walk(k, page, |mm, id, va| {
        let at: &Mm = k.at(mm);
        let entry = k.tables(at, |tables| pte::read(tables, at.page_table(), va));
        match pte::decode(entry) {
            Pte::Page(found) | Pte::Migration(found) if found == pfn => f(mm, id, va, entry),
            _ => true,
        }
    });
}

/// Calls `f` for every place where the page may be mapped (Linux: `rmap_walk`).
fn walk<K: Kernel>(k: &K, page: &Page, mut f: impl FnMut(Id<Mm>, Id<Vma>, u64) -> bool) {
    let index = page.index();
    let mut visit = |id: Id<Vma>| {
        let vma: &Vma = k.at(id);
        match (vma.mm.load(), vma.address_of(index)) {
            (Some(mm), Some(va)) => f(mm, id, va),
            _ => true,
        }
    };
    k.rmap_lock(|| match page::owner(page) {
        Owner::Anon(anon) => anon::for_each_vma(k, anon, &mut visit),
        Owner::Mapped(mapping) => {
            sharers(k, mapping).all(visit);
        }
        Owner::None => {}
    });
}

/// The first VMA of a mapping (Linux: `i_mmap`).
fn first(mapping: &Mapping) -> Option<Id<Vma>> {
    Id::new(mapping.i_mmap().load(Acquire))
}

fn set_first(mapping: &Mapping, id: Option<Id<Vma>>) {
    mapping.i_mmap().store(id.map_or(0, Id::as_u64), Release);
}

/// The VMAs of a mapping; the rmap lock is held.
pub(crate) fn sharers<K: Kernel>(k: &K, mapping: Id<Mapping>) -> impl Iterator<Item = Id<Vma>> {
    let mut next = first(k.at(mapping));
    core::iter::from_fn(move || {
        let id = next?;
        next = Arena::<Vma>::at(k, id).shared_next.load();
        Some(id)
    })
}

/// Puts a VMA on its mapping's list.
pub(crate) fn share<K: Kernel>(k: &K, id: Id<Vma>) {
    let vma: &Vma = k.at(id);
    let Some(mapping) = vma.mapping() else { return };
    let list: &Mapping = k.at(mapping);
    k.rmap_lock(|| {
        let old = first(list);
        vma.shared_prev.store(None);
        vma.shared_next.store(old);
        if let Some(old) = old {
            Arena::<Vma>::at(k, old).shared_prev.store(Some(id));
        }
        set_first(list, Some(id));
    });
}

/// Takes a VMA off its mapping's list, if it is there, and from the mapping.
pub(crate) fn unshare<K: Kernel>(k: &K, id: Id<Vma>) {
    let vma: &Vma = k.at(id);
    let Some(mapping) = vma.mapping() else { return };
    let list: &Mapping = k.at(mapping);
    k.rmap_lock(|| {
        let (prev, next) = (vma.shared_prev.load(), vma.shared_next.load());
        match prev {
            Some(prev) => Arena::<Vma>::at(k, prev).shared_next.store(next),
            None if first(list) == Some(id) => set_first(list, next),
            // Never inserted.
            None => return,
        }
        if let Some(next) = next {
            Arena::<Vma>::at(k, next).shared_prev.store(prev);
        }
    });
    vma.shared_prev.store(None);
    vma.shared_next.store(None);
    vma.mapping.store(None);
}

/// Removes the entries of these page offsets of a mapping from every address space (Linux: `unmap_mapping_range`). Pages that left the
/// page cache before the call are mapped nowhere after it.
pub fn unmap_mapping_range<K: Kernel>(k: &K, mapping: Id<Mapping>, pages: Range<u64>, cows: Cows) {
    k.rmap_lock(|| {
        for id in sharers(k, mapping) {
            let vma: &Vma = k.at(id);
            let Some(mm) = vma.mm.load() else { continue };
            let first = pages.start.max(vma.pgoff());
            let end = pages.end.min(vma.pgoff().saturating_add(vma.pages()));
            let Some(start) = vma.address_of(first).filter(|_| first < end) else { continue };
            let mm: &Mm = k.at(mm);
            let mut gather = Gather::new(mm);
            zap::zap(k, mm, start..start + ((end - first) << PAGE_SHIFT), cows, &mut gather);
            gather.finish(k, mm);
        }
    });
}

/// What [`try_to_migrate`] left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmapped {
    /// Nothing maps the page, and nobody but the caller and its mapping holds it.
    Yes,
    /// Somebody else holds it: put the entries back with [`remove_migration_ptes`] to itself.
    Pinned,
}

/// Replaces every entry of the page, which the caller holds a reference of, by one that makes faults wait. `expected` is
/// the references that remain: the caller's, and one if the page belongs to a mapping.
pub fn try_to_migrate<K: Kernel>(k: &K, pfn: Pfn, expected: i32) -> Unmapped {
    let Some(page) = k.page(pfn) else { return Unmapped::Pinned };
    walk(k, page, |mm, _, va| {
        let at: &Mm = k.at(mm);
        let taken = k.tables(at, |tables| {
            let (table, index) = pte::locate(tables, at.page_table(), va).ok()?;
            let seen = Entry::new(tables.read(table, index));
            if pte::decode(seen) != Pte::Page(pfn) {
                return None;
            }
            let old = pte::update(tables, table, index, pte::migration);
            // No CPU writes to the page any more once its contents are copied.
            let va = VirtAddr::new(va);
            k.flush_tlb(at, FlushRange::Range { start: va, last: va, stride: PAGE_SIZE });
            Some(old)
        });
        if let Some(old) = taken {
            if old.has(PteFlags::DIRTY) {
                page.insert(PageFlags::DIRTY);
            }
            page::remove_rmap(k, pfn);
            page::put(k, pfn);
        }
        true
    });
    if page.mapcount() == -1 && page.refcount() == expected { Unmapped::Yes } else { Unmapped::Pinned }
}

/// Makes `new`, a copy of `old` with a reference of the caller's, what the entries that wait for `old` map. `new` may be
/// `old` itself: the move was given up. An anonymous page's owner goes over; a mapping's is its own affair.
pub fn remove_migration_ptes<K: Kernel>(k: &K, old: Pfn, new: Pfn) {
    let (Some(from), Some(to)) = (k.page(old), k.page(new)) else { return };
    if old != new {
        to.set_kind(from.kind());
        to.set_mapping(from.mapping());
        to.set_index(from.index());
        if from.has(PageFlags::DIRTY) {
            to.insert(PageFlags::DIRTY);
        }
    }
    walk(k, from, |mm, id, va| {
        let at: &Mm = k.at(mm);
        let vma: &Vma = k.at(id);
        k.tables(at, |tables| {
            let Ok((table, index)) = pte::locate(tables, at.page_table(), va) else { return };
            let seen = Entry::new(tables.read(table, index));
            if pte::decode(seen) != Pte::Migration(old) {
                return;
            }
            // Writable again only if the VMA still is.
            let prot = vma.page_prot().flags();
            let write = seen.has(PteFlags::WRITE)
                && vma.flags().contains(crate::VmFlags::WRITE)
                && (vma.flags().contains(crate::VmFlags::SHARED) || seen.has(PteFlags::WRITE));
            let mut flags =
                (prot - PteFlags::ACCESSED) | seen.flags(1) & (PteFlags::ACCESSED | PteFlags::DIRTY);
            flags.set(PteFlags::WRITE, write);
            page::get(k, new);
            page::add_rmap(k, new);
            let entry = pte::page(new, flags, vma.flags().is_accessible());
            tables.write(table, index, entry.as_u64());
        });
        true
    });
}
