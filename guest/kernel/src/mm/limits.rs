//! Where the zones of this machine end: `lowmem=SIZE` and `movablecore=SIZE` of the command line.
//!
//! `lowmem=` cuts the direct map at a physical address. What lies above is ZONE_HIGHMEM: frames that the kernel reaches through
//! kmap and vmalloc only, and that memblock gives nobody. Written at boot by one CPU, then only read.

use core::sync::atomic::{AtomicU64, Ordering};

use memvisor_abi::MAX_NUMNODES;
use mm_core::{Order, PAGE_SHIFT, PAGE_SIZE, Pfn, PhysAddr};
use mm_page_alloc::{ZoneLimits, find_zone_movable_pfns};

use crate::mm::{early, phys};
use crate::{cmdline, pr_info, pr_warn};

/// Least low memory that can be asked for (Linux: 64 MiB in `lowmem_pfn_init`).
const LOWMEM_MIN: u64 = 64 << 20;

static LOWMEM_END: AtomicU64 = AtomicU64::new(u64::MAX);
static MOVABLE_START: [AtomicU64; MAX_NUMNODES] = [const { AtomicU64::new(0) }; MAX_NUMNODES];

/// First frame that the direct map does not reach; beyond all frames if it reaches all of RAM.
pub fn lowmem_end() -> Pfn {
    Pfn::new(LOWMEM_END.load(Ordering::Relaxed))
}

/// The same as an address.
pub fn lowmem_end_addr() -> PhysAddr {
    PhysAddr::new(lowmem_end().as_u64().saturating_mul(PAGE_SIZE))
}

/// First byte that nothing may be allocated at before zones exist.
pub fn early_end() -> PhysAddr {
    phys::end().min(lowmem_end_addr())
}

/// Where a node's zones end.
pub fn of(node: u32) -> ZoneLimits {
    let movable = MOVABLE_START.get(node as usize).map_or(0, |start| start.load(Ordering::Relaxed));
    ZoneLimits { lowmem_end: lowmem_end(), movable_start: Pfn::new(movable), ..ZoneLimits::X86_64 }
}

/// Decides where low memory ends, before anything is allocated. The end is a multiple of the largest block, so that no block
/// crosses it.
pub fn init_lowmem() {
    let Some(size) = size_of_word("lowmem") else { return };
    let image = phys::image();
    let end = size & !((Order::MAX.pages() << PAGE_SHIFT) - 1);
    let ram_end = early::MEMBLOCK.lock().mem_pfn_ranges(None).map(|(_, end, _)| end).max();
    if size < LOWMEM_MIN || end < image.phys + image.len {
        pr_warn!(
            "lowmem={size:#x}: too little low memory, ignored; the least is {LOWMEM_MIN:#x} and the kernel"
        );
    } else if ram_end.is_some_and(|ram_end| PhysAddr::new(end).pfn() < ram_end) {
        LOWMEM_END.store(PhysAddr::new(end).pfn().as_u64(), Ordering::Relaxed);
        pr_info!("direct map and low memory end at {end:#x}; what lies above is ZONE_HIGHMEM");
    }
}

/// Spreads `movablecore=` over the nodes, whose memory is known (Linux: `find_zone_movable_pfns_for_nodes`).
pub fn init_movable() {
    let Some(size) = size_of_word("movablecore") else { return };
    let limits = ZoneLimits { lowmem_end: lowmem_end(), ..ZoneLimits::X86_64 };
    let starts = find_zone_movable_pfns(early::MEMBLOCK.lock().memory(), size >> PAGE_SHIFT, limits);
    for (node, (start, slot)) in starts.into_iter().zip(&MOVABLE_START).enumerate() {
        slot.store(start.as_u64(), Ordering::Relaxed);
        if start != Pfn::new(0) {
            pr_info!("Movable zone start for node {node}: {:#x}", start.phys().as_u64());
        }
    }
}

/// The size that a word of the command line gives; says so if it gives none.
fn size_of_word(name: &str) -> Option<u64> {
    let size = cmdline::number(name);
    if size.is_none() && cmdline::value(name, |_| ()).is_some() {
        pr_warn!("{name}= takes a size, as in {name}=96M; ignored");
    }
    size
}
