//! What the VMM knows about the machine it built, independent of anything the guest says.

use serde::{Deserialize, Serialize};

/// The machine as built. Travels through the control socket and inside dumps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Name of the machine.
    pub machine: String,
    /// The E820 map as handed to the guest, in its order, hostile entries included.
    pub e820: Vec<FactE820>,
    /// Memory ranges by node, as in the SRAT, ascending by address.
    pub node_memory: Vec<FactNodeMemory>,
    /// CPUs by index.
    pub cpus: Vec<FactCpu>,
    /// Distances, row by row; empty if the machine has one node.
    pub distances: Vec<Vec<u8>>,
    /// Paging levels the guest was started with.
    pub levels: u32,
    /// The guest's command line.
    pub cmdline: String,
}

/// An E820 entry as built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactE820 {
    /// First byte.
    pub addr: u64,
    /// Length in bytes; `addr + size` may wrap in a hostile map.
    pub size: u64,
    /// E820 type.
    pub kind: u32,
}

/// A node's memory range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactNodeMemory {
    /// Node.
    pub node: u32,
    /// First byte.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
}

/// A CPU as built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactCpu {
    /// Local APIC id.
    pub apic_id: u32,
    /// Node.
    pub node: u32,
}
