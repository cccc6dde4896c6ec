//! Contiguous areas and ranges.

use core::sync::atomic::{AtomicU64, Ordering};

use memvisor_abi::{CmaArea, Migratetype, PFN_NONE};
use mm_core::{Gfp, MemMap, Migrate, MigrateError, MigrateMode, Order, Page, Pfn};
use mm_page_alloc::{Context, ContigError};

use super::{Failure, Test, buddy, check};
use crate::mm::memmap::Vmemmap;
use crate::mm::page_alloc::{self, PAGES};
use crate::mm::{cma, kmap, movable};
use crate::sched;
use crate::sync::Lock;

type Outcome = Result<(), Failure>;

pub const TESTS: [(&str, Test); 8] = [
    ("areas_are_of_their_own_type", areas_are_of_their_own_type),
    ("frames_come_in_one_piece_and_aligned", frames_come_in_one_piece_and_aligned),
    ("an_area_can_be_had_whole_and_not_twice", an_area_can_be_had_whole_and_not_twice),
    ("movable_pages_make_way_with_their_contents", movable_pages_make_way_with_their_contents),
    ("what_cannot_move_gets_nothing_of_an_area", what_cannot_move_gets_nothing_of_an_area),
    ("wrong_releases_change_nothing", wrong_releases_change_nothing),
    ("a_range_that_is_in_use_is_refused", a_range_that_is_in_use_is_refused),
    ("an_allocation_stays_for_the_audit", an_allocation_stays_for_the_audit),
];

const NO_PIECE: Failure = Failure::Wrong("no contiguous frames");

fn area() -> Result<CmaArea, Failure> {
    cma::area(0).ok_or(Failure::Skip("no contiguous area; cma= makes one"))
}

fn alloc(count: u64, align: u8) -> Option<Pfn> {
    cma::cma_alloc(0, count, Order::new(align)?, &sched::task_context())
}

fn areas_are_of_their_own_type() -> Outcome {
    area()?;
    let mut pages = 0;
    for area in (0..cma::count()).filter_map(cma::area) {
        let mut kinds = (0..area.count).step_by(512).map(|offset| {
            Vmemmap.pageblock(Pfn::new(area.base_pfn + offset)).map(mm_core::Pageblock::migratetype)
        });
        check(kinds.all(|kind| kind == Some(Migratetype::Cma)), "a pageblock of another type")?;
        pages += area.count;
    }
    let counted: u64 = page_alloc::zones().map(|zone| zone.lock().info().cma_pages).sum();
    check(counted == pages, "zones do not count what their areas have")?;
    let free: u64 = page_alloc::zones().map(|zone| zone.lock().info().nr_free_cma).sum();
    check(free > 0 && free <= pages, "the areas lend nothing")
}

fn frames_come_in_one_piece_and_aligned() -> Outcome {
    area()?;
    let before = buddy::free_pages();
    let one = alloc(1, 0).ok_or(NO_PIECE)?;
    let many = alloc(300, 8).ok_or(NO_PIECE)?;
    let held = before - buddy::free_pages();
    let single = |index: u64| Vmemmap.page(many.offset(index)).is_some_and(|page| page.refcount() == 1);
    let all_single = (0..300).all(single);
    (0..300).for_each(|index| kmap::copy_to_page(many.offset(index), 0, &[0x5a; 8]));
    let used = cma::used(0);
    let released = cma::cma_release(0, many, 300) && cma::cma_release(0, one, 1);
    check(many.as_u64().is_multiple_of(256), "the first frame is not aligned")?;
    check(all_single, "a frame has not one reference")?;
    check(held == 301 && used == 301, "other than 301 frames were taken")?;
    check(released && cma::used(0) == 0, "frames were not taken back")?;
    check(buddy::free_pages() == before, "free pages differ after everything was given back")
}

fn an_area_can_be_had_whole_and_not_twice() -> Outcome {
    let area = area()?;
    let before = buddy::free_pages();
    let whole = alloc(area.count, 0).ok_or(NO_PIECE)?;
    let second = alloc(1, 0);
    let more = alloc(area.count + 1, 0);
    check(whole == Pfn::new(area.base_pfn), "the area does not begin where it is")?;
    check(cma::cma_release(0, whole, area.count), "the area was not taken back")?;
    check(second.is_none() && more.is_none(), "more than the area has")?;
    check(alloc(0, 0).is_none(), "no frames are none")?;
    check(buddy::free_pages() == before, "free pages differ after everything was given back")
}

/// Pages that borrow from an area.
const LENT: usize = 64;
static PAGES_LENT: Lock<[u64; LENT]> = Lock::new([PFN_NONE; LENT]);
static OWNER: AtomicU64 = AtomicU64::new(0);

/// Their owner: a page's `index` is its place in the table, and its first word says which it is.
struct Lent;
static LENT_OWNER: Lent = Lent;

impl Migrate for Lent {
    fn isolate_page(&self, _: Pfn, _: &Page, _: MigrateMode) -> bool {
        true
    }

    fn migrate_page(&self, to: Pfn, from: Pfn, page: &Page, _: MigrateMode) -> Result<(), MigrateError> {
        let index = usize::try_from(page.index()).map_err(|_| MigrateError::Busy)?;
        let mut pages = PAGES_LENT.lock();
        let slot = pages.get_mut(index).filter(|slot| **slot == from.as_u64()).ok_or(MigrateError::Busy)?;
        let mut word = [0; 8];
        kmap::copy_from_page(from, 0, &mut word);
        kmap::copy_to_page(to, 0, &word);
        *slot = to.as_u64();
        Ok(())
    }

    fn putback_page(&self, _: Pfn, _: &Page) {}
}

fn movable_pages_make_way_with_their_contents() -> Outcome {
    let area = area()?;
    if OWNER.load(Ordering::Relaxed) == 0 {
        let owner = movable::register("cma", &LENT_OWNER).ok_or(Failure::Wrong("too many owners"))?;
        OWNER.store(owner, Ordering::Relaxed);
    }
    let within = |pfn: u64| (area.base_pfn..area.base_pfn + area.count).contains(&pfn);
    let node = Vmemmap.page(Pfn::new(area.base_pfn)).map(Page::node);
    let before = buddy::free_pages();
    for index in 0..LENT {
        let gfp = Gfp::NOWAIT | Gfp::HIGHMEM | Gfp::MOVABLE;
        let pfn = page_alloc::alloc_gfp(Context::ATOMIC, gfp, Order::ZERO, node).ok_or(NO_PIECE)?;
        kmap::copy_to_page(pfn, 0, &(900 + index as u64).to_le_bytes());
        Vmemmap.page(pfn).ok_or(NO_PIECE)?.set_index(index as u64);
        PAGES_LENT.lock()[index] = pfn.as_u64();
        movable::set_movable(pfn, OWNER.load(Ordering::Relaxed));
    }
    let inside = PAGES_LENT.lock().iter().filter(|pfn| within(**pfn)).count();
    let whole = alloc(area.count, 0);
    let pages = *PAGES_LENT.lock();
    let mut kept = true;
    for (index, pfn) in (0_u64..).zip(pages) {
        let mut word = [0; 8];
        kmap::copy_from_page(Pfn::new(pfn), 0, &mut word);
        kept &= u64::from_le_bytes(word) == 900 + index;
    }
    let left = pages.iter().filter(|pfn| within(**pfn)).count();
    if let Some(first) = whole {
        check(cma::cma_release(0, first, area.count), "the area was not taken back")?;
    }
    for pfn in pages.map(Pfn::new) {
        movable::clear_movable(pfn);
        page_alloc::free_pages(pfn, Order::ZERO);
    }
    check(whole.is_some(), "pages that can move kept the area")?;
    check(left == 0, "a page was left in the area")?;
    check(kept, "a page lost its contents")?;
    check(buddy::free_pages() == before, "free pages differ after everything was given back")?;
    if inside == 0 {
        return Err(Failure::Skip("no page came from the area: it is less than half of its zone"));
    }
    Ok(())
}

fn what_cannot_move_gets_nothing_of_an_area() -> Outcome {
    area()?;
    let mut list = PFN_NONE;
    let mut inside = 0;
    while let Some(pfn) = page_alloc::alloc_gfp(Context::ATOMIC, Gfp::NOWAIT | Gfp::NOWARN, Order::MAX, None)
    {
        inside += u64::from(
            (0..cma::count())
                .filter_map(cma::area)
                .any(|area| (area.base_pfn..area.base_pfn + area.count).contains(&pfn.as_u64())),
        );
        Vmemmap.page(pfn).ok_or(Failure::Wrong("no descriptor"))?.set_next(list);
        list = pfn.as_u64();
    }
    // All else is taken: what can move gets frames of the area.
    let gfp = Gfp::NOWAIT | Gfp::NOWARN | Gfp::HIGHMEM | Gfp::MOVABLE;
    let movable = page_alloc::alloc_gfp(Context::ATOMIC, gfp, Order::MAX, None);
    if let Some(pfn) = movable {
        page_alloc::free_pages(pfn, Order::MAX);
    }
    while list != PFN_NONE {
        let pfn = Pfn::new(list);
        let page = Vmemmap.page(pfn).ok_or(Failure::Wrong("no descriptor"))?;
        list = page.next();
        page.set_next(PFN_NONE);
        page_alloc::free_pages(pfn, Order::MAX);
    }
    check(inside == 0, "a request that cannot move got frames of an area")?;
    check(movable.is_some(), "the area is not lent to what can move")
}

fn wrong_releases_change_nothing() -> Outcome {
    let area = area()?;
    let pfn = alloc(8, 3).ok_or(NO_PIECE)?;
    let used = cma::used(0);
    let more = cma::cma_release(0, pfn, 9);
    let outside = cma::cma_release(0, Pfn::new(area.base_pfn + area.count), 1);
    let nothing = cma::cma_release(0, pfn, 0);
    let unchanged = cma::used(0) == used;
    let released = cma::cma_release(0, pfn, 8);
    check(!more && !outside && !nothing && unchanged, "frames were taken back that nobody has")?;
    check(released, "frames were not taken back")?;
    check(!cma::cma_release(0, pfn, 8), "frames were taken back twice")
}

fn a_range_that_is_in_use_is_refused() -> Outcome {
    let before = buddy::free_pages();
    let order = Order::new(9).ok_or(NO_PIECE)?;
    let block = page_alloc::alloc_gfp(Context::ATOMIC, Gfp::NOWAIT, order, None).ok_or(NO_PIECE)?;
    let outcome = PAGES.alloc_contig_range(Context::ATOMIC, block, block.offset(512), Migratetype::Movable);
    page_alloc::free_pages(block, order);
    let backwards = PAGES.alloc_contig_range(Context::ATOMIC, block, block, Migratetype::Movable);
    check(matches!(outcome, Err(ContigError::Busy { .. })), "frames that cannot move were taken")?;
    check(matches!(backwards, Err(ContigError::Invalid { .. })), "an empty range was taken")?;
    check(buddy::free_pages() == before, "free pages differ after a refusal")
}

/// So that bitmaps have something to agree with.
fn an_allocation_stays_for_the_audit() -> Outcome {
    area()?;
    alloc(5, 0).ok_or(NO_PIECE)?;
    alloc(64, 6).map(|_| ()).ok_or(NO_PIECE)
}
