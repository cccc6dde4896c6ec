//! Numbers computed by hand from the formulas in Linux 6.1.

use memvisor_abi::MAX_NR_ZONES;
use mm_core::ZoneKind;

use crate::Zone;
use crate::watermark::{
    LOWMEM_RESERVE_RATIO, WATERMARK_SCALE_FACTOR, lowmem_reserves, min_free_kbytes, nr_free_buffer_pages,
    setup_per_zone_lowmem_reserve, setup_per_zone_wmarks, zone_watermarks,
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
    assert_eq!(zone_watermarks(65_536, 65_536, 2048, WATERMARK_SCALE_FACTOR), [512, 640, 768]);
    // 4 Mi pages, 16384 kB: min = 4096; gap = max(1024, 4194304 * 10 / 10000 = 4194) = 4194.
    assert_eq!(zone_watermarks(4 << 20, 4 << 20, 16_384, WATERMARK_SCALE_FACTOR), [4096, 8290, 12_484]);
    // scale factor 3000: gap = 30 % of 65536 = 19660.
    assert_eq!(zone_watermarks(65_536, 65_536, 2048, 3000), [512, 20_172, 39_832]);
    assert_eq!(zone_watermarks(0, 0, 2048, WATERMARK_SCALE_FACTOR), [0, 0, 0]);
    assert_eq!(zone_watermarks(0, 100, 2048, WATERMARK_SCALE_FACTOR), [0, 0, 0]);
}

#[test]
fn zones_share_the_minimum_by_size() {
    // 3840 + 61440 + 32768 = 98048 pages; MOVABLE is no low memory: 65280 pages, 261120 kB,
    // isqrt(4177920) = 2043 kB, 510 pages.
    let mut zones = node(0, [3840, 61_440, 0, 0, 32_768]);
    let kbytes = min_free_kbytes(nr_free_buffer_pages(&zones));
    assert_eq!(kbytes, 2043);
    setup_per_zone_wmarks(&mut zones, kbytes, WATERMARK_SCALE_FACTOR);
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
