//! Windows onto single frames (Linux: mm/highmem.c): for frames of ZONE_HIGHMEM, which the direct map does not reach.
//!
//! kmap gives a mapping that every CPU sees and that lasts until kunmap; it waits when all slots are in use. kmap_local and
//! kmap_atomic take a slot of this CPU, in the order of a stack, and never wait. A task that holds a kmap_local stays on its
//! CPU; when it is switched out, its slots are emptied, and filled again before it goes on.

use core::panic::Location;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guest_firmware::acpi::MAX_CPUS;
use memvisor_abi::{KmapKind, KmapWindow, LAST_PKMAP, PFN_NONE, VmFlags};
use mm_core::{Event, MaySleep, PAGE_SIZE, Pfn, PhysAddr, Trace, VirtAddr};
use mm_pgtable::{Entry, FlushRange, Prot, TableMem, layout};
use mm_vmalloc::{KmapError, LocalStack, Pkmap, PkmapHit};

use crate::arch::percpu::{self, KMAP_PAGE, PerCpu};
use crate::arch::regs;
use crate::mm::layout::{levels, percpu_area, percpu_contains};
use crate::mm::memmap::Vmemmap;
use crate::mm::paging::{self, Tables};
use crate::mm::vmalloc::vm;
use crate::mm::{fixmap, limits, phys};
use crate::sched::{self, WaitQueue};
use crate::sync::Lock;
use crate::{pr_warn, topology};

/// The blocking window's slots.
pub static PKMAP: Lock<Pkmap> = Lock::new(Pkmap::new());
/// Address of its slot 0, and the table that holds its entries.
static PKMAP_BASE: AtomicU64 = AtomicU64::new(0);
static PKMAP_TABLE: AtomicU64 = AtomicU64::new(0);
/// Woken when a slot loses its last user (Linux: `pkmap_map_wait`).
static PKMAP_WAIT: WaitQueue = WaitQueue::new();
static PKMAP_WAITERS: AtomicU32 = AtomicU32::new(0);

/// Tables with the entries of every CPU's kmap_local slots.
static LOCAL_TABLES: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

const NO_WINDOW: KmapWindow = KmapWindow { va: 0, slots_gpa: 0, count: 0, cpu: 0, kind: 0, reserved: 0 };
/// What is published: pkmap, fixmap, then the windows of the CPUs.
pub static WINDOWS: Lock<[KmapWindow; 2 + MAX_CPUS]> = Lock::new([NO_WINDOW; 2 + MAX_CPUS]);

/// Makes the windows. Their page tables stay for ever, so that an entry is one store.
pub fn init() {
    let size = LAST_PKMAP as u64 * PAGE_SIZE;
    // Aligned to its size, so that its entries are one whole table.
    let area = vm().reserve(size, size, VmFlags::MAP | VmFlags::PKMAP);
    let base = area.expect("the vmalloc space is empty").start;
    let (table, first) = paging::pte_of(base);
    assert!(first == 0, "the window of kmap begins in the middle of a table");
    PKMAP_BASE.store(base.as_u64(), Ordering::Relaxed);
    PKMAP_TABLE.store(table.as_u64(), Ordering::Relaxed);
    fixmap::init();
    let mut windows = WINDOWS.lock();
    let slots = PKMAP.lock().slots().as_ptr() as u64;
    windows[0] = window(KmapKind::Pkmap, base.as_u64(), phys::of_image(slots).as_u64(), LAST_PKMAP, u32::MAX);
    let slots = phys::of_image(fixmap::SLOTS.as_ptr() as u64).as_u64();
    let fixed = layout::FIXADDR_START.as_u64();
    windows[1] = window(KmapKind::Fixmap, fixed, slots, fixmap::Fixed::ALL.len(), u32::MAX);
    for cpu in 0..nr_cpus() {
        let base = percpu_area(cpu).as_u64();
        let va = base + KMAP_PAGE * PAGE_SIZE;
        let (table, _) = paging::pte_of(VirtAddr::new(va));
        LOCAL_TABLES[cpu as usize].store(table.as_u64(), Ordering::Relaxed);
        let kmaps = &percpu::of(cpu).kmaps;
        let area = topology::CPUS.lock().table[cpu as usize].percpu_gpa;
        // The slots are in the area's first frame.
        let gpa = area + (kmaps.as_ptr() as u64 - base);
        windows[2 + cpu as usize] = window(KmapKind::Local, va, gpa, kmaps.len(), cpu);
    }
}

fn window(kind: KmapKind, va: u64, slots_gpa: u64, count: usize, cpu: u32) -> KmapWindow {
    KmapWindow {
        va,
        slots_gpa,
        count: u32::try_from(count).unwrap_or(0),
        cpu,
        kind: kind as u32,
        reserved: 0,
    }
}

fn nr_cpus() -> u32 {
    u32::try_from(topology::CPUS.lock().count).unwrap_or(0)
}

/// Windows that are published.
pub fn nr_windows() -> usize {
    2 + nr_cpus() as usize
}

/// Whether the direct map does not reach a frame (Linux: `PageHighMem`).
pub fn is_highmem(pfn: Pfn) -> bool {
    // HIGHMEM, or MOVABLE where that is taken from it.
    pfn >= limits::lowmem_end()
}

/// Where a frame is mapped, without mapping it (Linux: `page_address`).
pub fn page_address(pfn: Pfn) -> Option<VirtAddr> {
    if !is_highmem(pfn) {
        return layout::phys_to_virt(levels(), pfn.phys());
    }
    PKMAP.lock().find(pfn).map(pkmap_va)
}

fn pkmap_va(slot: usize) -> VirtAddr {
    VirtAddr::new(PKMAP_BASE.load(Ordering::Relaxed) + slot as u64 * PAGE_SIZE)
}

fn set_pkmap_entry(slot: usize, entry: Entry) {
    Tables.write(Pfn::new(PKMAP_TABLE.load(Ordering::Relaxed)), slot, entry.as_u64());
}

/// Maps a frame until [`kunmap`]; the direct map does for all but highmem (Linux: `kmap`).
///
/// # Errors
/// As [`kmap_high`].
#[track_caller]
pub fn kmap(pfn: Pfn, context: &MaySleep<'_>) -> Result<VirtAddr, KmapError> {
    if is_highmem(pfn) {
        return kmap_high(pfn, context);
    }
    layout::phys_to_virt(levels(), pfn.phys()).ok_or(KmapError::NotMapped)
}

/// Maps a frame in the blocking window, whatever zone it is of; sleeps while every slot is in use (Linux: `kmap_high`).
///
/// # Errors
/// [`KmapError::Full`] if every slot is in use and every other task waits for one as well, so that nobody can free one;
/// Linux would sleep for ever. [`KmapError::TooManyUsers`]. Both are reported with the caller.
#[track_caller]
pub fn kmap_high(pfn: Pfn, context: &MaySleep<'_>) -> Result<VirtAddr, KmapError> {
    let caller = Location::caller();
    let mut waited = false;
    loop {
        let outcome = map_high(pfn);
        match outcome {
            Ok(va) => {
                Vmemmap.emit(Event::Kmap { pfn, addr: va.as_u64(), waited });
                return Ok(va);
            }
            Err(KmapError::Full) if PKMAP_WAITERS.load(Ordering::Acquire) + 1 < sched::nr_live() => {
                PKMAP_WAITERS.fetch_add(1, Ordering::AcqRel);
                waited = true;
                // A slot that is free, or being the last one who could free one, ends the wait.
                PKMAP_WAIT.wait_event_midway(context, || {
                    let window = PKMAP.lock();
                    let free = window.slots().iter().any(|slot| slot.count < 2);
                    free || PKMAP_WAITERS.load(Ordering::Acquire) >= sched::nr_live()
                });
                PKMAP_WAITERS.fetch_sub(1, Ordering::AcqRel);
            }
            Err(error) => {
                pr_warn!(
                    "WARNING: kmap of {pfn}: {error}, and nobody is left to free one; called from {caller}"
                );
                return Err(error);
            }
        }
    }
}

fn map_high(pfn: Pfn) -> Result<VirtAddr, KmapError> {
    let mut window = PKMAP.lock();
    let hit = window.kmap(pfn, |slots| {
        for &slot in slots {
            set_pkmap_entry(slot, Entry::EMPTY);
        }
        paging::flush_all_cpus(FlushRange::All { global: true });
    })?;
    Ok(match hit {
        PkmapHit::Mapped(slot) => pkmap_va(slot),
        PkmapHit::New(slot) => {
            set_pkmap_entry(slot, Entry::leaf(1, pfn.phys(), Prot::KERNEL_RW.flags()));
            pkmap_va(slot)
        }
    })
}

/// Ends a [`kmap`] (Linux: `kunmap`). Of a frame that is not mapped: reported with the caller; nothing changes.
#[track_caller]
pub fn kunmap(pfn: Pfn) -> bool {
    if is_highmem(pfn) { kunmap_high(pfn) } else { true }
}

/// Ends a [`kmap_high`]; the mapping itself stays until the window is full (Linux: `kunmap_high`).
#[track_caller]
pub fn kunmap_high(pfn: Pfn) -> bool {
    Vmemmap.emit(Event::Kunmap { pfn });
    let outcome = PKMAP.lock().kunmap(pfn);
    match outcome {
        Ok(true) => PKMAP_WAIT.wake_up_all(),
        Ok(false) => {}
        Err(error) => pr_warn!("WARNING: kunmap of {pfn}: {error}, called from {}", Location::caller()),
    }
    outcome.is_ok()
}

/// Unmaps every slot of the blocking window that has no user (Linux: `kmap_flush_unused`).
pub fn kmap_flush_unused() {
    PKMAP.lock().flush_unused(|slots| {
        for &slot in slots {
            set_pkmap_entry(slot, Entry::EMPTY);
        }
        paging::flush_all_cpus(FlushRange::All { global: true });
    });
}

fn local_va(percpu: &PerCpu, slot: usize) -> u64 {
    (&raw const *percpu as u64) + (KMAP_PAGE + slot as u64) * PAGE_SIZE
}

/// Writes the entry of this CPU's slot, and drops what was cached of it.
fn set_local(percpu: &PerCpu, slot: usize, frame: Option<Pfn>) {
    let cpu = percpu.cpu.load(Ordering::Relaxed) as usize;
    let table = Pfn::new(LOCAL_TABLES[cpu].load(Ordering::Relaxed));
    let va = local_va(percpu, slot);
    // Bits 12 to 20 of an address select the entry of a level-1 table.
    let index = (va >> 12 & 0x1ff) as usize;
    let entry = frame.map_or(Entry::EMPTY, |frame| Entry::leaf(1, frame.phys(), Prot::KERNEL_RW.flags()));
    Tables.write(table, index, entry.as_u64());
    percpu.kmaps[slot].pfn.store(frame.map_or(PFN_NONE, Pfn::as_u64), Ordering::Relaxed);
    percpu.kmaps[slot].count.store(u32::from(frame.is_some()), Ordering::Relaxed);
    if frame.is_none() {
        regs::invlpg(va);
    }
}

/// Maps any frame on this CPU, for a short time (Linux: `kmap_local_pfn`). Also for interrupts.
///
/// # Errors
/// [`KmapError::Full`] with all [`memvisor_abi::KM_MAX_IDX`] slots in use, where Linux has a BUG. Reported with the caller.
#[track_caller]
pub fn kmap_local(pfn: Pfn) -> Result<VirtAddr, KmapError> {
    let outcome = sched::with_local_maps(|percpu, maps| {
        let slot = maps.push(pfn)?;
        set_local(percpu, slot, Some(pfn));
        let addr = VirtAddr::new(local_va(percpu, slot));
        Vmemmap.emit(Event::KmapLocal {
            pfn,
            addr: addr.as_u64(),
            index: u8::try_from(slot).unwrap_or(u8::MAX),
        });
        Ok(addr)
    });
    if let Err(error) = outcome {
        pr_warn!("WARNING: kmap_local of {pfn}: {error}, called from {}", Location::caller());
    }
    outcome
}

/// Ends the [`kmap_local`] that was made last (Linux: `kunmap_local`). Anything else is reported with the caller; nothing
/// changes.
#[track_caller]
pub fn kunmap_local(va: VirtAddr) -> bool {
    let outcome = sched::with_local_maps(|percpu, maps| {
        let offset = va.as_u64().wrapping_sub(local_va(percpu, 0));
        let slot = usize::try_from(offset / PAGE_SIZE).map_err(|_| KmapError::NotMapped)?;
        if !percpu_contains(va.as_u64()) {
            return Err(KmapError::NotMapped);
        }
        maps.pop(slot)?;
        Vmemmap.emit(Event::KunmapLocal { addr: va.as_u64(), index: u8::try_from(slot).unwrap_or(u8::MAX) });
        set_local(percpu, slot, None);
        Ok(())
    });
    if let Err(error) = outcome {
        pr_warn!("WARNING: kunmap_local of {va}: {error}, called from {}", Location::caller());
    }
    outcome.is_ok()
}

/// [`kmap_local`] in a section that does not sleep (Linux: `kmap_atomic`).
///
/// # Errors
/// As [`kmap_local`].
#[track_caller]
pub fn kmap_atomic(pfn: Pfn) -> Result<VirtAddr, KmapError> {
    preempt(1);
    kmap_local(pfn).inspect_err(|_| preempt(u32::MAX))
}

/// Ends a [`kmap_atomic`].
#[track_caller]
pub fn kunmap_atomic(va: VirtAddr) -> bool {
    let ended = kunmap_local(va);
    if ended {
        preempt(u32::MAX);
    }
    ended
}

/// Adds to the count of sections that do not sleep; `u32::MAX` takes one away.
fn preempt(by: u32) {
    if let Some(percpu) = percpu::current() {
        percpu.preempt.fetch_add(by, Ordering::Relaxed);
    }
}

/// Fills a frame of any zone with zeroes (Linux: `clear_highpage`).
pub fn clear_highpage(pfn: Pfn) {
    if !is_highmem(pfn) {
        use mm_core::PhysMem;
        phys::DirectMap.zero_frame(pfn);
        return;
    }
    let va = kmap_local(pfn).expect("a slot of kmap_local for a page that is cleared");
    phys::zero_mapped(va);
    kunmap_local(va);
}

/// Calls `f` with where a frame of any zone is mapped meanwhile.
fn with_mapped<R>(pfn: Pfn, f: impl FnOnce(VirtAddr) -> R) -> R {
    let va = kmap_local(pfn).expect("a slot of kmap_local for a copy");
    let result = f(va);
    kunmap_local(va);
    result
}

/// Copies all of a frame of any zone to another (Linux: `copy_highpage`).
pub fn copy_highpage(to: Pfn, from: Pfn) {
    if !is_highmem(to) && !is_highmem(from) {
        phys::copy_frame(to, from);
    } else {
        with_mapped(from, |from| with_mapped(to, |to| phys::copy_mapped(to, from)));
    }
}

/// Copies from ordinary memory into a frame of any zone (Linux: `memcpy_to_page`).
pub fn copy_to_page(pfn: Pfn, offset: u64, bytes: &[u8]) {
    if is_highmem(pfn) {
        with_mapped(pfn, |va| phys::copy_to_mapped(va, offset, bytes));
    } else {
        phys::copy_to_frame(pfn, offset, bytes);
    }
}

/// Copies from a frame of any zone into ordinary memory (Linux: `memcpy_from_page`).
pub fn copy_from_page(pfn: Pfn, offset: u64, bytes: &mut [u8]) {
    if is_highmem(pfn) {
        with_mapped(pfn, |va| phys::copy_from_mapped(va, offset, bytes));
    } else {
        phys::copy_from_frame(pfn, offset, bytes);
    }
}

/// Replaces 32 bits of a frame of any zone if they are `old`, in one locked instruction; else returns what they are. `addr` is a
/// multiple of 4.
pub fn compare_exchange_u32(addr: PhysAddr, old: u32, new: u32) -> Result<(), u32> {
    let (word, shift) = (PhysAddr::new(addr.as_u64() & !7), addr.as_u64() & 4);
    let shift = if shift == 0 { 0 } else { 32 };
    let put = |all: u64, part: u32| all & !(0xffff_ffff << shift) | u64::from(part) << shift;
    #[expect(clippy::cast_possible_truncation, reason = "one half of the word")]
    let part = |all: u64| (all >> shift) as u32;
    let exchange = |all: u64, to: u64| {
        if is_highmem(word.pfn()) {
            with_mapped(word.pfn(), |va| {
                phys::compare_exchange_mapped(VirtAddr::new(va.as_u64() + word.page_offset()), all, to)
            })
        } else {
            phys::compare_exchange(word, all, to)
        }
    };
    // A guess: the first answer says what the other half is.
    let mut all = u64::from(old) << shift;
    loop {
        match exchange(all, put(all, new)) {
            Ok(()) => return Ok(()),
            Err(now) if part(now) != old => return Err(part(now)),
            Err(now) => all = now,
        }
    }
}

/// Reads 32 bits of a frame of any zone at once. `addr` is a multiple of 4.
pub fn load_u32(addr: PhysAddr) -> u32 {
    // What it is and stays: the value that is compared with is written back, or found out.
    match compare_exchange_u32(addr, 0, 0) {
        Ok(()) => 0,
        Err(value) => value,
    }
}

/// Task switch: the slots of the task that leaves are emptied, those of the one that comes are filled (Linux:
/// `kmap_local_sched_out`, `kmap_local_sched_in`).
pub fn switch(percpu: &PerCpu, old: &LocalStack, new: &LocalStack) {
    for slot in 0..old.depth() {
        set_local(percpu, slot, None);
    }
    for (slot, frame) in new.frames().enumerate() {
        set_local(percpu, slot, Some(frame));
    }
}
