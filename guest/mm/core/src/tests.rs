//! Units over small widths exhaustively, descriptors against the published layout.

use memvisor_abi::PFN_NONE;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::{
    MemMap, Migratetype, Order, Page, PageFlags, PageKind, PageState, Pageblock, Pfn, PhysAddr, Trace,
    ZoneKind,
};

#[test]
fn buddies_are_mutual_and_make_the_next_block() {
    for raw in 0..4096 {
        for order in Order::all() {
            let pfn = Pfn::new(raw);
            let buddy = pfn.buddy(order);
            assert_eq!(buddy.buddy(order), pfn);
            assert_eq!(buddy.as_u64().abs_diff(raw), order.pages());
            if let Some(up) = order.up() {
                assert_eq!(pfn.block(up), buddy.block(up));
                assert_eq!(pfn.block(up), pfn.block(order).min(buddy.block(order)));
            }
        }
    }
}

#[test]
fn orders_cover_what_they_say() {
    for pages in 1..=1024 {
        let order = Order::covering(pages).expect("up to 1024 pages fit");
        assert!(order.pages() >= pages);
        assert!(order.down().is_none_or(|down| down.pages() < pages));
    }
    assert_eq!((Order::covering(1025), Order::MAX.up(), Order::ZERO.down()), (None, None, None));
    assert_eq!(Order::all().count(), 11);
}

#[test]
fn a_fresh_descriptor_is_free_of_owners_or_reserved() {
    let pages = [Page::default(), Page::default(), Page::default()];
    Page::init_all(&pages[..2], 1023, ZoneKind::Movable, PageKind::Tail);
    pages[2].init(5, ZoneKind::Normal, PageKind::Kernel);
    for page in &pages {
        assert_eq!((page.next(), page.prev(), page.mapcount()), (PFN_NONE, PFN_NONE, -1));
    }
    for page in &pages[..2] {
        assert_eq!((page.node(), page.zone(), page.kind()), (1023, ZoneKind::Movable, PageKind::Tail));
        assert_eq!((page.refcount(), page.has(PageFlags::RESERVED)), (0, false));
    }
    assert_eq!((pages[2].node(), pages[2].zone(), pages[2].kind()), (5, ZoneKind::Normal, PageKind::Kernel));
    assert_eq!((pages[2].refcount(), pages[2].has(PageFlags::RESERVED)), (1, true));
}

#[test]
fn links_and_flags_do_not_disturb_each_other() {
    let page = Page::default();
    page.init(3, ZoneKind::Dma, PageKind::None);
    page.insert(PageFlags::DIRTY | PageFlags::LOCKED);
    page.set_links(64, ZoneKind::Dma32);
    page.remove(PageFlags::LOCKED);
    assert_eq!((page.node(), page.zone()), (64, ZoneKind::Dma32));
    assert_eq!((page.has(PageFlags::DIRTY), page.has(PageFlags::LOCKED)), (true, false));
}

#[test]
fn the_parts_of_a_state_do_not_disturb_each_other() {
    let page = Page::default();
    page.init(3, ZoneKind::Dma, PageKind::Tail);
    page.set_migratetype(Migratetype::Cma);
    page.set_order(Order::MAX);
    page.set_kind(PageKind::Slab);
    let state = page.state().with_known_zero(true);
    assert_eq!(
        (state.kind(), state.order(), state.migratetype()),
        (PageKind::Slab, Order::MAX, Migratetype::Cma)
    );
    assert!(state.is_known_zero() && !state.with_known_zero(false).is_known_zero());
    assert!(PageState::new(PageKind::Buddy, Order::MAX).with_known_zero(true).is_free_block(Order::MAX));
    assert!(!state.is_free_block(Order::MAX) && !state.with_kind(PageKind::Buddy).is_free_block(Order::ZERO));
    page.set_compound_head(Pfn::new(512));
    assert_eq!((page.compound_head(), page.kind()), (Some(Pfn::new(512)), PageKind::Tail));
    page.clear_compound_head();
    assert_eq!(page.compound_head(), None);
    assert_eq!(page.zone_id(), Page::zone_id_of(3, ZoneKind::Dma as u32));
}

#[test]
fn type_and_hint_of_a_pageblock_do_not_disturb_each_other() {
    let block = Pageblock::new(Migratetype::Movable);
    block.set_skipped(true);
    block.set_migratetype(Migratetype::Isolate);
    assert!(block.is_skipped());
    block.set_skipped(false);
    assert_eq!((block.migratetype(), block.is_skipped()), (Migratetype::Isolate, false));
}

struct OnePage(Page);

impl Trace for OnePage {}

impl MemMap for OnePage {
    fn page(&self, pfn: Pfn) -> Option<&Page> {
        (pfn == Pfn::new(7)).then_some(&self.0)
    }

    fn pageblock(&self, _: Pfn) -> Option<&Pageblock> {
        None
    }
}

#[test]
fn a_map_without_runs_gives_runs_of_one() {
    let map = OnePage(Page::default());
    assert_eq!((map.pages(Pfn::new(7)).len(), map.pages(Pfn::new(8)).len()), (1, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]
    #[test]
    fn alignment_brackets_the_address(raw in any::<u64>(), shift in 0u32..63) {
        let (addr, align) = (PhysAddr::new(raw), 1u64 << shift);
        let down = addr.align_down(align);
        prop_assert!(down <= addr && raw - down.as_u64() < align && down.is_aligned(align));
        match addr.align_up(align) {
            Some(up) => prop_assert!(up >= addr && up.as_u64() - raw < align && up.is_aligned(align)),
            None => prop_assert!(raw > u64::MAX - (align - 1)),
        }
    }
}
