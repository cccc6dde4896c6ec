//! SRAT: which node CPUs and memory belong to (ACPI 6.5 section 5.2.16).
//!
//! Memory is described to the byte as the effective E820 map has it, a structure a range, so a node
//! without memory or CPUs appears by what it has.

use acpi_tables::Aml;
use acpi_tables::srat::MemoryAffinity;

use super::super::{Cpu, Machine, Node, Range};
use super::{FIRST_X2APIC_ID, table};

/// Flag of a processor affinity structure.
const ENABLED: u32 = 1;

pub(super) fn build(machine: &Machine) -> Vec<u8> {
    let mut body = Vec::new();
    // Reserved, "must be 1 for backward compatibility", and reserved.
    body.extend(1_u32.to_le_bytes());
    body.extend(0_u64.to_le_bytes());
    for cpu in &machine.cpus {
        processor(cpu, &mut body);
    }
    let of_node = |node: &Node| node.memory.iter().map(|range| (*range, node.id)).collect::<Vec<_>>();
    let mut memory: Vec<(Range, u32)> = machine.nodes.iter().flat_map(of_node).collect();
    memory.sort();
    for (range, node) in memory {
        MemoryAffinity::new(node, range.base, range.len).enabled().to_aml_bytes(&mut body);
    }
    table(*b"SRAT", 3, &body)
}

fn processor(cpu: &Cpu, body: &mut Vec<u8>) {
    let [low, high @ ..] = cpu.node.to_le_bytes();
    match u8::try_from(cpu.apic_id) {
        Ok(apic_id) if cpu.apic_id < FIRST_X2APIC_ID => {
            // Type 0, processor local APIC affinity.
            body.extend([0, 16, low, apic_id]);
            body.extend(ENABLED.to_le_bytes());
            body.push(0);
            body.extend(high);
            body.extend(0_u32.to_le_bytes());
        }
        _ => {
            // Type 2, processor local x2APIC affinity.
            body.extend([2, 24, 0, 0]);
            for word in [cpu.node, cpu.apic_id, ENABLED, 0, 0] {
                body.extend(word.to_le_bytes());
            }
        }
    }
}
