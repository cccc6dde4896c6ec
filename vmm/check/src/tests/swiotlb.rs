//! Corruptions of bounce buffers.

use memvisor_abi::*;

use super::guest::*;

/// A pool of one segment in frames that the kernel has as one block of the healthy guest's image: reserved, and RAM.
const POOL_GPA: u64 = KERNEL_GPA;
const SLOTS_GPA: u64 = KERNEL_GPA + 0x10_0000;
const AREAS_GPA: u64 = SLOTS_GPA + 0x8000;
const TABLE_GPA: u64 = AREAS_GPA + 0x1000;
const NSLABS: u32 = 256;

/// A healthy guest with a pool, in which a mapping of 5000 bytes of [`ALLOCATED_PFN`] has the slots 130 to 132 if `mapped`.
fn with_pool(mapped: bool) -> TestGuest {
    let mut guest = healthy();
    let pool = SwiotlbPool {
        start: POOL_GPA,
        slots_gpa: SLOTS_GPA,
        areas_gpa: AREAS_GPA,
        nslabs: NSLABS,
        nareas: 2,
        reserved: 1,
        force: 0,
    };
    guest.memory.write_value(TABLE_GPA, &pool).unwrap();
    let stride = u32::try_from(size_of::<SwiotlbPool>()).unwrap();
    guest.edit_root(|root| root.swiotlb = TableRef { gpa: TABLE_GPA, count: 1, stride });
    for index in 0..NSLABS {
        let run = if mapped && (128..130).contains(&index) { 130 - index } else { 128 - index % 128 };
        guest.memory.write_value(slot_gpa(index), &SwiotlbSlot::free(run)).unwrap();
    }
    guest
        .memory
        .write_value(AREAS_GPA, &SwiotlbArea { mapped: 4, unmapped: 4, ..SwiotlbArea::default() })
        .unwrap();
    let area =
        SwiotlbArea { used: if mapped { 3 } else { 0 }, index: 5, mapped: 9, ..SwiotlbArea::default() };
    let area = SwiotlbArea { unmapped: if mapped { 8 } else { 9 }, ..area };
    guest.memory.write_value(AREAS_GPA + 32, &area).unwrap();
    if mapped {
        // 100 bytes into the first slot: 1948, 2048 and 1004 bytes.
        for (at, before) in [(0_u32, 0), (1, 1948), (2, 3996)] {
            let slot = SwiotlbSlot {
                orig_addr: (ALLOCATED_PFN << 12) + 100 + before,
                alloc_size: 5000 - u32::try_from(before).unwrap(),
                list: 0,
                head: 130,
                offset: if at == 0 { 100 } else { 0 },
            };
            guest.memory.write_value(slot_gpa(130 + at), &slot).unwrap();
        }
    }
    guest
}

fn slot_gpa(index: u32) -> u64 {
    SLOTS_GPA + u64::from(index) * size_of::<SwiotlbSlot>() as u64
}

fn rules(guest: &TestGuest) -> Vec<&'static str> {
    let mut rules: Vec<_> = guest.audit().findings.iter().map(|finding| finding.rule).collect();
    rules.dedup();
    rules
}

fn edit_slot(guest: &mut TestGuest, index: u32, edit: impl FnOnce(&mut SwiotlbSlot)) {
    let pool = guest.guest().swiotlb_pools().unwrap()[0];
    let mut slot = guest.guest().swiotlb_slots(&pool).unwrap()[index as usize];
    edit(&mut slot);
    guest.memory.write_value(slot_gpa(index), &slot).unwrap();
}

#[test]
fn a_pool_with_nothing_in_it_is_healthy_and_one_with_a_mapping_leaks() {
    assert_eq!(rules(&with_pool(false)), [""; 0]);
    let guest = with_pool(true);
    let report = guest.audit();
    assert_eq!(rules(&guest), ["swiotlb.leak"], "{report}");
    assert!(report.findings[0].what.contains("slots 130..133"), "{report}");
    // Nobody says that a transfer may not go on at a moment that the guest did not choose.
    let report = crate::audit(&crate::Evidence { moment: crate::Moment::Any, ..guest.evidence() });
    assert_eq!(report.findings, [], "{report}");
}

#[test]
fn swiotlb_slots_sees_a_wrong_count_of_free_ones() {
    for index in [0, 127, 128, 255] {
        let mut guest = with_pool(false);
        edit_slot(&mut guest, index, |slot| slot.list += 1);
        assert_eq!(rules(&guest), ["swiotlb.slots"], "{index}");
    }
}

#[test]
fn swiotlb_slots_sees_a_mapping_that_is_torn() {
    let changes: [fn(&mut SwiotlbSlot); 5] = [
        |slot| slot.orig_addr += 1,
        |slot| slot.alloc_size -= 1,
        |slot| slot.list = 1,
        |slot| slot.head = 129,
        |slot| slot.offset = 2047,
    ];
    for change in changes {
        let mut guest = with_pool(true);
        edit_slot(&mut guest, 131, change);
        assert!(rules(&guest).contains(&"swiotlb.slots"));
    }
}

#[test]
fn swiotlb_slots_sees_an_area_that_counts_wrongly() {
    let mut guest = with_pool(false);
    guest.memory.write_value(AREAS_GPA, &1_u32).unwrap();
    assert_eq!(rules(&guest), ["swiotlb.slots"]);
    let mut guest = with_pool(false);
    guest.memory.write_u64(AREAS_GPA + 8, 7).unwrap();
    assert_eq!(rules(&guest), ["swiotlb.slots"]);
}

#[test]
fn swiotlb_pool_sees_places_that_cannot_be() {
    for (offset, value) in [
        (0, POOL_GPA + 1),
        (0, 5 * GIB),
        (0, 0x9_f000),
        (8, 0xd000_0000),
        (24, 255),
        (24, u64::from(NSLABS) | 3 << 32),
    ] {
        let mut guest = with_pool(false);
        guest.memory.write_u64(TABLE_GPA + offset, value).unwrap();
        let rules = rules(&guest);
        assert!(rules.iter().any(|rule| rule.starts_with("swiotlb.")), "{offset} {value:#x}: {rules:?}");
    }
    // RAM that memblock did not reserve.
    let mut guest = with_pool(false);
    guest.memory.write_u64(TABLE_GPA, ALLOCATED_PFN << 12).unwrap();
    assert!(rules(&guest).contains(&"swiotlb.pool"));
}

#[test]
fn swiotlb_pool_sees_a_mapping_of_what_is_not_there() {
    for original in [0xd000_0000, POOL_GPA + 0x1000, 0x4000 << 12] {
        let mut guest = with_pool(true);
        for (index, before) in [(130, 0), (131, 1948), (132, 3996)] {
            edit_slot(&mut guest, index, |slot| slot.orig_addr = original + before);
        }
        assert!(rules(&guest).contains(&"swiotlb.pool"), "{original:#x}");
    }
}
