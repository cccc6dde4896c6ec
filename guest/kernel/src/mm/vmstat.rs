//! Counts of pages by what they are used for, of each CPU and zone (Linux: mm/vmstat.c, `vm_node_stat`).
//!
//! A count is changed by whoever changes what it counts, in any context, on the CPU where it happens to run: a page that came on one CPU and went on
//! another leaves a count of minus one there. Only sums over CPUs mean something, and they are exact.
//!
//! Differs from Linux: counts of nodes are kept by zone, so that the zone's follow from the same; there is no threshold below which a CPU
//! keeps its differences for itself.

use core::sync::atomic::{AtomicU64, Ordering};

use memvisor_abi::{MAX_NR_ZONES, NR_NODE_STATS, NodeStat, NodeStats, TableRef};
use mm_core::{PAGE_SIZE, Page, PageKind, PhysAddr};

use crate::arch::percpu;
use crate::mm::{early, phys};
use crate::topology;

/// Where the table is, and its elements a CPU.
static TABLE: AtomicU64 = AtomicU64::new(0);
static ZONES: AtomicU64 = AtomicU64::new(0);
static CPUS: AtomicU64 = AtomicU64::new(0);

/// Counts, by [`NodeStat`].
pub type Counts = [u64; NR_NODE_STATS];

/// Allocates the table; memblock still allocates.
pub fn init(nodes: usize) {
    let (cpus, zones) = (topology::CPUS.lock().count as u64, (nodes * MAX_NR_ZONES) as u64);
    let bytes = cpus * zones * size_of::<NodeStats>() as u64;
    let frames = early::alloc(early::pages_for(bytes), 1, None, PageKind::Reserved)
        .expect("no memory for the counts of pages");
    for word in phys::words(frames.phys(), early::pages_for(bytes) * (PAGE_SIZE / 8)) {
        word.store(0, Ordering::Relaxed);
    }
    CPUS.store(cpus, Ordering::Relaxed);
    ZONES.store(zones, Ordering::Relaxed);
    TABLE.store(frames.phys().as_u64(), Ordering::Release);
}

/// The published table.
pub fn table() -> TableRef {
    let count = CPUS.load(Ordering::Relaxed) * ZONES.load(Ordering::Relaxed);
    TableRef {
        gpa: TABLE.load(Ordering::Relaxed),
        count: u32::try_from(count).unwrap_or(0),
        stride: u32::try_from(size_of::<NodeStats>()).unwrap_or(0),
    }
}

fn words() -> &'static [AtomicU64] {
    let (table, zones) = (TABLE.load(Ordering::Acquire), ZONES.load(Ordering::Relaxed));
    if table == 0 {
        return &[];
    }
    let count = CPUS.load(Ordering::Relaxed) * zones * NR_NODE_STATS as u64;
    phys::words(PhysAddr::new(table), count)
}

/// Counts a page (Linux: `mod_node_page_state`).
#[inline]
pub fn mod_page_state(page: &Page, stat: NodeStat, delta: i64) {
    let zone = page.node() as usize * MAX_NR_ZONES + page.zone() as usize;
    let zones = usize::try_from(ZONES.load(Ordering::Relaxed)).unwrap_or(0);
    let set = percpu::cpu() as usize * zones + zone;
    if let Some(word) = words().get(set * NR_NODE_STATS + stat as usize) {
        word.fetch_add(delta.cast_unsigned(), Ordering::Relaxed);
    }
}

/// Sums over CPUs, and over the zones that are wanted. What is between two changes just now shows as nothing, never as a huge number.
fn sum(wanted: impl Fn(usize) -> bool) -> Counts {
    let mut sums: Counts = [0; NR_NODE_STATS];
    let zones = usize::try_from(ZONES.load(Ordering::Relaxed)).unwrap_or(0).max(1);
    for (set, counts) in words().chunks_exact(NR_NODE_STATS).enumerate() {
        if wanted(set % zones) {
            for (sum, word) in sums.iter_mut().zip(counts) {
                *sum = sum.wrapping_add(word.load(Ordering::Relaxed));
            }
        }
    }
    sums.map(|sum| u64::try_from(sum.cast_signed()).unwrap_or(0))
}

/// Counts of a zone, by its index.
pub fn of_zone(index: usize) -> Counts {
    sum(|zone| zone == index)
}

/// Counts of a node.
pub fn of_node(node: usize) -> Counts {
    sum(|zone| zone / MAX_NR_ZONES == node)
}

/// Counts of all.
pub fn total() -> Counts {
    sum(|_| true)
}

/// One count of all (Linux: `global_node_page_state`).
pub fn global(stat: NodeStat) -> u64 {
    let words = words().iter().skip(stat as usize).step_by(NR_NODE_STATS);
    let sum = words.fold(0_u64, |sum, word| sum.wrapping_add(word.load(Ordering::Relaxed)));
    u64::try_from(sum.cast_signed()).unwrap_or(0)
}
