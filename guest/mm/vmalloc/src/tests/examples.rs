//! One behaviour a test.

use std::string::ToString;
use std::vec::Vec;

use memvisor_abi::VmFlags;
use mm_core::{Gfp, MemMap, PAGE_SIZE, PageAlloc, PageKind, Pfn, PhysAddr, PhysMem, VirtAddr};
use mm_pgtable::{CacheMode, FlushRange, Prot};

use super::machine::{START, Sim, task};
use crate::{IoRequest, Kmalloc, Request, VmError, kvfree, kvmalloc};

fn page(n: u64) -> VirtAddr {
    VirtAddr::new(START.as_u64() + n * PAGE_SIZE)
}

fn io(phys: u64, size: u64, cache: CacheMode) -> IoRequest {
    IoRequest { phys: PhysAddr::new(phys), size, cache }
}

#[test]
fn areas_are_taken_from_the_bottom_with_a_guard_page_after_each() {
    let sim = Sim::new(64, 1024);
    assert_eq!(sim.vm().vmalloc(&Request::new(1), &task()), Ok(page(0)));
    assert_eq!(sim.vm().vmalloc(&Request::new(3 * PAGE_SIZE), &task()), Ok(page(2)));
    let mapped: Vec<u64> = sim.mapped().iter().map(|leaf| leaf.0).collect();
    assert_eq!(mapped, [0, 2, 3, 4]);
    sim.audit();
}

#[test]
fn frames_say_what_they_are_for() {
    let sim = Sim::new(64, 1024);
    sim.scatter.set(true);
    let va = sim.vm().vmalloc(&Request::new(2 * PAGE_SIZE), &task()).unwrap();
    let second = sim.page(sim.vm().to_pfn(page(1)).unwrap()).unwrap();
    assert_eq!((second.kind(), second.mapping(), second.index()), (PageKind::Vmalloc, va.as_u64(), 1));
    let stack = sim.vm().vmalloc(&Request::stack(), &task()).unwrap();
    assert!(stack.is_aligned(16384));
    assert_eq!(sim.page(sim.vm().to_pfn(stack).unwrap()).unwrap().kind(), PageKind::KernelStack);
}

#[test]
fn vfree_gives_frames_back_at_once_and_addresses_after_a_purge() {
    let sim = Sim::new(64, 1024);
    let before = sim.free_frames();
    let va = sim.vm().vmalloc(&Request::new(8 * PAGE_SIZE), &task()).unwrap();
    let descriptors_and_contents = before - sim.free_frames();
    assert_eq!(descriptors_and_contents, 8);
    sim.vm().vfree(va).unwrap();
    assert_eq!((sim.free_frames(), sim.mapped().len()), (before, 0));
    assert_eq!(sim.areas.borrow().lazy_pages(), 9);
    assert_eq!(sim.vm().vmalloc(&Request::new(1), &task()), Ok(page(9)), "lazy addresses are not reused");
    assert!(sim.flushes.borrow().is_empty());
    assert!(sim.vm().purge());
    assert_eq!(
        *sim.flushes.borrow(),
        [FlushRange::Range { start: page(0), last: page(8), stride: PAGE_SIZE }]
    );
    assert_eq!(sim.vm().vmalloc(&Request::new(1), &task()), Ok(page(0)));
    sim.audit();
}

#[test]
fn the_threshold_makes_one_flush_for_many_areas() {
    let sim = Sim::new(256, 1024);
    sim.lazy_max.set(100);
    let areas: Vec<_> = (0..60).map(|_| sim.vm().vmalloc(&Request::new(1), &task()).unwrap()).collect();
    for va in areas {
        sim.vm().vfree(va).unwrap();
    }
    // 51 areas of two pages pass the threshold of 100.
    assert_eq!(*sim.flushes.borrow(), [FlushRange::All { global: true }]);
    assert_eq!((sim.areas.borrow().purges(), sim.areas.borrow().lazy_pages()), (1, 18));
    sim.audit();
}

#[test]
fn a_full_space_is_purged_before_it_refuses() {
    let sim = Sim::new(64, 8);
    let first = sim.vm().vmalloc(&Request::new(5 * PAGE_SIZE), &task()).unwrap();
    let size = 4 * PAGE_SIZE;
    assert_eq!(
        sim.vm().vmalloc(&Request::new(size), &task()),
        Err(VmError::NoSpace { size: size + PAGE_SIZE })
    );
    sim.vm().vfree(first).unwrap();
    assert_eq!(sim.vm().vmalloc(&Request::new(size), &task()), Ok(page(0)));
    assert_eq!(sim.flushes.borrow().len(), 1);
}

#[test]
fn zero_and_huge_sizes_are_refused() {
    let sim = Sim::new(64, 1 << 20);
    assert_eq!(sim.vm().vmalloc(&Request::new(0), &task()), Err(VmError::ZeroSize));
    for size in [65 * PAGE_SIZE, u64::MAX, u64::MAX - PAGE_SIZE] {
        assert_eq!(sim.vm().vmalloc(&Request::new(size), &task()), Err(VmError::TooLarge { size }));
    }
    let bad = Request { align: 0x1800, ..Request::new(1) };
    assert_eq!(sim.vm().vmalloc(&bad, &task()), Err(VmError::BadAlign { align: 0x1800 }));
    assert_eq!(sim.mapped(), []);
    sim.audit();
}

#[test]
fn without_memory_nothing_is_left_behind() {
    for scatter in [false, true] {
        let sim = Sim::new(20, 1024);
        sim.scatter.set(scatter);
        let before = sim.free_frames();
        let first = sim.vm().vmalloc(&Request::new(8 * PAGE_SIZE), &task()).unwrap();
        assert_eq!(sim.vm().vmalloc(&Request::new(16 * PAGE_SIZE), &task()), Err(VmError::NoMemory));
        assert_eq!(sim.mapped().len(), 8);
        sim.vm().vfree(first).unwrap();
        assert_eq!(sim.free_frames(), before);
        sim.audit();
    }
}

#[test]
fn without_memory_for_tables_nothing_is_left_behind() {
    for budget in 0..3 {
        let sim = Sim::new(64, 1024);
        let before = sim.free_frames();
        sim.tables.borrow_mut().1.budget = Some(budget);
        assert_eq!(sim.vm().vmalloc(&Request::new(8 * PAGE_SIZE), &task()), Err(VmError::NoMemory));
        assert_eq!((sim.free_frames(), sim.mapped().len()), (before, 0));
        sim.audit();
    }
}

#[test]
fn vfree_refuses_what_it_did_not_give() {
    let sim = Sim::new(64, 1024);
    let va = sim.vm().vmalloc(&Request::new(2 * PAGE_SIZE), &task()).unwrap();
    let inside = page(1);
    let odd = VirtAddr::new(va.as_u64() + 8);
    assert_eq!(sim.vm().vfree(inside), Err(VmError::NotMapped { va: inside }));
    assert_eq!(sim.vm().vfree(odd), Err(VmError::BadAddress { va: odd }));
    assert_eq!(sim.vm().vunmap(va), Err(VmError::WrongKind { va, flags: VmFlags::ALLOC.bits() }));
    assert_eq!(sim.vm().iounmap(va), Err(VmError::WrongKind { va, flags: VmFlags::ALLOC.bits() }));
    assert_eq!(sim.mapped().len(), 2);
    sim.vm().vfree(va).unwrap();
    assert_eq!(sim.vm().vfree(va), Err(VmError::NotMapped { va }));
    assert!(VmError::NotMapped { va }.to_string().contains("nonexistent vm area"));
    sim.audit();
}

#[test]
fn vmap_shows_frames_in_the_given_order_and_leaves_them_to_their_owner() {
    let sim = Sim::new(64, 1024);
    let frames: Vec<Pfn> = [9, 3, 4, 3].into_iter().map(Pfn::new).collect();
    let va = sim.vm().vmap(&frames, Prot::KERNEL_RO, &task()).unwrap();
    let shown: Vec<u64> = sim.mapped().iter().map(|leaf| leaf.1).collect();
    assert_eq!(shown, [9, 3, 4, 3]);
    assert!(sim.mapped().iter().all(|leaf| !leaf.2.write));
    assert_eq!(sim.vm().vfree(va), Err(VmError::WrongKind { va, flags: VmFlags::MAP.bits() }));
    let free = sim.free_frames();
    sim.vm().vunmap(va).unwrap();
    assert_eq!((sim.free_frames(), sim.mapped().len()), (free, 0));
    assert_eq!(sim.vm().vmap(&[], Prot::KERNEL_RW, &task()), Err(VmError::ZeroSize));
}

#[test]
fn ioremap_keeps_the_offset_and_the_mode() {
    let sim = Sim::new(64, 1024);
    let va = sim.vm().ioremap(&io(0xfed0_0010, 0x1000, CacheMode::Wc), &task()).unwrap();
    assert_eq!(va.as_u64(), START.as_u64() + 0x10);
    let mapped = sim.mapped();
    assert_eq!(mapped.iter().map(|leaf| leaf.1).collect::<Vec<_>>(), [0xf_ed00, 0xf_ed01]);
    assert!(mapped.iter().all(|leaf| leaf.2.cache == CacheMode::Wc && !leaf.2.exec));
    sim.vm().iounmap(va).unwrap();
    assert_eq!(sim.mapped(), []);
}

#[test]
fn ioremap_refuses_ram_conflicts_and_impossible_addresses() {
    let sim = Sim::new(64, 1024);
    let vm = sim.vm();
    let ram = PhysAddr::new(0x3000);
    assert_eq!(vm.ioremap(&io(0x3000, 8, CacheMode::UcMinus), &task()), Err(VmError::Ram { phys: ram }));
    assert_eq!(vm.ioremap(&io(0x1_0000_0000, 0, CacheMode::Uc), &task()), Err(VmError::ZeroSize));
    let high = 1 << 40;
    let bad = |phys, size| VmError::BadPhys { phys: PhysAddr::new(phys), size };
    assert_eq!(vm.ioremap(&io(high, 8, CacheMode::Uc), &task()), Err(bad(high, 8)));
    assert_eq!(vm.ioremap(&io(u64::MAX, 8, CacheMode::Uc), &task()), Err(bad(u64::MAX, 8)));
    let first = vm.ioremap(&io(0xf000_0000, 0x2000, CacheMode::Wc), &task()).unwrap();
    vm.ioremap(&io(0xf000_1000, 0x1000, CacheMode::Wc), &task()).unwrap();
    let phys = PhysAddr::new(0xf000_1ffc);
    assert_eq!(
        vm.ioremap(&io(0xf000_1ffc, 8, CacheMode::UcMinus), &task()),
        Err(VmError::Conflict { phys, has: 1, wants: 2 })
    );
    vm.iounmap(first).unwrap();
    vm.ioremap(&io(0xf000_0000, 0x1000, CacheMode::Uc), &task()).unwrap();
    sim.audit();
}

struct Slab<'s> {
    sim: &'s Sim,
    largest: u64,
}

impl Kmalloc for Slab<'_> {
    fn kmalloc(&self, size: u64, gfp: Gfp, node: Option<u32>) -> Option<VirtAddr> {
        assert_eq!(gfp.contains(Gfp::NORETRY), size > PAGE_SIZE);
        let frame =
            (size <= self.largest).then(|| self.sim.alloc_pages(gfp, mm_core::Order::ZERO, node))??;
        Some(VirtAddr::new(0xffff_8880_0000_0000 + frame.phys().as_u64()))
    }

    fn kfree(&self, va: VirtAddr) {
        self.sim.free_pages(PhysAddr::new(va.as_u64() - 0xffff_8880_0000_0000).pfn(), mm_core::Order::ZERO);
    }
}

#[test]
fn kvmalloc_falls_back_only_for_more_than_a_page() {
    let sim = Sim::new(64, 1024);
    let slab = Slab { sim: &sim, largest: PAGE_SIZE };
    let small = kvmalloc(&slab, sim.vm(), &Request::new(64), &task()).unwrap();
    let large = kvmalloc(&slab, sim.vm(), &Request::new(3 * PAGE_SIZE), &task()).unwrap();
    assert!(!sim.areas.borrow().contains(small) && large == page(0));
    let atomic = Request { gfp: Gfp::ATOMIC, ..Request::new(3 * PAGE_SIZE) };
    assert_eq!(kvmalloc(&slab, sim.vm(), &atomic, &task()), Err(VmError::NoMemory));
    let poor = Slab { sim: &sim, largest: 0 };
    assert_eq!(kvmalloc(&poor, sim.vm(), &Request::new(64), &task()), Err(VmError::NoMemory));
    kvfree(&slab, sim.vm(), small).unwrap();
    kvfree(&slab, sim.vm(), large).unwrap();
    assert_eq!(sim.mapped(), []);
}

#[test]
fn vzalloc_is_zero_and_vmalloc_user_is_marked() {
    let sim = Sim::new(64, 1024);
    let va = sim.vm().vmalloc(&Request::user(PAGE_SIZE), &task()).unwrap();
    assert_eq!(sim.read_u64(sim.vm().to_pfn(va).unwrap().phys()), 0);
    assert!(sim.vm().find(va).unwrap().flags.contains(VmFlags::USERMAP | VmFlags::ALLOC));
    assert_eq!(Request::dma32(1).gfp.highest_zone(), Some(mm_core::ZoneKind::Dma32));
    assert_eq!(Request::new(1).on_node(3).node, Some(3));
}
