//! Where zones end: 16 MiB, 4 GiB, and what `lowmem=` and `movablecore=` of the guest's command line ask for.
//!
//! Written from Linux's documentation of the two words (`highmem=`, `movablecore=` in kernel-parameters.txt) and checked against
//! its results; nothing of it is the guest's.

use std::collections::BTreeMap;

use memvisor_abi::{MAX_NR_ZONES, NR_ORDERS, PAGE_SHIFT, Zone, ZoneKind};

use crate::frames::{Frames, clip, count};
use crate::watermark::number;

/// Least low memory that can be asked for.
const LOWMEM_MIN: u64 = 64 << 20;
/// Frames of the largest block: no block crosses a border that somebody chose.
const LARGEST: u64 = 1 << (NR_ORDERS - 1);
const DMA_END: u64 = (16 << 20) >> PAGE_SHIFT;
const DMA32_END: u64 = (4 << 30) >> PAGE_SHIFT;

/// The borders of a machine's zones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Borders {
    /// First frame that the direct map does not reach.
    pub lowmem_end: u64,
    /// First movable frame of each node that has any.
    pub movable: BTreeMap<u32, u64>,
}

impl Default for Borders {
    fn default() -> Borders {
        Borders { lowmem_end: u64::MAX, movable: BTreeMap::new() }
    }
}

impl Borders {
    /// From the words of a command line, for a machine with these frames of RAM by node and a kernel that ends at the physical
    /// address `kernel_end`.
    pub fn of(cmdline: &str, nodes: &BTreeMap<u32, Vec<Frames>>, kernel_end: u64) -> Borders {
        let mut borders = Borders::default();
        let ram_end = nodes.values().flatten().map(|frames| frames.end).max().unwrap_or(0);
        if let Some(size) = number(cmdline, "lowmem").filter(|size| *size >= LOWMEM_MIN) {
            let end = (size >> PAGE_SHIFT) / LARGEST * LARGEST;
            if end << PAGE_SHIFT >= kernel_end && end < ram_end {
                borders.lowmem_end = end;
            }
        }
        if let Some(size) = number(cmdline, "movablecore") {
            borders.movable = spread(nodes, size >> PAGE_SHIFT, borders.highest_zone(ram_end).start);
        }
        borders
    }

    /// As a guest's own zones have them, where nobody says what it was told.
    pub fn of_zones(zones: &[Zone]) -> Borders {
        let mut borders = Borders::default();
        for (index, zone) in zones.iter().enumerate().filter(|(_, zone)| zone.spanned_pages > 0) {
            match ZoneKind::ALL.get(index % MAX_NR_ZONES) {
                Some(ZoneKind::HighMem) => borders.lowmem_end = borders.lowmem_end.min(zone.start_pfn),
                Some(ZoneKind::Movable) => {
                    borders.movable.insert(zone.node, zone.start_pfn);
                }
                _ => {}
            }
        }
        borders
    }

    /// Frames that belong to a kind of zone other than Movable, whatever the node.
    pub fn zone(&self, zone: ZoneKind) -> Frames {
        let low = |start: u64, end: u64| Frames::new(start.min(self.lowmem_end), end.min(self.lowmem_end));
        match zone {
            ZoneKind::Dma => low(0, DMA_END),
            ZoneKind::Dma32 => low(DMA_END, DMA32_END),
            ZoneKind::Normal => low(DMA32_END, u64::MAX),
            ZoneKind::HighMem => Frames::new(self.lowmem_end, u64::MAX),
            ZoneKind::Movable => Frames::new(0, 0),
        }
    }

    /// The highest kind of zone that has room below the end of RAM: movable memory is a part of it.
    fn highest_zone(&self, ram_end: u64) -> Frames {
        let kinds = [ZoneKind::HighMem, ZoneKind::Normal, ZoneKind::Dma32];
        let room = |zone: &Frames| !zone.and(Frames::new(0, ram_end)).is_empty();
        kinds.map(|kind| self.zone(kind)).into_iter().find(room).unwrap_or(self.zone(ZoneKind::Dma))
    }
}

/// What a node still has to give to the kernel.
struct Share<'n> {
    ram: &'n [Frames],
    /// Everything of the node below is the kernel's.
    kernel_end: u64,
}

/// First movable frame by node, if `pages` in all shall be movable and nothing below `usable`.
///
/// The rest is the kernel's, evenly from each node; a node that is too small leaves its part to the others, round by round. What lies
/// below `usable` counts for the node's part, and even where it is more than that, it is the kernel's.
fn spread(nodes: &BTreeMap<u32, Vec<Frames>>, pages: u64, usable: u64) -> BTreeMap<u32, u64> {
    let total: u64 = nodes.values().map(|ram| count(ram)).sum();
    let movable = pages.div_ceil(LARGEST).saturating_mul(LARGEST).min(total);
    let mut left = total - movable;
    if movable == 0 || left == 0 {
        return BTreeMap::new();
    }
    let populated = nodes.iter().filter(|(_, ram)| !ram.is_empty());
    let mut shares: BTreeMap<u32, Share<'_>> =
        populated.map(|(node, ram)| (*node, Share { ram, kernel_end: 0 })).collect();
    for sharers in (1..=shares.len() as u64).rev() {
        let mut part = left / sharers;
        for share in shares.values_mut() {
            if left < part {
                part = left / sharers;
            }
            left = left.saturating_sub(share.give(part, usable));
        }
        if left < sharers {
            break;
        }
    }
    let start = |(node, share): (u32, Share<'_>)| {
        let start = share.kernel_end.div_ceil(LARGEST) * LARGEST;
        let end = share.ram.iter().map(|frames| frames.end).max()?;
        (start < end).then_some((node, start))
    };
    shares.into_iter().filter_map(start).collect()
}

impl Share<'_> {
    /// Moves the end up by `part` frames of RAM and over all that is not usable; how many frames that were.
    fn give(&mut self, mut part: u64, usable: u64) -> u64 {
        let mut given = 0;
        let rest = Frames::new(self.kernel_end, u64::MAX);
        for frames in clip(self.ram, rest) {
            let low = frames.and(Frames::new(0, usable));
            let high = frames.and(Frames::new(usable, u64::MAX));
            if !low.is_empty() {
                given += low.len();
                part = part.saturating_sub(low.len());
                self.kernel_end = low.end;
            }
            if high.is_empty() {
                continue;
            }
            let taken = part.min(high.len());
            (given, part) = (given + taken, part - taken);
            self.kernel_end = high.start + taken;
            if part == 0 {
                break;
            }
        }
        given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames of a MiB.
    const MI: u64 = 256;

    fn borders(cmdline: &str, nodes: &[&[(u64, u64)]]) -> Borders {
        let ram = |ranges: &&[(u64, u64)]| ranges.iter().map(|&(a, b)| Frames::new(a * MI, b * MI)).collect();
        Borders::of(cmdline, &(0..).zip(nodes.iter().map(ram)).collect(), 20 << 20)
    }

    #[test]
    fn low_memory_ends_at_a_multiple_of_the_largest_block() {
        assert_eq!(borders("lowmem=99M", &[&[(0, 256)]]).lowmem_end, 96 * MI);
        // Too little, and more than there is.
        for ignored in ["lowmem=63M", "lowmem=256M", "lowmem=", ""] {
            assert_eq!(borders(ignored, &[&[(0, 256)]]), Borders::default(), "{ignored}");
        }
    }

    #[test]
    fn zones_end_where_low_memory_does() {
        let borders = borders("lowmem=96M", &[&[(0, 256)]]);
        assert_eq!(borders.zone(ZoneKind::Dma32), Frames::new(16 * MI, 96 * MI));
        assert!(borders.zone(ZoneKind::Normal).is_empty());
        assert_eq!(borders.zone(ZoneKind::HighMem).start, 96 * MI);
    }

    #[test]
    fn movable_memory_is_the_top_of_the_highest_zone() {
        let starts = |cmdline, nodes: &[&[(u64, u64)]]| -> Vec<(u32, u64)> {
            borders(cmdline, nodes).movable.into_iter().map(|(node, start)| (node, start / MI)).collect()
        };
        assert_eq!(starts("movablecore=64M", &[&[(0, 256)]]), [(0, 192)]);
        assert_eq!(starts("movablecore=300M lowmem=96M", &[&[(0, 256)]]), []);
        assert_eq!(starts("movablecore=200M lowmem=96M", &[&[(0, 256)]]), [(0, 96)]);
        // Node 0 has exactly its share; a smaller one leaves the rest to node 1.
        assert_eq!(starts("movablecore=256M", &[&[(0, 256)], &[(256, 768)]]), [(1, 512)]);
        assert_eq!(starts("movablecore=128M", &[&[(0, 128)], &[(128, 640)]]), [(1, 512)]);
        // All below 4 GiB is the kernel's.
        assert_eq!(starts("movablecore=4G", &[&[(0, 3072), (4096, 6144)]]), [(0, 4096)]);
        assert_eq!(starts("movablecore=0", &[&[(0, 256)]]), []);
    }
}
