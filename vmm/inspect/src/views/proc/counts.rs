//! What nodes and zones count, derived from descriptors, lists and slabs: the lines that /proc/vmstat, /proc/zoneinfo and /proc/meminfo have of them.
//!
//! Counts of what happened (`nr_dirtied`, `workingset_*`) are the guest's own; everything else is found from outside.

use memvisor_abi::proc_text::{NODE_LINES, NodeLine, ZONE_LINES, ZoneLine};
use memvisor_abi::{
    LruKind, Lruvec, MAX_NR_ZONES, NR_LRU_LISTS, NR_NODE_STATS, NodeStat, PAGE_SIZE, SlabKind, cache_flags,
};

use crate::{DERIVED_STATS, Guest, GuestError, MemorySource, ZoneCounts};

const KIB: u64 = PAGE_SIZE / 1024;

/// All of it.
#[derive(Clone, Debug)]
pub(super) struct Counts {
    /// By zone.
    zones: Vec<ZoneCounts>,
    /// By node.
    lruvecs: Vec<Lruvec>,
    /// Pages of slabs by node, those that can be asked to give some back first; `None` of SLOB.
    slab: Option<Vec<[u64; 2]>>,
}

impl Counts {
    /// Reads it; `None` of a guest that does not count.
    ///
    /// # Errors
    /// [`GuestError`].
    pub(super) fn read<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<Option<Counts>, GuestError> {
        let mut zones = guest.node_stats()?;
        let lruvecs = guest.lruvecs()?;
        if zones.is_empty() || lruvecs.is_empty() {
            return Ok(None);
        }
        for (counts, derived) in zones.iter_mut().zip(guest.derive_node_stats()?) {
            for stat in DERIVED_STATS {
                counts[stat as usize] = derived[stat as usize];
            }
        }
        Ok(Some(Counts { zones, lruvecs, slab: slab(guest)? }))
    }

    /// The lines of a node.
    pub(super) fn node(&self, node: usize) -> Vec<(&'static str, u64)> {
        self.lines(|other| other == node)
    }

    /// The lines of all nodes.
    pub(super) fn all_nodes(&self) -> Vec<(&'static str, u64)> {
        self.lines(|_| true)
    }

    /// The lines of a zone, by its index.
    pub(super) fn zone(&self, index: usize) -> Vec<(&'static str, u64)> {
        self.zone_lines(|other| other == index)
    }

    /// The lines of all zones.
    pub(super) fn all_zones(&self) -> Vec<(&'static str, u64)> {
        self.zone_lines(|_| true)
    }

    /// A count of all nodes.
    pub(super) fn stat(&self, stat: NodeStat) -> u64 {
        self.stats(|_| true)[stat as usize]
    }

    /// Pages of a list, of all nodes.
    pub(super) fn list(&self, kind: LruKind) -> u64 {
        self.lists(|_| true)[kind as usize]
    }

    /// Pages of slabs: those that can be asked to give some back, others.
    pub(super) fn slab(&self) -> Option<[u64; 2]> {
        self.slab_of(|_| true)
    }

    fn stats(&self, wanted: impl Fn(usize) -> bool) -> ZoneCounts {
        let mut sums = [0_u64; NR_NODE_STATS];
        let zones = self.zones.iter().enumerate().filter(|(zone, _)| wanted(*zone));
        for (sum, count) in zones.flat_map(|(_, counts)| counts.iter().enumerate()) {
            sums[sum] = sums[sum].wrapping_add(*count);
        }
        sums
    }

    fn lists(&self, wanted: impl Fn(usize) -> bool) -> [u64; NR_LRU_LISTS] {
        let mut sums = [0_u64; NR_LRU_LISTS];
        for (_, lruvec) in self.lruvecs.iter().enumerate().filter(|(node, _)| wanted(*node)) {
            for (sum, kind) in sums.iter_mut().zip(LruKind::ALL) {
                *sum = sum.saturating_add(lruvec.pages(kind));
            }
        }
        sums
    }

    fn slab_of(&self, wanted: impl Fn(usize) -> bool) -> Option<[u64; 2]> {
        let nodes = self.slab.as_ref()?.iter().enumerate().filter(|(node, _)| wanted(*node));
        Some(nodes.fold([0; 2], |sum, (_, pages)| [sum[0] + pages[0], sum[1] + pages[1]]))
    }

    fn lines(&self, wanted: impl Fn(usize) -> bool) -> Vec<(&'static str, u64)> {
        let (stats, lists) = (self.stats(|zone| wanted(zone / MAX_NR_ZONES)), self.lists(&wanted));
        let slab = self.slab_of(&wanted);
        let isolated = |kind: usize| {
            let lruvecs = self.lruvecs.iter().enumerate().filter(|(node, _)| wanted(*node));
            lruvecs.filter_map(|(_, lruvec)| lruvec.isolated.get(kind)).sum()
        };
        let value = |what: NodeLine| match what {
            NodeLine::Lru(kind) => Some(lists[kind as usize]),
            NodeLine::SlabReclaimable => slab.map(|slab| slab[0]),
            NodeLine::SlabUnreclaimable => slab.map(|slab| slab[1]),
            NodeLine::Isolated(kind) => Some(isolated(kind)),
            NodeLine::Stat(stat) => Some(stats[stat as usize]),
            NodeLine::Kib(stat) => Some(stats[stat as usize].saturating_mul(KIB)),
            NodeLine::Zero => Some(0),
        };
        NODE_LINES.into_iter().filter_map(|(name, what)| Some((name, value(what)?))).collect()
    }

    fn zone_lines(&self, wanted: impl Fn(usize) -> bool) -> Vec<(&'static str, u64)> {
        let stats = self.stats(&wanted);
        let list = |kind: LruKind| {
            let zones = self.lruvecs.iter().enumerate().flat_map(|(node, lruvec)| {
                lruvec
                    .zone_pages
                    .iter()
                    .enumerate()
                    .map(move |(zone, lists)| (node * MAX_NR_ZONES + zone, lists))
            });
            let counts = zones.filter(|(zone, _)| wanted(*zone)).map(|(_, lists)| lists[kind as usize]);
            counts.fold(0, u64::saturating_add)
        };
        let value = |what: ZoneLine| match what {
            ZoneLine::Lru(kind) => list(kind),
            ZoneLine::WritePending => {
                stats[NodeStat::Dirty as usize].saturating_add(stats[NodeStat::Writeback as usize])
            }
            ZoneLine::Zero => 0,
        };
        ZONE_LINES.into_iter().map(|(name, what)| (name, value(what))).collect()
    }
}

fn slab<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<Option<Vec<[u64; 2]>>, GuestError> {
    let all = guest.slabs()?;
    if all.kind() == Some(SlabKind::Slob) {
        return Ok(None);
    }
    let mut nodes = vec![[0; 2]; guest.root().nodes.count as usize];
    for (index, cache) in all.used() {
        let kind = usize::from(cache.flags & cache_flags::RECLAIM_ACCOUNT == 0);
        for slab in all.of(index) {
            if let Some(pages) = nodes.get_mut(slab.page.node() as usize) {
                pages[kind] += slab.frames();
            }
        }
    }
    Ok(Some(nodes))
}
