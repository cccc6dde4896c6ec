//! Numbers computed by hand from the formulas in Linux 6.1.

use memvisor_abi::{MAX_NR_ZONES, VmSysctl};
use mm_core::ZoneKind;

use crate::Zone;
use crate::watermark::{
    LOWMEM_RESERVE_RATIO, WATERMARK_SCALE_FACTOR, calculate_min_free_kbytes, lowmem_reserves,
    min_free_kbytes, nr_free_buffer_pages, setup_per_zone_lowmem_reserve, setup_per_zone_wmarks,
    zone_watermarks,
};

fn node(node: u32, managed: [u64; MAX_NR_ZONES]) -> Vec<Zone> {
    ZoneKind::ALL
        .into_iter()
        .zip(managed)
        .map(|(kind, pages)| {
            let mut zone = Zone::new(node, kind);
            zone.add_managed(pages);
            zone
        })
        .collect()
}

#[test]
fn min_free_kbytes_matches_the_table_in_linux() {
    // The comment above `calculate_min_free_kbytes`: memory in MiB, min_free_kbytes.
    let table = [
        (16, 512),
        (32, 724),
        (64, 1024),
        (128, 1448),
        (256, 2048),
        (512, 2896),
        (1024, 4096),
        (2048, 5792),
        (4096, 8192),
        (8192, 11585),
        (16384, 16384),
    ];
    for (mib, kbytes) in table {
        assert_eq!(min_free_kbytes(mib << 8), kbytes, "{mib} MiB");
    }
}

#[test]
fn min_free_kbytes_has_a_floor_and_a_ceiling() {
    // isqrt(16 * 1023) = 127 and isqrt(16 * 1024) = 128: the floor is reached at 1 MiB.
    assert_eq!(min_free_kbytes(0), 128);
    assert_eq!(min_free_kbytes(255), 128);
    assert_eq!(min_free_kbytes(257), 128);
    // isqrt(16 * 4 TiB) = 262144: the ceiling is reached at 4 TiB.
    assert_eq!(min_free_kbytes((4 << 40) / 4096), 262_144);
    assert_eq!(min_free_kbytes(u64::MAX), 262_144);
}

#[test]
fn watermarks_follow_min_free_kbytes_and_the_scale_factor() {
    // One zone of 65536 pages, 2048 kB: min = 512; gap = max(512 / 4, 65536 * 10 / 10000 = 65) = 128.
    assert_eq!(zone_watermarks(65_536, false, 65_536, 2048, WATERMARK_SCALE_FACTOR), [512, 640, 768]);
    // 4 Mi pages, 16384 kB: min = 4096; gap = max(1024, 4194304 * 10 / 10000 = 4194) = 4194.
    assert_eq!(
        zone_watermarks(4 << 20, false, 4 << 20, 16_384, WATERMARK_SCALE_FACTOR),
        [4096, 8290, 12_484]
    );
    // scale factor 3000: gap = 30 % of 65536 = 19660.
    assert_eq!(zone_watermarks(65_536, false, 65_536, 2048, 3000), [512, 20_172, 39_832]);
    assert_eq!(zone_watermarks(0, false, 0, 2048, WATERMARK_SCALE_FACTOR), [0, 0, 0]);
    assert_eq!(zone_watermarks(0, false, 100, 2048, WATERMARK_SCALE_FACTOR), [0, 0, 0]);
}

#[test]
fn zones_share_the_minimum_by_size() {
    // 3840 + 61440 + 32768 = 98048 pages; MOVABLE is no low memory: 65280 pages, 261120 kB,
    // isqrt(4177920) = 2043 kB, 510 pages.
    let mut zones = node(0, [3840, 61_440, 0, 0, 32_768]);
    let mut tuning = VmSysctl::DEFAULT;
    calculate_min_free_kbytes(&zones, &mut tuning);
    assert_eq!(tuning.min_free_kbytes, 2043);
    setup_per_zone_wmarks(&mut zones, &tuning);
    let marks: Vec<[u64; 3]> = zones.iter().map(|zone| zone.info().watermark).collect();
    // DMA: 510 * 3840 / 98048 = 19, gap max(4, 3) = 4. DMA32: 510 * 61440 / 98048 = 319, gap
    // max(79, 61) = 79. MOVABLE: 510 * 32768 / 98048 = 170, gap max(42, 32) = 42.
    assert_eq!(marks, [[19, 23, 27], [319, 398, 477], [0, 0, 0], [0, 0, 0], [170, 212, 254]]);
    // 65280 - 27 - 477: set watermarks count as taken.
    assert_eq!(nr_free_buffer_pages(&zones), 64_776);
}

#[test]
fn reserves_are_the_memory_above_over_the_ratio() {
    // A PC with 8 GiB: DMA keeps (774144 + 1310720) / 256 from NORMAL, DMA32 1310720 / 256.
    let reserves = lowmem_reserves([3840, 774_144, 1_310_720, 0, 0], LOWMEM_RESERVE_RATIO);
    assert_eq!(reserves, [[0, 3024, 8144, 8144, 8144], [0, 0, 5120, 5120, 5120], [0; 5], [0; 5], [0; 5]]);
    // NORMAL's ratio of 32 shows with MOVABLE: 65536 / 32.
    let reserves = lowmem_reserves([0, 0, 1000, 0, 65_536], LOWMEM_RESERVE_RATIO);
    assert_eq!(reserves, [[0; 5], [0; 5], [0, 0, 0, 0, 2048], [0; 5], [0; 5]]);
    assert_eq!(
        lowmem_reserves([1, 1, 1, 0, 1], [0, 1, 1, 0, 0]),
        [[0; 5], [0, 0, 1, 1, 2], [0, 0, 0, 0, 1], [0; 5], [0; 5]]
    );
}

#[test]
fn reserves_stay_inside_a_node() {
    let mut zones = node(0, [3840, 51_200, 0, 0, 0]);
    zones.extend(node(1, [0, 0, 25_600, 0, 0]));
    setup_per_zone_lowmem_reserve(&mut zones, LOWMEM_RESERVE_RATIO);
    assert_eq!(zones[0].info().lowmem_reserve, [0, 200, 200, 200, 200]);
    assert!(zones[1..].iter().all(|zone| zone.info().lowmem_reserve == [0; 5]));
}

#[test]
fn highmem_keeps_little_and_does_not_thin_out_the_rest() {
    // 96 MiB low, 400 MiB high: the low zones share all of min_free_kbytes, 98304 kB give isqrt(1572864) = 1254.
    let mut zones = node(0, [4096, 20_480, 0, 102_400, 0]);
    for (zone, start) in zones.iter_mut().zip([0, 4096, 0, 24_576, 0]) {
        let pages = zone.info().managed_pages;
        zone.set_extent(mm_core::Pfn::new(start), pages, pages);
    }
    let mut tuning = VmSysctl { lowmem_end_pfn: 24_576, ..VmSysctl::DEFAULT };
    calculate_min_free_kbytes(&zones, &mut tuning);
    assert_eq!(tuning.min_free_kbytes, 1254);
    setup_per_zone_wmarks(&mut zones, &tuning);
    let marks: Vec<[u64; 3]> = zones.iter().map(|zone| zone.info().watermark).collect();
    // 313 pages: DMA 313 * 4096 / 24576 = 52, DMA32 260. HIGHMEM's share would be 1304: a quarter of it is the gap, and the
    // minimum is 102400 / 1024.
    assert_eq!(marks, [[52, 65, 78], [260, 325, 390], [0; 3], [100, 426, 752], [0; 3]]);
    // Small and large ones.
    assert_eq!(zone_watermarks(1000, true, 1000, 128, 10)[0], 32);
    assert_eq!(zone_watermarks(1 << 20, true, 1000, 128, 10)[0], 128);
    assert_eq!(zone_watermarks(0, true, 1000, 128, 10), [0; 3]);
}

#[test]
fn what_somebody_asked_for_stays_and_boosts_end() {
    let mut zones = node(0, [0, 65_536, 0, 0, 0]);
    let mut tuning =
        VmSysctl { user_min_free_kbytes: 4096, watermark_scale_factor: 200, ..VmSysctl::DEFAULT };
    calculate_min_free_kbytes(&zones, &mut tuning);
    assert_eq!(tuning.min_free_kbytes, 4096);
    zones[1].info_mut().watermark_boost = 512;
    tuning.watermark_boost_factor = 7;
    setup_per_zone_wmarks(&mut zones, &tuning);
    assert_eq!(zones[1].info().watermark, [1024, 1024 + 1310, 1024 + 2 * 1310]);
    assert_eq!((zones[1].info().watermark_boost, zones[1].info().watermark_boost_factor), (0, 7));
}
