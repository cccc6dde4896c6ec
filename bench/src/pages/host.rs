//! memvisor's page allocator on simulated RAM: the code that runs in the guest, with descriptors in a mapping of the
//! host and one slot of CPU-local data a thread.

use std::cell::{Cell, UnsafeCell};
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

use memvisor_abi::{
    CpuEvents, EventId, MAX_NR_ZONES, PAGES_PER_SECTION, PerCpuPages, VmSysctl, Zonelist, ZonelistOrder,
};
use mm_core::{
    CpuLocal, Gfp, MaySleep, MemMap, Order, Page, PageKind, Pageblock, Pfn, Section, Trace, ZoneKind,
};
use mm_page_alloc::{
    Context, CpuPages, Machine, NoReclaim, PageAllocator, Zone, ZoneGlance, build_zonelist, init_range,
    set_high_and_batch, watermark, zone_batchsize, zone_highsize,
};

use super::Frames;
use super::memory::Reserved;

/// Slots for CPUs.
pub const CPUS: usize = 2;
const NORMAL: usize = ZoneKind::Normal as usize;
/// The first frame of ZONE_NORMAL on x86-64.
const BASE: u64 = 1 << 20;

thread_local! {
    static CPU: Cell<usize> = const { Cell::new(0) };
}

/// Says which CPU the calling thread stands for; one thread a CPU.
pub fn run_on(cpu: usize) {
    CPU.set(cpu);
}

/// Descriptors and pageblocks; events go to `T`.
pub struct Map<T> {
    trace: T,
    pages: Reserved,
    frames: usize,
    sections: Vec<Section>,
}

impl<T: Trace> Trace for Map<T> {
    #[inline(always)]
    fn wants(&self, id: EventId) -> bool {
        self.trace.wants(id)
    }

    #[inline(always)]
    fn is_tracing(&self) -> bool {
        self.trace.is_tracing()
    }
}

/// A machine without tracepoints.
#[derive(Default)]
pub struct Untraced;

impl Trace for Untraced {}

impl<T: Trace> MemMap for Map<T> {
    #[inline]
    fn page(&self, pfn: Pfn) -> Option<&Page> {
        self.pages(pfn).first()
    }

    #[inline]
    fn pages(&self, pfn: Pfn) -> &[Page] {
        let first = usize::try_from(pfn.as_u64().wrapping_sub(BASE)).unwrap_or(usize::MAX);
        // SAFETY: the mapping holds `frames` descriptors, which are zero until they are initialised, and any bytes are
        // a descriptor's atomics.
        let all = unsafe { std::slice::from_raw_parts(self.pages.address().cast::<Page>(), self.frames) };
        all.get(first..).unwrap_or(&[])
    }

    #[inline]
    fn pageblock(&self, pfn: Pfn) -> Option<&Pageblock> {
        let frame = pfn.as_u64().wrapping_sub(BASE);
        let section = usize::try_from(frame / PAGES_PER_SECTION).ok()?;
        Some(self.sections.get(section)?.pageblock(pfn))
    }
}

/// A ticket lock, as the guest's.
struct Lock<T> {
    next: AtomicU32,
    serving: AtomicU32,
    data: UnsafeCell<T>,
}

// SAFETY: the ticket gives one thread at a time access.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    fn new(data: T) -> Lock<T> {
        Lock { next: AtomicU32::new(0), serving: AtomicU32::new(0), data: UnsafeCell::new(data) }
    }

    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        while self.serving.load(Ordering::Acquire) != ticket {
            std::hint::spin_loop();
        }
        // SAFETY: the ticket is held.
        let result = f(unsafe { &mut *self.data.get() });
        self.serving.store(ticket.wrapping_add(1), Ordering::Release);
        result
    }
}

#[repr(align(128))]
struct Slot(UnsafeCell<CpuPages>);

/// CPU-local data.
pub struct Slots([Slot; CPUS]);

// SAFETY: `run_on` gives each thread a slot of its own, and `for_each` is called while one thread runs.
unsafe impl Sync for Slots {}

impl CpuLocal<CpuPages> for Slots {
    #[inline(always)]
    fn with<R>(&self, f: impl FnOnce(u32, &mut CpuPages) -> R) -> R {
        let cpu = CPU.get();
        // SAFETY: as for `Sync`; the allocator does not enter twice.
        f(cpu as u32, unsafe { &mut *self.0[cpu].0.get() })
    }

    fn for_each(&self, mut f: impl FnMut(u32, &mut CpuPages)) {
        for (cpu, slot) in (0..).zip(&self.0) {
            // SAFETY: as for `Sync`.
            f(cpu, unsafe { &mut *slot.0.get() });
        }
    }
}

/// The CPU that the calling thread stands for.
pub fn current() -> usize {
    CPU.get()
}

/// The machine: one node, one populated zone.
pub struct Host<T> {
    map: Map<T>,
    zones: Vec<Lock<Zone>>,
    glances: Vec<ZoneGlance>,
    zonelists: Vec<Zonelist>,
    slots: Slots,
    online: Lock<usize>,
}

impl<T: Trace + Default> Host<T> {
    fn new(frames: u64) -> Host<T> {
        let sections = frames.div_ceil(PAGES_PER_SECTION);
        let bytes = frames as usize * size_of::<Page>();
        let map = Map {
            trace: T::default(),
            pages: Reserved::for_tables(bytes),
            frames: frames as usize,
            sections: (0..sections).map(|number| Section::deferred(number, 0)).collect(),
        };
        let mut zones: Vec<Zone> = ZoneKind::ALL.into_iter().map(|kind| Zone::new(0, kind)).collect();
        let normal = &mut zones[NORMAL];
        normal.set_extent(Pfn::new(BASE), frames, frames);
        normal.add_managed(frames);
        normal.info_mut().deferred_pages = frames;
        let mut tuning = VmSysctl::DEFAULT;
        watermark::calculate_min_free_kbytes(&zones, &mut tuning);
        watermark::setup_per_zone_lowmem_reserve(&mut zones, tuning.lowmem_reserve_ratio);
        watermark::setup_per_zone_wmarks(&mut zones, &tuning);
        let low = zones[NORMAL].info().watermark[1];
        let batch = zone_batchsize(frames);
        let high = zone_highsize(frames, low, batch, CPUS as u32, 0);
        let slot = |_| {
            let pcps: &'static mut [PerCpuPages] = Box::leak(Box::new([PerCpuPages::EMPTY; MAX_NR_ZONES]));
            set_high_and_batch(&mut pcps[NORMAL], high, batch);
            Slot(UnsafeCell::new(CpuPages { pcps, events: Box::leak(Box::new(CpuEvents::ZERO)) }))
        };
        let mut zonelist = Zonelist::EMPTY;
        build_zonelist(&mut zonelist, 0, &[0], ZonelistOrder::Node, |zone| zone == NORMAL);
        let glances: Vec<ZoneGlance> = (0..MAX_NR_ZONES).map(|_| ZoneGlance::new()).collect();
        for (zone, glance) in zones.iter().zip(&glances) {
            glance.refresh(zone);
        }
        Host {
            map,
            zones: zones.into_iter().map(Lock::new).collect(),
            glances,
            zonelists: vec![zonelist],
            slots: Slots(std::array::from_fn(slot)),
            online: Lock::new(0),
        }
    }

    fn bring_online(&self) -> bool {
        self.online.with(|online| {
            let Some(section) = self.map.sections.get(*online) else { return false };
            let start = Pfn::new(BASE).offset(*online as u64 * PAGES_PER_SECTION);
            let pages = PAGES_PER_SECTION.min(self.map.frames as u64 - *online as u64 * PAGES_PER_SECTION);
            let end = start.offset(pages);
            init_range(&self.map, start, end, 0, ZoneKind::Normal, PageKind::Tail);
            section.set_online();
            self.zones[NORMAL].with(|zone| {
                zone.free_range(&self.map, start, end).expect("fresh frames");
                zone.info_mut().deferred_pages -= pages;
                self.glances[NORMAL].refresh(zone);
            });
            *online += 1;
            true
        })
    }
}

impl<T: Trace + Default> Machine for Host<T> {
    type Map = Map<T>;
    type Local = Slots;
    type Reclaim = NoReclaim;

    #[inline]
    fn map(&self) -> &Map<T> {
        &self.map
    }

    #[inline]
    fn local(&self) -> &Self::Local {
        &self.slots
    }

    fn reclaim(&self) -> &NoReclaim {
        &NoReclaim
    }

    #[inline]
    fn glances(&self) -> &[ZoneGlance] {
        &self.glances
    }

    #[inline]
    fn with_zone<R>(&self, index: usize, f: impl FnOnce(&mut Zone) -> R) -> R {
        self.zones[index].with(f)
    }

    #[inline]
    fn zonelists(&self) -> &[Zonelist] {
        &self.zonelists
    }

    #[inline]
    fn local_node(&self) -> u32 {
        0
    }

    fn nr_online_nodes(&self) -> usize {
        1
    }

    fn zero_frames(&self, _: Pfn, _: u64) {}

    fn grow(&self, zone: usize) -> bool {
        zone == NORMAL && self.bring_online()
    }

    fn may_report(&self) -> bool {
        false
    }

    fn report(&self, line: fmt::Arguments<'_>) {
        eprintln!("{line}");
    }
}

/// memvisor as a contestant.
pub struct Ours<T = Untraced> {
    allocator: PageAllocator<Host<T>>,
}

impl<T: Trace + Default> Ours<T> {
    /// Where events go.
    pub fn trace(&self) -> &T {
        &self.allocator.machine().map.trace
    }

    fn allocate(&self, gfp: Gfp, order: u8) -> Option<usize> {
        let token = MaySleep::checked_by_scheduler();
        let order = Order::new(order)?;
        let pfn = self.allocator.alloc_pages(Context::task(&token), gfp, order, None)?;
        usize::try_from(pfn.as_u64() - BASE).ok()
    }
}

impl<T: Trace + Default + Sync> Frames for Ours<T> {
    fn start(frames: u64) -> Ours<T> {
        Ours { allocator: PageAllocator::new(Host::new(frames)) }
    }

    fn bring_all_online(&self) {
        while self.allocator.machine().bring_online() {}
    }

    #[inline]
    fn alloc(&self, order: u8) -> Option<usize> {
        self.allocate(Gfp::KERNEL, order)
    }

    #[inline]
    fn free(&self, frame: usize, order: u8) {
        let pfn = Pfn::new(BASE + frame as u64);
        let order = Order::new(order).unwrap_or(Order::ZERO);
        self.allocator.free_pages(pfn, order).expect("a block that was allocated");
    }

    fn free_huge_blocks(&self) -> usize {
        self.allocator.drain_all_pages();
        // The reserve is free memory, too; peers keep none.
        std::iter::from_fn(|| self.allocate(Gfp::KERNEL | Gfp::MEMALLOC | Gfp::NOWARN, 9)).count()
    }
}
