//! Generations: the second policy (Linux: the multi-gen LRU of mm/vmscan.c, include/linux/mm_inline.h).
//!
//! Pages that can be reclaimed are on lists by generation, type and zone. What is used comes to the youngest generation, reclaim takes
//! from the oldest, and between the two nothing is done to a page.
//!
//! ```text
//! ageing     age.rs    walks page tables, brings what was used to the youngest generation, and begins a new one
//! eviction   evict.rs  the oldest generation of the type that refaults less; rmap is asked once, and looks around
//! tiers      ctrl.rs   pages of files by their uses through descriptors; a tier that refaults more than the first goes on to the next generation
//! ```
//!
//! Invariants, checked by [`crate::audit`]:
//! G1  a page on the list of a generation says its place, and is of the type and zone of the list;
//! G2  `min_seq + MIN_NR_GENS <= max_seq + 1`, and a type has at most [`MAX_NR_GENS`] generations; lists of others are empty;
//! G3  `zone_pages` counts the two youngest generations as active and the others as inactive.
//!
//! Differs from Linux: a page that was used moves to its list at once, in batches under the LRU lock, and not when eviction comes across it,
//! so that its flags never name another list than the one that it is on.

mod age;
mod ctrl;
mod evict;

use memvisor_abi::{LruGen, LruKind, LruList, Lruvec, MAX_NR_GENS, MIN_NR_GENS};
use mm_core::{MemMap, Page, PageFlags, Pfn};

use crate::list::{self, End, is_file_lru};
use crate::{Lru, Refault};

#[cfg(test)]
pub(crate) use age::begin_generation;
pub(crate) use age::lru_gen_age_node;
pub(crate) use evict::lru_gen_shrink_lruvec;

/// Anonymous pages, in tables by type.
pub(crate) const ANON: usize = 0;
/// Pages of files.
pub(crate) const FILE: usize = 1;
/// Pages that are worked on under the lock at once (Linux: `MIN_LRU_BATCH`).
pub const LRU_GEN_BATCH: usize = 64;

/// What tells how often a page was used.
pub(crate) const LRU_REFS: PageFlags =
    PageFlags::LRU_REFS.union(PageFlags::REFERENCED).union(PageFlags::WORKINGSET);

/// Begins to use generations for a node that has no page on a list yet; `now` in nanoseconds since boot (Linux: `lru_gen_init_lruvec`).
pub fn lru_gen_init(lruvec: &mut Lruvec, now: u64) {
    lruvec.lrugen =
        LruGen { enabled: 1, max_seq: MIN_NR_GENS + 1, timestamps: [now; MAX_NR_GENS], ..LruGen::EMPTY };
}

/// Whether a node uses generations.
pub(crate) fn is_enabled(lruvec: &Lruvec) -> bool {
    lruvec.lrugen.enabled != 0
}

/// Index of a page's type.
pub(crate) fn type_of(page: &Page) -> usize {
    usize::from(is_file_lru(page))
}

/// The list of a page at a place. `None` for a zone that is none.
fn list_mut(lruvec: &mut Lruvec, place: usize, kind: usize, zone: usize) -> Option<&mut LruList> {
    lruvec.lrugen.lists.get_mut(place)?.get_mut(kind)?.get_mut(zone)
}

/// The kind that pages at a place are counted as.
pub(crate) const fn kind_at(lrugen: &LruGen, place: usize, kind: usize) -> LruKind {
    match (kind == FILE, lrugen.is_active(place)) {
        (false, false) => LruKind::InactiveAnon,
        (false, true) => LruKind::ActiveAnon,
        (true, false) => LruKind::InactiveFile,
        (true, true) => LruKind::ActiveFile,
    }
}

/// The generation that a page comes to: what is in use to the youngest, what cannot go at once to the second oldest, everything else to the
/// oldest (Linux: the first half of `lru_gen_add_folio`).
fn seq_of(lrugen: &LruGen, flags: PageFlags) -> u64 {
    let kind = usize::from(!flags.contains(PageFlags::SWAPBACKED));
    let min = lrugen.min_seq[kind];
    let waits =
        flags.contains(PageFlags::RECLAIM) && flags.intersects(PageFlags::DIRTY.union(PageFlags::WRITEBACK));
    if flags.contains(PageFlags::ACTIVE) {
        lrugen.max_seq
    } else if kind == ANON && !flags.contains(PageFlags::SWAPCACHE) || waits {
        min + 1
    } else {
        min
    }
}

/// Puts a page that is not unevictable on the list that its flags ask for (Linux: the same name).
pub(crate) fn lru_gen_add_folio<M: MemMap>(m: &M, lruvec: &mut Lruvec, page: (Pfn, &Page), end: End) {
    let seq = seq_of(&lruvec.lrugen, page.1.flags());
    add_at(m, lruvec, page, (LruGen::place(seq), end));
}

/// Puts a page on the list of a place.
fn add_at<M: MemMap>(m: &M, lruvec: &mut Lruvec, (pfn, page): (Pfn, &Page), (place, end): (usize, End)) {
    let gone = PageFlags::ACTIVE | PageFlags::LRU_GEN;
    let here = PageFlags::LRU | PageFlags::of_lru_gen(place);
    page.update_flags(|flags| flags.difference(gone) | here);
    let (kind, zone) = (type_of(page), page.zone() as usize);
    if let Some(list) = list_mut(lruvec, place, kind, zone) {
        list::push(m, list, (pfn, page), end);
    }
    count(lruvec, (place, kind, zone), |pages| pages + 1);
}

/// Takes a page off its list; false if it is on none of a generation. It is ACTIVE then if it was in one of the two youngest
/// (Linux: the same name).
pub(crate) fn lru_gen_del_folio<M: MemMap>(m: &M, lruvec: &mut Lruvec, page: &Page) -> bool {
    let Some(place) = page.flags().lru_gen() else { return false };
    let (kind, zone) = (type_of(page), page.zone() as usize);
    if let Some(list) = list_mut(lruvec, place, kind, zone) {
        list::unlink(m, list, page);
    }
    count(lruvec, (place, kind, zone), |pages| pages.saturating_sub(1));
    let active = if lruvec.lrugen.is_active(place) { PageFlags::ACTIVE } else { PageFlags::empty() };
    page.update_flags(|flags| flags.difference(PageFlags::LRU_GEN) | active);
    true
}

/// Changes what a zone counts of the pages at a place (Linux: `lru_gen_update_size`).
fn count(lruvec: &mut Lruvec, (place, kind, zone): (usize, usize, usize), f: impl Fn(u64) -> u64) {
    let kind = kind_at(&lruvec.lrugen, place, kind);
    if let Some(pages) = lruvec.zone_pages.get_mut(zone).and_then(|zone| zone.get_mut(kind as usize)) {
        *pages = f(*pages);
    }
}

/// Moves a page to the list of a place, as one that nobody has used yet there (Linux: `folio_inc_gen`).
fn move_to<M: MemMap>(m: &M, lruvec: &mut Lruvec, page: (Pfn, &Page), to: (usize, End)) {
    lru_gen_del_folio(m, lruvec, page.1);
    page.1.remove(LRU_REFS);
    add_at(m, lruvec, page, to);
}

/// Pages that were used, by entries of page tables, come to the youngest generation (Linux: `folio_update_gen`). They are hints: what is
/// on no list, or of another node, is passed over.
pub fn folios_update_gen<M: Lru>(m: &M, node: u32, pfns: &[Pfn]) {
    m.lruvec(node, |lruvec| {
        let youngest = LruGen::place(lruvec.lrugen.max_seq);
        for pfn in pfns {
            let Some(page) = m.page(*pfn).filter(|page| page.node() == node) else { continue };
            let flags = page.flags();
            if flags.contains(PageFlags::LRU) && flags.lru_gen().is_some_and(|place| place != youngest) {
                move_to(m, lruvec, (*pfn, page), (youngest, End::Head));
            }
        }
    });
}

/// A page was used through a descriptor: it is counted, up to what the flags have room for (Linux: the same name).
pub(crate) fn folio_inc_refs(page: &Page) {
    page.update_flags(|flags| {
        let refs = flags & PageFlags::LRU_REFS;
        if flags.contains(PageFlags::UNEVICTABLE) {
            flags
        } else if !flags.contains(PageFlags::REFERENCED) {
            flags | PageFlags::REFERENCED
        } else if !flags.contains(PageFlags::WORKINGSET) {
            flags | PageFlags::WORKINGSET
        } else if refs == PageFlags::LRU_REFS {
            flags
        } else {
            let more = refs.bits() + (1 << memvisor_abi::Page::LRU_REFS_SHIFT);
            flags.difference(PageFlags::LRU_REFS) | PageFlags::from_bits_retain(more)
        }
    });
}

/// Bits of a shadow's age that count uses (Linux: `LRU_REFS_WIDTH`).
const REFS_WIDTH: u32 = 2;

/// What is remembered of a page that goes, in place of an age: its generation, and how often it was used (Linux: `lru_gen_eviction`).
pub(crate) fn lru_gen_eviction(lruvec: &mut Lruvec, page: &Page) -> u64 {
    let (kind, refs) = (type_of(page), page.flags().lru_refs());
    let lrugen = &mut lruvec.lrugen;
    let evicted = &mut lrugen.evicted[kind][PageFlags::lru_tier(refs)];
    *evicted = evicted.saturating_add(1);
    lrugen.min_seq[kind] << REFS_WIDTH | refs.saturating_sub(1)
}

/// A page comes back: its tier learns of it if the oldest generation is still the one that it went from (Linux: `lru_gen_refault`).
pub(crate) fn lru_gen_refault(
    lruvec: &mut Lruvec,
    page: &Page,
    (age, mask, workingset): (u64, u64, bool),
) -> Refault {
    let kind = type_of(page);
    let lrugen = &mut lruvec.lrugen;
    if age >> REFS_WIDTH != (lrugen.min_seq[kind] & mask >> REFS_WIDTH) {
        return Refault::Cold;
    }
    let refs = (age & ((1 << REFS_WIDTH) - 1)) + u64::from(workingset);
    let refaulted = &mut lrugen.refaulted[kind][PageFlags::lru_tier(refs)];
    *refaulted = refaulted.saturating_add(1);
    // Whoever faults waits, and a page that was used more often than can be counted should not have gone.
    if kind == ANON || refs == 1 << REFS_WIDTH {
        page.insert(PageFlags::WORKINGSET);
        return Refault::Restored;
    }
    Refault::Activated
}
