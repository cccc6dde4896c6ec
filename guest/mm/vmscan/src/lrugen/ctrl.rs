//! Which type and which tiers are evicted, by what came back of those evicted before (Linux: `struct ctrl_pos` and what reads it).
//!
//! A tier is compared with the first one, and anonymous pages with those of files, as a controller compares what it measures with what it
//! aims at: older measurements fade by half with each generation.

use memvisor_abi::{LruGen, MAX_NR_TIERS};

use super::{ANON, FILE};

/// Refaults below this say nothing (Linux: `MIN_LRU_BATCH`).
const MIN_REFAULTS: u128 = 64;

/// What was measured of a tier (Linux: the same name).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CtrlPos {
    refaulted: u64,
    total: u64,
    gain: u64,
}

/// Linux: `read_ctrl_pos`.
fn read(lrugen: &LruGen, kind: usize, tier: usize, gain: u64) -> CtrlPos {
    let (refaulted, total) = (lrugen.avg_refaulted[kind][tier], lrugen.avg_total[kind][tier]);
    let seen = lrugen.evicted[kind][tier].saturating_add(lrugen.protected[kind][tier]);
    CtrlPos {
        refaulted: refaulted.saturating_add(lrugen.refaulted[kind][tier]),
        total: total.saturating_add(seen),
        gain,
    }
}

/// Whether `pv` refaults hardly, or no more than `sp`, of what was evicted, both weighed (Linux: `positive_ctrl_err`).
fn is_better(sp: CtrlPos, pv: CtrlPos) -> bool {
    let [sp_refaulted, sp_total, sp_gain] = [sp.refaulted, sp.total, sp.gain].map(u128::from);
    let [pv_refaulted, pv_total, pv_gain] = [pv.refaulted, pv.total, pv.gain].map(u128::from);
    // Counts are of pages, below 2^52, and weights at most 200.
    pv_refaulted < MIN_REFAULTS
        || pv_refaulted * (sp_total + MIN_REFAULTS) * sp_gain <= (sp_refaulted + 1) * pv_total * pv_gain
}

/// The last tier of a type that is evicted: those above refault at least twice as much as the first (Linux: the same name).
pub(super) fn get_tier_idx(lrugen: &LruGen, kind: usize) -> usize {
    let first = read(lrugen, kind, 0, 1);
    let protected = (1..MAX_NR_TIERS).find(|tier| !is_better(first, read(lrugen, kind, *tier, 2)));
    protected.unwrap_or(MAX_NR_TIERS) - 1
}

/// The type to evict, where both have pages of one age, and the last of its tiers to go (Linux: the same name).
pub(super) fn get_type_to_scan(lrugen: &LruGen, swappiness: u32) -> (usize, usize) {
    let swappiness = u64::from(swappiness.min(200));
    let gain = [swappiness, 200 - swappiness];
    let (anon, file) = (read(lrugen, ANON, 0, gain[ANON]), read(lrugen, FILE, 0, gain[FILE]));
    let kind = usize::from(is_better(anon, file));
    let other = read(lrugen, 1 - kind, 0, gain[1 - kind]);
    let protected = (1..MAX_NR_TIERS).find(|tier| !is_better(other, read(lrugen, kind, *tier, gain[kind])));
    (kind, protected.unwrap_or(MAX_NR_TIERS) - 1)
}

/// The oldest generation of a type is done: what was measured fades, and is measured anew (Linux: the same name, with `carryover`).
pub(super) fn reset_ctrl_pos(lrugen: &mut LruGen, kind: usize) {
    for tier in 0..MAX_NR_TIERS {
        let seen = read(lrugen, kind, tier, 1);
        lrugen.avg_refaulted[kind][tier] = seen.refaulted / 2;
        lrugen.avg_total[kind][tier] = seen.total / 2;
        lrugen.refaulted[kind][tier] = 0;
        lrugen.evicted[kind][tier] = 0;
        lrugen.protected[kind][tier] = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(kind: usize, tier: usize, refaulted: u64, evicted: u64) -> LruGen {
        let mut lrugen = LruGen::EMPTY;
        add(&mut lrugen, (kind, tier), refaulted, evicted);
        lrugen
    }

    fn add(lrugen: &mut LruGen, (kind, tier): (usize, usize), refaulted: u64, evicted: u64) {
        lrugen.refaulted[kind][tier] = refaulted;
        lrugen.evicted[kind][tier] = evicted;
    }

    #[test]
    fn without_refaults_every_tier_goes() {
        assert_eq!(get_tier_idx(&LruGen::EMPTY, FILE), MAX_NR_TIERS - 1);
        assert_eq!(get_tier_idx(&with(FILE, 1, 63, 100), FILE), MAX_NR_TIERS - 1);
    }

    #[test]
    fn a_tier_that_refaults_more_than_twice_as_much_as_the_first_is_protected() {
        // A tenth of the first tier came back.
        let mut lrugen = with(FILE, 0, 100, 1000);
        add(&mut lrugen, (FILE, 2), 180, 1000);
        assert_eq!(get_tier_idx(&lrugen, FILE), MAX_NR_TIERS - 1);
        add(&mut lrugen, (FILE, 2), 240, 1000);
        assert_eq!(get_tier_idx(&lrugen, FILE), 1);
        // Those of another type have nothing to do with it.
        assert_eq!(get_tier_idx(&lrugen, ANON), MAX_NR_TIERS - 1);
    }

    #[test]
    fn the_type_that_refaults_less_is_evicted() {
        let mut lrugen = with(ANON, 0, 500, 1000);
        add(&mut lrugen, (FILE, 0), 100, 1000);
        assert_eq!(get_type_to_scan(&lrugen, 100).0, FILE);
        add(&mut lrugen, (FILE, 0), 900, 1000);
        assert_eq!(get_type_to_scan(&lrugen, 100).0, ANON);
        // Swap is much dearer than files: half as many refaults are not enough.
        assert_eq!(get_type_to_scan(&lrugen, 20).0, FILE);
    }

    #[test]
    fn old_measurements_fade() {
        let mut lrugen = with(FILE, 1, 400, 800);
        lrugen.protected[FILE][1] = 200;
        reset_ctrl_pos(&mut lrugen, FILE);
        assert_eq!((lrugen.avg_refaulted[FILE][1], lrugen.avg_total[FILE][1]), (200, 500));
        assert_eq!(
            (lrugen.refaulted[FILE][1], lrugen.evicted[FILE][1], lrugen.protected[FILE][1]),
            (0, 0, 0)
        );
        reset_ctrl_pos(&mut lrugen, FILE);
        assert_eq!((lrugen.avg_refaulted[FILE][1], lrugen.avg_total[FILE][1]), (100, 250));
    }
}
