//! From a page to every entry that maps it (Linux: mm/rmap.c, `rmap_walk`).

use core::ops::Range;
use core::sync::atomic::Ordering::{Acquire, Release};

use mm_core::{PAGE_SHIFT, Page, Pfn};
use mm_filemap::Cows;
use mm_pgtable::Entry;

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

/// Where a page belongs, as its descriptor said at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub owner: Owner,
    pub index: u64,
}

impl Place {
    /// What the page says now.
    pub(crate) fn of(page: &Page) -> Place {
        let (mapping, index) = page.owner();
        Place { owner: page::owner_of(mapping), index }
    }
}

/// Calls `f` for every place where the page may be mapped (Linux: `rmap_walk`).
fn walk<K: Kernel>(k: &K, page: &Page, f: impl FnMut(Id<Mm>, Id<Vma>, u64) -> bool) {
    k.rmap_lock(|| walk_place(k, Place::of(page), f));
}

/// [`walk`] with the rmap lock held. VMAs that leave their address space are still visited until they leave the list. The owner may be
/// free already: objects keep their type while the lock keeps interrupts off, and what is free or another's has no entry of the page.
pub(crate) fn walk_place<K: Kernel>(k: &K, place: Place, mut f: impl FnMut(Id<Mm>, Id<Vma>, u64) -> bool) {
    let mut visit = |id: Id<Vma>| {
        let vma: &Vma = k.at(id);
        match (vma.mm.load(), vma.address_of(place.index)) {
            (Some(mm), Some(va)) => f(mm, id, va),
            _ => true,
        }
    };
    match place.owner {
        Owner::Anon(anon) => anon::for_each_vma(k, anon, &mut visit),
        Owner::Mapped(mapping) => {
            sharers(k, mapping).all(visit);
        }
        Owner::None => {}
    }
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
