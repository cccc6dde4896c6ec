//! The kernel's page tables, and who provides frames for tables.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use memvisor_abi::{NodeStat, PageKind};
use mm_core::{MemMap, Pfn, PhysAddr, PhysMem, VirtAddr};
use mm_pgtable::{
    Entry, FlushRange, Gather, KeepTables, LeafSize, Levels, PageTable, Prot, TableMem, layout,
};

use crate::arch::percpu::AREA_RUNS;
use crate::arch::{pti, regs};
use crate::mm::layout::{APIC_VA, levels, percpu_area};
use crate::mm::memmap::Vmemmap;
use crate::mm::phys::{self, DirectMap};
use crate::mm::{early, limits, page_alloc, vmstat};
use crate::smp::{self, Invalidation};
use crate::sync::Lock;

static ROOT: AtomicU64 = AtomicU64::new(0);
static BUDDY: AtomicBool = AtomicBool::new(false);
/// Serialises changes of the kernel half.
static KERNEL_HALF: Lock<()> = Lock::new(());

/// Table frames from memblock, and from the buddy allocator once it runs.
#[derive(Debug)]
pub struct Tables;

/// Where an entry is.
pub const fn entry_address(table: Pfn, index: usize) -> PhysAddr {
    PhysAddr::new(table.phys().as_u64() + 8 * index as u64)
}

impl TableMem for Tables {
    #[inline]
    fn read(&self, table: Pfn, index: usize) -> u64 {
        DirectMap.read_u64(entry_address(table, index))
    }

    #[inline]
    fn write(&self, table: Pfn, index: usize, value: u64) {
        DirectMap.write_u64(entry_address(table, index), value);
        if pti::enabled() {
            super::pti::mirror(table, index, value);
        }
    }

    fn compare_exchange(&self, table: Pfn, index: usize, old: u64, new: u64) -> Result<(), u64> {
        phys::compare_exchange(entry_address(table, index), old, new)?;
        if pti::enabled() {
            super::pti::mirror(table, index, new);
        }
        Ok(())
    }

    fn fill(&self, table: Pfn, index: usize, count: usize, value: u64, step: u64) {
        DirectMap.fill_table(table, index, count, value, step);
        if pti::enabled() {
            (0..count).for_each(|i| super::pti::mirror(table, index + i, value + step * i as u64));
        }
    }

    fn skip_empty(&self, table: Pfn, from: usize, to: usize) -> usize {
        DirectMap.skip_zero_words(table, from, to)
    }

    fn copy(&self, from: Pfn, to: Pfn, entries: Range<usize>) {
        DirectMap.copy_words(from, to, entries);
    }

    fn alloc_table(&mut self) -> Option<Pfn> {
        if BUDDY.load(Ordering::Relaxed) {
            let table = page_alloc::alloc_zeroed(PageKind::Table)?;
            count_table(table, 1);
            return Some(table);
        }
        let table = early::alloc(1, 1, None, PageKind::Table)?;
        DirectMap.zero_frame(table);
        Some(table)
    }

    fn free_table(&mut self, table: Pfn) {
        assert!(BUDDY.load(Ordering::Relaxed), "page table {table} freed before the buddy allocator runs");
        count_table(table, -1);
        page_alloc::free_zeroed(table);
    }
}

/// Linux: `NR_PAGETABLE`.
fn count_table(table: Pfn, delta: i64) {
    if let Some(page) = Vmemmap.page(table) {
        vmstat::mod_page_state(page, NodeStat::PageTable, delta);
    }
}

/// From now on tables come from the buddy allocator.
pub fn use_buddy() {
    BUDDY.store(true, Ordering::Relaxed);
}

/// The kernel's own tree (Linux: `init_mm.pgd`).
pub fn kernel() -> PageTable {
    PageTable { root: Pfn::new(ROOT.load(Ordering::Relaxed)), levels: levels() }
}

/// The largest page of the direct map.
pub fn largest_leaf(gbpages: bool) -> LeafSize {
    if gbpages { LeafSize::Size1G } else { LeafSize::Size2M }
}

/// Builds the final tables and switches to them: the direct map of all low RAM and the image, W^X. The
/// frames of code and read-only data are read-only in the direct map too (Linux: `mark_rodata_ro`
/// with the alias of the direct map).
pub fn init(largest: LeafSize, apic_base: u64) {
    let table = PageTable::new(&mut Tables, levels()).expect("no memory for the top-level page table");
    ROOT.store(table.root.as_u64(), Ordering::Relaxed);
    let image = phys::image();
    let text = PhysAddr::new(image.phys);
    let data = PhysAddr::new(image.phys + image.rodata);
    let mut next = 0;
    let mut end = PhysAddr::new(0);
    // Tables are allocated while RAM is mapped, so memblock's lock is not held over `map`. RAM
    // regions do not change any more.
    while let Some((first, last)) = nth_ram(next) {
        next += 1;
        let last = last.min(limits::lowmem_end_addr());
        if first >= last {
            continue;
        }
        end = last;
        map_direct(table, first, last.min(text), Prot::KERNEL_RW, largest);
        map_direct(table, first.max(text), last.min(data), Prot::KERNEL_RO, largest);
        map_direct(table, first.max(data), last, Prot::KERNEL_RW, largest);
    }
    let parts = [
        (0, image.text, Prot::KERNEL_RX),
        (image.text, image.rodata, Prot::KERNEL_RO),
        (image.rodata, image.len, Prot::KERNEL_RW),
    ];
    for (start, stop, prot) in parts {
        let va = VirtAddr::new(image.va + start);
        let pa = PhysAddr::new(image.phys + start);
        map(table, va, pa, stop - start, prot, LeafSize::Size2M);
    }
    map(table, APIC_VA, PhysAddr::new(apic_base), 4096, Prot::KERNEL_IO, LeafSize::Size4K);
    populate_kernel_half(table);
    crate::smp::init_identity(table);
    // SAFETY: the new tables map the image and the direct map as the early ones did; the boot stack
    // is part of the image.
    unsafe { regs::write_cr3(table.root.phys().as_u64()) };
    phys::set_end(end);
}

/// Whole frames of the n-th run of RAM.
fn nth_ram(index: usize) -> Option<(PhysAddr, PhysAddr)> {
    let memblock = early::MEMBLOCK.lock();
    memblock.mem_pfn_ranges(None).nth(index).map(|(start, end, _)| (start.phys(), end.phys()))
}

fn map_direct(table: PageTable, start: PhysAddr, end: PhysAddr, prot: Prot, largest: LeafSize) {
    if start < end {
        let va = layout::phys_to_virt(levels(), start).expect("RAM beyond the direct map");
        map(table, va, start, end.as_u64() - start.as_u64(), prot, largest);
    }
}

fn map(table: PageTable, va: VirtAddr, pa: PhysAddr, len: u64, prot: Prot, largest: LeafSize) {
    if let Err(error) = table.map(&mut Tables, va, pa, len, prot, largest) {
        panic!("mapping {va}+{len:#x}: {error}");
    }
}

/// Fills the top-level entries of everything that may be mapped later, so that address spaces can
/// copy them once (Linux: `preallocate_vmalloc_pages`).
fn populate_kernel_half(table: PageTable) {
    let ranges = [
        (layout::PERCPU_START, 1 << 30),
        (layout::vmalloc_start(levels()), 1 << 30),
        (layout::vmemmap_start(levels()), 1 << 30),
        (layout::START_KERNEL_MAP, 1 << 30),
    ];
    for (va, len) in ranges {
        table.populate_top(&mut Tables, va, len).expect("no memory for kernel page tables");
    }
}

/// Maps kernel memory after boot's tables are in force.
pub fn map_kernel(va: VirtAddr, pa: PhysAddr, len: u64, prot: Prot, largest: LeafSize) {
    let _half = KERNEL_HALF.lock();
    map(kernel(), va, pa, len, prot, largest);
}

/// Maps a CPU's area, whose frames are contiguous from `first`.
pub fn map_percpu(cpu: u32, first: Pfn) {
    let base = percpu_area(cpu);
    let mut frame = first;
    for (page, count) in AREA_RUNS {
        let va = VirtAddr::new(base.as_u64() + page * mm_core::PAGE_SIZE);
        map_kernel(va, frame.phys(), count * mm_core::PAGE_SIZE, Prot::KERNEL_RW, LeafSize::Size4K);
        frame = frame.offset(count);
    }
}

/// Unmaps kernel memory and flushes every CPU. The frames stay with the caller.
pub fn unmap_kernel(va: VirtAddr, len: u64) {
    let _half = KERNEL_HALF.lock();
    let mut gather = Gather::new();
    let outcome = kernel().unmap(&mut Tables, va, len, KeepTables::TopLevel, &mut gather, |_, _, _| {});
    gather.flush(&mut Tables, flush_all_cpus);
    if let Err(error) = outcome {
        panic!("unmapping {va}+{len:#x}: {error}");
    }
}

/// Runs `f` on the kernel's tree under its lock.
pub fn with_kernel<R>(f: impl FnOnce(PageTable, &mut Tables) -> R) -> R {
    let _half = KERNEL_HALF.lock();
    f(kernel(), &mut Tables)
}

/// The level-1 entry of an address in the kernel's half: table and index. The tables on the way are made, and stay.
pub fn pte_of(va: VirtAddr) -> (Pfn, usize) {
    let _half = KERNEL_HALF.lock();
    // Mapping and unmapping leaves exactly the tables.
    map(kernel(), va, PhysAddr::new(0), mm_core::PAGE_SIZE, Prot::KERNEL_RO, LeafSize::Size4K);
    let mut found = None;
    kernel().walk(&Tables, va, |level, table, index, _| {
        if level == 1 {
            found = Some((table, index));
        }
    });
    let mut gather = Gather::new();
    let outcome =
        kernel().unmap(&mut Tables, va, mm_core::PAGE_SIZE, KeepTables::All, &mut gather, |_, _, _| {});
    gather.flush(&mut Tables, flush_all_cpus);
    found.filter(|_| outcome.is_ok()).unwrap_or_else(|| panic!("{va} has no page-table entry"))
}

/// Changes the protection of kernel memory and flushes every CPU.
pub fn protect_kernel(va: VirtAddr, len: u64, prot: Prot) {
    let _half = KERNEL_HALF.lock();
    let mut gather = Gather::new();
    let outcome = kernel().protect(&mut Tables, va, len, prot, &mut gather);
    gather.flush(&mut Tables, flush_all_cpus);
    if let Err(error) = outcome {
        panic!("protecting {va}+{len:#x}: {error}");
    }
}

/// Drops translations of the kernel's half on every CPU.
pub fn flush_all_cpus(range: FlushRange) {
    let what = Invalidation::of(&range);
    if !what.drop_each() {
        regs::flush_all();
    }
    smp::flush_others(what);
}

/// The tree in this CPU's CR3.
pub fn current() -> PageTable {
    PageTable { root: PhysAddr::new(regs::cr3()).pfn(), levels: levels() }
}

/// Walks `va` through CR3; calls `f` with level name, table, index and entry of each step.
pub fn walk_current(va: u64, mut f: impl FnMut(&str, Pfn, usize, u64)) {
    let depth: Levels = levels();
    current().walk(&Tables, VirtAddr::new(va), |level, table, index, entry: Entry| {
        f(depth.level_name(level), table, index, entry.as_u64());
    });
}
