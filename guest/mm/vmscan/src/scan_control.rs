//! What one reclaim wants and may do, and how far it is (Linux: `struct scan_control`).

use mm_core::{Gfp, Order, ZoneKind};

use crate::balance::Deactivate;

/// The priority that reclaim begins with: it looks at a 4096th of the lists. A lower number is harder (Linux: the same name).
pub const DEF_PRIORITY: u8 = 12;
/// Pages that are reclaimed at once (Linux: the same name).
pub const SWAP_CLUSTER_MAX: u64 = 32;

/// Who reclaims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The thread of a node.
    Kswapd,
    /// Whoever allocates.
    Direct,
}

/// What was seen of the pages of inactive lists in one pass over a node (Linux: `struct reclaim_stat`, `sc->nr`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanStat {
    /// Dirty.
    pub dirty: u64,
    /// Dirty, and nobody writes them.
    pub unqueued_dirty: u64,
    /// Being written, and waited for.
    pub congested: u64,
    /// Being written.
    pub writeback: u64,
    /// Being written since the whole list was.
    pub immediate: u64,
    /// Writes begun.
    pub pageout: u64,
    /// Made active again: anonymous, of files.
    pub activate: [u64; 2],
    /// Kept because they were used.
    pub ref_keep: u64,
    /// Still mapped after the attempt to unmap.
    pub unmap_fail: u64,
    /// Taken off the lists.
    pub taken: u64,
    /// Those of files.
    pub file_taken: u64,
}

impl ScanStat {
    pub(crate) fn add(&mut self, other: &ScanStat) {
        self.dirty += other.dirty;
        self.unqueued_dirty += other.unqueued_dirty;
        self.congested += other.congested;
        self.writeback += other.writeback;
        self.immediate += other.immediate;
        self.pageout += other.pageout;
        self.activate[0] += other.activate[0];
        self.activate[1] += other.activate[1];
        self.ref_keep += other.ref_keep;
        self.unmap_fail += other.unmap_fail;
        self.taken += other.taken;
        self.file_taken += other.file_taken;
    }
}

/// What reclaim found out about the lists of a node before it scans them (Linux: set by `prepare_scan_count`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// What reclaim of anonymous pages and of files cost.
    pub cost: [u64; 2],
    /// Active lists that may shrink.
    pub may_deactivate: Deactivate,
    /// There is plenty of inactive cache.
    pub cache_trim_mode: bool,
    /// There is hardly any page of a file left.
    pub file_is_tiny: bool,
}

/// A reclaim.
#[derive(Clone, Copy, Debug)]
pub struct ScanControl {
    /// Who.
    pub who: Who,
    /// What the allocation allows.
    pub gfp: Gfp,
    /// What it wants.
    pub order: Order,
    /// The highest zone that helps.
    pub reclaim_idx: ZoneKind,
    /// Pages that are enough.
    pub nr_to_reclaim: u64,
    /// How hard it tries.
    pub priority: u8,
    /// May begin writes.
    pub may_writepage: bool,
    /// May take pages that are mapped.
    pub may_unmap: bool,
    /// May take anonymous pages.
    pub may_swap: bool,
    /// Shrinks active lists whether or not they are long.
    pub force_deactivate: bool,
    /// An active list was spared.
    pub skipped_deactivate: bool,
    /// Compaction could succeed now.
    pub compaction_ready: bool,
    /// Every page of a list was being written (Linux: `PGDAT_WRITEBACK`, of the node).
    pub node_writeback: bool,
    /// Every page of a list was dirty (Linux: `PGDAT_DIRTY`, of the node).
    pub node_dirty: bool,
    /// Pages looked at.
    pub nr_scanned: u64,
    /// Pages freed.
    pub nr_reclaimed: u64,
    /// What this pass over a node saw.
    pub nr: ScanStat,
    /// What is known of its lists.
    pub scan: Scan,
}

impl ScanControl {
    /// A reclaim that may do everything.
    pub const fn new(who: Who, gfp: Gfp, order: Order, reclaim_idx: ZoneKind) -> ScanControl {
        ScanControl {
            who,
            gfp,
            order,
            reclaim_idx,
            nr_to_reclaim: SWAP_CLUSTER_MAX,
            priority: DEF_PRIORITY,
            may_writepage: true,
            may_unmap: true,
            may_swap: true,
            force_deactivate: false,
            skipped_deactivate: false,
            compaction_ready: false,
            node_writeback: false,
            node_dirty: false,
            nr_scanned: 0,
            nr_reclaimed: 0,
            nr: ScanStat {
                dirty: 0,
                unqueued_dirty: 0,
                congested: 0,
                writeback: 0,
                immediate: 0,
                pageout: 0,
                activate: [0; 2],
                ref_keep: 0,
                unmap_fail: 0,
                taken: 0,
                file_taken: 0,
            },
            scan: Scan {
                cost: [0; 2],
                may_deactivate: Deactivate::NONE,
                cache_trim_mode: false,
                file_is_tiny: false,
            },
        }
    }

    pub(crate) fn is_kswapd(&self) -> bool {
        self.who == Who::Kswapd
    }
}
