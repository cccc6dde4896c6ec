//! Random work against the bitmap: the free lists must be what the free frames imply.

use std::collections::HashSet;
use std::ops::Range;

use memvisor_abi as abi;
use mm_core::{MemMap, Migratetype, Order, PageKind, PageState, Pfn, ZoneKind};
use mm_sim::{BuddyModel, Frame, SimMem};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::{AllocFlags, FreeError, Zone, init_range};

/// Frames `START..START + PAGES` in three zones on two nodes, with a hole and a reservation.
const START: u64 = 0x3f0;
const PAGES: u64 = 0x1230;
const ZONES: [(u32, ZoneKind, Range<u64>); 3] = [
    (0, ZoneKind::Dma, START..0x7a1),
    (0, ZoneKind::Dma32, 0x7a1..0xc00),
    (1, ZoneKind::Dma32, 0xc00..START + PAGES),
];
const HOLE: Range<u64> = 0xe03..0xe77;
const RESERVED: Range<u64> = 0x500..0x509;

fn pfns(range: &Range<u64>) -> Range<Pfn> {
    Pfn::new(range.start)..Pfn::new(range.end)
}

struct Twin {
    mem: SimMem,
    zones: Vec<Zone>,
    models: Vec<BuddyModel>,
    /// Frames that were allocated once.
    dirty: HashSet<u64>,
}

impl Twin {
    fn new() -> Twin {
        let end = START + PAGES;
        let mem = SimMem::new(&[pfns(&(START..HOLE.start)), pfns(&(HOLE.end..end))]);
        let mut zones = Vec::new();
        let mut models = Vec::new();
        for (node, kind, range) in &ZONES {
            let Range { start, end } = pfns(range);
            init_range(&mem, start, end, *node, *kind, PageKind::Tail);
            let mut zone = Zone::new(*node, *kind);
            zone.set_extent(start, range.end - range.start, range.end - range.start);
            zones.push(zone);
            models.push(BuddyModel::new(start..end));
        }
        for pfn in RESERVED {
            mem.page(Pfn::new(pfn)).expect("RAM").init(0, ZoneKind::Dma, PageKind::Reserved);
        }
        let mut twin = Twin { mem, zones, models, dirty: HashSet::new() };
        twin.hand_over(0, START..RESERVED.start);
        twin.hand_over(0, RESERVED.end..0x7a1);
        twin.hand_over(1, 0x7a1..0xc00);
        // The second node in two steps, as deferred sections are.
        twin.hand_over(2, HOLE.end..0x1000);
        twin.hand_over(2, 0xc00..HOLE.start);
        twin.hand_over(2, 0x1000..end);
        twin
    }

    fn hand_over(&mut self, zone: usize, range: Range<u64>) {
        let Range { start, end } = pfns(&range);
        self.zones[zone].add_managed(range.end - range.start);
        self.zones[zone].free_zero_range(&self.mem, start, end).expect("fresh frames");
        self.models[zone].set(start..end, Frame::Free);
    }

    fn alloc(&mut self, zone: usize, order: Order, migratetype: Migratetype) -> Result<(), TestCaseError> {
        let expected = self.models[zone].source_order(order);
        let got = self.zones[zone].rmqueue(&self.mem, order, migratetype, AllocFlags::default());
        // Another type's blocks do as well.
        prop_assert_eq!(got.is_some(), expected.is_some());
        let Some(pfn) = got else { return Ok(()) };
        prop_assert!(self.models[zone].is_free_block(pfn, order), "{} is not free", pfn);
        let head = self.mem.page(pfn).expect("free frames exist");
        let frames = pfn.as_u64()..pfn.offset(order.pages()).as_u64();
        if head.is_known_zero() {
            prop_assert!(frames.clone().all(|pfn| !self.dirty.contains(&pfn)), "{} is not zero", pfn);
        }
        self.dirty.extend(frames);
        head.set_state(PageState::new(PageKind::Allocated, order));
        head.set_refcount(1);
        self.models[zone].set(pfn..pfn.offset(order.pages()), Frame::Allocated(pfn.as_u64()));
        Ok(())
    }

    fn free(&mut self, zone: usize, pick: usize, owner: PageKind) -> Result<(), TestCaseError> {
        let blocks = self.models[zone].allocated_blocks();
        let Some(&(pfn, pages)) = blocks.get(pick % blocks.len().max(1)) else { return Ok(()) };
        let order = Order::covering(pages).expect("blocks have an order");
        self.mem.page(pfn).expect("RAM").set_kind(owner);
        prop_assert_eq!(self.zones[zone].free_block(&self.mem, pfn, order), Ok(()));
        prop_assert_eq!(
            self.zones[zone].free_block(&self.mem, pfn, order),
            Err(FreeError::DoubleFree { pfn })
        );
        self.models[zone].set(pfn..pfn.offset(pages), Frame::Free);
        Ok(())
    }

    /// Frees at random: must be refused unless it is exactly an allocated block.
    fn free_wrongly(&mut self, zone: usize, pfn: u64, order: Order) -> Result<(), TestCaseError> {
        let pfn = Pfn::new(pfn);
        let right = self.models[zone].allocated_blocks().contains(&(pfn, order.pages()));
        if !right {
            prop_assert!(self.zones[zone].free_block(&self.mem, pfn, order).is_err());
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        for (zone, model) in self.zones.iter().zip(&self.models) {
            prop_assert_eq!(zone.audit(&self.mem), Ok(()));
            let blocks: Vec<u64> = zone.info().free_area.iter().map(abi::FreeArea::nr_free).collect();
            prop_assert_eq!(&blocks, &blocks_by_order(model));
            for (pfn, order) in model.free_blocks() {
                let head = self.mem.page(pfn).expect("free frames exist");
                prop_assert_eq!((head.kind(), head.order()), (PageKind::Buddy, order));
            }
        }
        Ok(())
    }

    fn check_frames(&self) -> Result<(), TestCaseError> {
        for zone in &self.zones {
            let end = Pfn::new(START + PAGES);
            prop_assert_eq!(zone.audit_range(&self.mem, Pfn::new(START), end), Ok(()));
        }
        Ok(())
    }
}

fn blocks_by_order(model: &BuddyModel) -> Vec<u64> {
    let blocks = model.free_blocks();
    Order::all().map(|order| blocks.iter().filter(|(_, have)| *have == order).count() as u64).collect()
}

#[derive(Clone, Debug)]
enum Op {
    Alloc(usize, Order, Migratetype),
    Free(usize, usize, PageKind),
    FreeWrongly(usize, u64, Order),
}

fn op() -> impl Strategy<Value = Op> {
    let order = || {
        prop_oneof![3 => 0u8..3, 1 => 0u8..=Order::MAX.as_u8()]
            .prop_map(|raw| Order::new(raw).expect("in range"))
    };
    let owner = prop_oneof![
        Just(PageKind::Allocated),
        Just(PageKind::User),
        Just(PageKind::Table),
        Just(PageKind::PerCpu)
    ];
    prop_oneof![
        5 => (0usize..3, order(), 0usize..3)
            .prop_map(|(zone, order, kind)| Op::Alloc(zone, order, Migratetype::ALL[kind])),
        4 => (0usize..3, any::<usize>(), owner).prop_map(|(zone, pick, owner)| Op::Free(zone, pick, owner)),
        1 => (0usize..3, START - 8..START + PAGES + 8, order())
            .prop_map(|(zone, pfn, order)| Op::FreeWrongly(zone, pfn, order)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, rng_seed: RngSeed::Fixed(5), ..ProptestConfig::default() })]
    #[test]
    fn buddy_obeys_a_bitmap(ops in prop::collection::vec(op(), 1..60)) {
        let mut twin = Twin::new();
        twin.check()?;
        for op in ops {
            match op {
                Op::Alloc(zone, order, migratetype) => twin.alloc(zone, order, migratetype)?,
                Op::Free(zone, pick, owner) => twin.free(zone, pick, owner)?,
                Op::FreeWrongly(zone, pfn, order) => twin.free_wrongly(zone, pfn, order)?,
            }
            twin.check()?;
        }
        twin.check_frames()?;
    }
}

#[test]
fn a_zone_can_be_emptied_page_by_page_and_comes_back_whole() {
    let mut twin = Twin::new();
    let fresh: Vec<Vec<u64>> = twin.models.iter().map(blocks_by_order).collect();
    let mut taken = Vec::new();
    while let Some(pfn) = twin.zones[0].alloc_block(&twin.mem, Order::ZERO) {
        taken.push(pfn);
    }
    assert_eq!(taken.len() as u64, twin.models[0].free_pages());
    assert_eq!(twin.zones[0].info().free_pages, 0);
    // Every second frame first, so that nothing merges until the end.
    let (odd, even): (Vec<Pfn>, Vec<Pfn>) = taken.into_iter().partition(|pfn| pfn.as_u64() % 2 == 1);
    for pfn in odd.into_iter().chain(even) {
        twin.zones[0].free_block(&twin.mem, pfn, Order::ZERO).expect("it was allocated");
    }
    let blocks: Vec<u64> = twin.zones[0].info().free_area.iter().map(abi::FreeArea::nr_free).collect();
    assert_eq!(blocks, fresh[0]);
    assert_eq!(twin.zones[0].audit(&twin.mem), Ok(()));
}
