//! One sentence a step: a template an event, filled with the record's arguments.

mod pressure;

use memvisor_abi::EventId::{self, *};
use memvisor_inspect::trace::{Names, TraceEntry};

/// `{field}` is an argument as a person reads it, `{field:frames}` the frames of an order, `{field?yes|no}` a choice: by a
/// flag, or by whether the value is there at all.
const SENTENCES: &[(EventId, &str)] = &[
    (AllocPages, "Somebody asks for {order:frames}, contiguous, with {gfp}."),
    (AllocPagesRet, "{pfn?The caller gets the block at frame {pfn}.|The caller gets NULL.}"),
    (GetFreePages, "Somebody asks for {order:frames} by address."),
    (
        GetFreePagesRet,
        "{phys?It lies at physical address {phys}, which the direct map reaches.|There is none: 0.}",
    ),
    (PrepareAllocPages, "The flags decide which zones, which lists and which rights the request has."),
    (
        PrepareAllocPagesRet,
        "{ok?Zones up to {highest_zone}, {preferred_zone} first; type {migratetype}; rights {alloc_flags}.|The combination is refused.}",
    ),
    (GetPageFromFreelist, "The zones of the zonelist are tried in order."),
    (
        GetPageFromFreelistRet,
        "{pfn?A zone had a block, at frame {pfn}.|No zone of the list may give a block.}",
    ),
    (
        ZoneWatermarkOk,
        "Zone {zone} has {free} free pages; its mark is {mark}, for these rights {min}, and it keeps {lowmem_reserve} for requests that can use no higher zone: {ok?it may give.|it is passed over.}",
    ),
    (ZoneSkipped, "Zone {zone} is passed over: {reason}."),
    (Rmqueue, "Zone {zone} is to give a block of order {order}, type {migratetype}."),
    (RmqueueRet, "{pfn?It gives the block at frame {pfn}.|It has none.}"),
    (
        RmqueuePcplist,
        "Small blocks come from this CPU's own list first, without the zone's lock; it holds {count} pages.",
    ),
    (RmqueuePcplistRet, "{pfn?The list gave frame {pfn}.|The list stayed empty.}"),
    (RmqueueBulk, "The list is empty: up to {count} blocks are fetched at once, under the zone's lock."),
    (RmqueueBulkRet, "It got {count} blocks."),
    (RmqueueSmallest, "The {migratetype} lists of zone {zone} are searched from order {order} upwards."),
    (
        RmqueueSmallestRet,
        "{pfn?The smallest that suffices was of order {found_order}; frame {pfn} is the start of the result.|No list has a block.}",
    ),
    (
        Expand,
        "The block is halved: the upper half, of order {order} at frame {pfn}, goes back to the free list.",
    ),
    (
        RmqueueFallback,
        "No {migratetype} block is left: another type's largest block is looked for, so that one theft spoils few pageblocks.",
    ),
    (RmqueueFallbackRet, "{ok?A {fallback_migratetype} block was found.|No type has one.}"),
    (
        StealSuitableFallback,
        "{whole?The whole pageblock becomes {new_migratetype}, it was {old_migratetype}; {moved} pages move.|Only this block is taken; its pageblock stays {old_migratetype}.}",
    ),
    (
        RmqueueCmaFallback,
        "A contiguous area lends frame {pfn}: movable pages can leave when the area is needed.",
    ),
    (
        ReserveHighatomic,
        "The pageblock at frame {pfn} is set aside for high-order atomic requests; {reserved} pages are now.",
    ),
    (
        UnreserveHighatomic,
        "The pageblock at frame {pfn} is given back for general use; {reserved} pages stay set aside.",
    ),
    (
        PrepNewPage,
        "Frame {pfn} becomes the caller's: one reference, no mapping; {zeroed?its contents are cleared.|its contents are left as they are.}",
    ),
    (MmPageAlloc, "Linux's tracepoint: frame {pfn}, order {order}, type {migratetype}, {gfp_flags}."),
    (
        MmPageAllocZoneLocked,
        "Linux's tracepoint: frame {pfn} left a free list under the zone's lock{percpu_refill?, for a per-CPU list.|.}",
    ),
    (
        MmPageAllocExtfrag,
        "Linux's tracepoint: a {alloc_migratetype} request took a {fallback_migratetype} block of order {fallback_order}: memory fragments.",
    ),
    (MmPageFree, "Linux's tracepoint: the last reference of frame {pfn}, order {order}, is gone."),
    (MmPageFreeBatched, "Linux's tracepoint: frame {pfn} is freed as one of many."),
    (MmPagePcpuDrain, "Frame {pfn} leaves a per-CPU list for the {migratetype} free lists."),
    (FreePages, "The block of {order:frames} at {pfn} is given back."),
    (FreePagesRet, "It is free."),
    (
        FreeUnrefPage,
        "Small blocks go to this CPU's own list, where the next request finds them in its cache.",
    ),
    (FreeUnrefPageRet, "The list holds {count} pages; at {high} it drains."),
    (FreePcppagesBulk, "The list is long: {count} pages go back to zone {zone}."),
    (FreePcppagesBulkRet, "{count} pages left it."),
    (
        FreeOnePage,
        "Frame {pfn}, order {order}, returns to zone {zone}; it merges with its buddy as long as that is free.",
    ),
    (
        FreeOnePageRet,
        "The result, of order {order} at frame {pfn}, goes to the {tail?tail|head} of the {migratetype} list.",
    ),
    (
        BuddyMerge,
        "The buddy at frame {buddy} is free and of order {order} too: together they are one block of the next order.",
    ),
    (
        BuddyBusy,
        "The buddy at frame {buddy} is no free block of order {order} (it is {buddy_kind}, order {buddy_order}): merging ends.",
    ),
    (AllocPagesSlowpath, "No zone is above its low watermark: the slow path tries harder, step by step."),
    (
        AllocPagesSlowpathRet,
        "{pfn?It found the block at frame {pfn}; rounds: {rounds}.|It gives up; rounds: {rounds}.}",
    ),
    (GfpToAllocFlags, "The next attempt may use {alloc_flags}."),
    (
        MmVmscanWakeupKswapd,
        "kswapd of node {nid} is woken, to bring zones up to {zid} above their high watermarks.",
    ),
    (MmVmscanKswapdWake, "kswapd of node {nid} runs, for order {order}."),
    (MmVmscanKswapdSleep, "kswapd of node {nid} sleeps: its zones are above their high watermarks."),
    (DirectCompact, "The task compacts memory itself to make a block of order {order}."),
    (
        DirectCompactRet,
        "{pfn?That made the block at frame {pfn}.|That made no block: compaction said «{result}».}",
    ),
    (DirectReclaim, "The task frees pages itself."),
    (DirectReclaimRet, "{progress} pages were freed; {pfn?frame {pfn} is the caller's.|still no block.}"),
    (MmVmscanDirectReclaimBegin, "Direct reclaim begins, for order {order}."),
    (MmVmscanDirectReclaimEnd, "Direct reclaim freed {nr_reclaimed} pages."),
    (MmShrinkSlabStart, "A shrinker is asked to free {nr_objects_to_shrink} objects."),
    (MmShrinkSlabEnd, "It freed {freed}."),
    (
        ReclaimRetryZone,
        "If all {reclaimable} reclaimable pages of zone {zone} came free, {available} would be available against a mark of {min_wmark}: {wmark_check?another round may help.|it would not suffice.}",
    ),
    (CompactRetry, "Compaction said «{result}»: {ret?another round may help.|another round is pointless.}"),
    (OutOfMemory, "Nothing helped: the OOM killer decides."),
    (OutOfMemoryRet, "{progress?Something was freed: the allocation tries again.|Nothing was freed.}"),
    (MarkVictim, "Process {pid} has to go."),
    (WarnAlloc, "The request, order {order}, {gfp}, fails."),
    (
        AllocPagesRetry,
        "After round {round}, in which {reclaimed} pages were freed, another one is made: {reason}.",
    ),
    (MmCompactionTryToCompactPages, "Zones are compacted in the order of the zonelist, for order {order}."),
    (MmCompactionSuitable, "Zone {zone}, order {order}: {ret}."),
    (
        MmCompactionBegin,
        "In zone {zone} the migration scanner starts at frame {migrate_pfn} upwards, the free scanner at frame {free_pfn} downwards.",
    ),
    (MmCompactionEnd, "The scanners stand at frames {migrate_pfn} and {free_pfn}: {status}."),
    (MmCompactionIsolateMigratepages, "Of frames {start_pfn} to {end_pfn}, {nr_taken} pages can move."),
    (MmCompactionIsolateFreepages, "Of frames {start_pfn} to {end_pfn}, {nr_taken} are free to move to."),
    (MmCompactionMigratepages, "{nr_migrated} pages moved, {nr_failed} could not."),
    (MmCompactionFinished, "Zone {zone}, order {order}: {ret}."),
    (MmCompactionDeferred, "Zone {zone} is skipped: compaction failed there {considered} attempts ago."),
    (
        MmCompactionDeferCompaction,
        "Compaction of zone {zone} failed: it is skipped for the next 2^{defer_shift} attempts.",
    ),
    (MmCompactionDeferReset, "Compaction of zone {zone} succeeded: no more skipping."),
    (MmCompactionWakeupKcompactd, "kcompactd of node {nid} is woken, for order {order}."),
    (MmCompactionKcompactdWake, "kcompactd of node {nid} runs, for order {order}."),
    (MmCompactionKcompactdSleep, "kcompactd of node {nid} sleeps."),
    (MigratePage, "The contents of frame {from} go to frame {to} (result {ret})."),
    (MmMigratePages, "{succeeded} pages moved, {failed} could not."),
    (CmaAllocStart, "Contiguous area {area} is asked for {count} frames."),
    (CmaAllocFinish, "{pfn?It gives {count} frames from {pfn}.|It cannot: error {errorno}.}"),
    (CmaRelease, "{count} frames from {pfn} go back to contiguous area {area}."),
    (
        TestPagesIsolated,
        "Frames {start_pfn} to {end_pfn} are to be free and isolated; they are up to {fin_pfn}.",
    ),
    (AllocContigRange, "All frames from {start_pfn} to {end_pfn} are to be free: their pages move away."),
    (AllocContigRangeRet, "Result {ret}."),
    (Kmalloc, "Linux's tracepoint: {bytes_req} bytes at {ptr}, in an object of {bytes_alloc}."),
    (Kfree, "Linux's tracepoint: the object at {ptr} is given back."),
    (KmemCacheAlloc, "Linux's tracepoint: an object of {cache} at {ptr}."),
    (KmemCacheFree, "Linux's tracepoint: the object of {cache} at {ptr} is given back."),
    (KmemCacheCreate, "A cache for objects of {size} bytes, aligned to {align}, is made."),
    (
        KmemCacheCreateRet,
        "{merged?The cache {cache} serves such objects already.|It is {cache}: slabs of order {order} with {objects} objects.}",
    ),
    (KmemCacheDestroy, "The cache {cache} is to go."),
    (KmemCacheDestroyRet, "{ok?It is gone.|It stays: {in_use} objects are in use.}"),
    (SlabAllocNode, "An object of {cache} is asked for."),
    (SlabAllocNodeRet, "{object?It is at {object}.|There is none.}"),
    (SlabAllocSlow, "This CPU has no free object of {cache} at hand."),
    (SlabAllocSlowRet, "{object?The slow path found the object at {object}.|There is none.}"),
    (
        GetPartial,
        "{pfn?A partly used slab at frame {pfn} is taken from the node's list, with {objects} free objects.|The node has no partly used slab.}",
    ),
    (NewSlab, "A new slab of {order:frames} is made for {cache}."),
    (NewSlabRet, "{pfn?It starts at frame {pfn} and holds {objects} objects.|There are no pages for it.}"),
    (SlabFree, "The object at {object} returns to {cache}."),
    (SlabFreeRet, "It is free."),
    (SlabFreeSlow, "Its slab, at frame {pfn}, is not the one that this CPU allocates from."),
    (SlabFreeSlowRet, "The slab has {in_use} objects in use now: {fate}."),
    (DiscardSlab, "The slab at frame {pfn} is empty: its {order:frames} go back to the page allocator."),
    (UnfreezePartials, "{slabs} partly used slabs go to the node's list."),
    (CacheAllocRefill, "The CPU's array is empty: up to {batchcount} objects are fetched from slabs."),
    (CacheAllocRefillRet, "It holds {avail} objects."),
    (CacheFlusharray, "The CPU's array is full: {batchcount} objects return to their slabs."),
    (SlobAlloc, "The page lists are searched for {size} bytes."),
    (
        SlobAllocRet,
        "{object?The block is at {object}{new_page?, in a new page|}; {examined} places were looked at.|There is no room.}",
    ),
    (KmallocSlab, "{bytes_req} bytes are served from {cache}, objects of {bytes_alloc}."),
    (KmallocLarge, "{bytes_req} bytes are too many for a cache: {order:frames} are taken."),
    (KmallocLargeRet, "{ptr?They are at {ptr}.|There are none.}"),
    (SlabError, "The object at {object} of {cache} is wrong: {what}."),
    (
        Vmalloc,
        "{size} bytes of contiguous addresses are asked for; the frames behind them need not be contiguous.",
    ),
    (VmallocRet, "{addr?They start at {addr}.|There are none.}"),
    (
        AllocVmapArea,
        "{failed?No range of {size} bytes is free.|The range at {addr}, {size} bytes with its guard page, is free.}",
    ),
    (VmAreaAllocPages, "{nr_pages} frames are allocated, in blocks of {order:frames}."),
    (VmAreaAllocPagesRet, "{nr_allocated} were."),
    (VmapPagesRange, "Page-table entries for {nr_pages} pages from {start} are written."),
    (Vfree, "The area at {addr} is given back."),
    (VfreeRet, "Its frames are free; its addresses are used again after the next purge."),
    (VunmapRange, "Page-table entries from {start} to {end} are cleared."),
    (
        FreeVmapAreaNoflush,
        "The addresses at {va_start} wait: {nr_lazy} of {nr_lazy_max} pages may, before TLBs are flushed for all at once.",
    ),
    (PurgeVmapAreaLazy, "TLBs are flushed from {start} to {end}: {npurged} areas are free again."),
    (Vmap, "{count} frames that exist are mapped side by side."),
    (VmapRet, "{addr?They start at {addr}.|There are no addresses.}"),
    (Ioremap, "Device memory at {phys} is mapped at {addr}, cache mode {cache_mode}."),
    (
        Kmap,
        "Frame {pfn}, beyond the direct map, gets the window slot at {addr}{waited?, after waiting for one.|.}",
    ),
    (Kunmap, "Frame {pfn} gives its slot back."),
    (KmapLocal, "Frame {pfn} gets this CPU's slot {index}, at {addr}."),
    (KunmapLocal, "This CPU's slot {index}, at {addr}, is free again."),
    (TlbFlush, "Translations of {pages} pages from {start} are dropped on {cpus} CPUs."),
    (IrqHandler, "Interrupt {irq} arrives: what follows may not sleep."),
    (IrqHandlerRet, "The interrupted code goes on."),
    (PageFault, "The process touched {address}, which is not mapped, at instruction {ip}."),
    (PageFaultRet, "{ok?Frame {pfn} is there now.|It may not: a signal follows.}"),
    (SchedSwitch, "Task {next_pid} runs instead of {prev_pid}."),
    (ExplainMark, "Part {part}, stage {stage}."),
    (
        HandleMmFault,
        "A fault at {address}: {write?a write|{exec?a fetch of an instruction|a read}}{present?, which an entry that is there refused.|.}",
    ),
    (HandleMmFaultRet, "The fault ends so: {outcome}."),
    (
        VmaFound,
        "{address} lies in the VMA {start} to {end}, which {write?may be written|may not be written} and {exec?may be executed|may not be executed}.",
    ),
    (
        AnonVmaPrepare,
        "The VMA at {start} gets an anon_vma, from which its pages' entries can be found again.",
    ),
    (DoAnonymousPage, "Private memory that nobody touched yet: a page of zeroes is needed at {address}."),
    (DoAnonymousPageRet, "{pfn?Frame {pfn} is mapped.|Nothing is mapped.}"),
    (DoFault, "Page {pgoff} of a mapping is needed at {address}{write?, as a copy that can be written.|.}"),
    (DoFaultRet, "{pfn?Frame {pfn} is mapped.|Nothing is mapped.}"),
    (
        DoWpPage,
        "The VMA may be written, the entry of {address} not yet: frame {pfn} is mapped {mappings} times.",
    ),
    (
        DoWpPageRet,
        "{reused?Nobody else has it: it is written in place.|The writer has a copy of its own now, frame {pfn}.}",
    ),
    (SetPte, "The entry of {address} leads to frame {pfn}, {write?writable|read-only}."),
    (
        ExpandStack,
        "{ok?The stack that began at {start} begins at {address} now.|The stack at {start} may not grow down to {address}.}",
    ),
    (
        MmapRegion,
        "{len} from {address} on become a VMA, {write?writable|not writable}, {exec?executable|not executable}.",
    ),
    (
        MmapRegionRet,
        "{ok?{merged?A neighbour of the same kind took them: there is no VMA more.|It is a VMA of its own.}|It failed.}",
    ),
    (UnmapRegion, "What is mapped from {start} to {end} goes: entries, then translations, then pages."),
    (SplitVma, "The VMA {start} to {end} is split at {address}."),
    (DupMmap, "The address space is copied: {vmas} VMAs."),
    (DupMmapRet, "{ok?The copy is complete.|There was no memory for all of it.}"),
    (
        CopyPageRange,
        "Entries from {start} to {end} are copied; {cow?both sides lose the right to write, so that the first write makes a copy|writes of one are seen by the other}.",
    ),
];

/// All sentences.
fn all() -> impl Iterator<Item = &'static (EventId, &'static str)> {
    SENTENCES.iter().chain(pressure::SENTENCES)
}

/// What a record says, in a sentence.
pub fn sentence(entry: &TraceEntry, names: &Names) -> String {
    let template = all().find(|(id, _)| *id as u16 == entry.record.event);
    match template {
        Some((_, template)) => fill(template, entry, names),
        None => "An event that this program does not know.".to_owned(),
    }
}

/// Fills a template; a place that is none stays as it is (a test looks for those).
fn fill(template: &str, entry: &TraceEntry, names: &Names) -> String {
    let mut text = String::new();
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        let Some(len) = closing(&rest[open..]) else { break };
        text.push_str(&rest[..open]);
        let place = &rest[open + 1..open + len];
        match fill_place(place, entry, names) {
            Some(value) => text.push_str(&value),
            None => text.push_str(&rest[open..=open + len]),
        }
        rest = &rest[open + len + 1..];
    }
    text + rest
}

/// Offset of the brace that closes the one at the start.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, letter) in text.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

fn fill_place(place: &str, entry: &TraceEntry, names: &Names) -> Option<String> {
    let end = place.find([':', '?']).unwrap_or(place.len());
    let (name, how) = place.split_at(end);
    let info = entry.info()?;
    let (field, raw) = info.values(&entry.record).find(|(field, _)| field.name == name)?;
    if how == ":frames" {
        let frames = 1_u64.checked_shl(u32::try_from(raw).ok()?)?;
        return Some(if frames == 1 { "one frame".to_owned() } else { format!("{frames} frames") });
    }
    if let Some(choice) = how.strip_prefix('?') {
        let (yes, no) = split_choice(choice)?;
        let holds = match field.kind.none() {
            Some(none) => raw != none,
            None => raw != 0,
        };
        return Some(fill(if holds { yes } else { no }, entry, names));
    }
    how.is_empty().then(|| names.value(entry.record.event, field, raw))
}

/// Both sides of a `|` that is in no braces.
fn split_choice(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0;
    let at = text.char_indices().find_map(|(at, letter)| {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        (depth == 0 && letter == '|').then_some(at)
    })?;
    Some((text.get(..at)?, text.get(at + 1..)?))
}

#[cfg(test)]
mod tests {
    use memvisor_abi::{EVENTS, TraceRecord};

    use super::*;

    fn entry(event: u16, args: [u64; 5]) -> TraceEntry {
        TraceEntry {
            cpu: 0,
            number: 0,
            cycles: 0,
            record: TraceRecord { event, args, ..TraceRecord::default() },
        }
    }

    #[test]
    fn every_event_has_one_sentence_without_open_places() {
        for event in EVENTS {
            let count = all().filter(|(id, _)| *id as u16 == event.number).count();
            assert_eq!(count, 1, "{}", event.name);
            for args in [[0; 5], [u64::MAX; 5], [0x0101_0101_0101_0101; 5]] {
                let text = sentence(&entry(event.number, args), &Names::default());
                let open = text.contains('{') && !args.contains(&u64::MAX);
                assert!(
                    !open
                        && text.ends_with('.')
                        && !text.contains('|'.to_string().as_str().repeat(2).as_str()),
                    "{}: {text}",
                    event.name
                );
            }
        }
    }

    #[test]
    fn arguments_and_choices_are_filled_in() {
        let text = |id: EventId, args| sentence(&entry(id as u16, args), &Names::default());
        assert_eq!(
            text(AllocPages, [0x0000_0002_0000_0cc0, 0, 0, 0, 0]),
            "Somebody asks for 4 frames, contiguous, with GFP_KERNEL."
        );
        assert_eq!(text(AllocPagesRet, [0x1f98, 0, 0, 0, 0]), "The caller gets the block at frame 0x1f98.");
        assert_eq!(text(AllocPagesRet, [u64::MAX, 0, 0, 0, 0]), "The caller gets NULL.");
        assert_eq!(
            text(ZoneWatermarkOk, [0x0100_0001, 3317, 78, 30, 0]),
            "Zone 0:DMA32 has 3317 free pages; its mark is 78, for these rights 30, and it keeps 0 for requests that can use no higher zone: it may give."
        );
    }
}
