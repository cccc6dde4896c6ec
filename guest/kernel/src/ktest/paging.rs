//! Protection and translation on the real CPU.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use memvisor_abi::PageKind;
use mm_core::{Order, PAGE_SIZE, Pfn, PhysAddr, PhysMem, VirtAddr};
use mm_pgtable::{Entry, LeafSize, Prot, TableMem, layout};

use super::{Failure, check};
use crate::arch::percpu;
use crate::arch::regs;
use crate::arch::trap::{Probe, VECTOR_PAGE_FAULT, probe};
use crate::mm::layout::{levels, percpu_area};
use crate::mm::paging::Tables;
use crate::mm::phys::{self, DirectMap};
use crate::mm::{page_alloc, paging};
use crate::smp;

const GENERAL_PROTECTION: u64 = 13;
/// The machine code of `ret`, in every byte of a word.
const RET: u64 = 0xc3c3_c3c3_c3c3_c3c3;

type Outcome = Result<(), Failure>;

fn faults(what: Probe, why: &'static str) -> Outcome {
    check(probe(what) == Err(VECTOR_PAGE_FAULT), why)
}

fn direct(phys: u64) -> u64 {
    layout::page_offset(levels()).as_u64() + phys
}

/// Where these tests map: far from areas and from what seeded faults use.
fn window() -> VirtAddr {
    VirtAddr::new(layout::vmalloc_start(levels()).as_u64() + (1 << 38) + (64 << 20))
}

/// Maps a fresh frame at the window, runs `f`, and takes everything back.
fn with_frame(prot: Prot, f: impl FnOnce(Pfn) -> Outcome) -> Outcome {
    let pfn =
        page_alloc::alloc_pages(Order::ZERO, None, PageKind::Allocated).ok_or(Failure::Wrong("no memory"))?;
    paging::map_kernel(window(), pfn.phys(), PAGE_SIZE, prot, LeafSize::Size4K);
    let outcome = f(pfn);
    paging::unmap_kernel(window(), PAGE_SIZE);
    page_alloc::free_pages(pfn, Order::ZERO);
    outcome
}

pub fn text_cannot_be_written() -> Outcome {
    faults(Probe::Write(phys::image().va), "code is writable")
}

pub fn text_cannot_be_written_through_the_direct_map() -> Outcome {
    check(probe(Probe::Read(direct(phys::image().phys))).is_ok(), "the image is not in the direct map")?;
    faults(Probe::Write(direct(phys::image().phys)), "code is writable through the direct map")
}

pub fn rodata_cannot_be_written() -> Outcome {
    let rodata = phys::image().va + phys::image().text;
    check(probe(Probe::Read(rodata)).is_ok(), "read-only data cannot be read")?;
    faults(Probe::Write(rodata), "read-only data is writable")
}

pub fn data_cannot_be_executed() -> Outcome {
    static CODE: AtomicU64 = AtomicU64::new(RET);
    faults(Probe::Exec(CODE.as_ptr() as u64), "data is executable")
}

pub fn direct_map_cannot_be_executed() -> Outcome {
    let pfn =
        page_alloc::alloc_pages(Order::ZERO, None, PageKind::Allocated).ok_or(Failure::Wrong("no memory"))?;
    DirectMap.write_u64(pfn.phys(), RET);
    let outcome = faults(Probe::Exec(direct(pfn.phys().as_u64())), "the direct map is executable");
    page_alloc::free_pages(pfn, Order::ZERO);
    outcome
}

pub fn the_lower_half_is_unmapped() -> Outcome {
    faults(Probe::Read(0), "address 0 is mapped")?;
    faults(Probe::Read(phys::image().phys), "the boot loader's identity map is still there")
}

pub fn stack_guards_fault() -> Outcome {
    let base = percpu_area(percpu::cpu()).as_u64();
    faults(Probe::Read(base + 2 * PAGE_SIZE), "the page below the kernel stack is mapped")?;
    faults(Probe::Read(base + 7 * PAGE_SIZE), "the page above the kernel stack is mapped")?;
    faults(Probe::Read(base + 19 * PAGE_SIZE), "the page below the interrupt stack is mapped")
}

pub fn non_canonical_addresses_raise_gp() -> Outcome {
    let first = 1 << (levels().va_bits() - 1);
    check(probe(Probe::Read(first)) == Err(GENERAL_PROTECTION), "a non-canonical address does not raise #GP")
}

pub fn a_mapping_reaches_its_frame() -> Outcome {
    with_frame(Prot::KERNEL_RW, |pfn| {
        DirectMap.write_u64(pfn.phys(), 0x1234_5678);
        check(read_word(window()) == 0x1234_5678, "the mapping shows another frame")
    })
}

/// Reads through the window, which the caller mapped.
fn read_word(va: VirtAddr) -> u64 {
    // A fault here would end the kernel with a report.
    phys::read_mapped(va)
}

pub fn an_unmapped_page_faults() -> Outcome {
    with_frame(Prot::KERNEL_RW, |_| {
        check(probe(Probe::Read(window().as_u64())).is_ok(), "the mapping does not work")
    })?;
    faults(Probe::Read(window().as_u64()), "the page is still there after unmapping")
}

pub fn protect_takes_effect() -> Outcome {
    with_frame(Prot::KERNEL_RW, |_| {
        let va = window().as_u64();
        check(probe(Probe::Write(va)).is_ok(), "a writable page cannot be written")?;
        paging::protect_kernel(window(), PAGE_SIZE, Prot::KERNEL_RO);
        faults(Probe::Write(va), "a read-only page can be written")?;
        paging::protect_kernel(window(), PAGE_SIZE, Prot::KERNEL_RW);
        check(probe(Probe::Write(va)).is_ok(), "a page made writable again cannot be written")
    })
}

static SEEN: AtomicU64 = AtomicU64::new(0);
static ALL_SAME: AtomicBool = AtomicBool::new(true);

/// What every other CPU does: compares the word at the window with `SEEN`.
fn compare_word() {
    if read_word(window()) != SEEN.load(Ordering::Acquire) {
        ALL_SAME.store(false, Ordering::Release);
    }
}

pub fn remapping_reaches_every_cpu() -> Outcome {
    ALL_SAME.store(true, Ordering::Release);
    for round in 1..=4 {
        with_frame(Prot::KERNEL_RW, |pfn| {
            DirectMap.write_u64(pfn.phys(), round);
            SEEN.store(round, Ordering::Release);
            smp::call_others(compare_word);
            // Keeps this frame from being the next round's.
            let other = page_alloc::alloc_pages(Order::ZERO, None, PageKind::Allocated)
                .ok_or(Failure::Wrong("no memory"))?;
            paging::unmap_kernel(window(), PAGE_SIZE);
            DirectMap.write_u64(other.phys(), round + 100);
            paging::map_kernel(window(), other.phys(), PAGE_SIZE, Prot::KERNEL_RW, LeafSize::Size4K);
            SEEN.store(round + 100, Ordering::Release);
            smp::call_others(compare_word);
            compare_word();
            page_alloc::free_pages(other, Order::ZERO);
            check(ALL_SAME.load(Ordering::Acquire), "a CPU saw a stale translation")
        })?;
    }
    Ok(())
}

/// A changed entry without a flush: a CPU with a TLB goes on to see the old frame, and INVLPG ends that.
pub fn a_missing_flush_shows_a_stale_translation() -> Outcome {
    let new =
        page_alloc::alloc_pages(Order::ZERO, None, PageKind::Allocated).ok_or(Failure::Wrong("no memory"))?;
    DirectMap.write_u64(new.phys(), 2);
    let outcome = with_frame(Prot::KERNEL_RW, |old| {
        DirectMap.write_u64(old.phys(), 1);
        let mut leaf = None;
        paging::kernel().walk(&Tables, window(), |level, table, index, _| {
            if level == 1 {
                leaf = Some((table, index));
            }
        });
        let (table, index) = leaf.ok_or(Failure::Wrong("the window is not mapped by a 4 KiB page"))?;
        let entry = Entry::leaf(1, new.phys(), Prot::KERNEL_RW.flags());
        let before = read_word(window());
        Tables.write(table, index, entry.as_u64());
        let without_flush = read_word(window());
        regs::invlpg(window().as_u64());
        let after = read_word(window());
        check(before == 1, "the mapping shows another frame")?;
        check(after == 2, "INVLPG did not drop the translation")?;
        match without_flush {
            1 => Ok(()),
            2 => Err(Failure::Skip("this CPU walks the tables at every access, so nothing is ever stale")),
            _ => Err(Failure::Wrong("the read gave neither the old frame nor the new one")),
        }
    });
    page_alloc::free_pages(new, Order::ZERO);
    outcome
}

/// Maps a user page at a low address of the kernel's own tree, as a process would have it.
fn with_user_page(f: impl FnOnce(u64) -> Outcome) -> Outcome {
    const LOW: u64 = 0x40_0000;
    let pfn =
        page_alloc::alloc_pages(Order::ZERO, None, PageKind::Allocated).ok_or(Failure::Wrong("no memory"))?;
    DirectMap.write_u64(pfn.phys(), RET);
    paging::map_kernel(
        VirtAddr::new(LOW),
        PhysAddr::new(pfn.phys().as_u64()),
        PAGE_SIZE,
        Prot::USER_RX,
        LeafSize::Size4K,
    );
    let outcome = f(LOW);
    paging::unmap_kernel(VirtAddr::new(LOW), PAGE_SIZE);
    page_alloc::free_pages(pfn, Order::ZERO);
    outcome
}

pub fn smep_stops_execution_of_user_pages() -> Outcome {
    if regs::cr4() & 1 << 20 == 0 {
        return Err(Failure::Skip("the CPU does not offer SMEP"));
    }
    with_user_page(|va| faults(Probe::Exec(va), "ring 0 executed a user page"))
}

pub fn smap_stops_reads_of_user_pages() -> Outcome {
    if regs::cr4() & 1 << 21 == 0 {
        return Err(Failure::Skip("the CPU does not offer SMAP"));
    }
    with_user_page(|va| faults(Probe::Read(va), "ring 0 read a user page"))
}

/// Without address space numbers `mm/space/tlb.rs` flushes at every switch: this says on which machines they could be had.
pub fn pcid_is_refused() -> Outcome {
    const PCID: u32 = 1 << 17;
    const CR4_PCIDE: u64 = 1 << 17;
    if regs::cpuid(1, 0)[2] & PCID == 0 {
        return Err(Failure::Skip("CPUID shows no PCID"));
    }
    let before = regs::cr4();
    if probe(Probe::Cr4(before | CR4_PCIDE)).is_ok() {
        let kept = regs::cr4() & CR4_PCIDE != 0;
        let back = probe(Probe::Cr4(before));
        check(back.is_ok(), "CR4.PCIDE cannot be cleared")?;
        return Err(Failure::Skip(if kept {
            "PCID can be had here, and is not used"
        } else {
            "CR4.PCIDE is ignored"
        }));
    }
    check(regs::cr4() == before, "a refused bit changed CR4")
}
