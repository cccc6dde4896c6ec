//! The machine's contiguous areas: `cma=SIZE`, and `cma_pernuma=SIZE` for one on every node with memory (Linux: mm/cma.c,
//! kernel/dma/contiguous.c).
//!
//! An area is found when zones are known and nothing has been handed to them: its pageblocks get type CMA, and the frames then
//! come to the allocator like any others. So an area costs nothing until it is asked for.

use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use memvisor_abi::{
    CMA_NAME_LEN, CmaArea, MAX_CMA_AREAS, Migratetype, NODE_NONE, PAGEBLOCK_PAGES, TableRef, ZoneKind,
};
use mm_core::{MaySleep, MemMap, Order, PAGE_SHIFT, PAGE_SIZE, PageKind, Pfn, PhysAddr};
use mm_memblock::{AllocRange, Direction};
use mm_page_alloc::{Cma, Context};

use crate::mm::memmap::{self, Vmemmap};
use crate::mm::page_alloc::{self, PAGES};
use crate::mm::{early, limits, phys};
use crate::sched;
use crate::sync::Lock;
use crate::{cmdline, pr_err, pr_info};

/// Areas, published. Places and sizes are written at boot only.
static AREAS: Lock<[CmaArea; MAX_CMA_AREAS]> = Lock::new([CmaArea::NONE; MAX_CMA_AREAS]);
static COUNT: AtomicUsize = AtomicUsize::new(0);
static BITMAPS: [AtomicPtr<AtomicU64>; MAX_CMA_AREAS] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_CMA_AREAS];
static LOCKS: [AtomicBool; MAX_CMA_AREAS] = [const { AtomicBool::new(false) }; MAX_CMA_AREAS];

/// One request at a time (Linux: `cma_mutex`). Whoever waits lets others run.
static MUTEX: AtomicBool = AtomicBool::new(false);

/// Areas that there are.
pub fn count() -> usize {
    COUNT.load(Ordering::Relaxed)
}

/// An area.
pub fn area(number: usize) -> Option<CmaArea> {
    (number < count()).then(|| AREAS.lock()[number])
}

/// The areas, for the root descriptor.
pub fn table() -> TableRef {
    if count() == 0 {
        return TableRef { gpa: 0, count: 0, stride: 0 };
    }
    TableRef {
        gpa: phys::of_image(AREAS.as_ptr() as u64).as_u64(),
        count: u32::try_from(count()).unwrap_or(0),
        stride: u32::try_from(size_of::<CmaArea>()).unwrap_or(0),
    }
}

/// For seeded faults: changes what is published of an area.
pub fn with_area<R>(number: usize, f: impl FnOnce(&mut CmaArea) -> R) -> Option<R> {
    (number < count()).then(|| f(&mut AREAS.lock()[number]))
}

/// Makes the areas that the command line asks for. Zones have their extents, memblock still allocates (Linux:
/// `dma_contiguous_reserve`).
pub fn init() {
    if let Some(bytes) = cmdline::number("cma").filter(|bytes| *bytes > 0) {
        make("reserved", bytes, None);
    }
    if let Some(bytes) = cmdline::number("cma_pernuma").filter(|bytes| *bytes > 0) {
        for node in 0..u32::try_from(page_alloc::nr_nodes()).unwrap_or(0) {
            if early::MEMBLOCK.lock().mem_pfn_ranges(Some(node)).next().is_some() {
                make("pernuma", bytes, Some(node));
            }
        }
    }
}

/// Brings the areas' frames online, so that a request finds all descriptors (Linux: `cma_init_reserved_areas`).
pub fn bring_online() {
    for area in (0..count()).filter_map(area) {
        for (index, section) in memmap::sections().iter().enumerate() {
            let (start, end) = memmap::span(section);
            let reaches = start.as_u64() < area.base_pfn + area.count && area.base_pfn < end.as_u64();
            if reaches && !section.is_online() {
                memmap::bring_online(index);
            }
        }
    }
}

/// Makes one area of `bytes`, rounded up to the largest block, on `node` or anywhere in low memory; a failure is a line on the
/// console.
fn make(name: &str, bytes: u64, node: Option<u32>) {
    let block = Order::MAX.pages();
    let pages = bytes.div_ceil(PAGE_SIZE).next_multiple_of(block);
    let number = count();
    let place = find(pages, block, node).filter(|_| number < MAX_CMA_AREAS);
    let Some((base, kind)) = place else {
        pr_err!("cma: failed to reserve {} MiB", bytes >> 20);
        return;
    };
    let words = (pages.div_ceil(64) * 8).div_ceil(PAGE_SIZE);
    let bitmap =
        early::alloc(words, 1, node, PageKind::Reserved).expect("no memory for the bitmap of an area");
    let count = usize::try_from(pages.div_ceil(64)).expect("addresses have 64 bits");
    // SAFETY: allocated just now, page-aligned, with room for a bit a frame of the area, and given up here.
    let bits = unsafe { phys::leak_array(bitmap.phys(), count, 0_u64) };
    // The same layout, and nobody has the exclusive reference any more.
    BITMAPS[number].store(bits.as_mut_ptr().cast(), Ordering::Release);
    let mut at = base;
    while at < base.offset(pages) {
        let block = Vmemmap.pageblock(at).expect("an area is of RAM");
        block.set_migratetype(Migratetype::Cma);
        at = at.offset(PAGEBLOCK_PAGES);
    }
    let owner = node.unwrap_or_else(|| node_of(base));
    page_alloc::zone(owner, kind).lock().info_mut().cma_pages += pages;
    let mut area = CmaArea {
        base_pfn: base.as_u64(),
        count: pages,
        bitmap_gpa: bitmap.phys().as_u64(),
        order_per_bit: 0,
        node: node.unwrap_or(NODE_NONE),
        ..CmaArea::NONE
    };
    let number_of_node = node.map_or(b' ', |node| b'0' + u8::try_from(node % 10).unwrap_or(0));
    let text = name.bytes().chain(node.map(|_| number_of_node));
    area.name.iter_mut().take(CMA_NAME_LEN - 1).zip(text).for_each(|(to, from)| *to = from);
    AREAS.lock()[number] = area;
    COUNT.store(number + 1, Ordering::Release);
    pr_info!("cma: Reserved {} MiB at {:#x}", (pages << PAGE_SHIFT) >> 20, base.phys().as_u64());
}

/// A free piece of low memory in one zone, the highest that there is.
fn find(pages: u64, align: u64, node: Option<u32>) -> Option<(Pfn, ZoneKind)> {
    let mut max = limits::early_end();
    let mut memblock = early::MEMBLOCK.lock();
    loop {
        let range = AllocRange { min: PhysAddr::new(1 << 20), max };
        let (bytes, align) = (pages << PAGE_SHIFT, align << PAGE_SHIFT);
        let base = memblock.alloc(bytes, align, range, node, Direction::TopDown)?;
        // Only the place is wanted: nothing else is allocated before zones get their memory.
        memblock.free(base, bytes).ok()?;
        let (first, end) = (base.pfn(), base.pfn().offset(pages));
        let mut parts = 0;
        let mut last = None;
        for (start, stop, node) in memblock.mem_pfn_ranges(None) {
            if start < end && first < stop {
                limits::of(node).for_each_part(start.max(first), stop.min(end), |start, _, kind| {
                    parts += 1;
                    last = Some((start, kind));
                });
            }
        }
        let (start, kind) = last?;
        let taken = AREAS.lock()[..count()]
            .iter()
            .find(|area| area.base_pfn < end.as_u64() && first.as_u64() < area.base_pfn + area.count)
            .copied();
        match taken {
            Some(area) => max = Pfn::new(area.base_pfn).phys(),
            None if parts == 1 => return Some((first, kind)),
            None => max = start.phys(),
        }
    }
}

fn node_of(pfn: Pfn) -> u32 {
    let memblock = early::MEMBLOCK.lock();
    let range = memblock.mem_pfn_ranges(None).find(|(start, end, _)| *start <= pfn && pfn < *end);
    range.map_or(0, |(_, _, node)| node)
}

/// Calls `f` with an area as the allocator knows it.
fn with<R>(number: usize, f: impl FnOnce(&Cma<'_>) -> R) -> Option<R> {
    let area = area(number)?;
    let words = usize::try_from(area.count.div_ceil(64)).ok()?;
    // SAFETY: `make` stored the bitmap of that many words, which live for ever and are only reached as atomics.
    let bitmap = unsafe { core::slice::from_raw_parts(BITMAPS[number].load(Ordering::Acquire), words) };
    Some(f(&Cma { area, number: u8::try_from(number).ok()?, bitmap, lock: &LOCKS[number] }))
}

/// `count` frames of an area in one piece, the first a multiple of `2^align` (Linux: `cma_alloc`). May sleep.
pub fn cma_alloc(number: usize, count: u64, align: Order, context: &MaySleep<'_>) -> Option<Pfn> {
    while MUTEX.swap(true, Ordering::Acquire) {
        sched::yield_now(context);
    }
    let found = with(number, |cma| PAGES.cma_alloc(Context::task(context), cma, count, align)).flatten();
    MUTEX.store(false, Ordering::Release);
    with_area(number, |area| match found {
        Some(_) => area.nr_pages_succeeded += count,
        None => area.nr_pages_failed += count,
    });
    found
}

/// Gives frames back; `false` if they were not handed out (Linux: `cma_release`).
pub fn cma_release(number: usize, pfn: Pfn, count: u64) -> bool {
    with(number, |cma| PAGES.cma_release(cma, pfn, count)).unwrap_or(false)
}

/// Frames of an area that are handed out.
pub fn used(number: usize) -> u64 {
    with(number, |cma| cma.used()).unwrap_or(0)
}
