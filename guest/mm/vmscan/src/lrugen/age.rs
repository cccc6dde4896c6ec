//! New generations, and the end of old ones (Linux: `try_to_inc_max_seq`, `inc_max_seq`, `inc_min_seq`, `try_to_inc_min_seq`).

use memvisor_abi::{LRU_GEN_TYPES, LruGen, Lruvec, MAX_NR_GENS, MAX_NR_ZONES, MIN_NR_GENS};
use mm_core::Pfn;

use super::{ANON, FILE, LRU_GEN_BATCH, ctrl, folios_update_gen, kind_at, list_mut, move_to};
use crate::list::{self, End};
use crate::scan_control::DEF_PRIORITY;
use crate::{Lru, ScanControl, Throttle, Zones};

/// The types that can be evicted: without swap only files.
pub(super) fn types(can_swap: bool) -> core::ops::Range<usize> {
    usize::from(!can_swap)..LRU_GEN_TYPES
}

/// Whether a generation should be begun, and how many pages there are to evict at this priority (Linux: the same name).
pub(super) fn should_run_aging(lrugen: &LruGen, can_swap: bool, priority: u8) -> (bool, u64) {
    let (mut young, mut old, mut total) = (0, 0, 0);
    for kind in types(can_swap) {
        let min = lrugen.min_seq[kind];
        for seq in min..=lrugen.max_seq.min(min.saturating_add(MAX_NR_GENS as u64 - 1)) {
            let size: u64 = lrugen.lists[LruGen::place(seq)][kind].iter().map(|list| list.count).sum();
            total += size;
            young += if seq == lrugen.max_seq { size } else { 0 };
            old += if seq + MIN_NR_GENS == lrugen.max_seq { size } else { 0 };
        }
    }
    let nr_to_scan = total >> priority;
    // Eviction stalls at MIN_NR_GENS, so one more is the number to have: more are not begun, fewer at once.
    let oldest = lrugen.min_seq[usize::from(!can_swap)];
    if oldest + MIN_NR_GENS > lrugen.max_seq {
        return (true, nr_to_scan);
    }
    if oldest + MIN_NR_GENS < lrugen.max_seq {
        return (false, nr_to_scan);
    }
    // Pages should be spread evenly: too many are young, or too few are left to evict.
    let uneven = young * MIN_NR_GENS > total || old * (MIN_NR_GENS + 2) < total;
    (uneven, nr_to_scan)
}

/// What kswapd does before it evicts (Linux: the same name, `age_lruvec`).
pub(crate) fn lru_gen_age_node<M: Zones>(m: &M, node: u32, sc: &ScanControl) {
    crate::lru_add_drain(m);
    let can_swap = super::evict::swappiness(m, sc) > 0;
    let (needed, max_seq) = m.lruvec(node, |lruvec| {
        (should_run_aging(&lruvec.lrugen, can_swap, sc.priority).0, lruvec.lrugen.max_seq)
    });
    if needed {
        try_to_inc_max_seq(m, node, (max_seq, can_swap), sc);
    }
}

/// Looks which pages were used, and begins a generation after `max_seq`; false if somebody else is about to (Linux: the same name).
pub(super) fn try_to_inc_max_seq<M: Zones>(
    m: &M,
    node: u32,
    (max_seq, can_swap): (u64, bool),
    sc: &ScanControl,
) -> bool {
    let is_first = m.lruvec(node, |lruvec| {
        let lrugen = &mut lruvec.lrugen;
        lrugen.max_seq == max_seq && core::mem::replace(&mut lrugen.walking, 1) == 0
    });
    if !is_first {
        if sc.priority < DEF_PRIORITY - 2 {
            m.reclaim_throttle(node, Throttle::Isolated);
        }
        return m.lruvec(node, |lruvec| lruvec.lrugen.max_seq > max_seq);
    }
    m.walk_page_tables(node, &mut |used: &[Pfn]| folios_update_gen(m, node, used));
    while !inc_max_seq(m, node, can_swap) {}
    m.lruvec(node, |lruvec| lruvec.lrugen.walking = 0);
    true
}

/// Begins one whether or not it is time.
#[cfg(test)]
pub(crate) fn begin_generation<M: Zones>(m: &M, node: u32) {
    let sc = ScanControl::new(
        crate::Who::Kswapd,
        mm_core::Gfp::KERNEL,
        mm_core::Order::ZERO,
        mm_core::ZoneKind::Normal,
    );
    let max_seq = m.lruvec(node, |lruvec| lruvec.lrugen.max_seq);
    assert!(try_to_inc_max_seq(m, node, (max_seq, true), &sc));
}

/// Begins a generation, or makes room for it by a part of what is needed: false then (Linux: the same name). Nobody else does meanwhile.
fn inc_max_seq<M: Lru>(m: &M, node: u32, can_swap: bool) -> bool {
    let now = m.now_ns();
    m.lruvec(node, |lruvec| {
        for kind in [ANON, FILE] {
            // Anonymous pages that have nowhere to go: the oldest become the youngest as they are.
            let is_stuck = kind == ANON && !can_swap;
            if !is_stuck && lruvec.lrugen.nr_gens(kind) == MAX_NR_GENS as u64 && !inc_min_seq(m, lruvec, kind)
            {
                return false;
            }
        }
        let lrugen = &mut lruvec.lrugen;
        if lrugen.nr_gens(ANON) == MAX_NR_GENS as u64 {
            end_oldest(lrugen, ANON);
        }
        lrugen.max_seq += 1;
        lrugen.timestamps[LruGen::place(lrugen.max_seq)] = now;
        count_kinds(lruvec);
        true
    })
}

/// The oldest generation of a type becomes a part of the next; false if only a batch of its pages did (Linux: the same name).
fn inc_min_seq<M: Lru>(m: &M, lruvec: &mut Lruvec, kind: usize) -> bool {
    let oldest = lruvec.lrugen.min_seq[kind];
    let (from, to) = (LruGen::place(oldest), LruGen::place(oldest + 1));
    let mut left = LRU_GEN_BATCH;
    for zone in 0..MAX_NR_ZONES {
        while let Some(pfn) = list_mut(lruvec, from, kind, zone).and_then(|list| list::last(list)) {
            let Some(page) = m.page(pfn) else { break };
            if left == 0 {
                return false;
            }
            left -= 1;
            move_to(m, lruvec, (pfn, page), (to, End::Tail));
        }
    }
    end_oldest(&mut lruvec.lrugen, kind);
    true
}

fn end_oldest(lrugen: &mut LruGen, kind: usize) {
    ctrl::reset_ctrl_pos(lrugen, kind);
    lrugen.min_seq[kind] += 1;
}

/// Oldest generations without pages are done; whether there was one. The types stay together: anonymous pages are never younger than files
/// where they can be evicted (Linux: the same name).
pub(super) fn try_to_inc_min_seq(lruvec: &mut Lruvec, can_swap: bool) -> bool {
    let lrugen = &mut lruvec.lrugen;
    let mut min_seq = lrugen.min_seq;
    for kind in types(can_swap) {
        while min_seq[kind] + MIN_NR_GENS <= lrugen.max_seq
            && lrugen.lists[LruGen::place(min_seq[kind])][kind].iter().all(|list| list.count == 0)
        {
            min_seq[kind] += 1;
        }
    }
    if can_swap {
        min_seq[ANON] = min_seq[ANON].min(min_seq[FILE]);
        min_seq[FILE] = min_seq[ANON].max(lrugen.min_seq[FILE]);
    }
    let mut has_ended = false;
    for kind in types(can_swap) {
        while lrugen.min_seq[kind] < min_seq[kind] {
            end_oldest(lrugen, kind);
            has_ended = true;
        }
    }
    has_ended
}

/// Counts anew what is active: other generations are the youngest now.
fn count_kinds(lruvec: &mut Lruvec) {
    for zone in 0..MAX_NR_ZONES {
        let mut sums = [0; memvisor_abi::NR_LRU_LISTS];
        for (place, types) in lruvec.lrugen.lists.iter().enumerate() {
            for (kind, zones) in types.iter().enumerate() {
                sums[kind_at(&lruvec.lrugen, place, kind) as usize] += zones[zone].count;
            }
        }
        // Those of the unevictable list are none of a generation.
        let unevictable = memvisor_abi::LruKind::Unevictable as usize;
        for (index, sum) in sums.into_iter().enumerate().filter(|(index, _)| *index != unevictable) {
            lruvec.zone_pages[zone][index] = sum;
        }
    }
}
