//! Watermarks and reserves that are changed while the kernel runs.

use memvisor_abi::{MAX_NR_ZONES, VmSysctl, Watermark};
use mm_core::CpuLocal;

use super::{Failure, Test, buddy, check};
use crate::mm::pcp::Local;
use crate::mm::{page_alloc, sysctl};

type Outcome = Result<(), Failure>;

pub const TESTS: [(&str, Test); 7] = [
    ("values_out_of_range_are_refused", values_out_of_range_are_refused),
    ("the_minimum_is_shared_by_size", the_minimum_is_shared_by_size),
    ("the_scale_factor_spreads_the_marks", the_scale_factor_spreads_the_marks),
    ("reserves_follow_the_ratios", reserves_follow_the_ratios),
    (
        "a_change_ends_boosts_and_resizes_the_lists_of_all_cpus",
        a_change_ends_boosts_and_resizes_the_lists_of_all_cpus,
    ),
    ("allocations_stop_at_the_raised_minimum", allocations_stop_at_the_raised_minimum),
    ("changes_stay_for_the_audit", changes_stay_for_the_audit),
];

/// Zones with memory: managed pages and watermarks.
fn marks(mut f: impl FnMut(u64, [u64; 3])) {
    for zone in page_alloc::zones() {
        let (managed, marks) = {
            let zone = zone.lock();
            (zone.info().managed_pages, zone.info().watermark)
        };
        if managed > 0 {
            f(managed, marks);
        }
    }
}

fn sum(mark: Watermark) -> u64 {
    let mut sum = 0;
    marks(|_, marks| sum += marks[mark as usize]);
    sum
}

fn restore(to: &VmSysctl) -> Outcome {
    let kbytes = sysctl::set_min_free_kbytes(to.min_free_kbytes);
    let scale = sysctl::set_watermark_scale_factor(to.watermark_scale_factor);
    check(kbytes.is_ok() && scale.is_ok(), "the value from before was refused")
}

fn values_out_of_range_are_refused() -> Outcome {
    let before = sysctl::settings();
    let too_large = i32::MAX as u32 + 1;
    check(sysctl::set_watermark_scale_factor(0).is_err(), "a scale factor of 0")?;
    check(sysctl::set_watermark_scale_factor(3001).is_err(), "a scale factor above 3000")?;
    check(sysctl::set_watermark_boost_factor(too_large).is_err(), "a boost factor that no int holds")?;
    check(sysctl::set_min_free_kbytes(too_large.into()).is_err(), "more kilobytes than an int holds")?;
    check(sysctl::settings() == before, "a refused value changed something")
}

fn the_minimum_is_shared_by_size() -> Outcome {
    let before = sysctl::settings();
    let (mut zones, had) = (0, sum(Watermark::Min));
    marks(|_, _| zones += 1);
    let kbytes = before.min_free_kbytes * 2;
    check(sysctl::set_min_free_kbytes(kbytes).is_ok(), "twice the minimum was refused")?;
    let now = sum(Watermark::Min);
    let settings = sysctl::settings();
    restore(&before)?;
    check(settings.user_min_free_kbytes == kbytes, "nobody knows who asked")?;
    // Less than a page is lost in each zone's division, both times; of highmem the minimum does not change.
    check(now < (had + zones) * 2, "the zones keep more than they should")?;
    check(now >= had + had / 2, "the zones keep hardly more")?;
    check(sum(Watermark::Min) == had, "the way back leads elsewhere")
}

fn the_scale_factor_spreads_the_marks() -> Outcome {
    let before = sysctl::settings();
    let had = sum(Watermark::High);
    check(sysctl::set_watermark_scale_factor(1000).is_ok(), "a tenth was refused")?;
    let mut right = true;
    marks(|managed, [min, low, high]| {
        // Exactly a tenth, unless a quarter of the share is more.
        right &= low - min >= managed / 10_000 * 1000 && high - low == low - min;
    });
    restore(&before)?;
    check(right, "low and high are not a tenth of the zone apart")?;
    check(sum(Watermark::High) == had, "the way back leads elsewhere")
}

fn reserves_follow_the_ratios() -> Outcome {
    let before = sysctl::settings();
    let mut managed = [0; MAX_NR_ZONES];
    for (zone, slot) in page_alloc::zones().zip(&mut managed) {
        *slot = zone.lock().info().managed_pages;
    }
    let reserves =
        |node_zone: usize| page_alloc::zones().nth(node_zone).map(|zone| zone.lock().info().lowmem_reserve);
    sysctl::set_lowmem_reserve_ratio([1, 0, 0, 0, 0]);
    let (dma, dma32) = (reserves(0), reserves(1));
    sysctl::set_lowmem_reserve_ratio(before.lowmem_reserve_ratio);
    if managed[0] == 0 {
        return Err(Failure::Skip("node 0 has no zone DMA"));
    }
    let above = |upper: usize| managed[1..=upper].iter().sum::<u64>();
    check(dma == Some([0, above(1), above(2), above(3), above(4)]), "DMA does not keep all that lies above")?;
    check(dma32 == Some([0; MAX_NR_ZONES]), "a ratio of 0 keeps something")?;
    check(sysctl::settings().changes > before.changes, "nobody counted the changes")
}

fn a_change_ends_boosts_and_resizes_the_lists_of_all_cpus() -> Outcome {
    let before = sysctl::settings();
    let highs = || {
        let mut sum = 0;
        let mut cpus = 0;
        Local.for_each(|_, cpu| {
            cpus += 1;
            sum += cpu.pcps.iter().map(|pcp| u64::from(pcp.high)).sum::<u64>();
        });
        (cpus, sum)
    };
    let had = highs();
    for zone in page_alloc::zones() {
        zone.lock().info_mut().watermark_boost = 1;
    }
    check(sysctl::set_watermark_scale_factor(3000).is_ok(), "30 % were refused")?;
    let boosted = page_alloc::zones().any(|zone| zone.lock().info().watermark_boost > 0);
    let wide = highs();
    restore(&before)?;
    check(!boosted, "a boost outlived new watermarks")?;
    check(wide.0 == had.0 && wide.1 > had.1, "lists did not follow the low watermark")?;
    check(highs() == had, "the way back leads elsewhere")
}

fn allocations_stop_at_the_raised_minimum() -> Outcome {
    let before = sysctl::settings();
    // An eighth of low memory: kilobytes are a quarter of a page.
    let low = page_alloc::zones().map(|zone| {
        let zone = zone.lock();
        if zone.info().start_pfn < before.lowmem_end_pfn { zone.info().managed_pages } else { 0 }
    });
    let kbytes = low.sum::<u64>() / 2;
    check(sysctl::set_min_free_kbytes(kbytes).is_ok(), "an eighth of memory was refused")?;
    let outcome = buddy::exhaustion_ends_at_the_watermark_and_gives_all_back();
    restore(&before)?;
    outcome
}

/// So that the audits have something to compute that is not the default.
fn changes_stay_for_the_audit() -> Outcome {
    let before = sysctl::settings();
    let kbytes = before.min_free_kbytes + before.min_free_kbytes / 4;
    check(sysctl::set_min_free_kbytes(kbytes).is_ok(), "a quarter more was refused")?;
    check(sysctl::set_watermark_scale_factor(150).is_ok(), "1.5 % were refused")?;
    check(sysctl::set_watermark_boost_factor(10_000).is_ok(), "a boost of 100 % was refused")?;
    sysctl::set_lowmem_reserve_ratio([128, 64, 16, 0, 0]);
    let factor = page_alloc::zones().all(|zone| zone.lock().info().watermark_boost_factor == 10_000);
    check(factor, "a zone kept its boost factor")
}
