//! Corruptions of contiguous areas.

use memvisor_abi::*;

use super::guest::*;

/// Frames of the area: free ones of node 0's DMA32.
const BASE: u64 = 0x4000;
const COUNT: u64 = 0x400;
/// Where its bitmap is: in a frame that the kernel has reserved.
const BITMAP: u64 = 0x2500 << 12;
const NODE0_DMA32: usize = 1;

/// A healthy guest with an area that is marked, but whose frames are all handed out, so that no free list changes.
fn with_area(bits: &[u64]) -> TestGuest {
    let mut guest = healthy();
    let area = CmaArea { base_pfn: BASE, count: COUNT, bitmap_gpa: BITMAP, ..CmaArea::NONE };
    let gpa = BITMAP + 0x800;
    guest.memory.write_value(gpa, &area).unwrap();
    let stride = u32::try_from(size_of::<CmaArea>()).unwrap();
    let root = ROOT_GPA + std::mem::offset_of!(Root, cma_areas) as u64;
    guest.memory.write_value(root, &TableRef { gpa, count: 1, stride }).unwrap();
    for (at, word) in (BITMAP..).step_by(8).zip(bits) {
        guest.memory.write_u64(at, *word).unwrap();
    }
    guest
}

fn rules(guest: &TestGuest) -> Vec<&'static str> {
    let mut rules: Vec<_> = guest.audit().findings.iter().map(|finding| finding.rule).collect();
    rules.dedup();
    rules
}

#[test]
fn cma_area_sees_pageblocks_of_another_type_and_a_zone_that_does_not_count() {
    let mut guest = with_area(&[]);
    let report = guest.audit();
    let found: Vec<_> = report.findings.iter().filter(|finding| finding.rule == "cma.area").collect();
    assert!(found.iter().any(|finding| finding.frame == Some(BASE)), "{report}");
    assert!(found.iter().any(|finding| finding.what.contains("node 0 DMA32")), "{report}");
    guest.edit_zone(NODE0_DMA32, |zone| zone.cma_pages = COUNT);
    let report = guest.audit();
    assert!(report.findings.iter().all(|finding| !finding.what.contains("node 0 DMA32")), "{report}");
}

#[test]
fn cma_area_sees_one_that_is_not_of_whole_blocks_or_leaves_ram() {
    for (offset, value) in [(0, BASE + 512), (8, 0), (0, 0x9c00), (0, u64::MAX), (8, u64::MAX)] {
        let mut guest = with_area(&[]);
        guest.memory.write_u64(BITMAP + 0x800 + offset, value).unwrap();
        assert!(rules(&guest).contains(&"cma.area"), "{offset} {value:#x}");
    }
}

#[test]
fn cma_bitmap_sees_a_free_frame_that_somebody_has_and_a_bitmap_outside_ram() {
    let guest = with_area(&[0, 1 << 5]);
    let report = guest.audit();
    let found: Vec<_> = report.findings.iter().filter(|finding| finding.rule == "cma.bitmap").collect();
    assert_eq!(found.len(), 1, "{report}");
    assert_eq!(found[0].frame, Some(BASE + 69));
    let mut guest = with_area(&[]);
    guest.memory.write_u64(BITMAP + 0x800 + 16, 0xd000_0000).unwrap();
    assert!(rules(&guest).contains(&"cma.bitmap"));
}
