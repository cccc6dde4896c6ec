//! Every event with its arguments, once. [`crate::EVENTS`] and the guest's typed events are made from this list.

/// Calls the macro `$callback` with the catalogue. An entry is: what it says, its number, its Rust name, its name,
/// Linux's trace system (empty if Linux has no such tracepoint), group, phase, arguments.
///
/// New events go to the end, so that numbers stay.
#[macro_export]
macro_rules! for_each_event {
    ($callback:ident) => {
        $callback! {
    // Page allocation: the way down, with results (Linux: mm/page_alloc.c).

    /// Somebody asks for a block of `2^order` frames.
    0 AllocPages "alloc_pages" "" Alloc Enter { gfp: Gfp, order: Order, node: Node }
    /// What the caller of `alloc_pages` gets.
    1 AllocPagesRet "alloc_pages" "" Alloc Exit { pfn: MaybePfn }
    /// Somebody asks for pages by address.
    2 GetFreePages "__get_free_pages" "" Alloc Enter { gfp: Gfp, order: Order }
    /// The physical address; the direct map has it at a fixed distance.
    3 GetFreePagesRet "__get_free_pages" "" Alloc Exit { phys: Phys }
    /// The request is checked and turned into a zonelist, a migratetype and rights.
    4 PrepareAllocPages "prepare_alloc_pages" "" Alloc Enter { gfp: Gfp, order: Order, node: Node }
    /// Highest zone allowed, first zone of the list, type and rights; `ok` is 0 if the request is refused.
    5 PrepareAllocPagesRet "prepare_alloc_pages" "" Alloc Exit {
        ok: Bool, highest_zone: ZoneKind, preferred_zone: Zone, migratetype: Migratetype, alloc_flags: AllocFlags
    }
    /// One pass over the zonelist.
    6 GetPageFromFreelist "get_page_from_freelist" "" Alloc Enter {
        gfp: Gfp, order: Order, alloc_flags: AllocFlags
    }
    /// The block found, or none in any zone.
    7 GetPageFromFreelistRet "get_page_from_freelist" "" Alloc Exit { pfn: MaybePfn }
    /// A zone is compared with its watermark, which the request's rights lower to `min`, and with what it keeps for requests
    /// that can use no higher zone.
    8 ZoneWatermarkOk "zone_watermark_ok" "" Alloc Point {
        zone: Zone, order: Order, ok: Bool, alloc_flags: AllocFlags, free: Pages, mark: Pages, min: Pages,
        lowmem_reserve: Pages
    }
    /// A zone is passed over: 1 cpuset or node limit, 2 would fragment, 3 node is full, 4 reclaim did not help.
    9 ZoneSkipped "zone_skipped" "" Alloc Point { zone: Zone, reason: Byte }
    /// A block is taken from that zone.
    10 Rmqueue "rmqueue" "" Alloc Enter { zone: Zone, order: Order, migratetype: Migratetype }
    /// The block, or none.
    11 RmqueueRet "rmqueue" "" Alloc Exit { pfn: MaybePfn }
    /// The per-CPU list is asked first; `count` is its length.
    12 RmqueuePcplist "rmqueue_pcplist" "" Alloc Enter {
        zone: Zone, order: Order, migratetype: Migratetype, count: Pages
    }
    /// The block from the per-CPU list.
    13 RmqueuePcplistRet "rmqueue_pcplist" "" Alloc Exit { pfn: MaybePfn }
    /// The per-CPU list is empty and is refilled with up to `count` blocks, under the zone's lock.
    14 RmqueueBulk "rmqueue_bulk" "" Alloc Enter {
        zone: Zone, order: Order, migratetype: Migratetype, count: Count
    }
    /// Blocks that the list got.
    15 RmqueueBulkRet "rmqueue_bulk" "" Alloc Exit { count: Count }
    /// The free lists of that type are searched from the wanted order upwards.
    16 RmqueueSmallest "__rmqueue_smallest" "" Alloc Enter {
        zone: Zone, order: Order, migratetype: Migratetype
    }
    /// The block, and the order of the block that it was cut from.
    17 RmqueueSmallestRet "__rmqueue_smallest" "" Alloc Exit { pfn: MaybePfn, found_order: MaybeOrder }
    /// One split: the upper half, of `order`, goes back to the free list; the lower half is split on or handed out.
    18 Expand "expand" "" Alloc Point { pfn: Pfn, order: Order, migratetype: Migratetype }
    /// No block of the wanted type: another type's is taken.
    19 RmqueueFallback "__rmqueue_fallback" "" Alloc Enter {
        zone: Zone, order: Order, migratetype: Migratetype
    }
    /// Whether another type had a block.
    20 RmqueueFallbackRet "__rmqueue_fallback" "" Alloc Exit { ok: Bool, fallback_migratetype: Migratetype, pfn: MaybePfn }
    /// A pageblock changes its type because enough of it can be claimed (`whole`), or only this block is taken.
    21 StealSuitableFallback "steal_suitable_fallback" "" Alloc Point {
        pfn: Pfn, order: Order, old_migratetype: Migratetype, new_migratetype: Migratetype, whole: Bool, moved: Pages
    }
    /// A contiguous area lends a block to a movable allocation.
    22 RmqueueCmaFallback "__rmqueue_cma_fallback" "" Alloc Point { zone: Zone, order: Order, pfn: MaybePfn }
    /// A pageblock is set aside for high-order atomic allocations.
    23 ReserveHighatomic "reserve_highatomic_pageblock" "" Alloc Point { zone: Zone, pfn: Pfn, reserved: Pages }
    /// A pageblock set aside is given back.
    24 UnreserveHighatomic "unreserve_highatomic_pageblock" "" Alloc Point { zone: Zone, pfn: Pfn, reserved: Pages }
    /// The block becomes the caller's: one reference, no mapping. `zeroed` if it was cleared now, `known_zero` if
    /// that was not needed.
    25 PrepNewPage "prep_new_page" "" Alloc Point {
        pfn: Pfn, order: Order, gfp: Gfp, zeroed: Bool, known_zero: Bool
    }

    // Page allocation: Linux's tracepoints (include/trace/events/kmem.h).

    /// A block was allocated.
    26 MmPageAlloc "mm_page_alloc" "kmem" Alloc Point { pfn: Pfn, order: Order, migratetype: Migratetype, gfp_flags: Gfp }
    /// A block left a free list under the zone's lock.
    27 MmPageAllocZoneLocked "mm_page_alloc_zone_locked" "kmem" Alloc Point {
        pfn: Pfn, order: Order, migratetype: Migratetype, percpu_refill: Bool
    }
    /// A block came from another type's list.
    28 MmPageAllocExtfrag "mm_page_alloc_extfrag" "kmem" Alloc Point {
        pfn: Pfn, alloc_order: Order, fallback_order: Order, alloc_migratetype: Migratetype,
        fallback_migratetype: Migratetype, change_ownership: Bool
    }
    /// The last reference of a block was dropped.
    29 MmPageFree "mm_page_free" "kmem" Alloc Point { pfn: Pfn, order: Order }
    /// A page was freed as one of many.
    30 MmPageFreeBatched "mm_page_free_batched" "kmem" Alloc Point { pfn: Pfn }
    /// A block leaves a per-CPU list for the zone's free lists.
    31 MmPagePcpuDrain "mm_page_pcpu_drain" "kmem" Alloc Point { pfn: Pfn, order: Order, migratetype: Migratetype }

    // Free: the way back.

    /// A block is given back.
    32 FreePages "__free_pages" "" Alloc Enter { pfn: Pfn, order: Order }
    /// It is.
    33 FreePagesRet "__free_pages" "" Alloc Exit {}
    /// The block goes to the CPU's own list.
    34 FreeUnrefPage "free_unref_page" "" Alloc Enter { pfn: Pfn, order: Order, migratetype: Migratetype }
    /// Pages on that list now, and how many make it drain.
    35 FreeUnrefPageRet "free_unref_page" "" Alloc Exit { count: Pages, high: Pages }
    /// A per-CPU list is drained into the zone.
    36 FreePcppagesBulk "free_pcppages_bulk" "" Alloc Enter { zone: Zone, count: Pages }
    /// Pages that left it.
    37 FreePcppagesBulkRet "free_pcppages_bulk" "" Alloc Exit { count: Pages }
    /// A block goes back to the buddy lists.
    38 FreeOnePage "__free_one_page" "" Alloc Enter { pfn: Pfn, order: Order, migratetype: Migratetype, zone: Zone }
    /// The merged block, and whether it went to the tail of its list.
    39 FreeOnePageRet "__free_one_page" "" Alloc Exit { pfn: Pfn, order: Order, migratetype: Migratetype, tail: Bool }
    /// One merge: the buddy at `buddy` is free and of the same order; together they are of the next.
    40 BuddyMerge "buddy_merge" "" Alloc Point { pfn: Pfn, buddy: Pfn, order: Order }
    /// Merging ends because the buddy is not free: its kind and order as its descriptor has them.
    41 BuddyBusy "buddy_busy" "" Alloc Point { buddy: Pfn, order: Order, buddy_kind: Byte, buddy_order: Order }

    // Slow path and reclaim (Linux: __alloc_pages_slowpath, mm/vmscan.c).

    /// The first pass found nothing above the low watermark.
    42 AllocPagesSlowpath "__alloc_pages_slowpath" "" Reclaim Enter { gfp: Gfp, order: Order }
    /// What it came to.
    43 AllocPagesSlowpathRet "__alloc_pages_slowpath" "" Reclaim Exit { pfn: MaybePfn, rounds: Count }
    /// Rights of the next attempt.
    44 GfpToAllocFlags "gfp_to_alloc_flags" "" Reclaim Point { gfp: Gfp, alloc_flags: AllocFlags }
    /// kswapd of a node is woken.
    45 MmVmscanWakeupKswapd "mm_vmscan_wakeup_kswapd" "vmscan" Reclaim Point {
        nid: Node, zid: ZoneKind, order: Order, gfp_flags: Gfp
    }
    /// kswapd runs.
    46 MmVmscanKswapdWake "mm_vmscan_kswapd_wake" "vmscan" Reclaim Point { nid: Node, zid: ZoneKind, order: MaybeOrder }
    /// kswapd sleeps: its zones are above their high watermarks.
    47 MmVmscanKswapdSleep "mm_vmscan_kswapd_sleep" "vmscan" Reclaim Point { nid: Node }
    /// The allocating task compacts memory itself.
    48 DirectCompact "__alloc_pages_direct_compact" "" Reclaim Enter { gfp: Gfp, order: Order, priority: Byte }
    /// A block if it helped; the result as [`mm_compaction_end`]'s status.
    49 DirectCompactRet "__alloc_pages_direct_compact" "" Reclaim Exit { pfn: MaybePfn, result: Byte }
    /// The allocating task reclaims memory itself.
    50 DirectReclaim "__alloc_pages_direct_reclaim" "" Reclaim Enter { gfp: Gfp, order: Order }
    /// A block if it helped; pages reclaimed.
    51 DirectReclaimRet "__alloc_pages_direct_reclaim" "" Reclaim Exit { pfn: MaybePfn, progress: Pages }
    /// Direct reclaim begins.
    52 MmVmscanDirectReclaimBegin "mm_vmscan_direct_reclaim_begin" "vmscan" Reclaim Point {
        order: Order, gfp_flags: Gfp
    }
    /// Direct reclaim ends.
    53 MmVmscanDirectReclaimEnd "mm_vmscan_direct_reclaim_end" "vmscan" Reclaim Point { nr_reclaimed: Pages }
    /// A shrinker is asked.
    54 MmShrinkSlabStart "mm_shrink_slab_start" "vmscan" Reclaim Point {
        shrinker: Byte, nid: Node, nr_objects_to_shrink: Count, gfp_flags: Gfp, priority: Byte
    }
    /// What it freed.
    55 MmShrinkSlabEnd "mm_shrink_slab_end" "vmscan" Reclaim Point { shrinker: Byte, nid: Node, freed: Count }
    /// Whether reclaim is worth another round, judged by one zone.
    56 ReclaimRetryZone "reclaim_retry_zone" "oom" Reclaim Point {
        zone: Zone, order: Order, wmark_check: Bool, no_progress_loops: Int, reclaimable: Pages, available: Pages,
        min_wmark: Pages
    }
    /// Whether compaction is worth another round.
    57 CompactRetry "compact_retry" "oom" Reclaim Point {
        order: Order, priority: Byte, result: Byte, ret: Bool, retries: Int, max_retries: Int
    }
    /// Nothing helps: somebody has to go.
    58 OutOfMemory "out_of_memory" "" Reclaim Enter { gfp: Gfp, order: Order }
    /// Whether that freed anything.
    59 OutOfMemoryRet "out_of_memory" "" Reclaim Exit { progress: Bool }
    /// A process is chosen.
    60 MarkVictim "mark_victim" "oom" Reclaim Point { pid: Pid }
    /// The allocation fails (and is reported, unless `__GFP_NOWARN` or the rate limit forbid).
    61 WarnAlloc "warn_alloc" "" Reclaim Point { gfp: Gfp, order: Order }

    // Compaction (include/trace/events/compaction.h, migrate.h).

    /// Direct compaction goes over the zonelist.
    62 MmCompactionTryToCompactPages "mm_compaction_try_to_compact_pages" "compaction" Compaction Point {
        order: Order, gfp_mask: Gfp, prio: Byte
    }
    /// Whether a zone is worth it: result as in [`mm_compaction_end`].
    63 MmCompactionSuitable "mm_compaction_suitable" "compaction" Compaction Point {
        zone: Zone, order: MaybeOrder, ret: Byte
    }
    /// Both scanners start.
    64 MmCompactionBegin "mm_compaction_begin" "compaction" Compaction Point {
        zone: Zone, sync: Bool, zone_start: Pfn, migrate_pfn: Pfn, free_pfn: Pfn, zone_end: Pfn
    }
    /// Both scanners are done. Status, Linux's `enum compact_result`: 0 not suitable, 1 skipped, 2 deferred, 3 no
    /// suitable page, 4 continue, 5 complete, 6 partly skipped, 7 contended, 8 success.
    65 MmCompactionEnd "mm_compaction_end" "compaction" Compaction Point {
        zone: Zone, sync: Bool, status: Byte, migrate_pfn: Pfn, free_pfn: Pfn
    }
    /// The migration scanner took pages out of a range.
    66 MmCompactionIsolateMigratepages "mm_compaction_isolate_migratepages" "compaction" Compaction Point {
        start_pfn: Pfn, end_pfn: Pfn, nr_scanned: Count, nr_taken: Count
    }
    /// The free scanner took free pages out of a range.
    67 MmCompactionIsolateFreepages "mm_compaction_isolate_freepages" "compaction" Compaction Point {
        start_pfn: Pfn, end_pfn: Pfn, nr_scanned: Count, nr_taken: Count
    }
    /// Pages moved, pages that could not be.
    68 MmCompactionMigratepages "mm_compaction_migratepages" "compaction" Compaction Point {
        nr_migrated: Count, nr_failed: Count
    }
    /// Whether a zone is done: result as in [`mm_compaction_end`].
    69 MmCompactionFinished "mm_compaction_finished" "compaction" Compaction Point {
        zone: Zone, order: MaybeOrder, ret: Byte
    }
    /// A zone is skipped because compaction failed there lately.
    70 MmCompactionDeferred "mm_compaction_deferred" "compaction" Compaction Point {
        zone: Zone, order: MaybeOrder, order_failed: Order, considered: Count, defer_shift: Count
    }
    /// Compaction failed: the zone will be skipped for longer.
    71 MmCompactionDeferCompaction "mm_compaction_defer_compaction" "compaction" Compaction Point {
        zone: Zone, order: MaybeOrder, order_failed: Order, considered: Count, defer_shift: Count
    }
    /// Compaction succeeded: no more skipping.
    72 MmCompactionDeferReset "mm_compaction_defer_reset" "compaction" Compaction Point {
        zone: Zone, order: MaybeOrder, order_failed: Order, considered: Count, defer_shift: Count
    }
    /// kcompactd of a node is woken.
    73 MmCompactionWakeupKcompactd "mm_compaction_wakeup_kcompactd" "compaction" Compaction Point {
        nid: Node, order: MaybeOrder, highest_zoneidx: ZoneKind
    }
    /// kcompactd runs.
    74 MmCompactionKcompactdWake "mm_compaction_kcompactd_wake" "compaction" Compaction Point {
        nid: Node, order: MaybeOrder, highest_zoneidx: ZoneKind
    }
    /// kcompactd sleeps.
    75 MmCompactionKcompactdSleep "mm_compaction_kcompactd_sleep" "compaction" Compaction Point { nid: Node }
    /// A page moves.
    76 MigratePage "migrate_page" "" Compaction Point { from: Pfn, to: Pfn, order: Order, ret: Int }
    /// A range of pages was moved.
    77 MmMigratePages "mm_migrate_pages" "migrate" Compaction Point { succeeded: Count, failed: Count }

    // Contiguous areas and isolation (include/trace/events/cma.h, page_isolation.h).

    /// A contiguous area is asked for frames.
    78 CmaAllocStart "cma_alloc_start" "cma" Alloc Point { area: Byte, count: Pages, align: Order }
    /// What it gave; errno if nothing.
    79 CmaAllocFinish "cma_alloc_finish" "cma" Alloc Point { pfn: MaybePfn, area: Byte, errorno: Int, count: Pages }
    /// Frames of a contiguous area are given back.
    80 CmaRelease "cma_release" "cma" Alloc Point { pfn: Pfn, count: Pages, area: Byte }
    /// Whether all of a range is free and isolated: `fin_pfn` is where that ends.
    81 TestPagesIsolated "test_pages_isolated" "page_isolation" Alloc Point { start_pfn: Pfn, end_pfn: Pfn, fin_pfn: Pfn }
    /// A contiguous range is made free.
    82 AllocContigRange "alloc_contig_range" "" Alloc Enter { start_pfn: Pfn, end_pfn: Pfn, migratetype: Migratetype }
    /// 0, or errno.
    83 AllocContigRangeRet "alloc_contig_range" "" Alloc Exit { ret: Int }

    // Slab (include/trace/events/kmem.h, mm/slub.c, slab.c, slob.c).
    //
    // Differs from Linux: objects are named by their physical addresses, as the caches know them.

    /// Linux's tracepoint of an allocation by size.
    84 Kmalloc "kmalloc" "kmem" Slab Point {
        ptr: Phys, bytes_req: Bytes, bytes_alloc: Bytes, gfp_flags: Gfp, node: Node, cache: Cache
    }
    /// Linux's tracepoint of its free.
    85 Kfree "kfree" "kmem" Slab Point { ptr: Phys }
    /// Linux's tracepoint of an allocation from a cache.
    86 KmemCacheAlloc "kmem_cache_alloc" "kmem" Slab Point {
        ptr: Phys, bytes_req: Bytes, bytes_alloc: Bytes, gfp_flags: Gfp, node: Node, cache: Cache
    }
    /// Linux's tracepoint of its free.
    87 KmemCacheFree "kmem_cache_free" "kmem" Slab Point { ptr: Phys, cache: Cache }
    /// A cache is made.
    88 KmemCacheCreate "kmem_cache_create" "" Slab Enter { size: Bytes, align: Bytes, flags: Count }
    /// The cache; `merged` if one that exists does.
    89 KmemCacheCreateRet "kmem_cache_create" "" Slab Exit { cache: Cache, merged: Bool, order: Order, objects: Count }
    /// A cache is unmade.
    90 KmemCacheDestroy "kmem_cache_destroy" "" Slab Enter { cache: Cache }
    /// Whether it was: objects in use forbid it.
    91 KmemCacheDestroyRet "kmem_cache_destroy" "" Slab Exit { ok: Bool, in_use: Count }
    /// An object is asked for.
    92 SlabAllocNode "slab_alloc_node" "" Slab Enter { cache: Cache, node: Node, gfp: Gfp }
    /// The object.
    93 SlabAllocNodeRet "slab_alloc_node" "" Slab Exit { object: Phys }
    /// The CPU's own list is empty: slow path.
    94 SlabAllocSlow "___slab_alloc" "" Slab Enter { cache: Cache, node: Node, gfp: Gfp }
    /// The object, and where it came from: 1 the CPU's slab, 2 the CPU's partial slabs, 3 the node's partial slabs, 4 a
    /// new slab, 5 a shared array, 6 full search.
    95 SlabAllocSlowRet "___slab_alloc" "" Slab Exit { object: Phys, source: Byte }
    /// A partly free slab is taken from the node's list.
    96 GetPartial "get_partial" "" Slab Point { cache: Cache, node: Node, pfn: MaybePfn, objects: Count }
    /// A new slab is made of fresh pages.
    97 NewSlab "new_slab" "" Slab Enter { cache: Cache, order: Order, node: Node, gfp: Gfp }
    /// Its first frame and its objects.
    98 NewSlabRet "new_slab" "" Slab Exit { pfn: MaybePfn, objects: Count, colour: Bytes }
    /// An object is given back.
    99 SlabFree "slab_free" "" Slab Enter { object: Phys, cache: Cache }
    /// Done.
    100 SlabFreeRet "slab_free" "" Slab Exit {}
    /// The object does not belong to the CPU's slab: slow path.
    101 SlabFreeSlow "__slab_free" "" Slab Enter { object: Phys, pfn: Pfn, cache: Cache }
    /// Objects of the slab in use now, and what became of it: 0 stays, 1 to the CPU's partial list, 2 to the node's
    /// partial list, 3 freed.
    102 SlabFreeSlowRet "__slab_free" "" Slab Exit { in_use: Count, fate: Byte }
    /// An empty slab's pages go back to the page allocator.
    103 DiscardSlab "discard_slab" "" Slab Point { cache: Cache, pfn: Pfn, order: Order }
    /// Partial slabs leave a CPU for the node.
    104 UnfreezePartials "unfreeze_partials" "" Slab Point { cache: Cache, node: Node, slabs: Count }
    /// SLAB: an array cache is refilled.
    105 CacheAllocRefill "cache_alloc_refill" "" Slab Enter { cache: Cache, node: Node, batchcount: Count }
    /// Objects in the array now.
    106 CacheAllocRefillRet "cache_alloc_refill" "" Slab Exit { avail: Count }
    /// SLAB: an array cache is full and gives objects back to their slabs.
    107 CacheFlusharray "cache_flusharray" "" Slab Point { cache: Cache, node: Node, batchcount: Count }
    /// SLOB: a list of pages is searched for room.
    108 SlobAlloc "slob_alloc" "" Slab Enter { size: Bytes, align: Bytes, gfp: Gfp, node: Node }
    /// The block, and whether a new page was needed.
    109 SlobAllocRet "slob_alloc" "" Slab Exit { object: Phys, new_page: Bool, examined: Count }
    /// The cache that serves a size.
    110 KmallocSlab "kmalloc_slab" "" Slab Point { bytes_req: Bytes, bytes_alloc: Bytes, cache: Cache }
    /// Too large for a cache: whole pages.
    111 KmallocLarge "kmalloc_large" "" Slab Enter { bytes_req: Bytes, order: Order, gfp: Gfp, node: Node }
    /// The address.
    112 KmallocLargeRet "kmalloc_large" "" Slab Exit { ptr: Phys }
    /// Debugging found something: 1 double free, 2 use after free, 3 overflow, 4 underflow, 5 wrong cache, 6 invalid
    /// pointer, 7 objects left.
    113 SlabError "slab_error" "" Slab Point { object: Phys, cache: Cache, what: Byte }

    // vmalloc (include/trace/events/vmalloc.h, mm/vmalloc.c, mm/highmem.c).

    /// Virtually contiguous memory is asked for.
    114 Vmalloc "vmalloc" "" Vmalloc Enter { size: Bytes, align: Bytes, gfp: Gfp, node: Node }
    /// Its address.
    115 VmallocRet "vmalloc" "" Vmalloc Exit { addr: Addr }
    /// A range of addresses was looked for.
    116 AllocVmapArea "alloc_vmap_area" "vmalloc" Vmalloc Point {
        addr: Addr, size: Bytes, align: Bytes, vstart: Addr, failed: Bool
    }
    /// The frames behind an area are allocated, one by one or in bulk.
    117 VmAreaAllocPages "vm_area_alloc_pages" "" Vmalloc Enter { nr_pages: Pages, order: Order, gfp: Gfp, node: Node }
    /// Frames that were.
    118 VmAreaAllocPagesRet "vm_area_alloc_pages" "" Vmalloc Exit { nr_allocated: Pages }
    /// Page-table entries are written.
    119 VmapPagesRange "vmap_pages_range" "" Vmalloc Point { start: Addr, end: Addr, nr_pages: Pages }
    /// An area is given back.
    120 Vfree "vfree" "" Vmalloc Enter { addr: Addr }
    /// Done; the addresses may still be in TLBs.
    121 VfreeRet "vfree" "" Vmalloc Exit {}
    /// Page-table entries are cleared.
    122 VunmapRange "vunmap_range" "" Vmalloc Point { start: Addr, end: Addr }
    /// An area waits for the next purge.
    123 FreeVmapAreaNoflush "free_vmap_area_noflush" "vmalloc" Vmalloc Point {
        va_start: Addr, nr_lazy: Pages, nr_lazy_max: Pages
    }
    /// TLBs were flushed; the addresses can be used again.
    124 PurgeVmapAreaLazy "purge_vmap_area_lazy" "vmalloc" Vmalloc Point { start: Addr, end: Addr, npurged: Count }
    /// Pages that exist are mapped side by side.
    125 Vmap "vmap" "" Vmalloc Enter { count: Pages }
    /// The address.
    126 VmapRet "vmap" "" Vmalloc Exit { addr: Addr }
    /// Device memory is mapped; cache mode: 0 WB, 1 WC, 2 UC-, 3 UC, 4 WT, 5 WP.
    127 Ioremap "ioremap" "" Vmalloc Point { phys: Phys, size: Bytes, addr: Addr, cache_mode: Byte }
    /// A frame beyond the direct map gets a slot of the permanent window; `waited` if it had to wait for one.
    128 Kmap "kmap" "" Vmalloc Point { pfn: Pfn, addr: Addr, waited: Bool }
    /// It gives it back.
    129 Kunmap "kunmap" "" Vmalloc Point { pfn: Pfn }
    /// A frame gets the CPU's next slot.
    130 KmapLocal "kmap_local" "" Vmalloc Point { pfn: Pfn, addr: Addr, index: Byte }
    /// The CPU's last slot is free again.
    131 KunmapLocal "kunmap_local" "" Vmalloc Point { addr: Addr, index: Byte }
    /// TLB entries are dropped on `cpus` CPUs; all of them if `pages` is all ones.
    132 TlbFlush "tlb_flush" "tlb" Vmalloc Point { start: Addr, pages: Pages, cpus: Count }

    // What the steps happen in.

    /// A handler runs.
    133 IrqHandler "irq_handler" "irq" Task Enter { irq: Byte }
    /// It returns.
    134 IrqHandlerRet "irq_handler" "irq" Task Exit {}
    /// A process touched a page that is not there.
    135 PageFault "page_fault_user" "exceptions" Task Enter { address: Addr, ip: Addr, error_code: Count }
    /// Whether it is now.
    136 PageFaultRet "page_fault_user" "exceptions" Task Exit { ok: Bool, pfn: MaybePfn }
    /// The CPU goes on with another task.
    137 SchedSwitch "sched_switch" "sched" Task Point { prev_pid: Pid, next_pid: Pid }
    /// `explain` begins a part: 1 before, 2 the operation, 3 after; `part` counts operations.
    138 ExplainMark "explain_mark" "" Explain Point { stage: Byte, part: Count }
    /// The slow path makes another round: 1 reclaim may help, 2 compaction may help, 3 the OOM killer freed something, 4
    /// the request must not fail.
    139 AllocPagesRetry "alloc_pages_retry" "" Reclaim Point {
        round: Count, reason: Byte, no_progress_loops: Int, reclaimed: Pages
    }

    // Memory of processes (Linux: mm/memory.c, mm/mmap.c, mm/rmap.c, kernel/fork.c).

    /// A fault in user space is to be met; `present` if the entry was there and refused the access.
    140 HandleMmFault "handle_mm_fault" "" Fault Enter { address: Addr, write: Bool, exec: Bool, present: Bool }
    /// How: 1 minor, 2 major, 3 nothing to do, 4 the page is being moved, 5 SEGV_MAPERR, 6 SEGV_ACCERR, 7 BUS_ADRERR, 8 no memory.
    141 HandleMmFaultRet "handle_mm_fault" "" Fault Exit { outcome: Byte }
    /// The VMA that holds the address, and what it allows.
    142 VmaFound "find_vma" "" Fault Point { address: Addr, start: Addr, end: Addr, write: Bool, exec: Bool }
    /// A VMA gets what its own pages are found from.
    143 AnonVmaPrepare "anon_vma_prepare" "" Fault Point { start: Addr }
    /// Private memory without a page yet.
    144 DoAnonymousPage "do_anonymous_page" "" Fault Enter { address: Addr }
    /// The page.
    145 DoAnonymousPageRet "do_anonymous_page" "" Fault Exit { pfn: MaybePfn }
    /// Memory of a mapping without an entry yet.
    146 DoFault "do_fault" "" Fault Enter { address: Addr, pgoff: Count, write: Bool }
    /// The page, the mapping's or a copy of it.
    147 DoFaultRet "do_fault" "" Fault Exit { pfn: MaybePfn }
    /// A write to a page whose entry does not allow it, although the VMA does.
    148 DoWpPage "do_wp_page" "" Fault Enter { address: Addr, pfn: Pfn, mappings: Count }
    /// The page that is written to now: the same one, or a copy.
    149 DoWpPageRet "do_wp_page" "" Fault Exit { reused: Bool, pfn: MaybePfn }
    /// An entry is written.
    150 SetPte "set_pte_at" "" Fault Point { address: Addr, pfn: Pfn, write: Bool }
    /// A stack begins lower, or may not.
    151 ExpandStack "expand_stack" "" Fault Point { start: Addr, address: Addr, ok: Bool }
    /// A range of addresses gets a VMA.
    152 MmapRegion "mmap_region" "" Fault Enter { address: Addr, len: Bytes, write: Bool, exec: Bool }
    /// Whether a neighbour took it.
    153 MmapRegionRet "mmap_region" "" Fault Exit { ok: Bool, merged: Bool }
    /// A range of addresses is unmapped.
    154 UnmapRegion "unmap_region" "" Fault Point { start: Addr, end: Addr }
    /// A VMA becomes two.
    155 SplitVma "split_vma" "" Fault Point { start: Addr, address: Addr, end: Addr }
    /// An address space is copied for a fork.
    156 DupMmap "dup_mmap" "" Fault Enter { vmas: Count }
    /// Whether there was memory enough.
    157 DupMmapRet "dup_mmap" "" Fault Exit { ok: Bool }
    /// Entries of a VMA are copied; of a private one both sides lose the right to write.
    158 CopyPageRange "copy_page_range" "" Fault Point { start: Addr, end: Addr, cow: Bool }

    // Reclaim (include/trace/events/vmscan.h; mm/vmscan.c).

    /// Pages were taken off the end of an LRU list. List as `enum lru_list`: 0 inactive anon, 1 active anon, 2 inactive file, 3 active
    /// file, 4 unevictable.
    159 MmVmscanLruIsolate "mm_vmscan_lru_isolate" "vmscan" Reclaim Point {
        nid: Node, lru: Byte, nr_requested: Pages, nr_scanned: Pages, nr_taken: Pages
    }
    /// What became of pages of an inactive list.
    160 MmVmscanLruShrinkInactive "mm_vmscan_lru_shrink_inactive" "vmscan" Reclaim Point {
        nid: Node, file: Bool, priority: Byte, nr_ref_keep: Int, nr_scanned: Pages, nr_reclaimed: Pages, nr_pageout: Pages,
        nr_activate: Pages
    }
    /// What became of pages of an active list.
    161 MmVmscanLruShrinkActive "mm_vmscan_lru_shrink_active" "vmscan" Reclaim Point {
        nid: Node, file: Bool, priority: Byte, nr_taken: Pages, nr_active: Pages, nr_deactivated: Pages
    }
    /// Reclaim begins to write a page.
    162 MmVmscanWriteFolio "mm_vmscan_write_folio" "vmscan" Reclaim Point { pfn: Pfn, anon: Bool }
    /// Reclaim waits: 0 for writes, 1 for pages that others have off the lists, 2 because nothing could be freed, 3 for devices.
    163 MmVmscanThrottled "mm_vmscan_throttled" "vmscan" Reclaim Point { nid: Node, reason: Byte, usec_timeout: Count }
    /// kswapd works until a zone is above its high mark; `free` and `high` are those of the zones up to the highest.
    164 BalancePgdat "balance_pgdat" "" Reclaim Enter {
        nid: Node, order: Order, highest_zoneidx: ZoneKind, free: Pages, high: Pages
    }
    /// What it freed, the priority that it came to, and what is free now.
    165 BalancePgdatRet "balance_pgdat" "" Reclaim Exit { nr_reclaimed: Pages, free: Pages, priority: Byte }
    /// All lists of a node are looked at, a `1 >> priority` of each; `anon` and `file` are their lengths, `free_swap` the slots that are.
    166 ShrinkNode "shrink_node" "" Reclaim Enter {
        nid: Node, priority: Byte, anon: Pages, file: Pages, free_swap: Pages, free: Pages
    }
    /// What that came to.
    167 ShrinkNodeRet "shrink_node" "" Reclaim Exit { nr_scanned: Pages, nr_reclaimed: Pages }

    // The OOM killer (mm/oom_kill.c) and the end of an address space.

    /// How much killing a process would help; `exempt` is never killed.
    168 OomBadness "oom_badness" "" Reclaim Point {
        pid: Pid, oom_score_adj: Int, points: Count, rss: Pages, swapents: Pages, pgtables: Int, exempt: Bool
    }
    /// An address space ends: its pages, slots and tables come free.
    169 ExitMmap "exit_mmap" "" Reclaim Enter { pid: Pid, rss: Pages, swapents: Pages, pgtables: Pages, free: Pages }
    /// Pages free afterwards.
    170 ExitMmapRet "exit_mmap" "" Reclaim Exit { free: Pages }

    // A page leaves its programs, and comes back (mm/rmap.c, mm/swap_state.c, mm/memory.c).

    /// Reverse mapping took a page from those who map it: from `mapped` entries, of which `left` stay.
    171 TryToUnmap "try_to_unmap" "" Fault Point { pfn: Pfn, mapped: Int, left: Int }
    /// A page gets a slot of a swap area, and is in the swap cache then.
    172 AddToSwap "add_to_swap" "" Fault Point { pfn: Pfn, area: Byte, ok: Bool, offset: Count }
    /// An entry names a slot: its page is needed.
    173 DoSwapPage "do_swap_page" "" Fault Enter { address: Addr, area: Byte, write: Bool, offset: Count }
    /// The page; `major` if it was read, `slot_kept` if its slot has it still.
    174 DoSwapPageRet "do_swap_page" "" Fault Exit { pfn: MaybePfn, major: Bool, slot_kept: Bool }
    /// Slots in a row are read, because one of them is needed.
    175 SwapClusterReadahead "swap_cluster_readahead" "" Fault Point { area: Byte, wanted: Count, first: Count, nr_pages: Pages }

    // Disks, the page cache and writeback (include/trace/events/{block,filemap,writeback}.h).

    /// A request goes to a disk, by its number.
    176 BlockRqIssue "block_rq_issue" "block" File Point { disk: Byte, write: Bool, sector: Count, bytes: Bytes }
    /// It has ended, in the disk's interrupt.
    177 BlockRqComplete "block_rq_complete" "block" File Point { write: Bool, error: Int, bytes: Bytes }
    /// A frame holds a page of a file from now on.
    178 MmFilemapAdd "mm_filemap_add_to_page_cache" "filemap" File Point { pfn: Pfn, index: Count }
    /// It does not any more.
    179 MmFilemapDelete "mm_filemap_delete_from_page_cache" "filemap" File Point { pfn: Pfn, index: Count }
    /// A file is read through its pages.
    180 FilemapRead "filemap_read" "" File Enter { pos: Count, bytes: Bytes }
    /// Bytes read.
    181 FilemapReadRet "filemap_read" "" File Exit { bytes: Bytes }
    /// Pages that are not there are read, and some behind them; `marker` is the page at which the next ones follow, all ones for none.
    182 PageCacheRa "page_cache_ra_order" "" File Point { index: Count, start: Count, nr_pages: Pages, marker: Count }
    /// A program's memory gets bytes of the kernel's, or gives them: a copy.
    183 CopyUser "copy_user" "" Task Point { to_user: Bool, addr: Addr, bytes: Bytes }
    /// A program calls the kernel.
    184 Syscall "syscall" "" Task Enter { id: Count, args0: Addr, args1: Addr, args2: Addr }
    /// It gets this.
    185 SyscallRet "syscall" "" Task Exit { ret: Count }
    /// A page of a file becomes dirty.
    186 WritebackDirtyFolio "writeback_dirty_folio" "writeback" File Point { pfn: Pfn, index: Count, dirty: Pages }
    /// Dirty pages of a file are written; `sync` if all of them have to be.
    187 WritePages "write_cache_pages" "" File Enter { first: Count, sync: Bool, dirty: Pages, background_thresh: Pages }
    /// Pages whose write began.
    188 WritePagesRet "write_cache_pages" "" File Exit { nr_written: Pages, dirty: Pages, writeback: Pages }
    /// Who writes is held up: there are more dirty pages than may be.
    189 BalanceDirtyPages "balance_dirty_pages" "writeback" File Point {
        dirty: Pages, writeback: Pages, background_thresh: Pages, limit: Pages
    }

    // Migration (include/trace/events/migrate.h).

    /// Reverse mapping found an entry of the page: it says that the page is on the move.
    190 SetMigrationPte "set_migration_pte" "migrate" Compaction Point { pid: Pid, addr: Addr, pfn: Pfn }
    /// It leads to the new frame.
    191 RemoveMigrationPte "remove_migration_pte" "migrate" Compaction Point { pid: Pid, addr: Addr, pfn: Pfn }
        }
    };
}
