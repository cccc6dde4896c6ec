//! Sentences of memory pressure: reclaim, the OOM killer, swapping, files, disks, migration.

use memvisor_abi::EventId::{self, *};

/// As [`super::SENTENCES`].
pub const SENTENCES: &[(EventId, &str)] = &[
    (
        MmVmscanLruIsolate,
        "From the end of the list «{lru}» {nr_taken} pages are taken; {nr_scanned} were looked at, {nr_requested} wanted.",
    ),
    (
        MmVmscanLruShrinkInactive,
        "Of {nr_scanned} inactive {file?pages of files|anonymous pages}, {nr_reclaimed} are free now, the writes of {nr_pageout} began, {nr_ref_keep} were used and stay, {nr_activate} become active.",
    ),
    (
        MmVmscanLruShrinkActive,
        "Of {nr_taken} active {file?pages of files|anonymous pages}, {nr_deactivated} become inactive: their next chance to stay is to be used; {nr_active} stay active.",
    ),
    (
        MmVmscanWriteFolio,
        "{anon?The swap area|The disk} gets what frame {pfn} holds; it is free when that has ended.",
    ),
    (MmVmscanThrottled, "Who reclaims waits, at most {usec_timeout} microseconds: {reason}."),
    (
        BalancePgdat,
        "kswapd of node {nid} begins: {free} pages are free, and the high marks up to {highest_zoneidx} are {high} together.",
    ),
    (BalancePgdatRet, "It freed {nr_reclaimed} pages, at priority {priority}; {free} are free."),
    (
        ShrinkNode,
        "Node {nid} is reclaimed from, at priority {priority}: a 2^{priority}th of each list is looked at. {free} pages are free, {anon} anonymous ones and {file} of files are on the lists, {free_swap} slots of swap areas are free.",
    ),
    (ShrinkNodeRet, "{nr_scanned} pages were looked at, {nr_reclaimed} are free now."),
    (
        OomBadness,
        "{exempt?Process {pid} is never chosen.|Process {pid} has {points} points: {rss} resident pages, {swapents} in swap, {pgtables} of page tables, with oom_score_adj {oom_score_adj}.}",
    ),
    (
        ExitMmap,
        "Process {pid} gives back its memory: {rss} resident pages, {swapents} in swap, {pgtables} page tables; {free} pages are free before.",
    ),
    (ExitMmapRet, "{free} pages are free."),
    (
        TryToUnmap,
        "Reverse mapping finds who maps frame {pfn}: of {mapped} entries {left} stay, the others are taken away and flushed.",
    ),
    (
        AddToSwap,
        "{ok?Frame {pfn} gets slot {offset} of swap area {area}, and is in the swap cache.|There is no slot for frame {pfn}.}",
    ),
    (
        DoSwapPage,
        "The entry of {address} names slot {offset} of swap area {area}: its page is {write?wanted to write to|wanted}.",
    ),
    (
        DoSwapPageRet,
        "{pfn?It is in frame {pfn}, {major?read from the disk|which the swap cache had}; {slot_kept?the slot keeps its copy for as long as nobody writes.|the slot is given up.}|It could not be had.}",
    ),
    (
        SwapClusterReadahead,
        "Slot {wanted} of area {area} is read, one of {nr_pages} from {first} on: what left together is wanted together.",
    ),
    (BlockRqIssue, "{disk} is asked to {write?write|read} {bytes} bytes at sector {sector}."),
    (BlockRqComplete, "The disk has {write?written|read} {bytes} bytes (error {error})."),
    (MmFilemapAdd, "Frame {pfn} becomes page {index} of the file, in the page cache."),
    (MmFilemapDelete, "Frame {pfn} is page {index} of the file no more."),
    (FilemapRead, "{bytes} bytes from {pos} on are read through the page cache."),
    (FilemapReadRet, "{bytes} bytes were copied out of pages of the cache."),
    (
        PageCacheRa,
        "Because of page {index}, {nr_pages} pages from {start} on are read; at page {marker} the next ones follow.",
    ),
    (CopyUser, "{bytes} bytes are copied {to_user?to|from} the program's memory at {addr}."),
    (Syscall, "The program calls the kernel: number {id}, with {args0}, {args1}, {args2}."),
    (SyscallRet, "The program goes on with {ret}."),
    (WritebackDirtyFolio, "Page {index} of the file, frame {pfn}, is dirty from now on, one of {dirty}."),
    (
        WritePages,
        "Dirty pages of a file are written, {sync?all of them, and waited for|those that can be had at once}: {dirty} are dirty, and above {background_thresh} the flusher works.",
    ),
    (
        WritePagesRet,
        "The writes of {nr_written} pages began: {dirty} are dirty, {writeback} are being written.",
    ),
    (
        BalanceDirtyPages,
        "{dirty} dirty pages and {writeback} that are being written are more than {limit}: the writer waits until some are clean.",
    ),
    (
        SetMigrationPte,
        "Process {pid} maps frame {pfn} at {addr}: the entry becomes one that makes faults wait, and translations of it are flushed.",
    ),
    (RemoveMigrationPte, "The entry of process {pid} at {addr} leads to frame {pfn}."),
];
