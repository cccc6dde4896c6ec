//! Random operations against [`Model`], watched by a [`Cpu`].

use core::ops::Range;
use std::vec::Vec;

use mm_core::{PAGE_SHIFT, PAGE_SIZE, PhysAddr, VirtAddr};
use proptest::prelude::*;

use super::cpu::{Cached, Cpu};
use super::mem::TestMem;
use super::model::Model;
use crate::{CacheMode, Gather, KeepTables, LeafSize, Levels, MapError, PageTable, Prot};

/// Pages of the whole address space.
const ALL: u64 = 1 << (64 - PAGE_SHIFT);

#[derive(Clone, Debug)]
enum Op {
    Map { at: Span, frame: u64, prot: Prot, largest: LeafSize },
    Unmap { at: Span, keep: KeepTables },
    Protect { at: Span, prot: Prot },
    Split { at: Span, largest: LeafSize },
    Merge { at: Span, largest: LeafSize },
    Spend,
}

/// Pages of a window.
#[derive(Clone, Debug)]
struct Span {
    window: usize,
    first: u64,
    pages: u64,
}

impl Span {
    /// Shortens what would need very many leaves of this size.
    fn affordable(mut self, largest: LeafSize) -> Span {
        if largest == LeafSize::Size4K {
            self.pages = self.pages.min(3 * 512);
        }
        self
    }
}

#[derive(Clone, Debug)]
struct Action {
    op: Op,
    /// Tables that may be allocated.
    budget: Option<usize>,
    /// Spend what is due at once.
    spend: bool,
    /// Pages to access before and after, by window.
    touch: Vec<(usize, u64)>,
}

/// Ranges of pages at the places where an address changes most: around the end of a 1 GiB
/// entry and of a level 4 entry, and at the four ends of the halves.
fn windows(levels: Levels, pages: u64) -> [Range<u64>; 5] {
    let half = levels.half_len() / PAGE_SIZE;
    let around = |middle: u64| middle - pages / 2..middle + pages / 2;
    let upper = ALL - half;
    [
        around(Levels::page_size(4) / PAGE_SIZE),
        around(Levels::page_size(4) / PAGE_SIZE * 200 + Levels::page_size(3) / PAGE_SIZE * 7),
        half - pages..half,
        upper..upper + pages,
        ALL - pages..ALL,
    ]
}

fn span(window: u64) -> impl Strategy<Value = Span> {
    let units: Vec<u64> = [1, 512, 512 * 512].into_iter().filter(|unit| *unit < window).collect();
    let jitter = prop_oneof![3 => Just(0), 1 => 0..6u64];
    (0..5usize, prop::sample::select(units), 0..window, 1..5u64, jitter.clone(), jitter).prop_map(
        move |(window_number, unit, first, count, before, after)| {
            let first = (first / unit * unit + before) % window;
            let pages = (count * unit + after).min(window - first);
            Span { window: window_number, first, pages }
        },
    )
}

fn prot() -> impl Strategy<Value = Prot> {
    let cache = prop::sample::select(std::vec![
        CacheMode::Wb,
        CacheMode::Wc,
        CacheMode::UcMinus,
        CacheMode::Uc,
        CacheMode::Wp,
        CacheMode::Wt
    ]);
    let any = (any::<[bool; 4]>(), cache).prop_map(|([write, exec, user, global], cache)| Prot {
        write,
        exec,
        user,
        global,
        cache,
    });
    // Few different ones, so that neighbours can merge.
    prop_oneof![4 => Just(Prot::KERNEL_RW), 4 => Just(Prot::USER_RX), 1 => any]
}

fn size() -> impl Strategy<Value = LeafSize> {
    prop::sample::select(LeafSize::ALL.to_vec())
}

fn keep() -> impl Strategy<Value = KeepTables> {
    prop_oneof![4 => Just(KeepTables::Root), 1 => Just(KeepTables::TopLevel)]
}

fn op(window: u64) -> impl Strategy<Value = Op> {
    // Frames in step with addresses, or off by pages or by 2 MiB.
    let frame = prop_oneof![6 => Just(0), 1 => 1..3u64, 1 => (1..3u64).prop_map(|n| n * 512)];
    prop_oneof![
        6 => (span(window), frame, prot(), size())
            .prop_map(|(at, frame, prot, largest)| Op::Map { at: at.affordable(largest), frame, prot, largest }),
        3 => (span(window), keep()).prop_map(|(at, keep)| Op::Unmap { at, keep }),
        3 => (span(window), prot()).prop_map(|(at, prot)| Op::Protect { at, prot }),
        1 => (span(window), size())
            .prop_map(|(at, largest)| Op::Split { at: at.affordable(largest), largest }),
        2 => (span(window), size()).prop_map(|(at, largest)| Op::Merge { at, largest }),
        1 => Just(Op::Spend),
    ]
}

fn action(window: u64) -> impl Strategy<Value = Action> {
    let budget = prop_oneof![5 => Just(None), 1 => (0..6usize).prop_map(Some)];
    let touch = prop::collection::vec((0..5usize, 0..window), 0..12);
    (op(window), budget, any::<bool>(), touch).prop_map(|(op, budget, spend, touch)| Action {
        op,
        budget,
        spend,
        touch,
    })
}

/// The tables, what they should say, a CPU that uses them, and what is due to it.
struct World {
    mem: TestMem,
    table: PageTable,
    model: Model,
    cpu: Cpu,
    due: Vec<Gather>,
    windows: [Range<u64>; 5],
    /// An unmap was told to keep tables of the second level from the top.
    kept: bool,
}

fn va(page: u64) -> VirtAddr {
    VirtAddr::new(page << PAGE_SHIFT)
}

impl World {
    fn new(levels: Levels, window: u64) -> World {
        let mut mem = TestMem::default();
        let table = PageTable::new(&mut mem, levels).unwrap();
        World {
            mem,
            table,
            model: Model::default(),
            cpu: Cpu::default(),
            due: Vec::new(),
            windows: windows(levels, window),
            kept: false,
        }
    }

    fn run(&mut self, action: &Action) {
        self.touch(&action.touch);
        self.mem.budget = action.budget;
        self.apply(&action.op);
        self.mem.budget = None;
        self.touch(&action.touch);
        if action.spend || matches!(action.op, Op::Spend) {
            self.spend(&action.touch);
        }
        self.compare();
    }

    fn apply(&mut self, op: &Op) {
        let mut gather = Gather::new();
        let (table, mem) = (self.table, &mut self.mem);
        let (Op::Map { at, .. }
        | Op::Unmap { at, .. }
        | Op::Protect { at, .. }
        | Op::Split { at, .. }
        | Op::Merge { at, .. }) = op
        else {
            return;
        };
        let start = self.windows[at.window].start + at.first;
        let pages = start..start + at.pages;
        let (first, len) = (va(start), at.pages * PAGE_SIZE);
        match *op {
            Op::Map { ref at, frame, prot, largest } => {
                let frame = (1 << 20) + at.first + frame;
                let pa = PhysAddr::new(frame << PAGE_SHIFT);
                let result = table.map(mem, first, pa, len, prot, largest);
                let taken = self.model.first_taken(&pages);
                let end = match result {
                    Err(MapError::AlreadyMapped { va }) => {
                        assert_eq!(Some(va.as_u64() >> PAGE_SHIFT), taken);
                        taken.unwrap()
                    }
                    other => {
                        let end = stop(other, &pages);
                        assert!(taken.is_none_or(|taken| end <= taken), "mapped over {taken:x?}");
                        end
                    }
                };
                self.model.insert(start..end, frame, prot);
            }
            Op::Unmap { keep, .. } => {
                let mut out = Vec::new();
                let result = table.unmap(mem, first, len, keep, &mut gather, |va, entry, level| {
                    out.push((va, entry, level))
                });
                let end = stop(result, &pages);
                let mut removed = 0;
                for (va, entry, level) in out {
                    let page = va.as_u64() >> PAGE_SHIFT;
                    let (frame, prot, _) = self.model.find(page).unwrap();
                    assert_eq!(entry.phys(level).pfn().as_u64(), frame);
                    assert_eq!(Prot::from_flags(entry.flags(level)), prot);
                    removed += Levels::page_size(level) / PAGE_SIZE;
                }
                assert_eq!(self.model.remove(start..end), removed);
                self.kept |= keep == KeepTables::TopLevel;
            }
            Op::Protect { prot, .. } => {
                let result = table.protect(mem, first, len, prot, &mut gather);
                let end = stop(result.map(|_| ()), &pages);
                let changed = self.model.protect(start..end, prot);
                if let Ok(bytes) = result {
                    assert_eq!(bytes, changed * PAGE_SIZE);
                }
            }
            Op::Split { largest, .. } => {
                let end = stop(table.split(mem, first, len, largest, &mut gather), &pages);
                let len = (end - start) * PAGE_SIZE;
                table
                    .for_each_leaf(mem, first, len, |leaf| assert!(leaf.level <= largest.level(), "{leaf:?}"))
                    .unwrap();
            }
            Op::Merge { largest, .. } => {
                let before = count_tables(mem, table);
                let merged = table.merge(mem, first, len, largest, &mut gather).unwrap();
                let after = count_tables(mem, table);
                assert_eq!(before - after, usize::try_from(merged).unwrap());
            }
            Op::Spend => {}
        }
        // Gathers that are due are flushed apart, or as one.
        match self.due.last_mut() {
            Some(last) if at.first % 2 == 0 => last.append(mem, gather),
            _ => self.due.push(gather),
        }
    }

    fn touch(&mut self, touch: &[(usize, u64)]) {
        for &(window, page) in touch {
            let page = self.windows[window].start + page;
            self.cpu.access(&self.mem, self.table, va(page));
        }
        let edges: Vec<_> = self.model.edges().filter(|page| *page < ALL).take(16).collect();
        for page in edges {
            if self.table.levels.is_canonical(va(page)) {
                self.cpu.access(&self.mem, self.table, va(page));
            }
        }
    }

    fn spend(&mut self, touch: &[(usize, u64)]) {
        for gather in core::mem::take(&mut self.due) {
            // The last moment at which the CPU may still use what is cached.
            self.touch(touch);
            let cpu = &mut self.cpu;
            gather.flush(&mut self.mem, |range| cpu.flush(range));
            self.cpu.assert_tables_live(&self.mem);
        }
        for cached in self.cpu.cached() {
            self.assert_fresh(cached);
        }
        let tables = 1 + count_tables(&self.mem, self.table);
        assert_eq!(self.mem.live(), tables, "a table leaked");
        self.touch(touch);
    }

    fn assert_fresh(&self, cached: &Cached) {
        let page = cached.start >> PAGE_SHIFT;
        let (frame, prot, end) = self.model.find(page).unwrap_or_else(|| panic!("stale {cached:x?}"));
        assert_eq!(frame, cached.phys >> PAGE_SHIFT, "stale {cached:x?}");
        assert!(end - page >= cached.size >> PAGE_SHIFT, "stale {cached:x?}");
        let rights = cached.rights;
        // T4: a refusal of USER that is cached from a table entry may be stale; it faults, and
        // the fault drops it.
        let user = if rights.user { prot.user } else { false };
        assert_eq!(
            (rights.write, rights.exec, rights.user),
            (prot.write, prot.exec, user),
            "stale {cached:x?}"
        );
    }

    /// Every leaf is part of a segment and has its frames and protection, and the leaves hold as
    /// many pages as the segments: the tables say what the model says, for every page.
    fn compare(&self) {
        let mut pages = 0;
        for (start, len) in halves(self.table.levels) {
            let on_leaf = |leaf: crate::Leaf| {
                let page = leaf.va.as_u64() >> PAGE_SHIFT;
                let count = Levels::page_size(leaf.level) / PAGE_SIZE;
                let (frame, prot, end) = self.model.find(page).unwrap_or_else(|| panic!("{leaf:x?}"));
                assert!(page + count <= end, "{leaf:x?}");
                assert_eq!(leaf.entry.phys(leaf.level).pfn().as_u64(), frame, "{leaf:x?}");
                assert_eq!(leaf.effective, prot, "{leaf:x?}");
                pages += count;
            };
            self.table.for_each_leaf(&self.mem, start, len, on_leaf).unwrap();
            let on_table = |level, table| {
                let may_be_empty = self.kept && level + 1 == self.table.levels.count();
                assert!(may_be_empty || !self.mem.is_zero(table), "empty table of level {level}");
            };
            self.table.for_each_table(&self.mem, start, len, on_table).unwrap();
        }
        assert_eq!(pages, self.model.total());
        for page in self.model.edges() {
            self.compare_page(page);
        }
    }

    fn compare_page(&self, page: u64) {
        let address = VirtAddr::new(page.wrapping_shl(PAGE_SHIFT) | 0x123);
        let mapping = self.table.translate(&self.mem, address);
        let expect = self.model.find(page).filter(|_| page < ALL);
        let found = mapping.map(|m| (m.phys.pfn().as_u64(), m.effective));
        if page < ALL {
            assert_eq!(found, expect.map(|(frame, prot, _)| (frame, prot)), "page {page:#x}");
            assert!(mapping.is_none_or(|m| m.phys.page_offset() == 0x123));
        }
    }

    fn tear_down(mut self) {
        for (start, len) in halves(self.table.levels) {
            let mut gather = Gather::new();
            let root = KeepTables::Root;
            self.table.unmap(&mut self.mem, start, len, root, &mut gather, |_, _, _| {}).unwrap();
            self.due.push(gather);
        }
        self.model.remove(0..ALL);
        self.spend(&[]);
        assert_eq!((self.mem.live(), self.cpu.cached().len()), (1, 0));
        self.table.free_root(&mut self.mem).unwrap();
        assert_eq!(self.mem.live(), 0);
    }
}

/// First page that an operation over `pages` did not reach.
fn stop(result: Result<(), MapError>, pages: &Range<u64>) -> u64 {
    match result {
        Ok(()) => pages.end,
        Err(MapError::NoMemory { va }) => {
            let page = va.as_u64() >> PAGE_SHIFT;
            assert!(pages.contains(&page));
            page
        }
        Err(error) => panic!("{error}"),
    }
}

fn halves(levels: Levels) -> [(VirtAddr, u64); 2] {
    [(VirtAddr::new(0), levels.half_len()), (levels.upper_half(), levels.half_len())]
}

fn count_tables(mem: &TestMem, table: PageTable) -> usize {
    let mut tables = 0;
    for (start, len) in halves(table.levels) {
        table.for_each_table(mem, start, len, |_, _| tables += 1).unwrap();
    }
    tables
}

fn levels() -> impl Strategy<Value = Levels> {
    prop::sample::select(std::vec![Levels::Four, Levels::Five])
}

/// Pages of a small window: 8 MiB.
const SMALL: u64 = 4 * 512;
/// Pages of a large window: 4 GiB.
const LARGE: u64 = 4 * 512 * 512;

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn small_ranges_obey_the_model(
        levels in levels(),
        actions in prop::collection::vec(action(SMALL), 1..40),
    ) {
        let mut world = World::new(levels, SMALL);
        for action in &actions {
            world.run(action);
        }
        for page in world.windows.clone().into_iter().flatten() {
            world.compare_page(page);
        }
        world.tear_down();
    }

    #[test]
    fn large_ranges_obey_the_model(
        levels in levels(),
        actions in prop::collection::vec(action(LARGE), 1..16),
    ) {
        let mut world = World::new(levels, LARGE);
        for action in &actions {
            world.run(action);
        }
        world.tear_down();
    }
}
