//! The LRU lists of each node, and the batches of pages that are on their way to them.

use memvisor_abi as abi;
use memvisor_abi::{LruBatch, LruKind, Lruvec, MAX_NUMNODES, NR_LRU_BATCHES, PAGE_SIZE};
use zerocopy::{FromZeros, IntoBytes};

use super::free_list::walk;
use super::tables::{Absent, CPUS_MAX};
use super::{Guest, GuestError, ListProblem, TableName};
use crate::MemorySource;

/// A list of a node, walked from its head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LruWalk {
    /// Node.
    pub node: usize,
    /// Which.
    pub kind: LruKind,
    /// What the list says of itself.
    pub list: abi::LruList,
    /// Frames, the one to be reclaimed last first, up to a problem that ends the walk.
    pub pfns: Vec<u64>,
    /// The first thing wrong with the links, if any.
    pub problem: Option<ListProblem>,
}

/// A list of a generation, walked from its head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LruGenWalk {
    /// Node.
    pub node: usize,
    /// Place of the generation ([`abi::LruGen::place`]).
    pub place: usize,
    /// Index of the type: anonymous, of files.
    pub kind: usize,
    /// Zone of the node.
    pub zone: usize,
    /// What the list says of itself.
    pub list: abi::LruList,
    /// Frames, the one to be reclaimed last first, up to a problem that ends the walk.
    pub pfns: Vec<u64>,
    /// The first thing wrong with the links, if any.
    pub problem: Option<ListProblem>,
}

impl LruGenWalk {
    /// Its name for messages.
    pub fn name(&self) -> String {
        let kind = abi::LRU_GEN_TYPE_NAMES.get(self.kind).copied().unwrap_or("?");
        format!("node {}, generation place {}, {kind}, zone {}", self.node, self.place, self.zone)
    }
}

impl<S: MemorySource + ?Sized> Guest<'_, S> {
    /// Lists by node; empty if the guest publishes none.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn lruvecs(&self) -> Result<Vec<Lruvec>, GuestError> {
        self.table(TableName::Lruvecs, self.root.lruvecs, MAX_NUMNODES as u64, Absent::IsEmpty)
    }

    /// Walks the lists of a node; `lruvec` is a copy of their heads.
    ///
    /// # Errors
    /// [`GuestError`] if descriptors cannot be read.
    pub fn lru_lists(&self, node: usize, lruvec: &Lruvec) -> Result<Vec<LruWalk>, GuestError> {
        let max = self.source.ram_bytes() / PAGE_SIZE;
        let mut walks = Vec::new();
        for (kind, list) in LruKind::ALL.into_iter().zip(lruvec.lists) {
            let (pfns, problem) = walk(self, list.head, list.tail, max)?;
            walks.push(LruWalk { node, kind, list, pfns, problem });
        }
        Ok(walks)
    }

    /// Walks the lists of the generations of a node; none with the other policy.
    ///
    /// # Errors
    /// [`GuestError`] if descriptors cannot be read.
    pub fn lru_gens(&self, node: usize, lruvec: &Lruvec) -> Result<Vec<LruGenWalk>, GuestError> {
        let max = self.source.ram_bytes() / PAGE_SIZE;
        let mut walks = Vec::new();
        if lruvec.lrugen.enabled == 0 {
            return Ok(walks);
        }
        for (place, types) in lruvec.lrugen.lists.iter().enumerate() {
            for (kind, zones) in types.iter().enumerate() {
                for (zone, list) in zones.iter().enumerate() {
                    let (pfns, problem) = walk(self, list.head, list.tail, max)?;
                    walks.push(LruGenWalk { node, place, kind, zone, list: *list, pfns, problem });
                }
            }
        }
        Ok(walks)
    }

    /// Batches by CPU, the first of each those to be added; empty for a CPU without.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn lru_batches(&self) -> Result<Vec<Vec<LruBatch>>, GuestError> {
        let places: Vec<u64> =
            self.table(TableName::LruBatches, self.root.lru_batches, CPUS_MAX, Absent::IsEmpty)?;
        let mut cpus = Vec::new();
        for gpa in places {
            let mut batches = Vec::new();
            if gpa != 0 {
                batches = vec![LruBatch::new_zeroed(); NR_LRU_BATCHES];
                self.source.read(gpa, batches.as_mut_slice().as_mut_bytes())?;
            }
            cpus.push(batches);
        }
        Ok(cpus)
    }
}
