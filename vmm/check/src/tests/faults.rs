//! One corruption, one finding of the rule meant for it.

use memvisor_abi::*;

use super::guest::*;
use crate::watermark::{Sums, Tuning, min_free_kbytes, watermarks};

#[test]
fn e820_raw_names_the_entry_that_differs() {
    let mut guest = healthy();
    guest.facts.e820[2].size = 0x800;
    // The sanitized map is right for the raw one; facts are another machine's.
    assert!(only(&guest, "e820.raw").what.contains("entry 2"));
}

#[test]
fn e820_clean_names_the_first_entry_that_differs() {
    let mut guest = healthy();
    let gpa = guest.guest().root().e820.gpa;
    guest.memory.write_u64(gpa + 24, 0x9_f800).unwrap();
    let finding = only(&guest, "e820.clean");
    assert!(finding.what.contains("entry 1"), "{finding}");
}

#[test]
fn numa_nodes_sees_a_node_too_large() {
    let mut guest = healthy();
    let gpa = guest.guest().root().nodes.gpa;
    guest.memory.write_u64(gpa + 32 + 24, 1).unwrap();
    assert!(only(&guest, "numa.nodes").guest_says.contains("present 1"));
}

#[test]
fn numa_distances_sees_a_wrong_distance() {
    let mut guest = healthy();
    let gpa = guest.guest().root().distances.gpa;
    guest.memory.write(gpa + 1, &[99]).unwrap();
    let finding = only(&guest, "numa.distances");
    assert_eq!((finding.guest_says.as_str(), finding.outside_says.as_str()), ("99", "21"));
}

#[test]
fn cpu_list_sees_a_cpu_that_did_not_start() {
    let mut guest = healthy();
    guest.edit_cpu(1, |cpu| cpu.state = CpuState::Failed as u32);
    assert_eq!(only(&guest, "cpu.list").guest_says, "failed");
}

#[test]
fn cpu_list_sees_a_cpu_on_the_wrong_node() {
    let mut guest = healthy();
    guest.edit_cpu(1, |cpu| cpu.node = 0);
    only(&guest, "cpu.list");
}

#[test]
fn memblock_memory_sees_a_wrong_node() {
    let mut guest = healthy();
    let gpa = guest.guest().root().memblock_memory.gpa;
    guest.memory.write(gpa + 24 + 16, &[1]).unwrap();
    assert_eq!(only(&guest, "memblock.memory").frame, Some(0x100));
}

#[test]
fn cpu_percpu_sees_two_areas_that_overlap() {
    let mut guest = healthy();
    guest.edit_cpu(0, |cpu| cpu.percpu_len += 0x800);
    assert_eq!(only(&guest, "cpu.percpu").address, Some(37 * MIB + 0x1_0000));
}

#[test]
fn zone_extent_sees_wrong_present_pages() {
    let mut guest = healthy();
    guest.edit_zone(NODE0_DMA32, |zone| zone.present_pages += 1);
    assert!(only(&guest, "zone.extent").what.contains("node 0 DMA32"));
}

#[test]
fn zone_managed_sees_pages_that_were_never_handed_over() {
    let mut guest = healthy();
    let watermark = guest.zone(NODE0_DMA32).watermark;
    let lost = (1..8).find(|lost| {
        let zones = guest.guest().zones().unwrap();
        let all: u64 = zones.iter().map(|zone| zone.managed_pages).sum();
        let (total, managed) = (all - lost, zones[NODE0_DMA32].managed_pages - lost);
        let sums = Sums { buffer: total, low: total };
        watermarks(managed, false, sums, &Tuning::default()) == watermark
            && min_free_kbytes(total * 4) == min_free_kbytes(all * 4)
    });
    let lost = lost.expect("some pages fewer change no watermark");
    guest.edit_zone(NODE0_DMA32, |zone| zone.managed_pages -= lost);
    only(&guest, "zone.managed");
}

#[test]
fn zone_sysctl_sees_a_request_that_was_not_obeyed() {
    let mut guest = healthy();
    let gpa = guest.guest().root().vm_sysctl.gpa;
    guest.memory.write_u64(gpa + std::mem::offset_of!(VmSysctl, user_min_free_kbytes) as u64, 77).unwrap();
    assert!(only(&guest, "zone.sysctl").to_string().contains("asked for 77"));
}

#[test]
fn zone_sysctl_sees_what_the_command_line_did_not_ask_for() {
    let mut guest = healthy();
    guest.facts.cmdline = "watermark_boost_factor=7".to_owned();
    only(&guest, "zone.sysctl");
}

#[test]
fn lowmem_moves_every_border_that_depends_on_it() {
    let mut guest = healthy();
    guest.facts.cmdline = "lowmem=128M".to_owned();
    let report = guest.audit();
    for rule in ["zone.extent", "memmap.zone", "pgtable.direct-map", "zone.sysctl"] {
        assert!(report.findings.iter().any(|finding| finding.rule == rule), "{rule}: {report}");
    }
    let direct = report.findings.iter().find(|finding| finding.rule == "pgtable.direct-map").unwrap();
    assert_eq!(direct.frame, Some(0x8000));
}

#[test]
fn pgtable_direct_map_sees_a_hole() {
    let mut guest = healthy();
    let pgd = guest.kernel_pgd;
    guest.edit_entry(pgd, PAGE_OFFSET + 64 * MIB, 2, |_| 0);
    assert_eq!(only(&guest, "pgtable.direct-map").frame, Some(0x4000));
}

#[test]
fn zone_free_pages_sees_a_counter_off_by_one() {
    let mut guest = healthy();
    guest.edit_zone(NODE0_DMA32, |zone| zone.free_pages += 1);
    only(&guest, "zone.free_pages");
}

#[test]
fn zone_deferred_sees_a_wrong_counter() {
    let mut guest = healthy();
    guest.edit_zone(NODE1_DMA32, |zone| zone.deferred_pages -= 1);
    assert_eq!(only(&guest, "zone.deferred").outside_says, "8160");
}

#[test]
fn zone_watermark_sees_a_wrong_minimum() {
    let mut guest = healthy();
    guest.edit_zone(NODE0_DMA32, |zone| zone.watermark[0] = 1);
    only(&guest, "zone.watermark");
}

#[test]
fn zone_lowmem_reserve_sees_a_missing_reserve() {
    let mut guest = healthy();
    guest.edit_zone(NODE1_DMA32, |zone| zone.lowmem_reserve = [0; 5]);
    only(&guest, "zone.lowmem_reserve");
}

#[test]
fn buddy_merge_sees_two_free_buddies() {
    let mut guest = healthy();
    let pfn = guest.take_block(NODE0_DMA32, 2);
    guest.put_block(NODE0_DMA32, 1, pfn);
    guest.put_block(NODE0_DMA32, 1, pfn + 2);
    assert_eq!(only(&guest, "buddy.merge").frame, Some(pfn));
}

#[test]
fn buddy_alignment_sees_a_block_between_two() {
    let mut guest = healthy();
    // 0 1 2 3 becomes 0, 1-2, 3: the middle is no block.
    let pfn = guest.take_block(NODE0_DMA32, 2);
    guest.put_block(NODE0_DMA32, 0, pfn);
    guest.put_block(NODE0_DMA32, 0, pfn + 3);
    guest.put_block(NODE0_DMA32, 1, pfn + 1);
    assert_eq!(only(&guest, "buddy.alignment").frame, Some(pfn + 1));
}

#[test]
fn buddy_list_sees_a_cycle() {
    let mut guest = healthy();
    let area = guest.zone(NODE0_DMA32).free_area[10].lists[MOVABLE];
    assert!(area.nr_free > 1);
    guest.edit_page(area.tail, |page| page.next = area.head);
    assert!(only(&guest, "buddy.list").what.contains("comes back"));
}

#[test]
fn buddy_list_sees_a_wrong_back_link() {
    let mut guest = healthy();
    let area = guest.zone(NODE0_DMA32).free_area[10].lists[MOVABLE];
    guest.edit_page(area.tail, |page| page.prev = area.tail);
    assert_eq!(only(&guest, "buddy.list").frame, Some(area.tail));
}

#[test]
fn buddy_list_sees_a_wrong_tail() {
    let mut guest = healthy();
    guest.edit_zone(NODE0_DMA32, |zone| {
        zone.free_area[10].lists[MOVABLE].tail = zone.free_area[10].lists[MOVABLE].head
    });
    only(&guest, "buddy.list");
}

#[test]
fn buddy_list_sees_a_block_of_another_order() {
    let mut guest = healthy();
    let head = guest.zone(NODE0_DMA32).free_area[10].lists[MOVABLE].head;
    guest.edit_page(head, |page| page.order = 9);
    assert_eq!(only(&guest, "buddy.list").frame, Some(head));
}

#[test]
fn buddy_zone_sees_a_block_on_another_zones_list() {
    let mut guest = healthy();
    let pfn = guest.take_block(NODE0_DMA32, 10);
    guest.put_block(NODE1_DMA32, 10, pfn);
    assert_eq!(only(&guest, "buddy.zone").frame, Some(pfn));
}

#[test]
fn buddy_nr_free_sees_a_counter_off_by_one() {
    let mut guest = healthy();
    guest.edit_zone(NODE0_DMA32, |zone| zone.free_area[10].lists[MOVABLE].nr_free += 1);
    only(&guest, "buddy.nr_free");
}

#[test]
fn buddy_in_ram_sees_a_free_block_that_reaches_into_a_hole() {
    let mut guest = healthy();
    // What is free from 0x80 up to the legacy hole becomes one block that takes the hole along.
    let hole = 0x9f;
    let blocks = [(4, 0x80), (3, 0x90), (2, 0x98), (1, 0x9c), (0, 0x9e)];
    for (order, pfn) in blocks {
        let area = guest.zone(0).free_area[order].lists[MOVABLE];
        // The list may start with lower blocks: rotate until the wanted one is first.
        let lower: Vec<u64> = (0..area.nr_free).map(|_| guest.take_block(0, order)).collect();
        for block in lower.into_iter().filter(|&block| block != pfn) {
            guest.put_block(0, order, block);
        }
    }
    guest.put_block(0, 5, 0x80);
    guest.edit_page(hole, |page| *page = Page::default());
    assert_eq!(only(&guest, "buddy.in-ram").frame, Some(hole));
}

#[test]
fn memmap_node_sees_wrong_node_bits_of_a_run_of_frames_once() {
    let mut guest = healthy();
    for pfn in USER_PFN..USER_PFN + 3 {
        guest.edit_page(pfn, |page| page.flags |= 1 << Page::NODE_SHIFT);
    }
    let finding = only(&guest, "memmap.node");
    assert_eq!(finding.frame, Some(USER_PFN));
    assert!(finding.what.contains("0x3100..0x3103"), "{finding}");
}

#[test]
fn memmap_zone_sees_wrong_zone_bits() {
    let mut guest = healthy();
    guest.edit_page(USER_PFN, |page| page.flags ^= 3 << Page::ZONE_SHIFT);
    assert_eq!(only(&guest, "memmap.zone").guest_says, "Normal");
}

#[test]
fn memmap_refcount_sees_a_mapcount_without_a_mapping() {
    let mut guest = healthy();
    guest.edit_page(USER_PFN, |page| page.mapcount += 1);
    let finding = only(&guest, "memmap.refcount");
    assert_eq!(finding.outside_says, "1 user page-table entries map it");
    assert!(finding.history.unwrap().contains(", page 0 of mapping 0x"));
}

#[test]
fn memmap_refcount_sees_a_mapped_frame_without_references() {
    let mut guest = healthy();
    guest.edit_page(USER_PFN, |page| page.refcount = 0);
    let rules: Vec<_> = guest.audit().findings.iter().map(|finding| finding.rule).collect();
    assert_eq!(rules, ["rmap.refcount", "memmap.refcount"]);
}

#[test]
fn memmap_refcount_sees_a_free_frame_with_references() {
    let mut guest = healthy();
    let head = guest.zone(NODE0_DMA32).free_area[10].lists[MOVABLE].head;
    guest.edit_page(head + 5, |page| page.refcount = 1);
    assert_eq!(only(&guest, "memmap.refcount").frame, Some(head + 5));
}

#[test]
fn memmap_flags_sees_what_a_free_frame_was() {
    for flag in [PageFlags::SWAPBACKED, PageFlags::SWAPCACHE, PageFlags::LRU, PageFlags::DIRTY] {
        let mut guest = healthy();
        let head = guest.zone(NODE0_DMA32).free_area[10].lists[MOVABLE].head;
        guest.edit_page(head + 5, |page| page.flags |= flag.bits());
        assert_eq!(only(&guest, "memmap.flags").frame, Some(head + 5));
        // That it was used not long ago does no harm.
        guest.edit_page(head + 5, |page| {
            page.flags = page.flags & !flag.bits() | PageFlags::REFERENCED.bits()
        });
        assert_eq!(guest.audit().findings, []);
    }
}

#[test]
fn memmap_reserved_sees_a_missing_flag() {
    let mut guest = healthy();
    guest.edit_page(0x1000, |page| page.flags &= !PageFlags::RESERVED.bits());
    assert_eq!(only(&guest, "memmap.reserved").frame, Some(0x1000));
}

#[test]
fn memmap_reserved_sees_a_flag_too_many() {
    let mut guest = healthy();
    guest.edit_page(USER_PFN, |page| page.flags |= PageFlags::RESERVED.bits());
    only(&guest, "memmap.reserved");
}

#[test]
fn pgtable_wx_sees_writable_kernel_text() {
    let mut guest = healthy();
    let pgd = guest.kernel_pgd;
    guest.edit_entry(pgd, KERNEL_VA + 0x5000, 1, |entry| entry | 2);
    assert_eq!(only(&guest, "pgtable.wx").address, Some(KERNEL_VA + 0x5000));
}

#[test]
fn pgtable_user_sees_kernel_memory_open_to_ring_3() {
    let mut guest = healthy();
    let pgd = guest.kernel_pgd;
    for level in 1..=3 {
        guest.edit_entry(pgd, FIXMAP, level, |entry| entry | 4);
    }
    let top = guest.entry_gpa(pgd, FIXMAP, 4) - (pgd << 12);
    for pgd in [pgd, guest.user_pgd] {
        let gpa = (pgd << 12) + top;
        let entry = memvisor_inspect::MemorySource::read_u64(&guest.memory, gpa).unwrap();
        guest.memory.write_u64(gpa, entry | 4).unwrap();
    }
    assert_eq!(only(&guest, "pgtable.user").address, Some(FIXMAP));
}

#[test]
fn pgtable_reserved_bits_sees_an_address_past_the_physical_width() {
    let mut guest = healthy();
    let pgd = guest.kernel_pgd;
    guest.edit_entry(pgd, KERNEL_VA, 1, |entry| entry | 1 << 50);
    assert_eq!(only(&guest, "pgtable.reserved-bits").address, Some(KERNEL_VA));
}

#[test]
fn pgtable_table_in_ram_sees_a_table_in_a_hole() {
    let mut guest = healthy();
    let pgd = guest.kernel_pgd;
    let va = 0xffff_c900_0000_0000;
    let gpa = guest.entry_gpa(pgd, va, 4);
    guest.memory.write_u64(gpa, 0xd000_0000 | 3).unwrap();
    let shared = (guest.user_pgd << 12) + (gpa - (pgd << 12));
    guest.memory.write_u64(shared, 0xd000_0000 | 3).unwrap();
    assert_eq!(only(&guest, "pgtable.table-in-ram").frame, Some(0xd_0000));
}

#[test]
fn pgtable_table_in_ram_sees_a_table_inside_itself() {
    let mut guest = healthy();
    let pgd = guest.kernel_pgd;
    guest.memory.write_u64(guest.entry_gpa(pgd, 0, 4), pgd << 12 | 3).unwrap();
    assert!(only(&guest, "pgtable.table-in-ram").what.contains("contains itself"));
}

#[test]
fn pgtable_leaf_in_ram_sees_a_direct_map_over_a_hole() {
    let mut guest = healthy();
    let pgd = guest.kernel_pgd;
    // ACPI data above 159.875 MiB may be mapped, what follows at 160 MiB may not.
    let gpa = guest.entry_gpa(pgd, PAGE_OFFSET + 160 * MIB, 2);
    guest.memory.write_u64(gpa, (160 * MIB) | 0x83 | (1 << 63)).unwrap();
    assert_eq!(only(&guest, "pgtable.leaf-in-ram").frame, Some(0xa000));
}

#[test]
fn pgtable_cache_alias_sees_ram_mapped_uncached() {
    let mut guest = healthy();
    let pgd = guest.kernel_pgd;
    guest.edit_entry(pgd, FIXMAP, 1, |entry| entry & 0xfff | ALLOCATED_PFN << 12 | 1 << 63);
    let finding = only(&guest, "pgtable.cache-alias");
    assert_eq!(finding.frame, Some(ALLOCATED_PFN));
    assert!(finding.what.contains("uncached"), "{finding}");
}

#[test]
fn pgtable_exec_alias_sees_text_writable_through_the_direct_map() {
    let mut guest = healthy();
    let pgd = guest.kernel_pgd;
    guest.edit_entry(pgd, PAGE_OFFSET + KERNEL_GPA, 2, |entry| entry | 2);
    assert_eq!(only(&guest, "pgtable.exec-alias").frame, Some(KERNEL_GPA >> 12));
}

#[test]
fn pgtable_canonical_sees_a_mapping_in_a_guard_hole() {
    let mut guest = healthy();
    let gpa = guest.guest().root().layout.gpa;
    // The guard hole grows over the first page of the direct map.
    guest.memory.write_u64(gpa + 2 * 24 + 8, PAGE_OFFSET).unwrap();
    assert_eq!(only(&guest, "pgtable.canonical").address, Some(PAGE_OFFSET));
}

#[test]
fn pgtable_canonical_sees_a_register() {
    let mut guest = healthy();
    guest.registers[0].gs_base = 0x0000_8000_0000_0000;
    assert!(only(&guest, "pgtable.canonical").what.contains("gs base"));
}

#[test]
fn pgtable_cr3_sees_a_cpu_on_an_unknown_table() {
    let mut guest = healthy();
    // A copy of the process's top level in a frame that the kernel allocated.
    for slot in 256..512 {
        let entry =
            memvisor_inspect::MemorySource::read_u64(&guest.memory, (guest.kernel_pgd << 12) + slot * 8);
        guest.memory.write_u64((ALLOCATED_PFN << 12) + slot * 8, entry.unwrap()).unwrap();
    }
    guest.registers[1].cr3 = ALLOCATED_PFN << 12;
    let report = guest.audit();
    let rules: Vec<_> = report.findings.iter().map(|finding| finding.rule).collect();
    // The frame is in use as a table and allocated for something else at once, too.
    assert_eq!(rules, ["pgtable.cr3", "owner.single"], "{report}");
}

#[test]
fn pgtable_cr3_sees_another_depth() {
    let mut guest = healthy();
    guest.registers[0].cr4 |= 1 << 12;
    only(&guest, "pgtable.cr3");
}

#[test]
fn pgtable_shared_kernel_sees_an_entry_that_a_process_misses() {
    let mut guest = healthy();
    let gpa = guest.entry_gpa(guest.user_pgd, VMEMMAP, 4);
    guest.memory.write_u64(gpa, 0).unwrap();
    assert_eq!(only(&guest, "pgtable.shared-kernel").frame, Some(guest.user_pgd));
}

#[test]
fn owner_single_sees_a_page_table_freed_while_in_use() {
    let mut guest = healthy();
    guest.put_block(NODE0_DMA32, 0, guest.user_pgd);
    let finding = only(&guest, "owner.single");
    assert_eq!(finding.frame, Some(guest.user_pgd));
    assert_eq!(finding.outside_says, "page table and buddy at once");
}

#[test]
fn owner_single_sees_reserved_memory_that_is_free() {
    let mut guest = healthy();
    guest.put_block(NODE0_DMA32, 0, 0x26ff);
    guest.edit_page(0x26ff, |page| page.flags |= PageFlags::RESERVED.bits());
    assert_eq!(only(&guest, "owner.single").outside_says, "buddy and reserved at once");
}

#[test]
fn owner_none_sees_a_leaked_block_once() {
    let mut guest = healthy();
    let pfn = guest.take_block(NODE0_DMA32, 3);
    for frame in pfn..pfn + 8 {
        guest.edit_page(frame, |page| page.kind = PageKind::None as u8);
    }
    let finding = only(&guest, "owner.none");
    assert_eq!(finding.frame, Some(pfn));
    assert!(finding.history.is_some());
}

#[test]
fn owner_sum_sees_an_owner_outside_ram() {
    let mut guest = healthy();
    // The frame below the legacy hole becomes an allocated block of two.
    let area = guest.zone(0).free_area[0].lists[MOVABLE];
    assert_eq!((area.nr_free, guest.take_block(0, 0)), (1, 0x9e));
    guest.edit_page(0x9e, |page| {
        (page.kind, page.order, page.refcount) = (PageKind::Allocated as u8, 1, 1);
    });
    assert_eq!(only(&guest, "owner.sum").frame, Some(0x9f));
}

#[test]
fn owner_agrees_sees_a_wrong_kind() {
    let mut guest = healthy();
    guest.edit_page(USER_PFN + 1, |page| page.kind = PageKind::Table as u8);
    let finding = only(&guest, "owner.agrees");
    assert_eq!((finding.guest_says.as_str(), finding.outside_says.as_str()), ("page table", "user"));
}

#[test]
fn attach_tables_sees_a_table_outside_ram_and_skips_what_needs_it() {
    let mut guest = healthy();
    guest.edit_root(|root| root.zones.gpa = 3 * GIB);
    let finding = only(&guest, "attach.tables");
    assert!(finding.what.contains("zones"), "{finding}");
    assert!(guest.audit().skipped().any(|(name, _)| name == "owner.single"));
}

#[test]
fn attach_root_sees_another_builds_layouts() {
    let mut guest = healthy();
    guest.edit_root(|root| root.layout_hash ^= 1);
    assert!(only(&guest, "attach.root").what.contains("matching builds"));
}

#[test]
fn pageblock_type_sees_a_number_that_is_no_type() {
    let mut guest = healthy();
    guest.edit_section(0, |section| section.pageblocks[3] = 7);
    assert_eq!(only(&guest, "pageblock.type").frame, Some(0x600));
}

#[test]
fn pageblock_isolated_sees_a_free_block_where_nothing_is_allocated() {
    let mut guest = healthy();
    let head = guest.zone(NODE0_DMA32).free_area[10].lists[MOVABLE].head;
    let block = usize::try_from(head >> PAGEBLOCK_ORDER).unwrap();
    guest.edit_section(0, |section| section.pageblocks[block] = Migratetype::Isolate as u8);
    guest.edit_zone(NODE0_DMA32, |zone| zone.nr_isolate_pageblock = 1);
    assert_eq!(only(&guest, "pageblock.isolated").frame, Some(head));
}

#[test]
fn buddy_type_sees_a_block_that_names_another_list() {
    let mut guest = healthy();
    let head = guest.zone(NODE0_DMA32).free_area[10].lists[MOVABLE].head;
    guest.edit_page(head, |page| page.migratetype = Migratetype::Cma as u8);
    assert_eq!(only(&guest, "buddy.type").frame, Some(head));
}

#[test]
fn buddy_nonempty_sees_a_wrong_bit() {
    let mut guest = healthy();
    guest.edit_zone(NODE0_DMA32, |zone| zone.nonempty[MOVABLE] ^= 1 << 10);
    only(&guest, "buddy.nonempty");
}

#[test]
fn zone_cma_sees_a_counter_off_by_one() {
    let mut guest = healthy();
    guest.edit_zone(NODE0_DMA32, |zone| zone.nr_free_cma += 1);
    only(&guest, "zone.cma");
}

#[test]
fn zone_highatomic_sees_a_reserve_without_pageblocks() {
    let mut guest = healthy();
    guest.edit_zone(NODE0_DMA32, |zone| zone.nr_reserved_highatomic = PAGEBLOCK_PAGES);
    only(&guest, "zone.highatomic");
    // With the pageblock it is right.
    guest.edit_section(0, |section| section.pageblocks[40] = Migratetype::HighAtomic as u8);
    assert_eq!(guest.audit().findings, []);
}

#[test]
fn zone_isolated_sees_a_pageblock_too_many() {
    let mut guest = healthy();
    guest.edit_zone(NODE1_DMA32, |zone| zone.nr_isolate_pageblock = 1);
    only(&guest, "zone.isolated");
}

#[test]
fn zone_boost_sees_one_above_its_limit_and_one_that_is_off() {
    let mut guest = healthy();
    guest.edit_zone(NODE0_DMA32, |zone| {
        (zone.watermark_boost_factor, zone.watermark_boost) = (15_000, 10_000);
    });
    only(&guest, "zone.boost");
    guest.edit_zone(NODE0_DMA32, |zone| zone.watermark_boost = 512);
    assert_eq!(guest.audit().findings, []);
    guest.edit_zone(NODE0_DMA32, |zone| zone.watermark_boost_factor = 0);
    only(&guest, "zone.boost");
}

#[test]
fn zone_watermark_follows_the_settings_in_force() {
    let mut guest = healthy();
    guest.facts.cmdline = "quiet min_free_kbytes=4096 watermark_scale_factor=200".into();
    // The marks are those of the settings that are published, which are not those that were asked for.
    only(&guest, "zone.sysctl");
    let gpa = guest.guest().root().vm_sysctl.gpa;
    guest.memory.write_u64(gpa + std::mem::offset_of!(VmSysctl, min_free_kbytes) as u64, 4096).unwrap();
    let report = guest.audit();
    assert!(report.findings.iter().any(|finding| finding.rule == "zone.watermark"), "{report}");
}

#[test]
fn buddy_known_zero_sees_a_byte_that_is_not() {
    let mut guest = healthy();
    let head = guest.zone(NODE0_DMA32).free_area[10].lists[MOVABLE].head;
    guest.memory.write(((head + 700) << 12) + 9, &[1]).unwrap();
    assert_eq!(only(&guest, "buddy.known-zero").frame, Some(head + 700));
}
