//! The vmalloc range of the synthetic guest, and damage to it.

use memvisor_abi::*;
use memvisor_inspect::SparseMemory;

use super::guest::*;

pub(super) const VMALLOC: u64 = 0xffff_c900_0000_0000;
/// Frames behind the area of two pages, scattered, and behind a stack of four.
pub(super) const AREA_FRAMES: [u64; 2] = [0x3301, 0x3300];
pub(super) const STACK_FRAMES: [u64; 4] = [0x3304, 0x3305, 0x3306, 0x3307];
pub(super) const STACK: u64 = VMALLOC + 0x4000;
pub(super) const DEVICE: u64 = VMALLOC + 0x9000;
/// The window of kmap: two slots, of which the second maps a frame that the kernel allocated.
pub(super) const PKMAP: u64 = VMALLOC + 0x20_0000;
/// Frame of area descriptors, and where the slots are.
const NODES_PFN: u64 = 0x3310;
const SLOTS_GPA: u64 = NODES_PFN * 4096 + 0x1000;

/// What is mapped: address, frame, uncached.
pub(super) fn mappings() -> Vec<(u64, u64, bool)> {
    let at = |start: u64, frames: &[u64]| {
        (0..).zip(frames).map(move |(n, &frame)| (start + n * 4096, frame, false)).collect::<Vec<_>>()
    };
    let device = vec![(DEVICE, 0xf_ed00, true)];
    [at(VMALLOC, &AREA_FRAMES), at(STACK, &STACK_FRAMES), device, vec![(PKMAP + 4096, ALLOCATED_PFN, false)]]
        .concat()
}

/// Kind, mapping and index of the frames that belong to areas or describe them.
pub(super) fn frame_of(pfn: u64) -> Option<(PageKind, u64, u64)> {
    let place = |frames: &[u64]| frames.iter().position(|&frame| frame == pfn).map(|at| at as u64);
    if let Some(index) = place(&AREA_FRAMES) {
        return Some((PageKind::Vmalloc, VMALLOC, index));
    }
    if let Some(index) = place(&STACK_FRAMES) {
        return Some((PageKind::KernelStack, STACK, index));
    }
    // Descriptors, and the frame with the slots.
    (NODES_PFN..NODES_PFN + 2).contains(&pfn).then_some((PageKind::Allocated, 0, 0))
}

fn area(start: u64, end: u64, state: VmState, flags: VmFlags, nr_pages: u64) -> VmArea {
    VmArea { start, end, state: state as u32, flags: flags.bits(), nr_pages, ..VmArea::default() }
}

/// Writes areas, windows and tasks; returns what the root says of them, with tables at `gpa`.
pub(super) fn publish(memory: &mut SparseMemory, gpa: u64) -> (TableRef, TableRef, TableRef) {
    let free = |start, end| area(start, end, VmState::Free, VmFlags::empty(), 0);
    let stack = VmFlags::ALLOC | VmFlags::KERNEL_STACK;
    let device = area(DEVICE, DEVICE + 0x2000, VmState::Busy, VmFlags::IOREMAP, 1);
    let areas = [
        area(VMALLOC, VMALLOC + 0x3000, VmState::Busy, VmFlags::ALLOC, 2),
        free(VMALLOC + 0x3000, STACK),
        area(STACK, STACK + 0x5000, VmState::Busy, stack, 4),
        VmArea { phys: 0xfed0_0000, cache: 3, ..device },
        area(VMALLOC + 0xb000, VMALLOC + 0xd000, VmState::Lazy, VmFlags::empty(), 0),
        free(VMALLOC + 0xd000, PKMAP),
        area(PKMAP, PKMAP + 0x3000, VmState::Busy, VmFlags::MAP | VmFlags::PKMAP, 0),
        free(PKMAP + 0x3000, VMALLOC + (512 << 30)),
    ];
    memory.write_value(NODES_PFN * 4096, &areas).unwrap();
    let empty = KmapSlot { pfn: PFN_NONE, count: 0, next: 0 };
    memory.write_value(SLOTS_GPA, &[empty, KmapSlot { pfn: ALLOCATED_PFN, count: 2, next: 0 }]).unwrap();
    let window = KmapWindow {
        va: PKMAP,
        slots_gpa: SLOTS_GPA,
        count: 2,
        cpu: u32::MAX,
        kind: KmapKind::Pkmap as u32,
        reserved: 0,
    };
    let task = TaskInfo {
        pid: 3,
        state: TaskState::Sleeping as u32,
        stack: STACK,
        stack_len: THREAD_SIZE,
        rsp: STACK + 0x3f00,
        rests: 1,
        name: *b"sleeper\0\0\0\0\0\0\0\0\0",
        pinned: u32::MAX,
        ..TaskInfo::default()
    };
    memory.write_value(gpa, &[NODES_PFN, PFN_NONE]).unwrap();
    memory.write_value(gpa + 0x100, &window).unwrap();
    memory.write_value(gpa + 0x200, &task).unwrap();
    let table = |gpa, count, size: usize| TableRef { gpa, count, stride: u32::try_from(size).unwrap() };
    (
        table(gpa, 2, 8),
        table(gpa + 0x100, 1, size_of::<KmapWindow>()),
        table(gpa + 0x200, 1, size_of::<TaskInfo>()),
    )
}

/// Edits the area with this number.
fn edit_area(guest: &mut TestGuest, number: u64, edit: impl FnOnce(&mut VmArea)) {
    let areas = guest.guest().vm_areas().unwrap();
    let mut area = areas.iter().find(|at| at.number == number).unwrap().area;
    edit(&mut area);
    guest.memory.write_value(NODES_PFN * 4096 + number * 128, &area).unwrap();
}

#[test]
fn vmalloc_areas_sees_a_gap_and_an_overlap() {
    for end in [VMALLOC + 0x3000 - 0x1000 * 2, VMALLOC + 0x5000] {
        let mut guest = healthy();
        edit_area(&mut guest, 1, |area| area.end = end.max(VMALLOC + 0x3800));
        only(&guest, "vmalloc.areas");
    }
    let mut guest = healthy();
    edit_area(&mut guest, 1, |area| area.state = 9);
    assert!(only(&guest, "vmalloc.areas").guest_says.contains("state 9"));
}

#[test]
fn vmalloc_mapped_sees_a_page_that_is_missing() {
    let mut guest = healthy();
    guest.edit_entry(guest.kernel_pgd, STACK + 0x1000, 1, |_| 0);
    let report = guest.audit();
    let rules: Vec<_> = report.findings.iter().map(|finding| finding.rule).collect();
    // The stack has a hole, and its frame has no owner any more.
    assert_eq!(rules, ["vmalloc.mapped", "stack.guard", "owner.none"], "{report}");
}

#[test]
fn vmalloc_mapped_sees_a_device_with_another_cache_mode_or_address() {
    let mut guest = healthy();
    edit_area(&mut guest, 3, |area| area.cache = 2);
    assert_eq!(only(&guest, "vmalloc.mapped").outside_says, "PAT index 3");
    let mut guest = healthy();
    edit_area(&mut guest, 3, |area| area.phys = 0xfed0_1000);
    only(&guest, "vmalloc.mapped");
}

#[test]
fn vmalloc_guard_sees_a_mapped_guard_page() {
    let mut guest = healthy();
    guest.edit_entry(guest.kernel_pgd, VMALLOC + 0x2000, 1, |_| ALLOCATED_PFN << 12 | 0x8000_0000_0000_0003);
    assert_eq!(only(&guest, "vmalloc.guard").address, Some(VMALLOC + 0x2000));
}

#[test]
fn vmalloc_outside_sees_a_mapping_in_a_lazy_area() {
    let mut guest = healthy();
    guest.edit_entry(guest.kernel_pgd, VMALLOC + 0xb000, 1, |_| ALLOCATED_PFN << 12 | 0x8000_0000_0000_0003);
    assert_eq!(only(&guest, "vmalloc.outside").address, Some(VMALLOC + 0xb000));
}

#[test]
fn vmalloc_owner_sees_a_frame_of_another_area() {
    let mut guest = healthy();
    guest.edit_page(AREA_FRAMES[1], |page| page.index = 7);
    assert_eq!(only(&guest, "vmalloc.owner").frame, Some(AREA_FRAMES[1]));
}

#[test]
fn a_frame_behind_two_areas_has_two_owners() {
    let mut guest = healthy();
    let pfn = AREA_FRAMES[0];
    guest.edit_entry(guest.kernel_pgd, STACK, 1, |_| pfn << 12 | 0x8000_0000_0000_0003);
    let rules: Vec<_> = guest.audit().findings.iter().map(|finding| finding.rule).collect();
    assert!(rules.contains(&"owner.single"), "{rules:?}");
}

#[test]
fn stack_guard_sees_a_mapped_page_below_and_a_stack_pointer_outside() {
    let mut guest = healthy();
    guest.edit_entry(guest.kernel_pgd, STACK - 0x1000, 1, |_| ALLOCATED_PFN << 12 | 0x8000_0000_0000_0003);
    let rules: Vec<_> = guest.audit().findings.iter().map(|finding| finding.rule).collect();
    assert_eq!(rules, ["vmalloc.outside", "stack.guard"]);
    let mut guest = healthy();
    let gpa = guest.guest().root().tasks.gpa;
    let rsp = std::mem::offset_of!(TaskInfo, rsp) as u64;
    guest.memory.write_u64(gpa + rsp, STACK - 8).unwrap();
    assert!(only(&guest, "stack.guard").outside_says.contains("stack pointer"));
}

#[test]
fn kmap_slots_sees_a_count_without_mapping_and_a_mapping_without_count() {
    let mut guest = healthy();
    guest.memory.write_value(SLOTS_GPA, &KmapSlot { pfn: 5, count: 2, next: 0 }).unwrap();
    only(&guest, "kmap.slots");
    let mut guest = healthy();
    guest.memory.write_value(SLOTS_GPA + 16, &KmapSlot { pfn: PFN_NONE, count: 0, next: 0 }).unwrap();
    assert!(only(&guest, "kmap.slots").outside_says.contains("0x3200"));
}
