//! Entries that name a slot of a swap area (Linux: mm/memory.c, `do_swap_page`; mm/swapfile.c, `unuse_mm`).
//!
//! Invariants:
//! W1  each such entry counts once in its slot's word and once in `Mm::swapents`, and lies in a private VMA that has an `AnonVma`;
//! W2  a page that the swap cache has is written to by those only who see that nobody names its slot, and that have taken it out: so all
//!     who name the slot find in it what was there when their entries were made;
//! W3  a page that comes back while others name its slot names the root of the `AnonVma`s, which all who may map it are linked to.
//!
//! Differs from Linux: entries do not say that they are exclusive. Who writes looks at the slot's count instead.

use mm_core::{Page, PageFlags, Pfn};
use mm_pgtable::{Entry, PteFlags, TableMem};
use mm_swap::{SwapEntry, SwapError, SwapInError, folio_free_swap, folio_swap_entry, free_swap_and_cache};

use crate::id::Id;
use crate::mm::RssKind;
use crate::pte::{self, Pte};
use crate::{Arena, Kernel, Mm, VmFlags, Vma, page};

/// What became of an entry whose page was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mapped {
    /// This entry took its place.
    Yes {
        /// The new entry.
        entry: Entry,
        /// The page.
        pfn: Pfn,
        /// It was read from a device.
        major: bool,
    },
    /// It is another by now, or its page went elsewhere.
    Changed,
}

/// Why the page of an entry cannot be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SwapFault {
    /// No memory.
    NoMemory,
    /// It could not be read (Linux: `VM_FAULT_SIGBUS`).
    Io,
}

/// Where an entry is that names a slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SwapPte<'a> {
    pub mm: &'a Mm,
    pub vma: &'a Vma,
    pub va: u64,
    pub old: Entry,
    pub entry: SwapEntry,
}

/// Maps the page of an entry that names a slot, for writing if `write` and nobody else has the page (Linux: `do_swap_page`, `unuse_pte`). The
/// VMA stays as it is.
///
/// # Errors
/// [`SwapFault`].
pub(crate) fn swap_in<K: Kernel>(k: &K, at: SwapPte<'_>, write: bool) -> Result<Mapped, SwapFault> {
    let unchanged = || k.tables(at.mm, |tables| pte::read(tables, at.mm.page_table(), at.va)) == at.old;
    let found = match k.swapin_readahead(at.entry, at.vma.policy_at(at.va)) {
        Ok(found) => found,
        Err(_) if !unchanged() => return Ok(Mapped::Changed),
        Err(SwapInError::NoMemory) => return Err(SwapFault::NoMemory),
        // An entry of a slot that nobody uses: nothing is known of what was there.
        Err(SwapInError::Gone) => return Err(SwapFault::Io),
    };
    k.lock_page(found.pfn);
    let is_read = |page: &Page| folio_swap_entry(page) != Some(at.entry) || page.has(PageFlags::UPTODATE);
    if !k.page(found.pfn).is_none_or(is_read) {
        k.swap_readpage(found.pfn);
    }
    let mapped = map(k, at, found.pfn, write);
    k.unlock_page(found.pfn);
    match mapped {
        Ok(Some(entry)) => Ok(Mapped::Yes { entry, pfn: found.pfn, major: found.major }),
        Ok(None) => {
            page::put(k, found.pfn);
            Ok(Mapped::Changed)
        }
        Err(fault) => {
            page::put(k, found.pfn);
            Err(fault)
        }
    }
}

/// [`swap_in`] with the page locked; the caller's reference becomes that of the entry that is returned.
fn map<K: Kernel>(k: &K, at: SwapPte<'_>, pfn: Pfn, write: bool) -> Result<Option<Entry>, SwapFault> {
    let Some(page) = k.page(pfn) else { return Ok(None) };
    if folio_swap_entry(page) != Some(at.entry) {
        return Ok(None);
    }
    let anon = at.vma.anon_vma().ok_or(SwapFault::NoMemory)?;
    k.tables(at.mm, |tables| {
        let slot = pte::locate(tables, at.mm.page_table(), at.va);
        let Some((table, index)) = slot.ok().filter(|slot| tables.read(slot.0, slot.1) == at.old.as_u64())
        else {
            return Ok(None);
        };
        if !page.has(PageFlags::UPTODATE) {
            return Err(SwapFault::Io);
        }
        // The page is locked: it does not leave the swap cache before what is below says so.
        let freed = mm_swap::swap_free(k, at.entry);
        debug_assert!(freed.is_ok(), "an entry named {}, which was not counted", at.entry);
        at.mm.add_swapents(-1);
        let alone = |others: i32| page.mapcount() < 0 && page.refcount() == 1 + others;
        let is_named = mm_swap::swap_count(k, at.entry) > 0;
        let exclusive = !is_named && alone(1);
        let is_locked = at.vma.flags().contains(VmFlags::LOCKED);
        if k.totals().is_vm_swap_full() || is_locked || write && exclusive {
            folio_free_swap(k, pfn);
        }
        let writable = write && !page.has(PageFlags::SWAPCACHE) && alone(0);
        if !page::is_anon(page) {
            // W3.
            let owner = if exclusive { Some(anon) } else { Arena::at(k, anon).root() };
            page::set_anon(page, owner.unwrap_or(anon), at.vma.index_of(at.va));
        }
        page::add_rmap(k, pfn);
        at.mm.add_rss(RssKind::Anon, 1);
        let mut flags = at.vma.page_prot().flags();
        flags.set(PteFlags::WRITE, writable && at.vma.flags().contains(VmFlags::WRITE));
        flags.set(PteFlags::DIRTY, flags.contains(PteFlags::WRITE));
        let entry = pte::page(pfn, flags, at.vma.flags().is_accessible());
        tables.write(table, index, entry.as_u64());
        Ok(Some(entry))
    })
}

/// An entry that named a slot was taken out: what it counted for goes.
pub(crate) fn release<K: Kernel>(k: &K, entry: SwapEntry) {
    match free_swap_and_cache(k, entry) {
        Ok(None) => {}
        Ok(Some(pfn)) => page::put(k, pfn),
        Err(error) => debug_assert!(false, "an entry named {entry}: {error:?}"),
    }
}

/// Gives a page that the caller's entry alone may need, besides the swap cache, to that entry: true if nobody else has it, and it is in no
/// swap cache, now (Linux: the middle of `do_wp_page`). The caller has no reference but the entry's.
pub(crate) fn reuse<K: Kernel>(k: &K, pfn: Pfn, page: &Page) -> bool {
    // The entry, the swap cache, and the one that holds the page here.
    if !page.has(PageFlags::SWAPCACHE) || page.refcount() > 3 || page.mapcount() > 0 || !page.try_lock() {
        return false;
    }
    folio_free_swap(k, pfn);
    k.unlock_page(pfn);
    !page.has(PageFlags::SWAPCACHE)
}

/// Brings in every page of an address space that has a slot of the area, and maps it (Linux: `unuse_mm`). mmap_lock is not held; entries that
/// a fork copies meanwhile may be missed.
///
/// # Errors
/// [`SwapError::NoMemory`], [`SwapError::Io`].
pub fn unuse_mm<K: Kernel>(k: &K, mm: Id<Mm>, area: u32) -> Result<(), SwapError> {
    let at: &Mm = k.at(mm);
    if at.swapents() == 0 {
        return Ok(());
    }
    k.mmap_read_lock(at);
    let result = at.vmas(k).filter(|(_, vma)| vma.anon_vma().is_some()).try_for_each(|(_, vma)| {
        let mut va = vma.start();
        while let Some(next) = next_of(k, (at, vma), va, area) {
            match swap_in(k, next, false) {
                Ok(Mapped::Yes { .. }) => va = next.va + mm_core::PAGE_SIZE,
                Ok(Mapped::Changed) => k.relax(),
                Err(SwapFault::NoMemory) => return Err(SwapError::NoMemory),
                Err(SwapFault::Io) => return Err(SwapError::Io),
            }
        }
        Ok(())
    });
    k.mmap_read_unlock(at);
    result
}

/// The first entry of a VMA from `va` on that names a slot of the area.
fn next_of<'a, K: Kernel>(
    k: &K,
    (mm, vma): (&'a Mm, &'a Vma),
    mut va: u64,
    area: u32,
) -> Option<SwapPte<'a>> {
    while va < vma.end() {
        let found = k.tables(mm, |tables| {
            let Some(run) = pte::next_run(tables, mm.page_table(), va, vma.end()) else {
                va = vma.end();
                return None;
            };
            va = run.va + run.count as u64 * mm_core::PAGE_SIZE;
            run.used(tables).find_map(|(index, va)| {
                let old = Entry::new(tables.read(run.table, index));
                match pte::decode(old) {
                    Pte::Swap(entry) if entry.area() == area => Some(SwapPte { mm, vma, va, old, entry }),
                    _ => None,
                }
            })
        });
        if found.is_some() {
            return found;
        }
    }
    None
}
