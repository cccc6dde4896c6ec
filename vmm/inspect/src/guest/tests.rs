use std::mem::offset_of;

use memvisor_abi::{Migratetype, NR_ORDERS, PFN_NONE, Page, PageKind, Root, SectionState};
use proptest::prelude::*;

use super::*;
use crate::testing::{Machine, SyntheticGuest};
use crate::views::{BuddyView, CpusView, E820View, LayoutView, MemblockView, NumaView, PageView, ZonesView};
use crate::{RamRegion, SparseMemory};

fn small() -> SyntheticGuest {
    SyntheticGuest::new(&Machine::pc(16 << 20, Levels::Four))
}

fn two_nodes() -> SyntheticGuest {
    let memory = vec![
        (0, RamRegion { gpa: 0, len: 0xa_0000 }),
        (0, RamRegion { gpa: 0x10_0000, len: 0xf0_0000 }),
        (1, RamRegion { gpa: 0x100_0000, len: 0x100_0000 }),
        (0, RamRegion { gpa: 5 << 30, len: 0x30_0000 }),
    ];
    SyntheticGuest::new(&Machine { memory, cpus: vec![0, 1], levels: Levels::Five })
}

fn attach(guest: &SyntheticGuest) -> Guest<'_, SparseMemory> {
    Guest::attach(&guest.memory, guest.root_gpa).unwrap()
}

/// A free list with at least `len` blocks.
fn long_list(guest: &SyntheticGuest, len: usize) -> FreeList {
    let reader = attach(guest);
    let zones = reader.zones().unwrap().len();
    (0..zones)
        .flat_map(|zone| (0..NR_ORDERS).map(move |order| (zone, order)))
        .map(|(zone, order)| reader.free_list(zone, order, Migratetype::Movable).unwrap())
        .find(|list| list.blocks.len() >= len)
        .expect("the synthetic guest has such a list")
}

#[test]
fn a_guest_is_read_back_as_it_was_built() {
    let guest = two_nodes();
    let reader = attach(&guest);
    assert_eq!(reader.nodes().unwrap().len(), 2);
    assert_eq!(reader.distances().unwrap(), [[10, 20], [20, 10]]);
    assert_eq!(reader.cpus().unwrap()[1].node, 1);
    assert_eq!(reader.e820_raw().unwrap().len(), 4);
    assert_eq!(reader.e820().unwrap().len(), 3, "the adjacent entries are merged");
    assert_eq!(reader.address_spaces().unwrap().len(), 0, "the list is empty");
    assert!(reader.extra_tables().unwrap().is_empty());
    assert_eq!(reader.counters().unwrap(), guest.root.counters);
    let present: u64 = reader.zones().unwrap().iter().map(|zone| zone.present_pages).sum();
    assert_eq!(present << 12, guest.memory.ram_bytes());
}

#[test]
fn every_free_list_of_a_good_guest_is_well_formed() {
    let guest = two_nodes();
    let reader = attach(&guest);
    for (index, zone) in reader.zones().unwrap().iter().enumerate() {
        let mut free = 0;
        for order in 0..NR_ORDERS {
            let list = reader.free_list(index, order, Migratetype::Movable).unwrap();
            assert_eq!(list.problem, None);
            free += (list.blocks.len() as u64) << order;
        }
        assert_eq!(free, zone.free_pages);
    }
}

#[test]
fn descriptors_are_found_by_frame_and_by_section() {
    let guest = two_nodes();
    let reader = attach(&guest);
    let mut seen = 0u64;
    reader
        .for_each_page(|pfn, page| {
            if page.kind != PageKind::None as u8 {
                assert_eq!(reader.page(pfn).unwrap().as_ref(), Some(page));
                seen += 1;
            }
        })
        .unwrap();
    assert_eq!(seen << 12, guest.memory.ram_bytes());
    assert_eq!(reader.page(2 << 30 >> 12).unwrap(), None, "no RAM, no section");
    assert_eq!(reader.page(PFN_NONE).unwrap(), None);
}

#[test]
fn a_deferred_section_has_no_descriptors() {
    let mut guest = two_nodes();
    let at = guest.root.sections.gpa;
    guest.edit(at, |section: &mut Section| {
        (section.state, section.memmap_pfn) = (SectionState::Deferred as u32, PFN_NONE);
    });
    let reader = attach(&guest);
    assert_eq!(reader.page(0x200).unwrap(), None);
    assert!(reader.page(5 << 30 >> 12).unwrap().is_some());
    let mut pages = vec![Page::default(); 3];
    assert_eq!(reader.read_section(&reader.sections().unwrap()[0], &mut pages), Ok(false));
    assert!(pages.is_empty());
}

#[test]
fn the_root_is_found_by_a_scan_and_copies_of_it_are_not() {
    let mut guest = small();
    let root = guest.root;
    guest.memory.write_value(0x3000, &root).unwrap();
    assert_eq!(find_root(&guest.memory), Some(guest.root_gpa));
    assert_eq!(
        Guest::attach(&guest.memory, 0x3000).unwrap_err(),
        AttachError::Copy { gpa: 0x3000, self_gpa: guest.root_gpa }
    );
    guest.root.version += 1;
    guest.write_root();
    assert_eq!(find_root(&guest.memory), None);
}

#[test]
fn what_is_no_root_is_refused_by_name() {
    type Damage = fn(&mut Root);
    let cases: [(Damage, &str); 8] = [
        (|root| root.magic[0] = 0, "no magic"),
        (|root| root.version = 99, "interface version 99"),
        (|root| root.layout_hash ^= 1, "layouts differ"),
        (|root| root.size = 8, "layouts differ"),
        (|root| root.self_gpa += 4096, "this is a copy"),
        (|root| root.levels = 3, "levels is 0x3"),
        (|root| root.phys_bits = 64, "phys_bits is 0x40"),
        (|root| root.pgd_pfn = PFN_NONE, "pgd_pfn"),
    ];
    for (damage, message) in cases {
        let mut guest = small();
        damage(&mut guest.root);
        guest.write_root();
        let error = Guest::attach(&guest.memory, guest.root_gpa).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let guest = small();
    for gpa in [1, 1 << 40, !0xfff] {
        assert_eq!(Guest::attach(&guest.memory, gpa).unwrap_err(), AttachError::Address { gpa });
    }
}

#[test]
fn impossible_tables_are_refused_by_name() {
    let mut guest = small();
    guest.root.zones.count = 321;
    guest.root.cpus.stride = 31;
    guest.root.nodes.gpa = u64::MAX - 8;
    guest.root.e820.gpa = 0;
    guest.root.sections.count = u32::MAX;
    guest.write_root();
    let reader = attach(&guest);
    let table = |error: GuestError| error.to_string();
    assert_eq!(
        table(reader.zones().unwrap_err()),
        "table zones claims 321 elements, at most 320 are possible on this machine"
    );
    assert_eq!(table(reader.cpus().unwrap_err()), "table cpus has stride 31, its elements have 32 bytes");
    assert!(matches!(reader.nodes(), Err(GuestError::NotRam { table: TableName::Nodes, .. })));
    assert!(reader.e820().unwrap_err().is_not_published());
    assert!(matches!(reader.page(5), Err(GuestError::TooMany { table: TableName::Sections, .. })));
}

#[test]
fn a_stride_beyond_the_element_is_honoured() {
    let mut guest = small();
    let zones = attach(&guest).zones().unwrap();
    let at = guest.root.zones.gpa;
    // Further apart, over the same frames: the table is followed by other tables of this test's guest
    // that it does not read.
    guest.memory.write_value(at + 2048, &zones[1]).unwrap();
    (guest.root.zones.stride, guest.root.zones.count) = (2048, 2);
    guest.write_root();
    assert_eq!(attach(&guest).zones().unwrap(), &zones[..2]);
}

#[test]
fn a_cycle_in_a_list_is_found() {
    let mut guest = small();
    let list = long_list(&guest, 2);
    let (first, last) = (list.blocks[0], *list.blocks.last().unwrap());
    guest.edit_page(last, |page| page.next = first);
    let damaged = attach(&guest).free_list(list.zone_index, list.order, Migratetype::Movable).unwrap();
    assert_eq!(damaged.problem, Some(ListProblem::Cycle { pfn: first, after: list.blocks.len() }));
    assert_eq!(damaged.blocks, list.blocks);
}

#[test]
fn a_wrong_back_link_is_recorded_and_the_walk_goes_on() {
    let mut guest = small();
    let list = long_list(&guest, 2);
    let (first, second) = (list.blocks[0], list.blocks[1]);
    guest.edit_page(second, |page| page.prev = 7);
    let damaged = attach(&guest).free_list(list.zone_index, list.order, Migratetype::Movable).unwrap();
    assert_eq!(damaged.problem, Some(ListProblem::BackLink { pfn: second, prev: 7, expected: first }));
    assert_eq!(damaged.blocks, list.blocks);
}

#[test]
fn a_link_out_of_ram_ends_the_walk() {
    let mut guest = small();
    let list = long_list(&guest, 2);
    guest.edit_page(list.blocks[0], |page| page.next = 1 << 40);
    let damaged = attach(&guest).free_list(list.zone_index, list.order, Migratetype::Movable).unwrap();
    assert_eq!(damaged.problem, Some(ListProblem::NoDescriptor { from: list.blocks[0], pfn: 1 << 40 }));
    assert_eq!(damaged.blocks, &list.blocks[..1]);
}

#[test]
fn wrong_counts_and_tails_are_recorded() {
    let guest = small();
    let list = long_list(&guest, 1);
    let (zone, order, last) = (list.zone_index as u64, list.order, *list.blocks.last().unwrap());
    let problem = |edit: &dyn Fn(&mut abi::FreeList)| {
        let mut guest = guest.clone();
        guest.edit_zone(zone, |zone| edit(&mut zone.free_area[order].lists[Migratetype::Movable as usize]));
        attach(&guest).free_list(list.zone_index, order, Migratetype::Movable).unwrap().problem
    };
    assert_eq!(
        problem(&|area| area.nr_free += 3),
        Some(ListProblem::Count { walked: list.nr_free, nr_free: list.nr_free + 3 })
    );
    assert_eq!(problem(&|area| area.tail = 1), Some(ListProblem::Tail { last, tail: 1 }));
}

#[test]
fn the_root_is_read_again_on_refresh() {
    let mut guest = small();
    let memory = guest.memory.clone();
    assert_eq!(attach(&guest).root().stage, guest.root.stage);
    guest.root.stage = 6;
    guest.write_root();
    let mut reader = Guest::attach(&memory, guest.root_gpa).unwrap();
    reader.source = &guest.memory;
    reader.refresh().unwrap();
    assert_eq!(reader.root().stage, 6);
}

/// Calls every reader; returns so that a hang is seen and results are used.
fn read_everything(guest: &Guest<'_, SparseMemory>, pfn: u64) -> usize {
    let mut answers = 0;
    answers += usize::from(E820View::new(guest, None).is_ok_and(|view| !view.to_string().is_empty()));
    answers += usize::from(NumaView::new(guest, None).is_ok_and(|view| !view.to_string().is_empty()));
    answers += usize::from(CpusView::new(guest, None).is_ok_and(|view| !view.to_string().is_empty()));
    answers += usize::from(LayoutView::new(guest).is_ok_and(|view| !view.to_string().is_empty()));
    answers += usize::from(MemblockView::new(guest).is_ok_and(|view| !view.to_string().is_empty()));
    answers += usize::from(ZonesView::new(guest).is_ok_and(|view| !view.to_string().is_empty()));
    answers += usize::from(BuddyView::new(guest).is_ok_and(|view| !view.to_string().is_empty()));
    answers += usize::from(PageView::new(guest, pfn).is_ok_and(|view| !view.to_string().is_empty()));
    answers += usize::from(guest.address_spaces().is_ok());
    answers += usize::from(guest.extra_tables().is_ok());
    answers += usize::from(guest.for_each_page(|_, _| ()).is_ok());
    answers
}

#[test]
fn a_good_guest_answers_everything() {
    let guest = small();
    assert_eq!(read_everything(&attach(&guest), 0x200), 11);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_hostile_root_neither_panics_nor_hangs(
        edits in prop::collection::vec((0..size_of::<Root>() as u64 / 4, hostile_word()), 1..12),
        pfn in any::<u64>(),
    ) {
        let mut guest = tiny_guest();
        for (word, value) in edits {
            // The header must stay, or nothing past attach is reached.
            let offset = (word * 4).max(offset_of!(Root, stage) as u64);
            guest.memory.write(guest.root_gpa + offset, &value.to_le_bytes()).unwrap();
        }
        if let Ok(reader) = Guest::attach(&guest.memory, guest.root_gpa) {
            prop_assert!(read_everything(&reader, pfn) <= 11);
        }
    }

    #[test]
    fn hostile_tables_neither_panic_nor_hang(
        edits in prop::collection::vec((0usize..12, 0u64..2048, hostile_word()), 1..40),
        pfn in 0u64..0x1000,
    ) {
        let mut guest = tiny_guest();
        let root = guest.root;
        let tables = [
            root.layout, root.e820_raw, root.e820, root.memblock_memory, root.memblock_reserved, root.nodes,
            root.zones, root.zones, root.zones, root.sections, root.cpus, root.mm_list,
        ];
        for (table, word, value) in edits {
            let table = tables[table];
            let offset = (word * 4) % (u64::from(table.count) * u64::from(table.stride));
            guest.memory.write(table.gpa + offset / 4 * 4, &value.to_le_bytes()).unwrap();
        }
        prop_assert!(read_everything(&attach(&guest), pfn) <= 11);
    }

    #[test]
    fn hostile_descriptors_neither_panic_nor_hang(
        edits in prop::collection::vec((0u64..0x1000, 0u64..0x1000, 0u64..0x1000), 1..60),
    ) {
        let mut guest = tiny_guest();
        let memmap = attach(&guest).sections().unwrap()[0].memmap_pfn << 12;
        for (pfn, next, prev) in edits {
            guest.memory.write_u64(memmap + pfn * 64 + 8, next).unwrap();
            guest.memory.write_u64(memmap + pfn * 64 + 16, prev).unwrap();
        }
        prop_assert!(read_everything(&attach(&guest), 0) <= 11);
    }
}

/// Built once: building is slower than damaging.
fn tiny_guest() -> SyntheticGuest {
    static GUEST: OnceLock<SyntheticGuest> = OnceLock::new();
    GUEST.get_or_init(small).clone()
}

fn hostile_word() -> impl Strategy<Value = u32> {
    prop_oneof![any::<u32>(), Just(0), Just(u32::MAX), Just(1), 0u32..0x2000, Just(0x8000_0000)]
}
