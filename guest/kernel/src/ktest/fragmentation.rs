//! Fragmented memory and compaction: movable test pages are aged until no huge page is left, and compaction makes some.
//!
//! The pages belong to an owner that knows each by number: a table says where it is, and its frame's first and last word
//! say which it is. `fragment=all` on the command line ages all memory instead of ZONE_DMA,
//! `fragment=short` leaves out what only repeats that.

use core::sync::atomic::{AtomicU64, Ordering};

use memvisor_abi::{MAX_NR_ZONES, PFN_NONE, VmEvent};
use mm_core::{
    CpuLocal, Gfp, MaySleep, MemMap, Migrate, MigrateError, MigrateMode, Order, Page, Pfn, PhysAddr, PhysMem,
    ZoneKind,
};
use mm_page_alloc::{AllocTarget, Context, PageList};
use mm_vmscan::MAX_RECLAIM_RETRIES;

use super::{Failure, Test, check};
use crate::mm::memmap::Vmemmap;
use crate::mm::page_alloc::{self, PAGES};
use crate::mm::pcp::Local;
use crate::mm::phys::{self, DirectMap};
use crate::mm::vmscan::kswapd;
use crate::mm::{kcompactd, movable};
use crate::sync::Lock;
use crate::{cmdline, init, println, sched};

type Outcome = Result<(), Failure>;

/// `ktest=fragmentation`.
pub const TESTS: [(&str, Test); 5] = [
    ("a_page_moves_with_its_contents", a_page_moves_with_its_contents),
    ("order_nine_fails_in_aged_memory_until_it_is_compacted", order_nine_fails_until_compacted),
    ("pinned_pages_defer_compaction", pinned_pages_defer_compaction),
    ("kcompactd_makes_huge_pages_in_the_background", kcompactd_makes_huge_pages),
    ("a_node_is_compacted_on_request", a_node_is_compacted_on_request),
];

const NO_MEMORY: Failure = Failure::Wrong("no memory");
const NOT_NOW: Failure = Failure::Skip("a short run is asked for");
const LAST_WORD: u64 = 4088;

/// The table: physical address, slots in it, the owner's number.
static TABLE: AtomicU64 = AtomicU64::new(0);
static SLOTS: AtomicU64 = AtomicU64::new(0);
static OWNER: AtomicU64 = AtomicU64::new(0);

/// The block that the table takes, with a slot for each page that is aged; `None` for more than 2 GiB.
fn table_order() -> Option<Order> {
    let zones = page_alloc::zones().take(if is_all() { usize::MAX } else { 1 });
    let managed: u64 = zones.map(|zone| zone.lock().info().managed_pages).sum();
    Order::covering(managed.div_ceil(512))
}

/// Whether all memory is aged.
fn is_all() -> bool {
    cmdline::value("fragment", |value| value == "all") == Some(true)
}

/// Whether only the main path is wanted: `fragment=short`, for machines that emulate ring 0.
fn is_short() -> bool {
    cmdline::value("fragment", |value| value == "short") == Some(true)
}

/// Which memory is aged.
fn gfp() -> Gfp {
    if is_all() { Gfp::NOWAIT | Gfp::NOWARN } else { Gfp::NOWAIT | Gfp::NOWARN | Gfp::DMA }
}

fn huge_order() -> Order {
    Order::new(9).unwrap_or(Order::MAX)
}

fn slots() -> &'static [AtomicU64] {
    match TABLE.load(Ordering::Relaxed) {
        0 => &[],
        addr => phys::words(PhysAddr::new(addr), SLOTS.load(Ordering::Relaxed)),
    }
}

/// The page with that number, if it exists.
fn page_of(number: usize) -> Option<Pfn> {
    let raw = slots().get(number)?.load(Ordering::Relaxed);
    (raw != PFN_NONE).then(|| Pfn::new(raw))
}

fn content(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

fn last_word(pfn: Pfn) -> PhysAddr {
    PhysAddr::new(pfn.phys().as_u64() + LAST_WORD)
}

/// Blocks of the mix that cannot move.
static HELD: Lock<[Option<(Pfn, Order)>; 32]> = Lock::new([None; 32]);

/// The owner. A page whose `private` is 1 is pinned.
struct Numbered;
static NUMBERED: Numbered = Numbered;

impl Migrate for Numbered {
    fn isolate_page(&self, _: Pfn, page: &Page, _: MigrateMode) -> bool {
        page.private() == 0
    }

    fn migrate_page(&self, to: Pfn, from: Pfn, page: &Page, _: MigrateMode) -> Result<(), MigrateError> {
        let slot = usize::try_from(page.index()).ok().and_then(|number| slots().get(number));
        let slot = slot.ok_or(MigrateError::Busy)?;
        if slot.load(Ordering::Relaxed) != from.as_u64() {
            return Err(MigrateError::Busy);
        }
        phys::copy_frame(to, from);
        // What is left behind is no copy that a test could mistake for the page.
        DirectMap.write_u64(from.phys(), u64::MAX);
        DirectMap.write_u64(last_word(from), u64::MAX);
        slot.store(to.as_u64(), Ordering::Relaxed);
        Ok(())
    }

    fn putback_page(&self, _: Pfn, _: &Page) {}
}

/// Allocates the table and registers the owner, once.
fn prepare() -> Outcome {
    if OWNER.load(Ordering::Relaxed) == 0 {
        let owner = movable::register("ktest", &NUMBERED).ok_or(Failure::Wrong("too many owners"))?;
        OWNER.store(owner, Ordering::Relaxed);
    }
    if TABLE.load(Ordering::Relaxed) == 0 {
        let order = table_order().ok_or(Failure::Skip("there is too much memory to age"))?;
        let pfn = page_alloc::alloc_gfp(Context::ATOMIC, Gfp::NOWAIT, order, None).ok_or(NO_MEMORY)?;
        SLOTS.store(order.pages() * 512, Ordering::Relaxed);
        TABLE.store(pfn.phys().as_u64(), Ordering::Relaxed);
        slots().iter().for_each(|slot| slot.store(PFN_NONE, Ordering::Relaxed));
    }
    Ok(())
}

/// Frees every page and the table.
fn clean_up() {
    (0..slots().len()).for_each(free);
    for block in HELD.lock().iter_mut().filter_map(Option::take) {
        page_alloc::free_pages(block.0, block.1);
    }
    let pfn = PhysAddr::new(TABLE.swap(0, Ordering::Relaxed)).pfn();
    if let Some(order) = Vmemmap.page(pfn).filter(|_| pfn.as_u64() != 0).map(Page::order) {
        page_alloc::free_pages(pfn, order);
    }
    PAGES.drain_all_pages();
}

/// Allocates the page with that number; `false` without memory.
fn add(number: usize, gfp: Gfp) -> bool {
    let Some(slot) = slots().get(number) else { return false };
    let gfp = gfp | Gfp::MOVABLE;
    let Some(pfn) = page_alloc::alloc_gfp(Context::ATOMIC, gfp, Order::ZERO, None) else { return false };
    DirectMap.write_u64(pfn.phys(), content(number as u64));
    DirectMap.write_u64(last_word(pfn), !content(number as u64));
    if let Some(page) = Vmemmap.page(pfn) {
        page.set_index(number as u64);
        page.set_private(0);
    }
    slot.store(pfn.as_u64(), Ordering::Relaxed);
    movable::set_movable(pfn, OWNER.load(Ordering::Relaxed));
    true
}

fn free(number: usize) {
    if let Some(pfn) = page_of(number) {
        movable::clear_movable(pfn);
        slots()[number].store(PFN_NONE, Ordering::Relaxed);
        page_alloc::free_pages(pfn, Order::ZERO);
    }
}

/// Whether every page still holds its contents, and its descriptor says whose it is.
fn intact() -> bool {
    let owner = OWNER.load(Ordering::Relaxed);
    (0..slots().len()).all(|number| {
        let Some(pfn) = page_of(number) else { return true };
        let described = Vmemmap.page(pfn).is_some_and(|page| {
            page.refcount() == 1 && page.mapping() == owner && page.index() == number as u64
        });
        described
            && DirectMap.read_u64(pfn.phys()) == content(number as u64)
            && DirectMap.read_u64(last_word(pfn)) == !content(number as u64)
    })
}

/// A fixed sequence of numbers, so that every run ages memory alike.
fn mix(number: usize) -> u64 {
    let mut x = (number as u64 + 1).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 31;
    x.wrapping_mul(0x94d0_49bb_1331_11eb) >> 33
}

/// [`gfp`] for requests that wake nobody.
fn quiet() -> Gfp {
    gfp() - Gfp::KSWAPD_RECLAIM
}

/// Takes some blocks that cannot move, fills the memory with pages that can, exchanges some of them, and frees three of
/// four: afterwards a page is left in every handful of frames. Nobody is woken, who would make order on another CPU meanwhile.
fn age() {
    let mut count = 0;
    for (step, place) in HELD.lock().iter_mut().enumerate() {
        let order = u8::try_from(mix(step) % 3).ok().and_then(Order::new).unwrap_or(Order::ZERO);
        *place = page_alloc::alloc_gfp(Context::ATOMIC, quiet(), order, None).map(|pfn| (pfn, order));
    }
    while add(count, quiet()) {
        count += 1;
    }
    for step in 0..count / 8 {
        let number = usize::try_from(mix(step)).unwrap_or(0) % count.max(1);
        free(number);
        add(number, quiet());
    }
    (0..count).filter(|number| !mix(*number).is_multiple_of(4)).for_each(free);
    PAGES.drain_all_pages();
}

fn huge_at_once() -> Option<Pfn> {
    page_alloc::alloc_gfp(Context::ATOMIC, quiet(), huge_order(), None)
}

fn huge(token: &MaySleep<'_>) -> Option<Pfn> {
    // Nobody is woken to do it instead.
    let gfp = (gfp() | Gfp::KERNEL) - Gfp::KSWAPD_RECLAIM;
    page_alloc::alloc_gfp(Context::task(token), gfp, huge_order(), None)
}

fn event(event: VmEvent) -> u64 {
    let mut sum = 0;
    Local.for_each(|_, cpu| sum += cpu.events.events[event as usize]);
    sum
}

fn say_events(title: &str) {
    println!(
        "# {title}: stall {} success {} fail {} scanned {} {} isolated {} migrated {} failed {} kcompactd {}",
        event(VmEvent::CompactStall),
        event(VmEvent::CompactSuccess),
        event(VmEvent::CompactFail),
        event(VmEvent::CompactMigrateScanned),
        event(VmEvent::CompactFreeScanned),
        event(VmEvent::CompactIsolated),
        event(VmEvent::PgmigrateSuccess),
        event(VmEvent::PgmigrateFail),
        event(VmEvent::KcompactdWake),
    );
}

/// Waits for those who work in the background: kswapd hands over to kcompactd.
fn wait_idle(token: &MaySleep<'_>) {
    kswapd::wait_idle(token);
    kcompactd::wait_idle(token);
}

/// Runs a test on fresh slots, with nothing left over afterwards.
fn with_pages(test: impl FnOnce(&MaySleep<'_>) -> Outcome) -> Outcome {
    let token = sched::task_context();
    wait_idle(&token);
    PAGES.drain_all_pages();
    let before = super::buddy::free_pages();
    prepare()?;
    let outcome = test(&token);
    wait_idle(&token);
    clean_up();
    outcome?;
    check(super::buddy::free_pages() == before, "pages were lost")
}

fn a_page_moves_with_its_contents() -> Outcome {
    with_pages(|_| {
        check(add(0, gfp()), "no memory")?;
        let from = page_of(0).ok_or(NO_MEMORY)?;
        let moved = event(VmEvent::PgmigrateSuccess);
        let mut range = PAGES.isolate_migratepages_range(from, from.offset(1), MigrateMode::Sync);
        check(range.pages.len == 1, "the page cannot be isolated")?;
        let mut target = AllocTarget { pages: &PAGES, context: Context::ATOMIC, gfp: gfp(), node: None };
        let done = PAGES.migrate_pages(&mut range.pages, MigrateMode::Sync, &mut target);
        check(range.pages == PageList { head: PFN_NONE, len: 0 } && done.succeeded == 1, "the page stayed")?;
        check(page_of(0) != Some(from), "the page is where it was")?;
        check(intact(), "the page lost its contents")?;
        check(event(VmEvent::PgmigrateSuccess) == moved + 1, "the move was not counted")
    })
}

fn order_nine_fails_until_compacted() -> Outcome {
    with_pages(|token| {
        age();
        check(huge_at_once().is_none(), "aged memory has a huge page")?;
        init::checkpoint(10, c"fragmented");
        let (stalls, successes) = (event(VmEvent::CompactStall), event(VmEvent::CompactSuccess));
        let pfn = huge(token);
        say_events("direct compaction");
        check(pfn.is_some(), "compaction made no huge page")?;
        if let Some(pfn) = pfn {
            page_alloc::free_pages(pfn, huge_order());
        }
        check(intact(), "a page lost its contents")?;
        check(event(VmEvent::CompactStall) > stalls, "the stall was not counted")?;
        check(event(VmEvent::CompactSuccess) > successes, "the success was not counted")?;
        // The rest, for whoever looks.
        (0..page_alloc::nr_nodes()).filter_map(|node| u32::try_from(node).ok()).for_each(|node| {
            PAGES.compact_node(token, node);
        });
        check(intact(), "a page lost its contents")?;
        init::checkpoint(11, c"compacted");
        Ok(())
    })
}

fn pinned_pages_defer_compaction() -> Outcome {
    if is_short() {
        return Err(NOT_NOW);
    }
    if is_all() {
        return Err(Failure::Skip("one zone is aged for this"));
    }
    with_pages(|token| {
        age();
        // A page in each 64 frames stays.
        for number in (0..slots().len()).step_by(16) {
            if let Some(page) = page_of(number).and_then(|pfn| Vmemmap.page(pfn)) {
                page.set_private(1);
            }
        }
        let outcome = compaction_is_deferred(token);
        // Later tests begin with a zone that is believed in.
        page_alloc::zone(0, ZoneKind::Dma).lock().reset_compaction_defer(&Vmemmap, huge_order(), true);
        outcome
    })
}

/// Two requests for what pinned pages stand in the way of.
fn compaction_is_deferred(token: &MaySleep<'_>) -> Outcome {
    let (failures, scanned) = (event(VmEvent::CompactFail), event(VmEvent::CompactMigrateScanned));
    let got = huge(token).map(|pfn| page_alloc::free_pages(pfn, huge_order()));
    check(got.is_none(), "a huge page where one cannot be")?;
    check(intact(), "a page lost its contents")?;
    check(event(VmEvent::CompactFail) > failures, "the failure was not counted")?;
    let shift = page_alloc::zone(0, ZoneKind::Dma).lock().info().compact_defer_shift;
    check(shift > 0, "the next compaction is not deferred")?;
    let first = event(VmEvent::CompactMigrateScanned) - scanned;
    let again = huge(token).map(|pfn| page_alloc::free_pages(pfn, huge_order()));
    check(again.is_none(), "a second request had a huge page where one cannot be")?;
    say_events("deferred compaction");
    let second = event(VmEvent::CompactMigrateScanned) - scanned - first;
    check(second < first, "neither deferral nor hints spared the second request anything")?;
    Ok(())
}

fn kcompactd_makes_huge_pages() -> Outcome {
    with_pages(|token| {
        age();
        let runs = event(VmEvent::KcompactdWake);
        check(huge_at_once().is_none(), "aged memory has a huge page")?;
        // These requests may wake somebody: kswapd, and once it freed nothing for that many runs, kcompactd in its place. On another CPU it may even be
        // done before a request gives up.
        let mut pfn = None;
        for _ in 0..=MAX_RECLAIM_RETRIES {
            if let Some(pfn) = page_alloc::alloc_gfp(Context::ATOMIC, gfp(), huge_order(), None) {
                page_alloc::free_pages(pfn, huge_order());
            }
            wait_idle(token);
            pfn = huge_at_once();
            if pfn.is_some() {
                break;
            }
        }
        say_events("kcompactd");
        check(event(VmEvent::KcompactdWake) > runs, "kcompactd did not run")?;
        check(intact(), "a page lost its contents")?;
        if let Some(pfn) = pfn {
            page_alloc::free_pages(pfn, huge_order());
        }
        check(pfn.is_some(), "kcompactd made no huge page")
    })
}

fn a_node_is_compacted_on_request() -> Outcome {
    if is_short() {
        return Err(NOT_NOW);
    }
    with_pages(|token| {
        age();
        PAGES.compact_node(token, 0);
        check(intact(), "a page lost its contents")?;
        // Three quarters of the memory are free, without the pageblocks of what cannot move: a third at least is whole.
        let zones = if is_all() { MAX_NR_ZONES } else { 1 };
        let (mut managed, mut huge) = (0, 0);
        for zone in page_alloc::zones().take(zones) {
            let zone = zone.lock();
            managed += zone.info().managed_pages;
            huge += zone.contig_page_info(huge_order()).free_blocks_suitable;
        }
        check(huge * 512 * 3 >= managed, "less than a third of the node is free as huge pages")
    })
}
