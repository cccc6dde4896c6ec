//! Counts of pages by what they are used for: as the guest keeps them, and as the descriptors have them.

use std::collections::HashMap;

use memvisor_abi::{
    MAX_NR_ZONES, MAX_NUMNODES, Mapping, NR_NODE_STATS, NodeStat, NodeStats, Page, PageFlags, PageKind,
};

use super::tables::{Absent, CPUS_MAX};
use super::{Guest, GuestError, TableName};
use crate::MemorySource;

/// Counts of a zone, by [`NodeStat`].
pub type ZoneCounts = [u64; NR_NODE_STATS];

/// Those that descriptors say; the others only count what happened.
pub const DERIVED: [NodeStat; 10] = [
    NodeStat::AnonMapped,
    NodeStat::FileMapped,
    NodeStat::FilePages,
    NodeStat::Dirty,
    NodeStat::Writeback,
    NodeStat::Shmem,
    NodeStat::SwapCache,
    NodeStat::PageTable,
    NodeStat::KernelStack,
    NodeStat::Vmalloc,
];

impl<S: MemorySource + ?Sized> Guest<'_, S> {
    /// What the guest counts, by zone, summed over CPUs; empty if it publishes nothing.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn node_stats(&self) -> Result<Vec<ZoneCounts>, GuestError> {
        let max = CPUS_MAX * (MAX_NUMNODES * MAX_NR_ZONES) as u64;
        let table: Vec<NodeStats> =
            self.table(TableName::NodeStats, self.root().node_stats, max, Absent::IsEmpty)?;
        let zones = self.root().zones.count as usize;
        if table.is_empty() || zones == 0 {
            return Ok(Vec::new());
        }
        let mut sums = vec![[0_u64; NR_NODE_STATS]; zones];
        for set in table.chunks(zones) {
            for (sum, counted) in sums.iter_mut().zip(set) {
                for (sum, count) in sum.iter_mut().zip(counted.counts) {
                    *sum = sum.wrapping_add(count);
                }
            }
        }
        Ok(sums)
    }

    /// What the descriptors say, by zone: [`DERIVED`]; the other counts are 0.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn derive_node_stats(&self) -> Result<Vec<ZoneCounts>, GuestError> {
        let mut sums = vec![[0_u64; NR_NODE_STATS]; self.root().zones.count as usize];
        let mut mappings = HashMap::new();
        self.for_each_page(|_, page| {
            let zone = page.node() as usize * MAX_NR_ZONES + page.zone() as usize;
            let Some(counts) = sums.get_mut(zone) else { return };
            let mut add = |stat: NodeStat| counts[stat as usize] += 1;
            let flags = page.page_flags();
            match PageKind::from_raw(page.kind) {
                Some(PageKind::KernelStack) => add(NodeStat::KernelStack),
                Some(PageKind::Vmalloc) => add(NodeStat::Vmalloc),
                // Those of the boot allocator are not counted.
                Some(PageKind::Table) if !flags.contains(PageFlags::RESERVED) => add(NodeStat::PageTable),
                Some(PageKind::User | PageKind::Allocated) => {
                    if flags.contains(PageFlags::SWAPCACHE) {
                        add(NodeStat::SwapCache);
                        add(NodeStat::FilePages);
                    }
                    if flags.contains(PageFlags::WRITEBACK) {
                        add(NodeStat::Writeback);
                    }
                    if page.kind == PageKind::User as u8 {
                        let flags_of = |gpa| self.mapping(gpa).map_or(0, |mapping| mapping.flags);
                        user(page, |gpa| *mappings.entry(gpa).or_insert_with(|| flags_of(gpa)), add);
                    }
                }
                _ => {}
            }
        })?;
        Ok(sums)
    }
}

/// A user page: what maps it, and what it is to its mapping.
fn user(page: &Page, flags_of: impl FnOnce(u64) -> u32, mut add: impl FnMut(NodeStat)) {
    let (flags, anon) = (page.page_flags(), page.mapping & Page::MAPPING_ANON != 0);
    if page.mapcount >= 0 {
        add(if anon { NodeStat::AnonMapped } else { NodeStat::FileMapped });
    }
    if anon || page.mapping == 0 || page.refcount <= 0 {
        return;
    }
    let mapping = flags_of(page.mapping);
    if mapping & Mapping::HOLDS_PAGES == 0 {
        return;
    }
    add(NodeStat::FilePages);
    if flags.contains(PageFlags::SWAPBACKED) {
        add(NodeStat::Shmem);
    }
    if mapping & Mapping::WRITTEN_BACK != 0 && flags.contains(PageFlags::DIRTY) {
        add(NodeStat::Dirty);
    }
}
