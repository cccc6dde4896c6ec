//! CPUs and address spaces.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A CPU as the guest sees it.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CpuInfo {
    /// Local APIC id from the MADT.
    pub apic_id: u32,
    /// NUMA node from the SRAT, or [`crate::NODE_NONE`].
    pub node: u32,
    /// See [`CpuState`].
    pub state: u32,
    /// Always 0.
    pub reserved: u32,
    /// Guest-physical base of the per-CPU area, which also holds the CPU's stacks; 0 if none.
    pub percpu_gpa: u64,
    /// Length of the per-CPU area in bytes.
    pub percpu_len: u64,
}
const _: () = assert!(size_of::<CpuInfo>() == 32);

/// Values of [`CpuInfo::state`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CpuState {
    /// Described by the MADT, not started.
    Present = 0,
    /// Took INIT/SIPI, has not reached its idle loop.
    Starting = 1,
    /// Runs the scheduler.
    Online = 2,
    /// Did not answer in time.
    Failed = 3,
}

/// A user address space (Linux: what `mm_struct` says to an outsider).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AddressSpace {
    /// Frame of the top-level page table; 0 marks an unused slot.
    pub pgd_pfn: u64,
    /// Process id that owns it.
    pub pid: u32,
    /// Always 0.
    pub reserved: u32,
    /// Resident user pages (Linux: `MM_ANONPAGES` + `MM_FILEPAGES`).
    pub rss_pages: u64,
    /// Page-table pages below and including the top level that belong to this space alone.
    pub table_pages: u64,
    /// Guest-physical address of its [`crate::Mm`], which is exact where the counts above are of the last checkpoint.
    pub mm: u64,
}
const _: () = assert!(size_of::<AddressSpace>() == 40);
