//! Pools of bounce slots (Linux: kernel/dma/swiotlb.c, `swiotlb_init_remap`).
//!
//! The pool for devices of 32 bits is reserved at boot, if some memory lies above 4 GiB or the command line says `swiotlb=force`. That
//! for devices that do not reach it comes from ZONE_DMA when the first of them says what it reaches. The table of slots is written when
//! somebody bounces for the first time: most machines never do.

use core::sync::atomic::{AtomicBool, Ordering};

use memvisor_abi::{
    IO_TLB_SIZE, MAX_SWIOTLB_AREAS, MAX_SWIOTLB_POOLS, SwiotlbArea, SwiotlbPool, SwiotlbSlot, TableRef,
};
use mm_core::{Errno, Gfp, MaySleep, Order, PAGE_SIZE, PageKind, Pfn, PhysAddr};
use mm_dma::{Area, DmaMask, Machine, SwiotlbOptions};
use mm_memblock::{AllocRange, Direction as From};

use crate::arch::percpu;
use crate::mm::{early, kmap, limits, page_alloc, phys};
use crate::sync::Lock;
use crate::{cmdline, pr_err, pr_info, pr_warn, topology};

/// The pool that boot reserves.
const DEFAULT: usize = 0;
/// The pool in ZONE_DMA.
const ISA: usize = 1;
/// Pages of the pool in ZONE_DMA: 512 KiB, two segments.
const ISA_ORDER: u8 = 7;
const AREAS_MAX: usize = MAX_SWIOTLB_AREAS as usize;

const NO_POOL: SwiotlbPool =
    SwiotlbPool { start: 0, slots_gpa: 0, areas_gpa: 0, nslabs: 0, nareas: 0, reserved: 0, force: 0 };

/// Published. Places and sizes change once.
static POOLS: Lock<[SwiotlbPool; MAX_SWIOTLB_POOLS]> = Lock::new([NO_POOL; MAX_SWIOTLB_POOLS]);
/// Frames for the tables of each pool.
static TABLES: Lock<[Option<Pfn>; MAX_SWIOTLB_POOLS]> = Lock::new([None; MAX_SWIOTLB_POOLS]);
/// Whether a pool's tables are written.
static READY: [AtomicBool; MAX_SWIOTLB_POOLS] = [const { AtomicBool::new(false) }; MAX_SWIOTLB_POOLS];

type AreaLock = Lock<Option<Area<'static>>>;
static AREAS: [[AreaLock; AREAS_MAX]; MAX_SWIOTLB_POOLS] =
    [const { [const { Lock::new(None) }; AREAS_MAX] }; MAX_SWIOTLB_POOLS];

/// The pools, for the root descriptor.
pub fn table() -> TableRef {
    TableRef {
        gpa: phys::of_image(POOLS.as_ptr() as u64).as_u64(),
        count: u32::try_from(MAX_SWIOTLB_POOLS).unwrap_or(0),
        stride: u32::try_from(size_of::<SwiotlbPool>()).unwrap_or(0),
    }
}

/// First byte behind all RAM.
pub fn ram_end() -> PhysAddr {
    let end = early::MEMBLOCK.lock().mem_pfn_ranges(None).map(|(_, end, _)| end).max();
    end.map_or(PhysAddr::new(0), Pfn::phys)
}

fn options() -> SwiotlbOptions {
    match cmdline::value("swiotlb", SwiotlbOptions::parse) {
        None => SwiotlbOptions::default(),
        Some(Some(options)) => options,
        Some(None) => {
            pr_warn!("swiotlb= takes SLOTS[,AREAS][,force|noforce]; ignored");
            SwiotlbOptions::default()
        }
    }
}

/// Pages of the tables of a pool: slots, then areas from a page of their own on.
fn table_pages(nslabs: u32) -> u64 {
    slot_pages(nslabs) + early::pages_for((AREAS_MAX * size_of::<SwiotlbArea>()) as u64)
}

fn slot_pages(nslabs: u32) -> u64 {
    early::pages_for(u64::from(nslabs) * size_of::<SwiotlbSlot>() as u64)
}

/// Reserves the pool, while memblock still allocates.
pub fn init() {
    let options = options();
    if !options.wants_pool(ram_end()) {
        return;
    }
    let cpus = u32::try_from(topology::CPUS.lock().count).unwrap_or(1);
    let nareas = options.nareas(cpus);
    let ram: u64 = early::MEMBLOCK
        .lock()
        .mem_pfn_ranges(None)
        .map(|(start, end, _)| (end.as_u64() - start.as_u64()) * PAGE_SIZE)
        .sum();
    let nslabs = options.nslabs(ram, nareas);
    let bytes = u64::from(nslabs) * IO_TLB_SIZE;
    let limit = PhysAddr::new(DmaMask::BITS_32.last() + 1).min(limits::early_end());
    let range = AllocRange { min: PhysAddr::new(1 << 20), max: limit };
    let start = early::MEMBLOCK.lock().alloc(bytes, PAGE_SIZE, range, None, From::TopDown);
    let Some(start) = start else {
        pr_err!("software IO TLB: cannot allocate {} KiB", bytes >> 10);
        return;
    };
    early::own(start.pfn(), bytes / PAGE_SIZE, PageKind::Reserved);
    let Some(tables) = early::alloc(table_pages(nslabs), 1, None, PageKind::Reserved) else {
        pr_err!("software IO TLB: cannot allocate its tables");
        return;
    };
    TABLES.lock()[DEFAULT] = Some(tables);
    let (first, last) = (start.as_u64(), start.as_u64() + bytes - 1);
    POOLS.lock()[DEFAULT] =
        SwiotlbPool { start: first, nslabs, nareas, reserved: 1, force: options.force.into(), ..NO_POOL };
    pr_info!(
        "software IO TLB: mapped [mem {first:#018x}-{last:#018x}] ({} KiB, {nareas} areas{})",
        bytes >> 10,
        if options.force { ", all mappings bounce" } else { "" }
    );
}

/// Sees to it that a device with this mask has a pool, if some memory lies beyond its mask.
pub(super) fn reach(mask: DmaMask, _context: &MaySleep<'_>) -> Result<(), Errno> {
    let all = mask.last() >= ram_end().as_u64().saturating_sub(1);
    let has_pool = (0..MAX_SWIOTLB_POOLS)
        .filter_map(|number| Bounce.pool(number))
        .any(|pool| mask.reaches(PhysAddr::new(pool.start), u64::from(pool.nslabs) * IO_TLB_SIZE));
    let is_wanted = !all && !has_pool && mask < DmaMask::BITS_32 && !options().noforce;
    if is_wanted { make_isa_pool() } else { Ok(()) }
}

/// Makes the pool in ZONE_DMA.
fn make_isa_pool() -> Result<(), Errno> {
    let order = Order::new(ISA_ORDER).ok_or(Errno::Einval)?;
    let bytes = order.pages() * PAGE_SIZE;
    let nslabs = u32::try_from(bytes / IO_TLB_SIZE).map_err(|_| Errno::Einval)?;
    let of_tables = Order::covering(table_pages(nslabs)).ok_or(Errno::Einval)?;
    let block = page_alloc::alloc_here(Gfp::KERNEL | Gfp::DMA, order, None).ok_or(Errno::Enomem)?;
    let Some(tables) = page_alloc::alloc_here(Gfp::KERNEL, of_tables, None) else {
        page_alloc::free_pages(block, order);
        return Err(Errno::Enomem);
    };
    let made = {
        // In the order of `prepare`.
        let mut places = TABLES.lock();
        let mut pools = POOLS.lock();
        let is_first = pools[ISA].nslabs == 0;
        if is_first {
            places[ISA] = Some(tables);
            pools[ISA] = SwiotlbPool { start: block.phys().as_u64(), nslabs, nareas: 1, ..NO_POOL };
        }
        is_first
    };
    if made {
        let (first, last) = (block.phys().as_u64(), block.phys().as_u64() + bytes - 1);
        pr_info!("software IO TLB: ZONE_DMA [mem {first:#018x}-{last:#018x}] ({} KiB)", bytes >> 10);
    } else {
        // Another driver was faster.
        page_alloc::free_pages(block, order);
        page_alloc::free_pages(tables, of_tables);
    }
    Ok(())
}

/// Writes the tables of a pool; whoever comes meanwhile waits for the lock.
fn prepare(number: usize) -> bool {
    let mut tables = TABLES.lock();
    let Some(tables) = tables.get_mut(number).and_then(Option::take) else {
        return READY.get(number).is_some_and(|ready| ready.load(Ordering::Acquire));
    };
    let pool = POOLS.lock()[number];
    let slots_at = tables.phys();
    let areas_at = tables.offset(slot_pages(pool.nslabs)).phys();
    let count = pool.nslabs as usize;
    // SAFETY: allocated for this, page-aligned, with room for all slots, and taken out of the table: given up here.
    let slots = unsafe { phys::leak_array(slots_at, count, SwiotlbSlot::free(0)) };
    // SAFETY: as above, on the pages behind the slots.
    let infos = unsafe { phys::leak_array(areas_at, pool.nareas as usize, SwiotlbArea::default()) };
    let per_area = pool.nslabs / pool.nareas.max(1);
    let parts = slots.chunks_mut((per_area as usize).max(1)).zip(infos);
    for (index, (slots, info)) in (0_u32..).zip(parts) {
        let first = index * per_area;
        let start = PhysAddr::new(pool.start + u64::from(first) * IO_TLB_SIZE);
        if let Some(place) = AREAS[number].get(index as usize) {
            *place.lock() = Some(Area::new(slots, info, first, start));
        }
    }
    let mut pools = POOLS.lock();
    (pools[number].slots_gpa, pools[number].areas_gpa) = (slots_at.as_u64(), areas_at.as_u64());
    READY[number].store(true, Ordering::Release);
    true
}

/// Bytes that are copied at once, through the stack.
const PIECE: usize = 512;

/// This machine, for mm-dma.
#[derive(Clone, Copy, Debug)]
pub struct Bounce;

impl Machine for Bounce {
    fn pool(&self, number: usize) -> Option<SwiotlbPool> {
        POOLS.lock().get(number).copied().filter(|pool| pool.nslabs > 0)
    }

    fn with_area<R>(&self, pool: usize, area: u32, f: impl FnOnce(&mut Area<'_>) -> R) -> Option<R> {
        if !READY.get(pool)?.load(Ordering::Acquire) && !prepare(pool) {
            return None;
        }
        let mut area = AREAS.get(pool)?.get(area as usize)?.lock();
        area.as_mut().map(f)
    }

    fn copy(&self, from: PhysAddr, to: PhysAddr, len: u64) {
        let mut piece = [0; PIECE];
        let mut done = 0;
        while done < len {
            let [from, to] = [from, to].map(|addr| PhysAddr::new(addr.as_u64() + done));
            let left =
                [PIECE as u64, len - done, PAGE_SIZE - from.page_offset(), PAGE_SIZE - to.page_offset()];
            let count = left.into_iter().min().unwrap_or(0);
            let Some(bytes) = usize::try_from(count).ok().and_then(|count| piece.get_mut(..count)) else {
                return;
            };
            kmap::copy_from_page(from.pfn(), from.page_offset(), bytes);
            kmap::copy_to_page(to.pfn(), to.page_offset(), bytes);
            done += count;
        }
    }

    fn cpu(&self) -> u32 {
        percpu::cpu()
    }
}

/// Slots in use and mappings made, of all areas of a pool.
pub fn usage(pool: usize) -> (u64, u64) {
    let areas = Bounce.pool(pool).map_or(0, |pool| pool.nareas);
    (0..areas)
        .filter_map(|area| Bounce.with_area(pool, area, |area| *area.info()))
        .fold((0, 0), |(used, mapped), info| (used + u64::from(info.used), mapped + info.mapped))
}

/// Checks all areas of all pools; says what is wrong.
///
/// # Errors
/// The first thing that is wrong.
pub fn audit() -> Result<(), mm_dma::AuditError> {
    for number in 0..MAX_SWIOTLB_POOLS {
        let areas = Bounce.pool(number).map_or(0, |pool| pool.nareas);
        for area in 0..areas {
            Bounce.with_area(number, area, |area| area.audit()).unwrap_or(Ok(()))?;
        }
    }
    Ok(())
}

/// The first pool that there is, with its tables written.
pub fn any_pool() -> Option<usize> {
    (0..MAX_SWIOTLB_POOLS).find(|number| Bounce.with_area(*number, 0, |_| ()).is_some())
}
