//! System Resource Affinity Table (ACPI 6.5 section 5.2.16).

use memvisor_abi::MAX_NUMNODES;

use super::{MAX_CPUS, Table};
use crate::{Bytes, Memory, Say};

/// Memory ranges kept.
pub const MAX_RANGES: usize = 256;

/// Who is where. Proximity domains become nodes as they are; one past the nodes of this kernel is
/// reported and ignored.
#[derive(Debug)]
pub struct Srat {
    memory: [(u64, u64, u32); MAX_RANGES],
    ranges: usize,
    cpu: [(u32, u32); MAX_CPUS],
    cpus: usize,
    nodes: u32,
}

impl Srat {
    /// Knows nothing.
    pub const fn new() -> Srat {
        Srat { memory: [(0, 0, 0); MAX_RANGES], ranges: 0, cpu: [(0, 0); MAX_CPUS], cpus: 0, nodes: 0 }
    }

    /// (base, length, node) of memory, in the order of the table.
    pub fn memory(&self) -> &[(u64, u64, u32)] {
        &self.memory[..self.ranges]
    }

    /// One past the highest node named.
    pub fn nodes(&self) -> u32 {
        self.nodes
    }

    /// The node of a CPU.
    pub fn node_of_cpu(&self, apic_id: u32) -> Option<u32> {
        self.cpu[..self.cpus].iter().find(|cpu| cpu.0 == apic_id).map(|cpu| cpu.1)
    }

    /// Adds what the table says.
    pub fn read<M: Memory>(&mut self, table: &Table<'_, M>, say: Say<'_>) {
        const CPU: u8 = 0;
        const MEMORY: u8 = 1;
        const X2APIC: u8 = 2;
        const GENERIC_INITIATOR: u8 = 5;
        table.for_each_entry(48, say, |kind, entry, say| match kind {
            CPU => self.add_cpu(local_apic(&entry), say),
            X2APIC => self.add_cpu(x2apic(&entry), say),
            MEMORY => self.add_memory(&entry, say),
            GENERIC_INITIATOR => {
                if let Some(node) = entry.u32(4) {
                    self.saw_node(node, say);
                }
            }
            _ => {}
        });
    }

    fn saw_node(&mut self, node: u32, say: Say<'_>) -> bool {
        if usize::try_from(node).is_ok_and(|node| node < MAX_NUMNODES) {
            self.nodes = self.nodes.max(node + 1);
            return true;
        }
        say(format_args!(
            "SRAT: proximity domain {node} is past the {MAX_NUMNODES} nodes of this kernel; entry ignored"
        ));
        false
    }

    fn add_cpu(&mut self, cpu: Option<(u32, u32, u32)>, say: Say<'_>) {
        let Some((_, id, node)) = cpu.filter(|(flags, ..)| flags & 1 != 0) else { return };
        if !self.saw_node(node, say) {
            return;
        }
        if self.cpus == MAX_CPUS {
            say(format_args!("SRAT: more than {MAX_CPUS} CPUs; APIC {id:#04x} ignored"));
            return;
        }
        say(format_args!("SRAT: PXM {node} -> APIC {id:#04x} -> Node {node}"));
        self.cpu[self.cpus] = (id, node);
        self.cpus += 1;
    }

    fn add_memory<M: Memory>(&mut self, entry: &Bytes<'_, M>, say: Say<'_>) {
        let (Some(base), Some(len), Some(node), Some(flags)) =
            (entry.u64(8), entry.u64(16), entry.u32(2), entry.u32(28))
        else {
            return;
        };
        // Firmware fills unused slots with disabled or empty entries. An enabled one names its node even if
        // the node has no memory.
        if flags & 1 == 0 || !self.saw_node(node, say) || len == 0 {
            return;
        }
        let Some(end) = base.checked_add(len) else {
            say(format_args!("SRAT: node {node}: range at {base:#x} wraps; ignored"));
            return;
        };
        if self.ranges == MAX_RANGES {
            say(format_args!("SRAT: more than {MAX_RANGES} ranges; [mem {base:#x}-{:#x}] ignored", end - 1));
            return;
        }
        say(format_args!("SRAT: Node {node} PXM {node} [mem {base:#018x}-{:#018x}]", end - 1));
        self.memory[self.ranges] = (base, len, node);
        self.ranges += 1;
    }
}

impl Default for Srat {
    fn default() -> Srat {
        Srat::new()
    }
}

/// (flags, APIC id, node): the domain's upper three bytes lie apart.
fn local_apic<M: Memory>(entry: &Bytes<'_, M>) -> Option<(u32, u32, u32)> {
    let node = u32::from_le_bytes([entry.u8(2)?, entry.u8(9)?, entry.u8(10)?, entry.u8(11)?]);
    Some((entry.u32(4)?, u32::from(entry.u8(3)?), node))
}

fn x2apic<M: Memory>(entry: &Bytes<'_, M>) -> Option<(u32, u32, u32)> {
    Some((entry.u32(12)?, entry.u32(8)?, entry.u32(4)?))
}
