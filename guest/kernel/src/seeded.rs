//! Seeded faults: known corruptions, switched on with `seeded=NAME`, that the audit must find. Each is
//! made just before the last checkpoint, on a healthy machine, and is the only thing wrong.

mod buddy;
mod cache;
mod compaction;
mod devices;
mod dma;
mod entries;
mod log;
mod lru;
mod oom;
mod owners;
mod pcp;
mod pti;
mod slab;
mod spaces;
mod swap;
mod tables;
mod topology;
mod victim;
mod vmalloc;
mod zswap;

use crate::{cmdline, println};

/// A corruption; `Err` says why this machine cannot have it.
type Fault = fn() -> Result<(), &'static str>;

/// Names as the command line gives them. docs/audit.md names the rule that finds each.
const FAULTS: &[(&str, Fault)] = &[
    ("buddy-misaligned", buddy::misaligned),
    ("buddy-unmerged", buddy::unmerged),
    ("buddy-wrong-zone", buddy::wrong_zone),
    ("buddy-cycle", buddy::cycle),
    ("buddy-nr-free", buddy::nr_free),
    ("buddy-nonempty", buddy::nonempty),
    ("buddy-block-type", buddy::block_type),
    ("known-zero", buddy::known_zero),
    ("pageblock-isolated", buddy::pageblock_isolated),
    ("pageblock-type", buddy::pageblock_type),
    ("zone-free-cma", buddy::nr_free_cma),
    ("cma-area", buddy::cma_area),
    ("cma-bitmap", buddy::cma_bitmap),
    ("zone-highatomic", buddy::highatomic),
    ("zone-isolated", buddy::nr_isolated),
    ("zone-boost", buddy::boost),
    ("zone-free-pages", buddy::free_pages),
    ("zone-present", buddy::present),
    ("zone-watermark", buddy::watermark),
    ("stale-watermark", buddy::stale_watermark),
    ("sysctl-user-kbytes", buddy::sysctl_user_kbytes),
    ("zone-lowmem-reserve", buddy::lowmem_reserve),
    ("direct-map-hole", tables::direct_map_hole),
    ("compact-position", compaction::position),
    ("compact-deferral", compaction::deferral),
    ("movable-isolated", compaction::isolated),
    ("movable-owner", compaction::owner),
    ("movable-free", compaction::free_movable),
    ("lru-cycle", lru::cycle),
    ("lru-count", lru::count),
    ("lru-zone-count", lru::zone_count),
    ("lru-active", lru::active),
    ("lru-swapbacked", lru::swapbacked),
    ("lru-lost", lru::lost),
    ("lru-unlisted", lru::unlisted),
    ("lru-batch-lost", lru::batch_lost),
    ("lru-isolated", lru::isolated),
    ("lrugen-count", lru::gen_count),
    ("lrugen-zone-count", lru::gen_zone_count),
    ("lrugen-place", lru::gen_place),
    ("lrugen-active", lru::gen_active),
    ("lrugen-seq", lru::gen_seq),
    ("lrugen-time", lru::gen_time),
    ("double-owner", owners::double_owner),
    ("pcp-count", pcp::count),
    ("pcp-state", pcp::state),
    ("pcp-cycle", pcp::cycle),
    ("pcp-wrong-zone", pcp::wrong_zone),
    ("pcp-high", pcp::high),
    ("pcp-in-buddy", pcp::in_buddy),
    ("zonelist-order", pcp::zonelist_order),
    ("zonelist-own", pcp::zonelist_own),
    ("numa-event", pcp::numa_event),
    ("leak", owners::leak),
    ("wrong-kind", owners::wrong_kind),
    ("memmap-node", owners::memmap_node),
    ("free-swapbacked", owners::free_swapbacked),
    ("user-refcount", owners::user_refcount),
    ("percpu-overlap", owners::percpu_overlap),
    ("wx-mapping", tables::wx_mapping),
    ("user-kernel-mapping", tables::user_kernel_mapping),
    ("pte-reserved-bit", tables::reserved_bit),
    ("table-outside-ram", tables::table_outside_ram),
    ("cache-alias", tables::cache_alias),
    ("exec-alias", tables::exec_alias),
    ("e820-clean", topology::e820_clean),
    ("numa-distance", topology::numa_distance),
    ("slab-owner", slab::owner),
    ("slab-inuse", slab::inuse),
    ("slab-freelist-cycle", slab::freelist_cycle),
    ("slab-freelist-outside", slab::freelist_outside),
    ("slab-double-free", slab::double_free),
    ("slab-lists", slab::lists),
    ("slab-counters", slab::counters),
    ("slab-redzone", slab::redzone),
    ("vmalloc-overlap", vmalloc::overlap),
    ("vmalloc-unmapped", vmalloc::unmapped),
    ("vmalloc-guard", vmalloc::guard),
    ("vmalloc-outside", vmalloc::outside),
    ("vmalloc-owner", vmalloc::owner),
    ("stack-guard", vmalloc::stack_guard),
    ("kmap-count", vmalloc::kmap_count),
    ("fixmap-stale", vmalloc::fixmap_stale),
    ("pte-outside-vma", entries::outside_vma),
    ("pte-meaningless", entries::meaningless),
    ("pte-writable", entries::writable),
    ("pte-executable", entries::executable),
    ("pte-no-access", entries::no_access),
    ("mapcount-lost", entries::mapcount_lost),
    ("mapcount-extra", entries::mapcount_extra),
    ("refcount-lost", entries::refcount_lost),
    ("refcount-leaked", entries::refcount_leaked),
    ("anon-index", entries::anon_index),
    ("anon-list", entries::anon_list),
    ("cow-writable", entries::cow_writable),
    ("foreign-frame", entries::foreign_frame),
    ("migration-left", entries::migration_left),
    ("migration-lost-pte", entries::migration_lost),
    ("migration-mapcount", entries::migration_mapcount),
    ("pfnmap-unmarked", devices::unmarked),
    ("pfnmap-elsewhere", devices::elsewhere),
    ("pfnmap-shifted", devices::shifted),
    ("pfnmap-counted", devices::counted),
    ("pfnmap-writable", devices::writable),
    ("pfnmap-cached", devices::cached),
    ("swiotlb-list", dma::list),
    ("swiotlb-used", dma::used),
    ("swiotlb-orig", dma::orig),
    ("swiotlb-leak", dma::leak),
    ("vma-overlap", spaces::overlap),
    ("vma-tree", spaces::tree),
    ("vma-merged", spaces::merged),
    ("vma-policy-node", spaces::policy_node),
    ("vma-policy-mode", spaces::policy_mode),
    ("map-count", spaces::map_count),
    ("total-vm", spaces::total_vm),
    ("committed", oom::committed),
    ("committed-shmem", oom::committed_shmem),
    ("oom-unstable", oom::unstable),
    ("oom-score-adj", oom::score_adj),
    ("locked-vm", spaces::locked_vm),
    ("brk-below-heap", spaces::brk),
    ("stack-gap", spaces::stack_gap),
    ("rss-anon", spaces::rss_anon),
    ("rss-file", spaces::rss_file),
    ("table-pages", spaces::table_pages),
    ("kernel-half", spaces::kernel_half),
    ("pti-direct-map", pti::direct_map),
    ("pti-secret", pti::secret),
    ("pti-user-half", pti::user_half),
    ("mmap-lock", spaces::mmap_lock),
    ("mm-users", spaces::users),
    ("task-mm", spaces::task_mm),
    ("mm-list", spaces::mm_list),
    ("swapents", swap::swapents),
    ("swap-inuse", swap::inuse),
    ("swap-freeing", swap::freeing),
    ("swap-pte-free", swap::pte_free),
    ("swap-count-lost", swap::count_lost),
    ("swap-count-extra", swap::count_extra),
    ("swap-shmem-lost", swap::shmem_lost),
    ("swap-cache-frame", swap::cache_frame),
    ("swap-cache-flag", swap::cache_flag),
    ("swap-writable", swap::writable),
    ("swap-lazyfree", swap::lazyfree),
    ("zswap-stored-count", zswap::stored_count),
    ("zswap-leaf-count", zswap::leaf_count),
    ("zswap-entry-slot", zswap::entry_slot),
    ("zswap-entry-frame", zswap::entry_frame),
    ("zswap-entry-length", zswap::entry_length),
    ("zswap-lru-lost", zswap::lru_lost),
    ("cache-nrpages", cache::nrpages),
    ("cache-index", cache::index),
    ("cache-unmarked", cache::unmarked),
    ("cache-dirty-count", cache::dirty_count),
    ("cache-writeback-count", cache::writeback_count),
    ("cache-writeback-flag", cache::writeback_flag),
    ("shadow-nodes-count", cache::shadow_count),
    ("shadow-node-values", cache::shadow_values),
    ("shadow-node-lost", cache::shadow_lost),
    ("log-number", log::number),
    ("log-length", log::length),
    ("log-next", log::next),
    ("stats-mapped", cache::stats_mapped),
    ("stats-file-pages", cache::stats_file_pages),
    ("flush-pending", spaces::flush_pending),
    ("cpumask", spaces::cpumask),
];

/// Applies the fault that the command line names, if it names one. `false` if it cannot.
pub fn apply() -> bool {
    let Some(position) = cmdline::value("seeded", |name| FAULTS.iter().position(|fault| fault.0 == name))
    else {
        return true;
    };
    let Some(index) = position else {
        println!("seeded: no such fault; known are:");
        for (name, _) in FAULTS {
            println!("  {name}");
        }
        return false;
    };
    let (name, fault) = FAULTS[index];
    let outcome = fault();
    match outcome {
        Ok(()) => println!("seeded: {name}"),
        Err(reason) => println!("seeded: {name} is impossible on this machine: {reason}"),
    }
    outcome.is_ok()
}
