//! Moving a page of programs to another frame under everybody who maps it (Linux: mm/migrate.c, `migrate_pages`; mm/rmap.c,
//! `try_to_migrate`).
//!
//! ```text
//! unmap      every entry of the page becomes a migration entry, its translations are flushed, its reference goes
//! freeze     nobody but the caller and the page cache holds the page: from now on nobody gets a reference
//! copy       contents, owner, index, DIRTY; in the page cache the new page takes the old one's slot
//! restore    migration entries become entries of the new page, or of the old one if it was held
//! ```
//!
//! Invariants:
//! G1  migration entries exist only while the rmap lock is held by whoever moves the page. So no VMA comes, goes or changes its
//!     bounds meanwhile, and every entry is found again, unless it was zapped. (fork copies none: it waits; mremap takes the lock.)
//! G2  every entry and every holder has a reference, and a reference of a page is taken only by who has one, who sees an
//!     entry under the page-table lock, or who finds it in the page cache and fails while it is frozen. So a frozen page is written by
//!     nobody, also if the unmapping missed an entry: then it cannot be frozen.
//! G3  after a failure counts and entries are as before, but that private pages may need a fault to be writable.
//!
//! Differs from Linux: the rmap lock is held throughout, where Linux holds the page's lock, which faults, truncation and
//! reclaim wait for there. It is simple, and short: one page is copied under it.

use mm_core::{
    Event, EventId, MemMap, MigrateError, PAGE_SIZE, Page, PageFlags, PageKind, Pfn, VirtAddr, refcount,
};
use mm_filemap::Cache;
use mm_pgtable::{Entry, FlushRange, PteFlags, TableMem};
use mm_swap::replace_in_swap_cache;

use crate::page::{self, Owner};
use crate::pte::{self, Pte};
use crate::rmap::{Place, walk_place};
use crate::{Kernel, Mm, VmFlags, Vma};

/// What [`try_to_migrate`] left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmapped {
    /// Nothing maps the page, and nobody but the caller and its mapping holds it.
    Yes,
    /// Somebody else holds it: put the entries back with [`remove_migration_ptes`] to itself.
    Pinned,
}

/// Moves the page `from`, which the caller has a reference of and has locked, to the fresh page `to`, whose only reference is spent. After it
/// the caller's reference is the last one of `from`, which is nobody's page.
///
/// # Errors
/// [`MigrateError::Again`] if somebody holds the page besides; nothing has changed (G3), and `to` is still the caller's.
pub fn migrate_page<K: Kernel + Cache>(k: &K, from: Pfn, to: Pfn) -> Result<(), MigrateError> {
    let (Some(old), Some(new)) = (MemMap::page(k, from), MemMap::page(k, to)) else {
        return Err(MigrateError::Busy);
    };
    debug_assert!(old.has(PageFlags::LOCKED), "the page can come to and leave the swap cache: {from}");
    move_page(k, (from, old), (to, new))?;
    k.folio_add_lru(to, new, PageFlags::empty());
    // With the last entry zapped meanwhile, it is the page's last.
    page::put(k, to);
    Ok(())
}

/// Everything but what the new page's users get.
fn move_page<K: Kernel + Cache>(
    k: &K,
    (from, old): (Pfn, &Page),
    (to, new): (Pfn, &Page),
) -> Result<(), MigrateError> {
    k.rmap_lock(|| {
        let place = Place::of(old);
        // Locked, it stays its slot's.
        let swapped = old.has(PageFlags::SWAPCACHE);
        if swapped && !old.has(PageFlags::UPTODATE) {
            return Err(MigrateError::Again);
        }
        let cached = match place.owner {
            Owner::Anon(_) => None,
            Owner::Mapped(mapping) => Some(mapping),
            // It left the page cache, or nobody maps it any more.
            Owner::None => return Err(MigrateError::Again),
        };
        // The device reads it.
        if old.has(PageFlags::WRITEBACK) {
            return Err(MigrateError::Again);
        }
        // Not worth the flushes if it is held (Linux: `folio_expected_refs`).
        if old.refcount() > old.mapcount() + 2 + i32::from(cached.is_some() || swapped) {
            return Err(MigrateError::Again);
        }
        unmap(k, from, old, place);
        let moved = match cached {
            Some(mapping) => {
                mm_filemap::replace_page(k, mapping, place.index, (from, to), || k.copy_page(to, from))
            }
            None => {
                let frozen = refcount::freeze(old.references(), 1 + i32::from(swapped));
                if frozen {
                    k.copy_page(to, from);
                    hand_on(old, new);
                    if swapped {
                        let replaced = replace_in_swap_cache(k, from, to);
                        debug_assert!(replaced.is_ok(), "a locked page left the swap cache: {replaced:?}");
                    }
                }
                frozen
            }
        };
        restore(k, place, from, if moved { to } else { from });
        if !moved {
            return Err(MigrateError::Again);
        }
        if cached.is_none() {
            // Not before its last migration entry has gone: they ask it whose they are.
            old.set_owner(0, 0);
            old.remove(PageFlags::DIRTY | PageFlags::UPTODATE);
            old.set_kind(PageKind::Allocated);
            refcount::unfreeze(old.references(), 1);
        }
        Ok(())
    })
}

/// The owner of a page that moves goes over (Linux: `folio_migrate_flags`).
fn hand_on(from: &Page, to: &Page) {
    let (mapping, index) = from.owner();
    to.set_kind(from.kind());
    to.set_owner(mapping, index);
    to.insert(from.flags() & mm_filemap::MOVES);
}

/// Replaces every entry of the page, which the caller holds a reference of, by one that makes faults wait. `expected` is
/// the references that remain: the caller's, and one if the page belongs to a mapping. For a look at the steps one by one:
/// [`migrate_page`] does them all.
pub fn try_to_migrate<K: Kernel>(k: &K, pfn: Pfn, expected: i32) -> Unmapped {
    let Some(page) = k.page(pfn) else { return Unmapped::Pinned };
    k.rmap_lock(|| unmap(k, pfn, page, Place::of(page)));
    if page.mapcount() == -1 && page.refcount() == expected { Unmapped::Yes } else { Unmapped::Pinned }
}

/// Makes `new`, a copy of `old` with a reference of the caller's, what the entries that wait for `old` map. `new` may be
/// `old` itself: the move was given up. An anonymous page's owner goes over; a mapping's is its own affair.
pub fn remove_migration_ptes<K: Kernel>(k: &K, old: Pfn, new: Pfn) {
    let (Some(from), Some(to)) = (k.page(old), k.page(new)) else { return };
    if old != new {
        hand_on(from, to);
    }
    k.rmap_lock(|| restore(k, Place::of(from), old, new));
}

/// Entries become migration entries; the rmap lock is held.
fn unmap<K: Kernel>(k: &K, pfn: Pfn, page: &Page, place: Place) {
    walk_place(k, place, |mm, _, va| {
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
            k.emit_with(EventId::SetMigrationPte, || Event::SetMigrationPte {
                pid: k.owner_pid(at),
                addr: va,
                pfn,
            });
            page::entry_taken(k, pfn, page, old);
        }
        true
    });
}

/// Migration entries of `old` become entries of `new`; the rmap lock is held.
fn restore<K: Kernel>(k: &K, place: Place, old: Pfn, new: Pfn) {
    walk_place(k, place, |mm, id, va| {
        let at: &Mm = k.at(mm);
        let vma: &Vma = k.at(id);
        k.tables(at, |tables| {
            let Ok((table, index)) = pte::locate(tables, at.page_table(), va) else { return };
            let seen = Entry::new(tables.read(table, index));
            if pte::decode(seen) != Pte::Migration(old) {
                return;
            }
            // Writable again only if it was and the VMA still is.
            let write = seen.has(PteFlags::WRITE) && vma.flags().contains(VmFlags::WRITE);
            let kept = seen.flags(1) & (PteFlags::ACCESSED | PteFlags::DIRTY);
            let mut flags = (vma.page_prot().flags() - PteFlags::ACCESSED) | kept;
            flags.set(PteFlags::WRITE, write);
            page::get(k, new);
            page::add_rmap(k, new);
            let entry = pte::page(new, flags, vma.flags().is_accessible());
            tables.write(table, index, entry.as_u64());
            k.emit_with(EventId::RemoveMigrationPte, || Event::RemoveMigrationPte {
                pid: k.owner_pid(at),
                addr: va,
                pfn: new,
            });
        });
        true
    });
}
