//! CPUs.

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
