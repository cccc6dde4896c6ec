//! The vmalloc family, ioremap and the fixmap on the real CPU.

use core::sync::atomic::{AtomicU64, Ordering};

use memvisor_abi::{PageKind, VmFlags};
use mm_core::{MemMap, Order, PAGE_SIZE, Pfn, PhysAddr, PhysMem, VirtAddr};
use mm_pgtable::{CacheMode, Prot};
use mm_vmalloc::{Request, VmError};

use super::{Failure, Test, check};
use crate::arch::trap::{Probe, VECTOR_PAGE_FAULT, probe};
use crate::mm::fixmap::{self, Fixed};
use crate::mm::memmap::Vmemmap;
use crate::mm::phys::{self, DirectMap};
use crate::mm::vmalloc::{self, AREAS, Kernel};
use crate::mm::{ioremap, page_alloc, paging};
use crate::{sched, smp};

type Outcome = Result<(), Failure>;

pub const TESTS: [(&str, Test); 13] = [
    ("vmalloc_memory_is_contiguous_and_private", vmalloc_memory_is_contiguous_and_private),
    ("guard_pages_fault", guard_pages_fault),
    ("vzalloc_is_zero", vzalloc_is_zero),
    ("vfree_returns_every_frame_and_unmaps", vfree_returns_every_frame_and_unmaps),
    ("zero_huge_and_wrong_requests_change_nothing", zero_huge_and_wrong_requests_change_nothing),
    ("lazy_areas_are_purged_with_one_flush", lazy_areas_are_purged_with_one_flush),
    ("a_purge_reaches_every_cpu", a_purge_reaches_every_cpu),
    ("vmap_shows_frames_twice", vmap_shows_frames_twice),
    ("ioremap_uses_the_asked_cache_mode", ioremap_uses_the_asked_cache_mode),
    ("ioremap_refuses_ram_and_conflicts", ioremap_refuses_ram_and_conflicts),
    ("fixmap_slots_map_and_unmap", fixmap_slots_map_and_unmap),
    ("a_storm_of_areas_leaves_the_space_whole", a_storm_of_areas_leaves_the_space_whole),
    ("areas_of_every_kind_stay_for_the_audit", areas_of_every_kind_stay_for_the_audit),
];

fn wrong(what: &'static str) -> impl FnOnce(VmError) -> Failure {
    move |_| Failure::Wrong(what)
}

fn page(va: VirtAddr, n: u64) -> VirtAddr {
    VirtAddr::new(va.as_u64() + n * PAGE_SIZE)
}

fn get(pages: u64) -> Result<VirtAddr, Failure> {
    let request = Request::new(pages * PAGE_SIZE);
    vmalloc::vmalloc(&request, &sched::task_context()).map_err(wrong("vmalloc failed"))
}

fn give(va: VirtAddr) -> Outcome {
    check(vmalloc::vfree(va), "vfree refused its own area")
}

fn faults(va: VirtAddr) -> bool {
    probe(Probe::Read(va.as_u64())) == Err(VECTOR_PAGE_FAULT)
}

fn free_pages() -> u64 {
    page_alloc::PAGES.drain_all_pages();
    page_alloc::zones().map(|zone| zone.lock().info().free_pages).sum()
}

fn vmalloc_memory_is_contiguous_and_private() -> Outcome {
    let (a, b) = (get(5)?, get(3)?);
    for n in 0..5 {
        phys::store_mapped(page(a, n), 100 + n);
    }
    for n in 0..3 {
        phys::store_mapped(page(b, n), 200 + n);
    }
    for n in 0..5 {
        let frame = vmalloc::vm().to_pfn(page(a, n)).ok_or(Failure::Wrong("a page is not mapped"))?;
        check(DirectMap.read_u64(frame.phys()) == 100 + n, "a page shows another frame")?;
        let page = Vmemmap.page(frame).ok_or(Failure::Wrong("a frame has no descriptor"))?;
        check(page.kind() == PageKind::Vmalloc, "a frame behind vmalloc has another kind")?;
        check(page.mapping() == a.as_u64() && page.index() == n, "a frame names another area")?;
    }
    check(phys::read_mapped(b) == 200, "two areas share memory")?;
    give(a)?;
    give(b)
}

fn guard_pages_fault() -> Outcome {
    let va = get(2)?;
    check(!faults(page(va, 1)), "the last page faults")?;
    check(faults(page(va, 2)), "the page behind the area is mapped")?;
    give(va)
}

fn vzalloc_is_zero() -> Outcome {
    let dirty = get(4)?;
    for n in 0..4 {
        phys::store_mapped(page(dirty, n), u64::MAX);
    }
    give(dirty)?;
    let va = vmalloc::vmalloc(&Request::zeroed(4 * PAGE_SIZE), &sched::task_context())
        .map_err(wrong("vzalloc failed"))?;
    for n in 0..4 {
        check(phys::read_mapped(page(va, n)) == 0, "a page of vzalloc is not zero")?;
    }
    give(va)
}

fn vfree_returns_every_frame_and_unmaps() -> Outcome {
    // Tables stay, so the first round may take some.
    give(get(9)?)?;
    let before = free_pages();
    let va = get(9)?;
    check(before - free_pages() >= 9, "vmalloc took fewer frames than pages")?;
    give(va)?;
    vmalloc::vm().purge();
    check(faults(va), "the area is still mapped after vfree and purge")?;
    check(free_pages() == before, "vfree did not give every frame back")
}

fn zero_huge_and_wrong_requests_change_nothing() -> Outcome {
    let context = sched::task_context();
    let before = free_pages();
    check(
        vmalloc::vmalloc(&Request::new(0), &context) == Err(VmError::ZeroSize),
        "vmalloc(0) gave something",
    )?;
    let huge = vmalloc::vmalloc(&Request::new(u64::MAX), &context);
    check(matches!(huge, Err(VmError::TooLarge { .. })), "vmalloc(-1) gave something")?;
    let va = get(2)?;
    check(!vmalloc::vfree(page(va, 1)), "vfree took an address inside an area")?;
    check(!vmalloc::vfree(VirtAddr::new(va.as_u64() + 8)), "vfree took an address inside a page")?;
    check(!vmalloc::vunmap(va), "vunmap took a vmalloc area")?;
    check(!ioremap::iounmap(va), "iounmap took a vmalloc area")?;
    check(!faults(va), "a refused call unmapped the area")?;
    give(va)?;
    check(!vmalloc::vfree(va), "vfree took an area twice")?;
    check(free_pages() == before, "refusals cost memory")
}

fn lazy_areas_are_purged_with_one_flush() -> Outcome {
    vmalloc::vm().purge();
    vmalloc::set_lazy_max_pages(20);
    let purges = AREAS.lock().purges();
    // Each area is lazy with 2 pages and its guard.
    for _ in 0..6 {
        give(get(2)?)?;
    }
    let early = AREAS.lock().purges();
    give(get(2)?)?;
    let late = AREAS.lock().purges();
    let lazy = AREAS.lock().lazy_pages();
    vmalloc::set_lazy_max_pages(0);
    check(early == purges, "a purge came below the threshold")?;
    check(late == purges + 1 && lazy == 0, "no purge came above the threshold")
}

static SHARED: AtomicU64 = AtomicU64::new(0);
static EXPECTED: AtomicU64 = AtomicU64::new(0);
static SEEN: AtomicU64 = AtomicU64::new(0);

fn look() {
    let value = phys::read_mapped(VirtAddr::new(SHARED.load(Ordering::Acquire)));
    if value == EXPECTED.load(Ordering::Acquire) {
        SEEN.fetch_add(1, Ordering::AcqRel);
    }
}

fn a_purge_reaches_every_cpu() -> Outcome {
    let others = u64::from(smp::nr_online() - 1);
    vmalloc::vm().purge();
    for round in 1..4 {
        let va = get(1)?;
        phys::store_mapped(va, round);
        SHARED.store(va.as_u64(), Ordering::Release);
        EXPECTED.store(round, Ordering::Release);
        SEEN.store(0, Ordering::Release);
        smp::call_others(look);
        check(SEEN.load(Ordering::Acquire) == others, "a CPU saw another frame at a reused address")?;
        // Another frame at the same address next time.
        let keep = page_alloc::alloc_pages(Order::ZERO, None, PageKind::Allocated);
        give(va)?;
        vmalloc::vm().purge();
        if let Some(keep) = keep {
            page_alloc::free_pages(keep, Order::ZERO);
        }
    }
    Ok(())
}

fn vmap_shows_frames_twice() -> Outcome {
    let frame = page_alloc::alloc_pages(Order::ZERO, None, PageKind::Allocated);
    let frame = frame.ok_or(Failure::Wrong("no memory"))?;
    let va = vmalloc::vmap(&[frame, frame], Prot::KERNEL_RW, &sched::task_context())
        .map_err(wrong("vmap failed"))?;
    phys::store_mapped(va, 77);
    check(phys::read_mapped(page(va, 1)) == 77, "the second page shows another frame")?;
    check(!vmalloc::vfree(va), "vfree took a vmap area")?;
    check(vmalloc::vunmap(va), "vunmap refused its own area")?;
    check(DirectMap.read_u64(frame.phys()) == 77, "vunmap took the frame")?;
    page_alloc::free_pages(frame, Order::ZERO);
    Ok(())
}

/// Device addresses: far above what machines for tests have as RAM, below 2^36.
const DEVICE: PhysAddr = PhysAddr::new(0xf_c000_0000);

fn ioremap_uses_the_asked_cache_mode() -> Outcome {
    let context = sched::task_context();
    let modes = [CacheMode::UcMinus, CacheMode::Uc, CacheMode::Wc, CacheMode::Wt, CacheMode::Wb];
    for mode in modes {
        let phys = PhysAddr::new(DEVICE.as_u64() + 0x123);
        let va = ioremap::ioremap_mode(phys, PAGE_SIZE, mode, &context).map_err(wrong("ioremap failed"))?;
        check(va.page_offset() == 0x123, "ioremap lost the offset")?;
        let mapping = paging::kernel().translate(&paging::Tables, va);
        let mapping = mapping.ok_or(Failure::Wrong("the device is not mapped"))?;
        check(mapping.effective.cache == mode, "the mapping has another cache mode")?;
        check(mapping.phys == phys, "the mapping shows another address")?;
        check(ioremap::iounmap(va), "iounmap refused its own area")?;
    }
    Ok(())
}

fn ioremap_refuses_ram_and_conflicts() -> Outcome {
    let context = sched::task_context();
    let ram = PhysAddr::new(phys::image().phys);
    check(ioremap::ioremap(ram, 8, &context) == Err(VmError::Ram { phys: ram }), "ioremap took RAM")?;
    let wraps = PhysAddr::new(u64::MAX - 8);
    check(ioremap::ioremap(wraps, 64, &context).is_err(), "ioremap took a range that wraps")?;
    check(ioremap::ioremap(DEVICE, 0, &context) == Err(VmError::ZeroSize), "ioremap took no bytes")?;
    let va =
        ioremap::ioremap_mode(DEVICE, PAGE_SIZE, CacheMode::Wc, &context).map_err(wrong("ioremap failed"))?;
    let other = ioremap::ioremap(DEVICE, PAGE_SIZE, &context);
    check(matches!(other, Err(VmError::Conflict { .. })), "one address got two cache modes")?;
    check(ioremap::iounmap(va), "iounmap refused its own area")?;
    let again =
        ioremap::ioremap(DEVICE, PAGE_SIZE, &context).map_err(wrong("the mode outlived its mapping"))?;
    check(ioremap::iounmap(again), "iounmap refused its own area")?;
    let apic = fixmap::frame(Fixed::ApicBase).ok_or(Failure::Wrong("the APIC is not in the fixmap"))?;
    let cached = ioremap::ioremap_mode(apic.phys(), PAGE_SIZE, CacheMode::Wb, &context);
    check(matches!(cached, Err(VmError::Conflict { .. })), "the APIC's registers were mapped write-back")
}

fn fixmap_slots_map_and_unmap() -> Outcome {
    let frames: [Pfn; 2] = [(), ()].map(|()| {
        page_alloc::alloc_pages(Order::ZERO, None, PageKind::Allocated).expect("two frames are free")
    });
    for (frame, value) in frames.into_iter().zip([5, 6]) {
        DirectMap.write_u64(frame.phys(), value);
        let va = fixmap::set_fixmap(Fixed::TextPoke1, frame.phys(), CacheMode::Wb);
        check(va == Fixed::TextPoke1.va() && phys::read_mapped(va) == value, "the slot shows another frame")?;
    }
    check(fixmap::clear_fixmap(Fixed::TextPoke1), "the slot was empty")?;
    check(faults(Fixed::TextPoke1.va()), "the slot is still mapped")?;
    check(!fixmap::clear_fixmap(Fixed::TextPoke1), "an empty slot was cleared")?;
    for frame in frames {
        page_alloc::free_pages(frame, Order::ZERO);
    }
    Ok(())
}

fn a_storm_of_areas_leaves_the_space_whole() -> Outcome {
    let mut held = [VirtAddr::new(0); 12];
    let busy = AREAS.lock().nr_busy();
    for step in 0..60_u64 {
        let slot = (step * 7 % 12) as usize;
        if held[slot] != VirtAddr::new(0) {
            give(held[slot])?;
        }
        held[slot] = get(1 + step % 5)?;
        phys::store_mapped(held[slot], step);
    }
    check(AREAS.lock().audit(&Kernel).is_ok(), "the areas' own audit fails while areas are held")?;
    for va in held.into_iter().filter(|va| *va != VirtAddr::new(0)) {
        check(vmalloc::vm().find(va).is_some_and(|area| area.flags == VmFlags::ALLOC), "an area was lost")?;
        give(va)?;
    }
    vmalloc::vm().purge();
    check(AREAS.lock().nr_busy() == busy, "areas are left over")?;
    check(AREAS.lock().audit(&Kernel).is_ok(), "the areas' own audit fails at the end")
}

/// What a healthy guest has at any time, so that the audits after the tests have something to compare.
fn areas_of_every_kind_stay_for_the_audit() -> Outcome {
    let context = sched::task_context();
    let va = get(3)?;
    give(get(2)?)?;
    let first = vmalloc::vm().to_pfn(va).ok_or(Failure::Wrong("the area is not mapped"))?;
    vmalloc::vmap(&[first, first], Prot::KERNEL_RO, &context).map_err(wrong("vmap failed"))?;
    ioremap::ioremap_mode(DEVICE, 2 * PAGE_SIZE, CacheMode::Wc, &context).map_err(wrong("ioremap failed"))?;
    let frame = vmalloc::vm().to_pfn(page(va, 1)).ok_or(Failure::Wrong("the area is not mapped"))?;
    fixmap::set_fixmap(Fixed::TextPoke0, frame.phys(), CacheMode::Wb);
    Ok(())
}
