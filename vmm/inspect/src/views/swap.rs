//! Swap areas (Linux: /proc/swaps, and what no file of Linux tells: slots by who names them, clusters).

use std::fmt;

use memvisor_abi::SwapArea;
use serde::Serialize;

use crate::{Guest, GuestError, MemorySource};

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
}

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
        Ok(SwapView { areas, shmem: shmem.len() as u64, processes })
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
        Ok(())
    }
}
