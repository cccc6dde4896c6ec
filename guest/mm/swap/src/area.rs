//! A swap area under its lock: giving slots out and taking them back (Linux: `struct swap_info_struct`, `alloc_swap_scan_cluster`,
//! `swap_range_free`).

use core::ops::{DerefMut, Range};

use mm_core::Pfn;

use crate::cluster::{CLUSTER_SLOTS, Cluster, ClusterList, On, SWAPFILE_CLUSTER, at};
use crate::slot::{self, Slot, Word};

/// What the lock of an area guards.
#[derive(Debug)]
pub struct SwapInfo<C> {
    /// Slots are given out (Linux: `SWP_WRITEOK`).
    pub(crate) writeok: bool,
    pub(crate) prio: i32,
    pub(crate) max: u64,
    pub(crate) pages: u64,
    pub(crate) inuse: u64,
    pub(crate) clusters: C,
    pub(crate) free: ClusterList,
    pub(crate) nonfull: ClusterList,
}

/// What became of a slot that was given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freed {
    /// It can be given out again.
    Good,
    /// It is bad now, and no page of the area any more.
    Bad,
}

impl<C: DerefMut<Target = [Cluster]>> SwapInfo<C> {
    /// An area whose slots are the words, free but for those that the words call bad; `clusters` has one entry for each
    /// [`SWAPFILE_CLUSTER`] of them, begun or not. `None` if it has fewer.
    pub fn new<W: Word>(words: &[W], clusters: C) -> Option<SwapInfo<C>> {
        let max = words.len() as u64;
        let count = max.div_ceil(SWAPFILE_CLUSTER);
        if (clusters.len() as u64) < count || count >= u64::from(u32::MAX) {
            return None;
        }
        let mut info = SwapInfo {
            writeok: false,
            prio: 0,
            max,
            pages: 0,
            inuse: 0,
            clusters,
            free: ClusterList::EMPTY,
            nonfull: ClusterList::EMPTY,
        };
        for (index, run) in (0u32..).zip(words.chunks(CLUSTER_SLOTS)) {
            let bad = run.iter().filter(|word| !Slot::of(*word).is_free()).count() as u64;
            info.pages += run.len() as u64 - bad;
            if let Some(cluster) = at(&mut info.clusters, index) {
                *cluster = Cluster::NEW;
                cluster.used = u32::try_from(bad).unwrap_or(u32::MAX);
            }
            info.relist(index);
        }
        Some(info)
    }

    /// Slots, the header and bad ones included.
    pub const fn max(&self) -> u64 {
        self.max
    }

    /// Slots that are not bad (Linux: `pages`).
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// Slots in use (Linux: `inuse_pages`).
    pub const fn inuse_pages(&self) -> u64 {
        self.inuse
    }

    /// See swapon(2); higher is used first.
    pub const fn prio(&self) -> i32 {
        self.prio
    }

    /// Whether slots are given out (Linux: `SWP_WRITEOK`).
    pub const fn is_writeok(&self) -> bool {
        self.writeok
    }

    /// Takes a slot for the page in `pfn`, of a free cluster, else of one with room.
    pub(crate) fn allocate<W: Word>(&mut self, words: &[W], pfn: Pfn) -> Option<u64> {
        let index = self.free.first().or_else(|| self.nonfull.first())?;
        self.allocate_in(words, index, u64::from(index) * SWAPFILE_CLUSTER, pfn)
    }

    /// Takes the first free slot from `offset` on in its cluster, or before it there.
    pub(crate) fn allocate_near<W: Word>(&mut self, words: &[W], offset: u64, pfn: Pfn) -> Option<u64> {
        self.allocate_in(words, cluster_of(offset)?, offset, pfn)
    }

    fn allocate_in<W: Word>(&mut self, words: &[W], index: u32, from: u64, pfn: Pfn) -> Option<u64> {
        if !self.writeok || at(&mut self.clusters, index)?.on == On::Full {
            return None;
        }
        let Range { start, end } = self.slots(index);
        let offset = (from..end)
            .chain(start..from.min(end))
            .find(|offset| word(words, *offset).is_some_and(|word| slot::allocate(word, pfn)))?;
        self.inuse += 1;
        self.count(index, 1);
        Some(offset)
    }

    /// Takes back a slot that [`crate::Put::Last`] was said of; `None` if it was not.
    pub(crate) fn give_back<W: Word>(&mut self, words: &[W], offset: u64) -> Option<Freed> {
        let index = cluster_of(offset)?;
        let good = slot::finish_free(word(words, offset)?).ok()?;
        self.inuse -= 1;
        if good {
            self.count(index, -1);
            return Some(Freed::Good);
        }
        self.pages -= 1;
        Some(Freed::Bad)
    }

    /// Slots of a cluster.
    pub(crate) fn slots(&self, index: u32) -> Range<u64> {
        let start = u64::from(index) * SWAPFILE_CLUSTER;
        start..(start + SWAPFILE_CLUSTER).min(self.max)
    }

    /// Slots of a cluster are in use, or no more.
    fn count(&mut self, index: u32, by: i32) {
        let Some(cluster) = at(&mut self.clusters, index) else { return };
        cluster.used = cluster.used.saturating_add_signed(by);
        self.relist(index);
    }

    /// Puts a cluster on the list for what it has in use.
    fn relist(&mut self, index: u32) {
        let slots = self.slots(index);
        let Some(cluster) = at(&mut self.clusters, index) else { return };
        let on = match u64::from(cluster.used) {
            0 => On::Free,
            used if used < slots.end - slots.start => On::Nonfull,
            _ => On::Full,
        };
        let was = core::mem::replace(&mut cluster.on, on);
        if was == on {
            return;
        }
        match was {
            On::Free => self.free.remove(&mut self.clusters, index),
            On::Nonfull => self.nonfull.remove(&mut self.clusters, index),
            On::Full => {}
        }
        match on {
            On::Free => self.free.push(&mut self.clusters, index),
            On::Nonfull => self.nonfull.push(&mut self.clusters, index),
            On::Full => {}
        }
    }
}

/// The cluster of a slot.
pub(crate) fn cluster_of(offset: u64) -> Option<u32> {
    u32::try_from(offset / SWAPFILE_CLUSTER).ok()
}

/// The word of a slot.
pub(crate) fn word<W>(words: &[W], offset: u64) -> Option<&W> {
    words.get(usize::try_from(offset).ok()?)
}
