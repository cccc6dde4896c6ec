//! The vmalloc range of this machine, on top of mm-vmalloc.

use core::panic::Location;
use core::sync::atomic::{AtomicU64, Ordering};

use memvisor_abi::{NodeStat, PageKind};
use mm_core::{Gfp, MaySleep, MemMap, Order, Page, PageAlloc, Pageblock, Pfn, PhysAddr, PhysMem, VirtAddr};
use mm_pgtable::{FlushRange, Levels, PageTable, Prot, layout};
use mm_slab::Object;
use mm_vmalloc::{Areas, Kmalloc, Machine, Request, VmError, Vmalloc};

use crate::mm::layout::levels;
use crate::mm::memmap::Vmemmap;
use crate::mm::paging::{self, Tables};
use crate::mm::phys::DirectMap;
use crate::mm::slab::KMEM;
use crate::mm::{early, kmap, page_alloc, vmstat};
use crate::sync::Lock;
use crate::{pr_warn, smp};

/// All areas.
pub static AREAS: Lock<Areas> = Lock::new(Areas::new());
/// See [`Machine::lazy_max_pages`]; 0 for Linux's value.
static LAZY_MAX: AtomicU64 = AtomicU64::new(0);
static PHYS_BITS: AtomicU64 = AtomicU64::new(0);

/// This machine, as mm-vmalloc sees it.
#[derive(Clone, Copy, Debug)]
pub struct Kernel;

/// The vmalloc family.
pub const fn vm() -> Vmalloc<'static, Kernel> {
    Vmalloc(&Kernel)
}

/// First address and length of the space.
///
/// Differs from Linux: only the part below the range's first top-level entry is used, 512 GiB or 256 TiB, because its table is made
/// at boot; Linux makes the tables of all 64 entries, which a guest of 64 MiB would feel.
pub fn space() -> (VirtAddr, u64) {
    (layout::vmalloc_start(levels()), Levels::page_size(levels().count()))
}

/// Makes the space (Linux: `vmalloc_init`).
pub fn init(phys_bits: u32) {
    PHYS_BITS.store(u64::from(phys_bits), Ordering::Relaxed);
    let (start, len) = space();
    AREAS.lock().init(&Kernel, start, len).expect("no memory for the first frame of areas");
}

/// vmalloc; a refusal is reported with its caller, as Linux's `warn_alloc` does.
///
/// # Errors
/// [`VmError`].
#[track_caller]
pub fn vmalloc(request: &Request, context: &MaySleep<'_>) -> Result<VirtAddr, VmError> {
    let outcome = vm().vmalloc(request, context);
    if !request.gfp.contains(Gfp::NOWARN) {
        report("vmalloc", Location::caller(), &outcome);
    }
    outcome
}

/// vfree; what was not vmalloced is reported with its caller, and nothing changes.
#[track_caller]
pub fn vfree(va: VirtAddr) -> bool {
    report("vfree", Location::caller(), &vm().vfree(va))
}

/// vmap, reporting like [`vmalloc`].
///
/// # Errors
/// [`VmError`].
#[track_caller]
pub fn vmap(frames: &[Pfn], prot: Prot, context: &MaySleep<'_>) -> Result<VirtAddr, VmError> {
    let outcome = vm().vmap(frames, prot, context);
    report("vmap", Location::caller(), &outcome);
    outcome
}

/// vunmap, reporting like [`vfree`].
#[track_caller]
pub fn vunmap(va: VirtAddr) -> bool {
    report("vunmap", Location::caller(), &vm().vunmap(va))
}

/// Prints what `function` refused to whom; true if it did not.
pub(super) fn report<T>(function: &str, caller: &Location<'_>, outcome: &Result<T, VmError>) -> bool {
    if let Err(error) = outcome {
        pr_warn!("WARNING: {function}: {error}, called from {caller}");
    }
    outcome.is_ok()
}

/// kvmalloc, reporting like [`vmalloc`].
///
/// # Errors
/// [`VmError`].
#[track_caller]
pub fn kvmalloc(request: &Request, context: &MaySleep<'_>) -> Result<VirtAddr, VmError> {
    let outcome = mm_vmalloc::kvmalloc(&Kernel, vm(), request, context);
    if !request.gfp.contains(Gfp::NOWARN) {
        report("kvmalloc", Location::caller(), &outcome);
    }
    outcome
}

/// kvfree, reporting like [`vfree`].
#[track_caller]
pub fn kvfree(va: VirtAddr) -> bool {
    report("kvfree", Location::caller(), &mm_vmalloc::kvfree(&Kernel, vm(), va))
}

impl Kmalloc for Kernel {
    fn kmalloc(&self, size: u64, gfp: Gfp, node: Option<u32>) -> Option<VirtAddr> {
        let object = match node {
            Some(node) => KMEM.kmalloc_node(size, gfp, node),
            None => KMEM.kmalloc(size, gfp),
        };
        object.and_then(|object| layout::phys_to_virt(levels(), object.addr()))
    }

    fn kfree(&self, va: VirtAddr) {
        let addr = va.as_u64().wrapping_sub(layout::page_offset(levels()).as_u64());
        // What is wrong with it kfree has said.
        let _ = KMEM.kfree(Object::new(PhysAddr::new(addr)));
    }
}

/// Lazy pages that are put up with before a purge; 0 for Linux's value.
pub fn set_lazy_max_pages(pages: u64) {
    LAZY_MAX.store(pages, Ordering::Relaxed);
}

impl PhysMem for Kernel {
    fn read_u64(&self, addr: PhysAddr) -> u64 {
        DirectMap.read_u64(addr)
    }

    fn write_u64(&self, addr: PhysAddr, value: u64) {
        DirectMap.write_u64(addr, value);
    }

    fn zero_frame(&self, pfn: Pfn) {
        kmap::clear_highpage(pfn);
    }
}

impl MemMap for Kernel {
    fn page(&self, pfn: Pfn) -> Option<&Page> {
        // The descriptors live for ever.
        static MAP: Vmemmap = Vmemmap;
        MAP.page(pfn)
    }

    fn pageblock(&self, pfn: Pfn) -> Option<&Pageblock> {
        static MAP: Vmemmap = Vmemmap;
        MAP.pageblock(pfn)
    }
}

impl PageAlloc for Kernel {
    fn alloc_pages(&self, gfp: Gfp, order: Order, node: Option<u32>) -> Option<Pfn> {
        page_alloc::alloc_here(gfp, order, node)
    }

    fn free_pages(&self, pfn: Pfn, order: Order) {
        page_alloc::free_pages(pfn, order);
    }
}

impl Machine for Kernel {
    type Tables = Tables;

    fn with_areas<R>(&self, f: impl FnOnce(&mut Areas) -> R) -> R {
        f(&mut AREAS.lock())
    }

    fn count_page(&self, page: &Page, kind: PageKind, delta: i64) {
        let stat = if kind == PageKind::KernelStack { NodeStat::KernelStack } else { NodeStat::Vmalloc };
        vmstat::mod_page_state(page, stat, delta);
    }

    fn with_tables<R>(&self, f: impl FnOnce(PageTable, &mut Tables) -> R) -> R {
        paging::with_kernel(f)
    }

    fn flush(&self, range: FlushRange) {
        paging::flush_all_cpus(range);
    }

    fn lazy_max_pages(&self) -> u64 {
        // Linux: 32 MiB of addresses for every doubling of CPUs.
        let log = u64::from(u32::BITS - smp::nr_online().leading_zeros());
        match LAZY_MAX.load(Ordering::Relaxed) {
            0 => log * ((32 << 20) / mm_core::PAGE_SIZE),
            set => set,
        }
    }

    fn total_pages(&self) -> u64 {
        page_alloc::zones().map(|zone| zone.lock().info().managed_pages).sum()
    }

    fn is_ram(&self, start: Pfn, pages: u64) -> bool {
        let end = start.offset(pages);
        let memblock = early::MEMBLOCK.lock();
        memblock.mem_pfn_ranges(None).any(|(first, last, _)| first < end && start < last)
    }

    fn phys_bits(&self) -> u32 {
        u32::try_from(PHYS_BITS.load(Ordering::Relaxed)).unwrap_or(0)
    }
}
