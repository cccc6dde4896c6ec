//! Bounce buffers against models.
#![expect(clippy::cast_possible_truncation, reason = "64-bit hosts; patterns of bytes")]

mod areas;
mod mappings;

use crate::{DmaMask, SwiotlbOptions, coherent_gfp, is_supported, narrower_gfp, round_nslabs};
use mm_core::{Gfp, PhysAddr, ZoneKind};

#[test]
fn coherent_memory_goes_down_zone_by_zone_and_stops_at_dma() {
    let chain = |bits| {
        let mask = DmaMask::from_bits(bits).unwrap();
        let first = coherent_gfp(Gfp::KERNEL | Gfp::HIGHMEM, mask);
        std::iter::successors(Some(first), |gfp| narrower_gfp(*gfp, mask))
            .map(|gfp| gfp.highest_zone().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(chain(20), [ZoneKind::Dma]);
    assert_eq!(chain(24), [ZoneKind::Dma]);
    assert_eq!(chain(25), [ZoneKind::Dma32, ZoneKind::Dma]);
    assert_eq!(chain(32), [ZoneKind::Dma32, ZoneKind::Dma]);
    assert_eq!(chain(33), [ZoneKind::Normal, ZoneKind::Dma32, ZoneKind::Dma]);
    assert_eq!(chain(64)[0], ZoneKind::Normal);
}

#[test]
fn a_mask_is_served_if_it_has_24_bits_or_reaches_all_ram() {
    let mask = |bits| DmaMask::from_bits(bits).unwrap();
    assert!(is_supported(mask(24), PhysAddr::new(1 << 40)));
    assert!(!is_supported(mask(23), PhysAddr::new(1 << 40)));
    assert!(is_supported(mask(23), PhysAddr::new(1 << 23)));
    assert!(!is_supported(mask(23), PhysAddr::new((1 << 23) + 1)));
}

#[test]
fn a_pool_is_for_machines_with_memory_beyond_32_bits_or_who_asks() {
    let options = |text| SwiotlbOptions::parse(text).unwrap();
    let (small, large) = (PhysAddr::new(1 << 32), PhysAddr::new((1 << 32) + 4096));
    assert!(!SwiotlbOptions::default().wants_pool(small) && SwiotlbOptions::default().wants_pool(large));
    assert!(options("force").wants_pool(small) && !options("noforce").wants_pool(large));
    for text in ["", "force,", "1,2,3", "-1", "4294967296", "0x"] {
        assert_eq!(SwiotlbOptions::parse(text), None, "{text:?}");
    }
}

#[test]
fn a_pool_has_whole_segments_in_each_area() {
    let default = SwiotlbOptions::default();
    assert_eq!(default.nareas(3), 4);
    assert_eq!(default.nareas(0), 1);
    assert_eq!(default.nareas(5000), 64);
    assert_eq!(default.nslabs(256 << 20, 2), 2048);
    assert_eq!(default.nslabs(16 << 20, 1), 512);
    assert_eq!(default.nslabs(1 << 40, 64), 32768);
    assert_eq!(SwiotlbOptions::parse("1,2").unwrap().nslabs(1 << 30, 2), 256);
    assert_eq!(SwiotlbOptions::parse("4294967295").unwrap().nslabs(1 << 30, 1), 524_288);
    assert_eq!(round_nslabs(0, 0), 128);
}
