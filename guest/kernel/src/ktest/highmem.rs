//! Windows onto single frames. They work on frames of every zone, so most tests need no highmem.

use core::sync::atomic::{AtomicU64, Ordering};

use memvisor_abi::{KM_MAX_IDX, LAST_PKMAP, PageKind};
use mm_core::{Order, Pfn, PhysMem, VirtAddr};
use mm_vmalloc::KmapError;

use super::{Failure, Test, check};
use crate::arch::trap::{Probe, VECTOR_PAGE_FAULT, probe};
use crate::mm::phys::{self, DirectMap};
use crate::mm::{kmap, page_alloc};
use crate::sched;
use crate::smp;

type Outcome = Result<(), Failure>;

pub const TESTS: [(&str, Test); 10] = [
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

fn frame(value: u64) -> Result<Pfn, Failure> {
    let frame = page_alloc::alloc_pages(Order::ZERO, None, PageKind::Allocated);
    let frame = frame.ok_or(Failure::Wrong("no memory"))?;
    DirectMap.write_u64(frame.phys(), value);
    Ok(frame)
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
    check(DirectMap.read_u64(pfn.phys()) == 0, "clear_highpage left something")?;
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
