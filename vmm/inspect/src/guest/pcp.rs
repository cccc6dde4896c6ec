//! Per-CPU page lists, zonelists and events.

use memvisor_abi::{
    CpuEvents, MAX_NR_ZONES, MAX_NUMNODES, NR_PCP_LISTS, NR_VM_EVENTS, PAGE_SIZE, PFN_NONE, PerCpuPages,
    Zonelist,
};
use serde::Serialize;

use super::free_list::walk;
use super::tables::{Absent, CPUS_MAX};
use super::{Guest, GuestError, ListProblem, TableName};
use crate::MemorySource;

/// One list of one CPU and zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PcpBlocks {
    /// CPU.
    pub cpu: usize,
    /// Index in the zone table.
    pub zone_index: usize,
    /// Number of the list.
    pub list: usize,
    /// Order of its blocks.
    pub order: usize,
    /// First frames of the blocks, hot first, up to a problem that ends the walk.
    pub blocks: Vec<u64>,
    /// The first thing wrong with the links, if any.
    pub problem: Option<ListProblem>,
}

impl<S: MemorySource + ?Sized> Guest<'_, S> {
    /// Per-CPU lists by CPU * zones + zone; empty if the guest publishes none.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn pcps(&self) -> Result<Vec<PerCpuPages>, GuestError> {
        let max = CPUS_MAX * (MAX_NUMNODES * MAX_NR_ZONES) as u64;
        self.table(TableName::Pcps, self.root.pcps, max, Absent::IsEmpty)
    }

    /// Zonelists by node; empty if the guest publishes none.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn zonelists(&self) -> Result<Vec<Zonelist>, GuestError> {
        self.table(TableName::Zonelists, self.root.zonelists, MAX_NUMNODES as u64, Absent::IsEmpty)
    }

    /// Events by number, summed over CPUs; `None` if the guest publishes none.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn vm_events(&self) -> Result<Option<[u64; NR_VM_EVENTS]>, GuestError> {
        let cpus: Vec<CpuEvents> =
            self.table(TableName::VmEvents, self.root.vm_events, CPUS_MAX, Absent::IsEmpty)?;
        let mut sums = [0_u64; NR_VM_EVENTS];
        for cpu in &cpus {
            for (sum, count) in sums.iter_mut().zip(cpu.events) {
                *sum = sum.wrapping_add(count);
            }
        }
        Ok((!cpus.is_empty()).then_some(sums))
    }

    /// Walks all lists that a CPU keeps of a zone; `pcp` is a copy of their heads.
    ///
    /// # Errors
    /// [`GuestError`] if descriptors cannot be read.
    pub fn pcp_lists(
        &self,
        pcp: &PerCpuPages,
        cpu: usize,
        zone_index: usize,
    ) -> Result<Vec<PcpBlocks>, GuestError> {
        let mut lists = Vec::new();
        for (list, ends) in pcp.lists.iter().enumerate().take(NR_PCP_LISTS) {
            if ends.head == PFN_NONE && ends.tail == PFN_NONE {
                continue;
            }
            let order = PerCpuPages::order_of(list);
            let max = (self.source.ram_bytes() / PAGE_SIZE) >> order;
            let (blocks, problem) = walk(self, ends.head, ends.tail, max)?;
            lists.push(PcpBlocks { cpu, zone_index, list, order, blocks, problem });
        }
        Ok(lists)
    }
}
