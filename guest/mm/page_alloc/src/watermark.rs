//! Watermarks and lowmem reserves (Linux 6.1: `init_per_zone_wmark_min`,
//! `__setup_per_zone_wmarks`, `setup_per_zone_lowmem_reserve`). All quantities are pages unless the
//! name says kbytes. Divisions round down.
//!
//! ```text
//! min_free_kbytes = clamp(isqrt(16 * lowmem_kbytes), 128, 262144)
//! min(zone)       = (min_free_kbytes / 4) * managed(zone) / sum of managed
//! gap(zone)       = max(min(zone) / 4, managed(zone) * watermark_scale_factor / 10000)
//! low  = min + gap
//! high = low + gap
//!
//! lowmem_reserve(zone, upper) = sum of managed over the node's zones above zone, up to upper,
//!                               divided by ratio(zone); 0 if the zone is empty or the ratio is 0
//! ```
//!
//! MOVABLE counts like any other zone in `min`, as it does in Linux up to 6.4, but not in `lowmem`.

use memvisor_abi::{MAX_NR_ZONES, PAGE_SHIFT, Watermark};
use mm_core::ZoneKind;

use crate::Zone;

/// Linux's default `watermark_scale_factor`: a gap of at least 0.1 % of the zone.
pub const WATERMARK_SCALE_FACTOR: u64 = 10;

/// Linux's default `lowmem_reserve_ratio`, indexed by [`ZoneKind`]. 0 reserves nothing.
pub const LOWMEM_RESERVE_RATIO: [u64; MAX_NR_ZONES] = [256, 256, 32, 0, 0];

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
/// `total_managed` is the sum over all zones of all nodes.
pub const fn zone_watermarks(
    managed: u64,
    total_managed: u64,
    min_free_kbytes: u64,
    watermark_scale_factor: u64,
) -> [u64; 3] {
    let pages_min = min_free_kbytes >> (PAGE_SHIFT - 10);
    let min = match pages_min.saturating_mul(managed).checked_div(total_managed) {
        Some(min) => min,
        None => 0,
    };
    // In this order nothing overflows, and the result is the same (Linux: `mult_frac`).
    let scaled = (managed / 10_000).saturating_mul(watermark_scale_factor)
        + (managed % 10_000).saturating_mul(watermark_scale_factor) / 10_000;
    let gap = if scaled > min / 4 { scaled } else { min / 4 };
    [min, min + gap, min + 2 * gap]
}

/// Pages that each zone of a node keeps from allocations which could have used a higher zone, given
/// the managed pages of the node's zones: `[zone][upper]`, both indexed by [`ZoneKind`] (Linux:
/// `setup_per_zone_lowmem_reserve`).
pub fn lowmem_reserves(
    managed: [u64; MAX_NR_ZONES],
    ratios: [u64; MAX_NR_ZONES],
) -> [[u64; MAX_NR_ZONES]; MAX_NR_ZONES] {
    let mut reserves = [[0; MAX_NR_ZONES]; MAX_NR_ZONES];
    for (zone, (reserve, ratio)) in reserves.iter_mut().zip(ratios).enumerate() {
        if ratio == 0 || managed.get(zone).is_none_or(|pages| *pages == 0) {
            continue;
        }
        let mut above = 0u64;
        for (slot, pages) in reserve.iter_mut().zip(managed).skip(zone + 1) {
            above = above.saturating_add(pages);
            *slot = above / ratio;
        }
    }
    reserves
}

/// Sets the watermarks of all zones of all nodes.
pub fn setup_per_zone_wmarks(zones: &mut [Zone], min_free_kbytes: u64, watermark_scale_factor: u64) {
    let total = zones.iter().map(|zone| zone.info().managed_pages).sum();
    for zone in zones {
        let info = zone.info_mut();
        info.watermark = zone_watermarks(info.managed_pages, total, min_free_kbytes, watermark_scale_factor);
    }
}

/// Sets the lowmem reserves of all zones. The zones of a node are neighbours in `zones`, as in the
/// published table.
pub fn setup_per_zone_lowmem_reserve(zones: &mut [Zone], ratios: [u64; MAX_NR_ZONES]) {
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
