//! System Resource Affinity Table and System Locality Information Table (ACPI 6.5 sections 5.2.16
//! and 5.2.17).

use memvisor_abi::{MAX_NUMNODES, NODE_NONE};

use super::Table;
use super::madt::MAX_CPUS;
use crate::println;

const MAX_RANGES: usize = 256;

/// Who is where. Proximity domains become nodes as they are, as on machines whose domains count from
/// 0 without gaps; others are refused with a message.
#[derive(Debug)]
pub struct Srat {
    /// (base, length, node) of memory; the first `ranges` are valid.
    pub memory: [(u64, u64, u32); MAX_RANGES],
    /// Valid entries of `memory`.
    pub ranges: usize,
    /// (local APIC id, node) of CPUs; the first `cpus` are valid.
    pub cpu: [(u32, u32); MAX_CPUS],
    /// Valid entries of `cpu`.
    pub cpus: usize,
    /// One past the highest node named.
    pub nodes: u32,
}

impl Srat {
    /// The node of a CPU, or `NODE_NONE`.
    pub fn node_of_cpu(&self, apic_id: u32) -> u32 {
        self.cpu[..self.cpus].iter().find(|cpu| cpu.0 == apic_id).map_or(NODE_NONE, |cpu| cpu.1)
    }

    fn saw_node(&mut self, node: u32) -> bool {
        if node as usize >= MAX_NUMNODES {
            println!(
                "SRAT: proximity domain {node} is past the {MAX_NUMNODES} nodes of this kernel; entry ignored"
            );
            return false;
        }
        self.nodes = self.nodes.max(node + 1);
        true
    }
}

/// Reads the SRAT into `srat`.
pub fn srat(table: Option<&Table>, srat: &mut Srat) {
    const CPU: u8 = 0;
    const MEMORY: u8 = 1;
    const X2APIC: u8 = 2;
    const GENERIC_INITIATOR: u8 = 5;
    let Some(table) = table else { return };
    table.for_each_subtable(48, |kind, entry| {
        let parsed = match kind {
            CPU => entry.u32(4).zip(entry.u8(3)).zip(entry.u8(2)).map(|((flags, id), low)| {
                let high =
                    (0..3).map(|index| u32::from(entry.u8(9 + index).unwrap_or(0)) << (8 * (index + 1)));
                (flags, u32::from(id), u32::from(low) | high.sum::<u32>())
            }),
            X2APIC => {
                entry.u32(12).zip(entry.u32(8)).zip(entry.u32(4)).map(|((flags, id), node)| (flags, id, node))
            }
            _ => None,
        };
        if let Some((flags, id, node)) = parsed {
            if flags & 1 != 0 && srat.saw_node(node) && srat.cpus < MAX_CPUS {
                println!("SRAT: PXM {node} -> APIC {id:#04x} -> Node {node}");
                srat.cpu[srat.cpus] = (id, node);
                srat.cpus += 1;
            }
        } else if kind == MEMORY {
            let (Some(base), Some(len), Some(node), Some(flags)) =
                (entry.u64(8), entry.u64(16), entry.u32(2), entry.u32(28))
            else {
                return;
            };
            // QEMU and firmware fill unused slots with disabled or empty entries.
            if flags & 1 == 0 || len == 0 || !srat.saw_node(node) {
                return;
            }
            let Some(end) = base.checked_add(len) else {
                println!("SRAT: node {node}: range at {base:#x} wraps; ignored");
                return;
            };
            if srat.ranges == MAX_RANGES {
                println!(
                    "SRAT: more than {MAX_RANGES} memory ranges; [mem {base:#x}-{:#x}] ignored",
                    end - 1
                );
                return;
            }
            println!("SRAT: Node {node} PXM {node} [mem {base:#018x}-{:#018x}]", end - 1);
            srat.memory[srat.ranges] = (base, len, node);
            srat.ranges += 1;
        } else if kind == GENERIC_INITIATOR
            && let Some(node) = entry.u32(4)
        {
            srat.saw_node(node);
        }
    });
}

/// Distances between nodes.
#[derive(Debug)]
pub struct Slit {
    /// Row by row, `nodes` squared values.
    pub distances: [u8; MAX_NUMNODES * MAX_NUMNODES],
    /// Nodes.
    pub nodes: usize,
}

/// Linux's `LOCAL_DISTANCE` and `REMOTE_DISTANCE`.
const LOCAL: u8 = 10;
const REMOTE: u8 = 20;

/// Fills `slit` for `nodes` nodes: from the table if there is a valid one, else 10 and 20.
pub fn slit(table: Option<&Table>, nodes: usize, slit: &mut Slit) {
    slit.nodes = nodes;
    let localities = table.and_then(|table| table.bytes.u64(36)).unwrap_or(0);
    let count = usize::try_from(localities).unwrap_or(usize::MAX);
    let valid = table.filter(|table| {
        let complete = count >= nodes
            && count
                .checked_mul(count)
                .and_then(|cells| cells.checked_add(44))
                .is_some_and(|len| len <= table.len());
        // ACPI 6.5 5.2.17: the diagonal is 10, everything else is more.
        let sane = complete
            && (0..nodes).all(|from| {
                (0..nodes).all(|to| {
                    table
                        .bytes
                        .u8(44 + from * count + to)
                        .is_some_and(|d| if from == to { d == LOCAL } else { d > LOCAL })
                })
            });
        if !sane {
            println!("ACPI: SLIT: {count} localities for {nodes} nodes, or bad distances; table ignored");
        }
        sane
    });
    for from in 0..nodes {
        for to in 0..nodes {
            let default = if from == to { LOCAL } else { REMOTE };
            slit.distances[from * nodes + to] =
                valid.and_then(|table| table.bytes.u8(44 + from * count + to)).unwrap_or(default);
        }
    }
}
