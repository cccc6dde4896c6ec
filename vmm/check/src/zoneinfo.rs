//! What /proc/zoneinfo of a stock Linux on the same machine must say, by the same arithmetic that audits our own guest.

use memvisor_abi::{MAX_NR_ZONES, PAGE_SHIFT, VmSysctl, ZoneKind};
use memvisor_inspect::Facts;

use crate::machine::Machine;
use crate::watermark::{Sums, Tuning, lowmem_reserves, min_free_kbytes, watermarks};

/// A zone; all quantities are pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZoneNumbers {
    /// Node.
    pub node: u32,
    /// Index of its [`ZoneKind`].
    pub kind: usize,
    /// First frame, holes included.
    pub start_pfn: u64,
    /// Frames from first to last, holes included.
    pub spanned: u64,
    /// Frames that exist.
    pub present: u64,
    /// Frames that the allocator has, as given.
    pub managed: u64,
    /// min, low, high.
    pub watermark: [u64; 3],
    /// What the zone keeps from those who could use a higher kind.
    pub lowmem_reserve: [u64; MAX_NR_ZONES],
}

/// The zones that have memory on a machine with these facts, by node and kind, if `managed(node, kind)` pages of each are the
/// allocator's and the settings are Linux's defaults but for `min_free_kbytes`.
pub fn zone_numbers(
    facts: &Facts,
    min_free_kbytes: u64,
    managed: impl Fn(u32, ZoneKind) -> u64,
) -> Vec<ZoneNumbers> {
    let machine = Machine::from_facts(facts, memvisor_abi::MAX_PHYSMEM_BITS, 0);
    let tuning = Tuning { min_free_kbytes: Some(min_free_kbytes), ..Tuning::default() };
    let all = |node| ZoneKind::ALL.map(|kind| managed(node, kind));
    let low = machine.nodes.iter().flat_map(|node| all(*node)).sum();
    let buffer = machine.nodes.iter().flat_map(|node| all(*node).into_iter().take(3)).sum();
    let mut zones = Vec::new();
    for &node in &machine.nodes {
        let reserves = lowmem_reserves(all(node), tuning.ratios);
        for (kind, lowmem_reserve) in ZoneKind::ALL.into_iter().zip(reserves) {
            let (extent, managed) = (machine.zone(node, kind), managed(node, kind));
            if extent.present > 0 {
                zones.push(ZoneNumbers {
                    node,
                    kind: kind as usize,
                    start_pfn: extent.start,
                    spanned: extent.spanned,
                    present: extent.present,
                    managed,
                    watermark: watermarks(managed, false, Sums { buffer, low }, &tuning),
                    lowmem_reserve,
                });
            }
        }
    }
    zones
}

/// `min_free_kbytes` of a Linux with this many pages in DMA, DMA32 and Normal (Linux: `calculate_min_free_kbytes`). From 512 MiB on
/// it has transparent huge pages (`hugepage_init`), and keeps so much that every kind of allocation finds a pageblock in each of its
/// `zones` zones with memory, but no more than a twentieth (Linux: `set_recommended_min_free_kbytes`).
pub fn linux_min_free_kbytes(pages: u64, zones: u64) -> u64 {
    const PAGEBLOCK: u64 = memvisor_abi::PAGEBLOCK_PAGES;
    // Two pageblocks a zone, and one for each pair of types that fall back to each other.
    const PAIRS: u64 = (memvisor_abi::MIGRATE_PCPTYPES * memvisor_abi::MIGRATE_PCPTYPES) as u64;
    let kib = |pages: u64| pages << (PAGE_SHIFT - 10);
    let huge = kib(pages) >= 512 << 10;
    let recommended = if huge { (PAGEBLOCK * zones * (2 + PAIRS)).min(pages / 20) } else { 0 };
    min_free_kbytes(kib(pages)).max(kib(recommended))
}

/// Linux's defaults, for comparison with a kernel's /proc/sys/vm.
pub const LINUX_DEFAULTS: VmSysctl = VmSysctl::DEFAULT;

#[cfg(test)]
mod tests {
    use memvisor_inspect::{FactE820, FactNodeMemory};

    use super::*;

    #[test]
    fn min_free_kbytes_is_what_linux_has() {
        // Linux 6.1 with 163632 KiB when it computed: isqrt(16 * 163632) = 1618.
        assert_eq!(linux_min_free_kbytes(163_632 / 4, 4), 1618);
        // 4 GiB, three zones: 11 * 3 pageblocks of 2 MiB.
        assert_eq!(linux_min_free_kbytes(1 << 20, 3), 11 * 3 * 2048);
        // A twentieth is less: of 131072 pages 6553.
        assert_eq!(linux_min_free_kbytes(131_072, 3), 4 * 6553);
    }

    #[test]
    fn zones_are_those_of_the_machine() {
        let facts = Facts {
            e820: vec![FactE820 { addr: 0x1000, size: (32 << 20) - 0x1000, kind: 1 }],
            node_memory: vec![FactNodeMemory { node: 0, base: 0x1000, len: (32 << 20) - 0x1000 }],
            ..Facts::default()
        };
        let managed = |_: u32, kind: ZoneKind| if kind <= ZoneKind::Dma32 { 4000 } else { 0 };
        let zones = zone_numbers(&facts, 800, managed);
        assert_eq!(zones.len(), 2);
        // 200 pages for two zones of the same size.
        assert_eq!((zones[0].start_pfn, zones[0].spanned, zones[0].watermark), (1, 4095, [100, 125, 150]));
        assert_eq!((zones[1].start_pfn, zones[1].present), (4096, 4096));
        assert_eq!(zones[0].lowmem_reserve, [0, 15, 15, 15, 15]);
    }
}
