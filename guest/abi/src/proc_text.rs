//! The lines of /proc/vmstat and /proc/zoneinfo, in Linux 6.1's order: who prints them and who checks them from outside take the names from here.
//!
//! Lines of Linux that are not here are about what this kernel does not have or does not count (docs/files.md).

use crate::{LruKind, NodeStat, VmEvent};

/// What a line of a node says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeLine {
    /// Pages of a list.
    Lru(LruKind),
    /// Pages of slab caches that can be asked to give some back.
    SlabReclaimable,
    /// Pages of other slab caches.
    SlabUnreclaimable,
    /// Pages that reclaim took off the lists: anonymous 0, of files 1.
    Isolated(usize),
    /// A count.
    Stat(NodeStat),
    /// A count of pages, in KiB.
    Kib(NodeStat),
    /// This kernel has none of it.
    Zero,
}

use NodeLine::{Isolated, Kib, Lru, SlabReclaimable, SlabUnreclaimable, Stat, Zero};

/// Linux: `vmstat_text`, the part of `enum node_stat_item`.
pub const NODE_LINES: [(&str, NodeLine); 37] = [
    ("nr_inactive_anon", Lru(LruKind::InactiveAnon)),
    ("nr_active_anon", Lru(LruKind::ActiveAnon)),
    ("nr_inactive_file", Lru(LruKind::InactiveFile)),
    ("nr_active_file", Lru(LruKind::ActiveFile)),
    ("nr_unevictable", Lru(LruKind::Unevictable)),
    ("nr_slab_reclaimable", SlabReclaimable),
    ("nr_slab_unreclaimable", SlabUnreclaimable),
    ("nr_isolated_anon", Isolated(0)),
    ("nr_isolated_file", Isolated(1)),
    ("workingset_nodes", Stat(NodeStat::WorkingsetNodes)),
    ("workingset_refault_anon", Stat(NodeStat::RefaultAnon)),
    ("workingset_refault_file", Stat(NodeStat::RefaultFile)),
    ("workingset_activate_anon", Stat(NodeStat::ActivateAnon)),
    ("workingset_activate_file", Stat(NodeStat::ActivateFile)),
    ("workingset_restore_anon", Stat(NodeStat::RestoreAnon)),
    ("workingset_restore_file", Stat(NodeStat::RestoreFile)),
    ("workingset_nodereclaim", Stat(NodeStat::NodeReclaim)),
    ("nr_anon_pages", Stat(NodeStat::AnonMapped)),
    ("nr_mapped", Stat(NodeStat::FileMapped)),
    ("nr_file_pages", Stat(NodeStat::FilePages)),
    ("nr_dirty", Stat(NodeStat::Dirty)),
    ("nr_writeback", Stat(NodeStat::Writeback)),
    ("nr_writeback_temp", Zero),
    ("nr_shmem", Stat(NodeStat::Shmem)),
    ("nr_shmem_hugepages", Zero),
    ("nr_shmem_pmdmapped", Zero),
    ("nr_file_hugepages", Zero),
    ("nr_file_pmdmapped", Zero),
    ("nr_anon_transparent_hugepages", Zero),
    ("nr_vmscan_write", Stat(NodeStat::VmscanWrite)),
    ("nr_dirtied", Stat(NodeStat::Dirtied)),
    ("nr_written", Stat(NodeStat::Written)),
    ("nr_kernel_misc_reclaimable", Zero),
    ("nr_kernel_stack", Kib(NodeStat::KernelStack)),
    ("nr_page_table_pages", Stat(NodeStat::PageTable)),
    ("nr_sec_page_table_pages", Zero),
    ("nr_swapcached", Stat(NodeStat::SwapCache)),
];

/// What a line of a zone says, besides its free pages, which come first, and those of contiguous areas, which come last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneLine {
    /// Pages of a list.
    Lru(LruKind),
    /// Pages that are dirty or being written.
    WritePending,
    /// This kernel has none of it.
    Zero,
}

/// Linux: `vmstat_text`, the part of `enum zone_stat_item`.
pub const ZONE_LINES: [(&str, ZoneLine); 8] = [
    ("nr_zone_inactive_anon", ZoneLine::Lru(LruKind::InactiveAnon)),
    ("nr_zone_active_anon", ZoneLine::Lru(LruKind::ActiveAnon)),
    ("nr_zone_inactive_file", ZoneLine::Lru(LruKind::InactiveFile)),
    ("nr_zone_active_file", ZoneLine::Lru(LruKind::ActiveFile)),
    ("nr_zone_unevictable", ZoneLine::Lru(LruKind::Unevictable)),
    ("nr_zone_write_pending", ZoneLine::WritePending),
    // Nothing but mlock makes pages unevictable here.
    ("nr_mlock", ZoneLine::Lru(LruKind::Unevictable)),
    ("nr_bounce", ZoneLine::Zero),
];

/// Events of /proc/vmstat behind `pgpgin` and `pgpgout` (Linux: `vmstat_text`, the part of `enum vm_event_item`); `None` for what never happens
/// here.
pub const EVENT_LINES: [(&str, Option<VmEvent>); 61] = [
    ("pswpin", Some(VmEvent::Pswpin)),
    ("pswpout", Some(VmEvent::Pswpout)),
    ("pgalloc_dma", Some(VmEvent::PgallocDma)),
    ("pgalloc_dma32", Some(VmEvent::PgallocDma32)),
    ("pgalloc_normal", Some(VmEvent::PgallocNormal)),
    ("pgalloc_high", Some(VmEvent::PgallocHigh)),
    ("pgalloc_movable", Some(VmEvent::PgallocMovable)),
    ("allocstall_dma", Some(VmEvent::AllocstallDma)),
    ("allocstall_dma32", Some(VmEvent::AllocstallDma32)),
    ("allocstall_normal", Some(VmEvent::AllocstallNormal)),
    ("allocstall_high", Some(VmEvent::AllocstallHigh)),
    ("allocstall_movable", Some(VmEvent::AllocstallMovable)),
    ("pgfree", Some(VmEvent::Pgfree)),
    ("pgactivate", Some(VmEvent::Pgactivate)),
    ("pgdeactivate", Some(VmEvent::Pgdeactivate)),
    ("pglazyfree", Some(VmEvent::Pglazyfree)),
    ("pgfault", Some(VmEvent::Pgfault)),
    ("pgmajfault", Some(VmEvent::Pgmajfault)),
    ("pglazyfreed", Some(VmEvent::Pglazyfreed)),
    ("pgrefill", Some(VmEvent::Pgrefill)),
    ("pgsteal_kswapd", Some(VmEvent::PgstealKswapd)),
    ("pgsteal_direct", Some(VmEvent::PgstealDirect)),
    ("pgdemote_kswapd", None),
    ("pgdemote_direct", None),
    ("pgscan_kswapd", Some(VmEvent::PgscanKswapd)),
    ("pgscan_direct", Some(VmEvent::PgscanDirect)),
    ("pgscan_direct_throttle", Some(VmEvent::PgscanDirectThrottle)),
    ("pgscan_anon", Some(VmEvent::PgscanAnon)),
    ("pgscan_file", Some(VmEvent::PgscanFile)),
    ("pgsteal_anon", Some(VmEvent::PgstealAnon)),
    ("pgsteal_file", Some(VmEvent::PgstealFile)),
    ("zone_reclaim_failed", None),
    ("pginodesteal", None),
    ("slabs_scanned", Some(VmEvent::SlabsScanned)),
    ("kswapd_inodesteal", None),
    ("kswapd_low_wmark_hit_quickly", Some(VmEvent::KswapdLowWmarkHitQuickly)),
    ("kswapd_high_wmark_hit_quickly", Some(VmEvent::KswapdHighWmarkHitQuickly)),
    ("pageoutrun", Some(VmEvent::Pageoutrun)),
    ("pgrotated", Some(VmEvent::Pgrotated)),
    ("drop_pagecache", Some(VmEvent::DropPagecache)),
    ("drop_slab", Some(VmEvent::DropSlab)),
    ("oom_kill", Some(VmEvent::OomKill)),
    ("pgmigrate_success", Some(VmEvent::PgmigrateSuccess)),
    ("pgmigrate_fail", Some(VmEvent::PgmigrateFail)),
    ("compact_migrate_scanned", Some(VmEvent::CompactMigrateScanned)),
    ("compact_free_scanned", Some(VmEvent::CompactFreeScanned)),
    ("compact_isolated", Some(VmEvent::CompactIsolated)),
    ("compact_stall", Some(VmEvent::CompactStall)),
    ("compact_fail", Some(VmEvent::CompactFail)),
    ("compact_success", Some(VmEvent::CompactSuccess)),
    ("compact_daemon_wake", Some(VmEvent::KcompactdWake)),
    ("compact_daemon_migrate_scanned", Some(VmEvent::KcompactdMigrateScanned)),
    ("compact_daemon_free_scanned", Some(VmEvent::KcompactdFreeScanned)),
    ("unevictable_pgs_culled", Some(VmEvent::UnevictablePgsCulled)),
    ("unevictable_pgs_mlocked", Some(VmEvent::UnevictablePgsMlocked)),
    ("unevictable_pgs_munlocked", Some(VmEvent::UnevictablePgsMunlocked)),
    ("balloon_inflate", None),
    ("balloon_deflate", None),
    ("balloon_migrate", None),
    ("zswpin", Some(VmEvent::Zswpin)),
    ("zswpout", Some(VmEvent::Zswpout)),
];

/// Whether a line of another part, or of [`EVENT_LINES`], has this event of [`VmEvent::NAMES`] already.
pub fn is_linux_event(name: &str) -> bool {
    EVENT_LINES.iter().any(|(linux, _)| *linux == name) || NODE_LINES.iter().any(|(linux, _)| *linux == name)
}
