//! Events that the page allocator counts (Linux: `enum numa_stat_item`, `enum vm_event_item`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// NUMA events of a zone.
pub const NR_NUMA_EVENTS: usize = 6;

/// Where allocations were served from, by zone (Linux: `enum numa_stat_item`, /sys's `numastat`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum NumaEvent {
    /// Served by the node that was asked for.
    Hit = 0,
    /// Served here although another node was asked for.
    Miss = 1,
    /// Asked for here, served elsewhere.
    Foreign = 2,
    /// Placed here by interleaving, as intended.
    InterleaveHit = 3,
    /// Asked for by a CPU of this node.
    Local = 4,
    /// Asked for by a CPU of another node.
    Other = 5,
}

impl NumaEvent {
    /// Linux's names in /proc/zoneinfo, by number.
    pub const NAMES: [&str; NR_NUMA_EVENTS] =
        ["numa_hit", "numa_miss", "numa_foreign", "numa_interleave", "numa_local", "numa_other"];
}

macro_rules! events {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Events of the whole machine (Linux: `enum vm_event_item`, /proc/vmstat).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum VmEvent {
            $($(#[$doc])* $variant,)*
        }

        impl VmEvent {
            /// Names in /proc/vmstat, by number; own names where Linux has no such event.
            pub const NAMES: [&str; NR_VM_EVENTS] = [$($name,)*];
        }

        /// Events of the machine.
        pub const NR_VM_EVENTS: usize = [$($name,)*].len();
    };
}

events! {
    /// Pages allocated from ZONE_DMA; the four that follow are those of the other zones, by `ZoneKind`.
    PgallocDma = "pgalloc_dma",
    /// See [`VmEvent::PgallocDma`].
    PgallocDma32 = "pgalloc_dma32",
    /// See [`VmEvent::PgallocDma`].
    PgallocNormal = "pgalloc_normal",
    /// See [`VmEvent::PgallocDma`].
    PgallocHigh = "pgalloc_high",
    /// See [`VmEvent::PgallocDma`].
    PgallocMovable = "pgalloc_movable",
    /// Direct reclaims for requests whose highest zone is ZONE_DMA; the four that follow by `ZoneKind`.
    AllocstallDma = "allocstall_dma",
    /// See [`VmEvent::AllocstallDma`].
    AllocstallDma32 = "allocstall_dma32",
    /// See [`VmEvent::AllocstallDma`].
    AllocstallNormal = "allocstall_normal",
    /// See [`VmEvent::AllocstallDma`].
    AllocstallHigh = "allocstall_high",
    /// See [`VmEvent::AllocstallDma`].
    AllocstallMovable = "allocstall_movable",
    /// Pages freed.
    Pgfree = "pgfree",
    /// Wake-ups of kswapd that the allocator asked for (not in Linux).
    KswapdWake = "kswapd_wake",
    /// Direct compactions.
    CompactStall = "compact_stall",
    /// Direct compactions after which the request still failed.
    CompactFail = "compact_fail",
    /// Direct compactions after which the request succeeded.
    CompactSuccess = "compact_success",
    /// Calls for the OOM killer.
    OomKill = "oom_kill",
    /// Slow paths entered (not in Linux).
    AllocSlowpath = "alloc_slowpath",
    /// Requests that failed (not in Linux).
    AllocFail = "alloc_fail",
    /// Per-CPU lists refilled (not in Linux).
    PcpRefill = "pcp_refill",
    /// Batches given back by per-CPU lists (not in Linux).
    PcpFlush = "pcp_flush",
    /// Drains of all per-CPU lists (not in Linux).
    PcpDrain = "pcp_drain",
    /// Frames cleared for `__GFP_ZERO` (not in Linux).
    PageZeroed = "page_zeroed",
    /// Frames not cleared for `__GFP_ZERO` because they were known to be zero (not in Linux).
    PageKnownZero = "page_known_zero",
    /// Blocks that were moved elsewhere.
    PgmigrateSuccess = "pgmigrate_success",
    /// Blocks that were to be moved and stayed.
    PgmigrateFail = "pgmigrate_fail",
    /// Frames that the migration scanner looked at.
    CompactMigrateScanned = "compact_migrate_scanned",
    /// Frames that the free scanner looked at.
    CompactFreeScanned = "compact_free_scanned",
    /// Frames that either scanner took out.
    CompactIsolated = "compact_isolated",
    /// Runs of kcompactd.
    KcompactdWake = "compact_daemon_wake",
    /// Of [`VmEvent::CompactMigrateScanned`], those by kcompactd.
    KcompactdMigrateScanned = "compact_daemon_migrate_scanned",
    /// Of [`VmEvent::CompactFreeScanned`], those by kcompactd.
    KcompactdFreeScanned = "compact_daemon_free_scanned",
    /// Pages that kswapd looked at on inactive lists.
    PgscanKswapd = "pgscan_kswapd",
    /// Pages that direct reclaim looked at on inactive lists.
    PgscanDirect = "pgscan_direct",
    /// Of both, anonymous pages and those of shared memory.
    PgscanAnon = "pgscan_anon",
    /// Of both, pages of files.
    PgscanFile = "pgscan_file",
    /// Pages that kswapd freed.
    PgstealKswapd = "pgsteal_kswapd",
    /// Pages that direct reclaim freed.
    PgstealDirect = "pgsteal_direct",
    /// Of both, anonymous pages and those of shared memory.
    PgstealAnon = "pgsteal_anon",
    /// Of both, pages of files.
    PgstealFile = "pgsteal_file",
    /// Pages of active lists that were looked at.
    Pgrefill = "pgrefill",
    /// Pages that became active.
    Pgactivate = "pgactivate",
    /// Pages that became inactive.
    Pgdeactivate = "pgdeactivate",
    /// Anonymous pages that MADV_FREE gave away, and that go before others.
    Pglazyfree = "pglazyfree",
    /// Of those, the ones that reclaim dropped.
    Pglazyfreed = "pglazyfreed",
    /// Pages moved to the tail of an inactive list when their write had ended.
    Pgrotated = "pgrotated",
    /// Runs of kswapd.
    Pageoutrun = "pageoutrun",
    /// kswapd was woken again before it slept, below the low mark.
    KswapdLowWmarkHitQuickly = "kswapd_low_wmark_hit_quickly",
    /// The same, above the low mark and below the high one.
    KswapdHighWmarkHitQuickly = "kswapd_high_wmark_hit_quickly",
    /// Direct reclaims that waited for kswapd because the reserves were nearly gone.
    PgscanDirectThrottle = "pgscan_direct_throttle",
    /// Waits inside reclaim (not in Linux, which has one trace event for all).
    ReclaimThrottled = "reclaim_throttled",
    /// Objects that shrinkers were asked for.
    SlabsScanned = "slabs_scanned",
    /// Anonymous pages that came back.
    WorkingsetRefaultAnon = "workingset_refault_anon",
    /// Pages of files that came back.
    WorkingsetRefaultFile = "workingset_refault_file",
    /// Of [`VmEvent::WorkingsetRefaultAnon`], those that were active at once.
    WorkingsetActivateAnon = "workingset_activate_anon",
    /// Of [`VmEvent::WorkingsetRefaultFile`], those that were active at once.
    WorkingsetActivateFile = "workingset_activate_file",
    /// Of [`VmEvent::WorkingsetActivateAnon`], those that had been in the working set.
    WorkingsetRestoreAnon = "workingset_restore_anon",
    /// Of [`VmEvent::WorkingsetActivateFile`], those that had been in the working set.
    WorkingsetRestoreFile = "workingset_restore_file",
    /// Pages that scans found to be locked, and put on the unevictable list.
    UnevictablePgsCulled = "unevictable_pgs_culled",
    /// Pages that came to the unevictable list because they were locked.
    UnevictablePgsMlocked = "unevictable_pgs_mlocked",
    /// Pages that left it because they were unlocked or unmapped.
    UnevictablePgsMunlocked = "unevictable_pgs_munlocked",
    /// Page faults that were served.
    Pgfault = "pgfault",
    /// Of [`VmEvent::Pgfault`], those that read from a device.
    Pgmajfault = "pgmajfault",
    /// Pages read from the devices of swap areas.
    Pswpin = "pswpin",
    /// Pages written to the devices of swap areas.
    Pswpout = "pswpout",
    /// Pages that zswap gave back.
    Zswpin = "zswpin",
    /// Pages that zswap took.
    Zswpout = "zswpout",
    /// Times that somebody dropped the page cache.
    DropPagecache = "drop_pagecache",
    /// Times that somebody dropped objects of the kernel.
    DropSlab = "drop_slab",
}

/// The events that one CPU counted. Readers sum over CPUs (Linux: `vm_event_states`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CpuEvents {
    /// Indexed by [`VmEvent`].
    pub events: [u64; NR_VM_EVENTS],
}

impl CpuEvents {
    /// Nothing happened.
    pub const ZERO: CpuEvents = CpuEvents { events: [0; NR_VM_EVENTS] };
}
