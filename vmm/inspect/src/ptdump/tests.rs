use memvisor_abi::{LayoutKind, LayoutRange};

use super::*;
use crate::testing::{Machine, SyntheticGuest, Tables};
use crate::{Entry, Guest, Levels, MemorySource, PageSize, RamRegion, SparseMemory, Walker};

const RW: u64 = Entry::WRITE | Entry::NX;

struct Tree {
    memory: SparseMemory,
    tables: Tables,
}

impl Tree {
    fn new(levels: Levels) -> Tree {
        let memory = SparseMemory::new(&[RamRegion { gpa: 0, len: 1 << 24 }]).unwrap();
        Tree { memory, tables: Tables::new(levels, 0x10_0000..0x80_0000) }
    }

    fn map(mut self, va: u64, gpa: u64, pages: u64, size: PageSize, flags: u64) -> Tree {
        for page in 0..pages {
            let offset = page * size.bytes();
            self.tables.map(&mut self.memory, va + offset, gpa + offset, size, flags);
        }
        self
    }

    fn set(mut self, va: u64, level: u32, entry: u64) -> Tree {
        let at = self.tables.entry(&mut self.memory, va, level);
        self.memory.write_u64(at, entry).unwrap();
        self
    }

    fn dump(&self) -> PtDump {
        self.dump_span(Span::ALL, &[])
    }

    fn dump_span(&self, span: Span, layout: &[LayoutRange]) -> PtDump {
        let walker = Walker::new(self.tables.root(), self.tables.levels());
        PtDump::new(&walker, &self.memory, span, layout)
    }
}

fn extents(dump: &PtDump) -> Vec<(u64, u64, PageSize)> {
    dump.ranges.iter().map(|range| (range.start, range.last, range.page_size)).collect()
}

fn kinds(dump: &PtDump) -> Vec<FindingKind> {
    dump.findings.iter().map(|finding| finding.kind).collect()
}

#[test]
fn equal_neighbours_are_one_range_and_others_are_not() {
    let dump = Tree::new(Levels::Four)
        .map(0x1000, 0x5000, 2, PageSize::Size4K, RW)
        .map(0x3000, 0x9000, 1, PageSize::Size4K, RW)
        .map(0x4000, 0xa000, 1, PageSize::Size4K, Entry::NX)
        .map(0x6000, 0xb000, 1, PageSize::Size4K, Entry::NX)
        .map(0x20_0000, 0x20_0000, 2, PageSize::Size2M, Entry::NX)
        .dump();
    assert_eq!(
        extents(&dump),
        [
            (0x1000, 0x3fff, PageSize::Size4K),
            (0x4000, 0x4fff, PageSize::Size4K),
            (0x6000, 0x6fff, PageSize::Size4K),
            (0x20_0000, 0x5f_ffff, PageSize::Size2M),
        ]
    );
    assert!(!dump.ranges[0].contiguous, "0x6000 is followed by 0x9000");
    assert!(dump.ranges[3].contiguous);
    assert_eq!((dump.pages, dump.tables), ([5, 2, 0], [1, 1, 1, 1, 0]));
    assert!(dump.complete && dump.findings.is_empty());
}

#[test]
fn accessed_and_dirty_do_not_split_a_range() {
    let dump = Tree::new(Levels::Four)
        .map(0x1000, 0x5000, 1, PageSize::Size4K, RW | Entry::ACCESSED)
        .map(0x2000, 0x6000, 1, PageSize::Size4K, RW | Entry::DIRTY)
        .dump();
    assert_eq!(extents(&dump), [(0x1000, 0x2fff, PageSize::Size4K)]);
}

#[test]
fn the_topmost_page_ends_at_the_last_byte() {
    let dump = Tree::new(Levels::Five).map(0xffff_ffff_ffff_f000, 0x5000, 1, PageSize::Size4K, RW).dump();
    assert_eq!(extents(&dump), [(0xffff_ffff_ffff_f000, u64::MAX, PageSize::Size4K)]);
    assert_eq!(dump.ranges[0].pages(), 1);
}

#[test]
fn ranges_end_at_the_borders_of_the_layout() {
    let range = |start, last, kind| LayoutRange { start, last, kind: kind as u32, reserved: 0 };
    let layout = [range(0, 0x2fff, LayoutKind::User), range(0x3000, 0x4fff, LayoutKind::Vmalloc)];
    let dump =
        Tree::new(Levels::Four).map(0x1000, 0x5000, 6, PageSize::Size4K, RW).dump_span(Span::ALL, &layout);
    let marks: Vec<_> = dump.ranges.iter().map(|range| (range.start, range.last, range.mark)).collect();
    assert_eq!(
        marks,
        [
            (0x1000, 0x2fff, Some("user space")),
            (0x3000, 0x4fff, Some("vmalloc/ioremap")),
            (0x5000, 0x6fff, None),
        ]
    );
}

#[test]
fn a_span_limits_what_is_listed() {
    let tree = Tree::new(Levels::Four).map(0x1000, 0x5000, 8, PageSize::Size4K, RW).map(
        0xffff_8000_0000_0000,
        0x5000,
        1,
        PageSize::Size4K,
        RW,
    );
    let dump = tree.dump_span(Span { start: 0x3000, last: 0x4fff }, &[]);
    assert_eq!(extents(&dump), [(0x3000, 0x4fff, PageSize::Size4K)]);
    let dump = tree.dump_span(Span { start: 0x8000, last: 0xffff_8000_0000_0000 }, &[]);
    assert_eq!(
        extents(&dump),
        [
            (0x8000, 0x8fff, PageSize::Size4K),
            (0xffff_8000_0000_0000, 0xffff_8000_0000_0fff, PageSize::Size4K)
        ]
    );
}

#[test]
fn each_fault_is_found_by_its_rule() {
    let base = || Tree::new(Levels::Four).map(0x1000, 0x5000, 1, PageSize::Size4K, RW);
    let high = 0xffff_8000_0000_0000;
    let cases = [
        (base().map(0x2000, 0x6000, 1, PageSize::Size4K, Entry::WRITE), FindingKind::WritableExecutable),
        (base().map(high, 0x6000, 1, PageSize::Size4K, RW | Entry::USER), FindingKind::UserInKernel),
        (base().set(0x4000_0000, 2, 0x2000 | Entry::PS | 1), FindingKind::ReservedBits),
        (base().set(0x4000_0000, 3, 1 << 40 | 3), FindingKind::TableNotRam),
        (base().set(0x4000_0000, 3, 0x10_0003), FindingKind::RecursiveTable),
        (base().map(0x8000, 0x5000, 1, PageSize::Size4K, RW | Entry::PCD), FindingKind::CacheAlias),
    ];
    for (tree, kind) in cases {
        assert_eq!(kinds(&tree.dump()), [kind]);
    }
    assert_eq!(kinds(&base().dump()), []);
}

#[test]
fn a_large_page_aliases_the_small_ones_inside_it() {
    let dump = Tree::new(Levels::Four)
        .map(0x20_0000, 0x20_0000, 1, PageSize::Size2M, RW)
        .map(0x8000_0000, 0x20_3000, 1, PageSize::Size4K, RW | Entry::PWT)
        .map(0x8000_1000, 0x40_0000, 1, PageSize::Size4K, RW | Entry::PWT)
        .dump();
    assert_eq!(kinds(&dump), [FindingKind::CacheAlias]);
    assert!(dump.findings[0].detail.contains("0x203000"), "{}", dump.findings[0]);
}

#[test]
fn tables_that_share_everything_are_given_up() {
    // One table at each level, all of whose entries lead to the next one: 2^36 leaves.
    let mut memory = SparseMemory::new(&[RamRegion { gpa: 0, len: 0x8000 }]).unwrap();
    for table in 0..4u64 {
        for index in 0..512 {
            memory.write_u64(table * 0x1000 + index * 8, (table + 1) << 12 | 3).unwrap();
        }
    }
    let mut leaves = 0u64;
    let coverage = for_each_leaf(&Walker::new(0, Levels::Four), &memory, |_| leaves += 1);
    assert_eq!(coverage, Coverage { tables: 8, complete: false });
    assert!(leaves > 0);
}

#[test]
fn every_leaf_is_what_the_walker_says_and_every_table_is_seen() {
    struct Check<'a> {
        walker: Walker,
        guest: &'a SyntheticGuest,
        leaves: u64,
        tables: Vec<u64>,
    }
    impl Visitor for Check<'_> {
        fn leaf(&mut self, leaf: &Leaf) {
            let mapped = self.walker.lookup(&self.guest.memory, leaf.va).unwrap();
            assert_eq!(
                (mapped.gpa, mapped.page_size, mapped.access, mapped.entry),
                (leaf.gpa, leaf.size, leaf.access, leaf.entry)
            );
            self.leaves += 1;
        }
        fn table(&mut self, table: &Table) {
            self.tables.push(table.gpa >> 12);
        }
        fn problem(&mut self, problem: &TreeProblem) {
            panic!("{problem}");
        }
    }
    for levels in [Levels::Four, Levels::Five] {
        let guest = SyntheticGuest::new(&Machine::pc(32 << 20, levels));
        let walker = Guest::attach(&guest.memory, guest.root_gpa).unwrap().kernel_walker();
        let mut check = Check { walker, guest: &guest, leaves: 0, tables: Vec::new() };
        assert!(walk_tree(&walker, &guest.memory, Span::ALL, &mut check).complete);
        assert!(check.leaves > 300);
        check.tables.sort_unstable();
        let owned: Vec<_> = guest
            .owners
            .iter()
            .filter(|owner| owner.2 == memvisor_abi::PageKind::Table)
            .flat_map(|owner| owner.0..owner.1)
            .collect();
        assert_eq!(check.tables, owned);
    }
}

#[test]
fn a_good_guest_has_no_findings_and_known_marks() {
    let guest = SyntheticGuest::new(&Machine::pc(32 << 20, Levels::Four));
    let reader = Guest::attach(&guest.memory, guest.root_gpa).unwrap();
    let dump = PtDump::new(&reader.kernel_walker(), &guest.memory, Span::ALL, &reader.layout().unwrap());
    assert_eq!(kinds(&dump), []);
    let mut marks: Vec<_> = dump.ranges.iter().filter_map(|range| range.mark).collect();
    marks.dedup();
    assert_eq!(marks, ["direct map", "vmemmap", "kernel image"]);
    assert_eq!(guest.memory.ram_bytes() >> 12, dump.pages[0] + dump.pages[1] * 512 - 0x80 - 512);
}
