//! Batches of each CPU (Linux: `struct cpu_fbatches`).
//!
//! A page that is made, used again, or no longer wanted is noted in a batch of the CPU; a full batch is worked off under the
//! LRU lock at once. Entries are hints: what they ask for is done only if the page still is as it must be.

use memvisor_abi::{LruBatch, Lruvec, NR_LRU_BATCHES, VmEvent};
use mm_core::{Page, PageFlags, Pfn};

use crate::list::{self, End};
use crate::{Lru, lrugen, workingset};

/// Pages of a batch (Linux: `PAGEVEC_SIZE`, since 6.11).
pub const BATCH_SIZE: usize = memvisor_abi::LRU_BATCH_SIZE;

/// Pages to which the same is to be done.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Batch {
    len: u64,
    pfns: [u64; BATCH_SIZE],
}

/// The batches of a CPU.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct CpuBatches {
    /// Pages to be put on a list.
    pub lru_add: Batch,
    /// Pages whose write has ended, and that are to be reclaimed next.
    pub lru_move_tail: Batch,
    /// Pages of files that nobody needs.
    pub lru_deactivate_file: Batch,
    /// Active pages that are to be inactive.
    pub lru_deactivate: Batch,
    /// Anonymous pages that MADV_FREE gave away.
    pub lru_lazyfree: Batch,
    /// Inactive pages that are to be active.
    pub activate: Batch,
}

// As readers outside see them.
const _: () = assert!(
    size_of::<Batch>() == size_of::<LruBatch>()
        && size_of::<CpuBatches>() == NR_LRU_BATCHES * size_of::<Batch>()
);

impl Default for Batch {
    fn default() -> Self {
        Batch::NEW
    }
}

impl Batch {
    /// Empty.
    pub const NEW: Batch = Batch { len: 0, pfns: [0; BATCH_SIZE] };

    /// Notes a page; false if that was the last place.
    #[inline]
    fn note(&mut self, pfn: Pfn) -> bool {
        if let Some(place) = usize::try_from(self.len).ok().and_then(|len| self.pfns.get_mut(len)) {
            *place = pfn.as_u64();
            self.len += 1;
        }
        self.len < BATCH_SIZE as u64
    }

    /// The pages noted.
    pub fn pfns(&self) -> impl Iterator<Item = Pfn> + '_ {
        let len = usize::try_from(self.len).unwrap_or(BATCH_SIZE);
        self.pfns.iter().take(len).map(|pfn| Pfn::new(*pfn))
    }

    /// Does `f` to each page with the lock of its node held, taken once for neighbours of one node (Linux: `folio_batch_move_lru`).
    #[cold]
    fn drain<M: Lru>(&mut self, m: &M, f: impl Fn(&M, &mut Lruvec, (Pfn, &Page))) {
        let len = usize::try_from(self.len).unwrap_or(BATCH_SIZE).min(BATCH_SIZE);
        let node_of = |pfn: u64| m.page(Pfn::new(pfn)).map(Page::node);
        for run in self.pfns[..len].chunk_by(|one, other| node_of(*one) == node_of(*other)) {
            let Some(node) = run.first().and_then(|pfn| node_of(*pfn)) else { continue };
            m.lruvec(node, |lruvec| {
                for pfn in run.iter().map(|pfn| Pfn::new(*pfn)) {
                    if let Some(page) = m.page(pfn) {
                        f(m, lruvec, (pfn, page));
                    }
                }
            });
        }
        self.len = 0;
    }
}

/// Puts a fresh page on a list, soon; ACTIVE, UNEVICTABLE and SWAPBACKED say which (Linux: `folio_add_lru`). It is on none, and nobody
/// frees it meanwhile.
#[inline]
pub fn folio_add_lru<M: Lru>(m: &M, pfn: Pfn, page: &Page) {
    folio_add_lru_as(m, (pfn, page), PageFlags::empty());
}

/// [`folio_add_lru`] of a page that gets these flags in the same step.
#[inline]
pub fn folio_add_lru_as<M: Lru>(m: &M, (pfn, page): (Pfn, &Page), flags: PageFlags) {
    page.insert(PageFlags::LRU_ADD | flags);
    if flags.contains(PageFlags::UNEVICTABLE) {
        m.count_vm_events(VmEvent::UnevictablePgsMlocked, 1);
    }
    m.with(|_, cpu| {
        if !cpu.lru_add.note(pfn) {
            cpu.lru_add.drain(m, lru_add);
        }
    });
}

const LISTED: PageFlags = PageFlags::LRU.union(PageFlags::LRU_ADD);
const OF_LISTS: PageFlags = PageFlags::ACTIVE
    .union(PageFlags::UNEVICTABLE)
    .union(PageFlags::SWAPBACKED)
    .union(PageFlags::REFERENCED)
    .union(PageFlags::WORKINGSET)
    .union(PageFlags::LRU_REFS)
    .union(PageFlags::RECLAIM);

/// The page is about to be freed by the caller, who has the last reference: it is on no list any more, and has no flag of the lists
/// (Linux: `__page_cache_release`).
#[inline]
pub fn folio_del_lru<M: Lru>(m: &M, page: &Page) {
    // Who sees neither mark is right: LRU takes the place of LRU_ADD in one step.
    if page.has_any(LISTED) {
        if page.take_with(PageFlags::LRU_ADD, OF_LISTS) {
            return;
        }
        m.lruvec(page.node(), |lruvec| del_locked(m, lruvec, page));
    }
    if page.has_any(OF_LISTS) {
        page.remove(OF_LISTS);
    }
}

/// [`folio_del_lru`] for many, with the lock taken once for neighbours of one node (Linux: `release_pages`).
pub fn folios_del_lru<M: Lru>(m: &M, pfns: &[Pfn]) {
    let node_of = |pfn: Pfn| m.page(pfn).map(Page::node);
    for run in pfns.chunk_by(|one, other| node_of(*one) == node_of(*other)) {
        let Some(node) = run.first().and_then(|pfn| node_of(*pfn)) else { continue };
        m.lruvec(node, |lruvec| {
            for page in run.iter().filter_map(|pfn| m.page(*pfn)) {
                if !page.take(PageFlags::LRU_ADD) {
                    del_locked(m, lruvec, page);
                }
                page.remove(OF_LISTS);
            }
        });
    }
}

fn del_locked<M: Lru>(m: &M, lruvec: &mut Lruvec, page: &Page) {
    if page.take(PageFlags::LRU) {
        list::del(m, lruvec, page);
    }
}

/// Linux: `lru_add_fn`.
fn lru_add<M: Lru>(m: &M, lruvec: &mut Lruvec, page: (Pfn, &Page)) {
    // Freed since, or added by an earlier entry.
    if !page.1.exchange(PageFlags::LRU_ADD, PageFlags::LRU) {
        return;
    }
    if page.1.has(PageFlags::UNEVICTABLE) {
        page.1.remove(PageFlags::ACTIVE);
    } else if page.1.mapcount() >= 0 && lrugen::is_enabled(lruvec) {
        // Who is mapped already was faulted in, and is in use (Linux: `lru_gen_in_fault`, which takes what was read ahead for used, too).
        page.1.insert(PageFlags::ACTIVE);
    }
    list::add(m, lruvec, page, End::Head);
}

/// The page was used by a call, and not through an entry (Linux: `folio_mark_accessed`): inactive becomes referenced, referenced becomes
/// active.
///
/// With generations uses are counted, and nothing is moved (Linux: `folio_inc_refs`).
pub fn folio_mark_accessed<M: Lru>(m: &M, pfn: Pfn, page: &Page) {
    if m.lru_gen_enabled() {
        lrugen::folio_inc_refs(page);
    } else if !page.has(PageFlags::REFERENCED) {
        page.insert(PageFlags::REFERENCED);
    } else if !page.has_any(PageFlags::ACTIVE | PageFlags::UNEVICTABLE) {
        if page.has(PageFlags::LRU_ADD) {
            // It comes to the active list at once (Linux: `__lru_cache_activate_folio`). Under the lock it does not come to another meanwhile.
            m.lruvec(page.node(), |_| {
                if page.has(PageFlags::LRU_ADD) {
                    page.insert(PageFlags::ACTIVE);
                }
            });
        }
        folio_activate(m, pfn, page);
        page.remove(PageFlags::REFERENCED);
    }
}

/// An inactive page is to be active (Linux: the same name).
pub fn folio_activate<M: Lru>(m: &M, pfn: Pfn, page: &Page) {
    if page.has(PageFlags::LRU) && !page.has_any(PageFlags::ACTIVE | PageFlags::UNEVICTABLE) {
        m.with(|_, cpu| {
            if !cpu.activate.note(pfn) {
                cpu.activate.drain(m, activate);
            }
        });
    }
}

fn activate<M: Lru>(m: &M, lruvec: &mut Lruvec, (pfn, page): (Pfn, &Page)) {
    if page.has(PageFlags::LRU) && !page.has_any(PageFlags::ACTIVE | PageFlags::UNEVICTABLE) {
        list::del(m, lruvec, page);
        page.insert(PageFlags::ACTIVE);
        list::add(m, lruvec, (pfn, page), End::Head);
        workingset::age_nonresident(lruvec, 1);
        m.count_vm_events(VmEvent::Pgactivate, 1);
    }
}

/// A page of a file is not needed any more: it goes before others, at once if it is clean (Linux: the same name).
pub fn deactivate_file_folio<M: Lru>(m: &M, pfn: Pfn, page: &Page) {
    if page.has(PageFlags::LRU) && !page.has(PageFlags::UNEVICTABLE) {
        m.with(|_, cpu| {
            if !cpu.lru_deactivate_file.note(pfn) {
                cpu.lru_deactivate_file.drain(m, deactivate_file);
            }
        });
    }
}

fn deactivate_file<M: Lru>(m: &M, lruvec: &mut Lruvec, (pfn, page): (Pfn, &Page)) {
    if !page.has(PageFlags::LRU) || page.has(PageFlags::UNEVICTABLE) || page.mapcount() >= 0 {
        return;
    }
    list::del(m, lruvec, page);
    page.remove(PageFlags::ACTIVE | PageFlags::REFERENCED);
    // What is not written yet is freed when it is.
    let is_dirty = page.has_any(PageFlags::DIRTY | PageFlags::WRITEBACK);
    if is_dirty {
        page.insert(PageFlags::RECLAIM);
    }
    list::add(m, lruvec, (pfn, page), if is_dirty { End::Head } else { End::Tail });
    m.count_vm_events(VmEvent::Pgdeactivate, 1);
}

/// An active page is to be inactive (Linux: the same name; `MADV_COLD`).
pub fn deactivate_folio<M: Lru>(m: &M, pfn: Pfn, page: &Page) {
    let is_active = page.has(PageFlags::ACTIVE) || m.lru_gen_enabled();
    if is_active && page.has(PageFlags::LRU) && !page.has(PageFlags::UNEVICTABLE) {
        m.with(|_, cpu| {
            if !cpu.lru_deactivate.note(pfn) {
                cpu.lru_deactivate.drain(m, deactivate);
            }
        });
    }
}

fn deactivate<M: Lru>(m: &M, lruvec: &mut Lruvec, (pfn, page): (Pfn, &Page)) {
    let is_active = page.has(PageFlags::ACTIVE) || lrugen::is_enabled(lruvec);
    if is_active && page.has(PageFlags::LRU) && !page.has(PageFlags::UNEVICTABLE) {
        list::del(m, lruvec, page);
        page.remove(PageFlags::ACTIVE | PageFlags::REFERENCED);
        list::add(m, lruvec, (pfn, page), End::Head);
        m.count_vm_events(VmEvent::Pgdeactivate, 1);
    }
}

/// A page that MADV_FREE gave away goes to the inactive pages of files, which are reclaimed first and without swap (Linux: the same name).
pub fn mark_page_lazyfree<M: Lru>(m: &M, pfn: Pfn, page: &Page) {
    if page.has(PageFlags::LRU) && may_be_lazyfree(page) {
        m.with(|_, cpu| {
            if !cpu.lru_lazyfree.note(pfn) {
                cpu.lru_lazyfree.drain(m, lazyfree);
            }
        });
    }
}

fn may_be_lazyfree(page: &Page) -> bool {
    page.mapping() & memvisor_abi::Page::MAPPING_ANON != 0
        && page.has(PageFlags::SWAPBACKED)
        && !page.has_any(PageFlags::SWAPCACHE | PageFlags::UNEVICTABLE)
}

/// Linux: `lru_lazyfree_fn`.
fn lazyfree<M: Lru>(m: &M, lruvec: &mut Lruvec, (pfn, page): (Pfn, &Page)) {
    if !page.has(PageFlags::LRU) || !may_be_lazyfree(page) {
        return;
    }
    list::del(m, lruvec, page);
    page.remove(PageFlags::ACTIVE | PageFlags::REFERENCED | PageFlags::SWAPBACKED);
    list::add(m, lruvec, (pfn, page), End::Head);
    m.count_vm_events(VmEvent::Pglazyfree, 1);
}

/// A page that reclaim had written is clean now: it is the next to be reclaimed (Linux: the same name). May be called in interrupts.
pub fn folio_rotate_reclaimable<M: Lru>(m: &M, pfn: Pfn, page: &Page) {
    let busy = PageFlags::LOCKED | PageFlags::DIRTY | PageFlags::UNEVICTABLE;
    if page.has(PageFlags::LRU) && !page.has_any(busy) {
        m.with(|_, cpu| {
            if !cpu.lru_move_tail.note(pfn) {
                cpu.lru_move_tail.drain(m, move_tail);
            }
        });
    }
}

fn move_tail<M: Lru>(m: &M, lruvec: &mut Lruvec, (pfn, page): (Pfn, &Page)) {
    if page.has(PageFlags::LRU) && !page.has(PageFlags::UNEVICTABLE) {
        list::del(m, lruvec, page);
        page.remove(PageFlags::ACTIVE);
        list::add(m, lruvec, (pfn, page), End::Tail);
        m.count_vm_events(VmEvent::Pgrotated, 1);
    }
}

/// A page is in locked memory now, or no more (Linux: `mlock_folio`, `munlock_folio`). The caller has a reference.
pub fn set_unevictable<M: Lru>(m: &M, pfn: Pfn, page: &Page, unevictable: bool) {
    m.lruvec(page.node(), |lruvec| {
        if page.has(PageFlags::UNEVICTABLE) == unevictable {
            return;
        }
        let event =
            if unevictable { VmEvent::UnevictablePgsMlocked } else { VmEvent::UnevictablePgsMunlocked };
        m.count_vm_events(event, 1);
        // What is in somebody's hands comes to the right list when it comes back.
        let is_listed = page.has(PageFlags::LRU);
        if is_listed {
            list::del(m, lruvec, page);
        }
        if unevictable {
            page.remove(PageFlags::ACTIVE);
            page.insert(PageFlags::UNEVICTABLE);
        } else {
            page.remove(PageFlags::UNEVICTABLE);
        }
        if is_listed {
            list::add(m, lruvec, (pfn, page), End::Head);
        }
    });
}

/// Works off this CPU's batches (Linux: the same name).
pub fn lru_add_drain<M: Lru>(m: &M) {
    m.with(|_, cpu| drain_cpu(m, cpu));
}

/// Works off the batches of every CPU (Linux: the same name). The caller holds no lock.
pub fn lru_add_drain_all<M: Lru>(m: &M) {
    m.for_each(|_, cpu| drain_cpu(m, cpu));
}

fn drain_cpu<M: Lru>(m: &M, cpu: &mut CpuBatches) {
    cpu.lru_add.drain(m, lru_add);
    cpu.lru_move_tail.drain(m, move_tail);
    cpu.lru_deactivate_file.drain(m, deactivate_file);
    cpu.lru_deactivate.drain(m, deactivate);
    cpu.lru_lazyfree.drain(m, lazyfree);
    cpu.activate.drain(m, activate);
}
