//! Eviction from the oldest generation (Linux: `lru_gen_shrink_lruvec`, `evict_folios`, `isolate_folios`, `scan_folios`, `sort_folio`).
//!
//! ```text
//! locked memory                                          to the unevictable list
//! of a tier that refaults more than the first            to the next generation: protected
//! being written, or dirty and of a file                  to the next generation, and back when it is clean
//! everything else                                        isolated, and decided by shrink_folio_list
//! what that rejects: used, mapped, dirty, locked         to the youngest generation
//! ```

use memvisor_abi::{LruGen, LruKind, Lruvec, MIN_NR_GENS, VmEvent};
use mm_core::{Page, PageFlags, Pfn, refcount};

use super::{ANON, FILE, LRU_GEN_BATCH, LRU_REFS, age, ctrl, list_mut, move_to};
use crate::isolate::move_folios_to_lru;
use crate::list::{self, End};
use crate::page_list::PageList;
use crate::scan_control::{DEF_PRIORITY, ScanStat};
use crate::shrink::{SCAN, STEAL, count_by_kind};
use crate::shrink_folios::shrink_folio_list;
use crate::{Lru, Pages, ScanControl, Zones};

/// Slots that must be free for anonymous pages to be looked at (Linux: the same name, `BITS_PER_LONG`).
const MIN_LRU_BATCH: u64 = 64;

/// The part that anonymous pages have in reclaim: none where they cannot go (Linux: `get_swappiness`).
pub(super) fn swappiness<M: Pages>(m: &M, sc: &ScanControl) -> u32 {
    let has_room = m.nr_swap_pages() >= MIN_LRU_BATCH;
    if sc.may_swap && has_room { m.swappiness() } else { 0 }
}

/// Reclaims from a node by generations (Linux: the same name).
pub(crate) fn lru_gen_shrink_lruvec<M: Zones>(m: &M, node: u32, sc: &mut ScanControl) {
    crate::lru_add_drain(m);
    let before = sc.nr_reclaimed;
    let mut scanned = 0;
    loop {
        let swappiness = swappiness(m, sc);
        let nr_to_scan = get_nr_to_scan(m, node, swappiness > 0, sc);
        if nr_to_scan <= scanned {
            return;
        }
        let delta = evict_folios(m, node, swappiness, sc);
        if delta == 0 || sc.nr_reclaimed - before >= sc.nr_to_reclaim {
            return;
        }
        scanned += delta;
        m.cond_resched();
    }
}

/// Pages to look at. A generation is begun first if eviction has none left, and it is not kswapd, which did so before (Linux: the same name).
fn get_nr_to_scan<M: Zones>(m: &M, node: u32, can_swap: bool, sc: &ScanControl) -> u64 {
    let look = || {
        m.lruvec(node, |lruvec| {
            let (needed, nr_to_scan) = age::should_run_aging(&lruvec.lrugen, can_swap, sc.priority);
            (needed, nr_to_scan, lruvec.lrugen.max_seq, lruvec.lrugen.min_seq[usize::from(!can_swap)])
        })
    };
    let (needed, nr_to_scan, max_seq, min_seq) = look();
    if !needed {
        return nr_to_scan;
    }
    // At the first try whoever allocates takes what is there. kswapd began one if it was needed when it came.
    let is_patient = sc.priority == DEF_PRIORITY || sc.is_kswapd();
    if !is_patient && age::try_to_inc_max_seq(m, node, (max_seq, can_swap), sc) {
        return nr_to_scan;
    }
    if min_seq + MIN_NR_GENS <= max_seq { nr_to_scan } else { 0 }
}

/// A batch off the lists.
struct Isolated {
    pages: PageList,
    kind: usize,
    /// Pages looked at, isolated or not.
    scanned: u64,
    /// What was seen of those that were not.
    stat: ScanStat,
}

/// Works on a batch from the oldest generation; pages looked at, or that a generation ended; 0 if it is of no use to go on (Linux: the same
/// name).
fn evict_folios<M: Zones>(m: &M, node: u32, swappiness: u32, sc: &mut ScanControl) -> u64 {
    let can_swap = swappiness > 0;
    let (batch, progress) = m.lruvec(node, |lruvec| {
        let batch = isolate_folios(m, lruvec, swappiness, sc);
        let has_ended = age::try_to_inc_min_seq(lruvec, can_swap);
        lruvec.isolated[batch.kind] += batch.pages.len();
        let is_at_end = lruvec.lrugen.nr_gens(usize::from(!can_swap)) <= MIN_NR_GENS;
        let progress = if is_at_end { 0 } else { batch.scanned + u64::from(has_ended) };
        (batch, progress)
    });
    let kind = [LruKind::InactiveAnon, LruKind::InactiveFile][batch.kind];
    let count = batch.pages.len();
    sc.nr_scanned += batch.scanned;
    m.count_vm_events(VmEvent::Pgrefill, batch.scanned - count);
    count_by_kind(m, (kind, count), sc, &SCAN);
    sc.nr.add(&batch.stat);
    // Nobody has begun to write what is oldest.
    if batch.stat.unqueued_dirty > 0 && batch.stat.unqueued_dirty == batch.scanned {
        m.wakeup_flusher_threads();
    }
    if count > 0 {
        let (mut back, clean) = shrink(m, (kind, batch.pages), sc, Rejects::SomeAgain);
        if !clean.is_empty() {
            sc.nr_scanned -= clean.len();
            let (mut more, _) = shrink(m, (kind, clean), sc, Rejects::Back);
            while let Some(page) = more.pop(m) {
                back.push(m, page);
            }
        }
        move_folios_to_lru(m, node, (kind, count), back);
        sc.nr.taken += count;
        sc.nr.file_taken += if kind.is_file() { count } else { 0 };
    }
    progress
}

/// What becomes of pages that could not be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rejects {
    /// Those with nothing against them are tried once more.
    SomeAgain,
    /// All go back.
    Back,
}

/// Works through isolated pages, and counts; what goes back to the lists, marked for where, and what is to be tried again.
fn shrink<M: Zones>(
    m: &M,
    (kind, pages): (LruKind, PageList),
    sc: &mut ScanControl,
    rejects: Rejects,
) -> (PageList, PageList) {
    let (back, freed, stat) = shrink_folio_list(m, pages, sc);
    count_by_kind(m, (kind, freed), sc, &STEAL);
    m.count_vm_events(VmEvent::Pgactivate, stat.activate[0] + stat.activate[1]);
    sc.nr_reclaimed += freed;
    sc.nr.add(&stat);
    rejected(m, back, rejects)
}

/// What could not be evicted comes to the youngest generation, or to the second oldest if it only waits for its write: in the oldest it would
/// be tried again at once, and for ever if somebody holds it.
fn rejected<M: Lru>(m: &M, mut back: PageList, rejects: Rejects) -> (PageList, PageList) {
    const WRITES: PageFlags = PageFlags::DIRTY.union(PageFlags::WRITEBACK);
    let busy = WRITES | PageFlags::ACTIVE | PageFlags::REFERENCED | PageFlags::LOCKED;
    let (mut marked, mut again) = (PageList::EMPTY, PageList::EMPTY);
    while let Some((pfn, page)) = back.pop(m) {
        let (flags, mapped) = (page.flags(), page.mapcount() >= 0);
        let is_written = flags.contains(PageFlags::RECLAIM) && flags.intersects(WRITES) && !mapped;
        if flags.contains(PageFlags::UNEVICTABLE) {
            marked.push(m, (pfn, page));
        } else if is_written {
            page.remove(PageFlags::ACTIVE);
            marked.push(m, (pfn, page));
        } else if mapped || flags.intersects(busy) || rejects == Rejects::Back {
            page.update_flags(|flags| flags.difference(LRU_REFS) | PageFlags::ACTIVE);
            marked.push(m, (pfn, page));
        } else {
            // It became clean in between, and the end of its write did not find it on a list.
            again.push(m, (pfn, page));
        }
    }
    (marked, again)
}

/// A batch of the type that should go, or of the other if that has none (Linux: the same name).
fn isolate_folios<M: Lru>(m: &M, lruvec: &mut Lruvec, swappiness: u32, sc: &ScanControl) -> Isolated {
    let lrugen = &lruvec.lrugen;
    let (first, tier) = match swappiness {
        0 => (FILE, None),
        _ if lrugen.min_seq[ANON] < lrugen.min_seq[FILE] => (ANON, None),
        1 => (FILE, None),
        200.. => (ANON, None),
        swappiness => {
            let (kind, tier) = ctrl::get_type_to_scan(lrugen, swappiness);
            (kind, Some(tier))
        }
    };
    let tier = tier.unwrap_or_else(|| ctrl::get_tier_idx(lrugen, first));
    let batch = scan_folios(m, lruvec, (first, tier), sc);
    if batch.scanned > 0 || swappiness == 0 {
        return batch;
    }
    let tier = ctrl::get_tier_idx(&lruvec.lrugen, 1 - first);
    scan_folios(m, lruvec, (1 - first, tier), sc)
}

/// Goes through the oldest generation of a type, zones that help only (Linux: the same name).
fn scan_folios<M: Lru>(
    m: &M,
    lruvec: &mut Lruvec,
    (kind, tier): (usize, usize),
    sc: &ScanControl,
) -> Isolated {
    let mut batch = Isolated { pages: PageList::EMPTY, kind, scanned: 0, stat: ScanStat::default() };
    if lruvec.lrugen.nr_gens(kind) <= MIN_NR_GENS {
        return batch;
    }
    let place = LruGen::place(lruvec.lrugen.min_seq[kind]);
    for zone in (0..=sc.reclaim_idx as usize).rev() {
        // What goes to the head is not looked at again.
        let mut left = list_mut(lruvec, place, kind, zone).map_or(0, |list| list.count);
        while left > 0 && batch.scanned < LRU_GEN_BATCH as u64 {
            let Some(pfn) = list_mut(lruvec, place, kind, zone).and_then(|list| list::last(list)) else {
                break;
            };
            let Some(page) = m.page(pfn) else { break };
            left -= 1;
            batch.scanned += 1;
            if sort_folio(m, lruvec, (pfn, page), (tier, &mut batch.stat)) {
                continue;
            }
            if !isolate_folio(m, lruvec, (pfn, page), sc, &mut batch.pages)
                && let Some(list) = list_mut(lruvec, place, kind, zone)
            {
                list::unlink(m, list, page);
                list::push(m, list, (pfn, page), End::Head);
            }
        }
    }
    batch
}

/// Whether a page of the oldest generation is not to be evicted now, and went elsewhere (Linux: the same name).
fn sort_folio<M: Lru>(
    m: &M,
    lruvec: &mut Lruvec,
    (pfn, page): (Pfn, &Page),
    (tier, stat): (usize, &mut ScanStat),
) -> bool {
    let flags = page.flags();
    if flags.contains(PageFlags::UNEVICTABLE) {
        list::del(m, lruvec, page);
        page.remove(PageFlags::ACTIVE);
        list::add(m, lruvec, (pfn, page), End::Head);
        m.count_vm_events(VmEvent::UnevictablePgsCulled, 1);
        return true;
    }
    let kind = super::type_of(page);
    let next = LruGen::place(lruvec.lrugen.min_seq[kind] + 1);
    let its = PageFlags::lru_tier(flags.lru_refs());
    if its > tier {
        let protected = &mut lruvec.lrugen.protected[kind][its];
        *protected = protected.saturating_add(1);
        move_to(m, lruvec, (pfn, page), (next, End::Head));
        return true;
    }
    let is_written = flags.contains(PageFlags::WRITEBACK);
    let is_dirty = kind == FILE && flags.contains(PageFlags::DIRTY);
    if is_written || is_dirty || flags.contains(PageFlags::LOCKED) {
        stat.dirty += u64::from(is_dirty);
        stat.unqueued_dirty += u64::from(is_dirty && !is_written);
        stat.congested += u64::from(is_written && flags.contains(PageFlags::RECLAIM));
        move_to(m, lruvec, (pfn, page), (next, End::Head));
        if is_written || is_dirty {
            // The end of its write brings it back to the oldest.
            page.insert(PageFlags::RECLAIM);
        }
        return true;
    }
    false
}

/// Takes a page off its list, with a reference; false if it cannot be had or is not wanted (Linux: the same name).
fn isolate_folio<M: Lru>(
    m: &M,
    lruvec: &mut Lruvec,
    (pfn, page): (Pfn, &Page),
    sc: &ScanControl,
    taken: &mut PageList,
) -> bool {
    let is_anon = super::type_of(page) == ANON;
    // Neither written nor swapped for who may not (Linux: the same).
    let is_wanted = (sc.may_unmap || page.mapcount() < 0)
        && (sc.may_writepage || !is_anon || page.has(PageFlags::SWAPCACHE) && !page.has(PageFlags::DIRTY));
    if !is_wanted || !refcount::try_get(page.references()) {
        return false;
    }
    list::del(m, lruvec, page);
    let uses = if page.has(PageFlags::REFERENCED) { PageFlags::REFERENCED } else { LRU_REFS };
    page.remove(PageFlags::LRU | PageFlags::RECLAIM | PageFlags::ACTIVE | uses);
    taken.push(m, (pfn, page));
    true
}
