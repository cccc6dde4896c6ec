//! What compaction remembers of the synthetic guest's zones, and its movable pages.

use memvisor_abi::*;

use super::guest::*;

/// Publishes one owner of movable pages, which has the allocated block.
fn with_movable_page(guest: &mut TestGuest) {
    // A page that memblock reserved and nothing else uses.
    let gpa = 0x26ff << 12;
    let mut owner = MovableOwner { pages: 1, ..MovableOwner::UNUSED };
    owner.name[..4].copy_from_slice(b"test");
    guest.memory.write_value(gpa, &owner).unwrap();
    let stride = u32::try_from(size_of::<MovableOwner>()).unwrap();
    guest.edit_root(|root| root.movable_owners = TableRef { gpa, count: 1, stride });
    guest.edit_page(ALLOCATED_PFN, |page| {
        page.flags |= PageFlags::MOVABLE.bits();
        page.mapping = 1;
    });
}

#[test]
fn a_movable_page_that_its_owner_counts_is_healthy() {
    let mut guest = healthy();
    with_movable_page(&mut guest);
    let report = guest.audit();
    assert!(report.findings.is_empty(), "{report}");
}

#[test]
fn compaction_position_sees_a_scanner_outside_its_zone() {
    let mut guest = healthy();
    guest.edit_zone(NODE0_DMA32, |zone| zone.compact_cached_free_pfn = 0x10_0000);
    assert!(only(&guest, "compaction.position").what.contains("free scanner"));
}

#[test]
fn compaction_deferral_sees_more_turned_away_than_the_limit() {
    let mut guest = healthy();
    guest.edit_zone(NODE0_DMA32, |zone| (zone.compact_defer_shift, zone.compact_considered) = (2, 5));
    only(&guest, "compaction.deferral");
    let mut guest = healthy();
    guest.edit_zone(NODE0_DMA32, |zone| zone.compact_defer_shift = 7);
    only(&guest, "compaction.deferral");
}

#[test]
fn movable_owner_sees_a_free_frame_that_is_marked() {
    let mut guest = healthy();
    let free = guest.zone(NODE0_DMA32).free_area[10].lists[MOVABLE].head;
    guest.edit_page(free, |page| page.flags |= PageFlags::MOVABLE.bits());
    assert_eq!(only(&guest, "movable.owner").frame, Some(free));
}

#[test]
fn movable_owner_sees_a_frame_of_nobody_and_a_wrong_count() {
    let mut guest = healthy();
    with_movable_page(&mut guest);
    let gpa = guest.guest().root().movable_owners.gpa;
    guest.memory.write_u64(gpa + 16, 2).unwrap();
    assert_eq!(only(&guest, "movable.owner").outside_says, "1");
    guest.memory.write_u64(gpa + 16, 0).unwrap();
    guest.edit_page(ALLOCATED_PFN, |page| page.mapping = 9);
    assert_eq!(only(&guest, "movable.owner").frame, Some(ALLOCATED_PFN));
}

#[test]
fn movable_isolated_sees_a_page_that_was_never_put_back() {
    let mut guest = healthy();
    with_movable_page(&mut guest);
    guest.edit_page(ALLOCATED_PFN, |page| page.flags |= PageFlags::ISOLATED.bits());
    assert_eq!(only(&guest, "movable.isolated").outside_says, "1");
    let mut guest = healthy();
    guest.edit_page(ALLOCATED_PFN, |page| page.flags |= PageFlags::ISOLATED.bits());
    assert_eq!(only(&guest, "movable.isolated").frame, Some(ALLOCATED_PFN));
}
