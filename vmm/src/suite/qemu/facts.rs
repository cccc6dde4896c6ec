//! What a stanza's machine is, for the audit.

use memvisor_abi::E820Entry;
use memvisor_inspect::{FactCpu, FactE820, FactNodeMemory, Facts};

use super::super::case::{QemuNode, QemuSetup};

/// What this stanza builds. The E820 map is the firmware's: the guest's copy of it has to do.
pub fn facts(setup: &QemuSetup, cmdline: &str, firmware: &[E820Entry]) -> Facts {
    let mut facts = Facts {
        machine: "qemu q35".to_owned(),
        levels: setup.levels,
        cmdline: cmdline.to_owned(),
        e820: firmware
            .iter()
            .map(|entry| FactE820 { addr: entry.addr, size: entry.size, kind: entry.kind })
            .collect(),
        ..Facts::default()
    };
    let mut base = 0;
    let whole = [QemuNode { memory_mib: setup.memory_mib, cpus: (0..setup.cpus).collect() }];
    let nodes = if setup.nodes.is_empty() { whole.as_slice() } else { &setup.nodes };
    for (number, node) in (0..).zip(nodes) {
        let len = node.memory_mib << 20;
        if len > 0 {
            facts.node_memory.push(FactNodeMemory { node: number, base, len });
        }
        base += len;
        // With -smp N alone every CPU is a socket, and APIC ids count up from 0.
        facts.cpus.extend(node.cpus.iter().map(|cpu| FactCpu { apic_id: *cpu, node: number }));
    }
    facts.cpus.sort_by_key(|cpu| cpu.apic_id);
    facts.distances.clone_from(&setup.distances);
    facts
}

#[cfg(test)]
mod tests {
    use super::super::tests::{NODES, case};
    use super::*;

    #[test]
    fn facts_follow_the_stanza() {
        let (_, setup) = case(NODES);
        let facts = facts(&setup, "", &[]);
        assert_eq!(
            facts.node_memory,
            [
                FactNodeMemory { node: 0, base: 0, len: 32 << 20 },
                FactNodeMemory { node: 2, base: 32 << 20, len: 64 << 20 }
            ]
        );
        assert_eq!(facts.cpus, [FactCpu { apic_id: 0, node: 1 }, FactCpu { apic_id: 1, node: 0 }]);
        assert_eq!(facts.distances[1][2], 32);
    }
}
