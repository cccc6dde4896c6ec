//! Nodes, zones and the page allocator, on top of mm-page-alloc.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use memvisor_abi::{MAX_NR_ZONES, MAX_NUMNODES, Node, SectionState, Watermark};
use mm_core::{Event, Gfp, MemMap, Order, PageFlags, PageKind, Pfn, Trace, ZoneId, ZoneKind};
use mm_page_alloc::{NodeState, Zone, ZoneLimits, fallback_order, watermark, zone_extents, zone_refs};

use crate::mm::early;
use crate::mm::memmap::{self, Vmemmap};
use crate::sync::Lock;
use crate::{print, println, topology};

const ZONES_MAX: usize = MAX_NUMNODES * MAX_NR_ZONES;

#[expect(clippy::cast_possible_truncation, reason = "the index is below 256")]
const fn new_zone(index: usize) -> Lock<Zone> {
    let kind = match index % MAX_NR_ZONES {
        0 => ZoneKind::Dma,
        1 => ZoneKind::Dma32,
        2 => ZoneKind::Normal,
        3 => ZoneKind::HighMem,
        _ => ZoneKind::Movable,
    };
    Lock::new(Zone::new((index / MAX_NR_ZONES) as u32, kind))
}

/// All zones, by node and kind.
pub static ZONES: [Lock<Zone>; ZONES_MAX] = {
    let mut zones = [const { new_zone(0) }; ZONES_MAX];
    let mut index = 0;
    while index < ZONES_MAX {
        zones[index] = new_zone(index);
        index += 1;
    }
    zones
};

const NO_NODE: Node = Node { id: 0, online: 0, start_pfn: 0, spanned_pages: 0, present_pages: 0 };
/// All nodes, by number.
pub static NODES: Lock<[Node; MAX_NUMNODES]> = Lock::new([NO_NODE; MAX_NUMNODES]);
static NR_NODES: AtomicUsize = AtomicUsize::new(0);

/// Nodes to try for an allocation on each node, nearest first (Linux: `node_zonelists`).
struct Fallback {
    order: [u32; MAX_NUMNODES],
    len: usize,
}
static FALLBACK: Lock<[Fallback; MAX_NUMNODES]> =
    Lock::new([const { Fallback { order: [0; MAX_NUMNODES], len: 0 } }; MAX_NUMNODES]);

/// Pages handed out and taken back (Linux: `PGALLOC`, `PGFREE`).
pub static PGALLOC: AtomicU64 = AtomicU64::new(0);
/// See [`PGALLOC`].
pub static PGFREE: AtomicU64 = AtomicU64::new(0);
/// One CPU at a time brings sections online.
static GROWING: AtomicU32 = AtomicU32::new(0);

/// Nodes of the machine.
pub fn nr_nodes() -> usize {
    NR_NODES.load(Ordering::Relaxed)
}

/// The zone of a node.
pub fn zone(node: u32, kind: ZoneKind) -> &'static Lock<Zone> {
    &ZONES[node as usize * MAX_NR_ZONES + kind as usize]
}

/// Zones of the nodes that exist.
pub fn zones() -> impl Iterator<Item = &'static Lock<Zone>> {
    ZONES[..nr_nodes() * MAX_NR_ZONES].iter()
}

/// Splits a range of RAM at zone boundaries (DMA 16 MiB, DMA32 4 GiB).
pub fn for_each_zone_part(start: Pfn, end: Pfn, mut f: impl FnMut(Pfn, Pfn, ZoneKind)) {
    let limits = ZoneLimits::X86_64;
    let parts = [
        (Pfn::new(0), limits.dma_end, ZoneKind::Dma),
        (limits.dma_end, limits.dma32_end, ZoneKind::Dma32),
        (limits.dma32_end, Pfn::new(u64::MAX), ZoneKind::Normal),
    ];
    for (low, high, kind) in parts {
        let (first, last) = (start.max(low), end.min(high));
        if first < last {
            f(first, last, kind);
        }
    }
}

/// Builds nodes and zones from memblock and the topology, and brings the sections online that are
/// needed at once (Linux: `free_area_init`, `memblock_free_all`).
pub fn init() {
    let count = topology::nr_nodes();
    NR_NODES.store(count, Ordering::Relaxed);
    for node in 0..u32::try_from(count).unwrap_or(0) {
        init_node(node);
    }
    count_managed();
    set_watermarks();
    build_zonelists();
    for index in 0..memmap::sections().len() {
        if memmap::is_needed(&memmap::sections()[index]) {
            memmap::bring_online(index);
        }
    }
}

fn init_node(node: u32) {
    let memblock = early::MEMBLOCK.lock();
    let extents = zone_extents(memblock.memory(), node, ZoneLimits::X86_64);
    let mut info = Node { id: node, ..NO_NODE };
    let ranges = || memblock.mem_pfn_ranges(Some(node));
    if let (Some(first), Some(end)) = (ranges().map(|r| r.0).min(), ranges().map(|r| r.1).max()) {
        info.start_pfn = first.as_u64();
        info.spanned_pages = end.as_u64() - first.as_u64();
        info.present_pages = ranges().map(|(start, end, _)| end.as_u64() - start.as_u64()).sum();
    }
    drop(memblock);
    info.online = u32::from(info.present_pages > 0 || topology::cpus_of(node) > 0);
    NODES.lock()[node as usize] = info;
    for (kind, extent) in ZoneKind::ALL.into_iter().zip(extents) {
        zone(node, kind).lock().set_extent(extent.start_pfn, extent.spanned, extent.present);
    }
}

/// Every free frame is managed, and deferred until its section is online.
fn count_managed() {
    memmap::for_each_free(Pfn::new(0), Pfn::new(u64::MAX), |first, last, node| {
        for_each_zone_part(first, last, |first, last, kind| {
            let pages = last.as_u64() - first.as_u64();
            let mut zone = zone(node, kind).lock();
            zone.add_managed(pages);
            zone.info_mut().deferred_pages += pages;
        });
    });
}

/// Gives free frames to their zone.
pub fn hand_over(node: u32, kind: ZoneKind, start: Pfn, end: Pfn) {
    let mut zone = zone(node, kind).lock();
    if let Err(error) = zone.free_range(&Vmemmap, start, end) {
        panic!("handing frames {start}..{end} to node {node} zone {}: {error}", kind.name());
    }
    zone.info_mut().deferred_pages -= end.as_u64() - start.as_u64();
}

/// Brings the next deferred section with frames of that zone online (Linux: `deferred_grow_zone`).
fn grow(node: u32, kind: ZoneKind) -> bool {
    while GROWING.swap(1, Ordering::Acquire) == 1 {
        core::hint::spin_loop();
    }
    let (start, end) = {
        let zone = zone(node, kind).lock();
        (zone.info().start_pfn, zone.info().start_pfn + zone.info().spanned_pages)
    };
    let next = memmap::sections().iter().position(|section| {
        let (first, last) = memmap::span(section);
        section.state == SectionState::Deferred as u32 && first.as_u64() < end && last.as_u64() > start
    });
    if let Some(index) = next {
        memmap::bring_online(index);
    }
    GROWING.store(0, Ordering::Release);
    next.is_some()
}

fn build_zonelists() {
    let count = nr_nodes();
    let mut states = [NodeState::default(); MAX_NUMNODES];
    for (node, state) in (0..).zip(&mut states[..count]) {
        state.has_memory = NODES.lock()[node as usize].present_pages > 0;
        state.has_cpus = topology::cpus_of(node) > 0;
    }
    let mut fallback = FALLBACK.lock();
    for node in 0..u32::try_from(count).unwrap_or(0) {
        let slot = &mut fallback[node as usize];
        slot.len = topology::with_distances(|distances| {
            fallback_order(node, distances, count, &mut states[..count], &mut slot.order)
        });
    }
}

/// Allocates a block for `kind`, near `node` (default: this CPU's node). `None` if every zone is at its
/// low-memory limits (Linux: `get_page_from_freelist` with `ALLOC_WMARK_MIN`).
pub fn alloc_pages(order: Order, node: Option<u32>, kind: PageKind) -> Option<Pfn> {
    Vmemmap.emit(Event::AllocPages { gfp: Gfp::KERNEL, order, node });
    let pfn = get_page_from_freelist(order, node, kind);
    if let Some(pfn) = pfn {
        Vmemmap.emit(Event::MmPageAlloc { pfn, order, migratetype: 1, gfp_flags: Gfp::KERNEL });
    }
    Vmemmap.emit(Event::AllocPagesRet { pfn });
    pfn
}

fn get_page_from_freelist(order: Order, node: Option<u32>, kind: PageKind) -> Option<Pfn> {
    let near =
        node.unwrap_or_else(topology::current_node).min(u32::try_from(nr_nodes()).ok()?.saturating_sub(1));
    let (list, len) = {
        let fallback = FALLBACK.lock();
        (fallback[near as usize].order, fallback[near as usize].len)
    };
    for at in zone_refs(&list[..len], ZoneKind::Normal) {
        loop {
            let mut zone = zone(at.node, at.kind).lock();
            let info = zone.info();
            let floor =
                info.watermark[Watermark::Min as usize] + info.lowmem_reserve[ZoneKind::Normal as usize];
            let enough = info.free_pages > floor + order.pages();
            let deferred = info.deferred_pages;
            Vmemmap.emit(Event::ZoneWatermarkOk {
                zone: ZoneId::new(at.node, at.kind as u32),
                order,
                ok: enough,
                alloc_flags: 1,
                free: info.free_pages,
                mark: info.watermark[Watermark::Min as usize],
                lowmem_reserve: info.lowmem_reserve[ZoneKind::Normal as usize],
            });
            if enough && let Some(pfn) = zone.alloc_block(&Vmemmap, order) {
                drop(zone);
                set_kind(pfn, order, kind);
                PGALLOC.fetch_add(order.pages(), Ordering::Relaxed);
                return Some(pfn);
            }
            drop(zone);
            if deferred == 0 || !grow(at.node, at.kind) {
                break;
            }
        }
    }
    None
}

fn set_kind(pfn: Pfn, order: Order, kind: PageKind) {
    if kind == PageKind::Allocated {
        return;
    }
    for index in 0..order.pages() {
        if let Some(page) = Vmemmap.page(pfn.offset(index)) {
            page.set_kind(kind);
        }
    }
}

/// Gives a block back. A wrong free is a bug of the caller and ends the kernel, with the frame named.
pub fn free_pages(pfn: Pfn, order: Order) {
    let Some(page) = Vmemmap.page(pfn) else { panic!("free of {pfn}, which is not RAM") };
    assert!(!page.has(PageFlags::RESERVED), "free of {pfn}, which is reserved");
    Vmemmap.emit(Event::FreePages { pfn, order });
    Vmemmap.emit(Event::MmPageFree { pfn, order });
    let outcome = zone(page.node(), page.zone()).lock().free_block(&Vmemmap, pfn, order);
    if let Err(error) = outcome {
        panic!("free of {pfn}, order {}: {error}", order.as_u8());
    }
    Vmemmap.emit(Event::FreePagesRet {});
    PGFREE.fetch_add(order.pages(), Ordering::Relaxed);
}

/// Computes watermarks and reserves of all zones and writes them. The formulas look at all zones at
/// once, so they work on copies, which are too large for a kernel stack.
fn set_watermarks() {
    static COPIES: Lock<[Zone; ZONES_MAX]> = Lock::new([const { Zone::new(0, ZoneKind::Dma) }; ZONES_MAX]);
    let mut copies = COPIES.lock();
    let copies = &mut copies[..nr_nodes() * MAX_NR_ZONES];
    for (copy, zone) in copies.iter_mut().zip(zones()) {
        *copy.info_mut() = *zone.lock().info();
    }
    let min_free_kbytes = watermark::min_free_kbytes(watermark::nr_free_buffer_pages(copies));
    watermark::setup_per_zone_lowmem_reserve(copies, watermark::LOWMEM_RESERVE_RATIO);
    watermark::setup_per_zone_wmarks(copies, min_free_kbytes, watermark::WATERMARK_SCALE_FACTOR);
    for (copy, zone) in copies.iter().zip(zones()) {
        let mut zone = zone.lock();
        zone.info_mut().watermark = copy.info().watermark;
        zone.info_mut().lowmem_reserve = copy.info().lowmem_reserve;
    }
}

/// Prints zones as Linux's boot log and /proc/zoneinfo do, and free blocks as /proc/buddyinfo.
pub fn print() {
    for zone in zones() {
        let zone = zone.lock();
        let info = zone.info();
        if info.present_pages == 0 {
            continue;
        }
        let name = ZoneKind::from_raw(info.kind).map_or("?", ZoneKind::name);
        println!(
            "Node {}, zone {name:>8}: start_pfn {:#x} spanned {} present {} managed {} free {} deferred {} min {} low {} high {} protection {:?}",
            info.node,
            info.start_pfn,
            info.spanned_pages,
            info.present_pages,
            info.managed_pages,
            info.free_pages,
            info.deferred_pages,
            info.watermark[0],
            info.watermark[1],
            info.watermark[2],
            info.lowmem_reserve,
        );
        print!("Node {}, zone {name:>8}: free blocks by order", info.node);
        for area in &info.free_area {
            print!(" {}", area.nr_free);
        }
        println!();
    }
}
