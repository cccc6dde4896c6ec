//! Address spaces that no CPU runs: fork, copy on write, reverse mapping and moving pages, on the kernel's own tables, locks and caches.

use core::sync::atomic::Ordering;

use mm_core::{Gfp, MemMap, Order, PAGE_SIZE, PageAlloc, Pfn, PhysAddr, VirtAddr};
use mm_vma::{
    Errno, Fault, Id, Kernel, Layout, Limits, MapFlags, Mm, MmapRequest, ProtFlags, Space, Unmapped, audit,
    dup_mmap, for_each_pte, handle_fault, put_page, remove_migration_ptes, try_to_migrate,
};

use super::{Failure, Test, check};
use crate::arch::regs;
use crate::mm::layout::levels;
use crate::mm::page_alloc;
use crate::mm::phys;
use crate::mm::space::{self, Spaces, tlb};
use crate::uaccess;

pub const TESTS: [(&str, Test); 5] = [
    ("fork_shares_pages_until_one_side_writes", fork_shares_pages_until_one_side_writes),
    ("a_page_moves_under_two_address_spaces", a_page_moves_under_two_address_spaces),
    ("a_stack_grows_to_its_limit_and_no_further", a_stack_grows_to_its_limit_and_no_further),
    ("address_spaces_give_everything_back", address_spaces_give_everything_back),
    ("a_lost_flush_shows_a_page_of_the_past", a_lost_flush_shows_a_page_of_the_past),
];

const PAGES: u64 = 8;

type Outcome<T = ()> = Result<T, Failure>;

fn wrong(what: &'static str) -> impl FnOnce(Errno) -> Failure {
    move |_| Failure::Wrong(what)
}

fn new() -> Outcome<Id<Mm>> {
    space::mm_alloc(Layout::new(levels(), Limits::default().stack, 0)).map_err(wrong("no address space"))
}

fn lock(mm: Id<Mm>) -> Space<'static, Spaces> {
    Space::lock(&Spaces, mm, Limits::default())
}

fn map(mm: Id<Mm>, addr: u64, pages: u64, flags: MapFlags) -> Outcome<u64> {
    let request = MmapRequest {
        addr,
        len: pages * PAGE_SIZE,
        prot: ProtFlags::READ | ProtFlags::WRITE,
        flags: flags | MapFlags::PRIVATE | MapFlags::ANONYMOUS,
        file: None,
        offset: 0,
    };
    lock(mm).mmap(&request).map(|(addr, _)| addr).map_err(wrong("mmap failed"))
}

fn write(mm: Id<Mm>, va: u64, value: u8) -> Outcome {
    let done = uaccess::copy_to_user(mm, &Limits::default(), va, &[value]);
    done.ok_or(Failure::Wrong("a write was refused"))
}

fn read(mm: Id<Mm>, va: u64) -> Outcome<u8> {
    let mut byte = [0];
    let done = uaccess::copy_from_user(mm, &Limits::default(), va, &mut byte);
    done.map(|()| byte[0]).ok_or(Failure::Wrong("a read was refused"))
}

fn frame(mm: Id<Mm>, va: u64) -> Outcome<Pfn> {
    let found = space::translate(space::mm_of(mm), va, false).map(PhysAddr::pfn);
    found.ok_or(Failure::Wrong("nothing is mapped there"))
}

fn sound(mm: Id<Mm>) -> Outcome {
    audit(&Spaces, mm).map_err(|broken| Failure::Wrong(broken.what))
}

/// An address space with pages that were written, a copy of it, and where they are.
fn family() -> Outcome<(Id<Mm>, Id<Mm>, u64)> {
    let (parent, child) = (new()?, new()?);
    let area = map(parent, 0, PAGES, MapFlags::empty())?;
    for n in 0..PAGES {
        write(parent, area + n * PAGE_SIZE, n.to_le_bytes()[0] + 1)?;
    }
    dup_mmap(&lock(parent), &lock(child)).map_err(wrong("dup_mmap failed"))?;
    Ok((parent, child, area))
}

fn end(mms: [Id<Mm>; 2]) -> Outcome {
    for mm in mms {
        sound(mm)?;
    }
    mms.into_iter().for_each(space::mm_free);
    Ok(())
}

fn nr_ptes(pfn: Pfn) -> usize {
    let mut count = 0;
    for_each_pte(&Spaces, pfn, |_, _, _, _| {
        count += 1;
        true
    });
    count
}

fn fork_shares_pages_until_one_side_writes() -> Outcome {
    let (parent, child, area) = family()?;
    let shared = frame(parent, area)?;
    check(frame(child, area)? == shared && nr_ptes(shared) == 2, "both map one page")?;
    check(
        space::translate(space::mm_of(parent), area, true).is_none(),
        "the parent may still write to what is shared",
    )?;
    write(child, area, 99)?;
    check(read(parent, area)? == 1 && read(child, area)? == 99, "a write of the child shows in the parent")?;
    check(nr_ptes(shared) == 1, "the parent has the page alone")?;
    write(parent, area, 98)?;
    check(frame(parent, area)? == shared, "whoever is alone writes in place")?;
    check(nr_ptes(frame(child, area + PAGE_SIZE)?) == 2, "other pages stay shared")?;
    end([parent, child])
}

fn a_page_moves_under_two_address_spaces() -> Outcome {
    let (parent, child, area) = family()?;
    let old = frame(parent, area)?;
    let page = MemMap::page(&Spaces, old).ok_or(Failure::Wrong("a page has a descriptor"))?;
    page.references().fetch_add(1, Ordering::Relaxed);
    check(try_to_migrate(&Spaces, old, 1) == Unmapped::Yes, "nobody else holds the page")?;
    check(frame(child, area).is_err(), "nobody reaches the page while it moves")?;
    let new = Spaces.alloc_pages(Gfp::HIGHUSER_MOVABLE, Order::ZERO, None);
    let new = new.ok_or(Failure::Wrong("no page to move to"))?;
    Spaces.copy_page(new, old);
    remove_migration_ptes(&Spaces, old, new);
    put_page(&Spaces, new);
    put_page(&Spaces, old);
    check(new != old && frame(parent, area)? == new && frame(child, area)? == new, "both map the new page")?;
    check(nr_ptes(new) == 2 && read(child, area)? == 1, "the new page is the old one's copy")?;
    end([parent, child])
}

fn a_stack_grows_to_its_limit_and_no_further() -> Outcome {
    let (mm, limits) = (new()?, Limits::default());
    let top = 1 << 40;
    map(mm, top - PAGE_SIZE, 1, MapFlags::FIXED | MapFlags::GROWSDOWN)?;
    let lowest = top - limits.stack;
    write(mm, lowest, 1)?;
    let what = mm_vma::FaultInfo { addr: lowest - 1, access: mm_vma::Access::Write, present: false };
    let below = handle_fault(&Spaces, mm, what, || limits);
    check(below == Err(Fault::MapErr), "the stack grew past its limit")?;
    sound(mm)?;
    space::mm_free(mm);
    Ok(())
}

/// Pages that were unmapped and mapped anew without a flush: the CPU still reads the old ones, which by then are somebody else's. Here
/// they are held back.
fn a_lost_flush_shows_a_page_of_the_past() -> Outcome {
    let mm = new()?;
    // The second page keeps the page tables.
    let va = map(mm, 0, 2, MapFlags::empty())?;
    write(mm, va, 1)?;
    write(mm, va + PAGE_SIZE, 1)?;
    let old = frame(mm, va)?;
    let held = MemMap::page(&Spaces, old).ok_or(Failure::Wrong("a page has a descriptor"))?;
    held.references().fetch_add(1, Ordering::Relaxed);
    let look = || regs::with_user_access(|| phys::read_mapped(VirtAddr::new(va)) & 0xff);
    let flags = regs::irq_save();
    tlb::use_mm(mm);
    let before = look();
    let replaced = space::losing_flushes(|| {
        lock(mm).munmap(va, PAGE_SIZE).map_err(wrong("munmap failed"))?;
        map(mm, va, 1, MapFlags::FIXED)?;
        write(mm, va, 2)
    });
    let without_flush = look();
    regs::invlpg(va);
    let after = look();
    tlb::leave_mm();
    regs::irq_restore(flags);
    replaced?;
    let moved = frame(mm, va)? != old;
    put_page(&Spaces, old);
    sound(mm)?;
    space::mm_free(mm);
    check(moved && before == 1, "the page is not the one that was written")?;
    check(after == 2, "a flush did not drop the translation")?;
    match without_flush {
        1 => Ok(()),
        2 => Err(Failure::Skip("this CPU walks the tables at every access, so nothing is ever stale")),
        _ => Err(Failure::Wrong("the read gave neither the old page nor the new one")),
    }
}

fn free_pages() -> u64 {
    page_alloc::PAGES.drain_all_pages();
    page_alloc::zones().map(|zone| zone.lock().info().free_pages).sum()
}

fn address_spaces_give_everything_back() -> Outcome {
    // The first rounds may leave slabs behind.
    for _ in 0..4 {
        fork_shares_pages_until_one_side_writes()?;
    }
    let before = free_pages();
    for _ in 0..16 {
        fork_shares_pages_until_one_side_writes()?;
    }
    check(free_pages() == before, "frames are missing, or too many")
}
