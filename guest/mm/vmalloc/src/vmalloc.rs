//! Memory behind areas: vmalloc, vfree, vmap, vunmap (Linux: `__vmalloc_node_range`, `__vunmap`, `vmap`).

use core::panic::Location;

use memvisor_abi::VmFlags;
use mm_core::{
    Event, Gfp, MaySleep, MemMap, Order, PAGE_SIZE, PFN_NONE, Page, PageAlloc, PageKind, Pfn, PhysAddr,
    PhysMem, VirtAddr,
};
use mm_pgtable::{CacheMode, FlushRange, Gather, KeepTables, LeafSize, PageTable, Prot, TableMem};

use crate::areas::Wanted;
use crate::{Area, Areas, VmError};

/// What the vmalloc family needs of the kernel. Both locks are taken for short work only; neither is held while the other
/// is, while frames for contents are allocated, or while CPUs flush.
pub trait Machine: PhysMem + PageAlloc + MemMap {
    /// Who owns the kernel's tables.
    type Tables: TableMem;

    /// Runs `f` under the lock of the areas (Linux: `vmap_area_lock`).
    fn with_areas<R>(&self, f: impl FnOnce(&mut Areas) -> R) -> R;

    /// Runs `f` under the lock of the kernel's tables.
    fn with_tables<R>(&self, f: impl FnOnce(PageTable, &mut Self::Tables) -> R) -> R;

    /// Drops translations on every CPU; returns when all have.
    fn flush(&self, range: FlushRange);

    /// Counts a page, by `delta`, among those behind areas (Linux: `NR_KERNEL_STACK_KB`, `nr_vmalloc_pages`).
    fn count_page(&self, _page: &Page, _kind: PageKind, _delta: i64) {}

    /// Lazy pages that are put up with before a purge (Linux: `lazy_max_pages`).
    fn lazy_max_pages(&self) -> u64;

    /// Pages of the machine: more are never granted (Linux: `totalram_pages`).
    fn total_pages(&self) -> u64;

    /// Whether any frame of the range is RAM.
    fn is_ram(&self, start: Pfn, pages: u64) -> bool;

    /// Bits of a physical address.
    fn phys_bits(&self) -> u32;
}

/// A vmalloc with every choice spelt out.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Bytes; rounded up to pages.
    pub size: u64,
    /// Alignment of the first address, a power of two of at least a page.
    pub align: u64,
    /// For the frames.
    pub gfp: Gfp,
    /// Node for the frames.
    pub node: Option<u32>,
    /// Added to `VM_ALLOC`.
    pub flags: VmFlags,
}

impl Request {
    /// `vmalloc(size)`.
    pub const fn new(size: u64) -> Request {
        let gfp = Gfp::KERNEL.union(Gfp::HIGHMEM);
        Request { size, align: PAGE_SIZE, gfp, node: None, flags: VmFlags::empty() }
    }

    /// `vzalloc(size)`.
    pub const fn zeroed(size: u64) -> Request {
        let request = Request::new(size);
        Request { gfp: request.gfp.union(Gfp::ZERO), ..request }
    }

    /// `vmalloc_user(size)`: zeroed, and marked as fit to be mapped for ring 3.
    pub const fn user(size: u64) -> Request {
        Request { flags: VmFlags::USERMAP, ..Request::zeroed(size) }
    }

    /// `vmalloc_32(size)`: from frames below 4 GiB.
    pub const fn dma32(size: u64) -> Request {
        Request { gfp: Gfp::KERNEL.union(Gfp::DMA32), ..Request::new(size) }
    }

    /// A kernel stack: aligned to its size, so that it is found by masking the stack pointer, and zeroed, so that its use can be
    /// measured (Linux: `alloc_thread_stack_node` with `CONFIG_DEBUG_STACK_USAGE`).
    pub const fn stack() -> Request {
        let size = memvisor_abi::THREAD_SIZE;
        let gfp = Gfp::KERNEL.union(Gfp::ZERO);
        Request { align: size, gfp, flags: VmFlags::KERNEL_STACK, ..Request::new(size) }
    }

    /// `vmalloc_node`: frames near a node.
    #[must_use]
    pub const fn on_node(self, node: u32) -> Request {
        Request { node: Some(node), ..self }
    }
}

/// The vmalloc family on one machine.
#[derive(Clone, Copy, Debug)]
pub struct Vmalloc<'m, M>(pub &'m M);

impl<M: Machine> Vmalloc<'_, M> {
    /// Virtually contiguous memory. May sleep for frames.
    ///
    /// # Errors
    /// [`VmError`]; nothing is left behind.
    #[track_caller]
    pub fn vmalloc(&self, request: &Request, _context: &MaySleep<'_>) -> Result<VirtAddr, VmError> {
        let Request { size, align, gfp, node, .. } = *request;
        self.0.emit(Event::Vmalloc { size, align, gfp, node });
        let outcome = self.vmalloc_at(request, Location::caller());
        self.0.emit(Event::VmallocRet { addr: outcome.unwrap_or_default().as_u64() });
        outcome
    }

    fn vmalloc_at(&self, request: &Request, caller: &'static Location<'static>) -> Result<VirtAddr, VmError> {
        let wanted = Wanted {
            size: self.check_size(request.size)?,
            align: request.align,
            flags: request.flags | VmFlags::ALLOC,
            cache: CacheMode::Wb,
            phys: 0,
            caller,
        };
        let area = self.take(&wanted)?;
        if let Err(error) = self.fill(&area, &wanted, request) {
            self.clear(&area, wanted.size, true);
            self.release(&area);
            return Err(error);
        }
        self.done(&area, wanted.size)
    }

    /// Gives the memory back. Its addresses become free with the next purge.
    ///
    /// Linux frees the frames at once, before the purge, and so does this: a stale translation is of use only to a caller that
    /// uses memory after freeing it.
    ///
    /// # Errors
    /// [`VmError::BadAddress`], [`VmError::NotMapped`] and [`VmError::WrongKind`]: nothing was freed.
    pub fn vfree(&self, va: VirtAddr) -> Result<(), VmError> {
        let area = self.owned(va, VmFlags::ALLOC)?;
        self.0.emit(Event::Vfree { addr: va.as_u64() });
        self.clear(&area, area.nr_pages * PAGE_SIZE, true);
        self.release(&area);
        self.0.emit(Event::VfreeRet {});
        Ok(())
    }

    /// Maps frames that belong to the caller one after the other.
    ///
    /// # Errors
    /// [`VmError`]; nothing is left behind.
    #[track_caller]
    pub fn vmap(&self, frames: &[Pfn], prot: Prot, _context: &MaySleep<'_>) -> Result<VirtAddr, VmError> {
        self.0.emit(Event::Vmap { count: frames.len() as u64 });
        let outcome = self.vmap_at(frames, prot, Location::caller());
        self.0.emit(Event::VmapRet { addr: outcome.unwrap_or_default().as_u64() });
        outcome
    }

    fn vmap_at(
        &self,
        frames: &[Pfn],
        prot: Prot,
        caller: &'static Location<'static>,
    ) -> Result<VirtAddr, VmError> {
        let size = self.check_size(frames.len() as u64 * PAGE_SIZE)?;
        let wanted =
            Wanted { size, align: PAGE_SIZE, flags: VmFlags::MAP, cache: prot.cache, phys: 0, caller };
        let area = self.take(&wanted)?;
        let mut run = Run::new(area.start, false);
        let mapped = frames.iter().try_for_each(|&frame| self.push(&mut run, frame, prot));
        if let Err(error) = mapped.and_then(|()| self.map_run(&mut run, prot)) {
            self.clear(&area, size, false);
            self.release(&area);
            return Err(error);
        }
        self.done(&area, size)
    }

    /// Undoes [`Vmalloc::vmap`]; the frames stay with their owner.
    ///
    /// # Errors
    /// As [`Vmalloc::vfree`].
    pub fn vunmap(&self, va: VirtAddr) -> Result<(), VmError> {
        let area = self.owned(va, VmFlags::MAP)?;
        self.clear(&area, area.nr_pages * PAGE_SIZE, false);
        self.release(&area);
        Ok(())
    }

    /// An area without anything in it, for windows whose pages come and go (Linux: `get_vm_area`).
    ///
    /// # Errors
    /// [`VmError`].
    #[track_caller]
    pub fn reserve(&self, size: u64, align: u64, flags: VmFlags) -> Result<Area, VmError> {
        let caller = Location::caller();
        self.take(&Wanted {
            size: self.page_align(size)?,
            align,
            flags,
            cache: CacheMode::Wb,
            phys: 0,
            caller,
        })
    }

    /// Flushes all lazy areas now and makes them free; true if there were any (Linux: `vm_unmap_aliases`,
    /// `purge_vmap_area_lazy`).
    pub fn purge(&self) -> bool {
        let Some((start, end)) = self.0.with_areas(|areas| areas.begin_purge(self.0)) else { return false };
        // One flush for all of them. A range of more pages than the ceiling is dropped as a whole.
        let last = VirtAddr::new(end - PAGE_SIZE);
        let range = if (end - start) / PAGE_SIZE <= Gather::CEILING {
            FlushRange::Range { start: VirtAddr::new(start), last, stride: PAGE_SIZE }
        } else {
            FlushRange::All { global: true }
        };
        self.0.flush(range);
        let npurged = self.0.with_areas(|areas| areas.end_purge(self.0));
        self.0.emit(Event::PurgeVmapAreaLazy { start, end, npurged });
        true
    }

    /// The busy area around an address (Linux: `find_vm_area`, also for addresses inside).
    pub fn find(&self, va: VirtAddr) -> Option<Area> {
        self.0.with_areas(|areas| areas.find(self.0, va))
    }

    /// The frame that backs an address (Linux: `vmalloc_to_page`).
    pub fn to_pfn(&self, va: VirtAddr) -> Option<Pfn> {
        self.0.with_tables(|table, tables| table.translate(tables, va)).map(|mapping| mapping.phys.pfn())
    }

    pub(crate) fn page_align(&self, size: u64) -> Result<u64, VmError> {
        if size == 0 {
            return Err(VmError::ZeroSize);
        }
        size.checked_next_multiple_of(PAGE_SIZE).ok_or(VmError::TooLarge { size })
    }

    fn check_size(&self, size: u64) -> Result<u64, VmError> {
        let aligned = self.page_align(size)?;
        if aligned / PAGE_SIZE > self.0.total_pages() { Err(VmError::TooLarge { size }) } else { Ok(aligned) }
    }

    /// Takes a range; if there is none, what is lazy is purged first.
    pub(crate) fn take(&self, wanted: &Wanted) -> Result<Area, VmError> {
        let attempt = || self.0.with_areas(|areas| areas.alloc(self.0, wanted));
        let outcome = match attempt() {
            Err(VmError::NoSpace { .. }) if self.purge() => attempt(),
            outcome => outcome,
        };
        self.0.emit(Event::AllocVmapArea {
            addr: outcome.map_or(0, |area| area.start.as_u64()),
            size: wanted.size,
            align: wanted.align,
            vstart: self.0.with_areas(|areas| areas.start),
            failed: outcome.is_err(),
        });
        outcome
    }

    pub(crate) fn done(&self, area: &Area, size: u64) -> Result<VirtAddr, VmError> {
        self.0.with_areas(|areas| areas.set_pages(self.0, area, size / PAGE_SIZE));
        Ok(area.start)
    }

    /// The area that starts at `va` and has `flags`.
    pub(crate) fn owned(&self, va: VirtAddr, flags: VmFlags) -> Result<Area, VmError> {
        if !va.is_aligned(PAGE_SIZE) {
            return Err(VmError::BadAddress { va });
        }
        let area = self.find(va).filter(|area| area.start == va).ok_or(VmError::NotMapped { va })?;
        // The window of kmap is nobody's to unmap.
        if !area.flags.contains(flags) || area.flags.contains(VmFlags::PKMAP) {
            return Err(VmError::WrongKind { va, flags: area.flags.bits() });
        }
        Ok(area)
    }

    fn fill(&self, area: &Area, wanted: &Wanted, request: &Request) -> Result<(), VmError> {
        let stack = wanted.flags.contains(VmFlags::KERNEL_STACK);
        let kind = if stack { PageKind::KernelStack } else { PageKind::Vmalloc };
        let nr_pages = wanted.size / PAGE_SIZE;
        let Request { gfp, node, .. } = *request;
        self.0.emit(Event::VmAreaAllocPages { nr_pages, order: Order::ZERO, gfp, node });
        let mut nr_allocated = 0;
        let outcome = self.fill_with(area, kind, nr_pages, request, &mut nr_allocated);
        self.0.emit(Event::VmAreaAllocPagesRet { nr_allocated });
        outcome
    }

    fn fill_with(
        &self,
        area: &Area,
        kind: PageKind,
        nr_pages: u64,
        request: &Request,
        nr_allocated: &mut u64,
    ) -> Result<(), VmError> {
        let mut run = Run::new(area.start, true);
        for index in 0..nr_pages {
            let frame = self.0.alloc_pages(request.gfp, Order::ZERO, request.node);
            let Some(frame) = frame else {
                // What is on the way must be mapped to be found and freed again.
                return self.map_run(&mut run, Prot::KERNEL_RW).and(Err(VmError::NoMemory));
            };
            *nr_allocated += 1;
            if let Some(page) = self.0.page(frame) {
                page.set_kind(kind);
                self.0.count_page(page, kind, 1);
                page.set_mapping(area.start.as_u64());
                page.set_index(index);
            }
            self.push(&mut run, frame, Prot::KERNEL_RW).inspect_err(|_| self.free(frame))?;
        }
        self.map_run(&mut run, Prot::KERNEL_RW)
    }

    /// Adds a frame to the run of contiguous frames, and maps that if it ends.
    fn push(&self, run: &mut Run, frame: Pfn, prot: Prot) -> Result<(), VmError> {
        if run.pages > 0 && run.first.offset(run.pages) != frame {
            self.map_run(run, prot)?;
        }
        if run.pages == 0 {
            run.first = frame;
        }
        run.pages += 1;
        Ok(())
    }

    fn map_run(&self, run: &mut Run, prot: Prot) -> Result<(), VmError> {
        let (va, len) = (run.va, run.pages * PAGE_SIZE);
        if let Err(error) = self.map(va, run.first.phys(), len, prot) {
            // The caller unmaps the part that is mapped; own frames of the rest would be lost.
            for index in (0..run.pages).filter(|_| run.own) {
                if self.to_pfn(VirtAddr::new(va.as_u64() + index * PAGE_SIZE)).is_none() {
                    self.free(run.first.offset(index));
                }
            }
            return Err(error);
        }
        run.va = VirtAddr::new(va.as_u64() + len);
        run.pages = 0;
        Ok(())
    }

    /// Maps physical memory with 4 KiB pages.
    pub(crate) fn map(&self, va: VirtAddr, phys: PhysAddr, len: u64, prot: Prot) -> Result<(), VmError> {
        use mm_pgtable::MapError;
        let outcome =
            self.0.with_tables(|table, tables| table.map(tables, va, phys, len, prot, LeafSize::Size4K));
        self.0.emit(Event::VmapPagesRange {
            start: va.as_u64(),
            end: va.as_u64() + len,
            nr_pages: len / PAGE_SIZE,
        });
        outcome.map_err(|error| match error {
            MapError::NoMemory { .. } => VmError::NoMemory,
            error => VmError::Map(error),
        })
    }

    /// Unmaps `size` bytes of the area. The frames are freed if they are the area's own.
    pub(crate) fn clear(&self, area: &Area, size: u64, free: bool) {
        let start = area.start.as_u64();
        self.0.emit(Event::VunmapRange { start, end: start + size });
        let mut list = PFN_NONE;
        self.0
            .with_tables(|table, tables| {
                let mut gather = Gather::new();
                let outcome =
                    table.unmap(tables, area.start, size, KeepTables::All, &mut gather, |_, entry, level| {
                        let frame = entry.phys(level).pfn();
                        if free && let Some(page) = self.0.page(frame) {
                            page.set_next(list);
                            list = frame.as_u64();
                        }
                    });
                // No table left the tree, and the purge of the area flushes its range (V5).
                gather.flush(tables, |_| {});
                outcome
            })
            // 4 KiB leaves need no split, and the range was mapped by this crate.
            .unwrap_or_else(|error| panic!("unmapping the area at {}: {error}", area.start));
        while list != PFN_NONE {
            let frame = Pfn::new(list);
            list = self.0.page(frame).map_or(PFN_NONE, |page| {
                let next = page.next();
                page.set_next(PFN_NONE);
                next
            });
            self.free(frame);
        }
    }

    fn free(&self, frame: Pfn) {
        if let Some(page) = self.0.page(frame) {
            self.0.count_page(page, page.kind(), -1);
            page.set_kind(PageKind::Allocated);
            page.set_mapping(0);
            page.set_index(0);
        }
        self.0.free_pages(frame, Order::ZERO);
    }

    pub(crate) fn release(&self, area: &Area) {
        let lazy = self.0.with_areas(|areas| {
            areas.release(self.0, area);
            areas.lazy_pages()
        });
        let nr_lazy_max = self.0.lazy_max_pages();
        self.0.emit(Event::FreeVmapAreaNoflush { va_start: area.start.as_u64(), nr_lazy: lazy, nr_lazy_max });
        if lazy > nr_lazy_max {
            self.purge();
        }
    }
}

/// Contiguous frames that wait to be mapped at `va`.
struct Run {
    va: VirtAddr,
    first: Pfn,
    pages: u64,
    /// The frames belong to the area.
    own: bool,
}

impl Run {
    const fn new(va: VirtAddr, own: bool) -> Run {
        Run { va, first: Pfn::new(0), pages: 0, own }
    }
}
