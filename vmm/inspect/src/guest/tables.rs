//! The published tables, one reader each.

use std::mem::size_of;

use memvisor_abi as abi;
use memvisor_abi::{
    CpuInfo, E820Entry, FileCounts, Kcompactd, LayoutRange, MAX_MOVABLE_OWNERS, MAX_NR_ZONES, MAX_NUMNODES,
    MemblockRegion, MovableOwner, Node, Oom, SECTION_SIZE_BITS, Section, TableRef, TraceRing, VmSysctl, Zone,
};
use zerocopy::{FromBytes, IntoBytes};

use super::{Guest, GuestError, TableName};
use crate::MemorySource;

/// Most layout ranges, and the like for the other tables whose size does not follow from RAM.
const LAYOUT_MAX: u64 = 64;
/// Linux takes 128 from the boot parameters and any number from E820_EXT; hostile maps are long.
const E820_MAX: u64 = 1 << 16;
const MEMBLOCK_MAX: u64 = 1 << 16;
/// x2APIC ids have 32 bits; Linux's largest NR_CPUS is 8192.
pub(super) const CPUS_MAX: u64 = 8192;

/// Whether a table without address is an empty one or a missing one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Absent {
    IsEmpty,
    IsMissing,
}

impl<S: MemorySource + ?Sized> Guest<'_, S> {
    /// Ranges of the virtual address space.
    ///
    /// # Errors
    /// [`GuestError`], as for all tables.
    pub fn layout(&self) -> Result<Vec<LayoutRange>, GuestError> {
        self.table(TableName::Layout, self.root.layout, LAYOUT_MAX, Absent::IsMissing)
    }

    /// The E820 map as the boot loader gave it.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn e820_raw(&self) -> Result<Vec<E820Entry>, GuestError> {
        self.table(TableName::E820Raw, self.root.e820_raw, E820_MAX, Absent::IsMissing)
    }

    /// The E820 map after the guest sanitized it.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn e820(&self) -> Result<Vec<E820Entry>, GuestError> {
        self.table(TableName::E820, self.root.e820, E820_MAX, Absent::IsMissing)
    }

    /// RAM as memblock holds it.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn memblock_memory(&self) -> Result<Vec<MemblockRegion>, GuestError> {
        self.table(TableName::MemblockMemory, self.root.memblock_memory, MEMBLOCK_MAX, Absent::IsMissing)
    }

    /// What was reserved at hand-over to the buddy allocator.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn memblock_reserved(&self) -> Result<Vec<MemblockRegion>, GuestError> {
        self.table(TableName::MemblockReserved, self.root.memblock_reserved, MEMBLOCK_MAX, Absent::IsMissing)
    }

    /// Nodes, indexed by number.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn nodes(&self) -> Result<Vec<Node>, GuestError> {
        self.table(TableName::Nodes, self.root.nodes, MAX_NUMNODES as u64, Absent::IsMissing)
    }

    /// Distances, row by row; as many rows and columns as nodes. Empty if there is no table.
    ///
    /// # Errors
    /// [`GuestError`], also for a table that is not `nodes` squared long.
    pub fn distances(&self) -> Result<Vec<Vec<u8>>, GuestError> {
        let max = (MAX_NUMNODES * MAX_NUMNODES) as u64;
        let flat: Vec<u8> = self.table(TableName::Distances, self.root.distances, max, Absent::IsEmpty)?;
        if flat.is_empty() {
            return Ok(Vec::new());
        }
        let nodes = self.root.nodes.count as usize;
        if nodes.checked_mul(nodes) != Some(flat.len()) {
            return Err(GuestError::Element {
                table: TableName::Distances,
                index: flat.len(),
                field: "count",
                value: flat.len() as u64,
                why: "it must be the number of nodes squared",
            });
        }
        Ok(flat.chunks(nodes).map(<[u8]>::to_vec).collect())
    }

    /// Zones, indexed by node * `MAX_NR_ZONES` + kind.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn zones(&self) -> Result<Vec<Zone>, GuestError> {
        let max = (MAX_NUMNODES * MAX_NR_ZONES) as u64;
        self.table(TableName::Zones, self.root.zones, max, Absent::IsMissing)
    }

    /// Settings of watermarks and reserves, one or none.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn vm_sysctl(&self) -> Result<Vec<VmSysctl>, GuestError> {
        self.table(TableName::VmSysctl, self.root.vm_sysctl, 1, Absent::IsEmpty)
    }

    /// Counts of the page cache, one or none.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn file_counts(&self) -> Result<Vec<FileCounts>, GuestError> {
        self.table(TableName::FileCounts, self.root.file_counts, 1, Absent::IsEmpty)
    }

    /// One zone.
    ///
    /// # Errors
    /// [`GuestError::NoSuchElement`] past the end, else as [`Guest::zones`].
    pub fn zone(&self, index: usize) -> Result<Zone, GuestError> {
        let count = self.root.zones.count as usize;
        self.zones()?.into_iter().nth(index).ok_or(GuestError::NoSuchElement {
            table: TableName::Zones,
            index,
            count,
        })
    }

    /// Present memory sections, ascending.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn sections(&self) -> Result<Vec<Section>, GuestError> {
        // A section is present if it holds RAM, so RAM limits their number.
        let max = self
            .source
            .regions()
            .iter()
            .map(|region| {
                let last = region.gpa.saturating_add(region.len.saturating_sub(1));
                (last >> SECTION_SIZE_BITS) - (region.gpa >> SECTION_SIZE_BITS) + 1
            })
            .sum();
        self.table(TableName::Sections, self.root.sections, max, Absent::IsMissing)
    }

    /// CPUs, indexed by number.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn cpus(&self) -> Result<Vec<CpuInfo>, GuestError> {
        self.table(TableName::Cpus, self.root.cpus, CPUS_MAX, Absent::IsMissing)
    }

    /// Frames of page tables outside all address spaces.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn extra_tables(&self) -> Result<Vec<u64>, GuestError> {
        let max = self.source.ram_bytes() / abi::PAGE_SIZE;
        self.table(TableName::ExtraTables, self.root.extra_tables, max, Absent::IsEmpty)
    }

    /// Trace rings, indexed by CPU number; empty if the guest does not trace.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn trace_rings(&self) -> Result<Vec<TraceRing>, GuestError> {
        self.table(TableName::TraceRings, self.root.trace_rings, CPUS_MAX, Absent::IsEmpty)
    }

    /// Owners of movable pages, unused slots included: the owner at index `n` is number `n + 1`.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn movable_owners(&self) -> Result<Vec<MovableOwner>, GuestError> {
        let max = MAX_MOVABLE_OWNERS as u64;
        self.table(TableName::MovableOwners, self.root.movable_owners, max, Absent::IsEmpty)
    }

    /// kcompactd by node.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn kcompactds(&self) -> Result<Vec<Kcompactd>, GuestError> {
        self.table(TableName::Kcompactds, self.root.kcompactds, MAX_NUMNODES as u64, Absent::IsEmpty)
    }

    /// What the OOM killer is set to and did; `None` of a guest that does not publish it.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn oom(&self) -> Result<Option<Oom>, GuestError> {
        let table: Vec<Oom> = self.table(TableName::Oom, self.root.oom, 1, Absent::IsEmpty)?;
        Ok(table.into_iter().next())
    }

    pub(super) fn table<T: FromBytes + IntoBytes + Clone>(
        &self,
        table: TableName,
        place: TableRef,
        max: u64,
        absent: Absent,
    ) -> Result<Vec<T>, GuestError> {
        let TableRef { gpa, count, stride } = place;
        if gpa == 0 {
            return if absent == Absent::IsEmpty && count == 0 {
                Ok(Vec::new())
            } else {
                Err(GuestError::NotPublished { table, stage: self.root.stage })
            };
        }
        if count == 0 {
            return Ok(Vec::new());
        }
        if u64::from(count) > max {
            return Err(GuestError::TooMany { table, count, max });
        }
        let size = size_of::<T>();
        if (stride as usize) < size {
            return Err(GuestError::Stride { table, stride, size });
        }
        // The last element need not be padded to the stride.
        let len = (u64::from(count) - 1) * u64::from(stride) + size as u64;
        if !self.source.is_ram(gpa, len) {
            return Err(GuestError::NotRam { table, gpa, count, stride });
        }
        let mut elements = vec![T::new_zeroed(); count as usize];
        if stride as usize == size {
            self.source.read(gpa, elements.as_mut_slice().as_mut_bytes())?;
        } else {
            for (index, element) in (0u64..).zip(&mut elements) {
                self.source.read(gpa + index * u64::from(stride), element.as_mut_bytes())?;
            }
        }
        Ok(elements)
    }
}
