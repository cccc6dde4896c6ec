//! Runs of slots, on lists by how much room they have (Linux: `struct swap_cluster_info`).

/// Slots of a cluster (Linux: the same name; 256 without huge pages).
pub const SWAPFILE_CLUSTER: u64 = CLUSTER_SLOTS as u64;

/// The same, for tables.
pub(crate) const CLUSTER_SLOTS: usize = 256;

const NONE: u32 = u32::MAX;

/// Which list a cluster is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum On {
    /// No slot in use (Linux: `free_clusters`).
    Free,
    /// Some in use (Linux: `nonfull_clusters`).
    Nonfull,
    /// All in use: on no list (Linux: `full_clusters`).
    Full,
}

/// A run of [`SWAPFILE_CLUSTER`] slots, the last one of an area perhaps shorter.
#[derive(Clone, Copy, Debug)]
pub struct Cluster {
    pub(crate) used: u32,
    pub(crate) on: On,
    prev: u32,
    next: u32,
}

impl Cluster {
    /// For a table to be filled by [`crate::SwapInfo::new`].
    pub const NEW: Cluster = Cluster { used: 0, on: On::Full, prev: NONE, next: NONE };
}

/// First in, first out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClusterList {
    head: u32,
    tail: u32,
}

impl ClusterList {
    pub(crate) const EMPTY: ClusterList = ClusterList { head: NONE, tail: NONE };

    pub(crate) fn first(&self) -> Option<u32> {
        (self.head != NONE).then_some(self.head)
    }

    pub(crate) fn push(&mut self, table: &mut [Cluster], index: u32) {
        let last = core::mem::replace(&mut self.tail, index);
        if let Some(cluster) = at(table, index) {
            (cluster.prev, cluster.next) = (last, NONE);
        }
        match at(table, last) {
            Some(last) => last.next = index,
            None => self.head = index,
        }
    }

    pub(crate) fn remove(&mut self, table: &mut [Cluster], index: u32) {
        let Some(&mut Cluster { prev, next, .. }) = at(table, index) else { return };
        match at(table, prev) {
            Some(before) => before.next = next,
            None => self.head = next,
        }
        match at(table, next) {
            Some(after) => after.prev = prev,
            None => self.tail = prev,
        }
    }

    /// The clusters, first one first; no more than the table has, whatever the links say.
    pub(crate) fn iter<'t>(&self, table: &'t [Cluster]) -> impl Iterator<Item = u32> + use<'t> {
        let mut next = self.head;
        (0..table.len()).map_while(move |_| {
            let index = next;
            next = table.get(usize::try_from(index).ok()?)?.next;
            Some(index)
        })
    }
}

pub(crate) fn at(table: &mut [Cluster], index: u32) -> Option<&mut Cluster> {
    table.get_mut(usize::try_from(index).ok()?)
}
