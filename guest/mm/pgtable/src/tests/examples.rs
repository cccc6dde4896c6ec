//! One behaviour each.

use core::cell::Cell;
use std::vec::Vec;

use mm_core::{Pfn, PhysAddr, VirtAddr};

use super::mem::TestMem;
use crate::{
    CacheMode, Entry, FlushRange, Gather, KeepTables, LeafSize, Levels, MapError, Mapping, PageTable, Prot,
    PteFlags, TABLE_ENTRIES, TableMem,
};

const K4: u64 = 4 << 10;
const M2: u64 = 2 << 20;
const G1: u64 = 1 << 30;
const BOTH: [Levels; 2] = [Levels::Four, Levels::Five];

fn tree(levels: Levels) -> (TestMem, PageTable) {
    let mut mem = TestMem::default();
    let table = PageTable::new(&mut mem, levels).unwrap();
    (mem, table)
}

fn va(raw: u64) -> VirtAddr {
    VirtAddr::new(raw)
}

fn pa(raw: u64) -> PhysAddr {
    PhysAddr::new(raw)
}

/// Leaves of the lower half as (first address, level), ascending.
fn leaves(mem: &TestMem, table: PageTable) -> Vec<(u64, u8)> {
    let mut leaves = Vec::new();
    let half = table.levels.half_len();
    table.for_each_leaf(mem, va(0), half, |leaf| leaves.push((leaf.va.as_u64(), leaf.level))).unwrap();
    leaves
}

fn unmap(mem: &mut TestMem, table: PageTable, at: u64, len: u64, keep: KeepTables) -> Option<FlushRange> {
    let mut gather = Gather::new();
    table.unmap(mem, va(at), len, keep, &mut gather, |_, _, _| {}).unwrap();
    spend(mem, gather)
}

fn spend(mem: &mut TestMem, gather: Gather) -> Option<FlushRange> {
    let mut flushed = None;
    gather.flush(mem, |range| flushed = Some(range));
    flushed
}

fn addresses(range: Option<FlushRange>) -> Vec<u64> {
    match range {
        Some(FlushRange::Pages(pages)) => pages.as_slice().iter().map(|page| page.as_u64()).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn map_takes_the_largest_leaves_that_both_alignments_allow() {
    for levels in BOTH {
        let (mut mem, table) = tree(levels);
        let (start, end) = (G1 - M2 - K4, 2 * G1 + M2 + K4);
        table.map(&mut mem, va(start), pa(start), end - start, Prot::KERNEL_RW, LeafSize::Size1G).unwrap();
        let expect = [(start, 1), (G1 - M2, 2), (G1, 3), (2 * G1, 2), (2 * G1 + M2, 1)];
        assert_eq!(leaves(&mem, table), expect);
    }
}

#[test]
fn map_takes_small_leaves_when_the_frames_are_out_of_step() {
    let (mut mem, table) = tree(Levels::Four);
    table.map(&mut mem, va(G1), pa(M2 + K4), 2 * M2, Prot::KERNEL_RW, LeafSize::Size1G).unwrap();
    let leaves = leaves(&mem, table);
    assert_eq!(leaves.len(), 1024);
    assert!(leaves.iter().all(|(_, level)| *level == 1));
}

#[test]
fn map_obeys_the_largest_size_it_is_given() {
    let (mut mem, table) = tree(Levels::Four);
    table.map(&mut mem, va(0), pa(0), 2 * G1, Prot::KERNEL_RW, LeafSize::Size2M).unwrap();
    assert_eq!(leaves(&mem, table).len(), 1024);
    assert!(leaves(&mem, table).iter().all(|(_, level)| *level == 2));
}

#[test]
fn map_writes_each_entry_once() {
    let (mut mem, table) = tree(Levels::Five);
    let before = mem.writes.get();
    table.map(&mut mem, va(0), pa(0), 256 << 20, Prot::KERNEL_RW, LeafSize::Size4K).unwrap();
    // 65536 leaves, 128 tables of level 1, one each of levels 2 to 4.
    assert_eq!(mem.writes.get() - before, 65536 + 128 + 3);
}

#[test]
fn map_publishes_a_table_only_when_it_is_complete() {
    struct Watch(TestMem, Cell<bool>);
    impl TableMem for Watch {
        fn read(&self, table: Pfn, index: usize) -> u64 {
            self.0.read(table, index)
        }
        fn write(&self, table: Pfn, index: usize, value: u64) {
            let entry = Entry::new(value);
            if entry.flags(2) == Entry::table(Pfn::new(0), false).flags(2) {
                self.1.set(self.1.get() && !self.0.is_zero(entry.table_pfn()));
            }
            self.0.write(table, index, value);
        }
        fn alloc_table(&mut self) -> Option<Pfn> {
            self.0.alloc_table()
        }
        fn free_table(&mut self, table: Pfn) {
            self.0.free_table(table);
        }
    }
    let mut mem = Watch(TestMem::default(), Cell::new(true));
    let table = PageTable::new(&mut mem, Levels::Five).unwrap();
    table.map(&mut mem, va(G1), pa(0), 3 * M2, Prot::KERNEL_RW, LeafSize::Size4K).unwrap();
    assert!(mem.1.get());
}

#[test]
fn map_refuses_what_is_taken_and_names_the_first_address() {
    for levels in BOTH {
        let (mut mem, table) = tree(levels);
        let size = LeafSize::Size2M;
        table.map(&mut mem, va(4 * M2), pa(0), M2, Prot::KERNEL_RW, size).unwrap();
        let error = table.map(&mut mem, va(M2), pa(0), 8 * M2, Prot::KERNEL_RW, size).unwrap_err();
        assert_eq!(error, MapError::AlreadyMapped { va: va(4 * M2) });
        // In the middle of a large leaf.
        let at = 4 * M2 + 5 * K4;
        let error = table.map(&mut mem, va(at), pa(0), K4, Prot::KERNEL_RW, size).unwrap_err();
        assert_eq!(error, MapError::AlreadyMapped { va: va(at) });
        assert_eq!(leaves(&mem, table), [(M2, 2), (2 * M2, 2), (3 * M2, 2), (4 * M2, 2)]);
    }
}

#[test]
fn map_without_memory_leaves_no_empty_table() {
    for levels in BOTH {
        let depth = usize::from(levels.count());
        for budget in 0..depth {
            let (mut mem, table) = tree(levels);
            mem.budget = Some(budget);
            let result = table.map(&mut mem, va(M2 - K4), pa(0), 2 * K4, Prot::USER_RW, LeafSize::Size4K);
            // One page needs a table of each level; the second needs one more.
            let (stop, live) = if budget < depth - 1 { (M2 - K4, 1) } else { (M2, depth) };
            assert_eq!(result, Err(MapError::NoMemory { va: va(stop) }));
            assert_eq!(mem.live(), live);
        }
    }
}

#[test]
fn ranges_are_checked_before_anything_changes() {
    for levels in BOTH {
        let (mut mem, table) = tree(levels);
        let half = levels.half_len();
        let upper = levels.upper_half().as_u64();
        let mut map = |at, phys, len| {
            table.map(&mut mem, va(at), pa(phys), len, Prot::KERNEL_RW, LeafSize::Size4K).unwrap_err()
        };
        for (at, phys, len) in [(1, 0, K4), (0, 8, K4), (0, 0, K4 + 1)] {
            assert_eq!(map(at, phys, len), MapError::Misaligned { va: va(at), pa: pa(phys), len });
        }
        let below_zero = 0u64.wrapping_sub(K4);
        for (at, len) in
            [(half, K4), (half - K4, 2 * K4), (upper - K4, 2 * K4), (below_zero, 2 * K4), (0, half + K4)]
        {
            assert_eq!(map(at, 0, len), MapError::NonCanonical { va: va(at), len });
        }
        let top = 1 << 52;
        assert_eq!(map(0, top - K4, 2 * K4), MapError::PhysTooHigh { pa: pa(top - K4), len: 2 * K4 });
        assert_eq!(mem.live(), 1);
    }
}

#[test]
fn the_last_page_of_the_address_space_can_be_mapped() {
    for levels in BOTH {
        let (mut mem, table) = tree(levels);
        let last = 0u64.wrapping_sub(K4);
        table.map(&mut mem, va(last), pa(0x5000), K4, Prot::KERNEL_RX, LeafSize::Size4K).unwrap();
        let mapping = table.translate(&mem, va(u64::MAX)).unwrap();
        assert_eq!((mapping.phys, mapping.effective), (pa(0x5fff), Prot::KERNEL_RX));
        assert_eq!(addresses(unmap(&mut mem, table, last, K4, KeepTables::Root)), [last]);
        assert_eq!(mem.live(), 1);
    }
}

#[test]
fn nothing_is_done_for_an_empty_range() {
    let (mut mem, table) = tree(Levels::Four);
    table.map(&mut mem, va(0), pa(0), 0, Prot::KERNEL_RW, LeafSize::Size4K).unwrap();
    assert_eq!(unmap(&mut mem, table, 0, 0, KeepTables::Root), None);
    assert_eq!(mem.live(), 1);
}

#[test]
fn translate_refuses_addresses_that_are_not_canonical() {
    for levels in BOTH {
        let (mut mem, table) = tree(levels);
        table.map(&mut mem, va(0), pa(0), K4, Prot::USER_RW, LeafSize::Size4K).unwrap();
        assert_eq!(table.translate(&mem, va(levels.half_len() * 2)), None);
        assert!(table.translate(&mem, va(0)).is_some());
    }
}

#[test]
fn the_effective_protection_is_the_least_on_the_way() {
    let (mut mem, table) = tree(Levels::Four);
    table.map(&mut mem, va(0), pa(0), K4, Prot { exec: true, ..Prot::USER_RW }, LeafSize::Size4K).unwrap();
    let all = table.translate(&mem, va(0)).unwrap().effective;
    assert!(all.write && all.user && all.exec);
    let top = mem.read(table.root, 0);
    let effective = |raw| {
        mem.write(table.root, 0, raw);
        table.translate(&mem, va(0)).unwrap().effective
    };
    assert_eq!(effective(top & !PteFlags::WRITE.bits()), Prot { write: false, ..all });
    assert_eq!(effective(top & !PteFlags::USER.bits()), Prot { user: false, ..all });
    assert_eq!(effective(top | PteFlags::NX.bits()), Prot { exec: false, ..all });
}

#[test]
fn walk_shows_every_entry_up_to_the_one_that_is_missing() {
    for levels in BOTH {
        let (mut mem, table) = tree(levels);
        table.map(&mut mem, va(M2), pa(0), K4, Prot::USER_RW, LeafSize::Size4K).unwrap();
        let path = |at| {
            let mut path = Vec::new();
            let found = table.walk(&mem, va(at), |level, _, index, entry| {
                path.push((level, index, entry.is_present()));
            });
            (found.is_some(), path)
        };
        let (found, hit) = path(M2);
        let top = levels.count();
        assert!(found);
        assert_eq!(
            hit.iter().map(|(level, ..)| *level).collect::<Vec<_>>(),
            (1..=top).rev().collect::<Vec<_>>()
        );
        let (found, miss) = path(2 * M2 + 5 * K4);
        assert!(!found);
        assert_eq!(miss.last(), Some(&(2, 2, false)));
    }
}

#[test]
fn unmap_splits_at_both_edges_and_reports_each_piece() {
    let (mut mem, table) = tree(Levels::Four);
    table.map(&mut mem, va(0), pa(G1), G1, Prot::KERNEL_RW, LeafSize::Size1G).unwrap();
    let mut gather = Gather::new();
    let mut pieces = Vec::new();
    let f = |va: VirtAddr, entry: Entry, level| pieces.push((va.as_u64(), entry.phys(level).as_u64(), level));
    table.unmap(&mut mem, va(M2 - K4), M2 + 2 * K4, KeepTables::Root, &mut gather, f).unwrap();
    assert_eq!(pieces, [(M2 - K4, G1 + M2 - K4, 1), (M2, G1 + M2, 2), (2 * M2, G1 + 2 * M2, 1)]);
    assert!(addresses(spend(&mut mem, gather)).contains(&0));
    assert_eq!(leaves(&mem, table).len(), 511 + 511 + 509);
}

#[test]
fn unmap_hands_out_and_clears_what_software_keeps_in_entries() {
    let (mut mem, table) = tree(Levels::Four);
    table.map(&mut mem, va(0), pa(0), 2 * K4, Prot::USER_RW, LeafSize::Size4K).unwrap();
    let mut pte = None;
    table.walk(&mem, va(0), |level, table, _, _| {
        if level == 1 {
            pte = Some(table)
        }
    });
    let swapped_out = 0x1234_5600;
    mem.write(pte.unwrap(), 0, swapped_out);
    assert_eq!(
        table.map(&mut mem, va(0), pa(0), K4, Prot::USER_RW, LeafSize::Size4K),
        Err(MapError::AlreadyMapped { va: va(0) })
    );
    let mut gather = Gather::new();
    let mut out = Vec::new();
    let f = |_, entry: Entry, _| out.push(entry.as_u64());
    table.unmap(&mut mem, va(0), K4, KeepTables::Root, &mut gather, f).unwrap();
    assert_eq!((out.as_slice(), spend(&mut mem, gather)), ([swapped_out].as_slice(), None));
}

#[test]
fn unmap_keeps_bits_that_the_cpu_sets_meanwhile() {
    /// Another CPU writes through the page between the read and the exchange.
    struct Race(TestMem, Cell<bool>);
    impl TableMem for Race {
        fn read(&self, table: Pfn, index: usize) -> u64 {
            self.0.read(table, index)
        }
        fn write(&self, table: Pfn, index: usize, value: u64) {
            self.0.write(table, index, value);
        }
        fn compare_exchange(&self, table: Pfn, index: usize, old: u64, new: u64) -> Result<(), u64> {
            if self.1.replace(false) {
                self.0.write(table, index, old | PteFlags::DIRTY.bits());
            }
            self.0.compare_exchange(table, index, old, new)
        }
        fn alloc_table(&mut self) -> Option<Pfn> {
            self.0.alloc_table()
        }
        fn free_table(&mut self, table: Pfn) {
            self.0.free_table(table);
        }
    }
    let mut mem = Race(TestMem::default(), Cell::new(false));
    let table = PageTable::new(&mut mem, Levels::Four).unwrap();
    table.map(&mut mem, va(0), pa(0), K4, Prot::USER_RW, LeafSize::Size4K).unwrap();
    mem.1.set(true);
    let mut gather = Gather::new();
    let mut dirty = false;
    let f = |_, entry: Entry, level| dirty = entry.flags(level).contains(PteFlags::DIRTY);
    table.unmap(&mut mem, va(0), K4, KeepTables::Root, &mut gather, f).unwrap();
    gather.no_cpu_uses_it(&mut mem);
    assert!(dirty);
}

#[test]
fn tables_are_given_back_only_after_the_flush() {
    for levels in BOTH {
        let (mut mem, table) = tree(levels);
        table.map(&mut mem, va(0), pa(0), K4, Prot::USER_RW, LeafSize::Size4K).unwrap();
        let mut gather = Gather::new();
        table.unmap(&mut mem, va(0), K4, KeepTables::Root, &mut gather, |_, _, _| {}).unwrap();
        assert_eq!(mem.live(), usize::from(levels.count()));
        assert_eq!(addresses(spend(&mut mem, gather)), [0]);
        assert_eq!(mem.live(), 1);
    }
}

#[test]
fn top_level_tables_stay_for_the_roots_that_share_them() {
    for levels in BOTH {
        let (mut mem, kernel) = tree(levels);
        let at = levels.upper_half().as_u64() + 17 * Levels::page_size(levels.count());
        kernel.populate_top(&mut mem, va(at), G1).unwrap();
        let user = PageTable::new(&mut mem, levels).unwrap();
        user.share_upper_half(&mem, kernel);
        kernel.map(&mut mem, va(at), pa(0x7000), K4, Prot::KERNEL_RW, LeafSize::Size4K).unwrap();
        assert_eq!(user.translate(&mem, va(at)).map(|mapping| mapping.phys), Some(pa(0x7000)));
        unmap(&mut mem, kernel, at, K4, KeepTables::TopLevel);
        assert_eq!(mem.live(), 3);
        kernel.map(&mut mem, va(at), pa(0x8000), K4, Prot::KERNEL_RW, LeafSize::Size4K).unwrap();
        assert_eq!(user.translate(&mem, va(at)).map(|mapping| mapping.phys), Some(pa(0x8000)));
        user.free_root(&mut mem).unwrap();
        unmap(&mut mem, kernel, at, K4, KeepTables::Root);
        assert_eq!(mem.live(), 1);
    }
}

#[test]
fn a_root_in_use_is_not_freed() {
    let (mut mem, table) = tree(Levels::Four);
    table.map(&mut mem, va(600 << 30), pa(0), K4, Prot::USER_RW, LeafSize::Size4K).unwrap();
    assert_eq!(table.free_root(&mut mem), Err(MapError::InUse { va: va(512 << 30) }));
}

#[test]
fn protect_keeps_address_size_accessed_dirty_and_software_bits() {
    for (size, leaf) in [(K4, LeafSize::Size4K), (M2, LeafSize::Size2M), (G1, LeafSize::Size1G)] {
        let (mut mem, table) = tree(Levels::Four);
        let wt = Prot { cache: CacheMode::Wt, ..Prot::USER_RW };
        table.map(&mut mem, va(G1), pa(3 * G1), size, wt, leaf).unwrap();
        let mut at = None;
        table.walk(&mem, va(G1), |_, table, index, _| at = Some((table, index)));
        let (pfn, index) = at.unwrap();
        let soft = PteFlags::SOFT | PteFlags::DIRTY;
        mem.write(pfn, index, mem.read(pfn, index) | soft.bits());
        let mut gather = Gather::new();
        assert_eq!(table.protect(&mut mem, va(G1), size, Prot::USER_RX, &mut gather), Ok(size));
        assert_eq!(addresses(spend(&mut mem, gather)), [G1]);
        let Mapping { phys, level, flags, effective } = table.translate(&mem, va(G1)).unwrap();
        assert_eq!((phys, level, effective), (pa(3 * G1), leaf.level(), Prot::USER_RX));
        assert!(flags.contains(soft | PteFlags::ACCESSED));
    }
}

#[test]
fn protect_without_a_change_needs_no_flush_and_no_split_of_whole_leaves() {
    let (mut mem, table) = tree(Levels::Four);
    table.map(&mut mem, va(0), pa(0), M2, Prot::KERNEL_RO, LeafSize::Size2M).unwrap();
    let mut gather = Gather::new();
    assert_eq!(table.protect(&mut mem, va(0), 2 * M2, Prot::KERNEL_RO, &mut gather), Ok(M2));
    assert_eq!(spend(&mut mem, gather), None);
    assert_eq!(leaves(&mem, table), [(0, 2)]);
}

#[test]
fn a_protected_page_in_a_large_leaf_splits_it_and_merge_restores_it() {
    let (mut mem, table) = tree(Levels::Five);
    table.map(&mut mem, va(0), pa(0), G1, Prot::KERNEL_RW, LeafSize::Size1G).unwrap();
    let before = mem.live();
    let mut gather = Gather::new();
    table.protect(&mut mem, va(M2 + K4), K4, Prot::KERNEL_RO, &mut gather).unwrap();
    assert_eq!(leaves(&mem, table).len(), 511 + 512);
    assert_eq!(table.merge(&mut mem, va(0), G1, LeafSize::Size1G, &mut gather), Ok(0));
    table.protect(&mut mem, va(M2 + K4), K4, Prot::KERNEL_RW, &mut gather).unwrap();
    assert_eq!(table.merge(&mut mem, va(0), G1, LeafSize::Size1G, &mut gather), Ok(2));
    assert_eq!(leaves(&mem, table), [(0, 3)]);
    assert_eq!(spend(&mut mem, gather), Some(FlushRange::All { global: true }));
    assert_eq!(mem.live(), before);
}

#[test]
fn merge_takes_neither_gaps_nor_frames_out_of_order_nor_foreign_flags() {
    let change: [fn(u64) -> u64; 4] =
        [|_| 0, |raw| raw ^ K4, |raw| raw ^ PteFlags::WRITE.bits(), |raw| raw ^ PteFlags::SOFT2.bits()];
    for (change, index) in change.iter().flat_map(|change| [0, 77, 511].map(|index| (change, index))) {
        let (mut mem, table) = tree(Levels::Four);
        table.map(&mut mem, va(M2), pa(M2), M2, Prot::KERNEL_RW, LeafSize::Size4K).unwrap();
        let mut pte = None;
        table.walk(&mem, va(M2), |level, table, _, _| {
            if level == 1 {
                pte = Some(table)
            }
        });
        let pte = pte.unwrap();
        mem.write(pte, index, change(mem.read(pte, index)));
        let mut gather = Gather::new();
        assert_eq!(table.merge(&mut mem, va(M2), M2, LeafSize::Size2M, &mut gather), Ok(0));
        assert_eq!(spend(&mut mem, gather), None);
    }
}

#[test]
fn merge_leaves_tables_alone_that_reach_out_of_the_range() {
    let (mut mem, table) = tree(Levels::Four);
    table.map(&mut mem, va(0), pa(0), 3 * M2, Prot::KERNEL_RW, LeafSize::Size4K).unwrap();
    let mut gather = Gather::new();
    let range = (va(K4), 3 * M2 - 2 * K4);
    assert_eq!(table.merge(&mut mem, range.0, range.1, LeafSize::Size1G, &mut gather), Ok(1));
    assert!(spend(&mut mem, gather).is_some());
    assert_eq!(table.translate(&mem, va(M2)).unwrap().level, 2);
    assert_eq!(leaves(&mem, table).len(), 512 + 1 + 512);
}

#[test]
fn a_merged_leaf_is_dirty_if_any_page_was_and_grants_no_more_than_before() {
    let (mut mem, table) = tree(Levels::Four);
    table.map(&mut mem, va(0), pa(M2), M2, Prot::USER_RW, LeafSize::Size4K).unwrap();
    let mut path = Vec::new();
    table.walk(&mem, va(0), |_, table, _, _| path.push(table));
    let (pmd, pte) = (path[2], path[3]);
    mem.write(pte, 300, mem.read(pte, 300) | PteFlags::DIRTY.bits());
    mem.write(pmd, 0, mem.read(pmd, 0) & !PteFlags::WRITE.bits());
    let mut gather = Gather::new();
    assert_eq!(table.merge(&mut mem, va(0), M2, LeafSize::Size1G, &mut gather), Ok(1));
    let mapping = table.translate(&mem, va(0)).unwrap();
    assert_eq!((mapping.level, mapping.phys, mapping.effective), (2, pa(M2), Prot::USER_RO));
    assert!(mapping.flags.contains(PteFlags::DIRTY));
    gather.no_cpu_uses_it(&mut mem);
    assert_eq!(mem.live(), 3);
}

#[test]
fn split_reaches_the_size_asked_for_inside_the_range_only() {
    let (mut mem, table) = tree(Levels::Four);
    table.map(&mut mem, va(0), pa(0), 2 * G1, Prot::KERNEL_RX, LeafSize::Size1G).unwrap();
    let mut gather = Gather::new();
    table.split(&mut mem, va(G1 + M2), M2, LeafSize::Size4K, &mut gather).unwrap();
    assert_eq!(addresses(spend(&mut mem, gather)), [G1 + M2, G1]);
    let leaves = leaves(&mem, table);
    assert_eq!(leaves.len(), 1 + 511 + 512);
    assert_eq!(&leaves[..4], [(0, 3), (G1, 2), (G1 + M2, 1), (G1 + M2 + K4, 1)]);
}

#[test]
fn a_user_page_beside_kernel_pages_is_reachable_and_they_are_not() {
    let (mut mem, table) = tree(Levels::Four);
    table.map(&mut mem, va(0), pa(0), K4, Prot::KERNEL_RW, LeafSize::Size4K).unwrap();
    table.map(&mut mem, va(K4), pa(0), K4, Prot::USER_RW, LeafSize::Size4K).unwrap();
    let user = |at| table.translate(&mem, va(at)).unwrap().effective.user;
    assert!(!user(0) && user(K4));
}

#[test]
fn an_entry_that_is_neither_leaf_nor_table_is_named() {
    let (mut mem, table) = tree(Levels::Four);
    mem.write(table.root, 3, 1 | PteFlags::PSE.bits());
    let at = va(3 * Levels::page_size(4) + M2);
    assert_eq!(table.translate(&mem, at), None);
    let mut gather = Gather::new();
    let result = table.unmap(&mut mem, at, K4, KeepTables::Root, &mut gather, |_, _, _| {});
    assert_eq!(result, Err(MapError::Malformed { va: at, level: 4 }));
    assert!(gather.is_empty());
}

#[test]
fn a_few_pages_are_listed_more_become_a_range_and_many_everything() {
    let (mut mem, table) = tree(Levels::Four);
    let mut unmapped = |pages: u64, prot| {
        table.map(&mut mem, va(M2), pa(0), 512 * K4, prot, LeafSize::Size4K).unwrap();
        let range = unmap(&mut mem, table, M2, pages * K4, KeepTables::Root);
        unmap(&mut mem, table, M2, 512 * K4, KeepTables::Root);
        range
    };
    assert_eq!(addresses(unmapped(8, Prot::USER_RW)), (0..8).map(|i| M2 + i * K4).collect::<Vec<_>>());
    let range = |pages: u64| FlushRange::Range { start: va(M2), last: va(M2 + (pages - 1) * K4), stride: K4 };
    assert_eq!(unmapped(9, Prot::USER_RW), Some(range(9)));
    assert_eq!(unmapped(33, Prot::KERNEL_RW), Some(range(33)));
    assert_eq!(unmapped(34, Prot::USER_RW), Some(FlushRange::All { global: false }));
    assert_eq!(unmapped(34, Prot::KERNEL_RW), Some(FlushRange::All { global: true }));
}

#[test]
fn appended_gathers_keep_all_pages_and_tables() {
    let (mut mem, table) = tree(Levels::Five);
    let mut all = Gather::new();
    let slot = Levels::page_size(5);
    for i in 0..4 {
        table.map(&mut mem, va(i * slot), pa(0), K4, Prot::USER_RW, LeafSize::Size4K).unwrap();
    }
    for i in 0..4 {
        let mut gather = Gather::new();
        table.unmap(&mut mem, va(i * slot), K4, KeepTables::Root, &mut gather, |_, _, _| {}).unwrap();
        all.append(&mem, gather);
    }
    assert_eq!(mem.live(), 1 + 4 * 4);
    assert_eq!(addresses(spend(&mut mem, all)), [0, slot, 2 * slot, 3 * slot]);
    assert_eq!(mem.live(), 1);
}

#[test]
#[should_panic(expected = "dropped unspent")]
fn an_unspent_gather_panics_when_it_is_dropped() {
    let (mut mem, table) = tree(Levels::Four);
    table.map(&mut mem, va(0), pa(0), K4, Prot::USER_RW, LeafSize::Size4K).unwrap();
    let mut gather = Gather::new();
    table.unmap(&mut mem, va(0), K4, KeepTables::Root, &mut gather, |_, _, _| {}).unwrap();
}

#[test]
fn errors_say_what_and_where() {
    use std::string::ToString;
    let message = MapError::AlreadyMapped { va: va(0x5000) }.to_string();
    assert_eq!(message, "0x5000 is already mapped: unmap it first");
    let message = MapError::NonCanonical { va: va(1 << 60), len: K4 }.to_string();
    assert_eq!(message, "0x1000 bytes at virtual 0x1000000000000000 are not inside one canonical half");
    assert_eq!(TABLE_ENTRIES as u64 * K4, M2);
}
