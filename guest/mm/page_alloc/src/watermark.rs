//! Watermarks and lowmem reserves (Linux 6.1: `init_per_zone_wmark_min`,
//! `__setup_per_zone_wmarks`, `setup_per_zone_lowmem_reserve`). All quantities are pages unless the
//! name says kbytes. Divisions round down.
//!
//! ```text
//! min_free_kbytes = clamp(isqrt(16 * lowmem_kbytes), 128, 262144)
//! share(zone)     = (min_free_kbytes / 4) * managed(zone) / sum of managed that is not highmem
//! gap(zone)       = max(share(zone) / 4, managed(zone) * watermark_scale_factor / 10000)
//! min  = share(zone); of highmem clamp(managed(zone) / 1024, 32, 128)
//! low  = min + gap
//! high = low + gap
//!
//! lowmem_reserve(zone, upper) = sum of managed over the node's zones above zone, up to upper,
//!                               divided by ratio(zone); 0 if the zone is empty or the ratio is 0
//! ```
//!
//! Highmem is what lies above [`VmSysctl::lowmem_end_pfn`]: HIGHMEM, and MOVABLE where that is taken from HIGHMEM. Any other
//! MOVABLE counts like any other zone in `min`, as it does in Linux up to 6.4, but not in `lowmem`.

use memvisor_abi::{MAX_NR_ZONES, PAGE_SHIFT, VmSysctl, Watermark};
use mm_core::ZoneKind;

use crate::Zone;

/// Linux's default `watermark_scale_factor`: a gap of at least 0.1 % of the zone.
pub const WATERMARK_SCALE_FACTOR: u64 = VmSysctl::DEFAULT.watermark_scale_factor as u64;

/// Linux's default `lowmem_reserve_ratio`, indexed by [`ZoneKind`]. 0 reserves nothing.
pub const LOWMEM_RESERVE_RATIO: [u32; MAX_NR_ZONES] = VmSysctl::DEFAULT.lowmem_reserve_ratio;

/// The least and the most that a highmem zone keeps: atomic allocations seldom need it (Linux: `SWAP_CLUSTER_MAX` and 128).
const SWAP_CLUSTER_MAX: u64 = 32;
const HIGHMEM_MIN_MAX: u64 = 128;

/// The default `min_free_kbytes` for that many pages of low memory: grows with the square root
/// (Linux: `calculate_min_free_kbytes`).
/// ```
/// // 256 MiB: isqrt(16 * 262144) = 2048, as Linux's table in mm/page_alloc.c says.
/// assert_eq!(mm_page_alloc::watermark::min_free_kbytes(65536), 2048);
/// ```
pub const fn min_free_kbytes(lowmem_pages: u64) -> u64 {
    let lowmem_kbytes = lowmem_pages.saturating_mul(1 << (PAGE_SHIFT - 10));
    let kbytes = lowmem_kbytes.saturating_mul(16).isqrt();
    if kbytes < 128 {
        128
    } else if kbytes > 262_144 {
        262_144
    } else {
        kbytes
    }
}

/// Pages above the high watermarks of all zones but MOVABLE: what [`min_free_kbytes`] starts from,
/// before watermarks are set (Linux: `nr_free_buffer_pages`).
pub fn nr_free_buffer_pages(zones: &[Zone]) -> u64 {
    zones
        .iter()
        .map(Zone::info)
        .filter(|zone| zone.kind <= ZoneKind::Normal as u32)
        .map(|zone| zone.managed_pages.saturating_sub(zone.watermark[Watermark::High as usize]))
        .sum()
}

/// min, low and high of a zone (Linux: `__setup_per_zone_wmarks`).
///
/// `lowmem` is the sum of what is managed over all zones of all nodes that are not highmem; `high` says whether this
/// one is. A zone without pages has no watermarks.
///
/// Differs from Linux: an empty highmem zone has no minimum either, where Linux gives it 32 pages that nobody asks for.
pub const fn zone_watermarks(
    managed: u64,
    high: bool,
    lowmem: u64,
    min_free_kbytes: u64,
    watermark_scale_factor: u64,
) -> [u64; 3] {
    let pages_min = min_free_kbytes >> (PAGE_SHIFT - 10);
    let share = match pages_min.saturating_mul(managed).checked_div(lowmem) {
        Some(share) => share,
        None => 0,
    };
    // In this order nothing overflows, and the result is the same (Linux: `mult_frac`).
    let scaled = (managed / 10_000).saturating_mul(watermark_scale_factor)
        + (managed % 10_000).saturating_mul(watermark_scale_factor) / 10_000;
    let gap = if scaled > share / 4 { scaled } else { share / 4 };
    let min = match managed / 1024 {
        _ if !high => share,
        _ if managed == 0 => 0,
        part if part < SWAP_CLUSTER_MAX => SWAP_CLUSTER_MAX,
        part if part > HIGHMEM_MIN_MAX => HIGHMEM_MIN_MAX,
        part => part,
    };
    let low = min.saturating_add(gap);
    [min, low, low.saturating_add(gap)]
}

/// Whether the direct map does not reach a zone (Linux: `is_highmem`).
pub fn is_highmem(zone: &Zone, tuning: &VmSysctl) -> bool {
    zone.info().spanned_pages > 0 && zone.info().start_pfn >= tuning.lowmem_end_pfn
}

/// Pages that each zone of a node keeps from allocations which could have used a higher zone, given
/// the managed pages of the node's zones: `[zone][upper]`, both indexed by [`ZoneKind`] (Linux:
/// `setup_per_zone_lowmem_reserve`).
pub fn lowmem_reserves(
    managed: [u64; MAX_NR_ZONES],
    ratios: [u32; MAX_NR_ZONES],
) -> [[u64; MAX_NR_ZONES]; MAX_NR_ZONES] {
    let mut reserves = [[0; MAX_NR_ZONES]; MAX_NR_ZONES];
    for (zone, (reserve, ratio)) in reserves.iter_mut().zip(ratios).enumerate() {
        if ratio == 0 || managed.get(zone).is_none_or(|pages| *pages == 0) {
            continue;
        }
        let mut above = 0u64;
        for (slot, pages) in reserve.iter_mut().zip(managed).skip(zone + 1) {
            above = above.saturating_add(pages);
            *slot = above / u64::from(ratio);
        }
    }
    reserves
}

/// Computes `min_free_kbytes` from the zones, which have no watermarks yet, unless somebody asked for a value (Linux:
/// `calculate_min_free_kbytes`, and a write to the sysctl after it).
pub fn calculate_min_free_kbytes(zones: &[Zone], tuning: &mut VmSysctl) {
    tuning.min_free_kbytes = match tuning.user_min_free_kbytes {
        VmSysctl::NOBODY => min_free_kbytes(nr_free_buffer_pages(zones)),
        user => user,
    };
}

/// Sets the watermarks of all zones of all nodes; boosts end (Linux: `__setup_per_zone_wmarks`).
pub fn setup_per_zone_wmarks(zones: &mut [Zone], tuning: &VmSysctl) {
    let low = |zone: &&Zone| !is_highmem(zone, tuning);
    let lowmem = zones.iter().filter(low).map(|zone| zone.info().managed_pages).sum();
    let scale = u64::from(tuning.watermark_scale_factor);
    for zone in zones {
        let high = is_highmem(zone, tuning);
        let info = zone.info_mut();
        info.watermark = zone_watermarks(info.managed_pages, high, lowmem, tuning.min_free_kbytes, scale);
        info.watermark_boost = 0;
        info.watermark_boost_factor = tuning.watermark_boost_factor;
    }
}

/// Sets the lowmem reserves of all zones. The zones of a node are neighbours in `zones`, as in the
/// published table.
pub fn setup_per_zone_lowmem_reserve(zones: &mut [Zone], ratios: [u32; MAX_NR_ZONES]) {
    for node in zones.chunk_by_mut(|left, right| left.info().node == right.info().node) {
        let mut managed = [0; MAX_NR_ZONES];
        for zone in node.iter() {
            if let Some(slot) = slot(&mut managed, zone.info().kind) {
                *slot = zone.info().managed_pages;
            }
        }
        let mut reserves = lowmem_reserves(managed, ratios);
        for zone in node {
            if let Some(reserve) = slot(&mut reserves, zone.info().kind) {
                zone.info_mut().lowmem_reserve = *reserve;
            }
        }
    }
}

fn slot<T>(array: &mut [T; MAX_NR_ZONES], kind: u32) -> Option<&mut T> {
    usize::try_from(kind).ok().and_then(|index| array.get_mut(index))
}
