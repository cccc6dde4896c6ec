//! Where each CPU's page lists, its events and the zonelists are: tables of the boot allocator, published as they are.

use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use memvisor_abi::{CpuEvents, MAX_NR_ZONES, NR_VM_EVENTS, PerCpuPages, TableRef, Zonelist};
use mm_core::{CpuLocal, PageKind, PhysAddr};
use mm_page_alloc::CpuPages;

use crate::mm::cpu_local::PerCpuTable;
use crate::mm::{early, phys};
use crate::topology;

/// An array that is allocated once and lives for ever.
struct Table<T> {
    first: AtomicPtr<T>,
    count: AtomicUsize,
    gpa: AtomicU64,
}

impl<T: Copy + 'static> Table<T> {
    const fn new() -> Table<T> {
        Table {
            first: AtomicPtr::new(core::ptr::null_mut()),
            count: AtomicUsize::new(0),
            gpa: AtomicU64::new(0),
        }
    }

    /// Allocates `count` elements; memblock still allocates.
    fn allocate(&self, count: usize, value: T) -> &'static mut [T] {
        let bytes = (count * size_of::<T>()) as u64;
        let frames = early::alloc(early::pages_for(bytes), 1, None, PageKind::Reserved)
            .expect("no memory for the page allocator's tables");
        // SAFETY: allocated just now, page-aligned, with room for `count` elements, and given up here.
        let array = unsafe { phys::leak_array(frames.phys(), count, value) };
        self.gpa.store(frames.phys().as_u64(), Ordering::Relaxed);
        self.count.store(count, Ordering::Relaxed);
        array
    }

    fn publish(&self, array: &'static mut [T]) {
        self.first.store(array.as_mut_ptr(), Ordering::Release);
    }

    fn reference(&self) -> TableRef {
        TableRef {
            gpa: self.gpa.load(Ordering::Relaxed),
            count: u32::try_from(self.count.load(Ordering::Relaxed)).unwrap_or(0),
            stride: u32::try_from(size_of::<T>()).unwrap_or(0),
        }
    }
}

static PCPS: Table<PerCpuPages> = Table::new();
static EVENTS: Table<CpuEvents> = Table::new();
static ZONELISTS: Table<Zonelist> = Table::new();
static SLOTS: PerCpuTable<Slot> = PerCpuTable::new();

/// One CPU's part of the tables. All zero until it is filled in.
#[derive(Debug)]
pub struct Slot {
    pcps: *mut PerCpuPages,
    zones: usize,
    events: *mut CpuEvents,
}

// SAFETY: the pointers are to arrays that live for ever, and the slot's CPU is the only one that follows them.
unsafe impl Send for Slot {}

/// Allocates the tables for all CPUs and nodes, and has `fill` build the zonelists.
pub fn init(nodes: usize, fill: impl FnOnce(&mut [Zonelist])) {
    let cpus = topology::CPUS.lock().count;
    let zones = nodes * MAX_NR_ZONES;
    let pcps = PCPS.allocate(cpus * zones, PerCpuPages::EMPTY);
    let events = EVENTS.allocate(cpus, CpuEvents::ZERO);
    let parts = pcps.chunks_exact_mut(zones).zip(events.iter_mut());
    for (cpu, (pcps, events)) in parts.enumerate() {
        let frame = early::alloc(1, 1, None, PageKind::Reserved).expect("no memory for per-CPU data");
        // SAFETY: allocated just now, one frame, which is more than a `Slot`; a `Slot` of zeroes has nothing.
        unsafe { SLOTS.install(cpu, frame.phys()) };
        let slot = phys::object_at::<Slot>(frame.phys());
        // SAFETY: just installed, and the CPU does not allocate before `init` is through.
        unsafe { slot.write(Slot { pcps: pcps.as_mut_ptr(), zones, events }) };
    }
    let zonelists = ZONELISTS.allocate(nodes, Zonelist::EMPTY);
    fill(zonelists);
    ZONELISTS.publish(zonelists);
}

/// The order of zones, by node.
pub fn zonelists() -> &'static [Zonelist] {
    let first = ZONELISTS.first.load(Ordering::Acquire);
    if first.is_null() {
        return &[];
    }
    // SAFETY: `init` published an array of that length, which is not written again.
    unsafe { core::slice::from_raw_parts(first, ZONELISTS.count.load(Ordering::Relaxed)) }
}

/// Calls `f` with a node's list as if it could be changed. For seeded faults, while nobody allocates.
pub fn with_zonelist<R>(node: usize, f: impl FnOnce(&mut Zonelist) -> R) -> R {
    let first = ZONELISTS.first.load(Ordering::Acquire);
    assert!(node < ZONELISTS.count.load(Ordering::Relaxed), "node {node} has no list");
    // SAFETY: inside the published array.
    let list = unsafe { first.add(node) };
    // SAFETY: as above; no reference to the list is alive, because nobody allocates.
    f(unsafe { &mut *list })
}

/// The tables for the root descriptor: lists, zonelists, events.
pub fn tables() -> [TableRef; 3] {
    [PCPS.reference(), ZONELISTS.reference(), EVENTS.reference()]
}

/// Calls `f` for every CPU's lists of a zone, before the other CPUs run.
pub fn for_each_at_boot(zone: usize, mut f: impl FnMut(&mut PerCpuPages)) {
    for cpu in 0..EVENTS.count.load(Ordering::Relaxed) {
        let slot = phys::object_at::<Slot>(PhysAddr::new(SLOTS.gpas[cpu].load(Ordering::Relaxed)));
        // SAFETY: `init` filled the slot in, and no other CPU runs yet.
        let pages = unsafe { &mut *slot }.pages();
        if let Some(pcp) = pages.pcps.get_mut(zone) {
            f(pcp);
        }
    }
}

/// Pages of a zone on the lists of all CPUs, as they stand at some moment (Linux: `free_pcp` of the reports).
pub fn free_pcp(zone: usize) -> u64 {
    const WORDS: usize = size_of::<PerCpuPages>() / 8;
    const AT: usize = core::mem::offset_of!(PerCpuPages, count);
    let sets = PCPS.count.load(Ordering::Relaxed);
    let words = phys::words(PhysAddr::new(PCPS.gpa.load(Ordering::Relaxed)), (sets * WORDS) as u64);
    let zones = sets / EVENTS.count.load(Ordering::Relaxed).max(1);
    let mut pages = 0;
    for set in words.chunks_exact(WORDS).skip(zone).step_by(zones.max(1)) {
        // A word has two fields, the lower first.
        let word = set.get(AT / 8).map_or(0, |word| word.load(Ordering::Relaxed));
        pages += word >> (AT % 8 * 8) & 0xffff_ffff;
    }
    pages
}

/// Of them, those of this CPU (Linux: `local_pcp`).
pub fn local_pcp(zone: usize) -> u64 {
    Local.with(|_, cpu| cpu.pcps.get(zone).map_or(0, |pcp| u64::from(pcp.count)))
}

/// Events summed over CPUs; those that count meanwhile may be missed.
pub fn sum_events() -> [u64; NR_VM_EVENTS] {
    let words = phys::words(
        PhysAddr::new(EVENTS.gpa.load(Ordering::Relaxed)),
        (EVENTS.count.load(Ordering::Relaxed) * NR_VM_EVENTS) as u64,
    );
    let mut sums = [0; NR_VM_EVENTS];
    for (index, word) in words.iter().enumerate() {
        sums[index % NR_VM_EVENTS] += word.load(Ordering::Relaxed);
    }
    sums
}

/// CPU-local page lists.
#[derive(Clone, Copy, Debug)]
pub struct Local;

impl Slot {
    fn pages(&mut self) -> CpuPages {
        // SAFETY: `init` stored the CPU's part of an array that lives for ever; the slot is borrowed, so that nobody
        // else makes a second reference meanwhile.
        let pcps = unsafe { core::slice::from_raw_parts_mut(self.pcps, self.zones) };
        // SAFETY: as above.
        let events = unsafe { &mut *self.events };
        CpuPages { pcps, events }
    }
}

impl CpuLocal<CpuPages> for Local {
    #[inline(always)]
    fn with<R>(&self, f: impl FnOnce(u32, &mut CpuPages) -> R) -> R {
        SLOTS.with(|cpu, slot| f(cpu, &mut slot.pages()))
    }

    fn for_each(&self, mut f: impl FnMut(u32, &mut CpuPages)) {
        SLOTS.for_each(|cpu, slot| f(cpu, &mut slot.pages()));
    }
}
