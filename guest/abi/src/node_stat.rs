//! Counts of pages by what they are used for (Linux: `enum node_stat_item`, `pg_data_t::vm_stat`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! stats {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What is counted of the pages of a zone.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum NodeStat {
            $($(#[$doc])* $variant,)*
        }

        impl NodeStat {
            /// Linux's names in /proc/vmstat, by number.
            pub const NAMES: [&str; NR_NODE_STATS] = [$($name,)*];
        }

        /// How many [`NodeStat`]s there are.
        pub const NR_NODE_STATS: usize = [$($name,)*].len();
    };
}

stats! {
    /// Anonymous pages that entries map.
    AnonMapped = "nr_anon_pages",
    /// Pages of mappings that entries map.
    FileMapped = "nr_mapped",
    /// Pages of mappings and of the swap cache.
    FilePages = "nr_file_pages",
    /// Of files on disks, to be written.
    Dirty = "nr_dirty",
    /// Being written, to files or to swap areas.
    Writeback = "nr_writeback",
    /// Pages of shared memory.
    Shmem = "nr_shmem",
    /// Pages of the swap cache.
    SwapCache = "nr_swapcached",
    /// Page tables from the buddy allocator, those of the kernel's half too.
    PageTable = "nr_page_table_pages",
    /// Pages of kernel stacks, those kept for the next threads too.
    KernelStack = "nr_kernel_stack",
    /// Other pages behind vmalloc.
    Vmalloc = "nr_vmalloc",
    /// Nodes of trees of files that hold nothing but shadows.
    WorkingsetNodes = "workingset_nodes",
    /// Pages that reclaim began to write, since boot; from here on all count since boot.
    VmscanWrite = "nr_vmscan_write",
    /// Pages that became dirty.
    Dirtied = "nr_dirtied",
    /// Pages whose write ended.
    Written = "nr_written",
    /// Anonymous pages that came back.
    RefaultAnon = "workingset_refault_anon",
    /// Pages of files that came back.
    RefaultFile = "workingset_refault_file",
    /// Of [`NodeStat::RefaultAnon`], those that were active at once.
    ActivateAnon = "workingset_activate_anon",
    /// Of [`NodeStat::RefaultFile`], those that were active at once.
    ActivateFile = "workingset_activate_file",
    /// Of [`NodeStat::ActivateAnon`], those that had been in the working set.
    RestoreAnon = "workingset_restore_anon",
    /// Of [`NodeStat::ActivateFile`], those that had been in the working set.
    RestoreFile = "workingset_restore_file",
    /// Nodes with shadows that reclaim freed.
    NodeReclaim = "workingset_nodereclaim",
}

/// What one CPU counted of the pages of one zone. A count may wrap on one CPU; the sum over CPUs is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NodeStats {
    /// Indexed by [`NodeStat`].
    pub counts: [u64; NR_NODE_STATS],
}
const _: () = assert!(size_of::<NodeStats>() == 8 * NR_NODE_STATS);
