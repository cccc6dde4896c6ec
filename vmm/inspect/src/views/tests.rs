use memvisor_abi::{Migratetype, PFN_NONE};
use serde_json::Value;

use super::*;
use crate::ptdump::{PtDump, Span};
use crate::testing::{Machine, SyntheticGuest};
use crate::{Guest, Levels, RamRegion, SparseMemory};

fn guest() -> SyntheticGuest {
    let memory = vec![
        (0, RamRegion { gpa: 0, len: 0xa_0000 }),
        (0, RamRegion { gpa: 0x10_0000, len: 0xf0_0000 }),
        (1, RamRegion { gpa: 0x100_0000, len: 0x100_0000 }),
    ];
    SyntheticGuest::new(&Machine { memory, cpus: vec![0, 1], levels: Levels::Four })
}

fn attach(guest: &SyntheticGuest) -> Guest<'_, SparseMemory> {
    Guest::attach(&guest.memory, guest.root_gpa).unwrap()
}

fn json(view: &impl Serialize) -> Value {
    serde_json::to_value(view).unwrap()
}

fn first_line(view: &impl fmt::Display) -> String {
    view.to_string().lines().next().unwrap().to_owned()
}

#[test]
fn e820_shows_both_maps_and_their_agreement_with_the_machine() {
    let guest = guest();
    let view = E820View::new(&attach(&guest), Some(&guest.facts)).unwrap();
    assert_eq!(first_line(&view), "E820 map: 3 entries handed over, 2 after sanitizing, 32384 KiB usable");
    let text = view.to_string();
    assert!(text.contains("handed over (as the VMM built it):"), "{text}");
    assert!(text.contains("[mem 0x0000000000000000-0x000000000009ffff]          640 KiB  usable"), "{text}");
    assert_eq!(json(&view)["sanitized"][1]["start"], "0x100000");
    assert_eq!(json(&view)["raw"][0]["size"], 0xa_0000);

    let mut facts = guest.facts.clone();
    facts.e820[0].size = 0;
    let text = E820View::new(&attach(&guest), Some(&facts)).unwrap().to_string();
    assert!(text.contains("the guest got another one") && text.contains("usable, empty"), "{text}");
}

#[test]
fn the_log_reads_as_dmesg_shows_it_and_says_where_it_is_broken() {
    let mut guest = guest();
    let view = LogView::new(&attach(&guest)).unwrap().unwrap();
    assert_eq!(
        view.to_string(),
        "(1 lines before were overwritten)\n\
         [    1.500000] smp: Brought up\n\
         [    3.000000] Mem-Info:\n\
         [    4.500000] Out of memory\n"
    );
    assert_eq!(json(&view)["lines"][2]["level"], 3);
    let gpa = attach(&guest).kernel_log().unwrap().unwrap().state.buffer_gpa;
    guest.memory.write_u64(gpa + 4096 - 64, 9).unwrap();
    let text = LogView::new(&attach(&guest)).unwrap().unwrap().to_string();
    assert!(
        text.ends_with("the log ends here: the record at place 4032 has number 9, it should have 1\n"),
        "{text}"
    );
}

#[test]
fn numa_shows_cpus_memory_and_distances() {
    let guest = guest();
    let view = NumaView::new(&attach(&guest), Some(&guest.facts)).unwrap();
    assert_eq!(first_line(&view), "NUMA nodes as the guest has them: 2 online");
    assert_eq!(view.nodes[1].cpus, [1]);
    assert_eq!(view.nodes[0].memory.len(), 2);
    assert_eq!(view.built.as_ref().unwrap(), &view.nodes, "both derivations agree");
    assert!(view.to_string().contains("node    0    1\n   0   10   20\n   1   20   10"), "{view}");
}

#[test]
fn a_guest_that_publishes_nothing_is_shown_as_it_was_built() {
    let mut facts = guest().facts;
    facts.distances = vec![vec![10, 20], vec![20, 10]];
    let view = E820View::from_facts(&facts);
    let text = view.to_string();
    assert!(first_line(&view).starts_with("E820 map: 3 entries, as the VMM built it"), "{text}");
    assert_eq!(text.lines().count(), 1 + facts.e820.len());
    let view = NumaView::from_facts(&facts);
    assert!(first_line(&view).ends_with("(the guest publishes nothing): 2"), "{view}");
    assert!(view.to_string().ends_with("node    0    1\n   0   10   20\n   1   20   10\n"), "{view}");
}

#[test]
fn cpus_show_state_and_area() {
    let guest = guest();
    let view = CpusView::new(&attach(&guest), Some(&guest.facts)).unwrap();
    assert_eq!(first_line(&view), "CPUs: 2 online of 2 found by the guest, 2 built");
    assert_eq!(json(&view)["cpus"][1]["state"], "online");
}

#[test]
fn layout_shows_the_whole_address_space() {
    let guest = guest();
    let view = LayoutView::new(&attach(&guest)).unwrap();
    assert_eq!(first_line(&view), "virtual address space with 4 levels");
    assert_eq!((view.ranges[0].start, view.ranges.last().unwrap().last), (0, u64::MAX));
    assert!(
        view.to_string().contains("0xffff888000000000-0xffffc87fffffffff       64 TiB  direct map"),
        "{view}"
    );
}

#[test]
fn memblock_shows_memory_and_reservations() {
    let guest = guest();
    let view = MemblockView::new(&attach(&guest)).unwrap();
    assert!(first_line(&view).starts_with("memblock at hand-over: 32384 KiB memory"), "{view}");
    assert_eq!(view.memory[2].node, Some(1));
    assert_eq!(view.reserved.len(), guest.owners.len());
}

#[test]
fn zones_show_what_the_guest_counts() {
    let guest = guest();
    let view = ZonesView::new(&attach(&guest)).unwrap();
    assert_eq!(first_line(&view), "zones with memory: 2 (quantities in pages)");
    let names: Vec<_> = view.zones.iter().map(|zone| (zone.node, zone.zone)).collect();
    assert_eq!(names, [(0, "DMA"), (1, "DMA32")]);
    assert_eq!(json(&view)["zones"][1]["present"], 4096);
}

#[test]
fn buddy_counts_blocks_and_names_damage() {
    let mut guest = guest();
    let view = BuddyView::new(&attach(&guest)).unwrap();
    assert_eq!(first_line(&view), "free blocks by order, counted on the lists");
    assert!(view.consistent && view.attempts == 1);
    for row in &view.zones {
        assert_eq!((row.free_pages, &row.blocks), (row.claimed_pages, &row.claimed));
    }
    guest.edit_zone(0, |zone| zone.free_pages += 1);
    let view = BuddyView::new(&attach(&guest)).unwrap();
    assert!(!view.consistent && first_line(&view).contains("inconsistent"), "{view}");
    assert!(view.to_string().contains("the zone says"), "{view}");
}

#[test]
fn a_page_is_decoded() {
    let guest = guest();
    let reader = attach(&guest);
    let kernel = PageView::new(&reader, guest.root.kernel_gpa >> 12).unwrap();
    assert_eq!(
        first_line(&kernel),
        format!("page frame {:#x}, guest-physical {:#x}", guest.root.kernel_gpa >> 12, guest.root.kernel_gpa)
    );
    let row = kernel.page.as_ref().unwrap();
    assert_eq!(
        (row.kind, row.flags.as_slice(), row.next),
        ("kernel image", &["reserved".to_owned()][..], None)
    );
    let hole = PageView::new(&reader, 1 << 30).unwrap();
    assert!(hole.page.is_none() && hole.to_string().contains("not RAM"));
    assert!(PageView::new(&reader, u64::MAX).unwrap().page.is_none());
}

#[test]
fn a_page_has_the_owner_that_structures_give_it() {
    let mut guest = guest();
    let owner = |guest: &SyntheticGuest, pfn| {
        let view = PageView::new(&attach(guest), pfn).unwrap();
        assert_eq!(view.owners.len(), 1, "{view}");
        view
    };
    let kernel = owner(&guest, guest.root.kernel_gpa >> 12);
    assert_eq!(kernel.owners, [Owner::Kernel { part: "text" }]);
    let direct_map = guest.root.page_offset + guest.root.kernel_gpa;
    assert!(kernel.mappings.iter().any(|at| at.space == Space::Kernel && at.va == direct_map), "{kernel}");
    let table = owner(&guest, guest.root.pgd_pfn);
    assert_eq!(table.owners, [Owner::Table { space: Space::Kernel, level: 4, va: 0 }]);
    let area = attach(&guest).cpus().unwrap()[1].percpu_gpa >> 12;
    assert_eq!(owner(&guest, area).owners, [Owner::PerCpu { cpu: 1, page: 0 }]);
    let memmap = attach(&guest).sections().unwrap()[0].memmap_pfn;
    assert_eq!(owner(&guest, memmap + 1).owners, [Owner::Memmap { section: 0, first_pfn: 64 }]);
    let reader = attach(&guest);
    let (zone, order, head) = (0..reader.zones().unwrap().len())
        .flat_map(|zone| (3..11).map(move |order| (zone, order)))
        .find_map(|(zone, order)| {
            Some((zone, order, *reader.free_list(zone, order, Migratetype::Movable).unwrap().blocks.first()?))
        })
        .expect("a free block");
    let free = owner(&guest, head + 5);
    assert!(
        matches!(free.owners[0], Owner::Free { head: h, order: o, position: 0, .. } if (h, o) == (head, order))
    );
    assert!(
        free.to_string().contains(&format!("free: block of order {order} at frame {head:#x}, 1 of")),
        "{free}"
    );
    // Off its list it is nobody's, whatever its descriptor says.
    guest.edit_zone(zone as u64, |zone| {
        zone.free_area[order].lists[Migratetype::Movable as usize].head = PFN_NONE
    });
    let lost = PageView::new(&attach(&guest), head).unwrap();
    assert!(lost.owners.is_empty() && lost.to_string().contains("! owner   nobody"), "{lost}");
}

#[test]
fn page_tables_are_listed_under_their_marks() {
    let guest = guest();
    let reader = attach(&guest);
    let dump = PtDump::new(&reader.kernel_walker(), &guest.memory, Span::ALL, &reader.layout().unwrap());
    let text = dump.to_string();
    assert!(text.starts_with("page tables at guest-physical"), "{text}");
    for line in ["---[ direct map ]---", "---[ kernel image ]---", "0 findings"] {
        assert!(text.contains(line), "{text}");
    }
    assert_eq!(json(&dump)["ranges"][0]["mark"], "direct map");
    assert_eq!(json(&dump)["levels"], 4);
}

#[test]
fn a_translation_shows_every_level() {
    let guest = guest();
    let walker = attach(&guest).kernel_walker();
    let view = TranslateView::new(walker.translate(&guest.memory, guest.root.kernel_va + 0x123), None);
    let text = view.to_string();
    for part in ["pgd", "pud", "pmd", "pte", "4K page, r-x kernel", "0x1000123"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(json(&view)["outcome"]["gpa"], "0x1000123");
    let view = TranslateView::new(walker.translate(&guest.memory, 0x1000), None);
    assert!(
        view.to_string().contains("no translation: level 4 entry 0x0000000000000000 is not present"),
        "{view}"
    );
    assert_eq!(json(&view)["outcome"]["fault"], "not_present");
}
