//! The kernel around address spaces: what mm-vma needs of this machine (Linux: mm/, arch/x86/mm/tlb.c).
//!
//! Locks, in their order: mmap_lock of an address space, `RMAP`, its page_table_lock; docs/locking.md has them among the others.
//! mmap_lock waits by letting other threads run where the caller may sleep, else by spinning; its holder may sleep.

pub mod backing;
pub mod cache;
mod objects;
mod published;
pub mod shadows;
pub mod swapped;
pub mod tlb;

pub use cache::{Source, program_mapping};
pub use published::{
    for_each_mm, for_each_mm_pinned, mm_get_all, mm_list, rests, set_rests, tlb_of, tlb_table,
};

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use memvisor_abi::VmEvent;
use mm_core::{
    Event, EventId, Gfp, MemMap, Order, Page, PageAlloc, Pageblock, Pfn, PhysAddr, PhysMem, PolicyAt, Rcu,
    Trace, VirtAddr,
};
use mm_filemap::shmem::FallocFlags;
use mm_pgtable::{FlushRange, PageTable};
use mm_vma::{
    Arena, Errno, Id, Kernel, Layout, MappedError, MappedPage, Mapping, Mm, MoveTo, RssKind, Space, VmFlags,
};
use mm_vmscan::Lru as _;

use crate::arch::{percpu, regs};
use crate::fs::disk_file;
use crate::mm::layout::levels;
use crate::mm::memmap::Vmemmap;
use crate::mm::oom::promises;
use crate::mm::paging::{self, Tables};
use crate::mm::phys::DirectMap;
use crate::mm::{kmap, migrate, oom, page_alloc, pti, swap};
use crate::sync::Lock;
use crate::trace::KernelTrace;
use crate::{introspect, sched, smp};

/// All address spaces of this machine.
#[derive(Clone, Copy, Debug)]
pub struct Spaces;

/// In mmap_lock, beside the readers: a writer waits.
const WRITER_WAITS: i32 = 1 << 30;
/// Looks at a lock before the CPU goes to somebody else: its holder is likely on another one, and soon done.
const SPINS: u32 = 200;

/// Guards all trees of `AnonVma`s and all lists of mappings.
static RMAP: Lock<()> = Lock::new(());

/// Areas that an address space may have (Linux: `sysctl_max_map_count`).
static MAX_MAP_COUNT: AtomicU32 = AtomicU32::new(DEFAULT_MAX_MAP_COUNT);
/// Linux: the same name; a core file with 16 bits of sections has room for no more.
const DEFAULT_MAX_MAP_COUNT: u32 = 65530;

/// `vm.max_map_count`.
pub fn max_map_count() -> u32 {
    MAX_MAP_COUNT.load(Ordering::Relaxed)
}

/// Changes it; who has more keeps them.
pub fn set_max_map_count(areas: u32) {
    MAX_MAP_COUNT.store(areas, Ordering::Relaxed);
}

/// For tests of what a lost flush does.
static LOSE_FLUSHES: AtomicBool = AtomicBool::new(false);

/// Flushes of address spaces are not done while `f` runs: a fault on purpose, which only a CPU with a TLB shows.
pub fn losing_flushes<R>(f: impl FnOnce() -> R) -> R {
    LOSE_FLUSHES.store(true, Ordering::Relaxed);
    let result = f();
    LOSE_FLUSHES.store(false, Ordering::Relaxed);
    result
}

/// The frame of zeroes that read faults map (Linux: `empty_zero_page`); 0 before [`init`].
static ZERO_PFN: AtomicU64 = AtomicU64::new(0);

/// Makes the caches and the zero page. Slabs can be had.
pub fn init() {
    objects::init();
    if let Some(pfn) = page_alloc::alloc_here(Gfp::KERNEL | Gfp::ZERO, Order::ZERO, None) {
        introspect::publish_zero_page(pfn);
        ZERO_PFN.store(pfn.as_u64(), Ordering::Release);
    }
}

/// An empty address space with the kernel's half in its tables (Linux: `mm_alloc`).
///
/// # Errors
/// `ENOMEM`.
pub fn mm_alloc(shape: Layout) -> Result<Id<Mm>, Errno> {
    let id = Arena::<Mm>::alloc(&Spaces).ok_or(Errno::Enomem)?;
    // fork is not refused while memory can be reclaimed (Linux: `pgd_alloc` by `GFP_PGTABLE_USER`).
    let table = oom::or_wait(|| PageTable::new(&mut Tables, levels()).map_err(|_| Errno::Enomem))
        .inspect_err(|_| Arena::<Mm>::free(&Spaces, id))?;
    table.share_upper_half(&Tables, paging::kernel());
    let mm = mm_of(id);
    mm.init(table, shape);
    let with_user_table = || pti::alloc_user_table(mm, table).then_some(()).ok_or(Errno::Enomem);
    oom::or_wait(with_user_table).inspect_err(|_| {
        // The upper half is the kernel's.
        let freed = table.free_root(&mut Tables);
        freed.expect("nothing is mapped yet");
        Arena::<Mm>::free(&Spaces, id);
    })?;
    objects::of_mm(mm).cpus.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    objects::of_mm(mm).tlb_generation.store(0, Ordering::Relaxed);
    objects::of_mm(mm).tlb_deferred.store(0, Ordering::Relaxed);
    set_start_stack(mm, 0);
    set_owner(id, 0);
    objects::of_mm(mm).pins.store(1, Ordering::Relaxed);
    objects::of_mm(mm).users.store(1, Ordering::Release);
    published::link(id);
    Ok(id)
}

/// The address space.
pub fn mm_of(id: Id<Mm>) -> &'static Mm {
    Arena::<Mm>::at(&Spaces, id)
}

/// Where the program's stack was when it began; 0 if it has none.
pub fn start_stack(mm: &Mm) -> u64 {
    objects::of_mm(mm).start_stack.load(Ordering::Relaxed)
}

/// Says where the program's stack begins.
pub fn set_start_stack(mm: &Mm, address: u64) {
    objects::of_mm(mm).start_stack.store(address, Ordering::Relaxed);
}

/// Says whose it is until a task has it (Linux: `mm->owner`).
pub fn set_owner(id: Id<Mm>, pid: u32) {
    objects::of_mm(mm_of(id)).owner.store(pid, Ordering::Relaxed);
}

/// The process that [`set_owner`] named.
fn owner(mm: &Mm) -> u32 {
    objects::of_mm(mm).owner.load(Ordering::Relaxed)
}

/// One more user (Linux: `mmget`).
pub fn mm_get(id: Id<Mm>) {
    objects::of_mm(mm_of(id)).users.fetch_add(1, Ordering::Relaxed);
}

/// One more user, unless there is none any more (Linux: `mmget_not_zero`).
pub fn mm_tryget(id: Id<Mm>) -> bool {
    let users = &objects::of_mm(mm_of(id)).users;
    users.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |now| (now > 0).then(|| now + 1)).is_ok()
}

/// Keeps the object, though its users may go (Linux: `mmgrab`). Somebody has it already.
pub fn mm_grab(id: Id<Mm>) {
    objects::of_mm(mm_of(id)).pins.fetch_add(1, Ordering::Relaxed);
}

/// Ends [`mm_grab`]; the last gives the object back (Linux: `mmdrop`).
pub fn mm_drop(id: Id<Mm>) {
    if objects::of_mm(mm_of(id)).pins.fetch_sub(1, Ordering::AcqRel) == 1 {
        Arena::<Mm>::free(&Spaces, id);
    }
}

/// One user less; the last unmaps everything and frees the address space (Linux: `mmput`). No CPU runs a task with it then, and those
/// that still have its tables in CR3 leave them.
pub fn mm_put(id: Id<Mm>) {
    if objects::of_mm(mm_of(id)).users.fetch_sub(1, Ordering::AcqRel) == 1 {
        mm_free(id);
    }
}

/// Whether the caller has it alone.
pub fn is_last_user(id: Id<Mm>) -> bool {
    objects::of_mm(mm_of(id)).users.load(Ordering::Acquire) == 1
}

/// Unmaps everything and frees the address space, which nobody uses (Linux: `exit_mmap`, `mmdrop`, `pgd_free`).
pub fn mm_free(id: Id<Mm>) {
    let mm = mm_of(id);
    KernelTrace.emit_with(EventId::ExitMmap, || Event::ExitMmap {
        pid: owner(mm),
        rss: mm.rss(RssKind::Anon) + mm.rss(RssKind::File),
        swapents: mm.swapents(),
        pgtables: mm.table_pages(),
        free: page_alloc::nr_free_pages(),
    });
    Space::lock(&Spaces, id, mm_vma::Limits::default()).exit();
    KernelTrace.emit_with(EventId::ExitMmapRet, || Event::ExitMmapRet { free: page_alloc::nr_free_pages() });
    oom::mm_exited(id);
    tlb::leave_everywhere(mm);
    published::unlink(id);
    pti::free_user_table(mm);
    let freed = mm.page_table().free_root(&mut Tables);
    freed.expect("everything below is unmapped");
    mm_drop(id);
}

/// Where an address space puts what has no fixed place, for a copy.
pub fn shape_of(id: Id<Mm>) -> Layout {
    let mm = mm_of(id);
    Layout { mmap_base: mm.mmap_base(), mmap_legacy_base: mm.mmap_legacy_base(), task_size: mm.task_size() }
}

/// Whether an address is one that programs may have (Linux: `TASK_SIZE_MAX`).
pub fn is_user_address(va: u64) -> bool {
    va < mm_pgtable::layout::task_size(levels())
}

impl Spaces {
    /// Waits for a lock whose holder may sleep.
    fn wait_until(self, mut taken: impl FnMut() -> bool) {
        loop {
            for _ in 0..SPINS {
                if taken() {
                    return;
                }
                core::hint::spin_loop();
            }
            self.relax();
        }
    }
}

impl MemMap for Spaces {
    fn page(&self, pfn: Pfn) -> Option<&Page> {
        MemMap::page(&Vmemmap, pfn)
    }

    fn pageblock(&self, pfn: Pfn) -> Option<&Pageblock> {
        MemMap::pageblock(&Vmemmap, pfn)
    }
}

impl PageAlloc for Spaces {
    fn alloc_pages(&self, gfp: Gfp, order: Order, node: Option<u32>) -> Option<Pfn> {
        page_alloc::alloc_here(gfp, order, node)
    }

    fn alloc_page_policy(&self, gfp: Gfp, at: PolicyAt) -> Option<Pfn> {
        page_alloc::alloc_page_policy(gfp, at)
    }

    fn free_pages(&self, pfn: Pfn, order: Order) {
        page_alloc::free_pages(pfn, order);
    }

    fn free_run(&self, first: Pfn, count: u64) {
        page_alloc::free_run(first, count);
    }
}

impl PhysMem for Spaces {
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

impl Rcu for Spaces {
    fn rcu_read<R>(&self, f: impl FnOnce() -> R) -> R {
        // Whoever waits for readers waits for an answer to an interrupt.
        let flags = regs::irq_save();
        let result = f();
        regs::irq_restore(flags);
        result
    }
}

impl Kernel for Spaces {
    type Tables = Tables;

    fn tables<R>(&self, mm: &Mm, f: impl FnOnce(&mut Tables) -> R) -> R {
        let _held = objects::of_mm(mm).page_table_lock.lock();
        f(&mut Tables)
    }

    fn count_fault(&self, major: bool) {
        self.count_vm_events(VmEvent::Pgfault, 1);
        self.count_vm_events(VmEvent::Pgmajfault, u64::from(major));
    }

    fn owner_pid(&self, mm: &Mm) -> u32 {
        owner(mm)
    }

    fn flush_tlb(&self, mm: &Mm, range: FlushRange) {
        if LOSE_FLUSHES.load(Ordering::Relaxed) {
            return;
        }
        tlb::flush(mm, &range);
    }

    fn flush_tlb_and_tables(&self, mm: &Mm, range: FlushRange) {
        if LOSE_FLUSHES.load(Ordering::Relaxed) {
            return;
        }
        tlb::flush_with_tables(mm, &range);
    }

    type Unflushed = tlb::Unflushed;

    fn defer_flush(&self, mm: &Mm, _: VirtAddr, unflushed: &mut tlb::Unflushed) {
        if !LOSE_FLUSHES.load(Ordering::Relaxed) {
            tlb::defer(mm, unflushed);
        }
    }

    #[inline]
    fn flush_deferred(&self, mm: &Mm) {
        tlb::flush_deferred(mm);
    }

    fn mmap_read_lock(&self, mm: &Mm) {
        let lock = &objects::of_mm(mm).mmap_lock;
        self.wait_until(|| {
            let now = lock.load(Ordering::Relaxed);
            // Readers hold back where a writer waits, or there might always be one.
            (0..WRITER_WAITS).contains(&now)
                && lock.compare_exchange(now, now + 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
        });
    }

    fn mmap_read_trylock(&self, mm: &Mm) -> bool {
        let lock = &objects::of_mm(mm).mmap_lock;
        let free = |now: i32| (0..WRITER_WAITS).contains(&now).then(|| now + 1);
        lock.fetch_update(Ordering::Acquire, Ordering::Relaxed, free).is_ok()
    }

    fn wait_for_memory(&self) -> bool {
        oom::wait_for_page()
    }

    fn mmap_read_unlock(&self, mm: &Mm) {
        objects::of_mm(mm).mmap_lock.fetch_sub(1, Ordering::Release);
    }

    fn mmap_write_lock(&self, mm: &Mm) {
        let lock = &objects::of_mm(mm).mmap_lock;
        self.wait_until(|| {
            let now = lock.load(Ordering::Relaxed);
            let free = now == 0 || now == WRITER_WAITS;
            let wanted = if free { -1 } else { now | WRITER_WAITS };
            // While another writer has it there is nobody to hold back.
            (now >= 0 && lock.compare_exchange(now, wanted, Ordering::Acquire, Ordering::Relaxed).is_ok())
                && free
        });
    }

    fn mmap_write_unlock(&self, mm: &Mm) {
        objects::of_mm(mm).mmap_lock.store(0, Ordering::Release);
    }

    fn rmap_lock<R>(&self, f: impl FnOnce() -> R) -> R {
        let _held = RMAP.lock();
        f()
    }

    #[inline]
    fn vma_hint(&self) -> Option<Id<mm_vma::Vma>> {
        percpu::current().and_then(|percpu| Id::new(percpu.vma_hint.load(Ordering::Relaxed)))
    }

    #[inline]
    fn set_vma_hint(&self, id: Id<mm_vma::Vma>) {
        if let Some(percpu) = percpu::current() {
            percpu.vma_hint.store(id.as_u64(), Ordering::Relaxed);
        }
    }

    fn relax(&self) {
        match sched::might_sleep() {
            Some(token) => sched::yield_now(&token),
            None => {
                // The holder may wait for every CPU's flush, and this one does not take interrupts.
                smp::answer_flush();
                core::hint::spin_loop();
            }
        }
    }

    fn zero_page(&self) -> Option<Pfn> {
        Some(ZERO_PFN.load(Ordering::Relaxed)).filter(|&pfn| pfn != 0).map(Pfn::new)
    }

    fn copy_page(&self, to: Pfn, from: Pfn) {
        kmap::copy_highpage(to, from);
    }

    fn reclaim_pages(&self, pages: &[Pfn]) {
        swap::reclaim_pages(pages);
    }

    fn migrate_pages(&self, pages: &[Pfn], to: MoveTo) -> u64 {
        migrate::migrate_pages(pages, to)
    }

    fn vm_enough_memory(&self, mm: &Mm, pages: u64) -> bool {
        promises::promise(Some(mm), pages)
    }

    fn vm_acct_memory(&self, pages: u64) {
        promises::acct(pages);
    }

    fn vm_unacct_memory(&self, pages: u64) {
        promises::unacct(pages);
    }

    fn honours_noreserve(&self) -> bool {
        promises::overcommits()
    }

    fn shmem_zero_setup(&self, bytes: u64, flags: VmFlags) -> Result<Id<Mapping>, Errno> {
        match flags.contains(VmFlags::NORESERVE) {
            true => cache::new_mapping(Source::Anonymous, bytes),
            false => cache::new_accounted(Source::Anonymous, bytes),
        }
    }

    fn mapping_get(&self, mapping: Id<Mapping>) {
        cache::get(mapping);
    }

    fn mapping_put(&self, mapping: Id<Mapping>) {
        cache::put(mapping);
    }

    fn mapping_page(&self, mapping: Id<Mapping>, at: PolicyAt) -> Result<MappedPage, MappedError> {
        cache::fault(mapping, at)
    }

    fn mapping_ready_page(&self, mapping: Id<Mapping>, index: u64) -> Option<Pfn> {
        cache::ready_page(mapping, index)
    }

    fn mapping_wants_writenotify(&self, mapping: Id<Mapping>) -> bool {
        cache::source(mapping).is_written_back()
    }

    fn page_mkwrite(&self, mapping: Id<Mapping>, pfn: Pfn) -> Result<(), MappedError> {
        disk_file::page_mkwrite(mapping, pfn)
    }

    fn page_dirtied(&self, pfn: Pfn, page: &Page) {
        cache::page_dirtied(pfn, page);
    }

    fn mapping_has_page(&self, mapping: Id<Mapping>, pgoff: u64) -> bool {
        mm_filemap::has_page(self, mapping, pgoff)
    }

    fn mapping_punch_hole(&self, mapping: Id<Mapping>, offset: u64, len: u64) -> Result<(), Errno> {
        cache::fallocate(mapping, FallocFlags::PUNCH_HOLE | FallocFlags::KEEP_SIZE, offset, len)
    }
}

/// Where an address of a process is, if it is mapped, and ring 3 may use it so. It may be elsewhere by now, and nothing says that
/// somebody looked.
pub fn translate(mm: &Mm, va: u64, write: bool) -> Option<PhysAddr> {
    Spaces.tables(mm, |tables| {
        let found = mm.page_table().translate(tables, VirtAddr::new(va))?;
        (found.effective.user && (found.effective.write || !write)).then_some(found.phys)
    })
}
