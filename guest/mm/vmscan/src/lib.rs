//! LRU lists and reclaim (Linux: mm/swap.c, mm/vmscan.c, mm/workingset.c).
//!
//! Pages of programs and of the page cache are on lists of their node, inactive and active, of files and not; reclaim takes them from
//! the tail of the inactive lists and asks, through reverse mapping, whether they were used meanwhile. A page comes to its list
//! through a batch of the CPU that made it. What pages are, how they are unmapped and written, and what the zones have, stands behind
//! [`Lru`], [`Pages`] and [`Zones`].
//!
//! Invariants, checked by [`audit`]:
//! L1  a page with LRU is on the list that its flags name, of its node, and on no other; no other page is on a list;
//! L2  lists link back as they link forward, and count their pages, by zone too;
//! L3  a page without LRU and LRU_ADD is on no list, or on the way: in the hands of whoever isolated it, who has a reference;
//! L4  `isolated` counts the pages that reclaim has in its hands.
//!
//! There are two policies behind one interface: active and inactive lists, and generations ([`lrugen`]), which has rules of its own.
//!
//! Lock order: a node's LRU lock comes below page-table and rmap locks, and takes nothing.
//!
//! Differs from Linux: a batch holds no references. An entry of a batch is a hint: whoever drains it takes the page's LRU_ADD mark, and
//! whoever frees the page takes the mark before, so the page may be gone, or given out again, when its turn comes. So
//! a count of references is still what the owners make it, and exiting programs need no drain.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod audit;
mod balance;
mod batch;
mod direct;
mod isolate;
mod kswapd;
mod list;
mod lrugen;
mod machine;
mod page_list;
mod references;
mod scan_control;
mod shrink;
mod shrink_folios;
mod shrink_node;
mod workingset;

#[cfg(test)]
mod tests;

pub use audit::{Broken, audit};
pub use balance::{Deactivate, ScanBalance, ScanCount, inactive_is_low, scan_count};
pub use batch::{
    BATCH_SIZE, Batch, CpuBatches, deactivate_file_folio, deactivate_folio, folio_activate, folio_add_lru,
    folio_add_lru_as, folio_del_lru, folio_mark_accessed, folio_rotate_reclaimable, folios_del_lru,
    lru_add_drain, lru_add_drain_all, mark_page_lazyfree, set_unevictable,
};
pub use direct::{allow_direct_reclaim, try_to_free_pages};
pub use isolate::{folio_isolate_lru, folio_putback_lru};
pub use kswapd::{Balanced, KswapdState, MAX_RECLAIM_RETRIES, balance_pgdat, pgdat_balanced};
pub use lrugen::{LRU_GEN_BATCH, folios_update_gen, lru_gen_init};
pub use machine::{Lru, Mark, PageOut, Pages, Referenced, Throttle, Zones};
pub use scan_control::{DEF_PRIORITY, SWAP_CLUSTER_MAX, Scan, ScanControl, ScanStat, Who};
pub use shrink_node::{shrink_node, snapshot_refaults};
pub use workingset::{Refault, lru_note_cost, workingset_eviction, workingset_refault};
