//! Windows onto single frames. They work on frames of every zone; with `lowmem=` the frames are of ZONE_HIGHMEM.

use core::sync::atomic::{AtomicU64, Ordering};

use memvisor_abi::{KM_MAX_IDX, LAST_PKMAP, ZoneKind};
use mm_core::{Gfp, MemMap, Order, PAGE_SIZE, Pfn, VirtAddr};
use mm_page_alloc::Context;
use mm_pgtable::layout;
use mm_vmalloc::{KmapError, Request};

use super::{Failure, Test, check};
use crate::arch::trap::{Probe, VECTOR_PAGE_FAULT, probe};
use crate::mm::layout::levels;
use crate::mm::memmap::Vmemmap;
use crate::mm::paging::{self, Tables};
use crate::mm::{kmap, limits, page_alloc, phys, vmalloc};
use crate::sched;
use crate::smp;

type Outcome = Result<(), Failure>;

pub const TESTS: [(&str, Test); 13] = [
    ("highmem_is_served_and_not_in_the_direct_map", highmem_is_served_and_not_in_the_direct_map),
    ("vmalloc_takes_highmem_and_reaches_it", vmalloc_takes_highmem_and_reaches_it),
    ("movable_memory_serves_what_can_move", movable_memory_serves_what_can_move),
    ("kmap_of_low_memory_is_the_direct_map", kmap_of_low_memory_is_the_direct_map),
    ("kmap_shows_the_frame_and_counts_users", kmap_shows_the_frame_and_counts_users),
    ("kunmap_of_an_unmapped_frame_changes_nothing", kunmap_of_an_unmapped_frame_changes_nothing),
    ("a_full_window_is_flushed_and_reused", a_full_window_is_flushed_and_reused),
    ("a_full_window_without_anybody_else_refuses", a_full_window_without_anybody_else_refuses),
    ("a_full_window_makes_a_task_wait_for_a_slot", a_full_window_makes_a_task_wait_for_a_slot),
    ("kmap_local_nests_and_goes_in_the_opposite_order", kmap_local_nests_and_goes_in_the_opposite_order),
    ("kmap_local_survives_a_task_switch", kmap_local_survives_a_task_switch),
    ("kmap_atomic_forbids_sleeping", kmap_atomic_forbids_sleeping),
    ("mappings_stay_for_the_audit", mappings_stay_for_the_audit),
];

/// A frame with that word, of highmem where there is any.
fn frame(value: u64) -> Result<Pfn, Failure> {
    let frame = one(Gfp::NOWAIT | Gfp::HIGHMEM)?;
    kmap::copy_to_page(frame, 0, &value.to_le_bytes());
    Ok(frame)
}

fn one(gfp: Gfp) -> Result<Pfn, Failure> {
    page_alloc::alloc_gfp(Context::ATOMIC, gfp, Order::ZERO, None).ok_or(Failure::Wrong("no memory"))
}

fn word(pfn: Pfn) -> u64 {
    let mut bytes = [0; 8];
    kmap::copy_from_page(pfn, 0, &mut bytes);
    u64::from_le_bytes(bytes)
}

/// Whether a zone of that kind has memory.
fn populated(kind: ZoneKind) -> bool {
    page_alloc::zones().any(|zone| {
        let zone = zone.lock();
        zone.info().kind == kind as u32 && zone.info().managed_pages > 0
    })
}

fn highmem_is_served_and_not_in_the_direct_map() -> Outcome {
    if !populated(ZoneKind::HighMem) {
        return Err(Failure::Skip("no zone HighMem; lowmem= makes one"));
    }
    let (high, low) = (one(Gfp::NOWAIT | Gfp::HIGHMEM)?, one(Gfp::NOWAIT)?);
    check(kmap::is_highmem(high) && kmap::page_address(high).is_none(), "highmem was not used")?;
    check(high >= limits::lowmem_end(), "a highmem frame below the end of low memory")?;
    check(!kmap::is_highmem(low), "a request for low memory got highmem")?;
    let place = layout::phys_to_virt(levels(), high.phys()).ok_or(Failure::Wrong("beyond the direct map"))?;
    check(faults(place), "the direct map reaches highmem")?;
    kmap::copy_to_page(high, 0, &u64::MAX.to_le_bytes());
    let dirty = word(high);
    drop_frame(high);
    let zeroed = one(Gfp::NOWAIT | Gfp::HIGHMEM | Gfp::ZERO)?;
    check(dirty == u64::MAX && kmap::is_highmem(zeroed) && word(zeroed) == 0, "highmem was not cleared")?;
    drop_frame(zeroed);
    drop_frame(low);
    Ok(())
}

fn vmalloc_takes_highmem_and_reaches_it() -> Outcome {
    if !populated(ZoneKind::HighMem) {
        return Err(Failure::Skip("no zone HighMem; lowmem= makes one"));
    }
    const PAGES: u64 = 20;
    let request = Request::zeroed(PAGES * PAGE_SIZE);
    let va = vmalloc::vmalloc(&request, &sched::task_context()).map_err(|_| Failure::Wrong("no memory"))?;
    let page = |n: u64| VirtAddr::new(va.as_u64() + n * PAGE_SIZE);
    let clean = (0..PAGES).all(|n| phys::read_mapped(page(n)) == 0);
    (0..PAGES).for_each(|n| phys::store_mapped(page(n), 7000 + n));
    let frames = (0..PAGES).map(|n| paging::kernel().translate(&Tables, page(n)).map(|at| at.phys.pfn()));
    let right = frames
        .zip(7000..)
        .all(|(pfn, value)| pfn.is_some_and(|pfn| kmap::is_highmem(pfn) && word(pfn) == value));
    check(vmalloc::vfree(va), "vfree refused")?;
    check(clean, "vzalloc left what was there")?;
    check(right, "the area is not of highmem, or shows other frames")
}

fn movable_memory_serves_what_can_move() -> Outcome {
    if !populated(ZoneKind::Movable) {
        return Err(Failure::Skip("no zone Movable; movablecore= makes one"));
    }
    let kind = |pfn: Pfn| Vmemmap.page(pfn).map(mm_core::Page::zone);
    let (movable, fixed) =
        (one(Gfp::NOWAIT | Gfp::HIGHMEM | Gfp::MOVABLE)?, one(Gfp::NOWAIT | Gfp::HIGHMEM)?);
    let kinds = (kind(movable), kind(fixed));
    kmap::copy_to_page(movable, 0, &41_u64.to_le_bytes());
    let value = word(movable);
    drop_frame(movable);
    drop_frame(fixed);
    check(kinds.0 == Some(ZoneKind::Movable), "a movable request was served elsewhere")?;
    check(kinds.1 != Some(ZoneKind::Movable), "a request that cannot move got movable memory")?;
    check(value == 41, "movable memory cannot be reached")
}

fn drop_frame(frame: Pfn) {
    page_alloc::free_pages(frame, Order::ZERO);
}

fn wrong(what: &'static str) -> impl FnOnce(KmapError) -> Failure {
    move |_| Failure::Wrong(what)
}

fn faults(va: VirtAddr) -> bool {
    probe(Probe::Read(va.as_u64())) == Err(VECTOR_PAGE_FAULT)
}

fn kmap_of_low_memory_is_the_direct_map() -> Outcome {
    let pfn = frame(1)?;
    let context = sched::task_context();
    let va = kmap::kmap(pfn, &context).map_err(wrong("kmap failed"))?;
    if !kmap::is_highmem(pfn) {
        check(kmap::page_address(pfn) == Some(va), "low memory got a slot")?;
    }
    check(phys::read_mapped(va) == 1, "kmap shows another frame")?;
    check(kmap::kunmap(pfn), "kunmap refused its own mapping")?;
    kmap::clear_highpage(pfn);
    check(word(pfn) == 0, "clear_highpage left something")?;
    drop_frame(pfn);
    Ok(())
}

fn kmap_shows_the_frame_and_counts_users() -> Outcome {
    let context = sched::task_context();
    let pfn = frame(42)?;
    let first = kmap::kmap_high(pfn, &context).map_err(wrong("kmap failed"))?;
    let second = kmap::kmap_high(pfn, &context).map_err(wrong("kmap failed"))?;
    check(first == second, "one frame got two slots")?;
    check(phys::read_mapped(first) == 42, "the slot shows another frame")?;
    check(kmap::kunmap_high(pfn) && kmap::kunmap_high(pfn), "kunmap refused")?;
    check(!faults(first), "the mapping went before the window was full")?;
    kmap::kmap_flush_unused();
    check(faults(first), "a slot without user is mapped after the flush")?;
    drop_frame(pfn);
    Ok(())
}

fn kunmap_of_an_unmapped_frame_changes_nothing() -> Outcome {
    let pfn = frame(0)?;
    check(!kmap::kunmap_high(pfn), "kunmap took a frame that is not mapped")?;
    check(!kmap::kunmap_local(VirtAddr::new(0x1000)), "kunmap_local took an address outside the window")?;
    drop_frame(pfn);
    Ok(())
}

/// Frames for the whole window: any frame numbers do, because only their slots are looked at.
fn fill(context: &mm_core::MaySleep<'_>) -> Outcome {
    for n in 0..LAST_PKMAP as u64 {
        kmap::kmap_high(Pfn::new(n), context).map_err(wrong("the window is full too early"))?;
    }
    Ok(())
}

fn empty() -> Outcome {
    for n in 0..LAST_PKMAP as u64 {
        check(kmap::kunmap_high(Pfn::new(n)), "kunmap refused")?;
    }
    kmap::kmap_flush_unused();
    Ok(())
}

fn a_full_window_is_flushed_and_reused() -> Outcome {
    let context = sched::task_context();
    kmap::kmap_flush_unused();
    for n in 0..LAST_PKMAP as u64 + 20 {
        let pfn = Pfn::new(n);
        kmap::kmap_high(pfn, &context).map_err(wrong("slots without users were not reused"))?;
        check(kmap::kunmap_high(pfn), "kunmap refused")?;
    }
    let pfn = frame(43)?;
    let va = kmap::kmap_high(pfn, &context).map_err(wrong("kmap failed"))?;
    check(phys::read_mapped(va) == 43, "a reused slot shows another frame")?;
    check(kmap::kunmap_high(pfn), "kunmap refused")?;
    kmap::kmap_flush_unused();
    drop_frame(pfn);
    Ok(())
}

fn a_full_window_without_anybody_else_refuses() -> Outcome {
    let context = sched::task_context();
    fill(&context)?;
    let pfn = frame(0)?;
    let refused = kmap::kmap_high(pfn, &context);
    empty()?;
    check(refused == Err(KmapError::Full), "kmap found a slot in a full window")?;
    kmap::kmap_high(pfn, &context).map_err(wrong("kmap failed after slots were freed"))?;
    check(kmap::kunmap_high(pfn), "kunmap refused")?;
    kmap::kmap_flush_unused();
    drop_frame(pfn);
    Ok(())
}

static MAPPED_AT: AtomicU64 = AtomicU64::new(0);

fn a_full_window_makes_a_task_wait_for_a_slot() -> Outcome {
    fn waiter(pfn: u64) {
        let va = kmap::kmap_high(Pfn::new(pfn), &sched::task_context());
        MAPPED_AT.store(va.map_or(1, VirtAddr::as_u64), Ordering::Release);
    }
    let context = sched::task_context();
    MAPPED_AT.store(0, Ordering::Release);
    fill(&context)?;
    let pfn = frame(44)?;
    let thread =
        sched::spawn("kmap", waiter, pfn.as_u64(), &context).map_err(|_| Failure::Wrong("no thread"))?;
    for _ in 0..50 {
        sched::yield_now(&context);
    }
    let early = MAPPED_AT.load(Ordering::Acquire);
    check(kmap::kunmap_high(Pfn::new(9)), "kunmap refused")?;
    thread.join(&context);
    let va = MAPPED_AT.load(Ordering::Acquire);
    check(early == 0, "kmap did not wait")?;
    check(va > 1 && phys::read_mapped(VirtAddr::new(va)) == 44, "the task that waited got no slot")?;
    check(kmap::kunmap_high(pfn), "kunmap refused")?;
    kmap::kmap_high(Pfn::new(9), &context).map_err(wrong("kmap failed"))?;
    empty()?;
    drop_frame(pfn);
    Ok(())
}

fn kmap_local_nests_and_goes_in_the_opposite_order() -> Outcome {
    let (a, b) = (frame(1)?, frame(2)?);
    let first = kmap::kmap_local(a).map_err(wrong("kmap_local failed"))?;
    let second = kmap::kmap_local(b).map_err(wrong("kmap_local failed"))?;
    check(phys::read_mapped(first) == 1 && phys::read_mapped(second) == 2, "a slot shows another frame")?;
    check(!kmap::kunmap_local(first), "the first mapping was ended before the second")?;
    check(kmap::kunmap_local(second) && kmap::kunmap_local(first), "kunmap_local refused")?;
    check(faults(first) && faults(second), "a slot is still mapped")?;
    let mut held = [VirtAddr::new(0); KM_MAX_IDX];
    for slot in &mut held {
        *slot = kmap::kmap_local(a).map_err(wrong("too few slots"))?;
    }
    check(kmap::kmap_local(b) == Err(KmapError::Full), "kmap_local found a slot too many")?;
    for va in held.into_iter().rev() {
        check(kmap::kunmap_local(va), "kunmap_local refused")?;
    }
    drop_frame(a);
    drop_frame(b);
    Ok(())
}

static LOCAL_RESULT: AtomicU64 = AtomicU64::new(0);

fn kmap_local_survives_a_task_switch() -> Outcome {
    /// Maps, lets others run, and looks again: the slot must still show its own frame, on the same CPU.
    fn holder(pfn: u64) {
        let context = sched::task_context();
        let Ok(va) = kmap::kmap_local(Pfn::new(pfn)) else { return };
        let value = phys::read_mapped(va);
        for _ in 0..20 {
            sched::yield_now(&context);
            if phys::read_mapped(va) != value {
                return;
            }
        }
        kmap::kunmap_local(va);
        LOCAL_RESULT.fetch_add(value, Ordering::AcqRel);
    }
    let context = sched::task_context();
    let (a, b) = (frame(100)?, frame(1000)?);
    LOCAL_RESULT.store(0, Ordering::Release);
    let last = smp::nr_online() - 1;
    let no_thread = |_| Failure::Wrong("no thread");
    let one = sched::spawn_on(last, "local-a", holder, a.as_u64(), &context).map_err(no_thread)?;
    let two = sched::spawn_on(last, "local-b", holder, b.as_u64(), &context).map_err(no_thread)?;
    one.join(&context);
    two.join(&context);
    check(LOCAL_RESULT.load(Ordering::Acquire) == 1100, "a task saw another task's slot")?;
    drop_frame(a);
    drop_frame(b);
    Ok(())
}

fn kmap_atomic_forbids_sleeping() -> Outcome {
    let pfn = frame(3)?;
    let va = kmap::kmap_atomic(pfn).map_err(wrong("kmap_atomic failed"))?;
    let may = sched::might_sleep().is_some();
    let value = phys::read_mapped(va);
    check(kmap::kunmap_atomic(va), "kunmap_atomic refused")?;
    check(value == 3, "the slot shows another frame")?;
    check(!may, "sleeping is allowed inside kmap_atomic")?;
    check(sched::might_sleep().is_some(), "sleeping is still forbidden afterwards")?;
    drop_frame(pfn);
    Ok(())
}

/// A slot with a user, one that waits for its flush, and two of kmap_local, so that the audits have something to compare.
fn mappings_stay_for_the_audit() -> Outcome {
    let context = sched::task_context();
    let (a, b) = (frame(1)?, frame(2)?);
    kmap::kmap_high(a, &context).map_err(wrong("kmap failed"))?;
    kmap::kmap_high(b, &context).map_err(wrong("kmap failed"))?;
    check(kmap::kunmap_high(b), "kunmap refused")?;
    kmap::kmap_local(b).map_err(wrong("kmap_local failed"))?;
    kmap::kmap_local(a).map_err(wrong("kmap_local failed"))?;
    Ok(())
}
