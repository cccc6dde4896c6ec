//! The arithmetic of get_scan_count.

use proptest::prelude::*;

use crate::{Deactivate, Scan, ScanBalance, ScanCount, inactive_is_low, scan_count};

const SIZES: [u64; 5] = [1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20];

fn base() -> ScanCount {
    ScanCount { priority: 4, swappiness: 60, can_swap: true, scan: Scan::default(), sizes: SIZES }
}

fn sum(counts: [u64; 5]) -> [u64; 2] {
    [counts[0] + counts[1], counts[2] + counts[3]]
}

#[test]
fn without_swap_only_files_are_scanned() {
    let counts = scan_count(&ScanCount { can_swap: false, priority: 0, ..base() });
    assert_eq!(sum(counts), [0, 2 << 20]);
}

#[test]
fn swappiness_0_spares_anonymous_pages_and_200_files() {
    let [anon, file] = sum(scan_count(&ScanCount { swappiness: 0, ..base() }));
    assert!(anon == 0 && file > 0);
    let [anon, file] = sum(scan_count(&ScanCount { swappiness: 200, ..base() }));
    assert!(anon > 0 && file == 0);
    let [anon, file] = sum(scan_count(&ScanCount { swappiness: 100, ..base() }));
    assert_eq!(anon, file);
}

#[test]
fn near_the_end_both_are_scanned_alike_unless_swappiness_is_0() {
    let of = |swappiness| ScanCount { priority: 0, swappiness, ..base() };
    assert_eq!(sum(scan_count(&of(1))), [2 << 20, 2 << 20]);
    assert_eq!(sum(scan_count(&of(0))), [0, 2 << 20]);
}

#[test]
fn tiny_caches_are_spared_and_large_ones_trimmed() {
    let scan = Scan { file_is_tiny: true, cache_trim_mode: true, ..Scan::default() };
    assert_eq!(ScanCount { scan, ..base() }.balance(), ScanBalance::Anon);
    // swappiness 0 does not help then: as in Linux.
    assert_eq!(ScanCount { scan, swappiness: 0, ..base() }.balance(), ScanBalance::Anon);
    let scan = Scan { cache_trim_mode: true, ..Scan::default() };
    assert_eq!(ScanCount { scan, ..base() }.balance(), ScanBalance::File);
}

#[test]
fn the_kind_that_cost_less_is_scanned_more_but_never_alone() {
    let scan = Scan { cost: [1000, 0], ..Scan::default() };
    let [anon, file] = sum(scan_count(&ScanCount { scan, swappiness: 100, ..base() }));
    assert!(anon > 0 && file > anon);
    // 1000 : 2000 with the smoothing.
    assert!(file.abs_diff(anon * 2) <= anon / 50);
}

#[test]
fn each_step_of_priority_doubles_what_is_scanned() {
    let at = |priority| sum(scan_count(&ScanCount { priority, swappiness: 100, ..base() }))[0];
    assert_eq!([at(12), at(11), at(10)], [256, 512, 1024]);
}

#[test]
fn deactivation_is_asked_by_kind() {
    let only = Deactivate { anon: false, file: true };
    assert!(only.allows(true) && !only.allows(false) && !Deactivate::NONE.allows(true));
}

proptest! {
    #[test]
    fn no_list_is_scanned_beyond_its_share(
        priority in 0..13u8,
        swappiness in 0..201u32,
        can_swap: bool,
        cost in any::<[u32; 2]>(),
        sizes in any::<[u32; 5]>(),
    ) {
        let scan = Scan { cost: cost.map(u64::from), ..Scan::default() };
        let sizes = sizes.map(u64::from);
        let counts = scan_count(&ScanCount { priority, swappiness, can_swap, scan, sizes });
        prop_assert_eq!(counts[4], 0);
        for (count, size) in counts.into_iter().zip(sizes) {
            prop_assert!(count <= size >> priority);
        }
    }

    #[test]
    fn an_inactive_list_that_grows_is_not_low_sooner(inactive in 0..1u64 << 30, active in 0..1u64 << 30, more in 0..1000u64) {
        prop_assert!(inactive_is_low(inactive, active) || !inactive_is_low(inactive + more, active));
    }
}
