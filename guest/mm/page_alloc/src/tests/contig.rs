//! Contiguous ranges and areas, with owners whose pages can move.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64};

use memvisor_abi::{CmaArea, Zonelist};
use mm_core::{
    Gfp, MemMap, Migrate, MigrateError, MigrateMode, Migratetype, Order, PAGEBLOCK_PAGES, Page, Pfn, PhysMem,
    ZoneKind,
};
use mm_sim::SimMem;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::alloc::machine::{Cpus, Script, TestMachine, ZoneSpec, one_zone, order, start};
use crate::{Cma, Context, ContigError, Machine, PageAllocator, Zone, ZoneGlance};

/// The owner of all movable pages: what each holds, and where.
struct Owner {
    mem: &'static TestMachine,
    pages: RefCell<BTreeMap<u64, u64>>,
    /// Frames that it does not give up.
    pinned: RefCell<Vec<u64>>,
    moves: Cell<u64>,
}

impl Migrate for Owner {
    fn isolate_page(&self, pfn: Pfn, _: &Page, _: MigrateMode) -> bool {
        self.pages.borrow().contains_key(&pfn.as_u64())
    }

    fn migrate_page(&self, to: Pfn, from: Pfn, _: &Page, _: MigrateMode) -> Result<(), MigrateError> {
        if self.pinned.borrow().contains(&from.as_u64()) {
            return Err(MigrateError::Busy);
        }
        let content = self.pages.borrow_mut().remove(&from.as_u64()).expect("an isolated page has contents");
        assert_eq!(self.mem.mem.read_u64(from.phys()), content);
        self.mem.mem.write_u64(to.phys(), content);
        self.pages.borrow_mut().insert(to.as_u64(), content);
        self.moves.set(self.moves.get() + 1);
        Ok(())
    }

    fn putback_page(&self, _: Pfn, _: &Page) {}
}

/// A machine with such an owner.
struct Moving {
    machine: &'static TestMachine,
    owner: Owner,
}

impl Machine for &Moving {
    type Map = SimMem;
    type Local = Cpus;
    type Reclaim = Script;

    fn map(&self) -> &SimMem {
        &self.machine.mem
    }

    fn local(&self) -> &Cpus {
        &self.machine.cpus
    }

    fn reclaim(&self) -> &Script {
        &self.machine.script
    }

    fn glances(&self) -> &[ZoneGlance] {
        &self.machine.glances
    }

    fn with_zone<R>(&self, index: usize, f: impl FnOnce(&mut Zone) -> R) -> R {
        (&self.machine).with_zone(index, f)
    }

    fn zonelists(&self) -> &[Zonelist] {
        // The same lists for as long as the machine lives: for ever.
        let machine: &'static &'static TestMachine = Box::leak(Box::new(self.machine));
        machine.zonelists()
    }

    fn local_node(&self) -> u32 {
        (&self.machine).local_node()
    }

    fn nr_online_nodes(&self) -> usize {
        (&self.machine).nr_online_nodes()
    }

    fn zero_frames(&self, first: Pfn, count: u64) {
        (&self.machine).zero_frames(first, count);
    }

    fn migrate(&self) -> &dyn Migrate {
        &self.owner
    }

    fn may_report(&self) -> bool {
        false
    }

    fn report(&self, _: fmt::Arguments<'_>) {}
}

type Pages = PageAllocator<&'static Moving>;

fn moving(specs: &[ZoneSpec]) -> (Pages, &'static Moving) {
    let machine: &'static TestMachine = start(specs, &[0]).machine;
    let owner =
        Owner { mem: machine, pages: RefCell::default(), pinned: RefCell::default(), moves: Cell::new(0) };
    let moving: &'static Moving = Box::leak(Box::new(Moving { machine, owner }));
    (PageAllocator::new(moving), moving)
}

const FIRST: u64 = 0x1000;

/// Takes `count` movable pages and gives each contents.
fn fill(pages: &Pages, moving: &'static Moving, count: u64) {
    for number in 0..count {
        let gfp = Gfp::NOWAIT | Gfp::HIGHMEM | Gfp::MOVABLE;
        let pfn = pages.alloc_pages(Context::ATOMIC, gfp, Order::ZERO, None).expect("there is room");
        moving.machine.mem.write_u64(pfn.phys(), 5000 + number);
        moving.owner.pages.borrow_mut().insert(pfn.as_u64(), 5000 + number);
        moving.machine.mem.page(pfn).unwrap().set_movable(8);
    }
}

/// Nothing was lost, and no page of the owner lies in the range.
fn assert_moved(moving: &Moving, count: u64, start: u64, end: u64) {
    let pages = moving.owner.pages.borrow();
    let mut contents: Vec<u64> = pages.values().copied().collect();
    contents.sort_unstable();
    assert!(contents.into_iter().eq(5000..5000 + count));
    for (pfn, content) in pages.iter() {
        assert!(!(start..end).contains(pfn), "{pfn:#x} was left in the range");
        assert_eq!(moving.machine.mem.read_u64(Pfn::new(*pfn).phys()), *content);
        assert_eq!(moving.machine.mem.page(Pfn::new(*pfn)).unwrap().refcount(), 1);
    }
}

fn types(moving: &Moving, zone: &[ZoneSpec]) -> Vec<Migratetype> {
    let blocks = zone.iter().flat_map(|(_, _, range)| range.clone().step_by(512));
    blocks.map(|pfn| moving.machine.mem.pageblock(Pfn::new(pfn)).unwrap().migratetype()).collect()
}

#[test]
fn a_free_range_becomes_single_frames_and_comes_back() {
    let (pages, moving) = moving(&one_zone(0x1000));
    let before = moving.machine.free_pages();
    // Half a pageblock, and a piece of the next.
    let (start, end) = (Pfn::new(FIRST + 0x100), Pfn::new(FIRST + 0x2a3));
    pages.alloc_contig_range(Context::ATOMIC, start, end, Migratetype::Movable).unwrap();
    moving.machine.audit();
    assert_eq!(moving.machine.free_pages(), before - 0x1a3);
    for pfn in start.as_u64()..end.as_u64() {
        let page = moving.machine.mem.page(Pfn::new(pfn)).unwrap();
        assert_eq!((page.refcount(), page.order()), (1, Order::ZERO), "{pfn:#x}");
    }
    assert!(types(moving, &one_zone(0x1000)).iter().all(|kind| *kind == Migratetype::Movable));
    // Somebody else has a frame of it: that is told, and the rest comes back.
    assert_eq!(pages.free_contig_range(start, 0x1a3), 0);
    pages.drain_all_pages();
    moving.machine.audit();
    assert_eq!(moving.machine.free_pages(), before);
}

#[test]
fn movable_pages_make_way_and_keep_what_they_hold() {
    let (pages, moving) = moving(&one_zone(0x1000));
    fill(&pages, moving, 1500);
    let (start, end) = (FIRST + 0x180, FIRST + 0x4c0);
    let inside = moving.owner.pages.borrow().range(start..end).count() as u64;
    assert!(inside > 100, "{inside} pages in the way");
    pages.alloc_contig_range(Context::ATOMIC, Pfn::new(start), Pfn::new(end), Migratetype::Movable).unwrap();
    assert_eq!(moving.owner.moves.get(), inside);
    assert_moved(moving, 1500, start, end);
    moving.machine.audit();
}

#[test]
fn a_page_that_does_not_move_stops_it_and_everything_is_as_before() {
    let (pages, moving) = moving(&one_zone(0x1000));
    fill(&pages, moving, 1500);
    let free = moving.machine.free_pages();
    let (start, end) = (FIRST + 0x180, FIRST + 0x4c0);
    let pinned = *moving.owner.pages.borrow().range(start..end).nth(50).unwrap().0;
    moving.owner.pinned.borrow_mut().push(pinned);
    let outcome =
        pages.alloc_contig_range(Context::ATOMIC, Pfn::new(start), Pfn::new(end), Migratetype::Movable);
    assert_eq!(outcome, Err(ContigError::Busy { pfn: Pfn::new(pinned) }));
    assert!(types(moving, &one_zone(0x1000)).iter().all(|kind| *kind == Migratetype::Movable));
    assert_eq!(moving.machine.free_pages(), free);
    assert_moved(moving, 1500, 0, 0);
    moving.machine.audit();
}

#[test]
fn what_cannot_move_is_named_before_anything_moves() {
    let (pages, moving) = moving(&one_zone(0x1000));
    let fixed = pages.alloc_pages(Context::ATOMIC, Gfp::NOWAIT, order(3), None).unwrap();
    let block = fixed.as_u64() & !(PAGEBLOCK_PAGES - 1);
    let kind = moving.machine.mem.pageblock(fixed).unwrap().migratetype();
    let outcome = pages.alloc_contig_range(Context::ATOMIC, Pfn::new(block), Pfn::new(block + 512), kind);
    assert_eq!(outcome, Err(ContigError::Busy { pfn: fixed }));
    // The wrong type is nobody's range.
    let other = if kind == Migratetype::Cma { Migratetype::Movable } else { Migratetype::Cma };
    let outcome = pages.alloc_contig_range(Context::ATOMIC, Pfn::new(block), Pfn::new(block + 512), other);
    assert!(matches!(outcome, Err(ContigError::Busy { .. })));
    moving.machine.audit();
}

#[test]
fn ranges_that_leave_their_zone_are_invalid() {
    let specs = [(0, ZoneKind::Dma32, 0x1000..0x1800), (0, ZoneKind::Normal, 0x1800..0x2000)];
    let (pages, _) = moving(&specs);
    for (start, end) in
        [(0x1700, 0x1900), (0x1500, 0x1500), (0x1500, 0x1400), (0x1e00, 0x2200), (0x800, 0x1100)]
    {
        let outcome =
            pages.alloc_contig_range(Context::ATOMIC, Pfn::new(start), Pfn::new(end), Migratetype::Movable);
        assert!(matches!(outcome, Err(ContigError::Invalid { .. })), "{start:#x}..{end:#x}: {outcome:?}");
    }
}

/// Makes an area of `count` frames at `base`, as boot does.
fn area(moving: &Moving, zone: usize, base: u64, count: u64) -> Cma<'static> {
    for pfn in (base..base + count).step_by(512).map(Pfn::new) {
        (&moving.machine).with_zone(zone, |zone| {
            assert!(zone.set_migratetype_isolate(&moving.machine.mem, pfn));
            assert!(zone.unset_migratetype_isolate(&moving.machine.mem, pfn, Migratetype::Cma));
        });
    }
    let zone = moving.machine.zones[zone].borrow();
    moving.machine.glances[zone.info().node as usize * 5 + zone.info().kind as usize].refresh(&zone);
    Cma {
        area: CmaArea { base_pfn: base, count, ..CmaArea::NONE },
        number: 0,
        bitmap: Box::leak((0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect()),
        lock: Box::leak(Box::new(AtomicBool::new(false))),
    }
}

const NORMAL: usize = ZoneKind::Normal as usize;

#[test]
fn an_area_is_lent_and_given_up_again() {
    let (pages, moving) = moving(&one_zone(0x1000));
    let cma = area(moving, NORMAL, FIRST + 0x400, 0x800);
    assert_eq!(moving.machine.zones[NORMAL].borrow().info().nr_free_cma, 0x800);
    fill(&pages, moving, 1800);
    let inside = moving.owner.pages.borrow().range(cma.area.base_pfn..cma.area.base_pfn + 0x800).count();
    assert!(inside > 500, "{inside} pages borrow");
    let whole = pages.cma_alloc(Context::ATOMIC, &cma, 0x800, Order::ZERO);
    assert_eq!(whole, Some(Pfn::new(cma.area.base_pfn)));
    assert_eq!(cma.used(), 0x800);
    assert_moved(moving, 1800, cma.area.base_pfn, cma.area.base_pfn + 0x800);
    assert_eq!(pages.cma_alloc(Context::ATOMIC, &cma, 1, Order::ZERO), None);
    moving.machine.audit();
    assert!(pages.cma_release(&cma, Pfn::new(cma.area.base_pfn), 0x800));
    pages.drain_all_pages();
    moving.machine.audit();
    assert_eq!(moving.machine.zones[NORMAL].borrow().info().nr_free_cma, 0x800);
}

#[test]
fn a_place_that_somebody_holds_is_passed_over() {
    let (pages, moving) = moving(&one_zone(0x1000));
    let cma = area(moving, NORMAL, FIRST + 0x400, 0x800);
    fill(&pages, moving, 1200);
    let pinned = *moving.owner.pages.borrow().range(cma.area.base_pfn..).next().unwrap().0;
    moving.owner.pinned.borrow_mut().push(pinned);
    let aligned = pages.cma_alloc(Context::ATOMIC, &cma, 16, order(4)).unwrap().as_u64();
    assert!(aligned.is_multiple_of(16) && !(aligned..aligned + 16).contains(&pinned));
    assert_eq!(pages.cma_alloc(Context::ATOMIC, &cma, 0x800, Order::ZERO), None);
    assert_eq!(cma.used(), 16);
    moving.machine.audit();
}

#[test]
fn wrong_releases_are_refused() {
    let (pages, moving) = moving(&one_zone(0x1000));
    let cma = area(moving, NORMAL, FIRST + 0x400, 0x400);
    let pfn = pages.cma_alloc(Context::ATOMIC, &cma, 8, Order::ZERO).unwrap();
    for (pfn, count) in [(pfn, 9), (pfn.offset(1), 8), (pfn, 0), (Pfn::new(FIRST), 1), (pfn, u64::MAX)] {
        assert!(!pages.cma_release(&cma, pfn, count), "{pfn} {count}");
    }
    assert!(pages.cma_release(&cma, pfn, 8) && !pages.cma_release(&cma, pfn, 8));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, rng_seed: RngSeed::Fixed(11), ..ProptestConfig::default() })]
    #[test]
    fn an_area_obeys_a_set_of_frames(
        steps in prop::collection::vec((0u8..4, 1u64..700, 0u8..10), 1..60),
        movable in 0u64..1500,
    ) {
        let (pages, moving) = moving(&one_zone(0x1400));
        let cma = area(moving, NORMAL, FIRST + 0x400, 0x800);
        fill(&pages, moving, movable);
        let mut held: Vec<(u64, u64)> = Vec::new();
        for (what, count, align) in steps {
            if what == 0 && !held.is_empty() {
                let (pfn, count) = held.swap_remove(usize::from(align) % held.len());
                prop_assert!(pages.cma_release(&cma, Pfn::new(pfn), count));
                continue;
            }
            let step = 1 << align;
            let free = |first: u64| held.iter().all(|(pfn, len)| first + count <= *pfn || pfn + len <= first);
            let end = cma.area.base_pfn + cma.area.count;
            let wanted = (cma.area.base_pfn..end).step_by(step).find(|first| first + count <= end && free(*first));
            let got = pages.cma_alloc(Context::ATOMIC, &cma, count, order(align)).map(Pfn::as_u64);
            // With room elsewhere for what is in the way, the first place that fits is taken.
            prop_assert_eq!(got, wanted);
            held.extend(got.map(|pfn| (pfn, count)));
            prop_assert_eq!(cma.used(), held.iter().map(|(_, count)| count).sum::<u64>());
        }
        moving.machine.audit();
        assert_moved(moving, movable, 0, 0);
    }
}
