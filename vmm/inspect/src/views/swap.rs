//! Swap areas (Linux: /proc/swaps, and what no file of Linux tells: slots by who names them, clusters).

use std::fmt;

use memvisor_abi::{PAGE_SIZE, SwapArea, ZBUD_CHUNKS};
use serde::Serialize;

use crate::{Guest, GuestError, MemorySource, ZswapWalk};

/// Slots of a cluster, which lie together on the disk (Linux: `SWAPFILE_CLUSTER`).
const CLUSTER: usize = 256;

/// `inspect swap`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SwapView {
    /// Areas in use, by number.
    pub areas: Vec<SwapRow>,
    /// Pages of shared memory that are in swap.
    pub shmem: u64,
    /// By process: its number, and its pages in swap as it counts them.
    pub processes: Vec<(u32, u64)>,
    /// What is kept compressed in front of the areas; `None` if that is off.
    pub zswap: Option<ZswapRow>,
}

/// zswap, in pages if not said otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ZswapRow {
    /// Frames of the pool, and how many it may have.
    pub pool_pages: [u64; 2],
    /// Frames that say where pages are.
    pub leaf_pages: u64,
    /// Whether it was full and takes nothing until it has come down.
    pub reached_full: bool,
    /// Kept, as the pool counts.
    pub stored_pages: u64,
    /// Of them, those of one word.
    pub same_filled_pages: u64,
    /// Bytes of all others, compressed.
    pub compressed_bytes: u64,
    /// Of the frames, chunks of 64 bytes that nobody uses.
    pub free_chunks: u64,
    /// Stores refused because the pool was full; pages written back; attempts at that which failed.
    pub limit: [u64; 3],
    /// Stores refused for pages that do not compress; for want of a frame for the pool, for entries.
    pub rejected: [u64; 3],
    /// The first of them, by area and slot.
    pub entries: Vec<ZswapEntryRow>,
    /// Entries that are not listed here.
    pub more_entries: u64,
}

/// An entry of zswap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ZswapEntryRow {
    /// Swap area.
    pub area: u32,
    /// Slot.
    pub slot: u64,
    /// Where its bytes are: frame, offset in it, and how many.
    pub bytes: Option<[u64; 3]>,
    /// The word that its page is filled with, of one that is.
    pub word: Option<u64>,
}

/// Entries that are listed.
const ENTRIES_MAX: usize = 16;

/// An area; quantities are slots of 4 KiB.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SwapRow {
    /// Number.
    pub number: usize,
    /// Disk, as /dev names it.
    pub disk: String,
    /// Higher ones are used first.
    pub prio: i32,
    /// Whether slots are given out: not while swapoff empties it.
    pub writeok: bool,
    /// Slots that are not bad.
    pub pages: u64,
    /// In use, as the area counts.
    pub inuse: u64,
    /// In use, by a look at every word.
    pub used: u64,
    /// Of them, those whose page is in memory too.
    pub cached: u64,
    /// Of them, those that more than one entry names.
    pub shared: u64,
    /// Sum of all counts.
    pub names: u64,
    /// Bad ones, the header included.
    pub bad: u64,
    /// Clusters of which no slot is in use, some, all.
    pub clusters: [u64; 3],
    /// Pages read, written; reads and writes that failed.
    pub transfers: [u64; 4],
}

impl SwapView {
    /// Reads areas and words.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<SwapView, GuestError> {
        let mut areas = Vec::new();
        for (number, area) in guest.swap_areas()?.into_iter().enumerate() {
            if area.flags & SwapArea::USED != 0 {
                areas.push(row(guest, number, &area)?);
            }
        }
        let (shmem, _) = guest.shmem_slots()?;
        let spaces = guest.mm_spaces()?;
        let swapped = spaces.iter().map(|space| (space.space.pid, space.mm.swapents));
        let processes = swapped.filter(|(_, pages)| *pages > 0).collect();
        let zswap = guest.zswap_walk()?.as_ref().map(zswap_row);
        Ok(SwapView { areas, shmem: shmem.len() as u64, processes, zswap })
    }
}

fn zswap_row(walk: &ZswapWalk) -> ZswapRow {
    let state = &walk.state;
    let packed = walk.entries.iter().filter(|at| !at.entry.is_same_filled());
    let used = |frame: &crate::ZbudFrame| {
        frame.header.first_chunks.saturating_add(frame.header.last_chunks).min(ZBUD_CHUNKS)
    };
    let entries = walk.entries.iter().take(ENTRIES_MAX).map(|at| {
        let (gpa, same) = (at.entry.gpa(), at.entry.is_same_filled());
        ZswapEntryRow {
            area: at.slot.0,
            slot: at.slot.1,
            bytes: (!same).then_some([gpa / PAGE_SIZE, gpa % PAGE_SIZE, at.entry.len_bytes()]),
            word: same.then_some(at.entry.value),
        }
    });
    ZswapRow {
        pool_pages: [
            state.pool.pages,
            state.totalram_pages.saturating_mul(state.max_pool_percent.into()) / 100,
        ],
        leaf_pages: state.leaf_pages,
        reached_full: state.reached_full != 0,
        stored_pages: state.stored_pages,
        same_filled_pages: state.same_filled_pages,
        compressed_bytes: packed.map(|at| at.entry.len_bytes()).sum(),
        free_chunks: walk.frames.items.iter().map(|frame| ZBUD_CHUNKS - used(frame)).sum(),
        limit: [state.pool_limit_hit, state.written_back_pages, state.reject_reclaim_fail],
        rejected: [state.reject_compress_poor, state.reject_alloc_fail, state.reject_kmemcache_fail],
        entries: entries.collect(),
        more_entries: walk.entries.len().saturating_sub(ENTRIES_MAX) as u64,
    }
}

impl fmt::Display for ZswapRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([frames, most], [hit, back, failed]) = (self.pool_pages, self.limit);
        let [poor, no_frame, no_leaf] = self.rejected;
        writeln!(
            f,
            "zswap: {} pages kept, {} of one word, the others in {} bytes; pool {frames} of {most} frames, {} chunks free; {} frames of entries{}",
            self.stored_pages,
            self.same_filled_pages,
            self.compressed_bytes,
            self.free_chunks,
            self.leaf_pages,
            if self.reached_full { "; it was full and takes nothing yet" } else { "" },
        )?;
        writeln!(
            f,
            "zswap: refused {hit} when full, {poor} that do not compress, {no_frame} without a frame, {no_leaf} without one for entries; {back} written back, {failed} attempts failed"
        )?;
        for entry in &self.entries {
            write!(f, "  slot {:#x} of area {}: ", entry.slot, entry.area)?;
            match (entry.bytes, entry.word) {
                (Some([pfn, offset, len]), _) => writeln!(f, "pfn {pfn:#x}, offset {offset}, {len} bytes")?,
                (None, word) => writeln!(f, "filled with {:#x}", word.unwrap_or(0))?,
            }
        }
        if self.more_entries > 0 {
            writeln!(f, "  and {} more", self.more_entries)?;
        }
        Ok(())
    }
}

fn row<S: MemorySource + ?Sized>(
    guest: &Guest<'_, S>,
    number: usize,
    area: &SwapArea,
) -> Result<SwapRow, GuestError> {
    let words = guest.swap_words(area)?;
    let count =
        |wanted: &dyn Fn(&crate::SlotWord) -> bool| words.iter().filter(|word| wanted(word)).count() as u64;
    let mut clusters = [0; 3];
    for cluster in words.chunks(CLUSTER) {
        let taken = cluster.iter().filter(|word| !word.is_free()).count();
        let kind = if taken == 0 { 0 } else { 1 + usize::from(taken == cluster.len()) };
        if let Some(kind) = clusters.get_mut(kind) {
            *kind += 1;
        }
    }
    let letter = u8::try_from(area.disk).ok().and_then(|disk| b'a'.checked_add(disk)).map_or('?', char::from);
    Ok(SwapRow {
        number,
        disk: format!("/dev/vd{letter}"),
        prio: area.prio,
        writeok: area.flags & SwapArea::WRITEOK != 0,
        pages: area.pages,
        inuse: area.inuse,
        used: count(&|word| !word.is_free() && !word.is_bad()),
        cached: count(&|word| word.cache().is_some()),
        shared: count(&|word| word.count() > 1),
        names: words.iter().map(|word| word.count()).sum(),
        bad: count(&|word| word.is_bad()),
        clusters,
        transfers: [area.reads, area.writes, area.read_errors, area.write_errors],
    })
}

impl fmt::Display for SwapView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.areas.is_empty() {
            return writeln!(f, "no swap area is in use");
        }
        writeln!(
            f,
            "AREA DISK       PRIO     SLOTS      USED    CACHED    SHARED  BAD  CLUSTERS (FREE/PART/FULL)  READ/WRITTEN/FAILED"
        )?;
        for area in &self.areas {
            let [free, part, full] = area.clusters;
            let [reads, writes, read_errors, write_errors] = area.transfers;
            writeln!(
                f,
                "{:>4} {:<10} {:>4} {:>9} {:>9} {:>9} {:>9} {:>4}  {:<25}  {reads}/{writes}/{}{}",
                area.number,
                area.disk,
                area.prio,
                area.pages,
                area.used,
                area.cached,
                area.shared,
                area.bad,
                format!("{free}/{part}/{full}"),
                read_errors.saturating_add(write_errors),
                if area.writeok { "" } else { "  (being emptied)" },
            )?;
        }
        writeln!(f, "shared memory: {} pages in swap", self.shmem)?;
        for (pid, pages) in &self.processes {
            writeln!(f, "pid {pid}: {pages} pages in swap")?;
        }
        if let Some(zswap) = &self.zswap {
            zswap.fmt(f)?;
        }
        Ok(())
    }
}
